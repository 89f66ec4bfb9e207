"""The fast step against TRL's own: pieces against autograd, whole runs against whole runs."""

import pytest
import torch
from datasets import Dataset
from transformers import LlamaConfig, LlamaForCausalLM
from trl import DPOConfig, DPOTrainer
from trl_oracle import WORDS, tokenizer

from dpo_tutorial.training.models import lora_config
from dpo_tutorial.training.trl_fast import FastDPOTrainer

TEMPLATE = "{% for m in messages %}{{ 'the ' if m.role == 'user' else 'it ' }}{{ m.content }} {% endfor %}"
TEMPLATE += "{% if add_generation_prompt %}it {% endif %}"


def small_llama(seed: int, **changes) -> LlamaForCausalLM:
    """Two layers, grouped heads; weights large enough that policy and reference differ by several nats."""
    torch.manual_seed(seed)
    shape = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = LlamaConfig(vocab_size=len(WORDS), num_key_value_heads=2, **(shape | changes))
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.3 * torch.randn_like(parameter))
    return model


def pairs(count: int, *, chat: bool = False, longest: int = 9) -> Dataset:
    """Random words of ragged lengths; every third pair begins its two completions alike."""
    generator = torch.Generator().manual_seed(count)

    def words(low, high):
        length = int(torch.randint(low, high + 1, (), generator=generator))
        picks = torch.randint(3, len(WORDS), (length,), generator=generator)
        return " ".join(WORDS[i] for i in picks)

    rows = []
    for i in range(count):
        prompt, chosen, rejected = words(1, longest), words(1, longest), words(1, longest)
        if i % 3 == 0:
            rejected = f"{chosen} {rejected}" if i % 2 else f"{chosen.split()[0]} {rejected}"
        if chat:
            rows.append(
                {
                    "prompt": [{"role": "user", "content": prompt}],
                    "chosen": [{"role": "assistant", "content": chosen}],
                    "rejected": [{"role": "assistant", "content": rejected}],
                }
            )
        else:
            rows.append({"prompt": prompt, "chosen": f" {chosen}", "rejected": f" {rejected}"})
    return Dataset.from_list(rows)


def settings(folder, **changes) -> DPOConfig:
    common = {
        "output_dir": str(folder),
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "disable_tqdm": True,
        "report_to": "none",
        "save_strategy": "no",
        "per_device_train_batch_size": 4,
        "per_device_eval_batch_size": 4,
        "learning_rate": 3e-2,
        "logging_steps": 1,
        "max_steps": 20,
        "beta": 0.1,
    }
    return DPOConfig(**(common | changes))


def trained(kind, folder, *, lora: bool, chat: bool = False, count: int = 30, with_eval=False, model=None, **changes):
    """A finished run of 20 steps: the trainer."""
    words = tokenizer()
    words.chat_template = TEMPLATE
    trainer = kind(
        model=model or small_llama(0),
        ref_model=None if lora else small_llama(1),
        args=settings(folder, **changes),
        train_dataset=pairs(count, chat=chat),
        eval_dataset=pairs(10, chat=chat) if with_eval else None,
        processing_class=words,
        peft_config=lora_config(rank=4) if lora else None,
    )
    trainer.train()
    return trainer


def numbers(trainer) -> list[dict[str, float]]:
    """Every logged line without what a clock says."""
    clocks = ("runtime", "per_second", "flos")
    return [
        {name: value for name, value in line.items() if not any(clock in name for clock in clocks)}
        for line in trainer.state.log_history
    ]


def largest_difference(first, second) -> float:
    """Over all logged numbers of two runs, which must be the same ones.

    In the first step policy and reference are one model: whether a margin is "above zero" is rounding there.
    """
    ours, theirs = numbers(first), numbers(second)
    assert [sorted(line) for line in ours] == [sorted(line) for line in theirs]
    return max(
        abs(line[name] - other[name]) / max(1.0, abs(other[name]))
        for line, other in zip(ours, theirs, strict=True)
        for name in line
        if not (name == "rewards/accuracies" and line["step"] == 1)
    )


CASES = {
    "LoRA, cached reference": dict(lora=True, precompute_ref_log_probs=True),
    "LoRA, reference by switching off": dict(lora=True, with_eval=True, eval_strategy="steps", eval_steps=5),
    "full fine-tuning, separate reference": dict(lora=False, learning_rate=3e-3),
    "chat template, accumulation, evaluation": dict(
        lora=True,
        chat=True,
        gradient_accumulation_steps=3,
        precompute_ref_log_probs=True,
        with_eval=True,
        eval_strategy="steps",
        eval_steps=5,
    ),
    "cut at the start": dict(lora=True, max_length=8, truncation_mode="keep_end"),
    "cut at the end": dict(lora=True, max_length=8),
    "gradient checkpointing": dict(lora=True, gradient_checkpointing=True, max_steps=6),
    "IPO, length desensitised": dict(lora=True, loss_type=["ipo"], ld_alpha=0.5, max_steps=6),
    "two losses": dict(lora=True, loss_type=["sigmoid", "sft"], loss_weights=[1.0, 0.5], max_steps=6),
    "padded to a multiple": dict(lora=True, pad_to_multiple_of=16, max_steps=6),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_a_run_equals_trls_number_for_number(case, tmp_path):
    fast, plain = (trained(kind, tmp_path, **case) for kind in (FastDPOTrainer, DPOTrainer))
    assert fast.fast_step_reason is None
    assert largest_difference(fast, plain) < 1e-3
    losses = [line["loss"] for line in plain.state.log_history if "loss" in line]
    assert abs(losses[-1] - losses[0]) > 0.01  # the runs went somewhere
    for (name, ours), theirs in zip(fast.model.named_parameters(), plain.model.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, atol=2e-3, rtol=1e-3, msg=lambda text, name=name: f"{name}: {text}")
