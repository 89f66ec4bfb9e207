"""The door to TRL 1.16: configurations that work offline on any machine, datasets, the monitor's callback."""

import logging
import os
import warnings
from collections.abc import Callable
from pathlib import Path

import datasets
import pandas as pd
import torch
import transformers
from transformers import TrainerCallback
from trl import DPOConfig, SFTConfig, SFTTrainer

from dpo_tutorial.display.monitor import Monitor, plain
from dpo_tutorial.training.models import lora_config


def quiet_libraries() -> None:
    """No progress bars, advice or deprecation notes from datasets, transformers and TRL in a notebook's output.

    Errors stay. Call it once, before training.
    """
    if plain():
        os.environ["TQDM_DISABLE"] = "1"  # TRL's own bars, which are left on otherwise
    datasets.disable_progress_bars()
    datasets.logging.set_verbosity_error()
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    for name in ("trl", "accelerate", "peft"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", category=FutureWarning)
    warnings.filterwarnings("ignore", message=".*pin_memory.*")


def offline_arguments(output_dir: str | Path) -> dict:
    """What every trainer here shares: CPU when there is no accelerator, no reports, no progress bars, no hub."""
    accelerated = torch.cuda.is_available() or torch.backends.mps.is_available()
    return {
        "output_dir": str(output_dir),
        "use_cpu": not accelerated,
        "bf16": False,
        "report_to": "none",
        "disable_tqdm": True,
        "save_strategy": "no",
        "gradient_checkpointing": False,
        "dataloader_pin_memory": False,
    }


def dpo_config(
    output_dir: str | Path,
    *,
    beta: float,
    learning_rate: float,
    epochs: float,
    batch_size: int,
    seed: int,
    **overrides,
) -> DPOConfig:
    """A ``DPOConfig`` that runs here: cached reference, a metric line every step, warm-up over a tenth.

    Anything of ``DPOConfig`` can be given on top. The step count is the Trainer's; the rate falls linearly.
    """
    settings = offline_arguments(output_dir) | {
        "beta": beta,
        "learning_rate": learning_rate,
        "num_train_epochs": epochs,
        "per_device_train_batch_size": batch_size,
        "per_device_eval_batch_size": batch_size,
        "seed": seed,
        "precompute_ref_log_probs": True,
        "logging_steps": 1,
        "warmup_steps": 0.1,
        "lr_scheduler_type": "linear",
        "max_length": 512,
    }
    return DPOConfig(**(settings | overrides))


def to_dataset(frame: pd.DataFrame) -> datasets.Dataset:
    """The trainer's columns of a frame of pairs: ``prompt``, ``chosen``, ``rejected``."""
    missing = [name for name in ("prompt", "chosen", "rejected") if name not in frame]
    if missing:
        raise ValueError(f"the pairs lack {', '.join(missing)}; columns are {', '.join(frame.columns)}")
    return datasets.Dataset.from_dict({name: list(frame[name]) for name in ("prompt", "chosen", "rejected")})


TRL_NAMES = {
    "loss": "loss",
    "grad_norm": "grad_norm",
    "rewards/margins": "margins",
    "rewards/accuracies": "accuracies",
}


class MonitorCallback(TrainerCallback):
    """Feeds TRL's log lines to a :class:`Monitor` under the course's names.

    TRL logs rewards (beta times the log-ratio); the monitor shows the log-ratios themselves, so ``beta``
    is needed. ``kl`` is called with the model at every evaluation and its number shown as the KL estimate.
    """

    def __init__(self, monitor: Monitor, *, beta: float, kl: Callable | None = None):
        self.monitor, self.beta, self.kl = monitor, beta, kl

    def on_log(self, args, state, control, logs=None, **kwargs):
        metrics = {}
        for name, ours in TRL_NAMES.items():
            metrics |= {ours: logs[name]} if name in logs else {}
            metrics |= {f"eval_{ours}": logs[f"eval_{name}"]} if f"eval_{name}" in logs else {}
        if "rewards/chosen" in logs:
            metrics["chosen_logratios"] = logs["rewards/chosen"] / self.beta
            metrics["rejected_logratios"] = logs["rewards/rejected"] / self.beta
        self.monitor.update(state.global_step, {name: float(value) for name, value in metrics.items()})

    def on_evaluate(self, args, state, control, model=None, **kwargs):
        if self.kl is not None:
            self.monitor.update(state.global_step, {"kl": float(self.kl(model))})

    def on_train_end(self, args, state, control, **kwargs):
        self.monitor.close()


def history(trainer, name: str) -> list[tuple[int, float]]:
    """(step, value) of one of TRL's logged metrics, for example ``"rewards/margins"`` or ``"eval_loss"``."""
    return [(line["step"], line[name]) for line in trainer.state.log_history if name in line]


def train(trainer) -> None:
    """Run a trainer to its end without its printed log lines; the model is left in evaluation mode."""
    trainer.remove_callback(transformers.PrinterCallback)
    trainer.train()
    trainer.model.eval()


def train_sft(
    model, tokenizer, prompts_and_texts: pd.DataFrame, *, learning_rate, epochs, batch_size, rank, seed, output_dir
):
    """TRL's ``SFTTrainer`` with LoRA on ``prompt`` + ``completion`` (loss on the completion); returns the trainer."""
    settings = offline_arguments(output_dir) | {
        "learning_rate": learning_rate,
        "num_train_epochs": epochs,
        "per_device_train_batch_size": batch_size,
        "seed": seed,
        "logging_steps": 10,
        "warmup_steps": 0.1,
    }
    columns = {name: list(prompts_and_texts[name]) for name in ("prompt", "completion")}
    trainer = SFTTrainer(
        model=model,
        args=SFTConfig(**settings),
        train_dataset=datasets.Dataset.from_dict(columns),
        processing_class=tokenizer,
        peft_config=lora_config(rank=rank),
    )
    train(trainer)
    return trainer
