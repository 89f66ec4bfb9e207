"""Reads the records of notebook 12: runs by method and rate, gaps between them, and what they cost.

A group is a list of results of ``contest.run``, a seed each; a value is [mean, low, high], its 95 % interval.
"""

import itertools
from dataclasses import dataclass

import numpy as np
import pandas as pd

from dpo_tutorial.training import contest_smollm2, records
from dpo_tutorial.training.contest import METHODS, ONE_SEED, rates

SEEDS = (0, 1, 2)
USES_REWARD_MODEL = ("RM + PPO", "RM + RLOO", "best-of-n")
COLUMNS = ["reward", "KL", "proxy", "words", "ended"]
SPENT = ("cpu_seconds", "generated", "forward", "backward")


def recorded(config: dict, seeds=SEEDS) -> list[dict]:
    """The results of one configuration, a seed each."""
    return [records.load("nb12", config | {"seed": seed})["results"] for seed in seeds]


def grid() -> dict[tuple[str, float], list[dict]]:
    """Every method at both learning rates: a group of three seeds, or of the first where a trial was not repeated."""
    keys = [(method, rate) for method in METHODS for rate in rates(method)]
    seeds = {key: SEEDS[:1] if key in ONE_SEED else SEEDS for key in keys}
    return {(m, r): recorded(METHODS[m] | {"learning_rate": r}, seeds[m, r]) for m, r in keys}


def ends(group: list[dict]) -> pd.DataFrame:
    """A row per seed: what the finished policies write on held-out prompts."""
    rows = [[run["final"][name][0] for name in ("reward", "kl", "proxy")] for run in group]
    rows = [[*row, run["final"]["words"], run["final"]["ended"]] for row, run in zip(rows, group, strict=True)]
    return pd.DataFrame(rows, columns=COLUMNS)


def table(groups: dict) -> pd.DataFrame:
    """Means over the seeds of :func:`ends`, how far apart the seeds' rewards lie (``spread``), and how many seeds."""
    found = {key: ends(group) for key, group in groups.items()}
    means = pd.DataFrame({key: frame.mean() for key, frame in found.items()}).T
    spread = [np.ptp(frame["reward"]) if len(frame) > 1 else np.nan for frame in found.values()]
    return means.assign(spread=spread, seeds=[len(frame) for frame in found.values()])


@dataclass
class Gap:
    """A difference between two groups: one value per seed, and the interval of their mean.

    The interval takes both sides as independent, though they answer the same prompts: it is too wide rather than
    too narrow. ``in_kl``: of a gap at equal KL, the same read in KL itself (:func:`at_kl`).
    """

    each: np.ndarray
    error: float
    in_kl: "Gap | None" = None

    @property
    def mean(self) -> float:
        return float(self.each.mean())

    @property
    def sign(self) -> int:
        """The sign where the difference is separated, else 0: three seeds agree and the interval excludes 0.

        With ``in_kl`` it is separated only where that one is too, with the same sign.
        """
        agree = len(self.each) >= 3 and len(set(np.sign(self.each))) == 1
        own = int(np.sign(self.mean)) if agree and abs(self.mean) > 1.96 * self.error else 0
        return own if self.in_kl is None or self.in_kl.sign == own else 0

    def __str__(self) -> str:
        low, high = self.mean - 1.96 * self.error, self.mean + 1.96 * self.error
        agree = int((np.sign(self.each) == np.sign(self.mean)).sum())
        return f"{self.mean:+.3f} [{low:+.3f}, {high:+.3f}], {agree} of {len(self.each)}"


def gap(one: list[list[float]], other: list[list[float]], scale=1.0) -> Gap:
    """One minus other, seed by seed, divided by ``scale`` (one number, or one per seed).

    >>> str(gap([[0.7, 0.6, 0.8]] * 3, [[0.5, 0.4, 0.6]] * 3))
    '+0.200 [+0.118, +0.282], 3 of 3'
    """
    one, other, scale = np.asarray(one), np.asarray(other), np.asarray(scale)
    errors = [(side[:, 2] - side[:, 1]) / 2 / 1.96 for side in (one, other)]
    total = np.sqrt(((errors[0] ** 2 + errors[1] ** 2) / scale**2).sum()) / len(one)
    return Gap((one[:, 0] - other[:, 0]) / scale, float(total))


def values(group: list[dict], name: str) -> list[list[float]]:
    """``name`` of the finished policies with its interval, a seed each."""
    return [run["final"][name] for run in group]


def at_kl(
    groups: list[list[dict]], kls: list[float], starts: list[list[float]], *, power: float = 0.5
) -> list[list[float]]:
    """The reward of a method at given KLs, a seed each, between its finished runs; beyond the last, that one's.

    Interpolated in the square root of KL, in which the optimum's reward grows about linearly near the reference
    (Gao et al., https://arxiv.org/abs/2210.10760): in KL itself a chord would lie below a frontier that is concave.

    Args:
        groups: the method's groups, one per setting; ``starts``: the reference's reward of each seed.
        power: of KL, in which it is interpolated; 1 for the chord.
    """
    found = []
    for seed, (kl, start) in enumerate(zip(kls, starts, strict=True)):
        points = sorted([(0.0, start), *((g[seed]["final"]["kl"][0], g[seed]["final"]["reward"]) for g in groups)])
        known, rewards = np.array([k for k, _ in points]) ** power, np.array([reward for _, reward in points])
        found.append([float(np.interp(kl**power, known, rewards[:, column])) for column in range(3)])
    return found


def gap_at_kl(group: list[dict], finished: list[list[dict]], starts: list[list[float]]) -> Gap:
    """True reward of ``group``'s finished runs minus what the groups ``finished`` of one method have at their KL."""
    kls = [run["final"]["kl"][0] for run in group]
    return gap_to_frontier(values(group, "reward"), kls, finished, starts)


def gap_to_frontier(rewards: list[list[float]], kls: list[float], finished: list[list[dict]], starts) -> Gap:
    """``rewards`` at ``kls``, a seed each, minus what one method's groups ``finished`` have there (:func:`at_kl`)."""
    root, chord = (gap(rewards, at_kl(finished, kls, starts, power=power)) for power in (0.5, 1.0))
    return Gap(root.each, root.error, in_kl=chord)


def spent(run: dict, *, method: str, share: float = 1.0) -> dict[str, dict[str, float]]:
    """What each stage had spent when ``share`` of the run was done; measuring is free.

    The reward model and the reference's pass are paid before the first step. The reward model counts for the methods
    that use it; the others have it for measuring only.
    """
    free = {"measuring"} if method in USES_REWARD_MODEL else {"measuring", "reward model"}
    running = {"train": share, "samples": share}
    stages = {name: stage for name, stage in run["spent"].items() if name not in free}
    return {name: {w: stage[w] * running.get(name, 1) for w in SPENT} for name, stage in stages.items()}


def cost_to_reach(run: dict, *, reward: float, method: str, start: float, total: int) -> dict[str, float] | None:
    """What had been spent when the true reward first reached ``reward``; None if it never did.

    Args:
        run: results of ``contest.run``; ``start``: the reference's reward; ``total``: steps or iterations of the run.

    Returns:
        ``share`` of the run, ``kl`` there, and ``cpu_seconds, generated, forward, backward``, interpolated between
        the measured points.
    """
    points = [(0.0, 0.0, start)] + [(p["at"] / total, p["kl"][0], p["reward"][0]) for p in run["curve"]]
    points.append((1.0, run["final"]["kl"][0], run["final"]["reward"][0]))
    for (share, kl, low), (next_share, next_kl, high) in itertools.pairwise(points):
        if high >= reward:
            part = (reward - low) / (high - low) if high > low else 1.0
            found = {"share": share + part * (next_share - share), "kl": kl + part * (next_kl - kl)}
            break
    else:
        return None
    stages = spent(run, method=method, share=found["share"]).values()
    found |= {what: sum(stage[what] for stage in stages) for what in SPENT}
    return {name: round(value, 9) for name, value in found.items()}


def ratios(costs: dict, method: str, target: float, what: str) -> list[float]:
    """What ``method`` had spent over what DPO had, a seed each, where both reached ``target``.

    Args:
        costs: (method, target) -> a result of :func:`cost_to_reach` per seed.
    """
    both = zip(costs[method, target], costs["DPO", target], strict=True)
    return [one[what] / dpo[what] for one, dpo in both if one and dpo]


def cost_table(costs: dict) -> pd.DataFrame:
    """A row per (method, target): means over the seeds that got there; cost over DPO's, lowest to highest."""
    rows = {}
    for (method, target), each in costs.items():
        found = pd.DataFrame([cost for cost in each if cost], columns=["kl", *SPENT])
        row = {"seeds": str(len(found))} | {name: f"{value:,.0f}" for name, value in found.mean().items()}
        if found.empty:
            row = {"seeds": "never reached"}
        for what in () if found.empty or method == "DPO" else ("cpu_seconds", "forward", "backward"):
            over = ratios(costs, method, target, what)
            row[f"{what} / DPO's"] = f"{min(over):.1f} to {max(over):.1f}"
        rows[method, target] = row
    return pd.DataFrame(rows).T.fillna("")


def windows(group: list[dict], name: str, width: int = 5) -> np.ndarray:
    """(seeds, windows): means over ``width`` iterations of what PPO's own fresh responses showed."""
    rows = np.array([[row[name] for row in run["rollouts"]] for run in group])
    return rows.reshape(len(rows), -1, width).mean(2)


def apart(one: pd.Series, other: pd.Series) -> bool:
    """Whether two rows of :func:`smollm2` differ in reward by more than the interval of the difference."""
    found = gap(*([row[["reward", "reward_low", "reward_high"]].tolist()] for row in (one, other)))
    return abs(found.mean) > 1.96 * found.error


def smollm2() -> pd.DataFrame:
    """A row per policy of the recorded runs on SmolLM2, one seed: what it writes, and what it took until there.

    Columns: ``reward, kl, words`` with ``_low, _high`` (95 %, by prompt), ``ended``, the currencies ``SPENT`` of all
    stages together, the process's ``peak_gb``, and ``judge_train, judge_heldout``, the reward model's accuracies.
    Of the reference the reward alone is recorded.
    """
    rows = {}

    def add(name, record, point, **which):
        run = record["results"]
        rows[name] = {"ended": point["ended"], "peak_gb": record["peak_gb"]}
        rows[name] |= {f"judge_{part}": share for part, share in run.get("judge_accuracy", {}).items()}
        for measure in ("reward", "kl", "words"):
            rows[name] |= dict(zip((measure, f"{measure}_low", f"{measure}_high"), point[measure], strict=True))
        stages = spent(run, **which).values()
        rows[name] |= {what: sum(stage[what] for stage in stages) for what in SPENT}

    for epochs, config in contest_smollm2.DPO.items():
        record = records.load("nb12_smollm2", config)
        run = record["results"]
        rows["reference"] = dict(zip(("reward", "reward_low", "reward_high"), run["before"]["reward"], strict=True))
        add(f"DPO, {epochs:g} epoch{'s' * (epochs > 1)}", record, run["final"], method="DPO")
    record = records.load("nb12_smollm2", contest_smollm2.DPO_BY_TRL)
    add("DPO, 1 epoch, TRL's step", record, record["results"]["final"], method="DPO")
    for rate, config in contest_smollm2.RLOO.items():
        record, last = records.load("nb12_smollm2", config), config["iterations"]
        run = record["results"]
        for at, point in [(point["at"], point) for point in run["curve"]] + [(last, run["final"])]:
            add(f"RM + RLOO {rate:g}, {at} iterations", record, point, method="RM + RLOO", share=at / last)
    return pd.DataFrame(rows).T.astype(float)
