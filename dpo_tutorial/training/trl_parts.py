"""Where one DPO step's time and memory go, part by part: TRL's step with its savings switched on one by one.

Times are processor time, so that other work on the machine does not count. On a CPU only.
"""

import contextlib
import copy
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from unittest import mock

import datasets
import numpy as np
import psutil
import torch
from trl import DPOTrainer
from trl.kernels import ChunkedLogProbFunction
from trl.trainer import utils as trl_utils

from dpo_tutorial.training import fast_ops, models, planner, trl_bridge
from dpo_tutorial.training.trl_fast import FastDPOTrainer

STEP = {
    "model": "smollm2",
    "kind": "trl",  # or "fast"
    "shape": (96, 64, 64),  # mean tokens of prompt, chosen and rejected
    "batch": 4,
    "accumulate": 1,
    "rank": 16,  # of LoRA; None trains every weight
    "cached_reference": False,
    "keep_memory": False,
    "completion_head": False,  # TRL only: its head on the positions that are scored, as it does on CUDA
    "checkpointing": False,
    "steps": 2,  # counted, after one that is not
    "seed": 0,
}
PARTS = ("reference", "forward", "head forward", "backward", "head backward", "rest")


def ragged(shape: tuple[int, int, int], count: int, *, seed: int, vocabulary: int) -> list[dict[str, list[int]]]:
    """Pairs of random tokens; prompt, chosen and rejected have 3/4 to 5/4 of the shape's lengths."""
    generator = np.random.default_rng(seed)

    def tokens(length):
        size = int(generator.integers(round(0.75 * length), round(1.25 * length) + 1))
        return generator.integers(10, vocabulary, size).tolist()

    names = ("prompt_ids", "chosen_ids", "rejected_ids")
    return [dict(zip(names, map(tokens, shape), strict=True)) for _ in range(count)]


class Clock:
    """Processor seconds by part; what runs inside another part is taken off that one (the reference's is its own)."""

    def __init__(self):
        self.seconds, self.stack = dict.fromkeys(PARTS, 0.0), []

    @contextlib.contextmanager
    def part(self, name: str):
        if self.stack and self.stack[-1][0] == "reference":
            yield
            return
        start = time.process_time()
        self.stack.append([name, 0.0])
        try:
            yield
        finally:
            spent = time.process_time() - start
            self.seconds[name] += spent - self.stack.pop()[1]
            if self.stack:
                self.stack[-1][1] += spent

    def timed(self, name: str, function: Callable) -> Callable:
        def wrapped(*args, **kwargs):
            with self.part(name):
                return function(*args, **kwargs)

        return wrapped

    def reference(self, forward: Callable) -> Callable:
        """A forward pass that counts as the reference's when no gradient is wanted."""

        def wrapped(*args, **kwargs):
            with contextlib.nullcontext() if torch.is_grad_enabled() else self.part("reference"):
                return forward(*args, **kwargs)

        return wrapped


def _timed(kind: type, clock: Clock) -> type:
    """A trainer class that takes tokens as they are, in their order, and reports its parts to ``clock``."""

    class Timed(kind):
        def _prepare_dataset(self, dataset, *args):
            return dataset

        def _get_train_sampler(self, *args):
            return torch.utils.data.SequentialSampler(self.train_dataset)

        def _precompute_ref_logps(self, *args):
            with clock.part("reference"):
                return super()._precompute_ref_logps(*args)

        def compute_loss(self, *args, **kwargs):
            with clock.part("forward"):
                return super().compute_loss(*args, **kwargs)

    return Timed


def trainer_of(config: dict, clock: Clock, folder: str):
    """The trainer of a configuration, whose forward passes and backward passes ``clock`` times, and its pairs."""
    if config["keep_memory"]:
        models.keep_memory()
    with mock.patch.object(models, "keep_memory"):  # else loading switches it on
        model, tokenizer = models.load(config["model"], device="cpu", dtype=torch.float32)
    rows = ragged(
        config["shape"],
        config["batch"] * config["accumulate"] * (config["steps"] + 1),
        seed=config["seed"],
        vocabulary=model.config.vocab_size,
    )
    options = {"gradient_checkpointing": config["checkpointing"], "max_length": None, "lr_scheduler_type": "constant"}
    separate = config["rank"] is None and not config["cached_reference"]
    kind = FastDPOTrainer if config["kind"] == "fast" else DPOTrainer
    trainer = _timed(kind, clock)(
        model=model.train(),
        ref_model=copy.deepcopy(model).eval() if separate else None,
        args=trl_bridge.dpo_config(
            folder, beta=0.1, learning_rate=3e-4, epochs=1, batch_size=config["batch"], seed=config["seed"],
            gradient_accumulation_steps=config["accumulate"], precompute_ref_log_probs=config["cached_reference"],
            **options,
        ),
        train_dataset=datasets.Dataset.from_list(rows),
        processing_class=tokenizer,
        peft_config=models.lora_config(rank=config["rank"]) if config["rank"] else None,
    )  # fmt: skip
    trainer.accelerator.backward = clock.timed("backward", trainer.accelerator.backward)
    for each in filter(None, (trainer.model, trainer.ref_model)):
        each.forward = clock.reference(each.forward)
    return trainer, rows


@contextlib.contextmanager
def timed_head(clock: Clock, completion_head: bool):
    """The heads of both steps report to the clock; TRL's scores the completion's positions only, if asked."""
    theirs = {
        name: staticmethod(clock.timed(f"head {name}", getattr(ChunkedLogProbFunction, name)))
        for name in ("forward", "backward")
    }
    ours = [
        mock.patch.object(owner, name, staticmethod(clock.timed(f"head {name}", getattr(owner, name))))
        for owner in (fast_ops.FrozenHead, fast_ops.TrainedHead)
        for name in ("forward", "backward")
    ]
    with contextlib.ExitStack() as stack:
        for patch in ours:
            stack.enter_context(patch)
        timed = type("TimedHead", (ChunkedLogProbFunction,), theirs)
        stack.enter_context(mock.patch.object(trl_utils, "_ChunkedLogProbFunction", timed))
        if completion_head:
            stack.enter_context(mock.patch.object(trl_utils, "_use_triton", lambda device: True))
        yield


def measure(config: dict) -> dict:
    """Processor seconds per step and part, losses, and the memory of this process (start it fresh for that).

    Returns:
        ``parts``: the mean seconds of a step by part; ``steps``: each step's seconds; ``caching``: those of the
        cached reference, for one step's pairs; ``losses``; ``positions``: see :func:`positions`;
        ``runtime_bytes``: resident before the model is loaded; ``peak_bytes``.
    """
    trl_bridge.quiet_libraries()
    clock, ends, runtime = Clock(), [], resident_bytes()

    class Ends(trl_bridge.TrainerCallback):
        def on_step_begin(self, *args, **kwargs):
            ends.append((time.process_time(), dict(clock.seconds)))

        on_train_end = on_step_begin

    with tempfile.TemporaryDirectory() as folder, timed_head(clock, config["completion_head"]):
        trainer, rows = trainer_of(config, clock, folder)
        trainer.add_callback(Ends())
        caching = clock.seconds["reference"]
        trl_bridge.train(trainer)
    counted = ends[1:]
    per_step = {name: np.diff([seen[name] for _, seen in counted]).mean() for name in PARTS[:-1]}
    steps = np.diff([moment for moment, _ in counted])
    per_step["rest"] = steps.mean() - sum(per_step.values())
    return {
        "parts": {name: round(float(seconds), 4) for name, seconds in per_step.items()},
        "steps": steps.round(3).tolist(),
        "caching": round(caching / (config["steps"] + 1), 4),
        "losses": [line["loss"] for line in trainer.state.log_history if "loss" in line],
        "positions": positions(rows, config),
        "runtime_bytes": runtime,
        "peak_bytes": peak_bytes(),
        "fallback": getattr(trainer, "fast_step_reason", None),
    }


def positions(rows: list, config: dict) -> dict[str, dict[str, float]]:
    """What ``planner.count`` counts: the mean ``per step``, and the largest of any micro-batch, ``at most``."""
    size = config["batch"]
    lengths = [tuple(len(ids) for ids in row.values()) for row in rows]
    counts = [planner.count(lengths[i : i + size]) for i in range(0, len(rows), size)]
    steps = len(counts) / config["accumulate"]
    return {
        "per step": {name: sum(count[name] for count in counts) / steps for name in counts[0]},
        "at most": {name: max(count[name] for count in counts) for name in counts[0]},
    }


def resident_bytes() -> int:
    """Memory of this process that is in use now."""
    return psutil.Process().memory_info().rss


def peak_bytes() -> int:
    """The most memory this process ever had."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
