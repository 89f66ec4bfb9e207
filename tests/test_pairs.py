"""data/pairs.py: what is refused and how it is said, and that nothing gets lost."""

import json
import os
import stat

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dpo_tutorial.data import pairs, readers

GOOD = {"prompt": "The film was", "chosen": " a delight.", "rejected": " a bore."}


def write(folder, *lines, end=b"\n"):
    path = folder / "my.jsonl"
    path.write_bytes(b"".join((line if isinstance(line, bytes) else line.encode()) + end for line in lines))
    return path


def with_(**changes):
    return json.dumps({**GOOD, **changes})


def without(name):
    return json.dumps({key: value for key, value in GOOD.items() if key != name})


# A hostile line, the field the message must name ("" for the whole line), words that must stand in it.
HOSTILE = [
    ("hello", "", ["not JSON", "hello", "one JSON object per line"]),
    ('{"prompt": "a",', "", ["not JSON"]),
    ("[1, 2]", "", ["[1, 2] is not an object", "own line"]),
    ("null", "", ["null is not an object"]),
    (b'{"prompt": "\xff"}', "", ["byte 0xff at position 12 is not UTF-8", "save the file as UTF-8"]),
    ("1" * 5000, "", ["one JSON object per line"]),
    ("[" * 100_000, "", ["nested brackets"]),
    (without("prompt"), "prompt", ["missing", '"chosen", "rejected"', "rename"]),
    (without("chosen"), "chosen", ["missing"]),
    (without("rejected"), "rejected", ["missing"]),
    ("{}", "prompt", ["missing (the line has no field)"]),
    (with_(chosen=None), "chosen", ["null is not text", "drop the row"]),
    (with_(rejected=True), "rejected", ["true is not text"]),
    (with_(rejected=3.5), "rejected", ["3.5 is not text"]),
    (with_(prompt={"a": 1}), "prompt", ['{"a": 1} is not text']),
    (with_(prompt=""), "prompt", ['"" is empty']),
    (with_(chosen=" \t\n\u00a0\u2028"), "chosen", ["is empty"]),
    (with_(chosen="\u200b"), "chosen", ["is empty"]),
    (with_(rejected=GOOD["chosen"]), "rejected", ["the same as chosen", "a delight", "drop the row"]),
    (with_(chosen="cut \ud83d"), "chosen", ["surrogate", "\\ud83d"]),
    (with_(note=["\udc00"]), "note", ["surrogate"]),
    ('{"note\\ud800": 1, ' + with_()[1:], "note\ud800", ["surrogate", '"note\\ud800"']),
    (with_(score_chosen=float("nan")), "score_chosen", ["NaN", "finite", "null"]),
    (with_(note=float("-inf")), "note", ["-Infinity", "finite"]),
    (with_()[:-1] + ', "note": 1e999}', "note", ["Infinity", "finite"]),
    (with_(note=[float("inf")]), "note", ["Infinity"]),
    (with_()[:-1] + ', "chosen": "x"}', "chosen", ["stands twice", "a delight", '"x"']),
    (with_(score_rejected="3"), "score_rejected", ['"3"', "finite number"]),
    (with_(score_rejected=True), "score_rejected", ["true"]),
    (with_(score_rejected=10**400), "score_rejected", ["finite number"]),
    (with_(votes_chosen=-1), "votes_chosen", ["-1", "count"]),
    (with_(votes_chosen=1.5), "votes_chosen", ["1.5", "count"]),
    (with_(prompt_id=""), "prompt_id", ["not empty"]),
    (with_(prompt_id=1.5), "prompt_id", ["1.5"]),
    (with_(source=7), "source", ["7"]),
    (with_(chosen=[{"role": "assistant", "content": "x"}]), "rejected", ["a bore", "messages", "all are"]),
    (
        without("prompt").replace('" a delight."', '[{"role": "user", "content": "x"}]'),
        "rejected",
        ["a bore", "messages", "all are"],
    ),
    (with_(prompt=[{"role": "user", "content": "x"}]), "chosen", ["a delight", "messages", "all are"]),
]


@pytest.mark.parametrize(("line", "field", "words"), HOSTILE, ids=[f"{i:02}" for i in range(len(HOSTILE))])
def test_the_error_names_file_line_field_value_and_remedy(tmp_path, line, field, words):
    first = "" if isinstance(line, str) and '"role"' in line else with_()  # a first good row would fix the shape
    path = write(tmp_path, first, line)
    with pytest.raises(pairs.PairsError) as caught:
        pairs.load(path)
    message = str(caught.value)
    assert isinstance(caught.value, ValueError)
    assert (caught.value.path, caught.value.line, caught.value.field) == (str(path), 2, field)
    assert f"{path}, line 2" in message and "accepted: " in message and "remedy: " in message
    assert not field or f"field {json.dumps(field)}" in message
    assert [word for word in words if word not in message] == []
    message.encode("ascii")  # printable in every terminal
    assert len(message) < 600


@pytest.mark.parametrize("line", [line for line, _, _ in HOSTILE if "role" not in str(line)])
def test_reject_keeps_the_good_rows_and_returns_the_others(tmp_path, line):
    path = write(tmp_path, with_(), line, with_(prompt="Next"))
    kept, rejected = pairs.load(path, on_error="reject")
    assert list(kept["prompt"]) == ["The film was", "Next"]
    assert list(rejected["line"]) == [2] and list(rejected.columns) == ["line", "field", "reason", "raw"]
    raw = line if isinstance(line, str) else line.decode("utf-8", "backslashreplace")
    assert rejected["raw"][0] == raw
    pairs.save_rejected(rejected, tmp_path / "rejected.jsonl")
    again = [json.loads(text) for text in (tmp_path / "rejected.jsonl").read_text().splitlines()]
    assert again == rejected.to_dict("records")


def test_the_columns_and_their_defaults(tmp_path):
    path = write(
        tmp_path, with_(), with_(prompt_id=7, source="web", score_chosen=1, votes_chosen=None), with_(extra=3)
    )
    frame = pairs.load(path)
    assert list(frame.columns) == [*pairs.COLUMNS, "score_chosen", "votes_chosen", "extra"]
    assert list(frame["prompt_id"]) == [pairs.prompt_id("The film was"), "7", pairs.prompt_id("The film was")]
    assert list(frame["source"]) == ["my.jsonl", "web", "my.jsonl"]
    assert frame["score_chosen"].dtype == "float64" and np.isnan(frame["score_chosen"][0])
    assert frame["extra"].dtype == "Int64" and frame["extra"][2] == 3


def test_a_bom_crlf_blank_lines_and_a_missing_last_line_end_reject_nothing(tmp_path):
    path = write(tmp_path, b"\xef\xbb\xbf" + with_().encode(), "", "  \t", with_(), end=b"\r\n")
    path.write_bytes(path.read_bytes() + b"\xef\xbb\xbf" + with_().encode())
    kept, rejected = pairs.load(path, on_error="reject")
    assert (len(kept), len(rejected)) == (3, 0)
    assert list(kept["chosen"]) == [" a delight."] * 3
    _, rejected = pairs.load(write(tmp_path, "bad", with_(), end=b"\r\n"), on_error="reject")
    assert list(rejected["raw"]) == ["bad"]


@pytest.mark.parametrize("character", ["\u2028", "\u2029", "\x85", "\x0b", "\x0c", "\x1c"])
def test_line_ends_of_other_worlds_do_not_split_a_line(tmp_path, character):
    text = f"one{character}two"
    raw = '{"prompt": "p", "chosen": "%s", "rejected": "r"}' % (text if ord(character) > 0x20 else "one\\u%04xtwo")
    raw = raw % ord(character) if ord(character) < 0x20 else raw
    frame = pairs.load(write(tmp_path, raw))
    assert list(frame["chosen"]) == [text]
    pairs.save(frame, tmp_path / "out.jsonl")
    assert len((tmp_path / "out.jsonl").read_text().splitlines()) == 1  # splitlines splits at all of them
    assert list(pairs.load(tmp_path / "out.jsonl")["chosen"]) == [text]


def test_messages_are_accepted_and_one_file_holds_one_shape(tmp_path):
    talk = {
        "prompt": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}],
        "chosen": [{"role": "assistant", "content": "Hello."}],
        "rejected": [{"role": "assistant", "content": "What?"}],
    }
    bad = {**talk, "chosen": [{"role": "assistant", "content": None}]}
    path = write(tmp_path, json.dumps(talk), with_(), json.dumps(bad), json.dumps(talk))
    kept, rejected = pairs.load(path, on_error="reject")
    assert list(rejected["line"]) == [2, 3] and list(rejected["field"]) == ["prompt", "chosen"]
    assert kept["prompt"][0] == talk["prompt"] and kept["prompt_id"].nunique() == 1
    pairs.save(kept, tmp_path / "out.jsonl")
    assert pairs.load(tmp_path / "out.jsonl").equals(kept)
    for name in pairs.TEXTS:  # as parquet files give them
        kept[name] = pd.Series([np.array(messages, dtype=object) for messages in kept[name]], dtype=object)
    pairs.save(kept, tmp_path / "arrays.jsonl")
    assert (tmp_path / "arrays.jsonl").read_bytes() == (tmp_path / "out.jsonl").read_bytes()


def test_a_file_without_rows(tmp_path):
    path = write(tmp_path, "", " ")
    with pytest.raises(pairs.PairsError, match=r"my\.jsonl: no row at all"):
        pairs.load(path)
    kept, rejected = pairs.load(path, on_error="reject")
    assert len(kept) == len(rejected) == 0 and list(kept.columns) == list(pairs.COLUMNS)
    with pytest.raises(FileNotFoundError):
        pairs.load(tmp_path / "absent.jsonl")
    with pytest.raises(ValueError, match="accepted are 'raise' and 'reject'"):
        pairs.load(path, on_error="ignore")


# Lines that are almost rows: fields present or not, values of every kind, keys twice, and plain bytes.
TEXT = st.text(st.characters(codec=None), max_size=6)
WORDS = TEXT | TEXT.map("w".__add__) | st.sampled_from(["a", "b", "c"])
VALUE = st.one_of(
    TEXT,
    st.none(),
    st.booleans(),
    st.integers(),
    st.integers(-(10**25), 10**25),
    st.floats(),
    st.lists(TEXT, max_size=2),
)
FIELD = st.tuples(
    st.sampled_from([*pairs.COLUMNS, *pairs.SCORES, *pairs.VOTES, "note", "Note"]) | TEXT,
    st.one_of(TEXT, TEXT, VALUE),
)
ROW = st.tuples(st.lists(FIELD, max_size=4), WORDS, WORDS, WORDS, st.sampled_from([0, 3, 3, 3])).map(
    lambda t: [*zip(pairs.TEXTS, t[1:4], strict=True)][: t[4]] + [f for f in t[0] if f[0] not in pairs.TEXTS[: t[4]]]
)
OBJECT = st.tuples(ROW, st.booleans()).map(
    lambda t: ("{" + ", ".join(f"{json.dumps(k)}: {json.dumps(v, ensure_ascii=t[1])}" for k, v in t[0]) + "}").encode(
        "utf-8", "surrogatepass"
    )
)
LINE = st.one_of(
    OBJECT, OBJECT, OBJECT, st.binary(max_size=20), st.sampled_from([b"", b" ", b"\r", b"{}", b"[]", b"\x00"])
)


@settings(max_examples=500, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(LINE, max_size=12), st.sampled_from([b"\n", b"\r\n"]))
def test_no_row_is_lost_and_what_is_kept_is_sound(tmp_path, lines, end):
    path = write(tmp_path, *lines, end=end)
    physical = [line.removeprefix(readers._BOM) for line in path.read_bytes().split(b"\n")]
    read = sum(bool(line.removesuffix(b"\r").removeprefix(readers._BOM).strip()) for line in physical)
    kept, rejected = pairs.load(path, on_error="reject")
    assert len(kept) + len(rejected) == read
    assert all(isinstance(reason, str) and "remedy: " in reason for reason in rejected["reason"])
    for row in kept.to_dict("records"):
        assert all(isinstance(row[name], str) and row[name].strip() for name in pairs.COLUMNS)
        assert row["chosen"] != row["rejected"]
    if len(rejected):
        with pytest.raises(pairs.PairsError, match=f"line {rejected['line'][0]}[:,]"):
            pairs.load(path)
    if len(kept):  # what was kept is written, read and written again without a changed byte
        one, two = tmp_path / "one.jsonl", tmp_path / "two.jsonl"
        pairs.save(kept, one)
        again = pairs.load(one)
        pairs.save(again, two)
        assert one.read_bytes() == two.read_bytes() and len(again) == len(kept)
        assert list(again["chosen"]) == list(kept["chosen"])


def frame(**changes):
    return pd.DataFrame(
        {"prompt_id": ["1", "2"], "prompt": "p", "chosen": "c", "rejected": "r", "source": "s"} | changes
    )


def test_save_writes_what_is_there(tmp_path):
    path = tmp_path / "out.jsonl"
    saved = frame(
        score_chosen=[1, np.nan], n=np.array([3, 4], dtype="int32"), x=np.float32([0.5, 2]), tags=[["a"], None]
    )
    pairs.save(saved, path)
    assert [json.loads(line) for line in path.read_text().splitlines()] == [
        {"prompt_id": "1", "prompt": "p", "chosen": "c", "rejected": "r", "source": "s"}
        | {"score_chosen": 1.0, "n": 3, "x": 0.5, "tags": ["a"]},
        {"prompt_id": "2", "prompt": "p", "chosen": "c", "rejected": "r", "source": "s"}
        | {"score_chosen": None, "n": 4, "x": 2.0, "tags": None},
    ]
    assert os.listdir(tmp_path) == ["out.jsonl"]
    pairs.save(frame(score_chosen=[1, 2]), path)  # whole numbers too: one spelling, whatever the column's type
    assert [json.loads(line)["score_chosen"] for line in path.read_text().splitlines()] == [1.0, 2.0]
    assert '"score_chosen": 1.0}' in path.read_text()
    umask = os.umask(0)
    os.umask(umask)
    assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~umask


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        (frame(x=[1.0, np.inf]), ["line 2", '"x"', "Infinity", "finite"]),
        (frame(x=[None, [float("nan")]]), ["line 2", '"x"', "NaN"]),
        (frame(chosen=["c", None]), ["line 2", '"chosen"', "null is not text"]),
        (frame(rejected="c"), ["line 1", '"rejected"', "the same as chosen"]),
        (frame(prompt_id=["1", None]), ["line 2", '"prompt_id"', "null"]),
        (frame(source=["s", 3]), ["line 2", '"source"', "3"]),
        (frame(x=[1, {1, 2}]), ["line 2", "set", "JSON"]),
        (frame(x=pd.Series(["a", "\ud800"], dtype=object)), ["line 2", '"x"', "surrogate"]),
        (frame().drop(columns="source"), ["source missing", "frame.assign"]),
        (frame().iloc[:0], ["no row"]),
        (pd.concat([frame(), frame()], axis=1), ["names that are different"]),
    ],
)
def test_save_refuses_and_leaves_the_old_file(tmp_path, bad, words):
    path = tmp_path / "out.jsonl"
    path.write_text("old")
    with pytest.raises(pairs.PairsError) as caught:
        pairs.save(bad, path)
    assert [word for word in words if word not in str(caught.value)] == []
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["out.jsonl"]


def test_an_interrupted_save_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "out.jsonl"
    path.write_text("old")

    def interrupted(descriptor):
        raise KeyboardInterrupt

    monkeypatch.setattr(pairs.os, "fsync", interrupted)
    with pytest.raises(KeyboardInterrupt):
        pairs.save(frame(), path)
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["out.jsonl"]


def test_save_follows_a_link(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link.jsonl").symlink_to(tmp_path / "real" / "out.jsonl")
    pairs.save(frame(), tmp_path / "link.jsonl")
    assert (tmp_path / "link.jsonl").is_symlink() and len(pairs.load(tmp_path / "real" / "out.jsonl")) == 2
