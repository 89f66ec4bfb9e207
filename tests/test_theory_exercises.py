"""The exercises' checkers: silent on nothing, right about right and wrong answers."""

import math

import torch

from dpo_tutorial.theory import exercises, finite, losses


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


def test_margin_at():
    def flow(time, start, c):
        low, high = start, start + c * time + 1
        for _ in range(100):
            middle = (low + high) / 2
            below = middle + math.exp(min(middle, 700)) < start + math.exp(start) + c * time
            low, high = (middle, high) if below else (low, middle)
        return high

    assert exercises.margin_at(lambda time, start, c: None).startswith("not done yet")
    assert exercises.margin_at(flow).startswith("correct")
    assert "yours is" in exercises.margin_at(lambda time, start, c: math.log(c * time))


def test_chosen_falls():
    def solution(features, probs, chosen, rejected, alone=False):
        steps = features[chosen] - features[rejected]
        return ((features - probs @ features)[chosen] * (steps if alone else steps.sum(0))).sum(-1) < 0

    assert exercises.chosen_falls(lambda *arguments: None).startswith("not done yet")
    assert exercises.chosen_falls(solution).startswith("correct")
    assert "batch" in exercises.chosen_falls(lambda *arguments: solution(*arguments, alone=True)), "the batch counts"


def test_hand_written_gradient():
    world = finite.random_world(3, 5, generator=torch.Generator().manual_seed(4))

    def gradient(logits, rows, beta, turned=1.0, share=1.0):
        delta = (torch.log_softmax(logits, -1) - world.ref_logps)[rows.prompts]
        each = torch.arange(len(rows))
        margins = beta * (delta[each, rows.chosen] - delta[each, rows.rejected])
        pull = share * beta * rows.weights * torch.sigmoid(-turned * margins)
        zero = torch.zeros_like(logits).index_put((rows.prompts, rows.chosen), -pull, accumulate=True)
        return zero.index_put((rows.prompts, rows.rejected), pull, accumulate=True)

    def check(**options):
        return exercises.hand_written_gradient(lambda *a: gradient(*a, **options), world, beta=0.5)

    assert check().startswith("correct")
    assert check(turned=-1.0).startswith("not done yet") and check(share=2.0).startswith("wrong at the reference")


def test_rest_points():
    def logit(q):
        return math.log(q / (1 - q))

    def solution(p, beta, eps):
        noisier, cleaner = p * (1 - eps) + (1 - p) * eps, (p - eps) / (1 - 2 * eps)
        shares = {"dpo": p, "cdpo": noisier, "robust_dpo": cleaner}
        return {name: logit(q) / beta for name, q in shares.items()} | {"ipo": (2 * p - 1) / (2 * beta)}

    assert exercises.rest_points(lambda p, beta, eps: None).startswith("not done yet")
    assert exercises.rest_points(solution).startswith("correct")
    assert exercises.rest_points(lambda *a: solution(*a) | {"ipo": 1.0}).startswith("ipo at p 0.7")


def test_pairs_from_top_two():
    def best_only(first, second, rest):
        return [(first, second), *((first, other) for other in rest)]

    def solution(first, second, rest):
        return [*best_only(first, second, rest), *((second, other) for other in rest)]

    assert exercises.pairs_from_top_two(lambda *a: None).startswith("not done yet")
    assert exercises.pairs_from_top_two(solution).startswith("correct")
    assert "only 3" in exercises.pairs_from_top_two(best_only)
    assert "times the true" in exercises.pairs_from_top_two(lambda first, second, rest: [(first, second)])
    assert "nobody did" in exercises.pairs_from_top_two(lambda *a: [*solution(*a), a[2]])
