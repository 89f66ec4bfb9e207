"""The finite world: closed forms against brute force, and sampling against its probabilities."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dpo_tutorial.theory.finite import FiniteWorld, preferences_from_counts, random_world

seeds = st.integers(0, 2**31)
betas = st.floats(0.05, 20)
sizes = st.tuples(st.integers(1, 5), st.integers(2, 7))


def world_of(seed: int, size=(3, 5)) -> tuple[FiniteWorld, torch.Generator]:
    generator = torch.Generator().manual_seed(seed)
    return random_world(*size, generator=generator), generator


def test_by_hand():
    world = FiniteWorld(torch.tensor([[math.log(2), 0.0]]), torch.tensor([[0.25, 0.75]]))
    assert float(world.log_partition(1.0)) == pytest.approx(math.log(0.25 * 2 + 0.75))
    assert world.optimal_policy(1.0)[0].tolist() == pytest.approx([0.4, 0.6])
    assert float(world.preference_probs()[0, 0, 1]) == pytest.approx(2 / 3)
    assert float(world.kl(torch.tensor([[0.5, 0.5]]).double())) == pytest.approx(
        0.5 * math.log(2) + 0.5 * math.log(2 / 3)
    )


@settings(deadline=None)
@given(seeds, sizes, betas)
def test_the_optimum_beats_any_other_policy(seed, size, beta):
    world, generator = world_of(seed, size)
    best = world.objective(world.optimal_policy(beta), beta)
    logits = 3 * torch.randn(50, *size, dtype=torch.float64, generator=generator)
    others = torch.softmax(logits, -1)
    near = torch.softmax(world.optimal_logps(beta) + 0.01 * logits, -1)
    corners = torch.eye(size[1], dtype=torch.float64)[:, None, :].expand(-1, size[0], -1)
    for policies in (others, near, corners):
        assert (world.objective(policies, beta) <= best + 1e-12).all()


@settings(deadline=None)
@given(seeds, sizes, betas)
def test_the_gap_to_the_optimum_is_beta_times_a_kl(seed, size, beta):
    world, generator = world_of(seed, size)
    policy = torch.softmax(torch.randn(*size, dtype=torch.float64, generator=generator), -1)
    star = world.optimal_policy(beta)
    gap = world.objective(star, beta) - world.objective(policy, beta)
    distance = (policy * (policy.log() - world.optimal_logps(beta))).sum(-1)
    assert float(gap) == pytest.approx(float(beta * world.average(distance)), rel=1e-8, abs=1e-10)
    assert float(world.objective(star, beta)) == pytest.approx(
        float(beta * world.average(world.log_partition(beta))), abs=1e-9
    )


@settings(deadline=None)
@given(seeds, sizes, betas, st.floats(-100, 100))
def test_a_shift_of_a_prompts_rewards_changes_no_policy_and_no_preference(seed, size, beta, shift):
    world, _ = world_of(seed, size)
    shifts = shift * torch.arange(1, size[0] + 1, dtype=torch.float64)[:, None]
    moved = FiniteWorld(world.true_rewards + shifts, world.ref_probs, world.prompt_weights)
    assert torch.allclose(moved.optimal_policy(beta), world.optimal_policy(beta), atol=1e-9)
    assert torch.allclose(moved.preference_probs(), world.preference_probs(), atol=1e-12)
    assert torch.allclose(moved.log_partition(beta) - world.log_partition(beta), shifts[:, 0] / beta, atol=1e-9)


@settings(deadline=None)
@given(seeds)
def test_beta_runs_from_the_best_response_to_the_reference(seed):
    world, _ = world_of(seed)
    assert torch.allclose(world.optimal_policy(1e7), world.ref_probs, atol=1e-6)
    best = torch.nn.functional.one_hot(world.true_rewards.argmax(-1), 5).double()
    gaps = world.true_rewards.sort(-1).values.diff(dim=-1)[:, -1]
    if float(gaps.min()) > 1e-3:
        assert torch.allclose(world.optimal_policy(1e-5), best, atol=1e-6)


def test_zero_stays_zero_and_leaving_the_support_costs_infinitely_much():
    world = FiniteWorld(torch.tensor([[5.0, 0.0, 1.0]]), torch.tensor([[0.0, 0.5, 0.5]]))
    star = world.optimal_policy(0.5)
    assert float(star[0, 0]) == 0 and float(star.sum()) == pytest.approx(1)
    assert math.isfinite(float(world.kl(star))) and math.isfinite(float(world.objective(star, 0.5)))
    assert float(world.kl(torch.tensor([[0.1, 0.4, 0.5]]).double())) == math.inf


def test_total_variation():
    world = FiniteWorld(torch.zeros(2, 2), torch.full((2, 2), 0.5), torch.tensor([0.75, 0.25]))
    one = torch.tensor([[1.0, 0.0], [0.5, 0.5]]).double()
    two = torch.tensor([[0.0, 1.0], [0.75, 0.25]]).double()
    assert float(world.total_variation(one, two)) == 0.75 * 1 + 0.25 * 0.25


def test_kl_takes_leading_dimensions_and_gradients():
    world, generator = world_of(0)
    logits = torch.randn(7, 3, 5, dtype=torch.float64, generator=generator, requires_grad=True)
    policies = torch.softmax(logits, -1)
    kl = world.kl(policies)
    assert kl.shape == (7, 3) and (kl > 0).all()
    kl.sum().backward()
    assert torch.isfinite(logits.grad).all() and logits.grad.abs().max() > 0
    assert world.kl(world.ref_probs).abs().max() < 1e-14


@pytest.mark.parametrize("pairs", ["uniform", "reference"])
def test_population_preferences_are_the_limit_of_samples(pairs):
    world, generator = world_of(1, (2, 3))
    population = world.population_preferences(pairs=pairs, flip_rate=0.1)
    assert float(population.weights.sum()) == pytest.approx(1)
    assert len(population) == 2 * 3 * 2
    n = 200_000
    sample = world.sample_preferences(n, generator=generator, pairs=pairs, flip_rate=0.1)
    expected, counts = population.counts(2, 3), sample.counts(2, 3)
    deviations = (counts - n * expected) / (n * expected).clamp(min=1).sqrt()
    assert deviations.abs().max() < 4.5


def test_pairs_of_the_reference_are_two_draws_that_differ():
    world, _ = world_of(2, (1, 3))
    table, ref = world.pair_probs("reference")[0], world.ref_probs[0]
    assert float(table[0, 1]) == pytest.approx(float(ref[0] * ref[1] / (1 - (ref**2).sum())))
    assert float(table.diagonal().sum()) == 0


def test_davidson_ties_leave_decided_pairs_bradley_terry():
    world, generator = world_of(3, (1, 3))
    n = 200_000
    sample = world.sample_preferences(n, generator=generator, tie_strength=0.7)
    expected_ties = (world.pair_probs() * world.tie_probs(0.7)).sum()
    assert float(sample.ties.double().mean()) == pytest.approx(float(expected_ties), abs=0.005)
    counts = sample.counts(1, 3)
    wins = counts / (counts + counts.transpose(1, 2)).clamp(min=1)
    off_diagonal = ~torch.eye(3).bool()
    assert (wins - world.preference_probs())[0][off_diagonal].abs().max() < 0.01
    assert float(world.tie_probs(1.0)[0, 0, 0]) == pytest.approx(1 / 3)
    assert len(sample.decided()) + int(sample.ties.sum()) == n


def test_sampling_depends_on_the_generator_only():
    world, _ = world_of(4)
    one, two = (world.sample_preferences(50, generator=torch.Generator().manual_seed(9)) for _ in range(2))
    assert torch.equal(one.chosen, two.chosen) and torch.equal(one.rejected, two.rejected)
    assert (one.chosen != one.rejected).all()


def test_counts_and_back():
    world, generator = world_of(5)
    counts = world.sample_preferences(300, generator=generator).counts(3, 5)
    assert torch.equal(preferences_from_counts(counts).counts(3, 5), counts)


def test_refusals_name_the_value():
    world, generator = world_of(6)
    with pytest.raises(ValueError, match="beta is 0"):
        world.optimal_policy(0)
    with pytest.raises(ValueError, match=r"row 0 .*sum to one"):
        FiniteWorld(torch.zeros(1, 2), torch.tensor([[0.5, 0.6]]))
    with pytest.raises(ValueError, match="shape"):
        FiniteWorld(torch.zeros(1, 2), torch.tensor([[0.5, 0.2, 0.3]]))
    with pytest.raises(ValueError, match=r"flip_rate is 1\.5"):
        world.sample_preferences(5, generator=generator, flip_rate=1.5)
    with pytest.raises(ValueError, match="tie_strength is -1"):
        world.sample_preferences(5, generator=generator, tie_strength=-1)
    with pytest.raises(ValueError, match="'reference'"):
        world.pair_probs("best")
