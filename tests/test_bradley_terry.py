"""Bradley-Terry: against choix and statsmodels, its errors, its ties."""

import math

import choix
import numpy as np
import pytest
import statsmodels.api as sm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dpo_tutorial.theory import bradley_terry
from dpo_tutorial.theory.finite import FiniteWorld, random_world


def sample(seed: int, n_items: int, n: int, tie_strength: float = 0.0):
    generator = torch.Generator().manual_seed(seed)
    world = random_world(1, n_items, generator=generator)
    return world, world.sample_preferences(n, generator=generator, tie_strength=tie_strength)


def centred(rewards: torch.Tensor) -> torch.Tensor:
    return rewards - rewards.mean()


@pytest.mark.parametrize("seed", range(5))
def test_equals_choix(seed):
    _, rows = sample(seed, 6, 400)
    ours = bradley_terry.fit(rows.chosen, rows.rejected, 6)
    data = list(zip(rows.chosen.tolist(), rows.rejected.tolist(), strict=True))
    theirs = choix.opt_pairwise(6, data, method="Newton-CG", tol=1e-12)
    assert np.abs(ours.rewards.numpy() - (theirs - theirs.mean())).max() < 1e-6
    by_mm = choix.mm_pairwise(6, data, tol=1e-12, max_iter=100_000)
    assert np.abs(ours.rewards.numpy() - (by_mm - by_mm.mean())).max() < 1e-6


def test_penalised_fit_equals_choix():
    _, rows = sample(0, 5, 20)
    data = list(zip(rows.chosen.tolist(), rows.rejected.tolist(), strict=True))
    ours = bradley_terry.fit(rows.chosen, rows.rejected, 5, l2=0.3)
    # choix penalises alpha |r|^2, half of which is our l2
    theirs = choix.opt_pairwise(5, data, alpha=0.15, method="Newton-CG", tol=1e-12)
    assert np.abs(ours.rewards.numpy() - theirs).max() < 1e-6


@pytest.mark.parametrize("seed", range(3))
def test_rewards_errors_and_likelihood_equal_statsmodels(seed):
    _, rows = sample(seed, 5, 300)
    ours = bradley_terry.fit(rows.chosen, rows.rejected, 5)
    design = (torch.eye(5)[rows.chosen] - torch.eye(5)[rows.rejected]).numpy()[:, 1:].astype(float)
    # Row k in either order with outcome 1 or 0: a logistic regression without intercept, item 0 fixed at zero
    sign = np.where(np.arange(len(design)) % 2 == 0, 1.0, -1.0)
    result = sm.Logit((sign > 0).astype(float), design * sign[:, None]).fit(disp=0, method="newton", tol=1e-14)
    rewards = np.concatenate([[0.0], result.params])
    covariance = np.zeros((5, 5))
    covariance[1:, 1:] = result.cov_params()
    centre = np.eye(5) - 1 / 5
    covariance = centre @ covariance @ centre
    assert np.abs(ours.rewards.numpy() - (rewards - rewards.mean())).max() < 1e-6
    assert np.abs(ours.standard_errors.numpy() - np.sqrt(np.diag(covariance))).max() < 1e-6
    assert np.abs(ours.covariance.numpy() - covariance).max() < 1e-6
    assert ours.log_likelihood == pytest.approx(result.llf, abs=1e-6)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**31), st.integers(2, 8), st.floats(0.1, 2.5))
def test_the_population_gives_the_true_rewards_up_to_their_mean(seed, n_items, scale):
    world = random_world(1, n_items, generator=torch.Generator().manual_seed(seed), reward_scale=scale)
    rows = world.population_preferences()
    result = bradley_terry.fit(rows.chosen, rows.rejected, n_items, weights=rows.weights)
    assert torch.allclose(result.rewards, centred(world.true_rewards[0]), atol=1e-7)
    assert abs(float(result.rewards.mean())) < 1e-12


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 2**31), st.floats(-50, 50))
def test_a_shift_of_the_true_rewards_changes_no_fit(seed, shift):
    world, _ = sample(seed, 4, 1)
    moved = FiniteWorld(world.true_rewards + shift, world.ref_probs)
    fits = []
    for source in (world, moved):
        rows = source.population_preferences()
        fits.append(bradley_terry.fit(rows.chosen, rows.rejected, 4, weights=rows.weights).rewards)
    assert torch.allclose(*fits, atol=1e-8)


def test_standard_errors_cover():
    inside = []
    for seed in range(60):
        world, rows = sample(seed, 4, 400)
        result = bradley_terry.fit(rows.chosen, rows.rejected, 4)
        deviations = (result.rewards - centred(world.true_rewards[0])) / result.standard_errors
        inside.append((deviations.abs() < 1.96).double().mean())
    assert 0.90 < float(torch.stack(inside).mean()) < 0.99


def test_weights_are_counts():
    winners, losers = [0, 1, 1, 2, 2, 0], [1, 0, 2, 1, 0, 2]
    weights = [3, 1, 4, 2, 1, 5]
    repeated = bradley_terry.fit(np.repeat(winners, weights), np.repeat(losers, weights), 3)
    weighted = bradley_terry.fit(winners, losers, 3, weights=weights)
    assert torch.allclose(repeated.rewards, weighted.rewards, atol=1e-12)
    assert torch.allclose(repeated.standard_errors, weighted.standard_errors, atol=1e-12)


def test_fit_prompts_is_a_fit_per_prompt():
    generator = torch.Generator().manual_seed(8)
    world = random_world(3, 4, generator=generator)
    rows = world.sample_preferences(600, generator=generator, tie_strength=0.5)
    rewards = bradley_terry.fit_prompts(rows, 3, 4)
    mine = rows.select(rows.prompts == 1)
    won, tied = mine.decided(), mine.select(mine.ties)
    alone = bradley_terry.fit(won.chosen, won.rejected, 4, ties=(tied.chosen, tied.rejected))
    assert torch.equal(rewards[1], alone.rewards)
    population = bradley_terry.fit_prompts(world.population_preferences(), 3, 4)
    assert torch.allclose(population, world.true_rewards - world.true_rewards.mean(-1, keepdim=True), atol=1e-8)
    with pytest.raises(bradley_terry.NoMaximum, match=r"^prompt 0: .*never compared"):
        bradley_terry.fit_prompts(rows.select(rows.prompts == 1), 3, 4)


# --- ties -----------------------------------------------------------------------------------------------------------


def test_a_tie_counts_half_a_win_each():
    tied = bradley_terry.fit([0, 0, 1], [1, 1, 0], 2, ties=[(0, 1), (0, 1)])
    assert float(tied.rewards[0] - tied.rewards[1]) == pytest.approx(math.log(3 / 2))
    as_columns = bradley_terry.fit([0, 0, 1], [1, 1, 0], 2, ties=(torch.tensor([0, 0]), torch.tensor([1, 1])))
    assert torch.equal(tied.rewards, as_columns.rewards)


def test_davidson_recovers_what_half_wins_pull_together():
    world, rows = sample(1, 5, 60_000, tie_strength=1.0)
    decided, tied = rows.decided(), rows.select(rows.ties)
    columns = (tied.chosen, tied.rejected)
    truth = centred(world.true_rewards[0])
    davidson = bradley_terry.fit(decided.chosen, decided.rejected, 5, ties=columns, tie_model="davidson")
    dropped = bradley_terry.fit(decided.chosen, decided.rejected, 5)
    half = bradley_terry.fit(decided.chosen, decided.rejected, 5, ties=columns)
    assert ((davidson.rewards - truth) / davidson.standard_errors).abs().max() < 4
    assert ((dropped.rewards - truth) / dropped.standard_errors).abs().max() < 4
    assert davidson.tie_strength == pytest.approx(1.0, abs=0.05)
    assert (davidson.standard_errors < dropped.standard_errors).all()
    assert float(half.rewards.std() / truth.std()) < 0.85


def test_davidson_is_a_maximum():
    _, rows = sample(2, 4, 500, tie_strength=0.7)
    decided, tied = rows.decided(), rows.select(rows.ties)
    result = bradley_terry.fit(
        decided.chosen, decided.rejected, 4, ties=(tied.chosen, tied.rejected), tie_model="davidson"
    )

    def log_likelihood(rewards, log_nu):
        def log_probs(i, j):
            gap = rewards[i] - rewards[j]
            rows = torch.stack([gap / 2, -gap / 2, log_nu.expand_as(gap)])
            return rows - rows.logsumexp(0)

        return log_probs(decided.chosen, decided.rejected)[0].sum() + log_probs(tied.chosen, tied.rejected)[2].sum()

    at = (
        result.rewards.clone().requires_grad_(),
        torch.tensor(math.log(result.tie_strength), dtype=torch.float64, requires_grad=True),
    )
    value = log_likelihood(*at)
    assert value.item() == pytest.approx(result.log_likelihood, rel=1e-12)
    assert max(float(g.abs().max()) for g in torch.autograd.grad(value, at)) < 1e-8
    hessian = torch.autograd.functional.hessian(
        lambda x: -log_likelihood(x[:4], x[4]), torch.cat([at[0], at[1][None]])
    )
    # a small ridge stands in for the direction that only shifts; it cancels in differences
    covariance = torch.linalg.inv(hessian + 1e3 * torch.nn.functional.pad(torch.ones(4, 4), (0, 1, 0, 1)))[:4, :4]
    centre = torch.eye(4).double() - 0.25
    assert torch.allclose(result.covariance, centre @ covariance @ centre, atol=1e-8)


# --- no maximum, and misuse -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("winners", "losers", "n_items", "message"),
    [
        ([0, 0, 1], [1, 2, 2], 3, r"never lost: 0; never won: 2"),
        ([0, 1], [1, 0], 3, r"never compared: 2"),
        ([0, 1, 2, 3], [1, 0, 3, 2], 4, r"never compared with the rest: 2, 3"),
        ([0, 1, 2, 3, 0], [1, 0, 3, 2, 2], 4, r"as a group never lost to the others: 0, 1"),
        (range(15), range(1, 16), 16, r"never lost: 0; never won: 15"),
    ],
)
def test_no_maximum_names_the_items_and_offers_l2(winners, losers, n_items, message):
    winners, losers = list(winners), list(losers)
    with pytest.raises(bradley_terry.NoMaximum, match=message) as error:
        bradley_terry.fit(winners, losers, n_items)
    assert "l2=0.01" in str(error.value)
    assert torch.isfinite(bradley_terry.fit(winners, losers, n_items, l2=0.01).rewards).all()


def test_a_tie_is_a_link_for_half_wins_and_not_for_davidson():
    assert torch.isfinite(bradley_terry.fit([0, 0], [1, 1], 2, ties=[(0, 1)]).rewards).all()
    with pytest.raises(bradley_terry.NoMaximum, match="never lost: 0"):
        bradley_terry.fit([0, 0], [1, 1], 2, ties=[(0, 1)], tie_model="davidson")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([0], [1, 0], 2), "winners has 1 rows and losers 2"),
        (([0, 2], [1, 0], 2), "0 to 1"),
        (([0.0, 1.0], [1.0, 0.0], 2), "float"),
        (([0, 1], [0, 0], 2), "row 0 .* itself"),
    ],
)
def test_misuse_is_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        bradley_terry.fit(*arguments)


def test_options_are_checked():
    with pytest.raises(ValueError, match="l2 is -1"):
        bradley_terry.fit([0, 1], [1, 0], 2, l2=-1)
    with pytest.raises(ValueError, match="tie_model is 'x'"):
        bradley_terry.fit([0, 1], [1, 0], 2, tie_model="x")
    with pytest.raises(ValueError, match="no ties"):
        bradley_terry.fit([0, 1], [1, 0], 2, tie_model="davidson")
    with pytest.raises(ValueError, match="weights has shape"):
        bradley_terry.fit([0, 1], [1, 0], 2, weights=[1.0])
