"""A reward model by TRL's trainer, for models that are trained by LoRA; notebook 12 writes its own for the lab LM."""

import copy
from pathlib import Path

import pandas as pd
import torch
from transformers import AutoModelForSequenceClassification
from trl import RewardConfig, RewardTrainer

from dpo_tutorial.training import encode, reward_model, trl_bridge
from dpo_tutorial.training.models import lora_config


class Judge(torch.nn.Module):
    """(rows,) rewards of encoded responses by a sequence classifier; takes the place of ``RewardModel``."""

    def __init__(self, classifier):
        super().__init__()
        self.classifier = classifier

    def forward(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        """``input_ids`` and ``attention_mask`` (rows, T), padded on the right."""
        inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
        return self.classifier(**inputs, use_cache=False).logits.squeeze(-1).float()


def train_reward_model(
    model, tokenizer, frame: pd.DataFrame, *, learning_rate: float, epochs: float, batch_size: int, rank: int,
    seed: int, output_dir: str | Path,
) -> Judge:  # fmt: skip
    """Fit LoRA and a linear head on a copy of ``model``'s transformer with ``trl.RewardTrainer``.

    The head starts at zero and is read at the last token that is not padding; where padding and end of sequence are
    one token, as in SmolLM2, that is the token before the end.

    Args:
        frame: pairs, plain text in ``prompt``, ``chosen``, ``rejected``; TRL appends the end of sequence to both.
    """
    config = copy.deepcopy(model.config)
    config.num_labels, config.pad_token_id = 1, tokenizer.pad_token_id
    classifier = AutoModelForSequenceClassification.from_config(config, dtype=model.dtype)
    classifier.model = copy.deepcopy(model.model)
    torch.nn.init.zeros_(classifier.score.weight)
    lora = lora_config(rank=rank)
    lora.task_type, lora.modules_to_save = "SEQ_CLS", ["score"]
    settings = trl_bridge.offline_arguments(output_dir) | {
        "learning_rate": learning_rate, "num_train_epochs": epochs, "per_device_train_batch_size": batch_size,
        "seed": seed, "logging_steps": 10, "warmup_steps": 0.1, "lr_scheduler_type": "linear",
    }  # fmt: skip
    trainer = RewardTrainer(
        model=classifier,
        args=RewardConfig(**settings),
        train_dataset=trl_bridge.to_dataset(frame),
        processing_class=tokenizer,
        peft_config=lora,
    )
    trl_bridge.train(trainer)
    return Judge(trainer.model).requires_grad_(False).eval()


def accuracy(judge: Judge, tokenizer, frame: pd.DataFrame) -> float:
    """Share of pairs in which the chosen response gets the higher reward (ties count as wrong)."""
    examples = encode.encode_pairs(tokenizer, frame)
    return reward_model.accuracy(judge, examples, pad_token_id=tokenizer.pad_token_id)
