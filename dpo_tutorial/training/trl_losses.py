"""TRL's own loss code, run on log-probabilities instead of a model: an oracle for ``theory.losses``.

TRL computes its losses inside trainers. Each function here calls the trainer's method, unbound, with a stand-in for
the trainer that holds only the settings, and where a model is expected, a stand-in that returns the given
log-probabilities. What runs is TRL's arithmetic and nothing of ours; what is not tested this way is how TRL obtains
log-probabilities from a model (the tests do that with a tiny one). Tied to trl 1.16: another version may
read more settings, and then the call fails with an AttributeError, loudly.
"""

from collections import defaultdict
from types import SimpleNamespace

import torch
from torch import Tensor
from trl import DPOTrainer, KTOTrainer
from trl.experimental.cpo import CPOTrainer
from trl.experimental.orpo import ORPOTrainer

_ACCELERATOR = SimpleNamespace(
    device=torch.device("cpu"), gather=lambda value: value, gather_for_metrics=lambda value: value
)


def _outputs(logps: Tensor, lengths: Tensor) -> tuple[SimpleNamespace, dict[str, Tensor]]:
    """What a model would return for rows (N,) of summed log-probabilities, and the batch it would be given.

    Row n has a prompt of one token and ``lengths[n]`` completion tokens that share its log-probability equally.
    """
    mask = (torch.arange(int(lengths.max())) < lengths[:, None]).long()
    blank = torch.zeros_like(mask, dtype=logps.dtype)
    outputs = SimpleNamespace(
        log_probs=mask * (logps / lengths)[:, None], entropy=blank, mean_logits=blank, is_top1=mask.bool()
    )
    first = torch.zeros(len(logps), 1, dtype=torch.long)
    whole = torch.cat([first, mask], dim=1)
    return outputs, {"input_ids": whole, "attention_mask": torch.ones_like(whole), "completion_mask": whole}


def _stand_in(**settings) -> SimpleNamespace:
    return SimpleNamespace(
        model=SimpleNamespace(training=False),
        accelerator=_ACCELERATOR,
        aux_loss_enabled=False,
        ld_alpha=None,
        precompute_ref_logps=True,
        use_weighting=False,
        _metrics={"eval": defaultdict(list)},
        _total_train_tokens=0,
        **settings,
    )


def dpo(
    policy_chosen_logps: Tensor,
    policy_rejected_logps: Tensor,
    ref_chosen_logps: Tensor,
    ref_rejected_logps: Tensor,
    *,
    beta: float,
    loss_type: str = "sigmoid",
    label_smoothing: float = 0.0,
    chosen_lengths: Tensor | None = None,
    rejected_lengths: Tensor | None = None,
) -> Tensor:
    """(B,) losses of ``DPOTrainer`` for ``loss_type`` "sigmoid", "ipo", "hinge", "robust" and the others it knows.

    The trainer takes a mean over the batch, so each pair is a batch of its own. ``chosen_lengths`` and
    ``rejected_lengths`` are (B,) numbers of completion tokens, ones when left out; only "ipo" and the other averaging
    losses depend on them.
    """
    trainer = _stand_in(
        beta=beta,
        loss_types=[loss_type],
        loss_weights=[1.0],
        label_smoothing=label_smoothing,
        f_divergence_type="reverse_kl",
        f_alpha_divergence_coef=0.5,
        args=SimpleNamespace(discopop_tau=0.05),
    )
    ones = torch.ones(len(policy_chosen_logps), dtype=torch.long)
    lengths = torch.stack([ones if n is None else n for n in (chosen_lengths, rejected_lengths)], dim=1)
    losses = []
    for row, logps in enumerate(torch.stack([policy_chosen_logps, policy_rejected_logps], dim=1)):
        outputs, batch = _outputs(logps, lengths[row])
        batch["ref_chosen_logps"] = ref_chosen_logps[row : row + 1]
        batch["ref_rejected_logps"] = ref_rejected_logps[row : row + 1]
        losses.append(DPOTrainer._compute_loss(trainer, lambda outputs=outputs, **_: outputs, batch, False))
    return torch.stack(losses)


def kto(
    policy_logps: Tensor,
    ref_logps: Tensor,
    desirable: Tensor,
    kl: float,
    *,
    beta: float,
    desirable_weight: float = 1.0,
    undesirable_weight: float = 1.0,
) -> Tensor:
    """(B,) losses of ``KTOTrainer``, each example a batch of its own, all with the same estimate ``kl``."""
    trainer = _stand_in(
        beta=beta,
        loss_type="kto",
        calculate_KL=True,
        desirable_weight=desirable_weight,
        undesirable_weight=undesirable_weight,
        _compute_kl_logps=lambda model, batch: torch.full((1,), float(kl), dtype=policy_logps.dtype),
    )
    losses = []
    for row in range(len(policy_logps)):
        one = slice(row, row + 1)
        outputs, batch = _outputs(policy_logps[one], torch.ones(1, dtype=torch.long))
        batch |= {"label": desirable[one], "ref_logps": ref_logps[one], "ref_KL_logps": torch.zeros(1)}
        losses.append(KTOTrainer._compute_loss(trainer, lambda outputs=outputs, **_: outputs, batch, False))
    return torch.stack(losses)


def cpo(
    chosen_logps: Tensor,
    rejected_logps: Tensor,
    *,
    beta: float,
    loss_type: str = "sigmoid",
    label_smoothing: float = 0.0,
    simpo_gamma: float = 0.0,
) -> Tensor:
    """(B,) preference term of ``CPOTrainer``; with ``loss_type="simpo"`` the inputs are averaged log-probabilities.

    Its label smoothing works, so shifting the inputs by the reference (logps - ref_logps) gives an oracle for cDPO.
    """
    trainer = SimpleNamespace(
        accelerator=_ACCELERATOR,
        alpha=0.0,
        beta=beta,
        loss_type=loss_type,
        label_smoothing=label_smoothing,
        simpo_gamma=simpo_gamma,
    )
    losses, _, _ = CPOTrainer.cpo_loss(trainer, chosen_logps, rejected_logps)
    return losses


def orpo(chosen_avg_logps: Tensor, rejected_avg_logps: Tensor, *, weight: float) -> Tensor:
    """(B,) odds-ratio term of ``ORPOTrainer``, in float32 as computed there.

    The trainer calls the weight beta and subtracts this term's negative from a token mean of the likelihood, which is
    added here neither. ``theory.losses.orpo`` minus its likelihood term should equal it.
    """
    trainer = SimpleNamespace(accelerator=_ACCELERATOR, beta=weight)
    return -ORPOTrainer.odds_ratio_loss(trainer, chosen_avg_logps, rejected_avg_logps)[0]


def chosen_nll(kind: str, prompt_token_logps: list[Tensor], completion_token_logps: list[Tensor]) -> Tensor:
    """The likelihood term of ``CPOTrainer`` ("cpo") or ``ORPOTrainer`` ("orpo"): one number for the whole batch.

    ``prompt_token_logps[n]`` and ``completion_token_logps[n]`` are the log-probabilities, below 0, of its tokens; a
    first token, which nothing predicts, is put before the prompt. A vocabulary of two words carries them: each token
    is word 1, and the logits give it exactly its log-probability.
    """
    trainers = {"cpo": CPOTrainer, "orpo": ORPOTrainer}
    if kind not in trainers:
        raise ValueError(f"kind is {kind!r}; accepted are 'cpo' and 'orpo'")
    lengths = [1 + len(p) + len(c) for p, c in zip(prompt_token_logps, completion_token_logps, strict=True)]
    shape = (len(lengths), max(lengths))
    logits = torch.zeros(*shape, 2, dtype=completion_token_logps[0].dtype)
    mask, labels = torch.zeros(shape, dtype=torch.long), torch.full(shape, -100)
    for row, (prompt, completion) in enumerate(zip(prompt_token_logps, completion_token_logps, strict=True)):
        logps = torch.cat([prompt, completion])
        logits[row, : len(logps), 1] = logps
        logits[row, : len(logps), 0] = torch.log(-torch.expm1(logps))
        mask[row, : lengths[row]] = 1
        labels[row, 1 + len(prompt) : lengths[row]] = 1
    # The chosen rows stand in for the rejected ones: the likelihood term reads the chosen half only.
    parts = {"input_ids": torch.ones(shape, dtype=torch.long), "attention_mask": mask, "labels": labels}
    batch = {f"{side}_{name}": value for side in ("chosen", "rejected") for name, value in parts.items()}
    trainer = SimpleNamespace(
        accelerator=_ACCELERATOR,
        is_encoder_decoder=False,
        padding_value=0,
        pad_token_id=0,
        aux_loss_enabled=False,
        cpo_alpha=1.0,
        loss_type="sigmoid",
        concatenated_inputs=trainers[kind].concatenated_inputs,
        get_batch_logps=trainers[kind].get_batch_logps,
    )
    outputs = SimpleNamespace(logits=torch.cat([logits, logits]))
    return trainers[kind].concatenated_forward(trainer, lambda *_, **__: outputs, batch)[4]
