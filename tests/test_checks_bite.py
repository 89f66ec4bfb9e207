"""Proof that the notebook checks can fail: a changed digit, a flipped sign, a dropped count, all turn them red."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from test_notebooks import problems

ROOT = Path(__file__).resolve().parents[1]
BOOK = ROOT / "notebooks" / "01_optimum_of_kl_regularised_reward.ipynb"


def run_nbval(book: Path, **environment: str) -> subprocess.CompletedProcess:
    """Strict nbval on one notebook, as `make test` calls it."""
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "--nbval",
        "--nbval-current-env",
        book.name,
    ]
    env = os.environ | {"DPO_TUTORIAL_MONITOR": "plain"} | environment
    return subprocess.run(command, cwd=book.parent, env=env, capture_output=True, text=True)


@pytest.fixture
def copied(tmp_path) -> Path:
    return Path(shutil.copy(BOOK, tmp_path / BOOK.name))


def change_a_digit(path: Path) -> None:
    """Add one to the last decimal of the first number with three decimals that is printed."""
    book = nbformat.read(path, as_version=4)
    for cell in book.cells:
        for output in cell.get("outputs", []):
            match = re.search(r"\d\.\d\d(\d)", output.get("text", ""))
            if match:
                place = match.start(1)
                digit = str((int(match[1]) + 1) % 10)
                output["text"] = output["text"][:place] + digit + output["text"][place + 1 :]
                nbformat.write(book, path)
                return
    raise AssertionError("no printed number found")


def test_the_untouched_copy_is_green(copied):
    done = run_nbval(copied)
    assert done.returncode == 0, done.stdout[-2000:]
    assert problems(copied) == []


def test_a_changed_digit_turns_nbval_red(copied):
    change_a_digit(copied)
    done = run_nbval(copied)
    assert done.returncode == 1 and "mismatch" in done.stdout


def test_a_flipped_sign_in_a_copied_package_turns_nbval_red(copied):
    package = copied.parent / "dpo_tutorial"
    shutil.copytree(ROOT / "dpo_tutorial", package, ignore=shutil.ignore_patterns("__pycache__"))
    finite = package / "theory" / "finite.py"
    source = finite.read_text(encoding="utf-8")
    flipped = source.replace("self.ref_logps + self.true_rewards / beta", "self.ref_logps - self.true_rewards / beta")
    assert flipped != source
    finite.write_text(flipped, encoding="utf-8")
    done = run_nbval(copied, PYTHONPATH=str(copied.parent))
    assert done.returncode == 1 and "failed" in done.stdout


@pytest.mark.parametrize(
    ("spoil", "expected"),
    [
        (lambda book: book.cells[1].update(execution_count=None), "execution counts"),
        (lambda book: book.metadata.update(widgets={}), "metadata.widgets"),
        (lambda book: book.cells[1].outputs.append(nbformat.v4.new_output("error", ename="E")), "an error is stored"),
        (
            lambda book: book.cells[1].outputs.append(nbformat.v4.new_output("stream", name="stderr", text="w")),
            "stderr",
        ),
        (lambda book: book.cells[0].update(source="see /" + "home/someone/file"), "absolute path"),
        (lambda book: drop_pictures(book), "a figure has no picture"),
    ],
)
def test_a_spoilt_notebook_is_named(copied, spoil, expected):
    book = nbformat.read(copied, as_version=4)
    spoil(book)
    nbformat.write(book, copied)
    assert any(expected in problem for problem in problems(copied))


def drop_pictures(book) -> None:
    for cell in book.cells:
        for output in cell.get("outputs", []):
            output.get("data", {}).pop("image/png", None)
