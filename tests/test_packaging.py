"""Packaging: one set of versions in every file, no addresses of package indexes, and failures that say what to do."""

import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys
import time
import tomllib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

REPO = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((REPO / "pyproject.toml").read_text())["project"]
ENVIRONMENT = yaml.safe_load((REPO / "environment.yml").read_text())
LINES = [line for line in (REPO / "constraints.txt").read_text().splitlines() if line and not line.startswith("#")]
PINS = {canonicalize_name(name): version for name, version in (line.split("==") for line in LINES)}


def requirements():
    lines = [
        *PROJECT["dependencies"],
        *(line for extra in PROJECT["optional-dependencies"].values() for line in extra),
    ]
    return [Requirement(line) for line in lines if not line.startswith(PROJECT["name"])]  # "test" takes the others in


def test_constraints_are_exact_sorted_and_hold_no_address():
    assert all(re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9.]+", line) for line in LINES)
    assert [line.lower() for line in LINES] == sorted(line.lower() for line in LINES)
    assert len(PINS) == len(LINES)
    assert PINS["torch"] == "2.13.0"  # no +cpu: which build is taken is the user's choice


@pytest.mark.parametrize("requirement", requirements(), ids=str)
def test_every_requirement_is_pinned_inside_its_range(requirement):
    pinned = PINS[canonicalize_name(requirement.name)]
    assert requirement.specifier.contains(pinned), f"{requirement} against {pinned}: write constraints.txt again"


def test_everything_they_need_is_pinned_too():
    """Walks the installed packages' own requirements, so that a fresh environment is the tested one."""
    seen, todo = set(), [(name, "") for name in ("dpo-tutorial",)] + [("dpo-tutorial", "test")]
    while todo:
        name, extra = todo.pop()
        if (name, extra) in seen:
            continue
        seen.add((name, extra))
        for line in importlib.metadata.requires(name) or []:
            needed = Requirement(line)
            if needed.marker is None or needed.marker.evaluate({"extra": extra}):
                todo += [(canonicalize_name(needed.name), each) for each in ("", *needed.extras)]
    tools = {"dpo-tutorial", "setuptools", "pip", "triton"}  # torch pins the CUDA libraries itself
    cuda = {name for name, _ in seen if name.startswith(("nvidia-", "cuda-"))}
    assert {name for name, _ in seen} - tools - cuda - set(PINS) == set()


def test_environment_yml_holds_python_pip_and_the_constrained_project():
    python, pip, packages = ENVIRONMENT["dependencies"]
    assert pip == "pip"
    # Two lines: pip ignores "-c" on a line that also says "-e".
    assert packages == {"pip": ["-c constraints.txt", "-e .[test]"]}
    minor = python.removeprefix("python=")
    assert SpecifierSet(PROJECT["requires-python"]).contains(minor)
    workflow = yaml.safe_load((REPO / ".github/workflows/ci.yml").read_text())
    steps = workflow["jobs"]["test"]["steps"]
    assert [step["with"]["python-version"] for step in steps if "python-version" in step.get("with", {})] == [minor]
    target = tomllib.loads((REPO / "pyproject.toml").read_text())["tool"]["ruff"]["target-version"]
    assert target == "py" + PROJECT["requires-python"].removeprefix(">=").replace(".", "")


def test_the_readme_states_the_measured_speed_of_the_fast_step():
    """The README's range is the benchmark's (float32, three shapes), and every variant had TRL's losses."""
    groups = json.loads((REPO / "benchmarks" / "dpo_step.json").read_text())["groups"]
    ratios, memory = [], []
    for name, rows in groups.items():
        variant = {row["variant"]: row for row in rows}
        trl, fast = variant["trl"], variant["fast"]
        assert max(abs(a - b) for a, b in zip(trl["losses"], fast["losses"], strict=True)) < 1e-3, name
        if "float32" in name and "batch 8 " in name:
            ratios.append(fast["pairs_per_second"] / trl["pairs_per_second"])
            memory.append(fast["peak_bytes"] / trl["peak_bytes"])
    assert len(ratios) >= 3
    assert f"{min(ratios):.1f} to {max(ratios):.1f} times as fast as TRL" in (REPO / "README.md").read_text()
    assert 0.3 < min(memory) < max(memory) < 0.55, "a third to a half of the memory"


def test_every_filter_and_the_audit_were_measured_at_100_000_pairs():
    """benchmarks/data_scale.json, against the limits that its docstring names; no filter is left out."""
    import inspect

    from dpo_tutorial.data import filters

    found = json.loads((REPO / "benchmarks" / "data_scale.json").read_text())
    assert found["rows"] == 100_000 and found["machine"]["processor"]
    assert found["audit"]["seconds"] < 120 and found["audit"]["peak_gb"] < 1.5 and found["load"]["peak_gb"] < 1.5
    for name, cost in found["filters"].items():
        assert cost["seconds"] < (60 if name == "drop_near_duplicates" else 10), name
    public = {
        name
        for name, function in inspect.getmembers(filters, inspect.isfunction)
        if inspect.signature(function).return_annotation == filters.Filtered and not name.startswith("_")
    }
    assert len(public) > 10 and {name.split(",")[0] for name in found["filters"]} == public
    seconds = f"{found['audit']['seconds']:.0f} s and {found['audit']['peak_gb']:.1f} GB"
    assert seconds in (REPO / "README.md").read_text()


def test_one_version_of_ruff():
    hooks = yaml.safe_load((REPO / ".pre-commit-config.yaml").read_text())["repos"][0]["hooks"]
    pinned = {line for hook in hooks for line in hook["additional_dependencies"]}
    assert pinned == {f"ruff=={PINS['ruff']}"} and pinned <= set(PROJECT["optional-dependencies"]["test"])
    assert all("jupyter" in hook["types_or"] for hook in hooks)


def test_one_version_of_the_course():
    import dpo_tutorial

    citation = yaml.safe_load((REPO / "CITATION.cff").read_text())
    changelog = (REPO / "CHANGELOG.md").read_text()
    assert PROJECT["version"] == dpo_tutorial.__version__ == citation["version"]
    assert f"\n## {PROJECT['version']}" in changelog
    assert PROJECT["license"] == citation["license"] == "Apache-2.0"
    assert "Version 2.0, January 2004" in (REPO / "LICENSE").read_text()


def test_the_workflow_and_ci_run_call_the_makefile():
    workflow = yaml.safe_load((REPO / ".github/workflows/ci.yml").read_text())
    assert [step["run"] for step in workflow["jobs"]["test"]["steps"] if "run" in step] == ["bash .ci/run"]
    script = REPO / ".ci/run"
    assert os.access(script, os.X_OK)
    assert re.findall(r"make (\w+)$", script.read_text(), re.MULTILINE)[-1] == "test"


needs_make = pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")


def make(folder, *arguments, path=""):
    """Run make on a copy of what the installation reads, with ``path`` before everything on PATH."""
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(REPO / name, folder / name)
    environment = {**os.environ, "PATH": os.pathsep.join(filter(None, [str(path), os.environ["PATH"]]))}
    environment = {
        key: value for key, value in environment.items() if key not in ("VENV", "TORCH", "PYTHON", "MAKEFLAGS")
    }
    return subprocess.run(["make", *arguments], cwd=folder, env=environment, capture_output=True, text=True)


def program(folder, name, text):
    """An executable shell script in ``folder``; returns its path."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(f"#!/bin/sh\n{text}\n")
    (folder / name).chmod(0o755)
    return folder / name


@needs_make
def test_make_says_when_python_is_too_old(tmp_path):
    old = program(tmp_path / "bin", "oldpython", 'case "$*" in --version) echo Python 3.8.1;; *) exit 1;; esac')
    done = make(tmp_path, "install", f"PYTHON={old}")
    assert done.returncode and "Python 3.11 or newer is needed (found: Python 3.8.1). Install it" in done.stdout
    assert not (tmp_path / ".venv").exists()


@needs_make
@pytest.mark.parametrize(("free", "torch"), [(2_000_000, "cpu"), (6_000_000, "")])
def test_make_says_when_the_disk_is_short(tmp_path, free, torch):
    if not torch and sys.platform != "linux":
        pytest.skip("PyTorch comes with CUDA by default on Linux only")
    program(tmp_path / "bin", "df", f"echo Filesystem; echo disk 1 1 {free} 1% /")
    done = make(tmp_path, "install", f"PYTHON={sys.executable}", f"TORCH={torch}", path=tmp_path / "bin")
    words = f"The disk is short: {free // 10**6} GB are free here, about {3 if torch else 8} GB are needed"
    assert done.returncode and words in done.stdout
    assert not (tmp_path / ".venv").exists()


PIP = 'case "$*" in "-m pip install"*) echo "$@" >> {log}; exit {status};; *) exit 0;; esac'


@needs_make
def test_make_says_when_a_download_fails_and_resumes_then_does_nothing(tmp_path):
    """With a stand-in for the environment's Python: what is asked of pip, in which order, and how often."""
    log, bin = tmp_path / "log", tmp_path / ".venv/bin"
    arguments = ("install", f"PYTHON={sys.executable}", "TORCH=cpu")
    program(tmp_path / "bin", "df", "echo Filesystem; echo disk 1 1 90000000 1% /")
    program(bin, "python", PIP.format(log=log, status=1))
    done = make(tmp_path, *arguments, path=tmp_path / "bin")
    assert done.returncode and "if the download failed, run the same command again" in done.stdout
    program(bin, "python", PIP.format(log=log, status=0))
    assert "Installed." in make(tmp_path, *arguments, path=tmp_path / "bin").stdout
    torch, course = log.read_text().splitlines()[1:]
    assert "-c constraints.txt --no-deps --index-url" in torch and torch.endswith(" torch")
    assert course.endswith("-c constraints.txt -e .[test]")
    before = log.read_text()
    os.utime(tmp_path / ".venv/.installed", (2e9, 2e9))  # the copies above are newer than a stamp of a moment ago
    done = make(tmp_path, *arguments, path=tmp_path / "bin")
    assert not done.returncode and log.read_text() == before


@needs_make
def test_of_two_installations_at_once_the_second_says_so_and_the_first_finishes(tmp_path):
    program(tmp_path / "bin", "df", "echo Filesystem; echo disk 1 1 90000000 1% /")
    bin, note = tmp_path / ".venv/bin", tmp_path / ".venv-installing.tmp"
    waits = f"touch {tmp_path}/busy; while [ ! -e {tmp_path}/go ]; do sleep 0.05; done"
    program(bin, "python", f'case "$*" in "-m pip install"*) {waits};; esac')
    arguments = ("install", f"PYTHON={sys.executable}")
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(make, tmp_path, *arguments, path=tmp_path / "bin")
        for _ in range(200):
            if (tmp_path / "busy").exists():
                break
            time.sleep(0.05)
        second = make(tmp_path, *arguments, path=tmp_path / "bin")
        (tmp_path / "go").touch()
        assert "Installed." in first.result().stdout
    assert second.returncode and re.search(
        r"Another installation is at work in \.venv \(process \d+\)", second.stdout
    )
    assert not note.exists()
    (tmp_path / ".venv/.installed").unlink()
    note.write_text("999999999\n")  # of an installation that was killed
    assert "Installed." in make(tmp_path, *arguments, path=tmp_path / "bin").stdout


@needs_make
def test_a_broken_environment_is_made_again_and_a_folder_that_is_none_is_not_cleared(tmp_path):
    fake = program(tmp_path / "bin", "python", 'case "$*" in "-m venv"*) echo "VENV $*"; exit 1;; *) exit 0;; esac')
    arguments = ("install", f"PYTHON={fake}", f"VENV={tmp_path / 'mine'}")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("three years")
    program(tmp_path / "bin", "df", "echo Filesystem; echo disk 1 1 90000000 1% /")
    done = make(tmp_path, *arguments, path=tmp_path / "bin")
    assert done.returncode and "VENV -m venv " in done.stdout and "--clear" not in done.stdout
    assert "apt install python3-venv" in done.stdout
    (tmp_path / "mine" / "pyvenv.cfg").write_text("")
    assert "VENV -m venv --clear" in make(tmp_path, *arguments, path=tmp_path / "bin").stdout


@needs_make
def test_what_is_still_to_come_says_so(tmp_path):
    (tmp_path / ".venv").mkdir()
    program(tmp_path / ".venv/bin", "python", "exit 0")
    (tmp_path / ".venv/.installed").touch()
    os.utime(tmp_path / ".venv/.installed", (2e9, 2e9))
    done = make(tmp_path, "bench")
    assert done.returncode and "benchmarks/dpo_step.py is not built yet." in done.stdout


def test_a_script_that_a_notebook_wrote_is_not_collected(tmp_path):
    """Notebook 16 writes one; collected for its doctests it would run, and a second ``make test`` would fail."""
    for folder in ("runs", "other"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "train.py").write_text("import sys\n\nsys.argv[100]\n")
    collect = [sys.executable, "-m", "pytest", "-c", str(REPO / "pyproject.toml"), "--collect-only", str(tmp_path)]
    shown = subprocess.run(collect, capture_output=True, text=True, cwd=REPO).stdout
    assert "other/train.py" in shown and "runs/train.py" not in shown
