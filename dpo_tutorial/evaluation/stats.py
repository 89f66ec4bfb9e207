"""Statistics of comparisons: win rates with ties, paired differences, both orders of a judge, power, rankings."""

from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import stats
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.proportion import proportion_confint

from dpo_tutorial.theory import bradley_terry


@dataclass(frozen=True)
class WinRate:
    """Outcome of a comparison. ``rate`` counts a tie as half a win; ``low`` and ``high`` bound it.

    ``p_value``: the exact sign test, in which every cluster speaks once.
    """

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


def _bootstrap(sums: np.ndarray, sizes: np.ndarray, level: float, repetitions: int, seed: int) -> tuple[float, float]:
    """Percentile interval (low, high) of the mean when whole clusters, (C,) and (C,), are drawn again."""
    picks = np.random.default_rng(seed).integers(len(sums), size=(repetitions, len(sums)))
    means = sums[picks].sum(1) / sizes[picks].sum(1)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def win_rate(outcomes, clusters=None, *, level: float = 0.95, repetitions: int = 4000, seed: int = 0) -> WinRate:
    """Win rate of A over B from outcomes 1 (win), 0.5 (tie) and 0 (loss).

    Args:
        outcomes: (N,) values.
        clusters: (N,) labels, usually prompt ids: outcomes of one prompt are not independent.
        level, repetitions, seed: of the cluster bootstrap.

    Returns:
        ``p_value`` is the exact sign test, two-sided, on the clusters: one with more wins than losses counts for A,
        one with more losses for B, an even one is left out as a tie is. Without ``clusters`` every outcome is one.
        With few clusters, or outcomes that are all alike, the interval is too narrow (three wins of three: 1 to 1):
        then use :func:`proportion_interval` on one outcome per prompt.

    >>> result = win_rate([1, 1, 1, 0, 0.5, 0.5])
    >>> result.rate, result.rate_without_ties, result.ties
    (0.6666666666666666, 0.75, 2)

    Six samples of one prompt say no more than one; six prompts do:

    >>> win_rate([1] * 6, ["a"] * 6).p_value, win_rate([1] * 6).p_value
    (1.0, 0.03125)
    """
    values = np.asarray(outcomes, float)
    wrong = [k for k, value in enumerate(values) if value not in (0.0, 0.5, 1.0)]
    if wrong or not len(values):
        first = f"outcome {wrong[0]} is {values[wrong[0]]}" if wrong else "there are no outcomes"
        raise ValueError(f"{first}; accepted are 1 (win), 0.5 (tie), 0 (loss)")
    wins, ties, losses = (int((values == mark).sum()) for mark in (1.0, 0.5, 0.0))
    sums, sizes = _cluster_sums(values, clusters)
    low, high = _bootstrap(sums, sizes, level, repetitions, seed)
    net = np.sign(2 * sums - sizes)
    split = int((net > 0).sum()), int((net != 0).sum())
    p_value = float(stats.binomtest(*split).pvalue) if split[1] else 1.0
    without = wins / (wins + losses) if wins + losses else 0.5
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
    sums, sizes = _cluster_sums(a - b, clusters)
    low, high = _bootstrap(sums, sizes, level, repetitions, seed)
    return Difference(float((a - b).mean()), low, high, len(sums))


def across_seeds(one, other) -> tuple[Difference, int]:
    """Difference of two settings that were run on the same prompts with several seeds, and whether it is real.

    Args:
        one, other: (seeds, prompts) values.

    Returns:
        the paired difference by prompt (seeds averaged), and its sign where its 95 % interval excludes 0 and all
        seeds agree on the sign, else 0.

    >>> across_seeds([[2.0, 3.0], [2.0, 4.0]], [[1.0, 2.0], [1.0, 2.0]])[1]
    1
    >>> across_seeds([[2.0, 3.0], [0.9, 1.9]], [[1.0, 2.0], [1.0, 2.0]])[1]
    0
    """
    one, other = np.asarray(one, float), np.asarray(other, float)
    if one.shape != other.shape or one.ndim != 2:
        raise ValueError(f"shapes are {one.shape} and {other.shape}; give two equal (seeds, prompts)")
    found, signs = paired_difference(one.mean(0), other.mean(0)), np.sign((one - other).mean(1))
    real = found.low * found.high > 0 and len(set(signs)) == 1
    return found, int(np.sign(found.mean)) if real else 0


@dataclass(frozen=True)
class Swap:
    """Verdicts of one judge asked in both orders.

    Attributes:
        outcomes: (N,) of A over B: 1, 0.5, 0, and NaN where an answer is missing. A judge who contradicts himself
            says tie, as in MT-Bench's protocol.
        consistent, contradicted, missing: counts; ``consistency`` is the share of answered comparisons that agree.
        first, second: how often the response shown first (second) won, over both orders; ties left out.
        p_value: exact test of first = second.
    """

    outcomes: np.ndarray
    consistent: int
    contradicted: int
    missing: int
    consistency: float
    first: int
    second: int
    p_value: float


def swap(a_first, b_first) -> Swap:
    """Combine a judge's verdicts with A shown first and with B shown first.

    Args:
        a_first, b_first: (N,) outcomes of A over B in each order: 1, 0.5 or 0; NaN where the judge gave no verdict.

    >>> result = swap([1, 1, 0], [1, 0, 0])
    >>> result.outcomes.tolist(), result.contradicted, (result.first, result.second)
    ([1.0, 0.5, 0.0], 1, (4, 2))
    """
    one, two = np.asarray(a_first, float), np.asarray(b_first, float)
    if one.shape != two.shape or one.ndim != 1 or not len(one):
        raise ValueError(f"shapes are {one.shape} and {two.shape}; give one verdict per comparison in each order")
    for name, values in (("A first", one), ("B first", two)):
        wrong = ~np.isin(values, (0.0, 0.5, 1.0)) & ~np.isnan(values)
        if wrong.any():
            row = int(np.flatnonzero(wrong)[0])
            raise ValueError(f"{name}, row {row}: {values[row]}; accepted are 1, 0.5, 0, and NaN for no verdict")
    missing = np.isnan(one) | np.isnan(two)
    agree = (one == two) & ~missing
    outcomes = np.where(missing, np.nan, np.where(agree, one, 0.5))
    first = int((one == 1).sum() + (two == 0).sum())
    second = int((one == 0).sum() + (two == 1).sum())
    answered = int((~missing).sum())
    return Swap(
        outcomes,
        int(agree.sum()),
        answered - int(agree.sum()),
        int(missing.sum()),
        float(agree.sum() / answered) if answered else float("nan"),
        first,
        second,
        float(stats.binomtest(first, first + second).pvalue) if first + second else 1.0,
    )


def proportion_interval(
    successes: int, n: int, *, method: str = "wilson", level: float = 0.95
) -> tuple[float, float]:
    """Interval of a share of independent outcomes without ties: ``wilson`` or ``clopper-pearson`` (never too narrow).

    >>> [round(value, 3) for value in proportion_interval(29, 50)]
    [0.442, 0.706]
    """
    names = {"wilson": "wilson", "clopper-pearson": "beta"}
    if method not in names or not 0 <= successes <= n or n < 1:
        raise ValueError(
            f"{successes} of {n} by {method!r}; accepted are 0 <= successes <= n, n >= 1, methods {', '.join(names)}"
        )
    low, high = proportion_confint(successes, n, alpha=1 - level, method=names[method])
    return float(low), float(high)


def power(rate: float, n: int, *, ties: float = 0.0, level: float = 0.95) -> float:
    """Chance that the exact two-sided sign test finds a true win rate ``rate`` with ``n`` independent comparisons.

    Args:
        rate: true win rate, a tie counted as half a win.
        ties: share of comparisons that tie; among the decided ones A wins (rate - ties / 2) / (1 - ties).

    The number of decided comparisons is taken as its mean, n (1 - ties), rounded.

    >>> round(power(0.58, 50), 2), round(power(0.58, 300), 2)
    (0.16, 0.78)
    """
    wins = _share_of_decided(rate, ties)
    decided = round(n * (1 - ties))
    if decided < 1:
        return 0.0
    k = np.arange(decided + 1)
    p_values = np.minimum(1, 2 * np.minimum(stats.binom.cdf(k, decided, 0.5), stats.binom.sf(k - 1, decided, 0.5)))
    return float(stats.binom.pmf(k, decided, wins)[p_values <= 1 - level].sum())


def sample_size(rate: float, *, ties: float = 0.0, power_wanted: float = 0.8, level: float = 0.95) -> int:
    """Smallest number of comparisons from which on the sign test keeps the wanted power (see :func:`power`).

    >>> sample_size(0.6)
    210
    """
    share = _share_of_decided(rate, ties)
    if share == 0.5:
        raise ValueError(f"rate {rate}: no sample is large enough to tell a half from a half; give another rate")
    z = stats.norm.ppf((1 + level) / 2) + stats.norm.ppf(power_wanted)
    n = max(2, int(0.5 * (z * 0.5 / abs(share - 0.5)) ** 2 / (1 - ties)))
    run = 0  # the exact test's power is a saw: wait until it has stayed above for a tooth
    while run < 20:
        run = run + 1 if power(rate, n, ties=ties, level=level) >= power_wanted else 0
        n += 1
    return n - run


def _share_of_decided(rate: float, ties: float) -> float:
    if not (0 <= ties < 1 and ties / 2 <= rate <= 1 - ties / 2):
        raise ValueError(f"rate {rate} with a share of ties of {ties}; accepted is ties / 2 <= rate <= 1 - ties / 2")
    return (rate - ties / 2) / (1 - ties)


def adjust(p_values, *, method: str = "holm") -> np.ndarray:
    """p-values corrected for having looked several times: ``holm`` (family-wise) or ``fdr_bh`` (false discoveries).

    >>> adjust([0.01, 0.04, 0.03]).round(2).tolist()
    [0.03, 0.06, 0.06]
    """
    return multipletests(np.asarray(p_values, float), method=method)[1]


def ranking(comparisons: pd.DataFrame, *, level: float = 0.95) -> pd.DataFrame:
    """Bradley-Terry scores of several models from their comparisons, with intervals.

    Args:
        comparisons: one row per comparison: ``model_a``, ``model_b``, ``outcome`` (1, 0.5, 0; a tie is half a win).

    Returns:
        Indexed by model, best first: ``reward`` (natural log odds, mean zero) with ``low`` and ``high`` from its
        standard error, and the same on Elo's scale (400 / log 10 times, around 1000) as ``elo``.

    Raises:
        bradley_terry.NoMaximum: a group of models never lost to, or never met, the others.
    """
    names = np.unique(comparisons[["model_a", "model_b"]].to_numpy().astype(str))
    a, b = (np.searchsorted(names, comparisons[column].to_numpy().astype(str)) for column in ("model_a", "model_b"))
    outcome = comparisons["outcome"].to_numpy(float)
    if not np.isin(outcome, (0.0, 0.5, 1.0)).all():
        row = int(np.flatnonzero(~np.isin(outcome, (0.0, 0.5, 1.0)))[0])
        raise ValueError(f"row {row}: outcome is {outcome[row]}; accepted are 1 (model_a wins), 0.5 (tie), 0")
    winners, losers, tied = np.where(outcome == 1, a, b), np.where(outcome == 1, b, a), outcome == 0.5
    tie_pairs = np.stack([a[tied], b[tied]], axis=1)
    fit = bradley_terry.fit(winners[~tied], losers[~tied], len(names), ties=tie_pairs if tied.any() else None)
    rewards, errors = fit.rewards.numpy(), fit.standard_errors.numpy()
    z = stats.norm.ppf((1 + level) / 2)
    table = {"reward": rewards, "low": rewards - z * errors, "high": rewards + z * errors}
    table["elo"] = 1000 + 400 / np.log(10) * rewards
    return pd.DataFrame(table, index=pd.Index(names, name="model")).sort_values("reward", ascending=False)
