"""The figures of notebook 15, from its frames and recorded runs."""

from collections.abc import Iterable, Sequence

import numpy as np
import pandas as pd

from dpo_tutorial.display import plots

GREY = "#c4c4c4"
EPOCH = {"right": "problems solved", "calculations": "calculations per problem", "everyday_words": "words, everyday"}
ARM_ROLES = ("rejected", "chosen", "reference", "optimum")


def _bars(frame: pd.DataFrame, value: str) -> list[pd.Series]:
    """Lengths of the error bars around ``value``, down and up, from the columns ``low`` and ``high``."""
    return [frame[value] - frame["low"], frame["high"] - frame[value]]


def raw_and_controlled(
    rates: pd.DataFrame, rest: Iterable[str], arrows: Sequence[tuple[str, str, str, str]], *, star: tuple[str, str]
):
    """Raw against length-controlled win rates in per cent, both on logarithmic axes.

    Args:
        rates: two columns, raw and controlled, indexed by model.
        rest: the models that are a grey dot each.
        arrows: (from, to, role, label) between two models.
        star: (model, label) of the one that gets a star.
    """
    fig, ax = plots.figure(width=7, height=4.6)
    ax.plot(*rates.loc[list(rest)].to_numpy().T, "o", color=GREY, markersize=5)
    ax.plot([1.5, 90], [1.5, 90], **plots.line("reference", label="no change"))
    for one, two, role, label in arrows:
        arrow = {"arrowstyle": "-|>", "color": plots.COLOURS[role], "linewidth": 2, "linestyle": plots.STYLES[role]}
        ax.annotate("", rates.loc[two], rates.loc[one], arrowprops=arrow | {"shrinkA": 0, "shrinkB": 0})
        ax.plot([], [], **plots.line(role, label=label))
    ax.plot(*rates.loc[star[0]], "*", color="black", markersize=12, linestyle="none", label=star[1])
    ax.set(xscale="log", yscale="log", xlabel="raw win rate (%)", ylabel="length-controlled win rate (%)")
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_major_formatter("{x:g}")
        axis.set_ticks([2, 5, 10, 20, 50, 90])
        axis.set_minor_formatter("")
    ax.legend(loc="upper left")
    return fig


def judges_and_people(against: pd.DataFrame, machines: Sequence[str], between: Sequence[float]):
    """Accuracy with its interval, and kappa, a row per judge: squares for ``machines``, circles for the rules.

    Args:
        against: ``accuracy, low, high, kappa``, indexed by judge.
        between: kappas of pairs of people; a band spans them.
    """
    order = against.sort_values("accuracy").assign(place=range(len(against)))
    fig, axes = plots.figure(1, 2, width=10, height=3.6, sharey=True)
    for names, role, marker in ((machines, "policy", "s"), (order.index.difference(machines), "chosen", "o")):
        part, look = order.loc[names], {"marker": marker, "color": plots.COLOURS[role], "linestyle": "none"}
        axes[0].errorbar(part["accuracy"], part["place"], xerr=_bars(part, "accuracy"), capsize=3, **look)
        axes[1].plot(part["kappa"], part["place"], **look)
    band = {"color": plots.COLOURS["optimum"], "alpha": 0.5, "label": "people among themselves"}
    axes[1].axvspan(min(between), max(between), **band)
    axes[0].set(yticks=order["place"], yticklabels=order.index, ylim=(-0.6, len(order) + 0.2), xlim=(0.55, 0.8))
    axes[0].set_xlabel("accuracy against the majority of people")
    axes[1].set(xlabel="kappa with a person", xlim=(0, 1))
    axes[1].legend(loc="upper left")
    return fig


def capability_changes(changes: dict[str, pd.DataFrame], by_beta: pd.DataFrame, title: str):
    """Change of ``p`` by family with intervals, a panel per training run, and against beta in the last panel.

    Args:
        changes: title -> ``change, low, high``, indexed by family, as ``capabilities.compare`` gives them.
        by_beta: such frames one below the other, indexed by (beta, family); the family "all" is drawn in black.
        title: of the last panel.
    """
    fig, axes = plots.figure(1, len(changes) + 1, width=12, height=3.6)
    black = {"color": plots.COLOURS["policy"], "capsize": 3}
    for ax, (name, change) in zip(axes, changes.items(), strict=False):
        change = change.iloc[::-1]
        ax.errorbar(change["change"], range(len(change)), xerr=_bars(change, "change"), fmt="o", **black)
        ax.axvline(0, **plots.line("reference"))
        ax.set(yticks=range(len(change)), yticklabels=change.index, title=name, xlabel="change of p")
        ax.set_xlim(-0.24, 0.24)
    overall = by_beta.xs("all", level=1)
    betas = list(overall.index)
    for family in by_beta.index.unique(level=1).drop("all"):
        axes[-1].plot(betas, by_beta.xs(family, level=1)["change"], color=GREY, linewidth=1)
    axes[-1].errorbar(betas, overall["change"], yerr=_bars(overall, "change"), fmt="o-", **black)
    axes[-1].axhline(0, **plots.line("reference"))
    axes[-1].set(title=title, ylabel="change of p", ylim=(-0.06, 0.12))
    plots.log_ticks(axes[-1], betas, "beta")
    return fig


def along_the_epoch(start: dict, arms: dict[str, list[dict]]):
    """A panel per measure of ``EPOCH``, a line per arm and seed: from ``start`` over what was measured on the way.

    Args:
        start: measure -> values of the single problems, before training.
        arms: name -> a run per seed, whose ``measured`` holds such dictionaries, evenly spaced to the end.
    """
    fig, axes = plots.figure(1, len(EPOCH), width=12, height=3.4)
    for ax, (what, label) in zip(axes, EPOCH.items(), strict=True):
        for (arm, runs), role in zip(arms.items(), ARM_ROLES, strict=True):
            for seed, run in enumerate(runs):
                curve = [np.mean(one[what]) for one in (start, *run["measured"])]
                parts = np.linspace(0, 1, len(curve))
                ax.plot(parts, curve, marker=".", **plots.line(role, label="" if seed else arm))
        ax.set(xlabel="part of the epoch", ylabel=label, ylim=(0, None), xticks=parts)
    axes[0].legend(loc="lower left")
    return fig
