"""Statistics of comparisons: win rate with ties, and paired differences, both with intervals clustered by prompt."""

from dataclasses import dataclass

import numpy as np
from scipy import stats


@dataclass(frozen=True)
class WinRate:
    """Outcome of a comparison. ``rate`` counts a tie as half a win; ``low`` and ``high`` bound it."""

    rate: float
    rate_without_ties: float
    low: float
    high: float
    wins: int
    ties: int
    losses: int
    p_value: float


@dataclass(frozen=True)
class Difference:
    """Mean of a paired difference with its interval and the number of clusters behind it."""

    mean: float
    low: float
    high: float
    clusters: int


def _cluster_sums(values: np.ndarray, clusters) -> tuple[np.ndarray, np.ndarray]:
    """(sums, sizes) per cluster; every value is its own cluster when ``clusters`` is None."""
    codes = np.arange(len(values)) if clusters is None else np.unique(np.asarray(clusters), return_inverse=True)[1]
    if len(codes) != len(values):
        raise ValueError(f"{len(codes)} cluster labels for {len(values)} values; give one label per value")
    return np.bincount(codes, weights=values), np.bincount(codes)


def _bootstrap(values: np.ndarray, clusters, level: float, repetitions: int, seed: int) -> tuple[float, float, int]:
    """Percentile interval of the mean when whole clusters are drawn again: (low, high, number of clusters)."""
    sums, sizes = _cluster_sums(values, clusters)
    picks = np.random.default_rng(seed).integers(len(sums), size=(repetitions, len(sums)))
    means = sums[picks].sum(1) / sizes[picks].sum(1)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high), len(sums)


def win_rate(outcomes, clusters=None, *, level: float = 0.95, repetitions: int = 4000, seed: int = 0) -> WinRate:
    """Win rate of A over B from outcomes 1 (win), 0.5 (tie) and 0 (loss).

    Args:
        outcomes: (N,) values.
        clusters: (N,) labels, usually prompt ids: outcomes of one prompt are not independent.
        level, repetitions, seed: of the cluster bootstrap.

    Returns:
        ``p_value`` is the exact sign test on the wins and losses (ties left out), two-sided; it treats
        outcomes as independent.

    >>> result = win_rate([1, 1, 1, 0, 0.5, 0.5])
    >>> result.rate, result.rate_without_ties, result.ties
    (0.6666666666666666, 0.75, 2)
    """
    values = np.asarray(outcomes, float)
    wrong = [k for k, value in enumerate(values) if value not in (0.0, 0.5, 1.0)]
    if wrong or not len(values):
        first = f"outcome {wrong[0]} is {values[wrong[0]]}" if wrong else "there are no outcomes"
        raise ValueError(f"{first}; accepted are 1 (win), 0.5 (tie), 0 (loss)")
    wins, ties, losses = (int((values == mark).sum()) for mark in (1.0, 0.5, 0.0))
    low, high, _ = _bootstrap(values, clusters, level, repetitions, seed)
    decided = wins + losses
    p_value = float(stats.binomtest(wins, decided).pvalue) if decided else 1.0
    without = wins / decided if decided else 0.5
    return WinRate(float(values.mean()), without, low, high, wins, ties, losses, p_value)


def paired_difference(
    a, b, clusters=None, *, level: float = 0.95, repetitions: int = 4000, seed: int = 0
) -> Difference:
    """Mean of ``a - b`` with a bootstrap interval over clusters (prompts).

    >>> paired_difference([2.0, 3.0, 4.0], [1.0, 2.0, 3.0]).mean
    1.0
    """
    a, b = np.asarray(a, float), np.asarray(b, float)
    if a.shape != b.shape or a.ndim != 1 or not len(a):
        raise ValueError(f"shapes are {a.shape} and {b.shape}; give two equally long one-dimensional arrays")
    low, high, count = _bootstrap(a - b, clusters, level, repetitions, seed)
    return Difference(float((a - b).mean()), low, high, count)
