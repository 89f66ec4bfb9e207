"""Checker for the exercise of notebook 12: it takes the learner's function and returns one sentence.

As in ``loop_exercises``: "correct" means done, "not done yet" that the stub still stands, any other sentence says in
words what is wrong; nothing is raised for a wrong answer.
"""

import itertools
from collections.abc import Callable

import numpy as np


def expected_best(function: Callable[..., float | None]) -> str:
    """Exercise 2: ``function(proxy, true, n)``, the mean true reward of the best of n over all subsets of a pool."""
    generator = np.random.default_rng(2)
    for m, n in ((5, 1), (6, 2), (7, 3), (5, 5)):
        proxy, true = generator.normal(size=m), generator.random(m)
        found = function(proxy, true, n)
        if found is None:
            return "not done yet: expected_best returns None"
        subsets = [list(subset) for subset in itertools.combinations(range(m), n)]
        wanted = np.mean([true[subset[proxy[subset].argmax()]] for subset in subsets])
        if not abs(found - wanted) < 1e-9:
            return f"a pool of {m}, best of {n}: it returns {found:.4f}, all subsets give {wanted:.4f}"
    return "correct: the same as over all subsets, without drawing any"
