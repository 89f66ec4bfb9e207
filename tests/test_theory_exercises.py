"""The exercises' checkers: silent on nothing, right about right and wrong answers."""

import torch

from dpo_tutorial.theory import exercises, losses


def ranking(logratios, *, beta):
    rewards = beta * logratios
    return -(rewards - torch.logcumsumexp(rewards.flip(-1), -1).flip(-1)).sum(-1)


def spread(one, two):
    return ((one - two).amax(-1) - (one - two).amin(-1)).max()


def test_ranking_dpo():
    assert exercises.ranking_dpo(lambda logratios, *, beta: None).startswith("not done yet")
    assert exercises.ranking_dpo(ranking).startswith("correct")
    assert "shape" in exercises.ranking_dpo(lambda logratios, *, beta: ranking(logratios, beta=beta)[:, None])
    assert "beta inside" in exercises.ranking_dpo(lambda logratios, *, beta: ranking(logratios, beta=1.0))
    chain = exercises.ranking_dpo(lambda h, *, beta: -torch.nn.functional.logsigmoid(beta * -h.diff(dim=-1)).sum(-1))
    assert "denominator" in chain


def test_reward_distance():
    assert exercises.reward_distance(lambda one, two: None).startswith("not done yet")
    assert exercises.reward_distance(spread).startswith("correct")
    assert "shift" in exercises.reward_distance(lambda one, two: (one - two).abs().max())
    centred = lambda d: (d - d.median(-1, keepdim=True).values).abs().max()  # noqa: E731
    assert "not a mean" in exercises.reward_distance(lambda one, two: centred(one - two))


def test_repaired_dpo():
    def wrong(pc, pr, rc, rr, *, beta):
        return losses.dpo(pc, pr, rr, rc, beta=beta)

    assert exercises.repaired_dpo(wrong).startswith("not done yet")
    assert exercises.repaired_dpo(losses.dpo).startswith("correct")
    assert "Eq. 7" in exercises.repaired_dpo(lambda *logps, beta: losses.dpo(*logps, beta=2 * beta))
