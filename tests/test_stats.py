"""Win rates, paired differences, both orders, power, rankings: by hand, by oracle, by simulation."""

import numpy as np
import pytest
from scipy import stats as oracle

from dpo_tutorial.evaluation import stats


def test_counts_rates_and_sign_test():
    result = stats.win_rate([1] * 14 + [0.5] * 10 + [0] * 6)
    assert (result.wins, result.ties, result.losses) == (14, 10, 6)
    assert result.rate == pytest.approx(19 / 30) and result.rate_without_ties == pytest.approx(14 / 20)
    assert result.p_value == pytest.approx(oracle.binomtest(14, 20).pvalue)
    assert result.low < result.rate < result.high


def test_the_sign_test_counts_a_prompt_once():
    """Five prompts, three samples each: three prompts for A, one for B, one even."""
    outcomes = [1, 1, 0] * 3 + [0, 0, 0.5] + [1, 0.5, 0]
    result = stats.win_rate(outcomes, np.repeat(list("abcde"), 3))
    assert (result.wins, result.ties, result.losses) == (7, 2, 6)
    assert result.p_value == pytest.approx(oracle.binomtest(3, 4).pvalue)


def test_the_sign_test_holds_its_level_when_samples_of_a_prompt_agree():
    """A coin per prompt, repeated five times: p below .05 in at most one world of twenty, not in half of them."""
    rng, prompts = np.random.default_rng(0), np.repeat(np.arange(30), 5)
    worlds = [np.repeat(rng.integers(0, 2, 30), 5) for _ in range(300)]
    found = np.array([[stats.win_rate(w, c, repetitions=2).p_value < 0.05 for c in (prompts, None)] for w in worlds])
    assert found[:, 0].mean() <= 0.075 < 0.3 < found[:, 1].mean()


def test_nothing_but_ties_is_a_half():
    result = stats.win_rate([0.5] * 8)
    assert (result.rate, result.rate_without_ties, result.low, result.high, result.p_value) == (
        0.5,
        0.5,
        0.5,
        0.5,
        1.0,
    )


@pytest.mark.parametrize("bad", [[1, 2], [0.3], [np.nan], []])
def test_other_outcomes_are_refused(bad):
    with pytest.raises(ValueError, match="outcome"):
        stats.win_rate(bad)


def test_labels_of_another_length_are_refused():
    with pytest.raises(ValueError, match="2 cluster labels for 3 values"):
        stats.win_rate([1, 0, 1], clusters=["a", "b"])


def test_clusters_widen_the_interval_when_outcomes_repeat_within_a_prompt():
    rng = np.random.default_rng(0)
    outcomes = np.repeat(rng.integers(0, 2, 40), 5).astype(float)
    prompts = np.repeat(np.arange(40), 5)
    alone, clustered = stats.win_rate(outcomes), stats.win_rate(outcomes, prompts)
    assert (clustered.high - clustered.low) > 1.7 * (alone.high - alone.low)


def test_paired_difference_covers_the_truth_at_its_level():
    rng, hits = np.random.default_rng(1), 0
    for repetition in range(300):
        prompt_effect = np.repeat(rng.normal(0.2, 1, 60), 2)
        values = prompt_effect + rng.normal(0, 0.5, 120)
        result = stats.paired_difference(
            values, np.zeros(120), np.repeat(np.arange(60), 2), repetitions=500, seed=repetition
        )
        hits += result.low <= 0.2 <= result.high
    assert 0.90 <= hits / 300 <= 0.98


def test_across_seeds_wants_the_interval_and_every_seed():
    base, noise = np.zeros((3, 40)), np.random.default_rng(0).normal(scale=0.1, size=(3, 40))
    found, sign = stats.across_seeds(base - 1 + noise, base)
    assert sign == -1 and found.high < 0 and found.clusters == 40
    split = base + np.array([[2.0], [2.0], [-0.1]])  # the interval excludes 0, but one seed says the opposite
    assert stats.across_seeds(split + noise, base)[0].low > 0 and stats.across_seeds(split, base)[1] == 0
    assert stats.across_seeds(noise, base)[1] == 0
    with pytest.raises(ValueError, match="seeds, prompts"):
        stats.across_seeds(base, base[:2])


def test_paired_difference_refuses_unequal_shapes():
    with pytest.raises(ValueError, match="shapes"):
        stats.paired_difference([1.0], [1.0, 2.0])


@pytest.mark.parametrize("rate", [0.3, 0.5, 0.7])
def test_win_rate_interval_covers_the_truth(rate):
    """2,000 repetitions of 100 prompts, two comparisons each that share the prompt's luck, a fifth of them ties."""
    rng = np.random.default_rng(int(10 * rate))
    share = (rate - 0.1) / 0.8  # wins among the decided
    hits = 0
    for repetition in range(2000):
        luck = np.repeat(rng.beta(3 * share, 3 * (1 - share), 100), 2)
        outcomes = np.where(rng.random(200) < 0.2, 0.5, (rng.random(200) < luck).astype(float))
        result = stats.win_rate(outcomes, np.repeat(np.arange(100), 2), repetitions=400, seed=repetition)
        hits += result.low <= rate <= result.high
    assert 0.93 <= hits / 2000 <= 0.97, hits / 2000


def test_swap_by_hand():
    a_first = [1, 1, 0, 0.5, np.nan, 1]
    b_first = [1, 0, 0, 0.5, 1, 0.5]
    result = stats.swap(a_first, b_first)
    np.testing.assert_array_equal(result.outcomes, [1, 0.5, 0, 0.5, np.nan, 0.5])
    assert (result.consistent, result.contradicted, result.missing) == (3, 2, 1)
    assert result.consistency == pytest.approx(0.6)
    assert (result.first, result.second) == (5, 3)


def test_a_judge_who_always_takes_the_first_is_seen():
    result = stats.swap(np.ones(40), np.zeros(40))
    assert result.consistency == 0 and result.first == 80 and result.p_value < 1e-20
    assert (result.outcomes == 0.5).all()


@pytest.mark.parametrize("bad", [([1, 2], [1, 1]), ([1], [1, 0]), ([], [])])
def test_swap_refuses(bad):
    with pytest.raises(ValueError):
        stats.swap(*bad)


def test_intervals_of_a_proportion_hold_their_promises():
    for n in (10, 50):
        k = np.arange(n + 1)
        bounds = {
            name: [stats.proportion_interval(i, n, method=name) for i in k] for name in ("wilson", "clopper-pearson")
        }
        for rate in (0.1, 0.3, 0.5):
            weight = oracle.binom.pmf(k, n, rate)
            covered = {name: weight @ [low <= rate <= high for low, high in rows] for name, rows in bounds.items()}
            assert covered["clopper-pearson"] >= 0.95 and covered["wilson"] > 0.89
    with pytest.raises(ValueError, match="51 of 50"):
        stats.proportion_interval(51, 50)


@pytest.mark.parametrize(("rate", "ties", "n"), [(0.58, 0.0, 300), (0.6, 0.3, 120), (0.5, 0.2, 100)])
def test_power_agrees_with_simulation(rate, ties, n):
    rng = np.random.default_rng(0)
    decided = round(n * (1 - ties))
    wins = rng.binomial(decided, (rate - ties / 2) / (1 - ties), size=4000)
    significant = np.array([oracle.binomtest(k, decided).pvalue < 0.05 for k in range(decided + 1)])
    found = significant[wins].mean()
    assert stats.power(rate, n, ties=ties) == pytest.approx(found, abs=0.025)


def test_sample_size_reaches_its_power_and_not_much_earlier():
    n = stats.sample_size(0.6)
    assert stats.power(0.6, n) >= 0.8 and stats.power(0.6, n - 25) < 0.8
    assert stats.sample_size(0.4) == n, "losing is as visible as winning"
    for bad in ((0.5, 0.0), (0.1, 0.4), (0.9, 1.0)):
        with pytest.raises(ValueError, match="rate"):
            stats.sample_size(bad[0], ties=bad[1])


def test_the_best_of_many_needs_a_correction():
    rng = np.random.default_rng(0)
    plain = corrected = 0
    p_value = np.array([oracle.binomtest(k, 60).pvalue for k in range(61)])
    for _ in range(40):  # statsmodels collects garbage in every call
        p_values = p_value[rng.binomial(60, 0.5, size=10)]
        plain += p_values.min() < 0.05
        corrected += stats.adjust(p_values).min() < 0.05
    assert plain >= 5 and corrected <= 4, (plain, corrected)


def test_ranking_recovers_the_order_and_covers_the_truth():
    import pandas as pd

    rng = np.random.default_rng(0)
    truth = {"a": 1.0, "b": 0.3, "c": -0.2, "d": -1.1}
    names = list(truth)
    rows = []
    for _ in range(1500):
        one, two = rng.choice(4, size=2, replace=False)
        chance = 1 / (1 + np.exp(truth[names[two]] - truth[names[one]]))
        rows.append((names[one], names[two], float(rng.random() < chance)))
    table = stats.ranking(pd.DataFrame(rows, columns=["model_a", "model_b", "outcome"]))
    assert list(table.index) == names
    for name, reward in truth.items():
        assert table["low"][name] - 0.05 < reward < table["high"][name] + 0.05
    assert table["elo"]["a"] == pytest.approx(1000 + 173.7 * table["reward"]["a"], abs=0.1)
    with pytest.raises(ValueError, match="outcome is 2"):
        stats.ranking(pd.DataFrame([("a", "b", 2.0)], columns=["model_a", "model_b", "outcome"]))
