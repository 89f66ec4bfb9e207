"""The fast step against TRL's own: pieces against autograd, whole runs against whole runs."""

import importlib.util
import json
import os
import subprocess
import sys
import types
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from torch.utils.flop_counter import FlopCounterMode
from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM
from trl import DPOConfig, DPOTrainer
from trl.trainer.dpo_trainer import DataCollatorForPreference
from trl_oracle import WORDS, tokenizer

from dpo_tutorial.training import checkpoints, fast_ops, fast_step, models
from dpo_tutorial.training.models import lora_config
from dpo_tutorial.training.trl_fast import DROPPED, FastDPOTrainer

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


def trained(
    kind,
    folder,
    *,
    lora: bool,
    chat: bool = False,
    count: int = 30,
    with_eval=False,
    model=None,
    data=None,
    **changes,
):
    """A finished run of 20 steps: the trainer. ``data`` stands in for the random pairs."""
    words = tokenizer()
    words.chat_template = TEMPLATE
    trainer = kind(
        model=model or small_llama(0),
        ref_model=None if lora else small_llama(1),
        args=settings(folder, **changes),
        train_dataset=data or pairs(count, chat=chat),
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


def test_smollm2_equals_trl(tmp_path):
    """Three steps of the course's model on ragged pairs, in float32."""
    runs = []
    for kind in (FastDPOTrainer, DPOTrainer):
        model, words = models.load("smollm2", device="cpu", dtype=torch.float32)
        trainer = kind(
            model=model,
            args=settings(tmp_path, max_steps=3, learning_rate=1e-3, per_device_train_batch_size=2),
            train_dataset=pairs(6, chat=True),
            processing_class=words,
            peft_config=lora_config(rank=4),
        )
        trainer.train()
        runs.append(trainer)
    assert runs[0].fast_step_reason is None
    assert largest_difference(*runs) < 1e-3


def test_packing_by_hand():
    ids = torch.tensor([[5, 6, 7, 8, 0], [3, 4, 9, 0, 0], [5, 6, 9, 10, 11], [3, 4, 9, 7, 0]])
    mask = (ids > 0).long()
    labels = ids.masked_fill(mask == 0, -100)
    labels[:, :2] = -100
    layout = fast_step.pack(ids, mask, labels)
    # the first pair shares 5 6, the second 3 4 (its chosen 9 predicts nothing in one row, 7 in the other)
    assert layout.pieces == [(2, 1, 2), (2, 0, 1)]
    assert layout.input_ids.tolist() == [5, 6, 7, 9, 10, 3, 4, 9]
    assert layout.position_ids.tolist() == [0, 1, 2, 2, 3, 0, 1, 2]
    assert layout.rows.tolist() == [1, 2, 6, 1, 3, 4, 6, 7]
    assert layout.targets.tolist() == [7, 8, 9, 9, 10, 11, 9, 7]


@pytest.mark.parametrize(
    ("ids", "mask", "words"),
    [([[1, 2]] * 3, [[1, 1]] * 3, "3 rows is not pairs"), ([[0, 2]] * 2, [[0, 1]] * 2, "not on the right")],
)
def test_packing_refuses(ids, mask, words):
    with pytest.raises(fast_step.Unsupported, match=words):
        fast_step.pack(torch.tensor(ids), torch.tensor(mask), torch.tensor(ids))


@pytest.mark.parametrize("frozen", [True, False])
def test_the_head_against_autograd(frozen, monkeypatch):
    monkeypatch.setattr(fast_ops, "HEAD_ROWS", 3)
    generator = torch.Generator().manual_seed(1)
    hidden = (5 * torch.randn(8, 16, generator=generator)).requires_grad_()
    weight = (5 * torch.randn(40, 16, generator=generator)).requires_grad_(not frozen)  # log-probabilities below -200
    targets = torch.randint(40, (8,), generator=generator)
    slope = torch.randn(8, generator=generator)
    logits = hidden @ weight.T
    log_probs = logits.log_softmax(-1)
    expected = {
        "log_probs": log_probs.gather(1, targets[:, None])[:, 0],
        "entropy": -(log_probs.exp() * log_probs).sum(-1),
        "mean_logits": logits.mean(-1),
        "is_top1": logits.argmax(-1) == targets,
    }
    assert expected["log_probs"].min() < -110  # smaller than any float32
    leaves = [hidden] if frozen else [hidden, weight]
    wanted = torch.autograd.grad((expected["log_probs"] * slope).sum(), leaves)
    scores = fast_ops.head(hidden, weight, targets, metrics=True)
    for name, value in expected.items():
        torch.testing.assert_close(scores[name], value, atol=2e-3, rtol=1e-4)
    for ours, theirs in zip(torch.autograd.grad((scores["log_probs"] * slope).sum(), leaves), wanted, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-3, rtol=1e-4)


def test_both_ways_of_attending_agree():
    generator = torch.Generator().manual_seed(2)
    sizes = [(4, 3, 5), (0, 2, 1), (6, 0, 3), (3, 0, 0)]
    tokens = sum(map(sum, sizes))
    nothing = torch.zeros(0)
    layout = fast_step.Layout(nothing, nothing, sizes, nothing, nothing, nothing)
    query, key, value = (torch.randn(tokens, heads, 8, generator=generator) for heads in (4, 2, 2))
    pieces = fast_step.attend_pieces(query, key, value, layout, 0.3)
    torch.testing.assert_close(pieces, fast_step.attend_rows(query, key, value, layout, 0.3))
    last = slice(12 - 5, 12)  # the first pair's rejected tokens, each row by hand
    for i in range(last.start, last.stop):
        seen = [*range(4), *range(last.start, i + 1)]
        for head in range(4):
            weights = (0.3 * query[i, head] @ key[seen, head // 2].T).softmax(0)
            by_hand = weights @ value[seen, head // 2]
            torch.testing.assert_close(pieces[i].view(4, 8)[head], by_hand)


def scored(trainer, batch):
    """The loss of a batch with its gradient, and the floating-point operations that took."""
    trainer.model.train()
    with FlopCounterMode(display=False) as counter:
        trainer.compute_loss(trainer.model, dict(batch)).backward()
    return counter.get_total_flops()


def test_it_computes_what_is_needed_and_little_else(tmp_path):
    """Counted operations: 2 N forward and 2 N backward per distinct token, with LoRA and attention some more."""
    model = small_llama(0, hidden_size=128, intermediate_size=256)
    options = dict(lora=True, precompute_ref_log_probs=True, max_steps=1, model=model)
    trainer = trained(FastDPOTrainer, tmp_path, **options)
    batch = next(iter(trainer.get_train_dataloader()))
    labels = batch["input_ids"].masked_fill(batch["completion_mask"] == 0, -100)
    layout = fast_step.pack(batch["input_ids"], batch["attention_mask"], labels)
    body = sum(p.numel() for name, p in model.named_parameters() if "base_layer" in name)
    needed = 4 * (body * len(layout.input_ids) + len(WORDS) * 128 * len(layout.rows))
    ours = scored(trainer, batch)
    theirs = scored(trained(DPOTrainer, tmp_path, **options), batch)
    assert needed * 0.7 < ours < needed * 1.3 and theirs > 1.8 * ours
    untouched = [p for name, p in trainer.model.named_parameters() if "lora" not in name]
    assert all(p.grad is None for p in untouched)


def test_fewer_metrics_on_request(tmp_path):
    options = dict(lora=True, max_steps=3)
    fast = trained(lambda **given: FastDPOTrainer(full_metrics=False, **given), tmp_path, **options)
    plain = trained(DPOTrainer, tmp_path, **options)
    for ours, theirs in zip(numbers(fast), numbers(plain), strict=True):
        assert set(theirs) - set(ours) == (set(DROPPED) if "loss" in theirs else set())
        assert all(abs(ours[name] - theirs[name]) < 1e-3 for name in ours if name != "rewards/accuracies")


@pytest.mark.parametrize("changes", [{"bf16": True}, {"base": torch.bfloat16}], ids=["autocast", "bfloat16 base"])
@pytest.mark.parametrize("compute_dtype", [None, torch.float32, torch.bfloat16])
def test_bfloat16_is_as_near_to_float32_as_trls(changes, compute_dtype, tmp_path):
    changes = dict(changes)
    base = changes.pop("base", torch.float32)
    options = dict(lora=True, max_steps=5, learning_rate=1e-2)

    def losses(kind, base, **changes):
        trainer = trained(kind, tmp_path, model=small_llama(0).to(base), **options, **changes)
        assert all(p.dtype == torch.float32 for p in trainer.model.parameters() if p.requires_grad)
        return torch.tensor([line["loss"] for line in numbers(trainer) if "loss" in line]), trainer

    exact, _ = losses(DPOTrainer, torch.float32)
    theirs, _ = losses(DPOTrainer, base, **changes)
    ours, trainer = losses(lambda **given: FastDPOTrainer(compute_dtype=compute_dtype, **given), base, **changes)
    assert trainer.fast_step_reason is None
    assert (ours - exact).abs().max() < 2 * (theirs - exact).abs().max() + 5e-3


def qwen(seed):
    torch.manual_seed(seed)
    shape = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 4}
    return Qwen2ForCausalLM(Qwen2Config(vocab_size=len(WORDS), num_key_value_heads=2, **shape))


FALLBACKS = {
    "another architecture": (dict(model=qwen), "Qwen2ForCausalLM"),
    "WPO's weights": (dict(use_weighting=True), "WPO"),
    "rotary angles by length": (
        dict(model=lambda seed: small_llama(seed, rope_scaling={"rope_type": "dynamic", "factor": 2.0})),
        "depends on the length",
    ),
    "DoRA": (dict(peft=LoraConfig(r=4, use_dora=True, target_modules=["q_proj"])), "not the plain one"),
    "LoRA dropout": (
        dict(peft=LoraConfig(r=4, lora_dropout=0.1, target_modules=["q_proj"]), disable_dropout=False),
        "LoRA dropout",
    ),
    "an adapter on the embedding": (dict(peft=LoraConfig(r=4, target_modules=["embed_tokens"])), "Embedding"),
}


@pytest.mark.parametrize(("changes", "words"), FALLBACKS.values(), ids=FALLBACKS)
def test_what_it_cannot_do_is_left_to_trl_with_a_reason(changes, words, tmp_path, caplog):
    changes = dict(changes)
    make, peft = changes.pop("model", small_llama), changes.pop("peft", lora_config(rank=4))
    runs = []
    for kind in (FastDPOTrainer, DPOTrainer):
        args = settings(tmp_path, max_steps=3, **changes)
        trainer = kind(
            model=make(0), args=args, train_dataset=pairs(12), processing_class=tokenizer(), peft_config=peft
        )
        trainer.train()
        runs.append(trainer)
    assert words in runs[0].fast_step_reason and words in caplog.text
    assert largest_difference(*runs) < 1e-6


def test_a_batch_padded_on_the_left_is_left_to_trl(tmp_path):
    trainer = trained(FastDPOTrainer, tmp_path, lora=True, max_steps=1)
    batch = next(iter(trainer.get_train_dataloader()))
    assert trainer.fast_step_reason is None
    trainer.compute_loss(trainer.model, {name: value.flip(1) for name, value in batch.items()})
    assert trainer.fast_step_reason == "the padding is not on the right"


def test_generation_and_plain_calls_are_unchanged(tmp_path):
    trainer = trained(FastDPOTrainer, tmp_path, lora=True, max_steps=1)
    plain = trained(DPOTrainer, tmp_path, lora=True, max_steps=1)
    prompt = torch.tensor([[3, 4, 5]])
    samples = [t.model.eval().generate(input_ids=prompt, max_new_tokens=5, do_sample=False) for t in (trainer, plain)]
    assert samples[0].tolist() == samples[1].tolist() and samples[0].shape[1] > 3
    torch.testing.assert_close(trainer.model(prompt).logits, plain.model(prompt).logits, atol=1e-4, rtol=1e-4)


def test_two_processes_equal_one(tmp_path):
    import two_processes  # which imports this module

    pairs(24).save_to_disk(tmp_path / "pairs")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command += [str(Path(__file__).with_name("two_processes.py")), str(tmp_path)]
    environment = os.environ | {
        "ACCELERATE_USE_CPU": "true",
        "OMP_NUM_THREADS": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)
    assert done.returncode == 0, done.stderr
    seen = json.loads((tmp_path / "seen.json").read_text())
    assert seen["world"] == 2 and seen["reason"] is None
    alone = numbers(two_processes.run(tmp_path / "alone", tmp_path / "pairs", 1))
    for ours, theirs in zip(seen["lines"], alone, strict=True):
        for name in theirs:
            if name != "rewards/accuracies" or theirs["step"] > 1:
                assert abs(ours[name] - theirs[name]) < 1e-3, f"{name} in step {theirs['step']}"
    for name in ("checkpoint-2", "checkpoint-4", "checkpoint-6"):
        assert checkpoints.damage(tmp_path / name) is None
    rng = {path.name for path in (tmp_path / "checkpoint-6").glob("rng_state*")}
    assert rng == {"rng_state_0.pth", "rng_state_1.pth"}


def test_going_on_from_a_trained_adapter(tmp_path):
    """The reference is then a copy of that adapter, which TRL switches to."""
    runs = []
    for kind in (FastDPOTrainer, DPOTrainer):
        torch.manual_seed(4)
        model = get_peft_model(small_llama(0), lora_config(rank=4))
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.data.normal_(0, 0.1)
        args = settings(tmp_path, max_steps=6)
        runs.append(kind(model=model, args=args, train_dataset=pairs(12), processing_class=tokenizer()))
        runs[-1].train()
    assert runs[0].fast_step_reason is None
    assert largest_difference(*runs) < 1e-3


def test_several_processes_without_a_file_for_the_reference_are_told(tmp_path):
    trainer = trained(FastDPOTrainer, tmp_path, lora=True, max_steps=1)
    trainer.args = types.SimpleNamespace(world_size=2)
    with pytest.raises(ValueError, match="in memory only"):
        trainer._precompute_ref_logps(pairs(4), "train", 4)


def test_the_benchmark_counts_what_is_computed():
    path = Path(__file__).resolve().parents[1] / "benchmarks" / "dpo_step.py"
    spec = importlib.util.spec_from_file_location("dpo_step", path)
    bench = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(bench)
    rows = bench.ragged((12, 8, 8), 6)
    assert len({len(row["prompt_ids"]) for row in rows}) > 1
    batch = DataCollatorForPreference(pad_token_id=0)(rows)
    labels = batch["input_ids"].masked_fill(batch["completion_mask"] == 0, -100)
    layout = fast_step.pack(batch["input_ids"], batch["attention_mask"], labels)
    assert bench.work(rows) == (len(layout.input_ids), len(layout.rows))
