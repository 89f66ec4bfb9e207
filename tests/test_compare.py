"""Comparisons of policies: both orders, nonsense from the judge, resuming, the summary and the page."""

import html.parser
import json

import numpy as np
import pytest

from dpo_tutorial.data import judges
from dpo_tutorial.evaluation import capabilities, compare, report_html

PROMPTS = [f"prompt {k}" for k in range(30)]


def short(prompts, seed):
    return [f"{prompt} seed {seed}" for prompt in prompts]


def long(prompts, seed):
    return [f"{prompt} seed {seed} and some more words" for prompt in prompts]


def longer(comparisons):
    return ["first" if len(one.first) > len(one.second) else "second" for one in comparisons]


def nonsense_for_a_third(comparisons):
    """A judge that answers every third prompt with something that is no verdict, each time something else."""
    odd = ["As an AI ...", None, 7, ["first"], ""]
    return [
        odd[int(one.prompt.split()[1]) % len(odd)] if int(one.prompt.split()[1]) % 3 == 0 else answer
        for one, answer in zip(comparisons, longer(comparisons), strict=True)
    ]


def run(judge=longer, policies=None, prompts=PROMPTS, **options):
    policies = policies or {"long": long, "short": short}
    return compare.compare(policies, prompts, judge, judge_name="test", **options)


def test_every_pair_prompt_and_seed_is_a_row():
    table = run(policies={"long": long, "short": short, "same": short}, seeds=(1, 2))
    assert len(table) == 3 * 30 * 2
    assert table.groupby(["model_a", "model_b"]).size().to_dict() == {
        ("long", "short"): 60, ("long", "same"): 60, ("short", "same"): 60,
    }  # fmt: skip
    by_pair = table.groupby(["model_a", "model_b"])["outcome"].mean()
    assert by_pair["long", "short"] == 1 and by_pair["short", "same"] == 0.5


def test_equal_texts_tie_without_being_asked():
    def never(comparisons):
        raise AssertionError("asked")

    assert (run(never, {"a": short, "b": short})["outcome"] == 0.5).all()


def test_a_judge_that_looks_at_the_order_only_ties_and_is_seen():
    table = run(lambda comparisons: ["first"] * len(comparisons))
    row = compare.summary(table).iloc[0]
    assert (table["status"] == "contradicted").all() and row["rate"] == 0.5
    assert row["first_shown"] == 1 and row["consistency"] == 0 and row["missing"] == 0


def test_nonsense_is_missing_listed_and_no_tie():
    table = run(nonsense_for_a_third)
    row, listed = compare.summary(table).iloc[0], compare.missing(table)
    assert (row["n"], row["judged"], row["missing"], row["ties"], row["wins"]) == (30, 20, 10, 0, 20)
    assert sorted(listed["prompt"]) == sorted(PROMPTS[::3])
    assert listed.set_index("prompt")["answer"]["prompt 0"] == "'As an AI ...'"
    assert row["rate"] == 1 and row["lowest"] == pytest.approx(2 / 3) and row["highest"] == 1
    assert table.loc[table["status"] == "missing", "outcome"].isna().all()


def test_a_judge_without_any_verdict_gives_no_rate():
    row = compare.summary(run(lambda comparisons: [None] * len(comparisons))).iloc[0]
    assert row["judged"] == 0 and np.isnan(row.get("rate", np.nan)) and row["missing"] == 30


def test_a_stopped_run_goes_on_where_it_stopped(tmp_path):
    path, calls = tmp_path / "run.jsonl", []

    def stops(comparisons):
        calls.append(len(comparisons))
        if len(calls) == 4:
            raise KeyboardInterrupt
        return longer(comparisons)

    with pytest.raises(KeyboardInterrupt):
        run(stops, path=path, batch_size=10)
    kept = path.read_bytes()
    path.write_bytes(kept + b'{"key": "torn')
    asked, generated = [], []

    def counts(comparisons):
        asked.extend(comparisons)
        return longer(comparisons)

    def again(prompts, seed):
        generated.append(seed)
        return long(prompts, seed)

    table = run(counts, {"long": again, "short": short}, path=path, batch_size=10)
    assert len(asked) == 60 - 30 and not generated and path.read_bytes().startswith(kept)
    assert (table["outcome"] == 1).all() and len(table) == 30
    asked.clear()
    assert run(counts, path=path).equals(table) and not asked


def test_missing_verdicts_are_asked_again_on_request(tmp_path):
    path = tmp_path / "run.jsonl"
    run(nonsense_for_a_third, path=path)
    assert compare.summary(run(path=path)).iloc[0]["missing"] == 10
    assert compare.summary(run(path=path, ask_again=True)).iloc[0]["missing"] == 0


@pytest.mark.parametrize("change", [{"settings": {"temperature": 1}}, {"seeds": (3,)}])
def test_another_run_is_not_mixed_in(tmp_path, change):
    run(path=tmp_path / "run.jsonl")
    with pytest.raises(ValueError, match="other policies, prompts, seeds, judge or settings"):
        run(path=tmp_path / "run.jsonl", **change)


def test_bad_input_is_named():
    with pytest.raises(ValueError, match="policy 'b' gave 1 texts for 30"):
        run(policies={"a": short, "b": lambda prompts, seed: ["one"]})
    with pytest.raises(ValueError, match="the judge gave 1 answers to"):
        run(lambda comparisons: ["first"])
    with pytest.raises(ValueError, match="1 policies"):
        run(policies={"a": short})
    with pytest.raises(ValueError, match="stands there twice"):
        compare.compare({"a": short, "b": long}, ["x", "x"], longer, judge_name="test")


def test_a_scorer_and_any_judge_of_the_data_room_serve():
    table = run(judges.from_scorer(judges.length))
    assert (table["outcome"] == 1).all()


class Parsed(html.parser.HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.tags, self.text, self.attributes = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs

    def handle_data(self, data):
        self.text.append(data)


def test_the_page_escapes_what_models_write_and_loads_nothing(tmp_path):
    evil = '</pre><script>alert(1)</script><img src="https://example.org/x" onerror=alert(1)>\x1b[2J\ud800'

    def writes(prompts, seed):
        return [evil + prompt for prompt in prompts]

    table = run(nonsense_for_a_third, {"<b>evil</b>": writes, "short": short})
    path = report_html.write(tmp_path / "page.html", table, title="A & B", judge_name="<i>x</i>", settings={"t": 1})
    page = Parsed(path.read_text(encoding="utf-8"))
    assert not {"script", "img", "link", "iframe", "b", "i"} & set(page.tags)
    assert not [name for name, _ in page.attributes if name.startswith("on") or name in ("src", "href")]
    shown = "".join(page.text)
    assert "<script>alert(1)</script>" in shown and "\\u001b[2J?" in shown
    assert "10 of 30 comparisons have no verdict" in shown and "'As an AI ...'" in shown


def test_the_page_says_what_the_numbers_say():
    assert "long is better than short" in "".join(Parsed(page(longer)).text)
    undecided = "".join(Parsed(page(lambda comparisons: ["first"] * len(comparisons))).text)
    assert "not decided" in undecided and "said the same in 0 %" in undecided
    nothing = "".join(Parsed(page(lambda comparisons: [None] * len(comparisons))).text)
    assert "no verdict on any of the 30" in nothing
    assert "control for length" in "".join(Parsed(page(longer)).text)


@pytest.mark.parametrize(
    ("prompts", "decided", "few"), [(3, False, True), (5, False, True), (6, True, True), (20, True, False)]
)
def test_the_page_says_better_only_where_the_sign_test_agrees(prompts, decided, few):
    """All outcomes alike: the bootstrap's interval is 100 to 100 % however few they are; p is .03 at six wins."""
    text = "".join(Parsed(page(longer, PROMPTS[:prompts])).text)
    assert "100 to 100 %" in text and ("long is better than short" in text) == decided
    assert ("not decided, the interval excludes a half" in text) != decided
    assert (f"Only {prompts} prompts with a verdict" in text) == few


def page(judge, prompts=PROMPTS):
    items = capabilities.load_items().head(20).assign(p=0.5, margin=0.0)[["id", "family", "p", "margin"]]
    changed = capabilities.compare(items, items.assign(p=0.4))
    return report_html.report(run(judge, prompts=prompts), title="t", judge_name="j", capabilities=changed)


def test_lines_of_the_file_are_json(tmp_path):
    run(nonsense_for_a_third, path=tmp_path / "run.jsonl")
    rows = [json.loads(line) for line in (tmp_path / "run.jsonl").read_text().splitlines()]
    assert len(rows) == 1 + 2 + 60 and sum(row.get("verdict", "") is None for row in rows) == 20
