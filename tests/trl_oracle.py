"""TRL's trainers with a tiny random model: one batch through the trainer, and the same batch by hand.

``dpo_tutorial.training.trl_losses`` feeds log-probabilities to TRL's arithmetic; here TRL also computes them. Not a
test module: ``test_losses.py`` uses it.
"""

import copy
from dataclasses import dataclass

import torch
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from trl import DPOConfig, DPOTrainer

WORDS = ["<pad>", "<eos>", "<unk>", *"the film was good bad long short a bore joy and i liked it not".split()]
ROWS = {
    "prompt": ["the film was", "i liked", "it was a", "the film"],
    "chosen": [" good and short", " it", " joy and not a bore", " was good"],
    "rejected": [" bad", " it not a film", " bore", " was long and bad and a bore"],
}


@dataclass(frozen=True)
class Batch:
    """Summed log-probabilities (B,) and completion lengths (B,), computed without TRL."""

    policy_chosen_logps: torch.Tensor
    policy_rejected_logps: torch.Tensor
    ref_chosen_logps: torch.Tensor
    ref_rejected_logps: torch.Tensor
    chosen_lengths: torch.Tensor
    rejected_lengths: torch.Tensor

    @property
    def logps(self) -> tuple[torch.Tensor, ...]:
        return (
            self.policy_chosen_logps,
            self.policy_rejected_logps,
            self.ref_chosen_logps,
            self.ref_rejected_logps,
        )


def tokenizer() -> PreTrainedTokenizerFast:
    words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>")


def tiny_llama(seed: int) -> LlamaForCausalLM:
    """A random Llama with weights large enough that policy and reference differ by several nats."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(WORDS), hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2
    )
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.5 * torch.randn_like(parameter))
    return model


def by_hand(model: torch.nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """(2B,) summed completion log-probabilities from the logits: chosen rows first."""
    with torch.no_grad():
        logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    labels, mask = batch["input_ids"][:, 1:], batch["completion_mask"][:, 1:]
    token_logps = logits[:, :-1].log_softmax(-1).gather(-1, labels[..., None])[..., 0]
    return (token_logps * mask).sum(-1)


def run_dpo_trainer(folder: str, *, loss_type: str, beta: float, label_smoothing: float = 0.0) -> tuple[float, Batch]:
    """TRL's loss on one batch of four pairs (a mean), and the same batch's log-probabilities by hand."""
    policy, reference = tiny_llama(0), tiny_llama(1)
    args = DPOConfig(
        output_dir=folder,
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        disable_tqdm=True,
        report_to="none",
        per_device_train_batch_size=4,
        loss_type=[loss_type],
        beta=beta,
        label_smoothing=label_smoothing,
    )
    trainer = DPOTrainer(
        model=policy,
        ref_model=copy.deepcopy(reference),
        args=args,
        train_dataset=Dataset.from_dict(ROWS),
        processing_class=tokenizer(),
    )
    trainer.model.eval()
    batch = next(iter(trainer.get_train_dataloader()))
    with torch.no_grad():
        loss = float(trainer.compute_loss(trainer.model, dict(batch)))
    lengths = batch["completion_mask"].sum(1)
    tensors = [
        half for rows in (by_hand(policy, batch), by_hand(reference, batch), lengths) for half in rows.chunk(2)
    ]
    return loss, Batch(*tensors)
