"""Pictures of preference losses over their own coordinate: small multiples, and one slider per parameter."""

import math
from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from torch import Tensor

from dpo_tutorial.display import plots, sliders
from dpo_tutorial.theory import finite, losses

Curve = Callable[[Tensor], Tensor]
LIMITS = (-8, 12)
_LOOKS = ({"role": "policy"}, {"role": "chosen", "dash": "7 4"}, {"role": "rejected", "dash": "2 3"})


def pull(curve: Curve, x: Tensor) -> Tensor:
    """Minus the slope of a loss at ``x``, (N,): how hard a gradient step widens the coordinate."""
    x = x.detach().clone().requires_grad_()
    return 0 - torch.autograd.grad(curve(x).sum(), x)[0]  # a flat loss pulls by 0, not by -0


def panels(
    curves: dict[str, Curve], data: dict[str, tuple[Tensor, str]], *, shrink: dict[str, float], alt: str
) -> None:
    """Show ten panels: each loss, its pull, and a histogram of where the pairs lie.

    Args:
        curves: name -> function from coordinates (N,) to losses (N,); ten of them.
        data: name -> where the pairs lie (any shape), and the name of the coordinate.
        shrink: name -> divisor, for a curve that would leave the frame.
        alt: what there is to see.
    """
    x = torch.linspace(*LIMITS, 201, dtype=torch.float64)
    fig, axes = plots.figure(2, 5, width=10.0, height=5.0, sharex=True, sharey=True)
    for ax, (name, curve) in zip(axes.flat, curves.items(), strict=True):
        points, label = data[name][0].flatten().clip(*LIMITS), data[name][1]
        by = shrink.get(name, 1)
        ax.hist(points, bins=40, range=LIMITS, weights=np.full(len(points), 8 / len(points)), color="#cfcfcf")
        ax.plot(x, curve(x) / by, color=plots.COLOURS["policy"], label="loss")
        ax.plot(x, pull(curve, x) / by, color=plots.COLOURS["chosen"], linestyle="--", label="pull")
        ax.axhline(0, color="#111111", linewidth=0.6)
        ax.set(title=name if by == 1 else f"{name} / {by}", xlim=LIMITS, ylim=(-2, 4))
        ax.set_xlabel(label, fontsize=8)
    axes[0, 0].legend(fontsize=8, loc="upper right")
    plots.show(fig, alt)


def _zeros(loss: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """A loss of four log-probabilities over the first of them, the other three zero."""
    return lambda x, **options: loss(x, 0 * x, 0 * x, 0 * x, **options)


def _families(beta: float) -> dict:
    """parameter -> (values, position at the start, curves of (x, value), a sentence for each value)."""
    dpo, ipo, hinge, robust = map(_zeros, (losses.dpo, losses.ipo, losses.hinge, losses.robust_dpo))
    even = math.log(0.5)
    smooth = {
        "cdpo": lambda x, e: dpo(x, beta=beta, label_smoothing=e),
        "robust_dpo": lambda x, e: robust(x, beta=beta, label_smoothing=e),
    }
    thumbs = {
        "good": lambda x, z: losses.kto(x, 0 * x, torch.ones_like(x, dtype=torch.bool), z, beta=beta),
        "bad": lambda x, z: losses.kto(x, 0 * x, torch.zeros_like(x, dtype=torch.bool), z, beta=beta),
    }
    by_beta = {name: lambda x, b, f=f: f(x, beta=b) for name, f in (("dpo", dpo), ("ipo", ipo), ("hinge", hinge))}
    simpo = {"simpo": lambda x, g: losses.simpo(x, 0 * x, beta=2.0, target_margin=g)}
    orpo = {"orpo": lambda x, w: losses.orpo(torch.nn.functional.logsigmoid(x), 0 * x + even, weight=w)}
    grid = partial(np.linspace, num=23)
    return {
        "beta": (
            np.geomspace(0.05, 2, 25),
            15,
            by_beta,
            lambda b: f"IPO rests at {0.5 / b:.2f}, hinge at {1 / b:.2f}.",
        ),
        "label_smoothing": (
            grid(0.01, 0.45),
            10,
            smooth,
            lambda e: f"cDPO rests at margin {math.log(1 / e - 1):.2f}.",
        ),
        "kl": (grid(0, 6), 4, thumbs, lambda z: f"The pull is largest at a log-ratio of {z:.2f}."),
        "target_margin": (grid(0, 5), 4, simpo, lambda g: f"Half of the full pull at a difference of {g / 2:.2f}."),
        "weight": (grid(0, 3), 8, orpo, lambda w: "Over the log odds of the chosen; the rejected is even."),
    }


def curves(beta: float) -> dict[str, Curve]:
    """The ten curves of notebook 05, each loss over its own coordinate: name -> function from (N,) to losses (N,).

    Every log-probability but the first is zero. ``beta`` is for all losses but SimPO, whose beta is 2 and whose
    target_margin 1; label_smoothing is 0.2, and KTO's kl 1. Of ORPO it is the odds term, over the log odds ratio.
    """
    families = _families(beta)

    def at(parameter: str, name: str, value: float) -> Curve:
        curve = families[parameter][2][name]
        return lambda x: curve(x, value)

    return {
        "dpo": at("beta", "dpo", beta),
        "cdpo": at("label_smoothing", "cdpo", 0.2),
        "robust_dpo": at("label_smoothing", "robust_dpo", 0.2),
        "ipo": at("beta", "ipo", beta),
        "hinge": at("beta", "hinge", beta),
        "kto, good": at("kl", "good", 1.0),
        "kto, bad": at("kl", "bad", 1.0),
        "cpo": lambda x: losses.cpo(x, 0 * x, beta=beta),
        "simpo": at("target_margin", "simpo", 1.0),
        "orpo, odds term": lambda x: -torch.nn.functional.logsigmoid(x),
    }


def slider(parameter: str, *, beta: float) -> None:
    """Show a slider over one parameter: loss and pull of the losses that have it.

    Args:
        parameter: "beta" (dpo, ipo, hinge), "label_smoothing" (cDPO, robust DPO), "kl" (KTO's reference point, in
            nats), "target_margin" (SimPO) or "weight" (ORPO).
        beta: for the losses whose parameter is another one.
    """
    families = _families(beta)
    if parameter not in families:
        raise ValueError(f"parameter is {parameter!r}; accepted are {', '.join(families)}")
    values, start, curves, note = families[parameter]
    label = "kl (nats)" if parameter == "kl" else parameter
    x, loss_series, pull_series = torch.linspace(*LIMITS, 81, dtype=torch.float64), [], []
    for (name, curve), look in zip(curves.items(), _LOOKS, strict=False):
        at_value = [lambda x, value=float(value), curve=curve: curve(x, value) for value in values]
        loss_series.append(sliders.Series(name, torch.stack([one(x) for one in at_value]), x, **look))
        pull_series.append(sliders.Series("", torch.stack([pull(one, x) for one in at_value]), x, **look))
    axis = {"x_label": "coordinate of the loss (nats)", "x_limits": LIMITS}
    sliders.closed_form(
        label=label,
        values=values,
        readouts=[note(value) for value in values],
        start=start,
        panels=[
            sliders.Lines(loss_series, title="Loss", y_limits=(-1, 6), **axis),
            sliders.Lines(pull_series, title="Pull (minus the slope)", y_limits=(-1.2, 3.0), **axis),
        ],
        alt=f"Losses and their pull, by {label}.",
    )


def dpo_by_beta(world: finite.FiniteWorld, *, prompt: int = 0) -> None:
    """Show a slider over beta: DPO's loss and pull over delta_logratios, and the policy that training ends at.

    Dots: where that policy, the optimum for population preferences, has the pairs of the prompt.
    """
    betas, delta = np.geomspace(0.1, 5, 35), np.linspace(-12, 12, 65)
    margin = np.outer(betas, delta)
    rewards = world.true_rewards[prompt].tolist()
    gaps = np.array([a - b for a in rewards for b in rewards if a > b])  # the pairs' margins at the optimum
    line = partial(sliders.Series, x=delta)
    dots = partial(sliders.Series, x=gaps / betas[:, None], kind="dots", size=3.5, role="optimum")
    at_optimum = dots("pairs at the optimum", np.tile(np.log1p(np.exp(-gaps)), (len(betas), 1)))
    loss = [line("this beta", np.log1p(np.exp(-margin))), at_optimum]
    weighted = [line("", betas[:, None] / (1 + np.exp(margin))), dots("", betas[:, None] / (1 + np.exp(gaps)))]
    ends = torch.stack([world.optimal_policy(beta) for beta in betas])
    spent = world.kl(ends)[:, prompt].tolist()
    bars = [
        sliders.Series("reference", world.ref_probs[prompt], role="reference"),
        sliders.Series("optimum", ends[:, prompt], role="optimum"),
    ]
    axis, names = {"x_label": "delta_logratios (nats)", "x_limits": (-12, 12)}, range(world.shape[1])
    sliders.closed_form(
        label="beta (reward units per nat)",
        values=betas,
        readouts=[f"Pull at zero {b / 2:.2f}; at the optimum KL {k:.2f}." for b, k in zip(betas, spent, strict=True)],
        start=14,
        panels=[
            sliders.Lines(loss, title="Loss", y_label="loss", y_limits=(0, 6), **axis),
            sliders.Lines(weighted, title="Pull", y_label="beta sigma(-m)", y_limits=(0, 3), **axis),
            sliders.Bars(
                [f"response {i}" for i in names], bars, title="Where it ends", x_label="probability", limits=(0, 1)
            ),
        ],
        alt="Loss and pull over the log-ratio difference, and the policy at convergence, for the slider's beta.",
    )


def log_ratio_plane(paths: dict[str, Tensor], looks: dict[str, tuple[str, str, str]], *, alt: str) -> None:
    """Show runs in the plane of rejected and chosen log-ratio, with diagonals of equal margin (at beta 1).

    Args:
        paths: name -> (S, 2) chosen and rejected log-ratios along the way; markers stand at steps 5, 20 and 80.
        looks: name -> role, marker, line style.
        alt: what there is to see.
    """
    fig, ax = plots.figure(width=7.0, height=6.2)
    ax.fill_between([-12, 6], [-12, 6], -12, color="#f0f0f0", zorder=0)
    for level in (0, 1, 2, 3):
        ax.plot([-12, 6], [-12 + level, 6 + level], color="#8a8a8a", linewidth=0.8, linestyle=":")
        ax.text(-4.35 - level, -4.25, f"margin {level}", rotation=45, fontsize=8, rotation_mode="anchor")
    for name, path in paths.items():
        role, marker, style = looks[name]
        look = {"color": plots.COLOURS[role], "linestyle": style, "marker": marker, "markersize": 6}
        ax.plot(path[:, 1], path[:, 0], label=name, markevery=[5, 20, 80], **look)
    for x, y, text in ((-7.2, 4.5, "chosen up, rejected down"), (-3.2, -4.5, "both fall"), (2.0, 0.3, "both rise")):
        ax.text(x, y, text, color="#555555", style="italic")
    ax.axhline(0, color="#111111", linewidth=0.8)
    ax.axvline(0, color="#111111", linewidth=0.8)
    ax.set(xlabel="rejected log-ratio (nats)", ylabel="chosen log-ratio (nats)", aspect="equal")
    ax.set(xlim=(-7.5, 3.5), ylim=(-5, 5))
    ax.legend(loc="lower right", fontsize=9)
    plots.show(fig, alt)
