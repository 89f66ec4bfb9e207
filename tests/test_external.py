"""External data: where it is looked for, that hashes are checked, what is said offline; AlpacaEval's extraction."""

import hashlib
import http.server
import importlib.util
import json
import os
import threading
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from dpo_tutorial.data import external, formats

REPO = Path(__file__).resolve().parents[1]
DATA = os.environ.get("DPO_TUTORIAL_DATA")
needs_data = pytest.mark.skipif(not DATA, reason="set DPO_TUTORIAL_DATA to the folder with pandalm/ and alpaca_eval/")
spec = importlib.util.spec_from_file_location("extract_alpaca_eval", REPO / "tools/extract_alpaca_eval.py")
tool = importlib.util.module_from_spec(spec)
spec.loader.exec_module(tool)

ROWS = [
    {"idx": 0, "cmp_key": "a_b", "instruction": "Add.", "input": "", "response1": "4", "response2": "5"},
    {"idx": 1, "cmp_key": "b_c", "instruction": "Add.", "input": "2, 2", "response1": "x", "response2": "y"},
]
ROWS = [
    row | {f"annotator{k}": votes[k - 1] for k in (1, 2, 3)}
    for row, votes in zip(ROWS, [(1, 1, 0), (0, 0, 0)], strict=True)
]
CONTENT = json.dumps(ROWS).encode()


@pytest.fixture(autouse=True)
def nowhere(tmp_path, monkeypatch):
    """An empty cache and no data folder; no test but the local server's may ask a network."""
    monkeypatch.setenv("DPO_TUTORIAL_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("DPO_TUTORIAL_DATA", raising=False)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


@pytest.fixture
def served(monkeypatch):
    """PandaLM's file on a local server, unknown hash; ``served`` is the content, which a test may change."""
    state = {"content": CONTENT, "asked": 0}

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            state["asked"] += 1
            self.send_response(200)
            self.send_header("Content-Length", str(state.get("promised", len(state["content"]))))
            self.end_headers()
            self.wfile.write(state["content"])

        def log_message(self, *arguments):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}/testset-v1.json"
    put(monkeypatch, external.File("pandalm/testset-v1.json", address, 1, None))
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    yield state
    server.shutdown()
    server.server_close()


def put(monkeypatch, file):
    source = external.CATALOGUE["pandalm"]
    changed = external.Source(source.title, source.licence, source.citation, source.page, (file,))
    monkeypatch.setitem(external.CATALOGUE, "pandalm", changed)


def test_offline_it_says_what_to_set(tmp_path, monkeypatch):
    with pytest.raises(external.MissingData, match=r"DPO_TUTORIAL_DATA .not set.") as caught:
        external.load("pandalm")
    message = str(caught.value)
    assert "pandalm/testset-v1.json" in message and "set DPO_TUTORIAL_DATA to that folder" in message
    assert str(tmp_path / "cache") in message and isinstance(caught.value, FileNotFoundError)
    monkeypatch.setenv("DPO_TUTORIAL_DATA", str(tmp_path / "elsewhere"))
    with pytest.raises(external.MissingData, match="elsewhere"):
        external.load("pandalm")
    assert not external.here("pandalm") and not external.catalogue()["here"].any()
    with pytest.raises(ValueError, match="'panda'; accepted are pandalm"):
        external.load("panda")


def test_a_file_of_another_content_is_not_used(tmp_path, monkeypatch):
    monkeypatch.setenv("DPO_TUTORIAL_DATA", str(tmp_path))
    (tmp_path / "pandalm").mkdir()
    (tmp_path / "pandalm/testset-v1.json").write_bytes(CONTENT)
    with pytest.raises(ValueError, match=r"sha256 \w{64}, expected cc154f90.*it was not used"):
        external.load("pandalm")


def test_a_download_is_announced_checked_and_kept(tmp_path, served):
    said = []
    table = external.load("pandalm", say=said.append)
    assert len(table) == 2 and len(said) == 1 and "0.0 MB" in said[0] and "127.0.0.1" in said[0]
    kept = tmp_path / "cache/data/pandalm/testset-v1.json"
    assert kept.read_bytes() == CONTENT and sorted(p.name for p in kept.parent.iterdir()) == [kept.name]
    external.load("pandalm", say=said.append)
    assert served["asked"] == 1 and external.here("pandalm")
    pins = json.loads((tmp_path / "cache/data/pins.json").read_text(encoding="utf-8"))
    assert pins == {"pandalm/testset-v1.json": hashlib.sha256(CONTENT).hexdigest()}
    kept.unlink()
    served["content"] = CONTENT + b" "  # another content at the same address: the pin of the first download tells
    with pytest.raises(ValueError, match=r"written down in .*pins.json at the first download"):
        external.load("pandalm", say=said.append)
    assert not kept.exists()
    served["content"] = CONTENT
    assert len(external.load("pandalm", say=said.append)) == 2


def test_a_known_hash_is_checked_before_anything_is_kept(tmp_path, served, monkeypatch):
    address = external.CATALOGUE["pandalm"].files[0].url
    put(monkeypatch, external.File("pandalm/testset-v1.json", address, 1, "0" * 64))
    with pytest.raises(ValueError, match="known to the course"):
        external.load("pandalm", say=lambda text: None)
    assert not (tmp_path / "cache/data/pandalm").exists()


def test_a_download_that_breaks_off_is_said_and_not_kept(tmp_path, served):
    """The server promises more than it sends; nothing that looks like the file is left, and the next try succeeds."""
    served["promised"] = len(CONTENT) + 1000
    with pytest.raises(external.MissingData, match=r"the download failed.*Remedy"):
        external.load("pandalm", say=lambda text: None)
    assert not list((tmp_path / "cache").rglob("*.json*"))
    del served["promised"]
    assert len(external.load("pandalm", say=lambda text: None)) == 2


def test_a_server_that_is_down(monkeypatch):
    put(monkeypatch, external.File("pandalm/testset-v1.json", "http://127.0.0.1:9/x.json", 1))
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    with pytest.raises(external.MissingData, match="the download failed"):
        external.load("pandalm", say=lambda text: None)
    with pytest.raises(external.MissingData, match="the network was not asked"):
        external.load("pandalm", network=False)


def test_comparisons_and_their_pairs(served):
    table = external.load("pandalm", say=lambda text: None)
    assert list(table["prompt"]) == ["Add.", "Add.\n\n2, 2"] and list(table["model2"]) == ["b", "c"]
    assert table[["votes1", "votes2", "votes_tied"]].to_numpy().tolist() == [[2, 0, 1], [0, 0, 3]]
    kept, tied = formats.from_votes(table)
    assert (kept["chosen"][0], kept["votes_chosen"][0], kept["votes_tied"][0], kept["chosen_position"][0]) == (
        "4",
        2,
        1,
        1,
    )
    assert list(tied["idx"]) == [1] and kept["source"][0] == "pandalm"


def test_the_catalogue_is_complete():
    for name, source in external.CATALOGUE.items():
        assert all(
            [source.title, source.licence, source.citation.startswith("arXiv "), source.page.startswith("https://")]
        )
        assert bool(source.files) != bool(source.hub), name
        assert all(file.url.startswith("https://") and file.size > 0 for file in source.files)
    table = external.catalogue()
    assert list(table["name"]) == list(external.CATALOGUE) and table["megabytes"].notna().sum() == 3


def test_hub_datasets_are_read_by_their_id(monkeypatch):
    import datasets

    asked = []

    def load_dataset(name, **options):
        asked.append((name, options))
        return [{"prompt": "p", "response_1": "a", "response_2": "b", "preference_strength": n} for n in (-2, 0, 1)]

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    frame = external.load("helpsteer2")
    assert asked == [("nvidia/HelpSteer2", {"split": "train", "streaming": True, "data_dir": "preference"})]
    assert list(frame["chosen"]) == ["a", "b"]  # the tie is no pair
    assert len(external.load("helpsteer2", limit=1)) == 1


def annotation(instruction, preference, one="base", two="out"):
    return {"instruction": instruction, "output_1": one, "output_2": two, "preference": preference}


def test_alpaca_evals_numbers_are_extracted(tmp_path):
    files = {}
    for model, rows in {
        "one": [annotation("b", 1.23456789, two="long output"), annotation("a", 2.0), annotation("c", None)],
        "two": [annotation("c", 1.5), annotation("a", 1.0, one="é")],
    }.items():
        files[model] = tmp_path / f"{model}.json"
        files[model].write_text(json.dumps(rows), encoding="utf-8")
    table = external.extract_alpaca_eval(files)
    assert table.to_numpy().tolist() == [
        ["one", 0, 2.0, 3, 4],
        ["one", 1, 1.234568, 11, 4],
        ["two", 0, 1.0, 3, 1],
        ["two", 2, 1.5, 3, 4],
    ]
    assert tool.differences(table, table) == []
    assert "preference differs in 1 rows" in tool.differences(table, table.assign(preference=[2.0, 1.2, 1.0, 1.5]))
    assert tool.differences(table, table.iloc[1:]) and tool.differences(table.iloc[1:], table)


def test_the_extraction_tool_works_on_a_clone(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(external, "ALPACA_MODELS", ("one",))
    folder = tmp_path / "clone"
    (folder / external.judged_path("one")).parent.mkdir(parents=True)
    (folder / external.judged_path("one")).write_text(json.dumps([annotation("a", 1.5)]), encoding="utf-8")
    board = folder / external.LEADERBOARD
    board.parent.mkdir(parents=True)
    names = ["win_rate", "standard_error", "length_controlled_winrate", "avg_length", "n_total"]
    pd.DataFrame([[9, 1, 2, 3, 4], [5] * 5], index=["one", "other"], columns=names).assign(mode="x").to_csv(board)
    command = ["tool", "--out", str(tmp_path / "out"), "--checkout", str(folder)]
    monkeypatch.setattr("sys.argv", command)
    assert tool.main() == 0
    made = (tmp_path / "out/alpaca_eval/annotations.csv.gz").read_bytes()
    monkeypatch.setattr("sys.argv", [*command, "--compare", str(tmp_path / "out")])
    assert tool.main() == 0 and "equal to the table" in capsys.readouterr().out
    assert (tmp_path / "out/alpaca_eval/annotations.csv.gz").read_bytes() == made
    monkeypatch.setenv("DPO_TUTORIAL_DATA", str(tmp_path / "out"))
    assert external.here("alpaca_eval") and len(external.load("alpaca_eval")) == 1
    assert external.alpaca_eval_leaderboard().loc["one", "win_rate"] == 9
    monkeypatch.setattr(external, "ALPACA_MODELS", ("one", "absent"))
    with pytest.raises(SystemExit, match="lacks results/absent"):
        tool.originals(folder)


@needs_data
def test_the_tables_in_the_data_folder(monkeypatch):
    monkeypatch.setenv("DPO_TUTORIAL_DATA", DATA)
    judges = external.load("pandalm_judges", network=False)
    assert len(judges) == 999 and judges["gpt_35_turbo"].isna().sum() == 25 and judges["pandalm_7b"].notna().all()
    kept, tied = formats.from_votes(external.load("pandalm", network=False))
    assert len(kept) + len(tied) == 999 and (kept["votes_chosen"] > kept["votes_rejected"]).all()
    table = external.load("alpaca_eval", network=False)
    assert set(table["model"]) == set(external.ALPACA_MODELS) and len(table) == 35_411
    ids = table.groupby("model")["instruction_id"]
    assert ids.max().max() == 804 and (ids.nunique() == ids.size()).all()
    rates = external.alpaca_eval_leaderboard(network=False)
    ours = 100 * (table.groupby("model")["preference"].mean() - 1)
    assert np.abs(ours[rates.index] - rates["win_rate"]).median() < 0.05
