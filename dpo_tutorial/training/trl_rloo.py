"""REINFORCE leave-one-out through TRL's trainer (Ahmadian et al. 2024, https://arxiv.org/abs/2402.14740)."""

from collections.abc import Callable
from pathlib import Path

import datasets
from transformers import PrinterCallback, TrainerCallback
from trl import RLOOConfig, RLOOTrainer

from dpo_tutorial.training.trl_bridge import offline_arguments, quiet_libraries


class _Watch(TrainerCallback):
    """Calls ``on_iteration`` after the last step on each batch of samples."""

    def __init__(self, on_iteration: Callable[[int], None], steps: int):
        self.on_iteration, self.steps = on_iteration, steps

    def on_step_end(self, args, state, control, **_):
        if state.global_step % self.steps == 0:
            self.on_iteration(state.global_step // self.steps - 1)


def train_rloo(
    model, tokenizer, prompts: list[str], score: Callable, output_dir: str | Path, *, beta: float,
    learning_rate: float, iterations: int, samples: int, group: int, passes: int, minibatch: int,
    max_new_tokens: int, seed: int, on_iteration: Callable[[int], None] = lambda iteration: None,
) -> list[dict]:  # fmt: skip
    """Train ``model`` in place with ``trl.RLOOTrainer``: no value head; a sample's baseline is its siblings' mean.

    The reward of a sample is its score minus ``beta`` times its log-ratio; its advantage is that minus the mean of
    the other ``group - 1`` samples of the same prompt. TRL reloads the reference from the model's own folder.

    Args:
        score: ``(prompts, texts, completion_ids) -> (B,)`` rewards of the responses.
        samples: responses per iteration, ``samples / group`` prompts; each is used ``passes`` times in minibatches.
        on_iteration: called with the iteration's number after its last step.

    Returns:
        the trainer's log, a dictionary per logged step.
    """
    quiet_libraries()
    if samples % minibatch or minibatch % group:
        raise ValueError(f"samples {samples}, minibatch {minibatch}, group {group}: each must divide the one before")
    per_generation = samples // minibatch
    settings = offline_arguments(output_dir) | {
        "beta": beta, "learning_rate": learning_rate, "lr_scheduler_type": "linear", "seed": seed,
        "max_steps": iterations * per_generation * passes, "per_device_train_batch_size": minibatch,
        "steps_per_generation": per_generation, "num_iterations": passes, "num_generations": group,
        "max_completion_length": max_new_tokens, "max_grad_norm": 1.0, "logging_steps": per_generation * passes,
        "adam_epsilon": 1e-5,
    }  # fmt: skip

    def reward(prompts, completions, completion_ids, **_):
        return [float(value) for value in score(prompts, completions, completion_ids)]

    trainer = RLOOTrainer(
        model=model,
        reward_funcs=reward,
        args=RLOOConfig(**settings),
        train_dataset=datasets.Dataset.from_dict({"prompt": prompts}),
        processing_class=tokenizer,
        callbacks=[_Watch(on_iteration, per_generation * passes)],
    )
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    model.eval()
    return trainer.state.log_history
