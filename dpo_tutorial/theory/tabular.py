"""Policies small enough to be tables, fitted with any loss to a finite or an infinite set of preferences.

Two policies, both returning a table of log-probabilities (P, R) when called:

- :class:`TablePolicy`: one free logit per prompt and response, so that responses learn independently;
- :class:`LogLinearPolicy`: responses share features, so that pushing one moves others.

Two objectives, both functions from such a table to a scalar: :func:`pair_objective` for pairwise losses, and any
function you write. :func:`fit` minimises it and can record the way there.

    policy = TablePolicy(world.ref_logps)
    objective = pair_objective(partial(losses.dpo, beta=0.5), world.population_preferences(), world.ref_logps)
    result = fit(policy, objective)
    result.logps                       # (P, R)
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dpo_tutorial.theory.finite import Preferences

Objective = Callable[[Tensor], Tensor]
OPTIMIZERS = ("lbfgs", "adam", "sgd")


class TablePolicy(nn.Module):
    """pi(y given x) = softmax of a free table of logits; ``initial`` (P, R): logits or log-probabilities."""

    def __init__(self, initial: Tensor) -> None:
        super().__init__()
        if initial.ndim != 2 or not torch.isfinite(initial).all():
            raise ValueError(
                f"initial has shape {tuple(initial.shape)}, all finite: {bool(torch.isfinite(initial).all())}; "
                "accepted is a finite (P, R) table. A probability of zero has no logit: replace it by 1e-12."
            )
        self.logits = nn.Parameter(initial.detach().double().clone())

    def forward(self) -> Tensor:
        """(P, R) log-probabilities; rows sum to one after exp."""
        return torch.log_softmax(self.logits, dim=-1)


class LogLinearPolicy(nn.Module):
    """pi(y given x) proportional to base(y given x) exp(features(x, y) . weights): responses share D weights.

    Args:
        features: (P, R, D).
        weights: (D,) start; zeros give the base.
        base_logps: (P, R) log-probabilities at zero weights, for example the reference's; uniform when left out.
    """

    def __init__(self, features: Tensor, weights: Tensor, base_logps: Tensor | None = None) -> None:
        super().__init__()
        if features.ndim != 3 or weights.shape != features.shape[2:]:
            raise ValueError(
                f"features has shape {tuple(features.shape)}, weights {tuple(weights.shape)}; "
                "accepted are (P, R, D) and (D,)"
            )
        base = torch.zeros(features.shape[:2]).double() if base_logps is None else base_logps.double()
        if base.shape != features.shape[:2]:
            raise ValueError(
                f"base_logps has shape {tuple(base.shape)}; accepted is {tuple(features.shape[:2])} like the features"
            )
        self.register_buffer("features", features.detach().double())
        self.register_buffer("base_logps", base.detach())
        self.weights = nn.Parameter(weights.detach().double().clone())

    def forward(self) -> Tensor:
        """(P, R) log-probabilities."""
        return torch.log_softmax(self.base_logps + self.features @ self.weights, dim=-1)


def pair_logps(logps: Tensor, preferences: Preferences) -> tuple[Tensor, Tensor]:
    """(N,) log-probabilities of the chosen and of the rejected responses, read off a (P, R) table."""
    return logps[preferences.prompts, preferences.chosen], logps[preferences.prompts, preferences.rejected]


def pair_objective(
    loss: Callable[..., Tensor], preferences: Preferences, ref_logps: Tensor | None = None
) -> Objective:
    """The weighted mean of a pairwise loss over preferences, as a function of a (P, R) table of log-probabilities.

    Args:
        loss: called as ``loss(policy_chosen_logps, policy_rejected_logps, ref_chosen_logps, ref_rejected_logps)``
            with (N,) tensors, or with the first two only when ``ref_logps`` is None (cpo, orpo, simpo). Bind beta
            with ``functools.partial(losses.dpo, beta=0.1)``.
        preferences: rows to average over; ties are refused, since what to do with them is your choice.
        ref_logps: (P, R) log-probabilities of the reference, or None.

    Returns:
        A function of a (P, R) table giving a scalar. On a table every response is one "token", so averaged and
        summed log-probabilities agree; divide by lengths inside ``loss`` to give responses lengths.

    Raises:
        ValueError: preferences with ties, or without rows.
    """
    if preferences.ties.any():
        raise ValueError(
            f"{int(preferences.ties.sum())} of {len(preferences)} preferences are ties; accepted are decided ones. "
            "Call preferences.decided() to drop ties, or add each tie twice, in either order, with half the weight."
        )
    if len(preferences) == 0:
        raise ValueError("preferences has no rows; accepted is one row or more")
    share = preferences.weights / preferences.weights.sum()
    reference = () if ref_logps is None else pair_logps(ref_logps, preferences)

    def objective(logps: Tensor) -> Tensor:
        return (share * loss(*pair_logps(logps, preferences), *reference)).sum()

    return objective


@dataclass(frozen=True)
class FitResult:
    """Result of :func:`fit`.

    Attributes:
        logps: (P, R) log-probabilities at the end.
        objective: value at the end.
        gradient: largest absolute entry of the gradient at the end; near zero at a stationary point.
        steps: (S,) step numbers of the record, beginning with 0.
        objectives: (S,) values along the way.
        path: (S, P, R) log-probabilities along the way.
    """

    logps: Tensor
    objective: float
    gradient: float
    steps: Tensor
    objectives: Tensor
    path: Tensor

    @property
    def policy(self) -> Tensor:
        """(P, R) probabilities at the end."""
        return self.logps.exp()


def fit(
    policy: nn.Module,
    objective: Objective,
    *,
    optimizer: str = "lbfgs",
    learning_rate: float | None = None,
    steps: int = 500,
    record_every: int | None = None,
    tolerance: float = 1e-12,
) -> FitResult:
    """Minimise ``objective(policy())`` in place, all rows at each step.

    Args:
        policy: a module that returns (P, R) log-probabilities when called; its parameters are changed.
        objective: function from that table to a scalar, see :func:`pair_objective`.
        optimizer: "lbfgs" for reaching an optimum (line search, then up to ten Newton steps, because near the optimum
            the objective changes by less than its rounding error); "adam" or "sgd" for watching steps.
        learning_rate: needed for adam and sgd, refused for lbfgs, whose line search chooses.
        steps: number of steps at most; for lbfgs, of iterations.
        record_every: keep the table every so many steps, and the last; None keeps start and end.
        tolerance: stop when every entry of the gradient is below it. 0 takes all the steps.

    Returns:
        A :class:`FitResult`. An objective without a minimum (single labels under DPO) gives no error: the policy is
        where the steps ended, and ``gradient`` is not near zero or the log-ratios are very large.

    Raises:
        ValueError: an unknown optimizer, or a learning rate missing or out of place.
        FloatingPointError: the objective became infinite or NaN.
    """
    stepper = _stepper(policy, optimizer, learning_rate)
    record = _Record(policy, objective)
    record.keep(0)
    stalled = False
    # L-BFGS only has to come near: the Newton steps of _polish finish, and converge quadratically.
    enough = max(tolerance, 1e-6 * record.gradient) if optimizer == "lbfgs" else tolerance
    for step in range(1, steps + 1):
        if record.gradient <= enough:
            break
        before = float(record.value)
        # Adam and SGD use the gradient of the last evaluation; only L-BFGS evaluates again along its line.
        stepper.step(record.closure if optimizer == "lbfgs" else None)
        value = record.evaluate()
        _check_finite(float(value), step)
        if record_every and step % record_every == 0:
            record.keep(step)
        record.last = step
        if optimizer == "lbfgs" and not float(value) < before - 1e-15 * abs(before):
            if stalled:
                break  # no better point along the plain gradient either: at the objective's rounding
            stepper, stalled = _stepper(policy, optimizer, learning_rate), True
        else:
            stalled = False
    if optimizer == "lbfgs" and record.gradient > tolerance:
        _polish(record)
        record.last += 1
    if record.steps[-1] != record.last:
        record.keep(record.last)
    return record.result()


def _check_finite(value: float, step: int) -> None:
    if not math.isfinite(value):
        raise FloatingPointError(
            f"the objective is {value} after step {step}; accepted are finite values. "
            "Lower the learning rate, or look for a log of zero in the loss."
        )


def _stepper(policy: nn.Module, optimizer: str, learning_rate: float | None) -> torch.optim.Optimizer:
    if optimizer not in OPTIMIZERS:
        raise ValueError(f"optimizer is {optimizer!r}; accepted are {', '.join(OPTIMIZERS)}")
    if optimizer == "lbfgs":
        if learning_rate is not None:
            raise ValueError(
                f"learning_rate is {learning_rate!r}; lbfgs takes none, its line search chooses the step"
            )
        return torch.optim.LBFGS(
            policy.parameters(),
            max_iter=1,
            history_size=50,
            line_search_fn="strong_wolfe",
            tolerance_grad=0,
            tolerance_change=0,
        )
    if learning_rate is None or not learning_rate > 0:
        raise ValueError(f"learning_rate is {learning_rate!r}; {optimizer} needs a number above 0, for example 0.1")
    kind = {"adam": torch.optim.Adam, "sgd": torch.optim.SGD}[optimizer]
    return kind(policy.parameters(), lr=learning_rate)


def _polish(record: "_Record", most: int = 10) -> None:
    """Newton steps on the exact Hessian, kept while the gradient shrinks and the objective does not grow.

    Where the Hessian is not positive semidefinite Newton would climb to a saddle: then nothing is done.
    """
    names = [name for name, _ in record.policy.named_parameters()]
    shapes = [p.shape for p in record.policy.parameters()]
    sizes = [p.numel() for p in record.policy.parameters()]

    def at(flat: Tensor) -> Tensor:
        pieces = [piece.reshape(shape) for piece, shape in zip(flat.split(sizes), shapes, strict=True)]
        return record.objective_of(
            torch.func.functional_call(record.policy, dict(zip(names, pieces, strict=True)), ())
        )

    for _ in range(most):
        flat = record.parameters()
        hessian = torch.autograd.functional.hessian(at, flat)
        gradient = torch.cat([p.grad.flatten() for p in record.policy.parameters()])
        if not torch.isfinite(hessian).all():
            return
        curvatures, directions = torch.linalg.eigh((hessian + hessian.T) / 2)
        largest = curvatures.abs().max()
        if curvatures.min() < -1e-8 * largest:
            return
        # Directions in which the objective is flat (a shift of a prompt's logits) are left alone.
        inverse = torch.where(curvatures > 1e-10 * largest, 1 / curvatures, 0.0)
        step = directions @ (inverse * (directions.T @ gradient))
        before, value = record.gradient, float(record.value)
        nn.utils.vector_to_parameters(flat - step, record.policy.parameters())
        record.evaluate()
        if not (record.gradient < before and float(record.value) <= value + 1e-12 * abs(value)):
            nn.utils.vector_to_parameters(flat, record.policy.parameters())
            record.evaluate()
            return


class _Record:
    """Evaluates the objective with its gradient, and keeps tables on request."""

    def __init__(self, policy: nn.Module, objective: Objective) -> None:
        self.policy, self.objective_of = policy, objective
        self.steps, self.objectives, self.path = [], [], []
        self.last = 0
        self.evaluate()

    def closure(self) -> Tensor:
        self.policy.zero_grad()
        table = self.policy()
        value = self.objective_of(table)
        value.backward()
        self.logps = table.detach()
        return value

    def evaluate(self) -> Tensor:
        self.value = self.closure().detach()
        self.gradient = max(float(p.grad.abs().max()) for p in self.policy.parameters())
        return self.value

    def keep(self, step: int) -> None:
        self.steps.append(step)
        self.objectives.append(float(self.value))
        self.path.append(self.logps)

    def result(self) -> "FitResult":
        return FitResult(
            logps=self.logps,
            objective=float(self.value),
            gradient=self.gradient,
            steps=torch.tensor(self.steps),
            objectives=torch.tensor(self.objectives, dtype=torch.float64),
            path=torch.stack(self.path),
        )

    def parameters(self) -> Tensor:
        return torch.cat([p.detach().flatten() for p in self.policy.parameters()]).clone()
