"""DPO by hand: the loop of notebook 08 as a function, for any loss of ``theory.losses`` with DPO's signature."""

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import torch

from dpo_tutorial.theory import losses
from dpo_tutorial.training.encode import collate
from dpo_tutorial.training.logps import completion_logps, pair_logps

TIE = 1e-5  # margins below this are rounding: the policy still is the reference


@dataclass
class Run:
    """What a training run leaves: metrics per step, and the weights of the best held-out step."""

    history: list[dict[str, float]] = field(default_factory=list)
    best_step: int = 0
    best_loss: float = math.inf
    best_state: dict[str, torch.Tensor] | None = None
    since_best: int = 0

    def curve(self, name: str) -> tuple[list[int], list[float]]:
        """(steps, values) of one metric, at the steps that have it."""
        rows = [row for row in self.history if name in row]
        return [int(row["step"]) for row in rows], [row[name] for row in rows]

    def note(self, step: int, heldout_loss: float, policy) -> None:
        """Keep a copy of the trainable weights if this held-out loss is the best so far."""
        self.since_best += 1
        if heldout_loss < self.best_loss:
            self.best_step, self.best_loss, self.since_best = step, heldout_loss, 0
            self.best_state = {name: p.detach().clone() for name, p in policy.named_parameters() if p.requires_grad}


def reference_logps(model, examples: list[dict], *, pad_token_id: int, logps_of=completion_logps) -> torch.Tensor:
    """The reference's log-probabilities, computed once: (N, 2), chosen and rejected."""
    return torch.stack(pair_logps(model, examples, pad_token_id=pad_token_id, logps_of=logps_of), dim=1)


def metrics(policy_chosen, policy_rejected, ref_chosen, ref_rejected, *, beta: float) -> dict[str, float]:
    """Margins, accuracy with ties apart, and log-ratios of a batch, named as in the course: means over (B,)."""
    chosen_logratios, rejected_logratios = policy_chosen - ref_chosen, policy_rejected - ref_rejected
    margins = beta * (chosen_logratios - rejected_logratios)
    return {
        "margins": margins.mean().item(),
        "accuracies": (margins > TIE).float().mean().item(),
        "ties": (margins.abs() <= TIE).float().mean().item(),
        "chosen_logratios": chosen_logratios.mean().item(),
        "rejected_logratios": rejected_logratios.mean().item(),
    }


def evaluate(
    policy, examples, ref_logps, *, loss: Callable, beta: float, pad_token_id: int, logps_of=completion_logps
) -> dict[str, float]:
    """Held-out loss and metrics of a policy, names prefixed with ``eval_``."""
    chosen, rejected = pair_logps(policy.eval(), examples, pad_token_id=pad_token_id, logps_of=logps_of)
    numbers = {"loss": loss(chosen, rejected, *ref_logps.T).mean().item()}
    numbers |= metrics(chosen, rejected, *ref_logps.T, beta=beta)
    return {f"eval_{name}": value for name, value in numbers.items()}


def batch_order(count: int, *, batch_size: int, epochs: int, seed: int) -> list[list[int]]:
    """Row numbers of every batch; each epoch is shuffled anew and its last, smaller batch is kept."""
    generator = torch.Generator().manual_seed(seed)
    order = []
    for _ in range(epochs):
        rows = torch.randperm(count, generator=generator).tolist()
        order += [rows[i : i + batch_size] for i in range(0, count, batch_size)]
    return order


def train_dpo(
    policy, train: list[dict], ref_logps: torch.Tensor | Callable, *, beta: float, learning_rate: float,
    order: list[list[int]], pad_token_id: int, loss: Callable | None = None,
    heldout: tuple[list[dict], torch.Tensor] | None = None,
    evaluate_every: int = 0, patience: int | None = None, warmup_steps: int = 0, max_grad_norm: float = 1.0,
    on_step: Callable[[int, dict], None] | None = None, logps_of: Callable = completion_logps,
) -> Run:  # fmt: skip
    """Train ``policy`` in place on encoded pairs; it is left in evaluation mode.

    AdamW without weight decay, linear warm-up and decay, gradients clipped: TRL's defaults, so that the two
    trajectories can be compared.

    Args:
        train: as ``encode.encode_pairs`` returns them; ``order`` holds the row numbers of each batch.
        ref_logps: (N, 2) from :func:`reference_logps`, cached, so that no second model is needed; or a function
            of a batch's row numbers that returns their (B, 2), called at every step.
        loss: ``(policy_chosen, policy_rejected, ref_chosen, ref_rejected) -> (B,)``; DPO at ``beta`` when None.
        heldout: (encoded pairs, their ref_logps), evaluated before the first step and every ``evaluate_every``.
        patience: stop after so many evaluations without a better held-out loss (early stopping).
        on_step: called with the step number and its metrics, for a monitor.
        logps_of: ``(model, batch) -> (rows,)``, what is scored; ``ref_logps`` must come from the same function.

    Raises:
        FloatingPointError: the loss is not finite; the message says at which step and what to look at.
        ValueError: evaluation is asked for without held-out pairs.
    """
    if (evaluate_every or patience) and heldout is None:
        raise ValueError("evaluate_every and patience need heldout=(encoded pairs, reference log-probabilities)")
    run, loss = Run(), loss or partial(losses.dpo, beta=beta)
    parameters = [p for p in policy.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=learning_rate, weight_decay=0.0)
    rate = torch.optim.lr_scheduler.LambdaLR(optimizer, partial(_linear, warmup=warmup_steps, total=len(order)))
    for step in range(len(order) + 1):
        row: dict[str, float] = {"step": step}
        if evaluate_every and step % evaluate_every == 0:
            row |= evaluate(policy, *heldout, loss=loss, beta=beta, pad_token_id=pad_token_id, logps_of=logps_of)
            run.note(step, row["eval_loss"], policy)
        stop = step == len(order) or (patience is not None and run.since_best >= patience)
        if not stop:
            batch = collate([train[i] for i in order[step]], pad_token_id=pad_token_id)
            policy_logps = logps_of(policy.train(), batch)
            ref = ref_logps(order[step]) if callable(ref_logps) else ref_logps[order[step]]
            row |= _step(policy_logps, ref, loss, beta, parameters, max_grad_norm, step)
            optimizer.step()
            rate.step()
            optimizer.zero_grad()
        run.history.append(row)
        if on_step is not None:
            on_step(step, {name: value for name, value in row.items() if name != "step"})
        if stop:
            break
    policy.eval()
    return run


def _step(policy_logps, ref_logps, loss, beta, parameters, max_grad_norm, step) -> dict[str, float]:
    """Loss, backward and clipping of one batch; returns its metrics."""
    chosen, rejected = policy_logps.chunk(2)
    value = loss(chosen, rejected, *ref_logps.T.to(chosen.device)).mean()
    if not torch.isfinite(value):
        raise FloatingPointError(
            f"the loss is {value.item()} at step {step}; look at the learning rate, the dtype (float16 overflows) "
            "and the longest row of the batch (notebook 10)"
        )
    value.backward()
    norm = torch.nn.utils.clip_grad_norm_(parameters, max_grad_norm)
    numbers = metrics(chosen.detach(), rejected.detach(), *ref_logps.T.to(chosen.device), beta=beta)
    return {"loss": value.item(), "grad_norm": norm.item()} | numbers


def _linear(step: int, *, warmup: int, total: int) -> float:
    """Transformers' linear schedule: up to 1 over ``warmup`` steps, then down to 0 at ``total``."""
    if step < warmup:
        return step / warmup
    return max(0.0, (total - step) / max(1, total - warmup))


def frozen_copy(model):
    """A copy of ``model`` that no training touches, to be used as reference."""
    return copy.deepcopy(model).requires_grad_(False).eval()
