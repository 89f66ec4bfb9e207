"""Checkpoints that survive: a run killed at any moment resumes to the same weights, a full disk costs nothing.

A checkpoint is written under another name, given a manifest of its files' sizes, and renamed as a whole. So a
folder ``checkpoint-N`` is complete unless someone or something has damaged it since, which the manifest shows.
"""

import errno
import json
import logging
import os
import shutil
from pathlib import Path

from safetensors import SafetensorError
from transformers import TrainerState
from transformers.trainer_utils import TrainOutput, rotate_checkpoints

MANIFEST = "manifest.json"
UNFINISHED = "unfinished"
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
FULL_TEXTS = (
    "no space left",
    "file too large",
    "quota exceeded",
    "iostream error",
    "failed writing",
    "file write failed",
)
logger = logging.getLogger(__name__)


def write_manifest(folder: str | Path) -> None:
    """Note the size of every file below ``folder`` in its manifest, after forcing them to the disk."""
    sizes = {}
    for path in sorted(Path(folder).rglob("*")):
        if path.is_file():
            sizes[path.relative_to(folder).as_posix()] = path.stat().st_size
            _sync(path)
    manifest = Path(folder) / MANIFEST
    manifest.write_text(json.dumps(sizes, indent=1))
    _sync(manifest)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def damage(folder: str | Path) -> str | None:
    """What is wrong with a checkpoint in a few words, or None if every file of its manifest is there in full."""
    folder = Path(folder)
    try:
        sizes = json.loads((folder / MANIFEST).read_text())
    except FileNotFoundError:
        return f"it has no {MANIFEST}: it was cut short, or written by another trainer"
    except ValueError:
        return f"its {MANIFEST} cannot be read"
    for name, size in sizes.items():
        if not (folder / name).is_file():
            return f"{name} is missing"
        if (folder / name).stat().st_size != size:
            return f"{name} has {(folder / name).stat().st_size} bytes instead of {size}"
    return None


def step_of(folder: Path) -> int:
    """N of a folder ``checkpoint-N``, -1 for any other."""
    head, _, number = folder.name.rpartition("-")
    return int(number) if head == "checkpoint" and number.isdigit() else -1


def last_complete(output_dir: str | Path) -> Path | None:
    """The newest complete checkpoint of a run, or None; damaged ones are named in the log and passed over."""
    folders = [folder for folder in Path(output_dir).glob("checkpoint-*") if step_of(folder) >= 0 and folder.is_dir()]
    for folder in sorted(folders, key=step_of, reverse=True):
        reason = damage(folder)
        if reason is None:
            return folder
        logger.warning("%s is passed over: %s", folder, reason)
    return None


def disk_is_full(error: BaseException | None) -> bool:
    """Whether an error, or one that it arose from, says that nothing more could be written."""
    while error is not None:
        if getattr(error, "errno", None) in FULL or any(text in str(error).lower() for text in FULL_TEXTS):
            return True
        error = error.__cause__ or error.__context__
    return False


class SafeCheckpoints:
    """Mixed in before a ``transformers`` trainer: ``class MyTrainer(SafeCheckpoints, DPOTrainer)``.

    ``train(resume_from_checkpoint=True)`` takes up the newest complete checkpoint, and starts afresh where there
    is none yet, so that one command both starts and resumes. A damaged checkpoint given by its path raises.
    """

    _unfinished: str | None = None

    def train(self, resume_from_checkpoint: str | bool | None = None, *args, **kwargs):
        if resume_from_checkpoint is True:
            found = last_complete(self._get_output_dir(trial=None))
            resume_from_checkpoint = None if found is None else str(found)
        elif resume_from_checkpoint and (Path(resume_from_checkpoint) / MANIFEST).exists():
            reason = damage(resume_from_checkpoint)
            if reason is not None:
                raise ValueError(
                    f"the checkpoint {resume_from_checkpoint} is damaged: {reason}. Remedy: "
                    "train(resume_from_checkpoint=True) takes the newest complete one"
                )
        if resume_from_checkpoint and self._is_at_its_end(Path(resume_from_checkpoint)):
            return TrainOutput(self.state.global_step, 0.0, {})
        return super().train(resume_from_checkpoint, *args, **kwargs)

    def _is_at_its_end(self, folder: Path) -> bool:
        """Take over a run that had made its last step: resumed by ``transformers``, it would train one more."""
        saved = folder / "trainer_state.json"
        if self.args.max_steps <= 0 or not saved.exists():
            return False
        state = TrainerState.load_from_json(str(saved))
        if state.global_step < self.args.max_steps:
            return False
        self.state = state
        self._load_from_checkpoint(str(folder))
        return True

    def _get_output_dir(self, trial):
        folder = super()._get_output_dir(trial=trial)
        return os.path.join(folder, self._unfinished) if self._unfinished else folder

    def _save_checkpoint(self, model, trial):
        run_dir = Path(self._get_output_dir(trial=trial))
        try:
            self._save_under_another_name(model, trial, run_dir)
        except (OSError, RuntimeError, SafetensorError) as error:
            shutil.rmtree(run_dir / UNFINISHED, ignore_errors=True)
            if not disk_is_full(error):
                raise
            kept = last_complete(run_dir)
            raise OSError(
                errno.ENOSPC,
                f"the disk is full: step {self.state.global_step} could not be saved in {run_dir}. "
                + (f"{kept.name} is complete. " if kept else "No earlier checkpoint exists. ")
                + "Remedy: make room, then run again with train(resume_from_checkpoint=True)",
            ) from error

    def _save_under_another_name(self, model, trial, run_dir: Path) -> None:
        """The checkpoint in ``run_dir/unfinished`` by the trainer's own means, then its manifest, then its name."""
        main = self.args.should_save
        name = f"checkpoint-{self.state.global_step}"
        if main:
            shutil.rmtree(run_dir / UNFINISHED, ignore_errors=True)
        self.accelerator.wait_for_everyone()
        try:
            self._unfinished = UNFINISHED  # the trainer sees this checkpoint only, and so deletes no older one
            super()._save_checkpoint(model, trial)
        finally:
            self._unfinished = None
        staged = run_dir / UNFINISHED / name
        if self.state.best_model_checkpoint == str(staged):
            self.state.best_model_checkpoint = str(run_dir / name)
            if main:
                self.state.save_to_json(str(staged / "trainer_state.json"))
        self.accelerator.wait_for_everyone()
        if main:
            write_manifest(staged)
            shutil.rmtree(run_dir / name, ignore_errors=True)  # of a run that went on from an earlier checkpoint
            os.replace(staged, run_dir / name)
            os.rmdir(run_dir / UNFINISHED)
            rotate_checkpoints(str(run_dir), self.args.save_total_limit, self.state.best_model_checkpoint)
        self.accelerator.wait_for_everyone()
