"""Agreement: the libraries' figures, intervals that cover, PandaLM's published kappas, and what is refused."""

import json
import os
from pathlib import Path

import krippendorff
import numpy as np
import pytest
from sklearn.metrics import cohen_kappa_score
from statsmodels.stats import inter_rater

from dpo_tutorial.data import agreement, external

RNG = np.random.default_rng(0)
TRUTH = RNG.integers(0, 3, 200)
RATINGS = np.stack([np.where(RNG.random(200) < 0.7, TRUTH, RNG.integers(0, 3, 200)) for _ in range(4)])


def test_the_values_are_those_of_other_libraries():
    a, b = RATINGS[:2]
    assert agreement.percent_agreement(a, b).value == pytest.approx((a == b).mean(), abs=1e-12)
    for weights in (None, "linear", "quadratic"):
        ours = agreement.cohen_kappa(a, b, weights=weights, repetitions=10).value
        assert ours == pytest.approx(cohen_kappa_score(a, b, weights=weights), abs=1e-12)
    table, _ = inter_rater.aggregate_raters(RATINGS.T)
    ours = agreement.fleiss_kappa(RATINGS, repetitions=10).value
    assert ours == pytest.approx(inter_rater.fleiss_kappa(table), abs=1e-12)
    holes = RATINGS.astype(float)
    holes[RNG.random(holes.shape) < 0.3] = np.nan
    for level in ("nominal", "ordinal", "interval", "ratio"):
        ours = agreement.krippendorff_alpha(holes, measurement=level, repetitions=10).value
        assert ours == pytest.approx(krippendorff.alpha(holes, level_of_measurement=level), abs=1e-12)


def test_a_kappa_worked_out_by_hand():
    a, b = ["yes"] * 6 + ["no"] * 4, ["yes"] * 4 + ["no"] * 2 + ["yes"] + ["no"] * 3
    expected = 0.5 * 0.6 + 0.5 * 0.4  # of both "yes" and both "no", were they independent
    assert agreement.cohen_kappa(a, b).value == pytest.approx((0.7 - expected) / (1 - expected))
    assert agreement.percent_agreement(a, b).value == pytest.approx(0.7)


def test_intervals_cover_the_value_of_many_items():
    """95 % intervals of 100 small samples hold the figure of a large one in most of them."""
    rng = np.random.default_rng(1)

    def sample(n):
        truth = rng.integers(0, 2, n)
        return [np.where(rng.random(n) < 0.8, truth, 1 - truth) for _ in range(2)]

    target = agreement.cohen_kappa(*sample(200_000), repetitions=1).value
    results = [agreement.cohen_kappa(*sample(150), repetitions=200, seed=k) for k in range(100)]
    covered = sum(r.low <= target <= r.high for r in results)
    assert 86 <= covered <= 100
    assert all(r.low <= r.value <= r.high and r.items == 150 for r in results)
    again = agreement.cohen_kappa([1, 1, 2, 2, 1], [1, 2, 2, 2, 1], seed=3)
    assert again == agreement.cohen_kappa([1, 1, 2, 2, 1], [1, 2, 2, 2, 1], seed=3)


def test_the_unit_of_the_bootstrap_is_the_item():
    """Four raters on 30 items say less than two raters on 300: the interval follows the items."""
    few = agreement.krippendorff_alpha(RATINGS[:, :30], repetitions=300)
    many = agreement.krippendorff_alpha(RATINGS[:2], repetitions=300)
    assert few.high - few.low > many.high - many.low


def test_majority():
    ratings = [["a", "b", "a", None], ["a", "c", None, None], ["b", "b", None, None]]
    assert agreement.majority(ratings).tolist() == ["a", "b", "a", None]
    assert agreement.majority([[1, 2], [2, 2]]).tolist() == [None, 2]


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: agreement.cohen_kappa([1, 1], [1, 1]), "0/0.*percent_agreement"),
        (lambda: agreement.cohen_kappa([1, 2], [1]), "2 and 1 labels"),
        (lambda: agreement.cohen_kappa([], []), "0 and 0 labels"),
        (lambda: agreement.cohen_kappa([1, None], [1, 2]), "item 1 lacks a label.*krippendorff_alpha"),
        (lambda: agreement.cohen_kappa([1, 2], [1, 2], weights="cubic"), "'cubic'; accepted"),
        (lambda: agreement.cohen_kappa([1, 2], [1, 2], level=95), "level is 95"),
        (lambda: agreement.fleiss_kappa([[1, 2, None], [1, 2, 2]]), "item 2 lacks a rating"),
        (lambda: agreement.krippendorff_alpha([[1, 2]]), "two raters or more"),
        (lambda: agreement.krippendorff_alpha([[1, 2], [1]]), "all equally long"),
        (lambda: agreement.krippendorff_alpha([[1, None], [None, 2]]), "no item has two ratings"),
        (lambda: agreement.krippendorff_alpha([[1, 2], [1, 2]], measurement="metric"), "'metric'; accepted"),
    ],
)
def test_errors_say_what_is_accepted(call, words):
    with pytest.raises(ValueError, match=words):
        call()


@pytest.mark.skipif("DPO_TUTORIAL_DATA" not in os.environ, reason="set DPO_TUTORIAL_DATA to the folder with pandalm/")
def test_pandalms_published_kappas():
    table = external.load("pandalm", network=False)
    assert len(table) == 999
    raters = [table[f"annotator{k}"] for k in (1, 2, 3)]
    kappas = [agreement.cohen_kappa(raters[i], raters[j]) for i, j in ((0, 1), (0, 2), (1, 2))]
    assert [f"{kappa.value:.2f}" for kappa in kappas] == ["0.85", "0.88", "0.86"]
    assert all(kappa.high - kappa.low < 0.07 for kappa in kappas)
    rows = json.loads((Path(os.environ["DPO_TUTORIAL_DATA"]) / "pandalm/testset-v1.json").read_text(encoding="utf-8"))
    assert (table["votes1"] == [sum(row[f"annotator{k}"] == 1 for k in (1, 2, 3)) for row in rows]).all()
