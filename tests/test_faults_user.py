"""What goes wrong on a user's machine ends in a clear sentence, and nothing of the user's is lost.

Elsewhere: the model's download cut off, wrong hash, short disk, no network, two at once (test_fetch.py); other
downloads cut off, wrong hash, server down (test_external.py); an installation that fails, or two at once
(test_packaging.py); training killed at any moment, full disk while it saves (test_crash_safety.py); a judge's run
killed (test_judges.py).
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dpo_tutorial.data import pairs
from dpo_tutorial.data.scoring import DATA_DIR
from dpo_tutorial.training import models, records

ROOT = Path(__file__).resolve().parents[1]
ODD = "Mein Ordner ü 数据"  # spaces and letters beyond ASCII
ROWS = [
    {"prompt": "Ein Café", "chosen": " schön", "rejected": " 坏"},
    {"prompt": "Two", "chosen": " good", "rejected": " bad"},
]


def run(*command: str, **environment: str) -> subprocess.CompletedProcess:
    """A command of the course, in a process of its own, from the repository's root."""
    env = os.environ | {"HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)} | environment
    return subprocess.run([sys.executable, *command], cwd=ROOT, env=env, capture_output=True, timeout=120)


@pytest.fixture
def odd_file(tmp_path) -> Path:
    folder = tmp_path / ODD
    folder.mkdir()
    path = folder / "paare é.jsonl"
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS), encoding="utf-8")
    return path


def test_a_path_with_spaces_and_any_letters_is_a_path(odd_file):
    frame = pairs.load(odd_file)
    assert frame["chosen"].tolist() == [" schön", " good"]
    pairs.save(frame, odd_file.with_name("zurück.jsonl"))
    assert pairs.load(odd_file.with_name("zurück.jsonl")).equals(frame)


@pytest.mark.parametrize("locale", ["C", "POSIX"])
def test_the_audit_works_in_a_bare_locale(odd_file, locale):
    page = odd_file.with_suffix(".html")
    settings = {"LC_ALL": locale, "LANG": locale}
    done = run("-m", "dpo_tutorial", "audit", str(odd_file), "--html", str(page), **settings)
    assert done.returncode == 0, done.stderr[-1500:]
    assert b"Traceback" not in done.stderr and "schön" in page.read_text(encoding="utf-8")


@pytest.mark.parametrize("cut", [0.3, 0.97])
def test_weights_cut_short_are_named(tmp_path, cut):
    folder = Path(shutil.copytree(DATA_DIR / "lab_lm", tmp_path / ODD))
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[: int(cut * weights.stat().st_size)])
    with pytest.raises(FileNotFoundError, match="could not be loaded") as raised:
        models.load(str(folder), device="cpu")
    assert ODD in str(raised.value)


def test_a_fetched_model_cut_short_says_how_to_mend_it(tmp_path, monkeypatch):
    monkeypatch.setenv("DPO_TUTORIAL_CACHE", str(tmp_path / ODD))
    folder = Path(shutil.copytree(DATA_DIR / "lab_lm", tmp_path / ODD / "smollm2-135m-instruct-q4_1"))
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:5000])
    with pytest.raises(
        FileNotFoundError, match=r"(?s)could not be loaded.*remove .*q4_1 and run .*dpo_tutorial fetch"
    ):
        models.load("smollm2", device="cpu")


def test_an_adapter_cut_short_is_not_used(tmp_path):
    folder = Path(shutil.copytree(DATA_DIR / "sft_adapter", tmp_path / "adapter"))
    weights = folder / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    model, _ = models.load("lab_lm", device="cpu")
    with pytest.raises(Exception, match=r"(?i)incomplete|safetensors|header|size"):
        models.load_adapter(model, folder)


def test_a_line_cut_short_is_named_and_the_rest_can_be_kept(tmp_path):
    path = tmp_path / "cut.jsonl"
    whole = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS).encode()
    path.write_bytes(whole[:-14])
    with pytest.raises(ValueError, match="line 2"):
        pairs.load(path)
    kept, rejected = pairs.load(path, on_error="reject")
    assert len(kept) == 1 and len(rejected) == 1
    assert path.read_bytes() == whole[:-14], "the user's file is as it was"


def test_a_cache_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("not a folder")
    done = run("-m", "dpo_tutorial", "fetch", DPO_TUTORIAL_CACHE=str(tmp_path / "file" / "cache"))
    message = done.stderr.decode()
    assert done.returncode == 1 and "Traceback" not in message and str(tmp_path / "file") in message


@pytest.mark.skipif(not Path("/sys/kernel").is_dir(), reason="no file system here on which nobody may write")
def test_a_read_only_cache_is_named():
    done = run("-m", "dpo_tutorial", "fetch", DPO_TUTORIAL_CACHE="/sys/kernel/dpo_tutorial")
    message = done.stderr.decode()
    assert done.returncode == 1 and "Traceback" not in message and "/sys/kernel/dpo_tutorial" in message


FULL = """
import resource, signal, sys
from dpo_tutorial.__main__ import main
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))
sys.exit(main(["audit", {file!r}, "--html", {page!r}]))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="no limits on files there")
def test_a_disk_that_fills_while_a_report_is_written_leaves_the_old_report(odd_file):
    """The system refuses to write past some 2,000 bytes, as it does on a full disk."""
    page = odd_file.with_suffix(".html")
    page.write_text("last week's report")
    done = run("-c", FULL.format(file=str(odd_file), page=str(page)))
    assert done.returncode == 2 and b"Traceback" not in done.stderr and b"audit: [Errno" in done.stderr
    assert page.read_text() == "last week's report" and sorted(odd_file.parent.iterdir()) == sorted([odd_file, page])


def test_an_audit_that_cannot_write_says_so_and_leaves_nothing(odd_file):
    done = run("-m", "dpo_tutorial", "audit", str(odd_file), "--html", str(odd_file.parent / "no" / "page.html"))
    assert done.returncode == 2 and b"folder does not exist" in done.stderr and b"Traceback" not in done.stderr
    assert sorted(odd_file.parent.iterdir()) == [odd_file]


KILLED = """
import time
from dpo_tutorial.training import records
records.RECORDS = __import__("pathlib").Path({folder!r})
def run(config):
    print("running", flush=True)
    time.sleep(60)
records.make("nb99", {{"seed": 1}}, run, command="none")
"""


def test_a_kernel_killed_in_a_long_cell_leaves_no_half_record(tmp_path, monkeypatch):
    """A long cell is a record in the making: none is there afterwards, and the next run makes it."""
    script = KILLED.format(folder=str(tmp_path))
    process = subprocess.Popen([sys.executable, "-c", script], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "running\n"
    time.sleep(0.1)
    process.send_signal(signal.SIGKILL)
    process.wait(10)
    process.stdout.close()
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setattr(records, "RECORDS", tmp_path)
    made = records.make("nb99", {"seed": 1}, lambda config: {"value": 3}, command="none")
    assert made["results"] == {"value": 3} and records.load("nb99", {"seed": 1}) == made


def test_a_notebook_kernel_that_dies_is_reported_and_the_file_is_untouched(tmp_path):
    """``make notebooks`` writes a notebook only when all of it has run."""
    import nbformat
    from nbclient.exceptions import DeadKernelError

    sys.path.insert(0, str(ROOT / "tools"))
    import execute_notebooks as tool

    cells = ["x = 1", "import os, signal\nos.kill(os.getpid(), signal.SIGKILL)"]
    book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source) for source in cells])
    path = tmp_path / "killed.ipynb"
    nbformat.write(book, path)
    before = path.read_bytes()
    with pytest.raises(DeadKernelError):
        tool.execute(path)
    assert path.read_bytes() == before
