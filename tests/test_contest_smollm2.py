"""RLHF with LoRA through TRL: the reward model, RLOO beside its own reference, and what the meter counts."""

import numpy as np
import pytest
import torch
from test_trl_fast import pairs, small_llama, tokenizer

from dpo_tutorial.training import models, reward_model, trl_bridge, trl_reward, trl_rloo
from dpo_tutorial.training.contest import Meter

SIZES = {"epochs": 30, "batch_size": 8, "rank": 4, "seed": 0}


@pytest.fixture(scope="module")
def frame():
    """Pairs that a judge can learn: the chosen response is the longer one."""
    rows = pairs(24).to_pandas()
    rows["chosen"], rows["rejected"] = " " + rows["chosen"].str.strip() + " the the the", " " + "it"
    return rows


def test_a_reward_model_by_trl_is_fitted_from_zero_and_leaves_the_model_alone(frame, tmp_path):
    trl_bridge.quiet_libraries()
    model, words = small_llama(0).eval(), tokenizer()
    kept = {name: value.clone() for name, value in model.state_dict().items()}
    options = {"output_dir": tmp_path} | SIZES
    untrained = trl_reward.train_reward_model(model, words, frame, learning_rate=0.0, **options)
    ids = [words(text)["input_ids"] for text in frame["chosen"]]
    zero = reward_model.scores(untrained, words, list(frame["prompt"]), ids)
    assert torch.equal(zero, torch.zeros(len(frame))), "the head starts at zero"
    assert trl_reward.accuracy(untrained, words, frame) == 0.0, "ties count as wrong"
    fitted = trl_reward.train_reward_model(model, words, frame, learning_rate=2e-2, **options)
    assert trl_reward.accuracy(fitted, words, frame) > 0.9
    assert all(torch.equal(value, kept[name]) for name, value in model.state_dict().items())


def test_rloo_with_lora_raises_the_reward_and_keeps_the_reference(tmp_path):
    model, words = small_llama(0).eval(), tokenizer()
    ids = torch.arange(3, 9).unsqueeze(0)
    before = model(ids).logits.detach()
    policy, rewards, meter = models.add_lora(model, rank=4), [], Meter(frozen_embedding=True)

    def score(prompts, texts, completion_ids):
        values = np.array([float(row.count(5)) for row in completion_ids])  # likes one word
        rewards.append(values.mean())
        return values

    sizes = {"samples": 16, "group": 4, "passes": 1, "minibatch": 16, "iterations": 12, "max_new_tokens": 8}
    options = {"beta": 0.01, "learning_rate": 3e-2, "seed": 0} | sizes
    with meter.stage("train"):
        trl_rloo.train_rloo(policy, words, list(pairs(16)["prompt"]), score, tmp_path, **options)
    assert np.mean(rewards[-3:]) > np.mean(rewards[:3])
    with models.reference(policy) as reference:
        assert torch.equal(reference(ids).logits, before)
    assert not torch.allclose(policy(ids).logits, before)
    spent = meter.stages["train"]
    assert 0 < spent["backward"] < spent["forward"], "sampling and the reference go forward only"


def test_with_lora_the_meter_counts_what_goes_backward_though_the_embedding_is_frozen():
    embedding, ids = torch.nn.Embedding(10, 3).requires_grad_(False), torch.zeros(2, 5, dtype=int)
    for lora, backward in ((False, 0), (True, 10)):
        meter = Meter(frozen_embedding=lora)
        with meter.stage("train"):
            embedding(ids)
            with torch.no_grad():
                embedding(ids)
        assert (meter.stages["train"]["forward"], meter.stages["train"]["backward"]) == (20, backward)
