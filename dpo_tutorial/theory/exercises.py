"""Checkers for the exercises of the theory notebooks: each takes the learner's function and returns one sentence.

A sentence that begins with "correct" means done, "not done yet" that the stub still stands; any other says in
words what is wrong. Nothing is raised for a wrong answer, so that a notebook with stubs runs untouched.
"""

import math
from collections.abc import Callable
from functools import partial
from itertools import permutations

import torch
from torch import Tensor

from dpo_tutorial.theory import finite, losses, stress, tabular


def _random(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def _far(one: Tensor, two: Tensor) -> bool:
    return not float((one - two).abs().max()) < 1e-9


def ranking_dpo(function: Callable[..., Tensor | None]) -> str:
    """Notebook 03, exercise 1: ``function(logratios (B, K), beta=...)`` is the DPO loss of rankings, shape (B,)."""
    logratios = _random(6, 4, seed=0)
    answer = function(logratios, beta=0.7)
    if answer is None:
        return "not done yet: ranking_dpo returns None"
    if tuple(answer.shape) != (6,):
        return f"the shape is {tuple(answer.shape)}; six rankings give one loss each, shape (6,)"
    zero = torch.zeros(6, dtype=torch.float64)
    if _far(function(logratios[:, :2], beta=0.7), losses.dpo(logratios[:, 0], logratios[:, 1], zero, zero, beta=0.7)):
        return "for two responses it should equal losses.dpo; is beta inside, and is the sign right?"
    total = sum(torch.exp(-function(logratios[:, list(order)], beta=0.7)) for order in permutations(range(4)))
    if _far(total, torch.ones(6)):
        return "the probabilities of the 24 rankings do not sum to one; which responses are in each denominator?"
    return "correct: equals losses.dpo for two, and sums to one over the rankings of four"


def reward_distance(function: Callable[[Tensor, Tensor], Tensor | None]) -> str:
    """Notebook 03, exercise 2: the largest error in any reward difference within a prompt, a scalar."""
    rewards = _random(4, 5, seed=1)
    other = rewards + 10 * _random(4, 1, seed=2)
    answer = function(rewards, other)
    if answer is None:
        return "not done yet: reward_distance returns None"
    if abs(float(answer)) > 1e-9:
        return "a shift per prompt should cost nothing; compare differences within a prompt, not the entries"
    other[1, 2] += 0.25
    if abs(float(function(rewards, other)) - 0.25) > 1e-9:
        return "one response off by 0.25 makes a reward difference wrong by 0.25; yours says something else"
    other[1, 3] -= 0.5
    if abs(float(function(rewards, other)) - 0.75) > 1e-9:
        return "one response +0.25 and another -0.5: a difference is wrong by 0.75; take the largest, not a mean"
    if abs(float(function(other, rewards)) - 0.75) > 1e-9:
        return "a distance is the same in both directions; yours changes when its arguments are swapped"
    return "correct: blind to shifts, and equal to the largest wrong difference"


def repaired_dpo(function: Callable[..., Tensor]) -> str:
    """Notebook 03, the silent bug: ``function`` has the signature of ``losses.dpo``."""
    values = [_random(6, seed=seed) - 5 for seed in range(3, 7)]
    at_reference = function(values[0], values[1], values[0], values[1], beta=0.7)
    if _far(at_reference, torch.full((6,), math.log(2), dtype=torch.float64)):
        return "not done yet: at policy = reference the loss is not log 2"
    if _far(function(*values, beta=0.7), losses.dpo(*values, beta=0.7)):
        return "log 2 is right, but away from the reference it differs from Eq. 7"
    return "correct: log 2 at the reference, and Eq. 7 elsewhere"


def margin_at(function: Callable[[float, float, float], float | None]) -> str:
    """Notebook 04, exercise 1: ``function(time, start_margin, c)`` is the margin of gradient flow on one pair."""
    for start_margin, c, time in ((0.0, 0.5, 40.0), (-2.0, 0.08, 500.0), (1.5, 2.0, 2000.0)):
        margin, small = start_margin, time / 20_000
        for _ in range(20_000):  # the flow, in steps small enough to trust
            half = margin + small / 2 * c / (1 + math.exp(margin))
            margin += small * c / (1 + math.exp(half))
        answer = function(time, start_margin, c)
        if answer is None:
            return "not done yet: margin_at returns None"
        if not abs(answer - margin) < 1e-3:
            return f"from {start_margin} with c {c} the margin at time {time} is {margin:.3f}, yours is {answer:.3f}"
    return "correct: three flows met"


def chosen_falls(function: Callable[..., Tensor | None]) -> str:
    """Notebook 04, exercise 2: ``function(features (R, D), probs (R,), chosen (N,), rejected (N,))`` -> bool (N,)."""
    for seed in range(20):
        generator = torch.Generator().manual_seed(seed)
        features = torch.randn(6, 2, dtype=torch.float64, generator=generator)
        probs = torch.softmax(torch.randn(6, dtype=torch.float64, generator=generator), -1)
        chosen, rejected = torch.stack([torch.randperm(6, generator=generator)[:2] for _ in range(4)], 1)
        policy = tabular.LogLinearPolicy(features[None], torch.zeros(2).double(), probs.log()[None])
        rows = finite.Preferences(
            torch.zeros(4).long(), chosen, rejected, torch.ones(4).double(), torch.zeros(4).bool()
        )
        objective = tabular.pair_objective(partial(losses.dpo, beta=0.5), rows, probs.log()[None])
        result = tabular.fit(policy, objective, optimizer="sgd", learning_rate=1e-6, steps=1)
        truth = (result.logps[0] - probs.log())[chosen] < 0
        answer = function(features, probs, chosen, rejected)
        if answer is None:
            return "not done yet: chosen_falls returns None"
        if not torch.equal(torch.as_tensor(answer).bool(), truth):
            return f"batch {seed}: the step lowers {truth.tolist()}, you said {torch.as_tensor(answer).tolist()}"
    return "correct: twenty batches"


def hand_written_gradient(
    function: Callable[[Tensor, finite.Preferences, float], Tensor], world: finite.FiniteWorld, *, beta: float
) -> str:
    """Notebook 04, the silent bug: ``function(logits, preferences, beta)`` is the gradient of the mean DPO loss."""
    rows = world.population_preferences()
    objective = tabular.pair_objective(partial(losses.dpo, beta=beta), rows, world.ref_logps)
    right = []
    for logits in (world.ref_logps, _random(*world.shape, seed=4)):
        logits = logits.clone().requires_grad_()
        (auto,) = torch.autograd.grad(objective(torch.log_softmax(logits, -1)), logits)
        right.append(not _far(auto, function(logits.detach(), rows, beta)))
    if not right[0]:
        return "wrong at the reference: the gradient differs from autograd's"
    if not right[1]:
        return "not done yet: at the reference it equals autograd, at random logits it does not"
    return "correct: equal to autograd at the reference and at random logits; now say why one start was not enough"


def rest_points(function: Callable[[float, float, float], dict | None]) -> str:
    """Notebook 05, exercise 1: ``function(p, beta, eps)`` -> {loss: delta where its expected value is smallest}."""
    delta = torch.linspace(-40, 40, 80_001, dtype=torch.float64)
    for p, beta, eps in ((0.7, 0.5, 0.1), (0.4, 0.2, 0.25), (0.85, 1.0, 0.1)):
        answer = function(p, beta, eps)
        if answer is None:
            return "not done yet: rest_points returns None, not a dict of four numbers"
        smoothed = {"beta": beta, "label_smoothing": eps}
        for name, loss in {
            "dpo": partial(losses.dpo, beta=beta),
            "cdpo": partial(losses.dpo, **smoothed),
            "robust_dpo": partial(losses.robust_dpo, **smoothed),
            "ipo": partial(losses.ipo, beta=beta),
        }.items():
            zeros = torch.zeros_like(delta)
            expected = p * loss(delta, zeros, zeros, zeros) + (1 - p) * loss(-delta, zeros, zeros, zeros)
            best = delta[expected.argmin()].item()
            if not abs(answer[name] - best) < 2e-3:
                return f"{name} at p {p}, beta {beta}, eps {eps}: {best:.3f}, you said {answer[name]:.3f}"
    return "correct: four losses, three settings"


def pairs_from_top_two(function: Callable[[int, int, tuple[int, int]], list | None]) -> str:
    """Notebook 05, exercise 2: ``function(first, second, rest)`` -> the pairs (better, worse) one may make."""
    if function(0, 1, (2, 3)) is None:
        return "not done yet: pairs_from_top_two returns None, not a list of (better, worse)"
    world = finite.random_world(8, 5, generator=torch.Generator().manual_seed(5))
    orders, probs = stress.rankings_of_four(world)
    counts = torch.zeros(*world.shape, world.shape[1], dtype=torch.float64)
    for k, (first, second, *rest) in enumerate(orders.tolist()):
        made = function(first, second, tuple(sorted(rest)))
        if any(set(pair) == set(rest) for pair in made):
            return "you compare the two at the end, which nobody did"
        for better, worse in made:
            counts[:, better, worse] += probs[:, k]
    scale = stress.implied_scale(losses.dpo, counts, world.ref_logps, world, beta=0.5)
    if not abs(scale - 1) < 1e-6:
        return f"the implied rewards are {scale:.3f} times the true ones"
    if len(made) < 5:
        return f"consistent, but only {len(made)} pairs; five are allowed"
    return "correct: five pairs, and the true rewards"
