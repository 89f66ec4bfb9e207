"""Preference losses as pure functions of log-probabilities.

Every function returns one loss per pair (``kto``: per example) and takes no mean. Log-probabilities are
summed over completion tokens unless the argument says ``avg_logps``. All tensors of one call have the
same shape, written (B,) below; any shape works, and different shapes are refused because broadcasting a
(B,) against a (B, 1) gives a wrong answer without an error.

Inputs in bfloat16 or float16 are raised to float32 first, and the losses are float32: a log-probability of
-300.0 has a rounding error of 1 in bfloat16 already, and squaring or exponentiating in half precision
makes it worse. Gradients come back in the inputs' dtype. Values and gradients are finite for log-ratios
of +-1e4.

None of them masks, averages over tokens, clips or detaches, except ``kto``, whose ``kl`` is a constant by definition.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

# Average log-probabilities above this are treated as this: odds of 1e12 to 1 stand in for infinite odds.
_LARGEST_AVG_LOGP = -1e-12


def _positive(name: str, value: float) -> None:
    if not (isinstance(value, (int, float)) and math.isfinite(value) and value > 0):
        raise ValueError(
            f"{name} is {value!r}; accepted is a finite number above 0. "
            "0.1 is a common start; to switch the preference term off, leave the loss out instead."
        )


def _not_negative(name: str, value: float) -> None:
    if not (isinstance(value, (int, float)) and math.isfinite(value) and value >= 0):
        raise ValueError(
            f"{name} is {value!r}; accepted is a finite number, 0 or above. Use 0 to switch the term off."
        )


def _smoothing(value: float, *, remedy: str) -> None:
    if not (isinstance(value, (int, float)) and 0 <= value < 0.5):
        raise ValueError(
            f"label_smoothing is {value!r}; accepted is 0 <= label_smoothing < 0.5, the share of labels "
            f"assumed to be flipped. {remedy}"
        )


def _floats(**tensors: Tensor) -> list[Tensor]:
    """The tensors in float32 or better, after a check that their shapes agree."""
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    if len(set(shapes.values())) > 1:
        raise ValueError(
            f"shapes differ: {shapes}; accepted is one shape for all, usually (B,). "
            "Squeeze or index them to the same shape first."
        )
    return [t.float() if t.dtype in (torch.bfloat16, torch.float16) else t for t in tensors.values()]


def _delta_logratios(policy_chosen_logps, policy_rejected_logps, ref_chosen_logps, ref_rejected_logps) -> Tensor:
    """chosen_logratios - rejected_logratios, the h of IPO and the u/beta of DPO, shape (B,)."""
    pc, pr, rc, rr = _floats(
        policy_chosen_logps=policy_chosen_logps,
        policy_rejected_logps=policy_rejected_logps,
        ref_chosen_logps=ref_chosen_logps,
        ref_rejected_logps=ref_rejected_logps,
    )
    return (pc - rc) - (pr - rr)


def dpo(
    policy_chosen_logps: Tensor,
    policy_rejected_logps: Tensor,
    ref_chosen_logps: Tensor,
    ref_rejected_logps: Tensor,
    *,
    beta: float,
    label_smoothing: float = 0.0,
) -> Tensor:
    r"""Direct preference optimization, and with ``label_smoothing`` conservative DPO (cDPO).

    .. math:: -(1-\epsilon)\log\sigma(m) - \epsilon\log\sigma(-m), \qquad
              m = \beta\,[(\log\pi_\theta(y_w) - \log\pi_{ref}(y_w)) - (\log\pi_\theta(y_l) - \log\pi_{ref}(y_l))]

    Source: Rafailov et al. 2023, "Direct Preference Optimization", Eq. 7, arXiv 2305.18290 (epsilon = 0);
    Mitchell 2023, "A note on DPO with noisy preferences and relationship to IPO", Eq. 3 (epsilon > 0).
    Departures: none. TRL 1.16's ``loss_type="sigmoid"`` ignores its label_smoothing; ours does not.

    Args:
        policy_chosen_logps, policy_rejected_logps: (B,) summed log-probabilities under the policy.
        ref_chosen_logps, ref_rejected_logps: (B,) the same under the reference.
        beta: strength of the pull to the reference, above 0.
        label_smoothing: epsilon, the share of labels assumed flipped, in [0, 0.5). With epsilon > 0 the loss has
            its minimum at the finite margin log((1 - epsilon) / epsilon).

    Returns:
        (B,) losses; log 2 where policy and reference agree.

    Raises:
        ValueError: beta or label_smoothing out of range, or shapes that differ.

    >>> zero = torch.zeros(1)
    >>> round(float(dpo(zero, zero, zero, zero, beta=0.1)), 4)
    0.6931
    """
    _positive("beta", beta)
    _smoothing(label_smoothing, remedy="Above a half, swap chosen and rejected instead.")
    margins = beta * _delta_logratios(
        policy_chosen_logps, policy_rejected_logps, ref_chosen_logps, ref_rejected_logps
    )
    if label_smoothing == 0:
        return -F.logsigmoid(margins)
    return -(1 - label_smoothing) * F.logsigmoid(margins) - label_smoothing * F.logsigmoid(-margins)


def robust_dpo(
    policy_chosen_logps: Tensor,
    policy_rejected_logps: Tensor,
    ref_chosen_logps: Tensor,
    ref_rejected_logps: Tensor,
    *,
    beta: float,
    label_smoothing: float,
) -> Tensor:
    r"""Robust DPO (rDPO): an unbiased estimate of the clean DPO loss from labels flipped at a known rate.

    .. math:: \frac{-(1-\epsilon)\log\sigma(m) + \epsilon\log\sigma(-m)}{1 - 2\epsilon}

    with the margin m of :func:`dpo`. Averaged over flips at rate epsilon this is exactly the clean loss.

    Source: Chowdhury et al. 2024, "Provably Robust DPO: Aligning Language Models with Noisy Feedback",
    the loss of rDPO in section 3, arXiv 2403.00409.
    Departures: none. TRL 1.16 (``loss_type="robust"``) only warns outside [0, 0.5); we refuse, since the
    denominator is zero at 0.5 and the loss changes its sign beyond.

    Args:
        policy_chosen_logps, policy_rejected_logps, ref_chosen_logps, ref_rejected_logps: (B,) as in :func:`dpo`.
        beta: above 0.
        label_smoothing: epsilon, the share of flipped labels, in [0, 0.5); 0 gives :func:`dpo`.

    Returns:
        (B,) losses. They may be negative, and for epsilon > 0 a single pair's loss has no minimum.

    Raises:
        ValueError: beta or label_smoothing out of range, or shapes that differ.
    """
    _positive("beta", beta)
    _smoothing(label_smoothing, remedy="At 0.5 the labels carry no information; above it swap chosen and rejected.")
    margins = beta * _delta_logratios(
        policy_chosen_logps, policy_rejected_logps, ref_chosen_logps, ref_rejected_logps
    )
    unnormalised = -(1 - label_smoothing) * F.logsigmoid(margins) + label_smoothing * F.logsigmoid(-margins)
    return unnormalised / (1 - 2 * label_smoothing)


def ipo(
    policy_chosen_logps: Tensor,
    policy_rejected_logps: Tensor,
    ref_chosen_logps: Tensor,
    ref_rejected_logps: Tensor,
    *,
    beta: float,
) -> Tensor:
    r"""Identity preference optimization: pulls the difference of log-ratios to 1 / (2 beta), never beyond.

    .. math:: \left(h - \frac{1}{2\beta}\right)^2, \qquad
              h = (\log\pi_\theta(y_w) - \log\pi_{ref}(y_w)) - (\log\pi_\theta(y_l) - \log\pi_{ref}(y_l))

    Source: Azar et al. 2023, "A General Theoretical Paradigm to Understand Learning from Human Preferences",
    Eq. 17, arXiv 2310.12036; its tau is our beta.
    Departures: none from the printed equation. TRL 1.16 divides each log-ratio by its completion's length
    first (by a comment there, what the authors used). To get TRL's number, average before calling::

        ipo(policy_chosen_logps / chosen_lengths, policy_rejected_logps / rejected_lengths,
            ref_chosen_logps / chosen_lengths, ref_rejected_logps / rejected_lengths, beta=beta)

    Args:
        policy_chosen_logps, policy_rejected_logps, ref_chosen_logps, ref_rejected_logps: (B,) as in :func:`dpo`.
        beta: above 0. The target 1 / (2 beta) is in nats of log-ratio: 5 at beta 0.1.

    Returns:
        (B,) losses; 1 / (4 beta^2) where policy and reference agree.

    Raises:
        ValueError: beta not above 0, or shapes that differ.

    >>> zero = torch.zeros(1)
    >>> float(ipo(zero, zero, zero, zero, beta=0.5))
    1.0
    """
    _positive("beta", beta)
    delta = _delta_logratios(policy_chosen_logps, policy_rejected_logps, ref_chosen_logps, ref_rejected_logps)
    return (delta - 1 / (2 * beta)) ** 2


def hinge(
    policy_chosen_logps: Tensor,
    policy_rejected_logps: Tensor,
    ref_chosen_logps: Tensor,
    ref_rejected_logps: Tensor,
    *,
    beta: float,
) -> Tensor:
    r"""Hinge loss on DPO's margin: no gradient once the margin exceeds 1.

    .. math:: \max(0,\; 1 - m), \qquad m \text{ the margin of } \texttt{dpo}

    Source: Liu et al. 2023, "Statistical Rejection Sampling Improves Preference Optimization" (RSO), the
    hinge-norm loss, arXiv 2309.06657; without the reference it is the calibration loss of Zhao et al. 2023,
    "SLiC-HF", arXiv 2305.10425.
    Departures: SLiC-HF's cross-entropy term on the chosen response is left out, as in TRL.

    Args:
        policy_chosen_logps, policy_rejected_logps, ref_chosen_logps, ref_rejected_logps: (B,) as in :func:`dpo`.
        beta: above 0; the margin of 1 is reached at a log-ratio difference of 1 / beta.

    Returns:
        (B,) losses; 1 where policy and reference agree.

    Raises:
        ValueError: beta not above 0, or shapes that differ.
    """
    _positive("beta", beta)
    delta = _delta_logratios(policy_chosen_logps, policy_rejected_logps, ref_chosen_logps, ref_rejected_logps)
    return torch.relu(1 - beta * delta)


def kto(
    policy_logps: Tensor,
    ref_logps: Tensor,
    desirable: Tensor,
    kl: Tensor | float,
    *,
    beta: float,
    desirable_weight: float = 1.0,
    undesirable_weight: float = 1.0,
) -> Tensor:
    r"""Kahneman-Tversky optimization: single responses labelled good or bad, judged against a reference point.

    .. math:: \lambda_D\,(1 - \sigma(\beta\,(r - z_0)))\ \text{if desirable}, \qquad
              \lambda_U\,(1 - \sigma(\beta\,(z_0 - r)))\ \text{if not}

    with r the log-ratio of policy to reference and z_0 = max(0, kl).

    Source: Ethayarajh et al. 2024, "KTO: Model Alignment as Prospect Theoretic Optimization", the loss
    lambda_y - v(x, y) with the value function v, arXiv 2402.01306.
    Departures: 1 - sigmoid(a) is computed as sigmoid(-a), which keeps its digits for large a. The estimate of kl
    is the caller's: TRL averages the log-ratio over mismatched prompt-response pairs of the batch; on a finite
    world it can be exact.

    Args:
        policy_logps, ref_logps: (B,) summed log-probabilities of one response each.
        desirable: (B,) bool, True where the response is labelled good.
        kl: scalar (or (B,)) estimate of KL(policy || reference). Detached and clamped at 0 here:
            the paper's z_0 is not differentiated and not negative.
        beta: above 0.
        desirable_weight, undesirable_weight: lambda_D and lambda_U, 0 or above. With n_D and n_U examples the paper
            advises lambda_D n_D / (lambda_U n_U) between 1 and 4/3 (4/3 or 3/2, by version).

    Returns:
        (B,) losses in the order of the inputs (TRL puts the desirable ones first).

    Raises:
        ValueError: beta or a weight out of range, shapes that differ, or labels that are not boolean.
    """
    _positive("beta", beta)
    _not_negative("desirable_weight", desirable_weight)
    _not_negative("undesirable_weight", undesirable_weight)
    if desirable.dtype != torch.bool:
        raise ValueError(f"desirable has dtype {desirable.dtype}; accepted is torch.bool. Write labels == 1, say.")
    policy_logps, ref_logps, desirable = _floats(policy_logps=policy_logps, ref_logps=ref_logps, desirable=desirable)
    logratios = policy_logps - ref_logps
    reference_point = torch.as_tensor(kl, dtype=logratios.dtype, device=logratios.device).detach().clamp(min=0)
    gain = beta * (logratios - reference_point)
    losses = torch.where(desirable, desirable_weight * torch.sigmoid(-gain), undesirable_weight * torch.sigmoid(gain))
    return losses


def _log1mexp(x: Tensor) -> Tensor:
    """log(1 - exp(x)) for x < 0, exact to rounding on both sides of -log 2, with finite gradients.

    Each branch sees only values it can take: ``torch.where`` alone would give NaN gradients, because the
    branch not taken contributes 0 * inf.
    """
    near_zero = x > -math.log(2)
    inside = torch.where(near_zero, x, torch.full_like(x, -1.0))
    outside = torch.where(near_zero, torch.full_like(x, -1.0), x)
    return torch.where(near_zero, torch.log(-torch.expm1(inside)), torch.log1p(-torch.exp(outside)))


def _log_odds(avg_logps: Tensor) -> Tensor:
    """log(p / (1 - p)) of p = exp(avg_logps), shape (B,)."""
    clamped = avg_logps.clamp(max=_LARGEST_AVG_LOGP)
    return clamped - _log1mexp(clamped)


def orpo(chosen_avg_logps: Tensor, rejected_avg_logps: Tensor, *, weight: float) -> Tensor:
    r"""Odds-ratio preference optimization: likelihood of the chosen plus a term on the odds ratio, no reference.

    .. math:: -\bar\ell_w - \lambda\,\log\sigma\!\left(\log\frac{p_w}{1-p_w} - \log\frac{p_l}{1-p_l}\right),
              \qquad p = e^{\bar\ell},\ \bar\ell = \tfrac{1}{|y|}\log\pi_\theta(y)

    Source: Hong et al. 2024, "ORPO: Monolithic Preference Optimization without Reference Model", Eqs. 6 and 7
    with the odds of Eq. 4, arXiv 2403.07691.
    Departures: log(1 - p) is computed by expm1 and log1p, and average log-probabilities above -1e-12 count as
    -1e-12, so that a certain response has large but finite odds. There the odds term's gradient is zero, as is the
    softmax's own when a probability rounds to 1. TRL 1.16 gives infinite values at 0. TRL calls the weight
    beta, and its likelihood term is a mean over all the batch's tokens, prompt included; ours is per pair and
    per completion.

    Args:
        chosen_avg_logps, rejected_avg_logps: (B,) log-probabilities averaged over completion tokens, at most 0.
        weight: lambda, 0 or above; 0 leaves the likelihood of the chosen response alone.

    Returns:
        (B,) losses.

    Raises:
        ValueError: weight negative, or shapes that differ.

    >>> half = torch.log(torch.tensor([0.5]))
    >>> round(float(orpo(half, half, weight=1.0)), 4)  # log 2 + log 2
    1.3863
    """
    _not_negative("weight", weight)
    chosen, rejected = _floats(chosen_avg_logps=chosen_avg_logps, rejected_avg_logps=rejected_avg_logps)
    return -chosen - weight * F.logsigmoid(_log_odds(chosen) - _log_odds(rejected))


def cpo(
    policy_chosen_logps: Tensor,
    policy_rejected_logps: Tensor,
    *,
    beta: float,
    chosen_avg_logps: Tensor | None = None,
    nll_weight: float = 0.0,
) -> Tensor:
    r"""Contrastive preference optimization: DPO with a uniform reference, plus likelihood of the chosen.

    .. math:: -\log\sigma(\beta\,[\log\pi_\theta(y_w) - \log\pi_\theta(y_l)]) - \alpha\,\bar\ell_w

    Source: Xu et al. 2024, "Contrastive Preference Optimization", the preference term of Eq. 3 and the behaviour
    cloning term added to it, arXiv 2401.08417.
    Departures: the likelihood term is per pair, averaged over the completion's tokens. TRL 1.16's is one mean over
    all the batch's tokens, which weighs long completions more; the preference terms are equal.

    Args:
        policy_chosen_logps, policy_rejected_logps: (B,) summed log-probabilities under the policy.
        beta: above 0.
        chosen_avg_logps: (B,) averaged log-probabilities of the chosen; needed when nll_weight is above 0.
        nll_weight: alpha, 0 or above. The paper uses 1.

    Returns:
        (B,) losses.

    Raises:
        ValueError: a number out of range, shapes that differ, or nll_weight without chosen_avg_logps.
    """
    _positive("beta", beta)
    _not_negative("nll_weight", nll_weight)
    chosen, rejected = _floats(policy_chosen_logps=policy_chosen_logps, policy_rejected_logps=policy_rejected_logps)
    losses = -F.logsigmoid(beta * (chosen - rejected))
    if nll_weight == 0:
        return losses
    if chosen_avg_logps is None:
        raise ValueError(
            f"nll_weight is {nll_weight!r} and chosen_avg_logps is None; accepted is both or neither. "
            "Pass policy_chosen_logps / completion_lengths."
        )
    (_, average) = _floats(policy_chosen_logps=policy_chosen_logps, chosen_avg_logps=chosen_avg_logps)
    return losses - nll_weight * average


def simpo(chosen_avg_logps: Tensor, rejected_avg_logps: Tensor, *, beta: float, target_margin: float) -> Tensor:
    r"""Simple preference optimization: averaged log-probabilities, no reference, a margin to reach.

    .. math:: -\log\sigma(\beta\,\bar\ell_w - \beta\,\bar\ell_l - \gamma)

    Source: Meng et al. 2024, "SimPO: Simple Preference Optimization with a Reference-Free Reward", Eq. 6,
    arXiv 2405.14734.
    Departures: none. TRL 1.16's ``simpo_gamma`` is our target_margin; the paper also reports gamma / beta.

    Args:
        chosen_avg_logps, rejected_avg_logps: (B,) log-probabilities averaged over completion tokens.
        beta: above 0; 2 to 10 in the paper, since averages are small numbers.
        target_margin: gamma, 0 or above.

    Returns:
        (B,) losses; log(1 + e^gamma) where both averages are equal.

    Raises:
        ValueError: a number out of range, or shapes that differ.
    """
    _positive("beta", beta)
    _not_negative("target_margin", target_margin)
    chosen, rejected = _floats(chosen_avg_logps=chosen_avg_logps, rejected_avg_logps=rejected_avg_logps)
    return -F.logsigmoid(beta * (chosen - rejected) - target_margin)
