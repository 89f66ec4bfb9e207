"""A reward model on preference pairs, and what to do with one: best-of-n, and scoring a policy's samples.

The reward model is the language model's own transformer with one linear head, read at the response's last token, and
fitted by Bradley-Terry's likelihood (InstructGPT, https://arxiv.org/abs/2203.02155, Eq. 1; DPO paper Eq. 2).
"""

import copy
import math
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from dpo_tutorial.training import encode, sampling


class RewardModel(torch.nn.Module):
    """(rows,) rewards of encoded responses: the transformer of ``model``, copied, and a linear head that starts at 0.

    Only differences between responses to one prompt mean anything (notebook 02).

    Args:
        layers: keep the first ``layers`` of the transformer's layers, for a small reward model; default all.
    """

    def __init__(self, model, layers: int | None = None):
        super().__init__()
        self.backbone = copy.deepcopy(model.model).requires_grad_(True)
        self.backbone.layers = self.backbone.layers[:layers]
        self.head = torch.nn.Linear(model.config.hidden_size, 1, bias=False)
        torch.nn.init.zeros_(self.head.weight)

    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        """``input_ids`` and ``attention_mask`` (rows, T), padded on the right as ``encode.collate`` makes them."""
        hidden = self.backbone(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])[0]
        last = batch["attention_mask"].sum(1) - 1
        return self.head(hidden[torch.arange(len(last)), last]).squeeze(-1)


def fit(
    reward_model: RewardModel, train: list[dict], *, order: list[list[int]], learning_rate: float, pad_token_id: int,
    warmup_steps: int = 6, label_smoothing: float = 0.0, desirable: list[bool] | None = None,
) -> list[dict[str, float]]:  # fmt: skip
    """Minimise -log sigmoid(r_chosen - r_rejected) over encoded pairs, in place; rows of ``step, loss, accuracy``.

    AdamW, warm-up, linear decay and clipping as in ``loop.train_dpo``, so that the two can be compared.

    Args:
        desirable: for unary feedback, a flag per pair: of each pair only one response is seen, the chosen one and
            called good where True, else the rejected one and called bad; the loss is logistic regression's.
    """
    optimizer = torch.optim.AdamW(reward_model.parameters(), lr=learning_rate, weight_decay=0.0)
    history = []
    for step, rows in enumerate(order):
        warm = min(1.0, step / warmup_steps) if warmup_steps else 1.0
        for group in optimizer.param_groups:
            group["lr"] = learning_rate * warm * (1 - step / len(order))
        batch = encode.collate([train[i] for i in rows], pad_token_id=pad_token_id)
        if desirable is None:
            chosen, rejected = reward_model(batch).chunk(2)
            gap = chosen - rejected
        else:
            good = torch.tensor([desirable[i] for i in rows])
            seen = torch.cat([good, ~good])  # in the batch the chosen stand before the rejected
            gap = reward_model({name: tensor[seen] for name, tensor in batch.items()})
            gap = torch.where(torch.arange(len(rows)) < good.sum(), gap, -gap)
        losses = -(1 - label_smoothing) * F.logsigmoid(gap) - label_smoothing * F.logsigmoid(-gap)
        loss = losses.mean()
        if not math.isfinite(loss.item()):
            raise FloatingPointError(f"the reward model's loss is {loss.item()} at step {step}; lower learning_rate")
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(reward_model.parameters(), 1.0)
        optimizer.step()
        history.append({"step": step, "loss": loss.item(), "accuracy": (gap > 0).float().mean().item()})
    reward_model.eval()
    return history


@torch.no_grad()
def scores(reward_model: RewardModel, tokenizer, prompts: list[str], completion_ids: list[list[int]]) -> Tensor:
    """(N,) rewards of sampled completions, in batches of similar length."""
    prompt_ids = [encode.text_ids(tokenizer, prompt) for prompt in prompts]
    order = sorted(range(len(prompts)), key=lambda i: len(prompt_ids[i]) + len(completion_ids[i]))
    out = torch.empty(len(prompts))
    for start in range(0, len(order), 32):
        rows = order[start : start + 32]
        pairs = [prompt_ids[i] for i in rows], [completion_ids[i] for i in rows]
        out[rows] = reward_model(encode.collate_completions(*pairs, pad_token_id=tokenizer.pad_token_id))
    return out


def accuracy(reward_model: RewardModel, examples: list[dict], *, pad_token_id: int) -> float:
    """Share of encoded pairs in which the chosen response gets the higher reward (ties count as wrong)."""
    right = 0
    with torch.no_grad():
        for start in range(0, len(examples), 16):
            batch = encode.collate(examples[start : start + 16], pad_token_id=pad_token_id)
            chosen, rejected = reward_model(batch).chunk(2)
            right += int((chosen > rejected).sum())
    return right / len(examples)


def best_of_n_kl(n: int) -> float:
    """Upper bound on KL(best of n, reference), reached when no two responses tie: log n - (n - 1) / n nats.

    Hilton and Gao 2022 / Beirami et al. 2024 (https://arxiv.org/abs/2401.01879).

    >>> round(best_of_n_kl(4), 3)
    0.636
    """
    if n < 1:
        raise ValueError(f"n is {n}; accepted is 1 or more samples per prompt")
    return math.log(n) - (n - 1) / n


def best_of_n(
    model, tokenizer, prompts: list[str], score: Callable[[list[str], list[str], list[list[int]]], np.ndarray], *,
    n: int, max_new_tokens: int, seed: int,
) -> list[str]:  # fmt: skip
    """Sample ``n`` responses per prompt and keep the one with the highest score.

    Args:
        score: ``(prompts, texts, completion_ids) -> (N,)``, N = len(prompts) * n, the samples of a prompt in a row.
    """
    options = {"n": n, "max_new_tokens": max_new_tokens, "seed": seed}
    drawn = sampling.sample(model, tokenizer, prompts, **options)
    texts = sampling.texts(tokenizer, drawn)
    flat_prompts = [prompt for prompt in prompts for _ in range(n)]
    ids = [row for per in drawn for row in per]
    values = np.asarray(score(flat_prompts, [text for per in texts for text in per], ids)).reshape(len(prompts), n)
    return [per[best] for per, best in zip(texts, values.argmax(1), strict=True)]
