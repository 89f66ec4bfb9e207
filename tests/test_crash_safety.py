"""A run killed at any moment, a checkpoint cut short, a full disk."""

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from crash_run import MOMENTS, SafeTRL, trainer_in
from test_trl_fast import small_llama

from dpo_tutorial.training import checkpoints

KILLS = int(os.environ.get("DPO_TUTORIAL_KILLS", "2"))  # random ones, besides one at each named moment of a save


@pytest.fixture(scope="module")
def seen(tmp_path_factory):
    """What a process saw that ran, killed, resumed and compared many trainings."""
    command = [sys.executable, str(Path(__file__).with_name("crash_run.py"))]
    command += [str(tmp_path_factory.mktemp("crash")), str(KILLS), "1"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=600)
    assert done.returncode == 0, done.stderr
    return json.loads(next(line for line in done.stdout.splitlines() if line.startswith("SEEN"))[5:])


def test_killed_runs_end_in_the_same_weights_and_losses(seen):
    assert len(seen["killed"]) == KILLS + len(MOMENTS)
    assert all(outcome == seen["whole"] for outcome in seen["killed"])
    losses = seen["whole"][1]
    assert len(losses) == 9 and losses[0] != losses[8]


def test_kills_within_a_save_leave_what_they_should(seen):
    left = {moment: set(folders) for moment, *folders in seen["left"] if moment in MOMENTS}
    assert left["_save_rng_state"] == {"checkpoint-1"}  # the second was being written
    assert left["write_manifest"] == {"checkpoint-1", "checkpoint-2"}  # the third was written but not yet vouched for
    assert left["replace"] == {"checkpoint-2", "checkpoint-3"}  # the fourth had not got its name
    assert left["rotate_checkpoints"] == {"checkpoint-3", "checkpoint-4", "checkpoint-5"}  # the oldest still there


def test_a_full_disk_is_said_plainly_and_the_run_goes_on_once_there_is_room(seen):
    for _, message, left, outcome in seen["full"]:
        assert "the disk is full: step 3 could not be saved" in message
        assert "checkpoint-2 is complete" in message and "make room" in message
        assert left == ["README.md", "checkpoint-1", "checkpoint-2"]
        assert outcome == seen["whole"]


@pytest.fixture
def finished(tmp_path):
    trainer = trainer_in(tmp_path, kind=SafeTRL, max_steps=3, save_total_limit=None)
    trainer.train()
    return tmp_path / "run"


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


DAMAGE = {
    "cut short": (lambda folder: cut(folder / "optimizer.pt"), "optimizer.pt has"),
    "a file missing": (lambda folder: (folder / "rng_state.pth").unlink(), "rng_state.pth is missing"),
    "no manifest": (lambda folder: (folder / "manifest.json").unlink(), "it has no manifest.json"),
    "a broken manifest": (lambda folder: cut(folder / "manifest.json"), "cannot be read"),
}


@pytest.mark.parametrize(("harm", "words"), DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_checkpoint_is_passed_over_with_a_reason(finished, harm, words, caplog):
    assert checkpoints.last_complete(finished).name == "checkpoint-3"
    harm(finished / "checkpoint-3")
    assert words in checkpoints.damage(finished / "checkpoint-3")
    assert checkpoints.last_complete(finished).name == "checkpoint-2"
    assert words in caplog.text and "checkpoint-3 is passed over" in caplog.text


def test_a_damaged_checkpoint_is_never_loaded(finished):
    weights = (finished / "checkpoint-3" / "adapter_model.safetensors").read_bytes()
    cut(finished / "checkpoint-3" / "adapter_model.safetensors")
    trainer = trainer_in(finished.parent, kind=SafeTRL, max_steps=3, save_total_limit=None)
    with pytest.raises(ValueError, match=r"is damaged: adapter_model\.safetensors has .* Remedy"):
        trainer.train(resume_from_checkpoint=str(finished / "checkpoint-3"))
    trainer.train(resume_from_checkpoint=True)  # from the second, over the damaged third
    assert (finished / "checkpoint-3" / "adapter_model.safetensors").read_bytes() == weights


def test_a_finished_run_that_is_resumed_trains_no_further(finished):
    trainer = trainer_in(finished.parent, kind=SafeTRL, max_steps=3, save_total_limit=None, learning_rate=1.0)
    trainer.train(resume_from_checkpoint=True)
    assert trainer.state.global_step == 3
    trainer.model.save_pretrained(finished / "again")
    saved = [finished / name / "adapter_model.safetensors" for name in ("again", "checkpoint-3")]
    assert saved[0].read_bytes() == saved[1].read_bytes()


def test_the_best_checkpoint_is_known_by_its_final_name_and_kept(tmp_path):
    steps = {
        "eval_strategy": "steps",
        "eval_steps": 1,
        "metric_for_best_model": "eval_loss",
        "greater_is_better": True,
    }
    trainer = trainer_in(tmp_path, kind=SafeTRL, max_steps=4, save_total_limit=1, **steps, evaluated=True)
    trainer.train()
    best = Path(trainer.state.best_model_checkpoint)
    assert best.parent == tmp_path / "run" and checkpoints.damage(best) is None
    left = {path.name for path in (tmp_path / "run").glob("checkpoint-*")}
    assert left == {best.name}  # what is not the best goes at the end, as in any trainer with this limit
    recorded = json.loads((checkpoints.last_complete(tmp_path / "run") / "trainer_state.json").read_text())
    assert recorded["best_model_checkpoint"] == str(best)


def test_a_full_disk_at_the_first_save_says_that_nothing_is_kept(tmp_path, monkeypatch):
    trainer = trainer_in(tmp_path, kind=SafeTRL)
    monkeypatch.setattr(torch, "save", lambda *a, **k: (_ for _ in ()).throw(OSError(errno.ENOSPC, "No space left")))
    with pytest.raises(OSError, match=r"disk is full: step 1 .*No earlier checkpoint exists") as raised:
        trainer.train()
    assert raised.value.errno == errno.ENOSPC and not (tmp_path / "run" / checkpoints.UNFINISHED).exists()


def test_other_errors_are_not_called_a_full_disk(tmp_path, monkeypatch):
    trainer = trainer_in(tmp_path, kind=SafeTRL)
    monkeypatch.setattr(
        torch, "save", lambda *a, **k: (_ for _ in ()).throw(OSError(errno.EACCES, "Permission denied"))
    )
    with pytest.raises(OSError, match="Permission denied"):
        trainer.train()


def test_full_fine_tuning_saves_and_resumes_too(tmp_path):
    def run(steps):
        changes = {"peft_config": None, "ref_model": small_llama(1), "precompute_ref_log_probs": False}
        trainer = trainer_in(tmp_path, max_steps=steps, lr_scheduler_type="constant", **changes)
        trainer.train(resume_from_checkpoint=True)
        return trainer

    run(2)
    assert run(4).state.global_step == 4
    resumed = checkpoints.last_complete(tmp_path / "run") / "model.safetensors"
    kept = resumed.read_bytes()
    for folder in (tmp_path / "run").iterdir():
        folder.rename(tmp_path / f"old-{folder.name}")
    run(4)
    assert resumed.read_bytes() == kept
