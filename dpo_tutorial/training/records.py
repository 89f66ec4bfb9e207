"""Records of long runs: one JSON file per run in data/records/, named by a hash of its configuration.

A record holds the configuration, seed, versions, processor, wall-clock (pauses included), processor time, peak
memory, the command that made it and the results. Notebooks recompute the hash before they show a record.
"""

import json
import os
import platform
import resource
import sys
import time
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path

from dpo_tutorial.data.construct import config_hash
from dpo_tutorial.data.scoring import DATA_DIR

RECORDS = DATA_DIR / "records"
# Notebook 09's run: the settings of the trainer, then those of data and evaluation.
DPO_SETTINGS = ("beta", "learning_rate", "epochs", "batch_size", "seed", "eval_steps")
SENTIMENT_RUN = {
    "model": "smollm2 + data/sft_adapter",
    "pairs": 192,
    "heldout_pairs": 64,
    "beta": 0.1,
    "learning_rate": 1e-3,
    "epochs": 2,
    "batch_size": 8,
    "rank": 8,
    "seed": 0,
    "max_new_tokens": 40,
    "samples_per_prompt": 2,
    "eval_steps": 12,
    "step": "fast",
}


def environment() -> dict:
    """What a record says about where it ran: versions, processor, threads."""
    import torch

    names = ("torch", "transformers", "trl", "peft")
    return {
        "versions": {"python": platform.python_version()} | {name: version(name) for name in names},
        "processor": f"{_processor()}, {torch.get_num_threads()} threads",
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
    }


def _processor() -> str:
    if Path("/proc/cpuinfo").exists():
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def path_of(name: str, config: dict) -> Path:
    """File of a run: ``NAME-HASH.json``."""
    return RECORDS / f"{name}-{config_hash(config)}.json"


def write_json(path: Path, content: dict) -> None:
    """Write atomically: a kill leaves the old file or the new one, never half of one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".tmp")
    partial.write_text(json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8")
    os.replace(partial, path)


def make(name: str, config: dict, run: Callable[[dict], dict], *, command: str) -> dict:
    """The record of ``config``: read if it is there, else made by ``run(config) -> results`` and written at once."""
    path = path_of(name, config)
    if path.exists():
        return load(name, config)
    start, cpu_start = time.time(), time.process_time()
    results = run(config)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    record = {"name": name, "config": config, "config_hash": config_hash(config), "command": command}
    spent = {"seconds": round(time.time() - start, 1), "cpu_seconds": round(time.process_time() - cpu_start, 1)}
    record |= environment() | spent | {"peak_gb": round(peak / 1e9, 2)}
    write_json(path, record | {"results": results})
    return load(name, config)


def band(values: Sequence[float], slack: float) -> tuple[float, float]:
    """Where a live number should lie: the range of the recorded ones, widened on both sides by half of itself and
    by ``slack``, what one measurement is uncertain by.

    >>> band([0.5, 0.75, 1.0], 0.25)
    (0.0, 1.5)
    """
    widen = (max(values) - min(values)) / 2 + slack
    return min(values) - widen, max(values) + widen


def load(name: str, config: dict) -> dict:
    """The record of exactly this configuration.

    Raises:
        FileNotFoundError: there is none; the message names the command that makes it.
        ValueError: its configuration does not have the hash it is filed under.
    """
    path = path_of(name, config)
    if not path.exists():
        raise FileNotFoundError(
            f"no record {path.name}; make it with `make records` (or tools/make_records.py {name})"
        )
    record = json.loads(path.read_text(encoding="utf-8"))
    if config_hash(record["config"]) != config_hash(config) or record["config_hash"] != config_hash(config):
        raise ValueError(
            f"{path.name} does not hold the configuration it is named after; delete it and make it again"
        )
    return record
