"""One run of the fast trainer as one of several processes (torchrun): ``two_processes.py OUT``. Not a test module."""

import json
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from datasets import load_from_disk
from test_trl_fast import numbers, trained

from dpo_tutorial.training.trl_fast import FastDPOTrainer


def run(folder: Path, data: Path, processes: int):
    """Six steps on batches of four pairs over all processes together, checkpoints at every second."""
    options = dict(lora=True, precompute_ref_log_probs=True, data=load_from_disk(data))
    saving = dict(save_strategy="steps", save_steps=2, max_steps=6)
    return trained(FastDPOTrainer, folder, **options, **saving, per_device_train_batch_size=4 // processes)


if __name__ == "__main__":
    trainer = run(Path(sys.argv[1]), Path(sys.argv[1]) / "pairs", int(os.environ["WORLD_SIZE"]))
    if trainer.is_world_process_zero():
        seen = {"lines": numbers(trainer), "reason": trainer.fast_step_reason, "world": trainer.args.world_size}
        (Path(sys.argv[1]) / "seen.json").write_text(json.dumps(seen))
