"""The stress tests' data sets: counts by hand where they are few, expectations where they are many."""

from functools import partial

import pytest
import torch

from dpo_tutorial.theory import finite, losses, stress, tabular

WORLD = finite.random_world(2, 4, generator=torch.Generator().manual_seed(1))


def test_ties_are_dropped_or_counted_half_each_way():
    dropped, halved = (stress.sample_counts(WORLD, 200, [3, 4], tie_strength=1.0, half_ties=h) for h in (False, True))
    kept = halved - dropped
    assert dropped.shape == (2, 2, 4, 4) and (dropped.sum((1, 2, 3)) < 200).all()
    assert halved.sum((1, 2, 3)).tolist() == [200, 200] and torch.equal(kept, kept.transpose(-1, -2))
    rows = WORLD.sample_preferences(200, generator=torch.Generator().manual_seed(4), tie_strength=1.0)
    assert torch.equal(dropped[1], rows.counts(2, 4))


def test_tables_trained_together_are_the_tables_trained_alone():
    counts, loss = stress.sample_counts(WORLD, 50, [1, 2, 3]), partial(losses.dpo, beta=0.5)
    policies = stress.train(loss, counts, WORLD, steps=20)
    path = stress.train(loss, counts, WORLD, steps=20, record_every=10)
    assert policies.shape == (3, 2, 4) and path.shape == (3, 3, 2, 4)
    assert torch.equal(path[-1], policies) and torch.allclose(path[0], WORLD.ref_probs.expand(3, 2, 4))
    alone = stress.train(loss, counts[1:2], WORLD, steps=20)[0]
    assert (policies[1] - alone).abs().max() < 1e-4, "Adam's steps hardly see the scale of the mean"


def test_regret_and_reward_at_kl():
    best = WORLD.optimal_policy(0.5)
    assert stress.regret(WORLD, best, beta=0.5).abs() < 1e-12
    assert stress.regret(WORLD, torch.stack([WORLD.ref_probs, best]), beta=0.5)[0] > 0
    path = torch.stack([WORLD.ref_probs, best])[:, None]
    reward = WORLD.average(WORLD.expected_reward(best))
    assert torch.allclose(stress.reward_at_kl(WORLD, path, 1e-3), reward[None])
    with pytest.raises(ValueError, match="never reach"):
        stress.reward_at_kl(WORLD, path, 100.0)


def test_thumbs_come_up_as_often_as_they_should():
    thumbs = stress.sample_thumbs(WORLD, 40_000, [1, 2])
    assert thumbs.shape == (2, 2, 4, 2) and thumbs.sum((1, 2, 3)).tolist() == [40_000, 40_000]
    up = thumbs[0, ..., 1] / thumbs[0].sum(-1)
    assert (up - stress.thumb_probs(WORLD)).abs().max() < 0.05


def test_rankings():
    world = finite.FiniteWorld(torch.tensor([[3.0, 2.0, 1.0, 0.0]]), torch.full((1, 4), 0.25))
    orders, probs = stress.rankings_of_four(world)
    e = torch.tensor([3.0, 2.0, 1.0, 0.0]).double().exp()
    straight = e[0] / e.sum() * e[1] / e[1:].sum() * e[2] / e[2:].sum()
    assert orders.shape == (24, 4) and orders[0].tolist() == [0, 1, 2, 3]
    assert abs(probs.sum() - 1) < 1e-12 and abs(probs[0, 0] - straight) < 1e-12
    one = torch.zeros(1, 24).double()
    one[0, 1] = 2  # 0, 1, 3, 2, twice
    counts = stress.pairs_of_rankings(world, one, [(0, 3), (1, 2)])
    assert counts.nonzero().tolist() == [[0, 0, 2], [0, 1, 3]] and counts.sum() == 4
    drawn = stress.sample_rankings(world, 30_000, [1, 2])
    assert drawn.shape == (2, 1, 24) and (drawn[0] / 30_000 - probs).abs().max() < 0.02


def test_implied_scale_is_one_on_the_population():
    counts = WORLD.population_preferences().counts(2, 4)
    assert abs(stress.implied_scale(losses.dpo, counts, WORLD.ref_logps, WORLD, beta=0.5) - 1) < 1e-6
    assert abs(stress.implied_scale(losses.cpo, counts, None, WORLD, beta=0.5) - 1) < 1e-6


def test_the_two_special_worlds():
    world = stress.world_with_lengths(1)
    assert torch.equal(world.true_rewards[:, ::2], world.true_rewards[:, 1::2])
    longer = stress.world_with_lengths(1, long_bonus=2.0)
    assert torch.allclose(longer.true_rewards[:, ::2] + 2, longer.true_rewards[:, 1::2])
    world, rows = stress.world_with_junk(1, 50)
    assert torch.allclose(world.ref_probs[:, -stress.JUNK :].sum(-1), torch.tensor(0.9).double())
    assert rows.weights.sum() == 50 and max(rows.chosen.max(), rows.rejected.max()) < 4
    tabular.pair_objective(losses.orpo, rows)


def test_five_policies_and_their_lengths():
    world = stress.world_with_lengths(1)
    rows = world.population_preferences()
    ones = torch.ones(len(rows)).double()
    averaged = stress.per_token(lambda chosen, rejected: chosen - rejected, rows)(40 * ones, 40 * ones)
    lengths = torch.tensor(stress.LENGTHS).double()
    assert torch.equal(averaged, 40 / lengths[rows.chosen] - 40 / lengths[rows.rejected])
    dpo, cpo = partial(losses.dpo, beta=0.5), partial(losses.cpo, beta=0.5)
    simpo, orpo = partial(losses.simpo, beta=10.0, target_margin=1.0), partial(losses.orpo, weight=1.0)
    policies = stress.five_policies(world, dpo, cpo, simpo, orpo, partial(losses.orpo, weight=0.0))
    assert list(policies) == ["reference", "DPO", "CPO", "SimPO", "ORPO", "likelihood only"]
    assert (policies["DPO"] - world.optimal_policy(0.5)).abs().max() < 1e-6
    assert (policies["CPO"][:, ::2] - policies["CPO"][:, 1::2]).abs().max() < 1e-6
    wins = rows.counts(*world.shape).sum(-1) / lengths  # the likelihood per token: wins over length
    assert (policies["likelihood only"] - wins / wins.sum(-1, keepdim=True)).abs().max() < 1e-6
