"""Bradley-Terry by maximum likelihood: rewards from comparisons, with standard errors.

P(i beats j) = sigma(r_i - r_j). Only differences enter, so the rewards are returned with mean zero; a constant
added to all of them changes nothing that data could show.
"""

from dataclasses import dataclass

import numpy as np
import torch
from scipy.sparse.csgraph import connected_components
from torch import Tensor

from dpo_tutorial.theory.finite import Preferences

TIE_MODELS = ("half", "davidson")


class NoMaximum(ValueError):
    """The likelihood has no maximum: some rewards would run to infinity. The message names the items."""


@dataclass(frozen=True)
class Fit:
    """Result of :func:`fit`.

    Attributes:
        rewards: (n_items,) float64, mean zero.
        standard_errors: (n_items,) of the mean-zero rewards; weights are taken as counts. With l2 > 0 they are the
            standard deviations of the posterior with the prior of variance 1 / l2.
        covariance: (n_items, n_items) of the rewards; the variance of a difference is c_ii + c_jj - 2 c_ij.
        log_likelihood: natural log, without the penalty. A half win counts half.
        tie_strength: Davidson's nu, None under other models.
        iterations: Newton steps taken.
    """

    rewards: Tensor
    standard_errors: Tensor
    covariance: Tensor
    log_likelihood: float
    tie_strength: float | None
    iterations: int


def fit(
    winners,
    losers,
    n_items: int,
    *,
    ties=None,
    l2: float = 0.0,
    weights=None,
    tie_model: str = "half",
) -> Fit:
    r"""Maximum-likelihood Bradley-Terry rewards by Newton's method.

    .. math:: \max_r \sum_k w_k \log\sigma(r_{winner_k} - r_{loser_k}) - \tfrac{l2}{2}\,|r|^2

    Source: Bradley and Terry 1952; the conditions for a maximum are Ford's, 1957; DPO paper Eqs. 1, 2 (2305.18290).

    Ties. ``"half"`` counts a tie as half a win for each side: a common convention, simple and always
    defined, and the default for that. It is not the likelihood of any model of ties, and it pulls rewards together
    when ties are drawn from Davidson's model. ``"davidson"`` (Davidson 1970) fits win : loss : tie =
    e^{r_i} : e^{r_j} : nu e^{(r_i + r_j) / 2} with nu; when ties come from that model it recovers the rewards, as
    does leaving the ties out, with slightly larger errors.

    Args:
        winners, losers: (N,) integers in 0 .. n_items - 1 (tensor, array or list).
        n_items: number of items; an item without a comparison is an error unless l2 > 0.
        ties: pair of (T,) integer sequences, or a (T, 2) array; each row is one tie.
        l2: strength of the pull to zero, 0 or above; with l2 > 0 a maximum always exists.
        weights: (N,) weight of each comparison, ones when left out. Ties weigh one.
        tie_model: "half" or "davidson".

    Returns:
        A :class:`Fit`.

    Raises:
        NoMaximum: without l2, when the items cannot be ordered both ways (someone never lost, two groups never met).
        ValueError: indices, weights or options out of range.

    >>> [round(r, 4) for r in fit([0, 0, 0, 1], [1, 1, 1, 0], 2).rewards.tolist()]  # log(3) / 2 either way
    [0.5493, -0.5493]
    """
    wins, tied = _tables(winners, losers, n_items, ties, weights)
    if not l2 >= 0:
        raise ValueError(f"l2 is {l2!r}; accepted is 0 (maximum likelihood) or above, for example 0.01")
    if tie_model not in TIE_MODELS:
        raise ValueError(f"tie_model is {tie_model!r}; accepted are {', '.join(TIE_MODELS)}")
    davidson = tie_model == "davidson"
    if davidson and not tied.any():
        raise ValueError("tie_model is 'davidson' but there are no ties; pass ties, or use tie_model='half'")
    if not davidson:
        wins, tied = wins + (tied + tied.T) / 2, torch.zeros_like(wins)
    if l2 == 0:
        _require_maximum((wins > 0).numpy())
    return _newton(wins, tied, l2, davidson)


def fit_prompts(preferences: Preferences, n_prompts: int, n_responses: int, *, l2: float = 0.0) -> Tensor:
    """The reward model of a finite world: :func:`fit` on each prompt's preferences, ties as half wins, by itself.

    Returns:
        (n_prompts, n_responses) rewards; each row has mean zero, since comparisons within a prompt say no more.

    Raises:
        NoMaximum: as :func:`fit`, with the prompt's number in front.
    """
    rewards = torch.zeros(n_prompts, n_responses, dtype=torch.float64)
    for prompt in range(n_prompts):
        mine = preferences.select(preferences.prompts == prompt)
        decided, tied = mine.decided(), mine.select(mine.ties)
        try:
            rewards[prompt] = fit(
                decided.chosen,
                decided.rejected,
                n_responses,
                ties=(tied.chosen, tied.rejected),
                l2=l2,
                weights=decided.weights,
            ).rewards
        except NoMaximum as error:
            raise NoMaximum(f"prompt {prompt}: {error}") from None
    return rewards


def _tables(winners, losers, n_items, ties, weights) -> tuple[Tensor, Tensor]:
    """Total weight of i beating j, and of i and j tying, both (n_items, n_items)."""
    winners, losers = _indices("winners", winners, n_items), _indices("losers", losers, n_items)
    if len(winners) != len(losers):
        raise ValueError(
            f"winners has {len(winners)} rows and losers {len(losers)}; accepted is one row per comparison"
        )
    weights = torch.ones(len(winners)).double() if weights is None else torch.as_tensor(weights).double()
    if weights.shape != winners.shape or not (weights >= 0).all() or not torch.isfinite(weights).all():
        raise ValueError(
            f"weights has shape {tuple(weights.shape)}; accepted are {len(winners)} finite numbers, 0 or above"
        )
    left, right = torch.empty(0).long(), torch.empty(0).long()
    if ties is not None and np.asarray(ties).size:
        array = torch.as_tensor(np.asarray(ties))
        left, right = array.T if array.ndim == 2 and array.shape[1] == 2 and not isinstance(ties, tuple) else array
        left, right = _indices("ties", left, n_items), _indices("ties", right, n_items)
    for name, first, second in (("winners and losers", winners, losers), ("ties", left, right)):
        if (first == second).any():
            row = int((first == second).nonzero()[0])
            raise ValueError(f"row {row} of {name} compares item {int(first[row])} with itself; remove the row")
    tables = []
    for first, second, weight in ((winners, losers, weights), (left, right, torch.ones(len(left)).double())):
        table = torch.zeros(n_items, n_items, dtype=torch.float64)
        tables.append(table.index_put((first, second), weight, accumulate=True))
    return tables[0], tables[1]


def _indices(name: str, values, n_items: int) -> Tensor:
    values = torch.as_tensor(np.asarray(values))
    if values.numel() == 0:
        return values.long()
    if values.is_floating_point() or values.ndim != 1 or values.min() < 0 or values.max() >= n_items:
        raise ValueError(
            f"{name} has dtype {values.dtype}, shape {tuple(values.shape)}, range {values.min()} to {values.max()}; "
            f"accepted are whole numbers from 0 to {n_items - 1} in one dimension. Map names to numbers first."
        )
    return values.long()


def _require_maximum(beat: np.ndarray) -> None:
    """Ford's condition: every item can be reached from every other along wins. ``beat[i, j]`` says i beat j."""
    n_groups, group = connected_components(beat, directed=True, connection="strong")
    if n_groups == 1:
        return
    reasons = []
    played = beat.any(0) | beat.any(1)
    for label, mask in (
        ("never compared", ~played),
        ("never lost", played & ~beat.any(0)),
        ("never won", played & ~beat.any(1)),
    ):
        if mask.any():
            reasons.append(f"{label}: {_names(mask)}")
    n_islands, island = connected_components(beat, directed=True, connection="weak")
    if not reasons and n_islands > 1:
        reasons += [f"never compared with the rest: {_names(island == k)}" for k in range(1, n_islands)]
    if not reasons:
        for k in range(n_groups):
            mask = group == k
            if not beat[np.ix_(~mask, mask)].any():
                reasons.append(f"as a group never lost to the others: {_names(mask)}")
    raise NoMaximum(
        f"the likelihood has no maximum, some rewards run to infinity; items {'; '.join(reasons)}. "
        "Accepted are comparisons in which every item is linked to every other by wins in both directions. "
        "Collect more comparisons, drop these items, or pass l2 (for example l2=0.01) to pull rewards to zero."
    )


def _names(mask: np.ndarray, most: int = 10) -> str:
    items = np.flatnonzero(mask)
    return ", ".join(map(str, items[:most])) + (f" and {len(items) - most} more" if len(items) > most else "")


def _likelihood(rewards: Tensor, log_nu: Tensor, wins: Tensor, tied: Tensor, davidson: bool):
    """Log-likelihood with its gradient and negative Hessian in (rewards, log_nu)."""
    gap = rewards[:, None] - rewards[None, :]
    total = wins + wins.T + tied + tied.T
    tie_logit = log_nu if davidson else torch.tensor(-torch.inf, dtype=torch.float64)
    log_norm = torch.logsumexp(torch.stack([gap / 2, -gap / 2, tie_logit.expand_as(gap)]), dim=0)
    win, tie = (gap / 2 - log_norm).exp(), (tie_logit - log_norm).exp()
    lean = win - win.T
    value = (wins * (gap / 2 - log_norm)).sum()
    # Every unordered pair stands twice in ``total``; row sums count each pair once per item, sums of all, twice.
    gradient = ((wins - wins.T - total * lean) / 2).sum(1)
    curvature = total * (win + win.T - lean**2) / 4
    hessian = torch.diag(curvature.sum(1)) - curvature
    if not davidson:
        return value, gradient, hessian
    value = value + (tied * (tie_logit - log_norm)).sum()
    cross = -(total * tie * lean / 2).sum(1, keepdim=True)
    corner = (total * tie * (1 - tie)).sum() / 2
    gradient = torch.cat([gradient, (tied.sum() - (total * tie).sum() / 2)[None]])
    hessian = torch.cat([torch.cat([hessian, cross], 1), torch.cat([cross, corner.reshape(1, 1)], 0).T], 0)
    return value, gradient, hessian


def _newton(wins: Tensor, tied: Tensor, l2: float, davidson: bool, most: int = 200) -> Fit:
    """Maximise by Newton's method with step halving; the shift that the data cannot see is fixed by mean zero."""
    n = len(wins)
    rewards, log_nu = torch.zeros(n, dtype=torch.float64), torch.zeros((), dtype=torch.float64)
    size = n + davidson
    anchor = torch.zeros(size, size, dtype=torch.float64)
    anchor[:n, :n] = 1 / n  # curvature along the all-ones direction, where the likelihood is flat
    ridge = torch.diag(torch.cat([torch.full((n,), float(l2)), torch.zeros(size - n)]).double())
    scale = float(wins.sum() + tied.sum()) + l2

    def evaluate(r, v):
        value, gradient, hessian = _likelihood(r, v, wins, tied, davidson)
        gradient = torch.cat([gradient[:n] - l2 * r, gradient[n:]])
        return value, value - l2 / 2 * (r @ r), gradient, hessian + ridge

    value, target, gradient, hessian = evaluate(rewards, log_nu)
    for iteration in range(most):  # noqa: B007
        if float(gradient.abs().max()) <= 1e-13 * scale:
            break
        step = torch.linalg.solve(hessian / scale + anchor, gradient / scale)
        for halving in range(40):
            trial = rewards + 0.5**halving * step[:n]
            trial_nu = log_nu + 0.5**halving * step[n] if davidson else log_nu
            outcome = evaluate(trial - trial.mean(), trial_nu)
            # Near the maximum the likelihood changes by less than its rounding error; the gradient still tells.
            if outcome[1] > target or outcome[2].abs().max() < gradient.abs().max():
                break
        else:
            break  # no step of any size improves: the maximum is reached to rounding
        rewards, log_nu = trial - trial.mean(), trial_nu
        value, target, gradient, hessian = outcome
    _check_converged(float(gradient.abs().max()), scale, iteration)
    covariance = _covariance(hessian, n, anchor * scale)
    return Fit(
        rewards=rewards,
        standard_errors=covariance.diagonal().clamp(min=0).sqrt(),
        covariance=covariance,
        log_likelihood=float(value),
        tie_strength=float(log_nu.exp()) if davidson else None,
        iterations=iteration,
    )


def _check_converged(gradient: float, scale: float, iterations: int) -> None:
    if gradient > 1e-8 * scale:
        raise RuntimeError(
            f"Newton's method stopped with a gradient of {gradient:.3g} after {iterations} steps; "
            "the maximum is very flat. Pass l2 (for example l2=0.01)."
        )


def _covariance(hessian: Tensor, n: int, anchor: Tensor) -> Tensor:
    """Inverse information of the mean-zero rewards: project the inverse onto vectors of sum zero."""
    inverse = torch.linalg.inv(hessian + anchor)[:n, :n]
    centre = torch.eye(n, dtype=torch.float64) - 1 / n
    return centre @ inverse @ centre
