"""Trainings that are killed: run as a script in a process of its own, with one thread, and forks a child per run.

Not a test module: ``test_crash_safety.py`` uses it. Prints one JSON line: what it saw.
"""

import hashlib
import json
import os
import random
import resource
import shutil
import signal
import sys
import time
import traceback
from pathlib import Path

import torch
from trl import DPOTrainer

sys.path.insert(0, str(Path(__file__).parent))
from test_trl_fast import pairs, settings, small_llama
from trl_oracle import tokenizer

from dpo_tutorial.training import checkpoints
from dpo_tutorial.training.models import lora_config
from dpo_tutorial.training.trl_fast import FastDPOTrainer

MOMENTS = ("_save_rng_state", "write_manifest", "replace", "rotate_checkpoints")


class SafeTRL(checkpoints.SafeCheckpoints, DPOTrainer):
    """TRL's own step with safe checkpoints."""


def trainer_in(folder: Path, *, kind=FastDPOTrainer, evaluated=False, **changes):
    """A trainer whose run lives in ``folder / "run"``: LoRA on 14 pairs, nine steps, a checkpoint at each."""
    parts = {"peft_config": lora_config(rank=4), "ref_model": None}
    parts |= {name: changes.pop(name) for name in ("peft_config", "ref_model") if name in changes}
    options = dict(
        max_steps=9, save_strategy="steps", save_steps=1, save_total_limit=2, precompute_ref_log_probs=True
    )
    torch.manual_seed(time.time_ns())  # what a fresh process happens to have must not matter
    return kind(
        model=small_llama(0),
        args=settings(folder / "run", seed=3, **(options | changes)),
        train_dataset=pairs(14),
        eval_dataset=pairs(5) if evaluated else None,
        processing_class=tokenizer(),
        **parts,
    )


def train(folder: Path, before=lambda trainer: None, **changes) -> None:
    """Resume or start the run in ``folder``, and leave the final weights there."""
    trainer = trainer_in(folder, **changes)
    before(trainer)
    trainer.train(resume_from_checkpoint=True)
    trainer.model.save_pretrained(folder / "final")
    (folder / "log.json").write_text(
        json.dumps([line["loss"] for line in trainer.state.log_history if "loss" in line])
    )


def in_child(work) -> int:
    """Run ``work`` in a forked process without output; its process id."""
    child = os.fork()
    if child == 0:
        with open(os.devnull, "w") as nothing:
            os.dup2(nothing.fileno(), 1)
            os.dup2(nothing.fileno(), 2)
        try:
            work()
        except BaseException as error:
            Path(os.environ["CRASH_ERROR"]).write_text("".join(traceback.format_exception(error)))
            os._exit(1)
        os._exit(0)
    return child


def finish(work) -> None:
    _, status = os.waitpid(in_child(work), 0)
    if status:
        raise RuntimeError(f"a run ended with {status}: {Path(os.environ['CRASH_ERROR']).read_text()}")


def outcome(folder: Path) -> list:
    weights = (folder / "final" / "adapter_model.safetensors").read_bytes()
    return [hashlib.sha256(weights).hexdigest(), json.loads((folder / "log.json").read_text())]


def killed_after(seconds: float, work) -> bool:
    """Kill ``work`` with SIGKILL after so many seconds; False if it had ended before."""
    child = in_child(work)
    time.sleep(seconds)
    os.kill(child, signal.SIGKILL)
    return os.WIFSIGNALED(os.waitpid(child, 0)[1])


def killed_at(moment: str, count: int, folder: Path) -> None:
    """Kill a run with SIGKILL inside its ``count``-th save, at the ``moment`` when a piece of it is called."""

    def arm(trainer):
        owner = next(o for o in (trainer, checkpoints, checkpoints.os) if hasattr(o, moment))
        original, calls = getattr(owner, moment), []

        def deadly(*args, **kwargs):
            calls.append(0)
            if len(calls) == count:
                os.kill(os.getpid(), signal.SIGKILL)
            return original(*args, **kwargs)

        setattr(owner, moment, deadly)

    child = in_child(lambda: train(folder, arm))
    assert os.WIFSIGNALED(os.waitpid(child, 0)[1]), f"{moment} was not reached {count} times"


def fill_the_disk(folder: Path, limit: int) -> str:
    """A run whose third save may write files of ``limit`` bytes only: its error message."""

    def arm(trainer):
        original, calls = trainer._save_checkpoint, []

        def save(*args, **kwargs):
            calls.append(0)
            if len(calls) == 3:
                resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
            return original(*args, **kwargs)

        trainer._save_checkpoint = save

    def work():
        try:
            train(folder, arm)
        except OSError as error:
            resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
            (folder / "message.txt").write_text(str(error))

    finish(work)
    return (folder / "message.txt").read_text()


def main(folder: Path, kills: int, seed: int) -> dict:
    torch.set_num_threads(1)
    os.environ["CRASH_ERROR"] = str(folder / "error.txt")
    finish(lambda: train(folder / "warm"))  # what is imported late is imported now
    started = time.time()
    finish(lambda: train(folder / "whole"))
    duration = time.time() - started
    seen = {"whole": outcome(folder / "whole"), "killed": [], "left": []}
    chance = random.Random(seed)
    for i in range(kills):
        place = folder / f"random-{i}"
        moments = [chance.uniform(0.0, duration) for _ in range(1 + i % 3)]  # some are killed again when resumed
        hits = [killed_after(moment, lambda place=place: train(place)) for moment in moments]
        seen["left"].append([sum(hits), *sorted(p.name for p in (place / "run").glob("*-*"))])
        finish(lambda place=place: train(place))
        seen["killed"].append(outcome(place))
        shutil.rmtree(place)
    for i, moment in enumerate(MOMENTS):
        place = folder / moment
        killed_at(moment, 2 + i, place)
        seen["left"].append([moment, *sorted(p.name for p in (place / "run").glob("*-*"))])
        finish(lambda place=place: train(place))
        seen["killed"].append(outcome(place))
    seen["full"] = []
    for limit in (10_000, 30_000):  # the adapter does not fit; the adapter fits, the optimizer's state does not
        place = folder / f"full-{limit}"
        message = fill_the_disk(place, limit)
        left = sorted(path.name for path in (place / "run").iterdir())
        finish(lambda place=place: train(place))
        seen["full"].append([limit, message, left, outcome(place)])
    return seen | {"seconds": time.time() - started}


if __name__ == "__main__":
    print("SEEN", json.dumps(main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))))
