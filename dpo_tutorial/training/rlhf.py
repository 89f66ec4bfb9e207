"""RLHF in the open: PPO with a value head and KL control, small enough to be read.

PPO is Schulman et al. 2017 (https://arxiv.org/abs/1707.06347), its advantages Schulman et al. 2016
(https://arxiv.org/abs/1506.02438), the penalised reward of language models Ziegler et al. 2019
(https://arxiv.org/abs/1909.08593). Tensors are (B, T): B samples, T positions, with a mask over the positions at
which the policy chose a token. Nothing here knows what the policy is: ``forward(rows)`` gives log-probabilities and
values, so that the same code is tested on a bandit whose optimum is known.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from dpo_tutorial.training import encode, sampling
from dpo_tutorial.training.logps import per_token_logps


@dataclass
class Rollout:
    """Fresh samples of the policy, as PPO needs them.

    Attributes:
        batch: whatever ``forward`` takes, indexable by rows (a dictionary of tensors with B rows).
        mask: (B, T), 1 where the policy chose a token; contiguous in every row.
        logps, ref_logps: (B, T), log-probability of each chosen token under the sampling policy and the reference.
        values: (B, T), the value head's estimate before each token.
        scores: (B,), the reward of the whole response, from a reward model or the truth.
    """

    batch: dict[str, Tensor]
    mask: Tensor
    logps: Tensor
    ref_logps: Tensor
    values: Tensor
    scores: Tensor

    def kl(self) -> Tensor:
        """(B,): sum over the response of log pi - log pi_ref; its mean estimates KL(policy, reference)."""
        return ((self.logps - self.ref_logps) * self.mask).sum(1)


def penalised_rewards(rollout: Rollout, beta: float) -> Tensor:
    """Reward of every token: -beta (log pi - log pi_ref), plus the score at the response's last token: (B, T).

    Ziegler et al. Eq. 2. Summed over the response it is the objective of notebook 01: score - beta times log-ratio.
    """
    rewards = -beta * (rollout.logps - rollout.ref_logps) * rollout.mask
    position = torch.arange(rollout.mask.shape[1])
    last = (rollout.mask * position).argmax(1)
    rewards[torch.arange(len(last)), last] += rollout.scores.to(rewards.dtype)
    return rewards


def gae(rewards: Tensor, values: Tensor, mask: Tensor, *, gamma: float = 1.0, lam: float = 0.95) -> Tensor:
    """Generalised advantage estimates (B, T) (1506.02438, Eqs. 12 and 16); the value after the last token is 0.

    With gamma = lam = 1 they are the return from here on minus the value:

    >>> one = torch.ones(1, 3)
    >>> gae(torch.tensor([[0.0, 0.0, 2.0]]), torch.tensor([[0.5, 0.5, 0.5]]), one, lam=1.0).tolist()
    [[1.5, 1.5, 1.5]]
    """
    advantages = torch.zeros_like(rewards)
    following, following_value = torch.zeros_like(rewards[:, 0]), torch.zeros_like(rewards[:, 0])
    for t in reversed(range(rewards.shape[1])):
        delta = rewards[:, t] + gamma * following_value - values[:, t]
        following = (delta + gamma * lam * following) * mask[:, t]
        following_value = values[:, t] * mask[:, t]
        advantages[:, t] = following
    return advantages


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Mean over the positions where ``mask`` is 1."""
    return (values * mask).sum() / mask.sum()


def clipped_policy_loss(logps: Tensor, old_logps: Tensor, advantages: Tensor, mask: Tensor, *, clip: float) -> Tensor:
    """PPO's clipped surrogate, to be minimised (1707.06347, Eq. 7): scalar."""
    ratio = ((logps - old_logps) * mask).exp()
    surrogate = torch.minimum(ratio * advantages, ratio.clamp(1 - clip, 1 + clip) * advantages)
    return -masked_mean(surrogate, mask)


def ppo_update(
    forward: Callable[[dict], tuple[Tensor, Tensor]], rollout: Rollout, optimizer, *, beta: float, clip: float = 0.2,
    lam: float = 0.95, passes: int = 2, minibatch: int = 32, value_weight: float = 0.5, max_grad_norm: float = 1.0,
    generator: torch.Generator,
) -> dict[str, float]:  # fmt: skip
    """Several passes over one rollout; advantages are scaled to unit variance over the rollout.

    Args:
        forward: ``batch rows -> (logps, values)``, each (b, T), with gradients.
        beta: the KL coefficient, in the unit of the scores per nat.

    Returns:
        means over the minibatches: ``policy_loss``, ``value_loss``, ``clipped`` (share of tokens outside the clip).
    """
    mask = rollout.mask
    advantages = gae(penalised_rewards(rollout, beta), rollout.values, mask, lam=lam)
    returns = advantages + rollout.values
    centred = (advantages - masked_mean(advantages, mask)) * mask
    advantages = centred / (masked_mean(centred**2, mask).sqrt() + 1e-8)
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    totals, count = {"policy_loss": 0.0, "value_loss": 0.0, "clipped": 0.0}, 0
    for _ in range(passes):
        for rows in torch.randperm(len(mask), generator=generator).split(minibatch):
            logps, values = forward({name: tensor[rows] for name, tensor in rollout.batch.items()})
            old, here = rollout.logps[rows], mask[rows]
            policy_loss = clipped_policy_loss(logps, old, advantages[rows], here, clip=clip)
            value_loss = masked_mean((values - returns[rows]) ** 2, here) / 2
            optimizer.zero_grad()
            (policy_loss + value_weight * value_loss).backward()
            torch.nn.utils.clip_grad_norm_(parameters, max_grad_norm)
            optimizer.step()
            outside = masked_mean((((logps - old) * here).exp() - 1).abs().gt(clip).float(), here)
            for name, value in (("policy_loss", policy_loss), ("value_loss", value_loss), ("clipped", outside)):
                totals[name] += value.item()
            count += 1
    return {name: value / count for name, value in totals.items()}


def train_ppo(
    collect: Callable[[int], Rollout], forward: Callable, parameters, *, beta: float, learning_rate: float,
    iterations: int, seed: int, on_iteration: Callable[[int, dict], None] | None = None, **update,
) -> list[dict[str, float]]:  # fmt: skip
    """Sample, score, update, ``iterations`` times; the rate falls linearly to zero.

    Args:
        collect: ``iteration -> Rollout`` of the policy as it is now.
        update: further arguments of :func:`ppo_update`.

    Returns:
        a row per iteration: ``score`` and ``kl`` of its samples, their objective ``score - beta kl``, and what
        :func:`ppo_update` returns.
    """
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam(list(parameters), lr=learning_rate, eps=1e-5)
    history = []
    for iteration in range(iterations):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate * (1 - iteration / iterations)
        rollout = collect(iteration)
        row = {"iteration": iteration, "score": rollout.scores.mean().item(), "kl": rollout.kl().mean().item()}
        row["objective"] = row["score"] - beta * row["kl"]
        row |= ppo_update(forward, rollout, optimizer, beta=beta, generator=generator, **update)
        history.append(row)
        if on_iteration is not None:
            on_iteration(iteration, {name: value for name, value in row.items() if name != "iteration"})
    return history


class ValuedPolicy(torch.nn.Module):
    """A language model with a value head on its last hidden states; the head starts at 0.

    ``forward(batch)`` gives log-probabilities and values, (B, T-1) each: entry t belongs to the token at t + 1, and
    its value is that of the text before it. Use ``completion_mask[:, 1:]`` as mask.
    """

    def __init__(self, model):
        super().__init__()
        self.model = model
        self.value_head = torch.nn.Linear(model.config.hidden_size, 1)
        torch.nn.init.zeros_(self.value_head.weight)
        torch.nn.init.zeros_(self.value_head.bias)

    def forward(self, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        hidden = self.model.model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])[0]
        values = self.value_head(hidden[:, :-1].float()).squeeze(-1)
        return per_token_logps(self.model.lm_head(hidden), batch["input_ids"]), values


def language_rollout(
    policy: ValuedPolicy, reference, tokenizer, prompts: list[str], score: Callable, *, max_new_tokens: int, seed: int
) -> Rollout:
    """One response per prompt from the policy as it is now, scored.

    Args:
        score: ``(prompts, texts, completion_ids) -> (B,)`` rewards of the responses.
    """
    options = {"max_new_tokens": max_new_tokens, "seed": seed, "batch_size": 64}
    drawn = sampling.sample(policy.model, tokenizer, prompts, **options)
    ids = [per_prompt[0] for per_prompt in drawn]
    texts = tokenizer.batch_decode(ids, skip_special_tokens=True)
    prompt_ids = [encode.text_ids(tokenizer, prompt) for prompt in prompts]
    batch = encode.collate_completions(prompt_ids, ids, pad_token_id=tokenizer.pad_token_id)
    with torch.no_grad():
        logps, values = policy(batch)
        ref_logits = reference(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
        ref_logps = per_token_logps(ref_logits, batch["input_ids"])
    scores = torch.as_tensor(score(prompts, texts, ids), dtype=torch.float32)
    return Rollout(batch, batch["completion_mask"][:, 1:].float(), logps, ref_logps, values, scores)
