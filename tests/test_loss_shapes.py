"""Pictures of losses: the pull is minus the slope, and a slider refuses a parameter that no loss has."""

from functools import partial

import pytest
import torch

from dpo_tutorial.display import loss_shapes
from dpo_tutorial.theory import finite, losses

X = torch.tensor([-1.0, 0.0, 2.0], dtype=torch.float64)


def test_pull_is_minus_the_slope():
    curve = partial(losses.cpo, policy_rejected_logps=torch.zeros(3).double(), beta=0.5)
    assert torch.allclose(loss_shapes.pull(curve, X), 0.5 * torch.sigmoid(-0.5 * X))
    assert torch.equal(loss_shapes.pull(lambda x: -3 * x, X), torch.full_like(X, 3))


def test_the_ten_curves_are_the_losses_with_the_other_log_probabilities_zero():
    curves, zero = loss_shapes.curves(0.5), torch.zeros(3).double()
    assert len(curves) == 10
    smoothed = losses.dpo(X, zero, zero, zero, beta=0.5, label_smoothing=0.2)
    assert torch.allclose(curves["cdpo"](X), smoothed)
    assert torch.allclose(curves["ipo"](X), (X - 1) ** 2)
    assert torch.allclose(curves["kto, bad"](X), 1 - torch.sigmoid(0.5 * (1 - X)))
    assert torch.allclose(curves["simpo"](X), -torch.nn.functional.logsigmoid(2 * X - 1))
    assert torch.allclose(curves["orpo, odds term"](X), losses.dpo(X, zero, zero, zero, beta=1.0))


@pytest.mark.parametrize("parameter", ["beta", "label_smoothing", "kl", "target_margin", "weight"])
def test_every_family_has_its_slider(parameter, monkeypatch):
    shown = {}
    monkeypatch.setattr(loss_shapes.sliders, "closed_form", lambda **arguments: shown.update(arguments))
    loss_shapes.slider(parameter, beta=0.5)
    assert shown["label"].startswith(parameter) and len(shown["values"]) == len(shown["readouts"])
    assert 0 < shown["start"] < len(shown["values"]) and len(shown["panels"]) == 2


def test_an_unknown_parameter_is_refused():
    with pytest.raises(ValueError, match="accepted are beta, label_smoothing"):
        loss_shapes.slider("gamma", beta=0.5)


def test_dpos_slider_has_every_beta_and_the_optimum(monkeypatch):
    shown = {}
    monkeypatch.setattr(loss_shapes.sliders, "closed_form", lambda **arguments: shown.update(arguments))
    world = finite.random_world(2, 4, generator=torch.Generator().manual_seed(1))
    loss_shapes.dpo_by_beta(world, prompt=1)
    assert len(shown["values"]) == len(shown["readouts"]) == 35 and len(shown["panels"]) == 3
    kl = world.kl(world.optimal_policy(float(shown["values"][14])))[1]
    assert shown["readouts"][14].endswith(f"KL {kl:.2f}.")


def test_runs_are_drawn_in_the_plane_of_log_ratios(monkeypatch):
    shown = []
    monkeypatch.setattr(loss_shapes.plots, "show", lambda fig, alt: shown.append((fig, alt)))
    path = torch.stack([torch.linspace(0, 1, 81), torch.linspace(0, -2, 81)], 1)  # chosen, rejected
    loss_shapes.log_ratio_plane({"a run": path}, {"a run": ("policy", "o", "-")}, alt="one run")
    (drawn,) = [line for line in shown[0][0].axes[0].lines if line.get_label() == "a run"]
    assert drawn.get_xdata()[-1] == -2 and drawn.get_ydata()[-1] == 1 and shown[0][1] == "one run"
