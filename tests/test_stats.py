"""Win rates and paired differences: counts by hand, the sign test, coverage of the cluster bootstrap."""

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


def test_paired_difference_refuses_unequal_shapes():
    with pytest.raises(ValueError, match="shapes"):
        stats.paired_difference([1.0], [1.0, 2.0])
