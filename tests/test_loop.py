"""The loop by hand: TRL's trajectory, accumulation, early stopping, and errors that say what to do."""

import math

import pandas as pd
import pytest
import torch

from dpo_tutorial.data import construct
from dpo_tutorial.training import encode, loop, models, sampling

SETTINGS = {"beta": 0.1, "learning_rate": 1e-4}


@pytest.fixture(scope="module")
def frame():
    """40 pairs of the lab LM's own samples: the longer against the shorter."""
    model, tokenizer = models.load("lab_lm", device="cpu")
    prompts = construct.review_prompts("prompts_train", 40, words=5)
    drawn = sampling.texts(
        tokenizer, sampling.sample(model, tokenizer, list(prompts["prompt"]), n=3, max_new_tokens=24, seed=0)
    )
    scores = [[float(len(text)) for text in row] for row in drawn]
    return construct.pairs_from_scores(prompts, drawn, scores, policy="widest", source="test")


@pytest.fixture(scope="module")
def encoded(frame):
    _, tokenizer = models.load("lab_lm", device="cpu")
    return encode.encode_pairs(tokenizer, frame)


def fresh():
    policy, tokenizer = models.load("lab_lm", device="cpu")
    return policy, {"pad_token_id": tokenizer.pad_token_id}


def test_trajectory_equals_trl(frame, encoded, tmp_path):
    from trl import DPOTrainer

    from dpo_tutorial.training import trl_bridge

    trl_bridge.quiet_libraries()
    policy, tokenizer = models.load("lab_lm", device="cpu")
    config = trl_bridge.dpo_config(
        tmp_path, epochs=4, batch_size=8, seed=0, warmup_steps=5, train_sampling_strategy="sequential", **SETTINGS
    )
    trainer = DPOTrainer(
        model=policy, args=config, train_dataset=trl_bridge.to_dataset(frame), processing_class=tokenizer
    )
    trl_bridge.train(trainer)
    theirs = [value for _, value in trl_bridge.history(trainer, "loss")]

    policy, pad = fresh()
    rows = list(range(len(encoded)))
    order = [rows[i : i + 8] for i in range(0, len(rows), 8)] * 4
    ref_logps = loop.reference_logps(policy, encoded, **pad)
    run = loop.train_dpo(policy, encoded, ref_logps, order=order, warmup_steps=5, **pad, **SETTINGS)
    ours = run.curve("loss")[1]
    assert len(ours) == len(theirs) == 20
    assert max(abs(a - b) for a, b in zip(ours, theirs, strict=True)) < 1e-4
    assert ours[-1] < ours[0] == pytest.approx(math.log(2), abs=1e-5)


def test_it_starts_at_log_2_with_nothing_but_ties(encoded):
    policy, pad = fresh()
    ref_logps = loop.reference_logps(policy, encoded, **pad)
    run = loop.train_dpo(policy, encoded, ref_logps, order=[[0, 1, 2]], **pad, **SETTINGS)
    assert run.history[0]["loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert run.history[0]["ties"] == 1.0 and run.history[0]["accuracies"] == 0.0


def test_the_best_step_is_kept_and_patience_stops(encoded):
    policy, pad = fresh()
    ref_logps = loop.reference_logps(policy, encoded, **pad)
    order = loop.batch_order(30, batch_size=6, epochs=20, seed=0)
    run = loop.train_dpo(
        policy, encoded[:30], ref_logps[:30], order=order, heldout=(encoded[30:], ref_logps[30:]),
        evaluate_every=5, patience=2, beta=0.1, learning_rate=2e-3, **pad,
    )  # fmt: skip
    steps, values = run.curve("eval_loss")
    assert steps[-1] < len(order), "it stopped early"
    assert run.best_step == steps[values.index(min(values))] and run.best_loss == min(values)
    policy.load_state_dict(run.best_state, strict=False)
    again = loop.evaluate(
        policy, encoded[30:], ref_logps[30:], loss=loop.partial(loop.losses.dpo, beta=0.1), beta=0.1, **pad
    )
    assert again["eval_loss"] == pytest.approx(min(values), abs=1e-5)


def test_evaluation_needs_held_out_pairs(encoded):
    policy, pad = fresh()
    with pytest.raises(ValueError, match="need heldout"):
        loop.train_dpo(
            policy, encoded, torch.zeros(len(encoded), 2), order=[[0]], evaluate_every=1, **pad, **SETTINGS
        )


def test_a_loss_that_is_not_finite_names_the_step(encoded):
    policy, pad = fresh()
    bad = loop.reference_logps(policy, encoded, **pad)
    bad[3] = float("nan")
    with pytest.raises(FloatingPointError, match="at step 1"):
        loop.train_dpo(policy, encoded, bad, order=[[0, 1], [2, 3]], **pad, **SETTINGS)


def test_batch_order_covers_every_epoch_once():
    order = loop.batch_order(10, batch_size=4, epochs=2, seed=1)
    assert [len(batch) for batch in order] == [4, 4, 2, 4, 4, 2]
    first, second = ([row for batch in half for row in batch] for half in (order[:3], order[3:]))
    assert sorted(first) == sorted(second) == list(range(10)) and first != second


def test_metrics_keep_ties_apart():
    zero, one = torch.zeros(4), torch.tensor([1.0, -1.0, 0.0, 2.0])
    numbers = loop.metrics(one, zero, zero, zero, beta=0.5)
    assert (numbers["accuracies"], numbers["ties"], numbers["margins"]) == (0.5, 0.25, 0.25)
    assert pd.Series(numbers).notna().all()


def test_another_way_of_scoring_reaches_training_and_evaluation(encoded):
    from functools import partial

    from dpo_tutorial.training import logps

    average = partial(logps.completion_logps, average=True)
    policy, pad = fresh()
    ref_logps = loop.reference_logps(policy, encoded[:8], logps_of=average, **pad)
    run = loop.train_dpo(
        policy, encoded[:8], ref_logps, order=[[0, 1, 2, 3]], heldout=(encoded[:8], ref_logps), evaluate_every=1,
        logps_of=average, **pad, **SETTINGS,
    )  # fmt: skip
    assert run.history[0]["loss"] == run.history[0]["eval_loss"] == pytest.approx(math.log(2), abs=1e-5)
    sums = loop.reference_logps(policy, encoded[:8], **pad)
    assert sums.mean() < 3 * ref_logps.mean(), "a sum over several tokens is far below the mean"
