"""The audit: every planted fault is found, none is invented on a clean file, and no text of the file is ever run."""

import json
import random
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dpo_tutorial.data import audit, audit_check, pairs
from dpo_tutorial.display import audit_page

REPO = Path(__file__).resolve().parents[1]
ROWS, MAX_LENGTH = 2000, 300
SORRY = "I am sorry, but I cannot help with that."
# Rows of each planted fault that sits in rows of its own; the others concern the file as a whole.
IN_ROWS = {"duplicates": 30, "near_duplicates": 30, "contradictions": 40, "leakage": 35, "alike": 40}
IN_ROWS |= {"repetition": 40, "damage": 24, "scores": 30, "tokens": 24}
IN_ALL = {"rejected", "prompts", "length", "length_classifier", "word_classifier", "votes", "position", "sources"}


def words(rng, n):
    return " ".join("".join(rng.choices("abcdefghij", k=3)) + rng.choice("aeiou") for _ in range(n))


def clean_row(rng, k):
    """A pair in which neither length nor words tell the label."""
    scores = sorted(rng.random() for _ in range(2))
    return {
        "prompt": f"{words(rng, 8)} {k}?",
        "chosen": words(rng, rng.randint(20, 40)),
        "rejected": words(rng, rng.randint(20, 40)),
        "source": rng.choice(["one", "two", "three"]),
        "score_chosen": scores[1] + 0.01,
        "score_rejected": scores[0],
        "votes_chosen": rng.choice([2, 3, 3]),
        "chosen_position": 1 + k % 2,
        "votes_rejected": 0,
    }


def clean(seed=0):
    rng = random.Random(seed)
    rows = [clean_row(rng, k) for k in range(ROWS)]
    test = [clean_row(rng, ROWS + k) for k in range(200)]
    return rows, test


def planted(seed=0):
    """Rows, test rows, and the positions at which each fault of ``IN_ROWS`` was planted."""
    rng = random.Random(seed)
    rows, test = clean(seed)
    for k, row in enumerate(rows):  # what concerns the whole file
        row["source"] = "one" if k % 25 else "two"
        row["votes_rejected"], row["votes_chosen"] = (1, 2) if k % 10 else (0, 3)
        row["chosen_position"] = 1 if rng.random() < 0.7 else 2
        if rng.random() < 0.8:
            row["chosen"] += " certainly " + words(rng, 15)
    for row in rows[-200:]:
        row["prompt"] = "Tell me a story."
    free = iter(range(ROWS - 200))
    originals = [next(free) for _ in range(60)]
    where = {fault: [next(free) for _ in range(n)] for fault, n in IN_ROWS.items()}
    for k, original in zip(where["duplicates"], originals, strict=False):
        rows[k] = rows[original] | {"chosen": rows[original]["chosen"].upper() + "  "}
    for k, original in zip(where["near_duplicates"], originals[30:], strict=True):
        rows[k] = rows[original] | {"chosen": rows[original]["chosen"] + " indeed"}
    half = len(where["contradictions"]) // 2
    for a, b in zip(where["contradictions"][:half], where["contradictions"][half:], strict=True):
        rows[b] = rows[a] | {"chosen": rows[a]["rejected"], "rejected": rows[a]["chosen"]}
    for n, k in enumerate(where["leakage"]):
        test[n]["prompt"] = rows[k]["prompt"] if n < 20 else rows[k]["prompt"] + " !"
    for n, k in enumerate(where["alike"]):
        rows[k]["rejected"] = rows[k]["chosen"].title() if n < 5 else rows[k]["chosen"] + "x"
    for k in where["repetition"]:
        rows[k]["rejected"] = SORRY
    for n, k in enumerate(where["damage"]):
        rows[k]["chosen"] += [" cafÃ©", " \ufffd", " \x1b[31m", "x " + "слово " * 60][n % 4]
    for k in where["scores"]:
        rows[k]["score_chosen"], rows[k]["score_rejected"] = rows[k]["score_rejected"], rows[k]["score_chosen"]
    for n, k in enumerate(where["tokens"]):
        long = words(rng, MAX_LENGTH + 10)
        if n % 2:
            rows[k]["prompt"] = long
        else:
            rows[k]["chosen"], rows[k]["rejected"] = f"{long} {words(rng, 200)}", f"{long} {words(rng, 200)}"
    return rows, test, where


def write(path, rows, broken=()):
    lines = [json.dumps(row) for row in rows]
    for k, line in enumerate(broken):
        lines.insert(100 * k, line)
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


def encode(texts):
    return [text.split() for text in texts]


BROKEN = ['{"prompt": "p"', '{"prompt": "p", "chosen": "", "rejected": "r"}', "[]", '{"chosen": "c"}'] * 5


@pytest.fixture(scope="module")
def reports(tmp_path_factory):
    folder = tmp_path_factory.mktemp("audit")
    rows, test = clean()
    faultless = audit.audit(
        write(folder / "clean.jsonl", rows),
        test=write(folder / "clean_test.jsonl", test),
        encode=encode,
        max_length=MAX_LENGTH,
    )
    rows, test, where = planted()
    faulty = audit.audit(
        write(folder / "planted.jsonl", rows, BROKEN),
        test=write(folder / "planted_test.jsonl", test),
        encode=encode,
        max_length=MAX_LENGTH,
    )
    return faultless, faulty, where


def test_nothing_is_invented_on_the_clean_file(reports):
    clean = reports[0]
    assert {c.key for c in clean.checks} == IN_ALL | set(IN_ROWS)
    assert [c.finding for c in clean.findings] == []
    assert clean.verdict == ["Nothing to mend was found by these checks."]
    assert all(c.severity == 0 for c in clean.checks)


def test_every_planted_fault_is_found(reports):
    found = {c.key for c in reports[1].findings}
    assert IN_ALL - found == set() and set(IN_ROWS) - found == set()


@pytest.mark.parametrize("fault", IN_ROWS)
def test_precision_and_recall_by_row(reports, fault):
    _, report, where = reports
    found = set(next(c for c in report.checks if c.key == fault).rows.tolist())
    truth = set(where[fault])
    recall, precision = len(found & truth) / len(truth), len(found & truth) / max(len(found), 1)
    assert recall >= 0.95 and precision >= 0.95, (fault, recall, precision, sorted(found ^ truth)[:10])


def test_broken_lines_are_counted_and_the_lines_of_rows_are_those_of_the_file(reports):
    _, report, where = reports
    assert len(report.frame) + len(report.rejected) == ROWS + len(BROKEN) and len(report.rejected) == len(BROKEN)
    text = Path(report.path).read_text(encoding="utf-8").split("\n")
    k = where["repetition"][-1]
    assert json.loads(text[report.lines[k] - 1])["prompt"] == report.frame["prompt"].iloc[k]


def test_the_verdict_is_three_things_the_gravest_first(reports):
    report = reports[1]
    assert len(report.verdict) == 3 and all("Remedy: " in sentence for sentence in report.verdict)
    severities = [c.severity for c in report.findings]
    assert severities == sorted(severities, reverse=True)
    assert len({topic[0].group or topic[0].key for topic in report.topics}) == len(report.topics)
    assert any("leak" in sentence for sentence in report.verdict)  # nothing measured on the test file would hold


def test_the_json_report_is_strict_json(reports):
    for report in reports[:2]:
        text = json.dumps(report.as_dict(), allow_nan=False)
        again = json.loads(text)
        assert again["rows"]["read"] == again["rows"]["kept"] + again["rows"]["rejected"]
        assert set(again["checks"]) == {c.key for c in report.checks}


def test_the_terminal_report_has_no_control_characters(reports):
    text = audit.text(reports[1])
    assert all(c.isprintable() or c == "\n" for c in text) and max(map(len, text.splitlines())) <= 100
    assert audit.printable("a\x1b[31m\nb\u202e") == "a\\x1b[31m b\\u202e"


class Tags(HTMLParser):
    def __init__(self):
        super().__init__()
        self.tags, self.attributes = [], []

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes += [(tag, *pair) for pair in attributes]


def test_the_page_shows_a_script_tag_and_runs_nothing(tmp_path):
    rows = clean()[0][:120]
    attack = "<script>alert(1)</script><img src=x onerror=alert(2)>"
    for row in rows[:8]:
        row["rejected"] = attack
        row["source"] = "</title><script>alert(3)</script>"
    rows[9]["chosen"] = rows[9]["rejected"] + " <b>"
    path = write(tmp_path / "<i>attack.jsonl", rows, ['{"prompt": "<script>alert(4)</script>"'])
    page = audit_page.page(audit.audit(path, encode=encode, max_length=20))
    tags = Tags()
    tags.feed(page)
    assert "script" not in tags.tags and "i" not in tags.tags and "&lt;script&gt;alert(1)" in page
    assert {a for _, a, _ in tags.attributes if a.startswith("on")} == set()
    assert all(value.startswith("data:image/png;base64,") for tag, name, value in tags.attributes if name == "src")
    assert ("meta", "http-equiv", "Content-Security-Policy") in tags.attributes
    assert "http:" not in page and "https:" not in page  # complete in itself
    assert all(any(t == "img" and n == "alt" and v for t, n, v in tags.attributes) for _ in [0])


def test_pages_of_odd_files(tmp_path):
    one = [{"prompt": "p", "chosen": "yes", "rejected": "no"}]
    talk = [{"prompt": [{"role": "user", "content": f"q{k}"}]} for k in range(3)]
    talk = [
        r | {n: [{"role": "assistant", "content": f"{n}{k}"}] for n in ("chosen", "rejected")}
        for k, r in enumerate(talk)
    ]
    for name, rows in (("one", one), ("talk", talk)):
        report = audit.audit(write(tmp_path / f"{name}.jsonl", rows), encode=encode)
        assert audit_page.page(report).startswith("<!doctype html>") and audit.text(report)
        assert "too few" in audit.text(report)
        json.dumps(report.as_dict(), allow_nan=False)


def test_files_without_pairs_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError):
        audit.audit(tmp_path / "absent.jsonl")
    path = write(tmp_path / "none.jsonl", [{"a": 1}])
    with pytest.raises(pairs.PairsError, match="none of 1 row is a preference pair"):
        audit.audit(path)
    good = write(tmp_path / "good.jsonl", clean()[0][:3])
    with pytest.raises(pairs.PairsError, match="none of 1 row"):
        audit.audit(good, test=path)


def test_the_interval_of_a_share():
    rng = np.random.default_rng(0)
    independent = audit_check.share(rng.random(400) < 0.5, np.arange(400))
    clustered = audit_check.share(np.repeat(rng.random(40) < 0.5, 10).astype(float), np.repeat(np.arange(40), 10))
    assert 0.08 < independent.high - independent.low < 0.12
    assert clustered.high - clustered.low > 2.5 * (independent.high - independent.low)
    certain = audit_check.share(np.ones(20), np.arange(20))
    assert certain.value == 1 and certain.low < 0.95  # twenty of twenty is no proof


TEXT = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20).map("x".__add__)
TEXT |= st.sampled_from(["<script>", "a b c d", "a b c d e", "\x1b]0;x\x07", "%s {0}", "$x_1$", "=1+1", "слово"])
ROW = st.fixed_dictionaries(
    {"prompt": TEXT, "chosen": TEXT, "rejected": TEXT},
    optional={
        "source": TEXT,
        "score_chosen": st.floats(allow_nan=False, allow_infinity=False),
        "score_rejected": st.floats(-1, 1),
        "votes_chosen": st.integers(0, 3),
        "votes_rejected": st.integers(0, 3),
        "annotator1": st.sampled_from([0, 1, "a", None, [1], {"b": 2}]),
        "annotator2": st.sampled_from([0, 1, "a", None]),
        "chosen_position": st.sampled_from([1, 2, "1", None, "first"]),
    },
)


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
@given(st.lists(ROW, min_size=1, max_size=30), st.integers(1, 30))
@pytest.mark.filterwarnings("error::RuntimeWarning")
def test_odd_rows_never_stop_the_audit(tmp_path, rows, max_length):
    path = write(tmp_path / "odd.jsonl", rows)
    kept, _ = pairs.load(path, on_error="reject")
    if len(kept):
        report = audit.audit(path, test=path, encode=encode, max_length=max_length)
        json.dumps(report.as_dict(), allow_nan=False)
        assert all(c.isprintable() or c == "\n" for c in audit.text(report))
        tags = Tags()
        tags.feed(audit_page.page(report) if len(rows) < 6 else "")
        assert "script" not in tags.tags


def run(*arguments):
    command = [sys.executable, "-m", "dpo_tutorial", "audit", *map(str, arguments)]
    return subprocess.run(command, cwd=REPO, capture_output=True, text=True)


def test_the_command_and_its_exit_status(tmp_path):
    path = write(tmp_path / "a.jsonl", planted()[0][:200])
    done = run(path, "--html", tmp_path / "a.html", "--json", tmp_path / "a.json", "--tokenizer", "data/lab_lm")
    assert done.returncode == 0 and "To mend first" in done.stdout, done.stderr
    assert json.loads((tmp_path / "a.json").read_text(encoding="utf-8"))["rows"]["read"] == 200
    assert "<h2>Length</h2>" in (tmp_path / "a.html").read_text(encoding="utf-8")
    for arguments, word in (
        ((tmp_path / "absent.jsonl",), "No such file"),
        ((path, "--html", tmp_path / "no" / "a.html"), "its folder does not exist"),
        ((path, "--tokenizer", tmp_path / "no"), "could not be loaded"),
    ):
        done = run(*arguments)
        assert done.returncode == 2 and word in done.stderr and "Traceback" not in done.stderr
