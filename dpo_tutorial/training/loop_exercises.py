"""Checkers for the exercises of notebook 08: each takes the learner's function and returns one sentence.

As in ``theory.exercises``: "correct" means done, "not done yet" that the stub still stands, any other sentence says
in words what is wrong; nothing is raised for a wrong answer.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor


def prompt_leak(function: Callable[..., float | None]) -> str:
    """Exercise 1: ``function(prompt_logratio, prompt_length, chosen_length, rejected_length)``, without beta.

    What scoring the prompt adds to the difference of mean log-ratios when the responses' own log-ratios are 0.
    """
    answer = function(2.0, 5, 20, 10)
    if answer is None:
        return "not done yet: prompt_leak returns None"
    if abs(function(2.0, 5, 20, 20)) > 1e-9:
        return "for responses of equal length the prompt cancels; yours leaves something"
    if abs(answer + function(2.0, 5, 10, 20)) > 1e-9:
        return "swapping the responses must flip the sign; yours does not"
    if abs(answer - (2 / 25 - 2 / 15)) > 1e-9:
        return "the sign or the divisor is off: a mean over prompt and response divides by both their lengths"
    return "correct: nothing for equal lengths; a shorter chosen response makes the loss raise the prompt itself"


def backward_in_parts(function: Callable[..., bool | None]) -> str:
    """Exercise 2: ``function(parts, loss_of)`` calls backward so that the gradient is that of the whole mean."""
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(8, 5, generator=generator, dtype=torch.float64)
    start = torch.randn(5, generator=generator, dtype=torch.float64)

    def gradient(parts, learner):
        weights = start.clone().requires_grad_(True)

        def loss_of(part):
            return -F.logsigmoid(part @ weights).mean()

        if learner:
            function(parts, loss_of)
        else:
            loss_of(rows).backward()
        return weights.grad

    whole = gradient(None, False)
    even, uneven = gradient(list(rows.split(4)), True), gradient(list(rows.split([5, 2, 1])), True)
    if even is None:
        return "not done yet: no gradient has arrived; is backward called?"
    if torch.allclose(even, 2 * whole):
        return "two parts of four give twice the gradient: the sum of means is not the mean"
    if not torch.allclose(even, whole):
        return "two parts of four do not give the gradient of the mean over eight pairs"
    if not torch.allclose(uneven, whole):
        return "equal parts are right, parts of 5, 2 and 1 are not: a mean of means weighs a small part too much"
    return "correct: parts of any size give the gradient of the whole batch"


def batch_margins(function: Callable[..., Tensor]) -> str:
    """The silent bug: ``function(summed, ref_summed, beta)``, (2B,) each in the layout of ``encode.collate``."""
    new, old = (torch.randn(12, generator=torch.Generator().manual_seed(seed)) for seed in (1, 2))

    def truth(new, old):
        chosen, rejected = (new - old).chunk(2)
        return 0.3 * (chosen - rejected)

    if function(new, old, 0.3).shape != (6,):
        return "six pairs have six margins"
    if not torch.allclose(function(new, new, 0.3), torch.zeros(6)):
        return "at the reference every margin must be 0"
    if not torch.allclose(function(new, old, 0.3), truth(new, old)):
        if torch.allclose(function(new[:2], old[:2], 0.3), truth(new[:2], old[:2])):
            return "not done yet: right for one pair and at the reference, wrong for six pairs away from it"
        return "wrong even for one pair: which row is the chosen one?"
    return "correct: the same margins as encode.collate's layout asks for"
