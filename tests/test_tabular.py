"""Tabular policies: DPO's optimum is the closed form, and the fits of other losses are stationary points."""

from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dpo_tutorial.theory import losses
from dpo_tutorial.theory.finite import preferences_from_counts, random_world
from dpo_tutorial.theory.tabular import LogLinearPolicy, TablePolicy, fit, pair_logps, pair_objective


def world_of(seed: int, size=(3, 5)):
    generator = torch.Generator().manual_seed(seed)
    return random_world(*size, generator=generator), generator


def start(generator, size=(3, 5)):
    return torch.randn(*size, dtype=torch.float64, generator=generator)


@settings(max_examples=12, deadline=None)
@given(st.integers(0, 2**31), st.floats(0.1, 2.0), st.sampled_from(["uniform", "reference"]))
def test_dpo_on_the_population_is_the_closed_form(seed, beta, pairs):
    world, generator = world_of(seed)
    objective = pair_objective(
        partial(losses.dpo, beta=beta), world.population_preferences(pairs=pairs), world.ref_logps
    )
    result = fit(TablePolicy(start(generator)), objective)
    assert torch.allclose(result.policy, world.optimal_policy(beta), atol=1e-7)
    implicit = beta * (result.logps - world.ref_logps)
    shift = implicit - world.true_rewards
    assert (shift - shift.mean(-1, keepdim=True)).abs().max() < 1e-6


def test_population_samples_and_counts_are_one_objective():
    world, generator = world_of(0)
    rows = world.sample_preferences(500, generator=generator)
    logps = torch.log_softmax(start(generator), -1)
    loss = partial(losses.dpo, beta=0.3)
    by_rows = pair_objective(loss, rows, world.ref_logps)(logps)
    by_counts = pair_objective(loss, preferences_from_counts(rows.counts(3, 5)), world.ref_logps)(logps)
    assert float(by_rows) == pytest.approx(float(by_counts), abs=1e-12)
    assert float(by_rows) == pytest.approx(
        float(loss(*pair_logps(logps, rows), *pair_logps(world.ref_logps, rows)).mean()), abs=1e-12
    )


def test_ipo_on_the_population_reaches_a_stationary_point():
    world, generator = world_of(1)
    result = fit(
        TablePolicy(start(generator)),
        pair_objective(partial(losses.ipo, beta=0.5), world.population_preferences(), world.ref_logps),
    )
    # IPO's own optimum (paper, Theorem 1): reward = expected preference probability over the other responses
    h = result.logps - world.ref_logps
    wanted = (world.preference_probs() - 0.5).sum(-1) / 5 / 0.5
    difference = h - wanted
    assert (difference - difference.mean(-1, keepdim=True)).abs().max() < 1e-8


@pytest.mark.parametrize(("optimizer", "rate", "steps"), [("adam", 0.02, 4000), ("sgd", 10.0, 4000)])
def test_first_order_optimizers_come_close(optimizer, rate, steps):
    world, generator = world_of(2)
    objective = pair_objective(partial(losses.dpo, beta=1.0), world.population_preferences(), world.ref_logps)
    result = fit(
        TablePolicy(start(generator)),
        objective,
        optimizer=optimizer,
        learning_rate=rate,
        steps=steps,
        record_every=1000,
        tolerance=0,
    )
    assert torch.allclose(result.policy, world.optimal_policy(1.0), atol=1e-2)
    assert result.steps.tolist() == [0, 1000, 2000, 3000, 4000]
    assert result.path.shape == (5, 3, 5)
    assert torch.equal(result.path[-1], result.logps)
    assert (result.objectives.diff() < 1e-12).all()


def test_reference_free_losses_and_any_function_can_be_fitted():
    world, generator = world_of(3)
    rows = world.population_preferences()
    for loss in (
        partial(losses.cpo, beta=0.5),
        partial(losses.simpo, beta=2.0, target_margin=0.3),
        partial(losses.orpo, weight=0.5),
    ):
        result = fit(TablePolicy(start(generator)), pair_objective(loss, rows))
        assert result.gradient < 1e-7
    # CPO is DPO with a uniform reference
    uniform = torch.full((3, 5), 0.2, dtype=torch.float64).log()
    one = fit(TablePolicy(start(generator)), pair_objective(partial(losses.cpo, beta=0.5), rows))
    two = fit(TablePolicy(start(generator)), pair_objective(partial(losses.dpo, beta=0.5), rows, uniform))
    assert torch.allclose(one.policy, two.policy, atol=1e-8)
    best = fit(TablePolicy(start(generator)), lambda logps: -world.objective(logps.exp(), 0.5))
    assert torch.allclose(best.policy, world.optimal_policy(0.5), atol=1e-8)


def test_log_linear_policy_shares_what_a_table_does_not():
    world, _ = world_of(4, (1, 3))
    features = torch.tensor([[[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]]])
    policy = LogLinearPolicy(features, torch.tensor([0.1, -0.2]), world.ref_logps)
    before = policy().detach()
    rows = world.population_preferences().select(torch.tensor([False, True, False, False, False, False]))
    assert (rows.chosen.tolist(), rows.rejected.tolist()) == ([0], [2])
    objective = pair_objective(partial(losses.dpo, beta=0.5), rows, world.ref_logps)
    result = fit(policy, objective, optimizer="sgd", learning_rate=1.0, steps=5)
    moved = result.logps - before
    assert float(moved[0, 1]) == pytest.approx(float(moved[0, 0]), abs=1e-12)  # never compared, same features
    assert float(moved[0, 1]) > 0 > float(moved[0, 2])


def test_log_linear_at_full_rank_equals_the_table():
    world, generator = world_of(5, (2, 3))
    objective = pair_objective(partial(losses.dpo, beta=0.5), world.population_preferences(), world.ref_logps)
    features = torch.eye(6).reshape(2, 3, 6)
    result = fit(LogLinearPolicy(features, torch.randn(6, generator=generator)), objective)
    assert torch.allclose(result.policy, world.optimal_policy(0.5), atol=1e-7)


def test_no_minimum_is_visible():
    world, generator = world_of(6, (1, 2))
    rows = world.population_preferences().select(torch.tensor([True, False]))  # one label, one way
    result = fit(
        TablePolicy(start(generator, (1, 2))), pair_objective(partial(losses.dpo, beta=0.5), rows, world.ref_logps)
    )
    logratio = (result.logps - world.ref_logps)[0]
    assert float(logratio[rows.chosen[0]] - logratio[rows.rejected[0]]) > 20


def test_refusals():
    world, generator = world_of(7)
    rows = world.sample_preferences(100, generator=generator, tie_strength=1.0)
    with pytest.raises(ValueError, match=r"ties; accepted are decided"):
        pair_objective(partial(losses.dpo, beta=0.1), rows, world.ref_logps)
    objective = pair_objective(partial(losses.dpo, beta=0.1), rows.decided(), world.ref_logps)
    policy = TablePolicy(start(generator))
    with pytest.raises(ValueError, match="optimizer is 'newton'"):
        fit(policy, objective, optimizer="newton")
    with pytest.raises(ValueError, match="learning_rate is None"):
        fit(policy, objective, optimizer="adam")
    with pytest.raises(ValueError, match="lbfgs takes none"):
        fit(policy, objective, learning_rate=0.1)
    with pytest.raises(ValueError, match="finite"):
        TablePolicy(torch.tensor([[0.0, -torch.inf]]))
    with pytest.raises(ValueError, match=r"\(P, R, D\)"):
        LogLinearPolicy(torch.zeros(2, 3), torch.zeros(3))
    with pytest.raises(FloatingPointError, match="Lower the learning rate"):
        fit(
            policy,
            lambda logps: (logps.sum() * 1e200).exp() * 0 + logps.sum() * torch.inf,
            optimizer="sgd",
            learning_rate=1.0,
        )


@pytest.mark.parametrize("seed", range(6))
def test_a_fit_of_a_hilly_objective_never_ends_above_its_start(seed):
    """Over few shared features the objective has several hills; Newton steps must not climb to a saddle."""
    world, generator = world_of(seed, (4, 5))
    features = torch.randn(4, 5, 2, dtype=torch.float64, generator=generator)
    for _ in range(4):
        weights = 2 * torch.randn(2, dtype=torch.float64, generator=generator)
        policy = LogLinearPolicy(features, weights, world.ref_logps)
        result = fit(policy, lambda logps: -world.objective(logps.exp(), 0.3))
        assert result.objectives[-1] <= result.objectives[0]
