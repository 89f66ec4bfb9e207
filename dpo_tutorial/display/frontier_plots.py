"""The figures of notebook 11, drawn from runs as ``training.frontier.run`` returns them (dictionaries of numbers).

A list of runs holds one run per seed; ``starts`` are the reference's rewards, one per seed, where every curve begins.
"""

from collections.abc import Sequence

import numpy as np

from dpo_tutorial.display import plots


def curve(runs: Sequence[dict], name: str, starts: Sequence[float]) -> tuple[list[int], np.ndarray]:
    """Steps, and the values (seeds, steps) of ``name``: from ``starts`` at step 0 to the end of the run.

    Quantities with an interval give their mean.
    """
    points = [[*run["curve"], run["final"]] for run in runs]
    means = [[p[name][0] if isinstance(p[name], list) else p[name] for p in row] for row in points]
    return [0] + [p["step"] for p in points[0]], np.array(
        [[start, *row] for start, row in zip(starts, means, strict=True)]
    )


def while_training(by_beta: dict, starts: Sequence[float]):
    """KL and reward by step, a band over seeds for each beta; light is low beta."""
    fig, axes = plots.figure(1, 2, width=10, height=3.4)
    zeros = [0.0] * len(starts)
    for shade, (beta, runs) in zip(plots.SWEEP, by_beta.items(), strict=True):
        for ax, name, first in zip(axes, ("kl", "reward"), (zeros, starts), strict=True):
            plots.band(ax, *curve(runs, name, first), color=shade, label=f"beta {beta:g}")
    axes[0].set(xlabel="step", ylabel="KL(policy, reference), nats")
    axes[1].set(xlabel="step", ylabel="true reward, P(positive)")
    axes[0].legend(fontsize=8)
    return fig


def endpoint(ax, runs: Sequence[dict], **style) -> None:
    """Mean of KL and reward at the end, with bars from the smallest to the largest seed."""
    kl, reward = (np.array([run["final"][name][0] for run in runs]) for name in ("kl", "reward"))
    bars = [np.array([[v.mean() - v.min()], [v.max() - v.mean()]]) for v in (kl, reward)]
    ax.errorbar(kl.mean(), reward.mean(), xerr=bars[0], yerr=bars[1], capsize=3, **style)


def reward_against_kl(by_beta: dict, baselines: dict, floor: Sequence[dict], starts: Sequence[float]):
    """The frontier: ends of the runs with bars over seeds, and the way there as thin lines."""
    fig, ax = plots.figure(1, 1, width=7.5, height=4.2)
    zeros = [0.0] * len(starts)
    for shade, (beta, runs) in zip(plots.SWEEP, by_beta.items(), strict=True):
        path = [curve(runs, name, first)[1].mean(axis=0) for name, first in (("kl", zeros), ("reward", starts))]
        ax.plot(*path, color=shade, linewidth=1, alpha=0.6)
        endpoint(ax, runs, fmt="o", color=shade, label=f"DPO, beta {beta:g}")
    for (name, runs), marker in zip(baselines.items(), "sD", strict=True):
        endpoint(ax, runs, fmt=marker, color=plots.COLOURS["rejected"], label=name)
    endpoint(ax, floor, fmt="x", color=plots.COLOURS["reference"], label="shuffled labels")
    ax.set(xlabel="KL(policy, reference), nats", ylabel="true reward, P(positive)")
    ax.legend(fontsize=8, loc="lower right")
    return fig


def loss_and_reward(by_beta: dict, low: float, high: float, starts: Sequence[float], long: dict):
    """Held-out preference loss and true reward by step, for a low and a high beta, and for epochs without end.

    Args:
        long: label and runs of notebook 08 over several epochs; their loss has a panel of its own, their reward is
            drawn beside the others'.
    """
    fig, axes = plots.figure(1, 3, width=10, height=3.2)
    for role, beta in (("policy", low), ("rejected", high)):
        style = plots.line(role, label=f"beta {beta:g}")
        plots.band(axes[0], *curve(by_beta[beta], "heldout_loss", [np.log(2)] * len(starts)), **style)
        plots.band(axes[2], *curve(by_beta[beta], "reward", starts), **style)
    for label, runs in long.items():
        loss = np.array([run["curves"]["eval_loss"] for run in runs])  # (seeds, points, (step, value))
        reward = np.array([[[step, found["reward"]] for step, found in run["measured"]] for run in runs])
        for ax, values in ((axes[1], loss), (axes[2], reward)):
            plots.band(ax, values[0, :, 0], values[:, :, 1], **plots.line("optimum", label=label))
    for ax in axes[:2]:
        ax.axhline(np.log(2), **plots.line("reference", label="log 2"))
        ax.set(ylabel="held-out preference loss")
    axes[2].set(ylabel="true reward, P(positive)")
    for ax in axes:
        ax.set(xlabel="step")
        ax.legend(fontsize=8)
    return fig


def steered_and_retrained(distances: dict, grid, ruler: float, lines: dict, retrained: Sequence[dict], label: str):
    """Left: distance per token to each retrained policy by strength. Right: frontiers of steered policies.

    Args:
        distances: per beta of the retrained policy (high first), (seeds, len(grid)).
        ruler: the distance between two seeds.
        lines: per label, (points, 2) of KL and reward; drawn in green, black, orange.
        retrained, label: one policy's runs, marked on the right.
    """
    fig, axes = plots.figure(1, 2, width=10, height=3.9)
    for shade, (beta, values) in zip(plots.SWEEP[::-1], distances.items(), strict=False):
        plots.band(axes[0], grid, np.abs(values), color=shade, label=f"retrained at {beta:g}")
    axes[0].axhline(ruler, **plots.line("reference", label="between two seeds"))
    for (name, points), role in zip(lines.items(), ("optimum", "policy", "rejected"), strict=True):
        axes[1].plot(*np.asarray(points).T, marker="o", **plots.line(role, label=name))
    endpoint(axes[1], retrained, fmt="s", color=plots.COLOURS["chosen"], label=label)
    axes[0].set(xlabel="strength", ylabel="distance per token, nats")
    axes[1].set(xlabel="KL(policy, reference), nats", ylabel="true reward, P(positive)")
    axes[1].set(xlim=(-0.3, 8), ylim=(0.42, 0.7))
    for ax in axes:
        ax.legend(fontsize=8)
    return fig


def recorded_sweep(by_beta: dict, reference: dict):
    """Left: reward against KL, a mark per beta. Right: what else changed, over the reference's, a band over seeds.

    Args:
        by_beta: per beta (low first) the runs of :mod:`dpo_tutorial.training.sweep`.
        reference: the untrained policy's ``final``. Both hold ``perplexity_reviews, perplexity_instructions`` and
            ``suite``, the mean p of the regression suite.
    """
    fig, axes = plots.figure(1, 2, width=10, height=3.6)
    for shade, (beta, runs) in zip(plots.SWEEP, by_beta.items(), strict=False):
        endpoint(axes[0], runs, fmt="o", color=shade, label=f"beta {beta:g}")
    axes[0].plot(0, reference["reward"][0], "x", color=plots.COLOURS["reference"], label="reference")
    axes[0].set(xlabel="KL(policy, reference), nats", ylabel="true reward, P(positive)")
    for role, key, label in (
        ("policy", "perplexity_reviews", "perplexity, reviews"),
        ("rejected", "perplexity_instructions", "perplexity, instructions"),
        ("optimum", "suite", "p of the suite"),
    ):
        ratios = np.array([[run["final"][key] / reference[key] for run in runs] for runs in by_beta.values()]).T
        plots.band(axes[1], list(by_beta), ratios, **plots.line(role, label=label))
    axes[1].axhline(1, **plots.line("reference", label="reference"))
    axes[1].set(ylabel="relative to the reference")
    plots.log_ticks(axes[1], list(by_beta), "beta")
    axes[0].legend(fontsize=8)
    axes[1].legend(fontsize=8, ncol=2, loc="lower center", bbox_to_anchor=(0.5, 1))  # inside it would lie on a band
    return fig
