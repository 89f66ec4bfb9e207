"""Notebook 16's records: a step of SmolLM2 with the savings switched on one by one, each in a process of its own.

One warm-up step, then two that count (one for the second table), of four pairs of 48+32+32 tokens; times are
processor time. The C library keeps freed memory (``models.keep_memory``) but where the name says otherwise; what that
setting is worth is in ``benchmarks/dpo_step.json``.
"""

import json
import os
import subprocess
import sys

from dpo_tutorial.training import trl_parts

STEP = dict(trl_parts.STEP, shape=[48, 32, 32])
KEPT = {"keep_memory": True}
CACHED = KEPT | {"cached_reference": True}
LADDER = {
    "TRL as it comes": KEPT,
    "cached reference": CACHED,
    "head on completions only": CACHED | {"completion_head": True},
    "fast step": CACHED | {"kind": "fast"},
}
# mapped_from: the allocator maps blocks this large one by one and gives each back when it is freed.
ALONE = {"cached_reference": True, "mapped_from": 65536}
# One counted step each.
OTHERS = {
    "TRL, each block by itself": ALONE,
    "TRL, checkpointing, each block by itself": ALONE | {"checkpointing": True},
    "TRL, all weights, each block by itself": ALONE | {"rank": None},
    "fast step, checkpointing": CACHED | {"kind": "fast", "checkpointing": True},
    "fast step, accumulated": CACHED | {"kind": "fast", "batch": 1, "accumulate": 4},
    "TRL, checkpointing": CACHED | {"checkpointing": True},
    "TRL, accumulated": CACHED | {"batch": 1, "accumulate": 4},
    "TRL, all weights": CACHED | {"rank": None},
    "fast step, all weights": CACHED | {"kind": "fast", "rank": None},
}


def runs() -> list[dict]:
    return [of(name) for name in LADDER | OTHERS]


def of(name: str) -> dict:
    """The configuration of one name."""
    return STEP | (LADDER[name] if name in LADDER else OTHERS[name] | {"steps": 1})


def run(config: dict) -> dict:
    """One configuration, in a fresh process."""
    code = "import json, sys; from dpo_tutorial.training import trl_parts; "
    code += "print(json.dumps(trl_parts.measure(json.loads(sys.argv[1]))))"
    threshold = {"MALLOC_MMAP_THRESHOLD_": str(config["mapped_from"])} if "mapped_from" in config else {}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code, json.dumps(config)],
        env=os.environ | threshold,
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise RuntimeError(done.stderr[-3000:])
    return json.loads(done.stdout.splitlines()[-1])
