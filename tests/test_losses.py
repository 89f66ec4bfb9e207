"""Losses: exact values, symmetries, extremes, and equality with TRL 1.16."""

import math
from functools import partial

import pytest
import torch
import trl_oracle
from hypothesis import given, settings
from hypothesis import strategies as st

from dpo_tutorial.theory import losses
from dpo_tutorial.training import trl_losses

REFERENCE_BASED = {
    "dpo": losses.dpo,
    "cdpo": partial(losses.dpo, label_smoothing=0.2),
    "robust_dpo": partial(losses.robust_dpo, label_smoothing=0.2),
    "ipo": losses.ipo,
    "hinge": losses.hinge,
}
PAIRWISE = REFERENCE_BASED | {
    "cpo": lambda pc, pr, rc, rr, *, beta: losses.cpo(pc, pr, beta=beta, chosen_avg_logps=pc / 4, nll_weight=1.0),
    "simpo": lambda pc, pr, rc, rr, *, beta: losses.simpo(pc, pr, beta=beta, target_margin=0.5),
    "orpo": lambda pc, pr, rc, rr, *, beta: losses.orpo(pc, pr, weight=beta),
    "kto_good": lambda pc, pr, rc, rr, *, beta: losses.kto(pc, rc, torch.ones_like(pc).bool(), 0.5, beta=beta),
    "kto_bad": lambda pc, pr, rc, rr, *, beta: losses.kto(pr, rr, torch.zeros_like(pc).bool(), 0.5, beta=beta),
}
finite_logps = st.lists(st.floats(-50, 0), min_size=4, max_size=4)
betas = st.floats(0.01, 5)


def random_logps(n: int = 8, seed: int = 0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [-20 * torch.rand(n, dtype=torch.float64, generator=generator) - 0.1 for _ in range(4)]


def tensors(values, dtype=torch.float64):
    return [torch.tensor([value], dtype=dtype) for value in values]


def largest_difference(a: torch.Tensor, b: torch.Tensor) -> float:
    assert a.shape == b.shape
    return float((a - b).abs().max())


# --- exact values ---------------------------------------------------------------------------------------------------


@given(st.floats(-50, 0), st.floats(-50, 0), betas)
def test_dpo_is_log_2_where_policy_equals_reference(chosen, rejected, beta):
    loss = losses.dpo(*tensors([chosen, rejected, chosen, rejected]), beta=beta)
    assert float(loss) == pytest.approx(math.log(2), abs=1e-14)


def test_values_by_hand():
    one, zero = torch.ones(1).double(), torch.zeros(1).double()
    margin_two = (one, -one, zero, zero)
    assert float(losses.dpo(*margin_two, beta=1.0)) == pytest.approx(math.log(1 + math.exp(-2)))
    assert float(losses.ipo(*margin_two, beta=0.25)) == pytest.approx(0.0)
    assert float(losses.hinge(*margin_two, beta=0.25)) == pytest.approx(0.5)
    assert float(losses.kto(one, zero, one.bool(), 1.0, beta=3.0, desirable_weight=2.0)) == pytest.approx(1.0)
    assert float(losses.simpo(zero, zero, beta=2.0, target_margin=1.0)) == pytest.approx(math.log(1 + math.e))
    third, half = torch.tensor([[1 / 3], [1 / 2]], dtype=torch.float64).log()
    # odds 1 against odds 1/2: the odds ratio is 2, sigma(log 2) = 2/3
    expected = math.log(2) - math.log(2 / 3)
    assert float(losses.orpo(half, third, weight=1.0)) == pytest.approx(expected, abs=1e-12)


@given(finite_logps, betas)
def test_swapping_chosen_and_rejected_flips_the_margin(values, beta):
    pc, pr, rc, rr = tensors(values)
    margin = losses.dpo(pr, pc, rr, rc, beta=beta) - losses.dpo(pc, pr, rc, rr, beta=beta)
    back = losses.dpo(pc, pr, rc, rr, beta=beta) - losses.dpo(pr, pc, rr, rc, beta=beta)
    assert float(margin) == -float(back)
    # log sigma(m) - log sigma(-m) = m: the difference of the two losses is the margin itself
    assert float(margin) == pytest.approx(float(beta * ((pc - rc) - (pr - rr))), abs=1e-9)


@given(finite_logps, betas, st.floats(0, 0.45))
def test_robust_dpo_is_unbiased_under_flips(values, beta, rate):
    pc, pr, rc, rr = tensors(values)
    robust = partial(losses.robust_dpo, beta=beta, label_smoothing=rate)
    mean = (1 - rate) * robust(pc, pr, rc, rr) + rate * robust(pr, pc, rr, rc)
    assert float(mean) == pytest.approx(float(losses.dpo(pc, pr, rc, rr, beta=beta)), rel=1e-9, abs=1e-9)


def test_robust_dpo_may_be_negative_and_cdpo_may_not():
    good = tensors([0.0, -40.0, -10.0, -10.0])
    assert float(losses.robust_dpo(*good, beta=1.0, label_smoothing=0.3)) < -10
    assert float(losses.dpo(*good, beta=1.0, label_smoothing=0.3)) > 0


def test_cdpo_has_its_minimum_at_the_log_odds_of_a_correct_label():
    margin = torch.tensor([math.log(0.8 / 0.2)], dtype=torch.float64, requires_grad=True)
    zero = torch.zeros(1).double()
    losses.dpo(margin, zero, zero, zero, beta=1.0, label_smoothing=0.2).sum().backward()
    assert abs(float(margin.grad)) < 1e-15


def test_adding_a_constant_per_prompt_to_the_reference_changes_nothing():
    pc, pr, rc, rr = random_logps()
    for name, loss in REFERENCE_BASED.items():
        assert (
            largest_difference(loss(pc, pr, rc, rr, beta=0.3), loss(pc, pr, rc + 3.7, rr + 3.7, beta=0.3)) < 1e-11
        ), name


@pytest.mark.parametrize("name", PAIRWISE)
def test_gradients_equal_finite_differences(name):
    inputs = [tensor.requires_grad_() for tensor in random_logps()]
    loss = partial(PAIRWISE[name], beta=0.3)
    assert torch.autograd.gradcheck(lambda *a: loss(*a), inputs, eps=1e-6, atol=1e-6)


def test_kto_does_not_send_a_gradient_through_kl():
    policy, ref, *_ = random_logps()
    kl = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
    policy.requires_grad_()
    losses.kto(policy, ref, torch.arange(8) % 2 == 0, kl, beta=0.3).sum().backward()
    assert kl.grad is None
    assert policy.grad.abs().min() > 0


# --- extremes -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("name", PAIRWISE)
def test_finite_at_extreme_log_ratios(name, dtype):
    extremes = [0.0, -1e-8, -1e4]
    for chosen in extremes:
        for rejected in extremes:
            for ref_chosen, ref_rejected in ((0.0, 0.0), (-1e4, 0.0), (0.0, -1e4), (-1e4, -1e4)):
                inputs = [x.requires_grad_() for x in tensors([chosen, rejected, ref_chosen, ref_rejected], dtype)]
                loss = PAIRWISE[name](*inputs, beta=0.5)
                loss.sum().backward()
                assert torch.isfinite(loss).all(), (chosen, rejected)
                for tensor in inputs:
                    assert tensor.grad is None or torch.isfinite(tensor.grad).all(), (chosen, rejected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("chosen", [0.0, -1e-8, -0.5, -30.0])
@pytest.mark.parametrize("rejected", [0.0, -1e-8, -0.5, -30.0])
def test_orpo_is_finite_at_certain_responses(dtype, chosen, rejected):
    inputs = [tensor.requires_grad_() for tensor in tensors([chosen, rejected], dtype)]
    loss = losses.orpo(*inputs, weight=0.1)
    loss.sum().backward()
    assert torch.isfinite(loss).all() and all(torch.isfinite(x.grad).all() for x in inputs)


def test_orpo_keeps_its_digits_near_certainty():
    x = torch.tensor([-1e-8], dtype=torch.float32, requires_grad=True)
    losses.orpo(torch.tensor([-0.6931472]), x, weight=1.0).sum().backward()
    # log odds of exp(-1e-8) is log(1e8); its derivative is 1 / (1 - p) = 1e8
    assert float(x.grad) == pytest.approx(1e8, rel=1e-3)


def test_half_precision_is_computed_in_float32():
    exact = random_logps()
    halves = [tensor.bfloat16() for tensor in exact]
    loss = losses.dpo(*halves, beta=0.3)
    assert loss.dtype == torch.float32
    assert largest_difference(loss, losses.dpo(*[tensor.float() for tensor in halves], beta=0.3)) == 0


# --- refusals -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("beta", [0, -0.1, float("nan"), float("inf"), None])
@pytest.mark.parametrize("name", [n for n in PAIRWISE if n != "orpo"])
def test_refuses_a_beta_that_is_not_positive(name, beta):
    with pytest.raises(ValueError, match=rf"beta is {beta}.*accepted"):
        PAIRWISE[name](*random_logps(), beta=beta)


def test_beta_has_no_default():
    for loss in (losses.dpo, losses.ipo, losses.hinge):
        with pytest.raises(TypeError, match="beta"):
            loss(*random_logps())


@pytest.mark.parametrize("rate", [0.5, 0.7, 1.0, -0.1, float("nan")])
def test_refuses_a_label_smoothing_outside_zero_to_a_half(rate):
    for loss in (losses.robust_dpo, losses.dpo):
        with pytest.raises(ValueError, match=r"label_smoothing is .*0 <= label_smoothing < 0.5"):
            loss(*random_logps(), beta=0.1, label_smoothing=rate)


def test_refuses_shapes_that_would_broadcast():
    pc, pr, rc, rr = random_logps()
    with pytest.raises(ValueError, match=r"shapes differ.*\(8, 1\)"):
        losses.dpo(pc, pr, rc[:, None], rr, beta=0.1)


def test_refuses_other_misuse():
    pc, pr, *_ = random_logps()
    with pytest.raises(ValueError, match="chosen_avg_logps"):
        losses.cpo(pc, pr, beta=0.1, nll_weight=1.0)
    with pytest.raises(ValueError, match="weight is -1"):
        losses.orpo(pc, pr, weight=-1)
    with pytest.raises(ValueError, match="target_margin is -1"):
        losses.simpo(pc, pr, beta=2.0, target_margin=-1)
    with pytest.raises(ValueError, match=r"torch\.bool"):
        losses.kto(pc, pr, torch.ones(8), 0.0, beta=0.1)


# --- TRL's arithmetic on the same numbers ---------------------------------------------------------------------------


@settings(max_examples=25, deadline=None)
@given(finite_logps, betas)
def test_reference_based_losses_equal_trl(values, beta):
    logps = tensors(values)
    for loss_type, ours in (("sigmoid", losses.dpo), ("ipo", losses.ipo), ("hinge", losses.hinge)):
        theirs = trl_losses.dpo(*logps, beta=beta, loss_type=loss_type)
        assert torch.allclose(ours(*logps, beta=beta), theirs, rtol=1e-10, atol=1e-10), loss_type
    theirs = trl_losses.dpo(*logps, beta=beta, loss_type="robust", label_smoothing=0.2)
    assert torch.allclose(losses.robust_dpo(*logps, beta=beta, label_smoothing=0.2), theirs, rtol=1e-10, atol=1e-10)


def test_ipo_equals_trl_after_dividing_by_lengths():
    logps, (n, m) = random_logps(), torch.tensor([[3, 1, 7, 4, 9, 2, 5, 6], [1, 8, 2, 4, 6, 3, 9, 5]])
    theirs = trl_losses.dpo(*logps, beta=0.3, loss_type="ipo", chosen_lengths=n, rejected_lengths=m)
    averaged = [tensor / length for tensor, length in zip(logps, (n, m, n, m), strict=True)]
    assert largest_difference(losses.ipo(*averaged, beta=0.3), theirs) < 1e-10
    assert largest_difference(losses.ipo(*logps, beta=0.3), theirs) > 1


def test_label_smoothing_does_nothing_in_trl_sigmoid_and_works_in_its_cpo():
    pc, pr, rc, rr = random_logps()
    plain = trl_losses.dpo(pc, pr, rc, rr, beta=0.3)
    assert largest_difference(trl_losses.dpo(pc, pr, rc, rr, beta=0.3, label_smoothing=0.2), plain) == 0
    theirs = trl_losses.cpo(pc - rc, pr - rr, beta=0.3, label_smoothing=0.2)
    assert largest_difference(losses.dpo(pc, pr, rc, rr, beta=0.3, label_smoothing=0.2), theirs) < 1e-10


@pytest.mark.parametrize("kl", [1.5, 0.0, -2.0])
def test_kto_equals_trl(kl):
    policy, ref, *_ = random_logps()
    labels = torch.tensor([True, False, True, True, False, False, True, False])
    options = {"beta": 0.3, "desirable_weight": 1.3, "undesirable_weight": 0.7}
    theirs = trl_losses.kto(policy, ref, labels, kl, **options)
    assert largest_difference(losses.kto(policy, ref, labels, kl, **options), theirs) < 1e-12


def test_cpo_and_simpo_equal_trl_on_the_preference_term():
    pc, pr, *_ = random_logps()
    assert largest_difference(losses.cpo(pc, pr, beta=0.3), trl_losses.cpo(pc, pr, beta=0.3)) < 1e-12
    theirs = trl_losses.cpo(pc, pr, beta=2.0, loss_type="simpo", simpo_gamma=0.7)
    assert largest_difference(losses.simpo(pc, pr, beta=2.0, target_margin=0.7), theirs) < 1e-10


def test_orpo_equals_trl_without_the_likelihood_and_survives_where_trl_does_not():
    pc, pr, *_ = random_logps()
    ours = losses.orpo(pc / 9, pr / 9, weight=0.4) + pc / 9
    assert largest_difference(ours.float(), trl_losses.orpo(pc / 9, pr / 9, weight=0.4)) < 1e-5
    certain = torch.zeros(1)
    assert not torch.isfinite(trl_losses.orpo(certain, certain, weight=0.4)).all()
    assert torch.isfinite(losses.orpo(certain, certain, weight=0.4)).all()


# --- TRL's trainer with a model -------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("loss_type", ["sigmoid", "ipo", "hinge", "robust"])
def test_equals_the_dpo_trainer_on_a_tiny_llama(loss_type, tmp_path):
    smoothing = 0.2 if loss_type == "robust" else 0.0
    theirs, batch = trl_oracle.run_dpo_trainer(
        str(tmp_path), loss_type=loss_type, beta=0.3, label_smoothing=smoothing
    )
    logps = batch.logps
    if loss_type == "ipo":
        n, m = batch.chosen_lengths, batch.rejected_lengths
        logps = [tensor / length for tensor, length in zip(logps, (n, m, n, m), strict=True)]
    ours = {
        "sigmoid": losses.dpo,
        "ipo": losses.ipo,
        "hinge": losses.hinge,
        "robust": partial(losses.robust_dpo, label_smoothing=smoothing),
    }[loss_type](*logps, beta=0.3)
    assert float(ours.mean()) == pytest.approx(theirs, abs=1e-5)
    assert float((batch.logps[0] - batch.logps[2]).abs().max()) > 1  # the comparison is not at log 2


def test_trls_likelihood_terms_average_tokens_over_the_batch_and_orpos_includes_the_prompt():
    generator = torch.Generator().manual_seed(0)
    prompts = [-torch.rand(size, dtype=torch.float64, generator=generator) - 0.1 for size in (3, 5)]
    completions = [-torch.rand(size, dtype=torch.float64, generator=generator) - 0.1 for size in (2, 6)]
    cpo = trl_losses.chosen_nll("cpo", prompts, completions)
    orpo = trl_losses.chosen_nll("orpo", prompts, completions)
    assert float(cpo) == pytest.approx(-float(torch.cat(completions).mean()), abs=1e-6)
    assert float(orpo) == pytest.approx(-float(torch.cat(prompts + completions).mean()), abs=1e-6)
    with pytest.raises(ValueError, match="'dpo'; accepted are 'cpo' and 'orpo'"):
        trl_losses.chosen_nll("dpo", prompts, completions)
