"""What one check of an audit returns, and the small statistics that several checks share."""

from dataclasses import dataclass, field

import numpy as np
import pandas as pd

from dpo_tutorial.data import filters


@dataclass
class Check:
    """One check: what was measured, and, where something is wrong, what and how to mend it.

    ``key`` names it, ``group`` what it has in common with others; ``numbers`` are its figures; ``rows`` the positions
    of the rows it points at; ``series`` holds arrays for plots and stays out of the JSON report; ``severity`` (0 when
    nothing is wrong) orders the findings.
    """

    key: str
    title: str
    summary: str
    numbers: dict = field(default_factory=dict)
    finding: str = ""
    remedy: str = ""
    severity: float = 0.0
    rows: np.ndarray = field(default_factory=lambda: np.zeros(0, dtype=int))
    series: dict = field(default_factory=dict)
    group: str = ""


@dataclass
class Pairs:
    """What the checks look at: all pairs, their texts as strings, and a sample for the slow checks."""

    frame: pd.DataFrame
    prompts: list[str]
    chosen: list[str]
    rejected: list[str]
    sample: np.ndarray
    seed: int

    @classmethod
    def of(cls, frame: pd.DataFrame, *, sample: int, seed: int) -> "Pairs":
        texts = [[filters.as_text(value) for value in frame[name]] for name in ("prompt", "chosen", "rejected")]
        for name, values in zip(("prompt", "chosen", "rejected"), texts, strict=True):
            # The same strings, not copies: every filter below reads them as they are.
            frame = frame.assign(**{name: pd.Series(values, dtype=object, index=frame.index)})
        picks = np.random.default_rng(seed).permutation(len(frame))[:sample]
        return cls(frame, *texts, np.sort(picks), seed)

    def __len__(self) -> int:
        return len(self.frame)


@dataclass(frozen=True)
class Share:
    """A share with its interval (95 %): pairs of one prompt are one cluster."""

    value: float
    low: float
    high: float
    n: int

    def text(self) -> str:
        return f"{per_cent(self.value)} (95 % interval {per_cent(self.low, False)} to {per_cent(self.high)})"

    def numbers(self, name: str) -> dict:
        return {name: self.value, f"{name}_low": self.low, f"{name}_high": self.high, f"{name}_n": self.n}


def share(outcomes: np.ndarray, clusters: np.ndarray) -> Share:
    """Mean of outcomes in [0, 1] with a normal interval whose error is that of a ratio of cluster sums.

    >>> share(np.array([1.0, 0.0, 1.0, 0.0]), np.arange(4)).value
    0.5
    """
    if not len(outcomes):
        return Share(float("nan"), float("nan"), float("nan"), 0)
    codes = np.unique(clusters, return_inverse=True)[1]
    value = outcomes.mean()
    sums = np.bincount(codes, weights=outcomes - value)
    groups = len(sums)
    error = np.sqrt((sums**2).sum() * groups / max(groups - 1, 1)) / len(outcomes)
    floor = np.sqrt(
        max(value * (1 - value), 1 / (groups + 4)) / (groups + 4)
    )  # as wide as Agresti-Coull's at 0 and 1
    width = 1.96 * max(error, floor if error == 0 else 0.0)
    return Share(float(value), float(max(0.0, value - width)), float(min(1.0, value + width)), len(outcomes))


def per_cent(value: float, unit: bool = True) -> str:
    """A share in per cent with one decimal; small ones are not rounded to nothing.

    >>> per_cent(0.123), per_cent(0.00004)
    ('12.3 %', '0.004 %')
    """
    text = f"{100 * value:.1f}" if value == 0 or abs(value) >= 0.0005 else f"{100 * value:.1g}"
    return text + (" %" if unit else "")


def quantiles(values: np.ndarray) -> dict:
    """Smallest, 5 %, median, mean, 95 % and largest."""
    low, middle, high = np.quantile(values, [0.05, 0.5, 0.95])
    names = ("min", "p05", "median", "mean", "p95", "max")
    return dict(zip(names, map(float, (min(values), low, middle, np.mean(values), high, max(values))), strict=True))


def count(n: int, singular: str, plural: str = "") -> str:
    """``1 pair``, ``1,234 pairs``."""
    return f"{n:,} {singular if n == 1 else plural or singular + 's'}"
