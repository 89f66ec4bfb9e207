"""Notebook 09 runs through unchanged on a reader's own pairs: plain texts, and conversations."""

import json
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

BOOK = Path(__file__).resolve().parents[1] / "notebooks" / "09_dpo_with_trl.ipynb"
QUESTIONS = [
    "What is two plus two?",
    "Name a colour.",
    "Is the sky blue?",
    "Say hello.",
    "What do bees make?",
    "Name a pet.",
]


def rows(conversational: bool) -> list[dict]:
    made = []
    for question in QUESTIONS * 2:
        row = {
            "prompt": f"{question} ({len(made)})",
            "chosen": " A short answer.",
            "rejected": " Well, it depends on that.",
        }
        if conversational:
            roles = {"prompt": "user", "chosen": "assistant", "rejected": "assistant"}
            row = {name: [{"role": roles[name], "content": text.strip()}] for name, text in row.items()}
        made.append(row)
    return made


@pytest.mark.parametrize("conversational", [False, True], ids=["texts", "conversations"])
def test_notebook_09_takes_the_readers_pairs(conversational, tmp_path, monkeypatch):
    monkeypatch.setenv("DPO_TUTORIAL_MONITOR", "plain")
    lines = "".join(json.dumps(row) + "\n" for row in rows(conversational))
    (tmp_path / "my.jsonl").write_text(lines, encoding="utf-8")
    book = nbformat.read(BOOK, as_version=4)
    knobs = next(cell for cell in book.cells if cell.cell_type == "code" and "PAIRS = None" in cell.source)
    knobs.source = knobs.source.replace("PAIRS = None", 'PAIRS = "my.jsonl"') + '\nRUN |= {"max_new_tokens": 8}'
    NotebookClient(book, timeout=900, resources={"metadata": {"path": str(tmp_path)}}).execute()
    printed = "".join(
        o.get("text", "") for cell in book.cells for o in cell.get("outputs", []) if o.get("name") == "stdout"
    )
    assert "your pairs: held-out margin" in printed and "no true reward here" in printed
    assert "the reloaded adapter gives the same log-probabilities" in printed
    assert (tmp_path / "runs" / "nb09" / "my" / "beta0.1_seed0" / "adapter" / "adapter_model.safetensors").exists()
