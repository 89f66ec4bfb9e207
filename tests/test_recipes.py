"""The recipes for TRL's command line: keys of the pinned TRL, values it accepts, and the first one runs."""

import dataclasses
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from trl import DatasetMixtureConfig, DPOConfig, ModelConfig, ScriptArguments, TrlParser

REPO = Path(__file__).resolve().parents[1]
RECIPES = sorted((REPO / "recipes").glob("*.yaml"))
CLASSES = (ScriptArguments, DPOConfig, ModelConfig, DatasetMixtureConfig)
NAMES = {field.name for each in CLASSES for field in dataclasses.fields(each)}


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_key_is_trls_and_every_value_is_accepted(path):
    settings = yaml.safe_load(path.read_text())
    assert set(settings) <= NAMES, f"TRL knows no {sorted(set(settings) - NAMES)}"
    parser = TrlParser(CLASSES)
    overrides = ["--use_cpu", "true", "--bf16", "false"]
    _, training, model, data = parser.parse_args_and_config(["--config", str(path), *overrides])
    assert training.beta == settings["beta"] and training.learning_rate == settings["learning_rate"]
    assert training.output_dir == f"runs/{path.stem}" and model.model_name_or_path == settings["model_name_or_path"]
    assert [each.path for each in data.datasets] == [each["path"] for each in settings["datasets"]]


def test_an_unknown_key_is_refused(tmp_path):
    broken = tmp_path / "broken.yaml"
    broken.write_text((REPO / "recipes" / "smollm2_135m_cpu.yaml").read_text() + "max_prompt_length: 5\n")
    with pytest.raises(ValueError, match="max_prompt_length"):
        TrlParser(CLASSES).parse_args_and_config(["--config", str(broken)], fail_with_unknown_args=True)


def test_readme_lists_every_recipe_and_says_what_never_ran():
    text = (REPO / "recipes" / "README.md").read_text()
    listed = set(re.findall(r"^\| (\S+\.yaml) \|", text, re.M))
    assert listed == {path.name for path in RECIPES}
    for path in RECIPES:
        assert ("Not run by this project" in path.read_text()) == ("never run here" in _row(text, path.name))


def _row(text, name):
    return next(line for line in text.splitlines() if line.startswith(f"| {name}"))


def test_accelerate_configuration_is_read():
    from accelerate.commands.config.config_args import load_config_from_file

    config = load_config_from_file(str(REPO / "recipes" / "accelerate" / "fsdp_8gpu.yaml"))
    assert config.num_processes == 8 and config.distributed_type == "FSDP" and config.fsdp_config["fsdp_version"] == 2


def test_the_cpu_recipe_runs(tmp_path):
    """Two steps of the real thing: SmolLM2, the shipped pairs, TRL's own script."""
    from dpo_tutorial.training import models

    command = [sys.executable, "-m", "trl.scripts.dpo", "--config", str(REPO / "recipes" / "smollm2_135m_cpu.yaml")]
    few = tmp_path / "few.jsonl"
    lines = (REPO / "data" / "pairs" / "sentiment_train.jsonl").read_text(encoding="utf-8").splitlines()[:8]
    few.write_text("\n".join(lines) + "\n", encoding="utf-8")
    config = yaml.safe_load((REPO / "recipes" / "smollm2_135m_cpu.yaml").read_text())
    config["datasets"][0]["data_files"] = str(few)
    (tmp_path / "recipe.yaml").write_text(json.dumps(config))
    command[-1] = str(tmp_path / "recipe.yaml")
    options = {"model_name_or_path": models.fetch_smollm2(), "output_dir": tmp_path / "out", "max_steps": 2}
    for name, value in options.items():
        command += [f"--{name}", str(value)]
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_DATASETS_CACHE": str(tmp_path / "cache")}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    assert (tmp_path / "out" / "adapter_model.safetensors").exists()
    assert "train_loss" in done.stdout + done.stderr
