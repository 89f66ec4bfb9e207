"""Text metrics against their libraries, MT-Bench's protocol, AlpacaEval's format read by its own package, PandaLM."""

import importlib
import json
import os
import random
import sys
import types

import numpy as np
import pandas as pd
import pytest

from dpo_tutorial.data import external
from dpo_tutorial.evaluation import benchmarks, compare
from dpo_tutorial.evaluation.length_control import length_controlled_win_rates

needs_data = pytest.mark.skipif(not os.environ.get("DPO_TUTORIAL_DATA"), reason="DPO_TUTORIAL_DATA is not set")


def test_rouge_l_is_that_of_rouge_score():
    from rouge_score.rouge_scorer import RougeScorer

    scorer, rng = RougeScorer(["rougeL"], use_stemmer=False), random.Random(0)
    words = "the a cat sat on mat, It's 3.5 m Far.".split()
    for _ in range(200):
        a, b = (" ".join(rng.choices(words, k=rng.randint(0, 12))) for _ in range(2))
        assert benchmarks.rouge_l(a, b) == pytest.approx(scorer.score(b, a)["rougeL"].fmeasure, abs=1e-12)


def test_bleu_and_similarity_know_equal_and_disjoint_texts():
    assert benchmarks.bleu("the cat sat on the mat", "the cat sat on the mat") == pytest.approx(100)
    assert benchmarks.bleu("", "the cat") == 0
    texts = ["the cat sat", "dogs bark at night"]
    assert benchmarks.similarities(texts, texts) == pytest.approx([1, 1])
    assert benchmarks.similarities(texts, texts[::-1]) == pytest.approx([0, 0])


GAMES = [
    ("model_1", "model_1", 1.0), ("model_1", "model_2", 0.5), ("model_1", "tie", 0.5), ("tie", "tie", 0.5),
    ("model_2", "model_2", 0.0), ("error", "model_1", np.nan), ("model_2", "error", np.nan),
]  # fmt: skip


def test_mt_bench_wants_both_games(tmp_path):
    rows = [
        {
            "question_id": k,
            "model_1": "a",
            "model_2": "b",
            "g1_winner": one,
            "g2_winner": two,
            "judge": ["j", "pair-v2"],
        }
        for k, (one, two, _) in enumerate(GAMES)
    ]
    path = tmp_path / "pair.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)) + "\n")
    np.testing.assert_array_equal(benchmarks.read_mt_bench(path)["outcome"], [want for *_, want in GAMES])
    path.write_text(json.dumps(rows[0] | {"g2_winner": "A"}))
    with pytest.raises(ValueError, match="line 1: g2_winner is 'A'"):
        benchmarks.read_mt_bench(path)


def comparison() -> pd.DataFrame:
    def policy(extra):
        return lambda prompts, seed: [f"answer{extra * k} to {p}" for k, p in enumerate(prompts)]

    def judge(pairs):
        by_digit = {"0": "first", "1": "second", "2": "tie", "3": None}
        return [
            by_digit.get(one.prompt[-1], "first" if len(one.first) > len(one.second) else "second") for one in pairs
        ]

    prompts = [f"question {k}" for k in range(20)]
    return compare.compare({"a": policy("!"), "b": policy("")}, prompts, judge, judge_name="test")


def test_a_comparison_survives_mt_benchs_file(tmp_path):
    table = comparison()
    benchmarks.write_mt_bench(tmp_path / "pair.jsonl", table, judge_name="test")
    back = benchmarks.read_mt_bench(tmp_path / "pair.jsonl")
    np.testing.assert_array_equal(back["outcome"], table["outcome"])
    assert back["outcome"].isna().sum() == 2


def test_a_comparison_goes_into_length_control():
    table = comparison()
    rows = benchmarks.annotations(table)
    assert len(rows) == table["outcome"].notna().sum() and rows["preference"].between(1, 2).all()
    rates = length_controlled_win_rates(rows)
    assert rates.loc["a", "win_rate"] == pytest.approx(100 * table["outcome"].mean())


@pytest.fixture
def alpaca_eval(monkeypatch):
    """The official package; it imports pkg_resources, which newer setuptools no longer have."""
    try:
        import pkg_resources  # noqa: F401
    except ImportError:
        from packaging.version import parse

        stub = types.ModuleType("pkg_resources")
        stub.parse_version = parse
        monkeypatch.setitem(sys.modules, "pkg_resources", stub)
    monkeypatch.setenv("OPENAI_API_KEY", "none")
    return importlib.import_module("alpaca_eval")


def test_the_official_package_reads_the_export(alpaca_eval, tmp_path):
    instructions = ["Name a fruit.", "Say “hi”.\nTwice."]
    rows = benchmarks.alpaca_eval_rows(
        lambda prompts, seed: [f"{p} -> {seed}" for p in prompts], instructions, name="me", seed=4
    )
    benchmarks.write_alpaca_eval(tmp_path / "outputs.json", rows)
    read = alpaca_eval.utils.load_or_convert_to_dataframe(tmp_path / "outputs.json")
    assert alpaca_eval.utils.get_generator_name(None, read) == "me"
    assert read["instruction"].tolist() == instructions and read["output"].tolist() == [
        f"{p} -> 4" for p in instructions
    ]
    preferences = benchmarks.annotations(comparison())[["preference"]]
    official = alpaca_eval.metrics.get_winrate(preferences)["win_rate"]
    assert official == pytest.approx(100 * (preferences["preference"] - 1).mean())


def test_bad_exports_are_named(tmp_path):
    with pytest.raises(ValueError, match="1 texts for 2"):
        benchmarks.alpaca_eval_rows(lambda prompts, seed: ["x"], ["a", "b"], name="me")
    with pytest.raises(ValueError, match="one model"):
        benchmarks.write_alpaca_eval(tmp_path / "x.json", [{"generator": "a"}, {"generator": "b"}])


def people(n=300):
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 3, n)
    noisy = [np.where(rng.random(n) < 0.1, rng.integers(0, 3, n), truth) for _ in range(3)]
    table = pd.DataFrame(dict(zip(benchmarks.ANNOTATORS, noisy, strict=True)))
    return table.assign(people=truth, always_first=1, silent=truth).astype("Int64")


def test_agreement_with_people_counts_silence_as_wrong_and_corrects_for_chance():
    table = people()
    table.loc[:149, "silent"] = pd.NA
    rates = benchmarks.against_people(table, ["always_first", "silent"])
    assert rates.loc["always_first", "kappa"] == pytest.approx(0, abs=1e-9)
    assert rates.loc["always_first", "accuracy"] == pytest.approx((table["people"] == 1).mean())
    assert rates.loc["silent", "answered"] == 150 and rates.loc["silent", "accuracy"] == 0.5
    assert rates.loc["silent", "decided"] == 1 and rates.loc["silent", "kappa"] > 0.8


@needs_data
def test_pandalm_verdicts_are_those_of_the_files():
    table = benchmarks.pandalm_verdicts(network=False)
    assert len(table) == 999 and table["gpt_35_turbo"].isna().sum() == 25
    assert table.drop(columns=["instruction", "gpt_35_turbo"]).isin([0, 1, 2]).all(axis=None)
    frame = external.load("pandalm", network=False)
    first, second = (frame[name].astype(str).str.len() for name in ("response1", "response2"))
    assert (table["longer"] == 1).sum() == (first > second).sum()
