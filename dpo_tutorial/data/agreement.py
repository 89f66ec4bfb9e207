"""Agreement between annotators: percent, Cohen's and Fleiss' kappa, Krippendorff's alpha, with bootstrap intervals.

The coefficients are those of statsmodels and krippendorff. Each interval draws whole items again with all their
ratings (the item is the unit: ratings of one item are not independent). Labels may be numbers or strings.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pandas as pd


@dataclass(frozen=True)
class Agreement:
    """A coefficient with its bootstrap interval: ``low <= value <= high`` in all but odd samples."""

    value: float
    low: float
    high: float
    items: int


def percent_agreement(a, b, *, level: float = 0.95, repetitions: int = 2000, seed: int = 0) -> Agreement:
    """Share of items to which two raters gave the same label.

    Args:
        a, b: (N,) labels, item by item; none may be missing.
        level, repetitions, seed: of the bootstrap over items.

    >>> percent_agreement([1, 2, 1, 0], [1, 2, 2, 0]).value
    0.75
    """
    table = _cross_table(a, b)
    return _over_cells(table, lambda counts: np.trace(counts) / counts.sum(), level, repetitions, seed)


def cohen_kappa(
    a, b, *, weights: str | None = None, level: float = 0.95, repetitions: int = 2000, seed: int = 0
) -> Agreement:
    """Cohen's kappa of two raters, ``(p_o - p_e) / (1 - p_e)`` with p_e from each rater's own shares.

    Args:
        a, b: (N,) labels, item by item; none may be missing (:func:`krippendorff_alpha` allows that).
        weights: None, or ``"linear"`` or ``"quadratic"`` for ordered labels: near misses count in part.
        level, repetitions, seed: of the bootstrap over items.

    Raises:
        ValueError: lengths differ, a label is missing, or both raters gave one and the same label throughout.

    >>> round(cohen_kappa([1, 1, 2, 2], [1, 1, 2, 1]).value, 3)
    0.5
    """
    from statsmodels.stats.inter_rater import cohens_kappa

    if weights not in (None, "linear", "quadratic"):
        raise ValueError(f"weights is {weights!r}; accepted are None, 'linear', 'quadratic'")
    table = _cross_table(a, b)
    _refuse_constant(len(table))
    kappa = functools.partial(cohens_kappa, wt=weights, return_results=False)
    return _over_cells(table, kappa, level, repetitions, seed)


def fleiss_kappa(ratings, *, level: float = 0.95, repetitions: int = 2000, seed: int = 0) -> Agreement:
    """Fleiss' kappa of any number of raters, chance agreement from the pooled shares of the labels.

    Args:
        ratings: (raters, items) labels, every item rated by every rater.
        level, repetitions, seed: of the bootstrap over items.

    >>> round(fleiss_kappa([[1, 2, 1, 2], [1, 2, 1, 1], [1, 2, 2, 2]]).value, 3)
    0.333
    """
    from statsmodels.stats.inter_rater import fleiss_kappa as library

    counts = _label_counts(_table(ratings))
    if short := np.flatnonzero(counts.sum(1) < counts.sum(1).max()).tolist():
        raise ValueError(f"item {short[0]} lacks a rating; krippendorff_alpha takes missing ratings")
    _refuse_constant(counts.shape[1])
    return _over_items(counts, library, level, repetitions, seed)


def krippendorff_alpha(
    ratings, *, measurement: str = "nominal", level: float = 0.95, repetitions: int = 1000, seed: int = 0
) -> Agreement:
    """Krippendorff's alpha, ``1 - observed / expected disagreement``; ratings may be missing.

    Args:
        ratings: (raters, items) labels, NaN or None where a rater did not see an item.
        measurement: ``"nominal"``, ``"ordinal"``, ``"interval"`` or ``"ratio"`` (numbers in all but the first).
        level, repetitions, seed: of the bootstrap over items.

    >>> round(krippendorff_alpha([[1, 2, 1, float("nan")], [1, 2, 2, 1]]).value, 3)
    0.444
    """
    import krippendorff

    if measurement not in ("nominal", "ordinal", "interval", "ratio"):
        raise ValueError(f"measurement is {measurement!r}; accepted are 'nominal', 'ordinal', 'interval', 'ratio'")
    table = _table(ratings)
    counts = _label_counts(table)
    _refuse_constant(counts.shape[1])
    counts = counts[counts.sum(1) > 1]  # an item rated once tells nothing about agreement
    if not len(counts):
        raise ValueError("no item has two ratings; agreement needs items that several raters saw")
    domain = np.arange(counts.shape[1]) if measurement == "nominal" else np.array(_labels(table)[1], float)

    def alpha(value_counts):
        return krippendorff.alpha(value_counts=value_counts, value_domain=domain, level_of_measurement=measurement)

    return _over_items(counts, alpha, level, repetitions, seed)


def majority(ratings) -> np.ndarray:
    """(items,) the label that more than half of an item's raters gave, None where there is none.

    >>> majority([[1, 2, 0], [1, 0, 1], [2, 2, 2]]).tolist()
    [1, 2, None]
    """
    table = _table(ratings)
    codes, labels = _labels(table)
    counts = _label_counts(table)
    best = counts.argmax(1)
    wins = 2 * counts.max(1) > (codes >= 0).sum(0)
    return np.array([labels[k] if won else None for k, won in zip(best, wins, strict=True)], dtype=object)


def _table(ratings) -> pd.DataFrame:
    """Ratings as a table of raters x items."""
    if isinstance(ratings, pd.DataFrame):
        return ratings
    rows = [list(row) for row in ratings]
    if len({len(row) for row in rows}) != 1 or len(rows) < 2 or not rows[0]:
        raise ValueError(
            f"{len(rows)} raters with {[len(row) for row in rows][:5]} ratings; "
            "give two raters or more, one row of ratings each, all equally long (raters x items)"
        )
    return pd.DataFrame(rows, dtype=object)


def _labels(table: pd.DataFrame) -> tuple[np.ndarray, list]:
    """(raters x items) codes of the labels, -1 where missing, and the labels in order."""
    flat = table.to_numpy(dtype=object).ravel()
    codes, labels = pd.factorize(flat, use_na_sentinel=True)
    order = np.array(sorted(range(len(labels)), key=lambda k: (str(type(labels[k])), labels[k])), dtype=int)
    rank = np.empty(len(order) + 1, dtype=int)
    rank[order], rank[-1] = np.arange(len(order)), -1
    return rank[codes].reshape(table.shape), [labels[k] for k in order]


def _label_counts(table: pd.DataFrame) -> np.ndarray:
    """(items, labels): how many raters gave each label to each item."""
    codes, labels = _labels(table)
    return np.stack([(codes == k).sum(0) for k in range(len(labels))], axis=1)


def _cross_table(a, b) -> np.ndarray:
    """(labels, labels) counts of the pairs of labels that two raters gave."""
    a, b = list(a), list(b)
    if len(a) != len(b) or not a:
        raise ValueError(
            f"{len(a)} and {len(b)} labels; give the same number of labels, one or more, for both raters"
        )
    codes, labels = _labels(_table([a, b]))
    if missing := np.flatnonzero((codes < 0).any(0)).tolist():
        raise ValueError(f"item {missing[0]} lacks a label; drop it, or use krippendorff_alpha, which allows that")
    return np.bincount(codes[0] * len(labels) + codes[1], minlength=len(labels) ** 2).reshape(len(labels), -1)


def _refuse_constant(labels: int) -> None:
    if labels < 2:
        raise ValueError(
            "all ratings are the same label: a coefficient corrected for chance is 0/0 there; "
            "report percent_agreement, or collect items that can be told apart"
        )


def _over_cells(table: np.ndarray, statistic: Callable, level: float, repetitions: int, seed: int) -> Agreement:
    """Bootstrap of two raters' items: drawing items again is drawing the table's cells from a multinomial."""
    total = int(table.sum())
    draws = np.random.default_rng(seed).multinomial(total, table.ravel() / total, size=repetitions)
    return _interval(statistic, table, (draw.reshape(table.shape) for draw in draws), level, total)


def _over_items(counts: np.ndarray, statistic: Callable, level: float, repetitions: int, seed: int) -> Agreement:
    """Bootstrap of several raters' items: rows of ``counts`` are drawn again."""
    rng = np.random.default_rng(seed)
    draws = (counts[rng.integers(len(counts), size=len(counts))] for _ in range(repetitions))
    return _interval(statistic, counts, draws, level, len(counts))


def _interval(statistic: Callable, data: np.ndarray, draws, level: float, items: int) -> Agreement:
    if not 0 < level < 1:
        raise ValueError(f"level is {level}; it is a share between 0 and 1, for example 0.95")
    values = []
    with np.errstate(divide="ignore", invalid="ignore"):
        value = float(statistic(data))
        for draw in draws:
            if (draw.reshape(-1, draw.shape[-1]).sum(0) > 0).sum() > 1:  # a draw of one label only has no coefficient
                values.append(float(statistic(draw)))
    low, high = np.nanquantile(values, [(1 - level) / 2, (1 + level) / 2]) if values else (np.nan, np.nan)
    return Agreement(value, float(low), float(high), items)
