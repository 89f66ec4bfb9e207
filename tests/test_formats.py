"""Every format becomes prompt, chosen, rejected; files of every kind are read; 10,000 hostile lines lose no row."""

import gzip
import json
import string

import pandas as pd
import pyarrow
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from dpo_tutorial.data import formats, pairs, readers

USER = {"role": "user", "content": "What is two plus two?"}
FOUR, FIVE = ({"role": "assistant", "content": text} for text in ("Four.", "Five."))
TALK = "\n\nHuman: Hi\n\nAssistant: Hello.\n\nHuman: Two plus two?\n\nAssistant:"
# The row as it stands in a file, the format, and what must come out.
ROWS = [
    ({"prompt": "p", "chosen": "c", "rejected": "r"}, formats.EXPLICIT, ("p", "c", "r")),
    ({"prompt": [USER], "chosen": [FOUR], "rejected": [FIVE]}, formats.MESSAGES, ([USER], [FOUR], [FIVE])),
    (
        {"chosen": "The sky is blue.", "rejected": "The sky is green."},
        formats.IMPLICIT,
        ("The sky is", " blue.", " green."),
    ),
    ({"chosen": "a b black", "rejected": "a b blue"}, formats.IMPLICIT, ("a b", " black", " blue")),
    ({"chosen": "So it goes on", "rejected": "So it goes"}, formats.IMPLICIT, ("So it", " goes on", " goes")),
    ({"chosen": "blue", "rejected": "black"}, formats.IMPLICIT, None),
    ({"chosen": [USER, FOUR], "rejected": [USER, FIVE]}, formats.IMPLICIT_MESSAGES, ([USER], [FOUR], [FIVE])),
    (
        {"prompt": USER["content"], "chosen": [USER, FOUR], "rejected": [USER, FIVE]},
        formats.TEXT_PROMPT,
        ([USER], [FOUR], [FIVE]),
    ),
    (
        {"prompt": USER["content"], "chosen": [FOUR], "rejected": [FIVE]},
        formats.TEXT_PROMPT,
        ([USER], [FOUR], [FIVE]),
    ),
    (
        {"chosen": TALK + " It is four.", "rejected": TALK + " It is five.\n\nHuman: No.\n\nAssistant: Four."},
        formats.TRANSCRIPT,
        (TALK, " It is four.", " It is five.\n\nHuman: No.\n\nAssistant: Four."),
    ),
    (
        {"instruction": "Add.", "input": "2, 2", "chosen": "4", "rejected": "5"},
        formats.INSTRUCTION,
        ("Add.\n\n2, 2", "4", "5"),
    ),
    ({"instruction": "Add.", "input": "", "chosen": "4", "rejected": "5"}, formats.INSTRUCTION, ("Add.", "4", "5")),
    ({"instruction": "Add.", "chosen": "4", "rejected": "5"}, formats.INSTRUCTION, ("Add.", "4", "5")),
    (
        {"prompt": "p", "response1": "a", "response2": "b", "annotator1": 2, "annotator2": "Tie", "annotator3": 2},
        formats.VOTED,
        ("p", "b", "a"),
    ),
    ({"prompt": "p", "response_a": "a", "response_b": "b", "winner": "a"}, formats.VOTED, ("p", "a", "b")),
    ({"prompt": "p", "response_1": "a", "response_2": "b", "preference_strength": 2}, formats.VOTED, ("p", "b", "a")),
    ({"prompt": "p", "output_1": "a", "output_2": "b", "votes": [1, 1, None]}, formats.VOTED, ("p", "a", "b")),
    (
        {"instruction": "i", "input": "x", "response1": "a", "response2": "b", "votes1": 0, "votes2": 3},
        formats.VOTED,
        ("i\n\nx", "b", "a"),
    ),
]


def write(path, rows, end="\n"):
    path.write_text("".join(json.dumps(row) + end for row in rows), encoding="utf-8")
    return path


@pytest.mark.parametrize(("row", "form", "expected"), ROWS, ids=range(len(ROWS)))
def test_each_format_becomes_a_pair(tmp_path, row, form, expected):
    path = write(tmp_path / "a.jsonl", [row | {"note": 7}])
    kept, rejected = pairs.load(path, on_error="reject")
    assert kept.attrs["format"] == form
    if expected is None:
        assert not len(kept) and rejected["field"][0] == "prompt" and "share no beginning" in rejected["reason"][0]
        return
    assert [kept[name][0] for name in pairs.TEXTS] == list(expected) and kept["note"][0] == 7
    assert kept["prompt_id"][0] == pairs.prompt_id(expected[0])
    pairs.save(kept, tmp_path / "b.jsonl")
    again = pairs.load(tmp_path / "b.jsonl")
    assert [again[name][0] for name in pairs.TEXTS] == list(expected)


def test_the_common_beginning_is_trls_unless_it_would_cut_a_word(tmp_path):
    from trl.data_utils import extract_prompt

    for row, form, expected in ROWS:
        if (
            expected
            and form in (formats.IMPLICIT, formats.IMPLICIT_MESSAGES)
            and "goes" not in str(row)
            and "black" not in str(row)
        ):
            ours = formats.to_pair(row, form)
            assert {name: ours[name] for name in pairs.TEXTS} == extract_prompt(row)
    assert extract_prompt({"chosen": "a b black", "rejected": "a b blue"})["prompt"] == "a b bl"


def test_nothing_of_a_transcript_is_lost(tmp_path):
    row = ROWS[9][0]
    pair = formats.to_pair(row, formats.TRANSCRIPT)
    assert all(pair["prompt"] + pair[name] == row[name] for name in ("chosen", "rejected"))


def test_votes_are_counted_and_a_tie_is_rejected(tmp_path):
    base = {"prompt": "p", "response1": "a", "response2": "b"}
    votes = [(1, 1, 2), (0, 1, 2), (0, 0, 1), (2, 2, 2), (0, 0, 0)]
    rows = [base | {f"annotator{k + 1}": vote for k, vote in enumerate(row)} for row in votes]
    rows += [base, base | {"annotator1": "neither"}, base | {"annotator1": True}]
    kept, rejected = pairs.load(write(tmp_path / "a.jsonl", rows), on_error="reject")
    counts = kept[["votes_chosen", "votes_rejected", "votes_tied", "chosen_position"]].to_numpy().tolist()
    assert counts == [[2, 1, 0, 1], [1, 0, 2, 1], [3, 0, 0, 2]]
    assert list(rejected["line"]) == [2, 5, 6, 7, 8]
    assert "a tie: 1 votes for each response, 1 for neither" in rejected["reason"][0]
    assert "no vote" in rejected["reason"][2] and list(rejected["field"][3:]) == ["annotator1"] * 2
    frame = pd.DataFrame(rows[:5]).assign(model1="m")
    again, tied = formats.from_votes(frame)
    assert list(again["chosen"]) == list(kept["chosen"]) and list(again["model1"]) == ["m"] * 3
    assert list(tied.index) == [1, 4] and "a tie" in tied["reason"][1] and len(again) + len(tied) == len(frame)


def test_one_file_holds_the_format_of_most_of_its_first_rows(tmp_path):
    odd = {"chosen": "The sky is blue.", "rejected": "The sky is green."}
    good = {"prompt": "p", "chosen": "c", "rejected": "r"}
    kept, rejected = pairs.load(write(tmp_path / "a.jsonl", [odd, good, good]), on_error="reject")
    assert len(kept) == 2 and list(rejected["line"]) == [1] and rejected["field"][0] == "prompt"
    kept, rejected = pairs.load(write(tmp_path / "b.jsonl", [odd, good, odd]), on_error="reject")
    assert len(kept) == 2 and "one file holds one format" in rejected["reason"][0]


def test_arrays_are_read_and_a_fault_costs_one_row_where_the_rest_can_be_told_apart(tmp_path):
    good = {"prompt": "p", "chosen": "c", "rejected": "r"}
    path = tmp_path / "a.json"
    path.write_text(json.dumps([good, {"prompt": 3}, good], indent=1), encoding="utf-8")
    kept, rejected = pairs.load(path, on_error="reject")
    assert len(kept) == 2 and list(rejected["line"]) == [7]
    path.write_text("\ufeff [ ]", encoding="utf-8")
    assert [len(frame) for frame in pairs.load(path, on_error="reject")] == [0, 0]
    for broken in ("[%s, {'x'}, %s]", "[%s %s]", "[%s,\n" + "[" * 9999):
        text = broken.replace("%s", json.dumps(good))
        path.write_text(text, encoding="utf-8")
        kept, rejected = pairs.load(path, on_error="reject")
        assert len(rejected) == 1 and "not JSON from here on" in rejected["reason"][0]
        assert text.endswith(rejected["raw"][0])  # what could not be read is given back whole
    path.write_bytes(b'[{"prompt": "\xff"}, ' + json.dumps(good).encode() + b"]")
    kept, rejected = pairs.load(path, on_error="reject")
    assert len(kept) == 1 and "byte 0xff" in rejected["reason"][0] and "\\xff" in rejected["raw"][0]


def test_json_lines_named_json_and_gzip(tmp_path):
    good = {"prompt": "p", "chosen": "c", "rejected": "r"}
    assert len(pairs.load(write(tmp_path / "a.json", [good, good]))) == 2
    with gzip.open(tmp_path / "a.jsonl.gz", "wt") as file:
        file.write(json.dumps(good))
    assert len(pairs.load(tmp_path / "a.jsonl.gz")) == 1
    with gzip.open(tmp_path / "a.json.gz", "wt") as file:
        file.write(json.dumps([good] * 3))
    assert len(pairs.load(tmp_path / "a.json.gz", limit=2)) == 2


def test_a_broken_archive_is_named(tmp_path):
    path = tmp_path / "a.jsonl.gz"
    whole = gzip.compress(json.dumps({"prompt": "p", "chosen": "c", "rejected": "r"}).encode() * 50)
    for content in (whole[:-12], whole[:20] + b"\x00" * 9 + whole[29:], b"no archive"):
        path.write_bytes(content)
        with pytest.raises(pairs.PairsError, match=r"a\.jsonl\.gz.*a whole gzip file"):
            pairs.load(path, on_error="reject")


def test_parquet_of_every_shape(tmp_path):
    path = tmp_path / "a.parquet"
    day = pd.Timestamp("2026-01-02")
    rows = [row | {"day": day, "bytes": b"\xff"} for row, form, _ in ROWS if form == formats.MESSAGES] * 2
    parquet.write_table(pyarrow.Table.from_pylist([*rows, rows[0] | {"chosen": None}]), path)
    kept, rejected = pairs.load(path, on_error="reject")
    assert kept["chosen"][1] == [FOUR] and kept["day"][0].startswith("2026-01-02") and kept["bytes"][0] == "/w=="
    assert list(rejected["line"]) == [3] and rejected["field"][0] == "chosen"
    path.write_bytes(b"PAR1 not really")
    with pytest.raises(pairs.PairsError, match=r"a\.parquet.*Parquet"):
        pairs.load(path, on_error="reject")


def test_hub_ids(tmp_path, monkeypatch):
    import datasets

    asked = []

    def load_dataset(name, **options):
        asked.append((name, options))
        return [row for row, form, _ in ROWS if form == formats.TEXT_PROMPT]

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    kept = pairs.load("owner/name", split="test", data_dir="x")
    assert asked == [("owner/name", {"split": "test", "streaming": True, "data_dir": "x"})]
    assert list(kept["source"]) == ["owner/name"] * 2 and kept["prompt"][0] == [USER]
    monkeypatch.setattr(
        datasets, "load_dataset", lambda *a, **k: (_ for _ in ()).throw(ConnectionError("no network"))
    )
    with pytest.raises(pairs.PairsError, match=r"no network.*connect to the network"):
        pairs.load("owner/name")
    with pytest.raises(ValueError, match="only datasets of the hub and folders take options"):
        pairs.load(write(tmp_path / "a.jsonl", [ROWS[0][0]]), split="test")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "owner").mkdir()
    write(tmp_path / "owner" / "name", [ROWS[0][0]])
    assert not readers.is_hub_id("owner/name") and len(pairs.load("owner/name")) == 1
    with pytest.raises(FileNotFoundError):
        pairs.load("owner/other.jsonl")


def test_a_folder_laid_out_as_on_the_hub_is_read_by_the_real_library(tmp_path, monkeypatch):
    """The real ``datasets`` call, streamed and offline: a card that names the files of each split, rows in shards."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    repository = tmp_path / "owner" / "name"
    (repository / "data").mkdir(parents=True)
    rows = [{"prompt": f"q{k}", "chosen": f"good {k}", "rejected": f"bad {k}"} for k in range(6)]
    write(repository / "data" / "train-00000-of-00002.jsonl", rows[:2])
    write(repository / "data" / "train-00001-of-00002.jsonl", rows[2:4])
    write(repository / "data" / "test-00000-of-00001.jsonl", rows[4:])
    card = "---\nconfigs:\n- config_name: default\n  data_files:\n"
    card += "".join(f"  - split: {split}\n    path: data/{split}-*\n" for split in ("train", "test"))
    (repository / "README.md").write_text(card + "---\nA card.\n", encoding="utf-8")
    train = pairs.load(repository)
    assert list(train["prompt"]) == ["q0", "q1", "q2", "q3"] and set(train["source"]) == {"name"}
    assert list(pairs.load(str(repository), split="test")["chosen"]) == ["good 4", "good 5"]
    assert len(pairs.load(repository, limit=3)) == 3
    monkeypatch.chdir(tmp_path)
    assert list(pairs.load("owner/name", split="test")["prompt"]) == ["q4", "q5"]
    with pytest.raises(pairs.PairsError, match=r"split 'dev'.*dev"):
        pairs.load(repository, split="dev")
    (tmp_path / "empty").mkdir()
    with pytest.raises(pairs.PairsError, match=r"no dataset can be read from this folder.*data file's own path"):
        pairs.load(tmp_path / "empty")


TEXT = st.text(st.characters(codec=None), max_size=5) | st.sampled_from(["a b", "a c", TALK + " x", TALK + " y", "1"])
MESSAGE = st.sampled_from([USER, FOUR, FIVE, {"role": "user"}, {"role": "user", "content": ""}, 3])
VALUE = st.one_of(
    TEXT,
    st.lists(MESSAGE, max_size=3),
    st.sampled_from([None, True, 0, 1, 2, -1, 10**30, 1.5, float("nan"), [], {}, [[]], [1, "tie"], "Tie"]),
)
NAMES = [*pairs.COLUMNS, *pairs.SCORES, *pairs.VOTES, "instruction", "input", "response1", "response2", "votes"]
NAMES += ["annotator1", "annotator2", "preference_strength", "votes1", "votes2", "winner", "note"]
OBJECT = st.dictionaries(st.sampled_from(NAMES) | TEXT, VALUE, max_size=6)
NEAR = st.tuples(st.sampled_from([row for row, _, _ in ROWS]), OBJECT, st.booleans()).map(
    lambda t: t[0] | t[1] if t[2] else {**t[1], **t[0]}
)
LINE = st.tuples(st.one_of(NEAR, NEAR, OBJECT, VALUE), st.booleans()).map(
    lambda t: json.dumps(t[0], ensure_ascii=t[1]).encode("utf-8", "surrogatepass")
)
HOSTILE = st.one_of(
    LINE, LINE, LINE, st.binary(max_size=12), st.sampled_from([b"[" * 5000, b"1" * 5000, b"{", b"\x00"])
)
EXAMPLES, LINES = 250, 40  # together 10,000 lines and more


@settings(
    max_examples=EXAMPLES,
    deadline=None,
    suppress_health_check=list(HealthCheck),
    phases=[Phase.explicit, Phase.generate],
    derandomize=True,
)
@given(st.lists(HOSTILE, min_size=LINES, max_size=LINES + 5))
def test_ten_thousand_hostile_lines_lose_no_row(tmp_path, lines):
    lines = [line.replace(b"\n", b" ") for line in lines]
    path = tmp_path / "hostile.jsonl"
    path.write_bytes(b"\n".join(lines))
    stripped = [line.removesuffix(b"\r").removeprefix(readers._BOM) for line in lines]
    kept, rejected = pairs.load(path, on_error="reject")
    assert len(kept) + len(rejected) == sum(bool(line.strip()) for line in stripped)
    for row in kept.to_dict("records"):
        assert row["chosen"] != row["rejected"] and all(len(row[name]) for name in pairs.TEXTS)
    pairs.save_rejected(rejected, tmp_path / "rejected.jsonl")
    if len(kept):
        pairs.save(kept, tmp_path / "kept.jsonl")
        assert list(pairs.load(tmp_path / "kept.jsonl")["chosen"]) == list(kept["chosen"])


def test_the_documentation_names_every_format():
    text = " ".join(formats.FORMATS)
    assert len(formats.FORMATS) == len(set(formats.FORMATS)) == 8 and set(text) <= set(string.printable)
