"""The regression suite: the cached prompt against whole rows, the shipped items, the rules, the comparison."""

import hashlib
import json
import re
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from dpo_tutorial.data.construct import config_hash
from dpo_tutorial.evaluation import capabilities
from dpo_tutorial.training import encode, logps, models

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tools"))
import capability_items  # noqa: E402
import make_capabilities  # noqa: E402


@pytest.fixture(scope="module")
def lab():
    return models.load("lab_lm", device="cpu")


def test_reading_the_prompt_once_changes_nothing(lab):
    """Left padding, the cache and the positions against plain rows: the same log-probabilities."""
    model, tokenizer = lab
    items = capabilities.load_items()
    items = items[items["rule"].isna()].groupby("family").head(3)
    right, wrong = capabilities.choice_logps(model, tokenizer, items, batch_size=4)
    for k, (prompt, options) in enumerate(zip(items["prompt"], items["options"], strict=True)):
        full = [encode.text_ids(tokenizer, prompt, f"{option}\n") for option in options]
        alone = encode.text_ids(tokenizer, prompt)
        start = min(encode.common_prefix_length(alone, ids) for ids in full)
        rows = logps.sample_logps(
            model, [alone[:start]] * len(full), [ids[start:] for ids in full], pad_token_id=tokenizer.pad_token_id
        )
        np.testing.assert_allclose(np.r_[right[k], wrong[k]], rows.numpy(), atol=2e-4)


def test_p_is_the_probability_among_the_options(lab):
    scores = capabilities.score(*lab, capabilities.load_items().query("family == 'facts'"))
    assert ((scores["p"] > 0) & (scores["p"] < 1)).all() and scores["margin"].abs().min() > 0
    assert (scores["margin"] > 0).sum() >= (scores["p"] > 0.5).sum()
    assert (scores.loc[scores["margin"] < 0, "p"] < 0.5).all() and (
        scores.loc[scores["margin"] > 0, "p"] > 0.25
    ).all()


def test_at_least_150_items_in_the_band_and_all_from_the_generator():
    items = capabilities.load_items()
    assert len(items) >= 150 and set(items["family"]) == set(capabilities.FAMILIES)
    assert items["base"].between(0.2, 0.9).all() and items["id"].is_unique
    written = {row["id"]: row for row in capability_items.items(0)}
    for row in items.drop(columns="base").to_dict("records"):
        assert {key: None if value is np.nan else value for key, value in row.items()} == written[row["id"]]


def test_the_card_is_that_of_the_file():
    folder = capabilities.ITEMS.parent
    card = json.loads((folder / "card.json").read_text())
    assert card["config"] == make_capabilities.CONFIG and card["config_hash"] == config_hash(card["config"])
    assert card["sha256"] == hashlib.sha256((folder / "items.jsonl").read_bytes()).hexdigest()
    kept = {family: kept for family, (_, kept) in card["written_and_kept"].items()}
    assert kept == capabilities.load_items()["family"].value_counts().to_dict()


def test_options_differ_and_wrong_numbers_are_wrong():
    for row in capability_items.items(1):
        if not row["rule"]:
            assert len(set(row["options"])) == 4
        if row["family"] == "arithmetic":
            left, right = row["prompt"], int(row["options"][0])
            expression = left.replace(" times ", "*").replace(" divided by ", "/").rstrip(" =is")
            assert eval(expression) == right, row


RULE_CASES = [
    ("one word", None, "Dog.", "A dog"),
    ("at most words", 3, "one two three", "one two three four"),
    ("at least words", 3, "one two three", "one two"),
    ("contains", "always", "It Always is", "ever"),
    ("avoids", "the", "Other trees", "In the end"),
    ("starts", "Well", " well, yes", "As well"),
    ("ends", "!", "Yes! ", "Yes! No"),
    ("upper case", None, "IT IS 3.", "IT is"),
    ("lower case", None, "it is 3.", "It is"),
    ("one sentence", None, "It is 3.5 m long.", "It is. It was."),
    ("list", 2, "Here:\n- a\n- b", "- a\n- b\n- c"),
    ("commas", 2, "a, b, c", "a, b"),
    ("json", "name", 'Sure: {"name": 1}', '{"name: 1}'),
    ("no digits", None, "three", "3"),
    ("digits", None, "3", "three"),
]


@pytest.mark.parametrize(("rule", "argument", "kept", "broken"), RULE_CASES)
def test_rules(rule, argument, kept, broken):
    check = capabilities.RULES[rule]
    assert check(kept, argument) is True and check(broken, argument) is False
    assert check("", argument) is False or rule == "commas"


def test_every_rule_is_tested():
    assert {rule for rule, *_ in RULE_CASES} == set(capabilities.RULES)


def test_rule_items_are_scored_by_the_samples(lab):
    items = capabilities.load_items().groupby("family").head(1)

    def sample(prompts, seed):
        assert prompts[0][0]["role"] == "user" and seed == 5
        return [["FINE", "fine", "FINE", "FINE."] for _ in prompts]

    items = items.assign(rule=items["rule"].where(items["rule"].isna(), "upper case"))
    scores = capabilities.score(*lab, items, sample=sample, seed=5)
    assert scores.set_index("family")["p"]["rules"] == 0.75 and len(scores) == len(items)
    assert "rules" not in set(capabilities.score(*lab, items)["family"])


def test_comparison_is_paired_and_names_what_does_not_match():
    ids = [f"facts-{k}" for k in range(40)]
    before = pd.DataFrame({"id": ids, "family": "facts", "p": np.linspace(0.2, 0.9, 40), "margin": 0.0})
    after = before.assign(p=before["p"] - 0.2).sample(frac=1, random_state=0)
    table = capabilities.compare(before, after)
    assert table.loc["facts", "change"] == pytest.approx(-0.2) and table.loc["all", "high"] < -0.19
    assert table.loc["facts", "fell"] == 40 and table.loc["facts", "rose"] == 0
    assert capabilities.summary(before).loc["all", "items"] == 40
    with pytest.raises(ValueError, match="facts-39"):
        capabilities.compare(before, before.head(39))


def test_a_bad_line_is_named(tmp_path):
    path = tmp_path / "items.jsonl"
    good = {"id": "a", "family": "facts", "prompt": "p", "options": ["a", "b"], "rule": None, "argument": None}
    path.write_text(json.dumps(good) + "\n" + json.dumps(good | {"rule": "nice"}) + "\n")
    with pytest.raises(ValueError, match="line 2 names the rule 'nice'"):
        capabilities.load_items(path)


def test_word_problems_of_notebook_15_are_solved_rightly():
    from record_groups import nb15

    found = nb15.problems(60, 0)
    assert len({question for question, _, _ in found}) == 60
    for question, worked, result in found:
        for expression, value in re.findall(r"(\d+ [-+x] \d+) = (\d+)", worked):
            left, sign, right = expression.split()
            assert {"+": int.__add__, "-": int.__sub__, "x": int.__mul__}[sign](int(left), int(right)) == int(value)
        assert worked.endswith(f"The answer is {result}.") and result > 0 and str(result) not in question.split()[-3:]


def test_calculations_of_notebook_15_are_found_and_checked():
    from record_groups import nb15

    text = (
        "The bags hold 3 x 6 = 18 eggs, 4 + 18 = 21. 24 eggs - 4 eggs = 20; 9 * 2 = 18, 14 - 3 - 2 = 9.\n1. 7 - 4 = 3"
    )
    assert nb15.calculations(text) == [True, False, True, True, True]  # the chain is left out
    fresh = {question for question, _, _ in nb15.unseen(160, 100, nb15.START)}
    assert len(fresh) == 160 and not fresh & {question for question, _, _ in nb15.problems(nb15.START["problems"], 0)}
