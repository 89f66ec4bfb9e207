"""PPO against a world whose optimum is known, its parts against hand-made numbers, the reward model and best-of-n."""

import numpy as np
import pytest
import torch

from dpo_tutorial.training import bandit, rlhf


@pytest.mark.parametrize("seed", range(5))
def test_ppo_reaches_the_known_optimum(seed):
    (reward, kl), (best_reward, best_kl) = bandit.solve(beta=0.5, seed=seed)
    assert reward == pytest.approx(best_reward, rel=0.02)
    assert kl == pytest.approx(best_kl, rel=0.05)


def test_penalised_rewards_by_hand():
    mask = torch.tensor([[0.0, 1.0, 1.0], [1.0, 0.0, 0.0]])
    logps, ref = (
        torch.tensor([[9.0, -1.0, -2.0], [-1.0, 9.0, 9.0]]),
        torch.tensor([[0.0, -3.0, -2.5], [-0.5, 0.0, 0.0]]),
    )
    rollout = rlhf.Rollout({}, mask, logps, ref, torch.zeros(2, 3), torch.tensor([1.0, -1.0]))
    expected = torch.tensor([[0.0, -0.2, 0.95], [-0.95, 0.0, 0.0]])
    torch.testing.assert_close(rlhf.penalised_rewards(rollout, 0.1), expected)
    torch.testing.assert_close(rollout.kl(), torch.tensor([2.5, -0.5]))


def test_advantages_stop_at_the_end_of_the_response():
    mask = torch.tensor([[0.0, 1.0, 1.0, 0.0]])
    rewards, values = torch.tensor([[5.0, 1.0, 2.0, 7.0]]), torch.tensor([[9.0, 0.5, 0.25, 9.0]])
    got = rlhf.gae(rewards, values, mask, gamma=1.0, lam=0.5)
    last = 2.0 - 0.25
    torch.testing.assert_close(got, torch.tensor([[0.0, 1.0 + 0.25 - 0.5 + 0.5 * last, last, 0.0]]))


def test_the_clip_stops_the_gradient_only_where_it_should():
    old, mask = torch.zeros(1, 4), torch.ones(1, 4)
    advantages = torch.tensor([[1.0, 1.0, -1.0, -1.0]])
    logps = torch.tensor([[0.5, -0.5, 0.5, -0.5]], requires_grad=True)
    rlhf.clipped_policy_loss(logps, old, advantages, mask, clip=0.2).backward()
    assert (logps.grad != 0).tolist() == [[False, True, True, False]]


@pytest.fixture(scope="module")
def lab():
    from dpo_tutorial.training import encode, lab, models

    model, tokenizer = models.load("lab_lm", device="cpu")
    return model, tokenizer, lambda part, n: encode.encode_pairs(tokenizer, lab.load_pairs(part, n))


def test_reward_model_learns_and_best_of_n_uses_it(lab):
    from dpo_tutorial.training import loop, reward_model

    model, tokenizer, encoded = lab
    torch.manual_seed(0)
    judge = reward_model.RewardModel(model)
    pad = {"pad_token_id": tokenizer.pad_token_id}
    train, heldout = encoded("train", 160), encoded("heldout", 100)
    assert reward_model.accuracy(judge, heldout, **pad) == 0, "all rewards are 0 before training: ties"
    order = loop.batch_order(len(train), batch_size=16, epochs=3, seed=0)
    history = reward_model.fit(judge, train, order=order, learning_rate=5e-4, **pad)
    assert history[0]["loss"] == pytest.approx(np.log(2), abs=1e-6) and history[-1]["loss"] < 0.5
    assert reward_model.accuracy(judge, heldout, **pad) > 0.6
    prompts = ["I saw this film", "The actors"]
    picked = reward_model.best_of_n(
        model,
        tokenizer,
        prompts,
        lambda p, texts, ids: np.array([len(t) for t in texts]),
        n=3,
        max_new_tokens=8,
        seed=0,
    )
    longest = reward_model.best_of_n(
        model,
        tokenizer,
        prompts,
        lambda p, texts, ids: -np.array([len(t) for t in texts]),
        n=3,
        max_new_tokens=8,
        seed=0,
    )
    assert all(len(a) >= len(b) for a, b in zip(picked, longest, strict=True)) and picked != longest
    ids = [[5, 6, 7], [8, 9]]
    assert torch.allclose(
        reward_model.scores(judge, tokenizer, prompts, ids),
        torch.cat([reward_model.scores(judge, tokenizer, [p], [i]) for p, i in zip(prompts, ids, strict=True)]),
        atol=1e-4,
    ), "padding changes no reward"


def test_language_rollout_is_that_of_the_policy(lab):
    from dpo_tutorial.training import logps, loop

    model, tokenizer, _ = lab
    policy, reference = rlhf.ValuedPolicy(loop.frozen_copy(model)), model
    prompts = ["I saw this film", "The actors", "Best"]
    rollout = rlhf.language_rollout(
        policy, reference, tokenizer, prompts, lambda p, texts, ids: [len(i) for i in ids], max_new_tokens=12, seed=0
    )
    assert rollout.scores.tolist() == rollout.mask.sum(1).tolist(), "the mask covers the completion and nothing else"
    torch.testing.assert_close(rollout.kl(), torch.zeros(3), atol=1e-4, rtol=0)
    summed = logps.completion_logps(model, rollout.batch).detach()
    torch.testing.assert_close((rollout.logps * rollout.mask).sum(1), summed, atol=1e-3, rtol=1e-4)
