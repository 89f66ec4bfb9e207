"""The figures of notebook 12, from runs as ``training.contest.run`` returns them: a list holds a run per seed."""

from collections.abc import Sequence

import numpy as np

from dpo_tutorial.display import plots

LOOKS = {
    "SFT": {"color": plots.COLOURS["reference"], "marker": "s", "linestyle": ":"},
    "DPO": {"color": plots.COLOURS["chosen"], "marker": "o", "linestyle": "-"},
    "RM + PPO": {"color": plots.COLOURS["rejected"], "marker": "^", "linestyle": "--"},
    "RM + RLOO": {"color": plots.COLOURS["rejected"], "marker": "v", "linestyle": ":"},
    "true reward + PPO": {"color": plots.COLOURS["optimum"], "marker": "D", "linestyle": "-"},
    "best-of-n": {"color": plots.COLOURS["policy"], "marker": "x", "linestyle": "-."},
}


def points(runs: Sequence[dict], name: str, first: Sequence[float]) -> np.ndarray:
    """(seeds, points): ``name`` from ``first`` at the reference over the curve to the end."""
    rows = [[p[name][0] for p in (*run["curve"], run["final"])] for run in runs]
    return np.array([[start, *row] for start, row in zip(first, rows, strict=True)])


def _ends(ax, x: np.ndarray, y: np.ndarray, **look) -> None:
    """Mean of (x, y) with bars from the smallest to the largest seed."""
    bars = [np.array([[v.mean() - v.min()], [v.max() - v.mean()]]).clip(min=0) for v in (x, y)]
    ax.errorbar(x.mean(), y.mean(), xerr=bars[0], yerr=bars[1], capsize=3, elinewidth=1.2, linestyle="none", **look)


def frontier(panels: Sequence[dict], best: Sequence[dict], starts: Sequence[float]):
    """Reward against KL, a panel per dictionary of methods: (method, rate) -> runs; ``best`` are runs of best-of-n.

    Lines are the way there, means over seeds, with a band of the seeds' rewards where there are three; marks are the
    ends, with bars over seeds.
    """
    fig, axes = plots.figure(1, len(panels), width=10, height=4.0, sharey=True)
    for ax, groups in zip(axes, panels, strict=True):
        for k, ((name, _), runs) in enumerate(groups.items()):
            look = LOOKS[name]
            zeros = [0.0] * len(runs)
            kl, reward = (points(runs, *of) for of in (("kl", zeros), ("reward", starts[: len(runs)])))
            first = name not in [method for method, _ in list(groups)[:k]]
            line = {"color": look["color"], "linestyle": look["linestyle"], "linewidth": 1.1}
            plots.band(ax, kl.mean(0), reward, **line)
            label = {"label": name} if first else {}
            _ends(ax, kl[:, -1], reward[:, -1], color=look["color"], marker=look["marker"], **label)
        ax.set(xlabel="KL(policy, reference), nats")
    kl = [size["kl_bound"] for size in best[0]["sizes"]]
    rewards = np.array([[size["reward"][0] for size in run["sizes"]] for run in best])
    look = LOOKS["best-of-n"]
    plots.band(axes[0], kl, rewards, color=look["color"], linestyle=look["linestyle"], marker="x", label="best-of-n")
    axes[0].set(ylabel="true reward, P(positive)")
    for ax in axes:
        ax.legend(fontsize=8, loc="lower right")
    return fig


def arms(rows: dict[str, list[dict]], names: Sequence[tuple[str, str]], lines: Sequence[Sequence[float]]):
    """A panel per (name, label): a row per arm with a dot per seed; ``lines`` are the reference's values, dotted."""
    fig, axes = plots.figure(1, len(names), width=10, height=0.36 * len(rows) + 1.0, sharey=True)
    for ax, (name, label), reference in zip(axes, names, lines, strict=True):
        for value in reference:
            ax.axvline(value, **plots.line("reference", label=None, linewidth=0.8))
        for y, (arm, runs) in enumerate(rows.items()):
            finals = [run["final"][name] for run in runs]
            x = [value[0] if isinstance(value, list) else value for value in finals]
            role = "chosen" if arm.startswith("DPO") and "PPO" not in arm else "rejected"
            ax.plot(x, [-y] * len(x), "o", color=plots.COLOURS[role], markersize=4.5, alpha=0.8)
        ax.set(xlabel=label)
    axes[0].set_yticks([-y for y in range(len(rows))], list(rows))
    return fig


def stages(costs: dict[str, dict[str, float]], *, unit: str):
    """Stacked horizontal bars: per method, what each stage took."""
    fig, ax = plots.figure(1, 1, width=8, height=0.5 * len(costs) + 1.2)
    names = list(dict.fromkeys(stage for stage_costs in costs.values() for stage in stage_costs))
    shades = dict(zip(names, plots.SWEEP[:: max(1, len(plots.SWEEP) // len(names))], strict=False))
    for y, stage_costs in enumerate(costs.values()):
        left = 0.0
        for stage, value in stage_costs.items():
            ax.barh(-y, value, left=left, color=shades[stage], edgecolor="white", height=0.65)
            left += value
        ax.text(left, -y, f" {left:.0f}", va="center", fontsize=9)
    for stage in names:
        ax.bar(0, 0, color=shades[stage], label=stage)
    ax.set_yticks([-y for y in range(len(costs))], list(costs))
    ax.set_xlabel(unit)
    ax.margins(x=0.12)
    ax.set_xlim(left=0)
    ax.legend(fontsize=8, ncols=len(names), loc="lower center", bbox_to_anchor=(0.4, 1.0))
    return fig


def true_and_proxy(panels: dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]]):
    """Per panel (seeds, points) of KL, true and proxy reward: a line per seed, true reward on the left axis."""
    fig, axes = plots.figure(1, len(panels), width=10, height=3.5)
    for ax, (title, (kl, true, proxy)) in zip(axes, panels.items(), strict=True):
        twin = ax.twinx()
        twin.grid(False)
        twin.spines["right"].set_visible(True)
        for k in range(len(kl)):
            label = {"label": "true"} if k == 0 else {}
            ax.plot(kl[k], true[k], color=plots.COLOURS["optimum"], linewidth=1.4, **label)
            twin.plot(kl[k], proxy[k], color=plots.COLOURS["rejected"], linestyle="--", linewidth=1.2)
        ax.plot([], [], color=plots.COLOURS["rejected"], linestyle="--", label="proxy (right axis)")
        ax.set(title=title, xlabel="KL, nats")
        ax.set_ylim(0.35, 1.0)
        low, high = min(p.min() for _, _, p in panels.values()), max(p.max() for _, _, p in panels.values())
        twin.set_ylim(low - 0.3, high + 0.3)
        if ax is axes[0]:
            ax.set_ylabel("true reward, P(positive)")
            ax.legend(fontsize=8, loc="lower right")
        if ax is axes[-1]:
            twin.set_ylabel("proxy reward, log-odds")
    return fig
