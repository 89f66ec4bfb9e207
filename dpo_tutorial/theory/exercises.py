"""Checkers for the exercises of the theory notebooks: each takes the learner's function and returns one sentence.

A sentence that begins with "correct" means done, "not done yet" that the stub still stands; any other says in
words what is wrong. Nothing is raised for a wrong answer, so that a notebook with stubs runs untouched.
"""

import math
from collections.abc import Callable
from itertools import permutations

import torch
from torch import Tensor

from dpo_tutorial.theory import losses


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
