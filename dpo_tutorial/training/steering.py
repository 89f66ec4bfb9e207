"""Steering beta while decoding: one trained policy and its reference, mixed at every token.

Decoding-time realignment (arXiv 2402.02992): the optimal policy at beta is proportional to ref * exp(r / beta), so

    log pi_{beta / lambda} = (1 - lambda) log pi_ref + lambda log pi_beta + constant

for whole sequences. Mixed token by token, the constant is taken per prefix: an approximation. It also takes the
policy to be optimal at its beta, which one that stopped early is not (``frontier.effective_beta``). lambda 0 is the
reference, 1 the policy, above 1 goes beyond it. The cheaper neighbour, :func:`scaled_update`, scales the change of
the weights instead and needs one forward pass a token, not two.
"""

import contextlib
import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import pandas as pd
import torch

from dpo_tutorial.display.steering_panel import Writing
from dpo_tutorial.training.encode import collate_completions, text_ids
from dpo_tutorial.training.models import reference


def strength(*, beta: float, trained_beta: float) -> float:
    """lambda = trained_beta / beta: how far to go from the reference towards (and past) the policy.

    >>> strength(beta=0.4, trained_beta=0.1)
    0.25
    """
    if not (beta > 0 and trained_beta > 0):
        raise ValueError(f"beta is {beta}, trained_beta {trained_beta}; both must be positive")
    return trained_beta / beta


def mixed_logits(ref_logits: torch.Tensor, policy_logits: torch.Tensor, lambdas: torch.Tensor) -> torch.Tensor:
    """(1 - lambda) ref_logits + lambda policy_logits, (..., V) with ``lambdas`` broadcast over the last axis.

    Logits and log-probabilities differ by a constant per position, which the softmax removes: either may be given.

    >>> mixed_logits(torch.tensor([[0.0, 2.0]]), torch.tensor([[4.0, 0.0]]), torch.tensor([[0.5]]))
    tensor([[2., 1.]])
    """
    return torch.lerp(ref_logits.float(), policy_logits.float(), lambdas)


@dataclass
class Steered:
    """Completions under way: a row per prompt and lambda, the lambdas of one prompt side by side.

    ``steered_logps, policy_logps, ref_logps`` are sums over the tokens so far, (rows,). ``kl`` sums
    KL(steered, reference) of the next-token distributions along the row: its mean is the sequence-level KL
    without bias, and it never falls as the text grows.
    """

    lambdas: torch.Tensor
    completion_ids: list[list[int]]
    steered_logps: torch.Tensor
    policy_logps: torch.Tensor
    ref_logps: torch.Tensor
    kl: torch.Tensor
    running: torch.Tensor
    caches: dict = field(default_factory=dict, repr=False)


def _start(prompts: list, lambdas: Sequence[float], device) -> Steered:
    if not prompts or not len(lambdas):
        raise ValueError(f"{len(prompts)} prompts and {len(lambdas)} lambdas; give at least one of each")
    rows = len(prompts) * len(lambdas)
    zeros = [torch.zeros(rows, device=device) for _ in range(4)]
    every = torch.tensor(list(lambdas) * len(prompts), dtype=torch.float32, device=device)
    return Steered(every, [[] for _ in range(rows)], *zeros, torch.ones(rows, dtype=torch.bool, device=device))


def _prompt_batch(tokenizer, prompts: list, copies: int, device) -> tuple[torch.Tensor, torch.Tensor]:
    """Prompt ids and attention mask, padded on the left, each prompt ``copies`` times."""
    rows = [text_ids(tokenizer, prompt) for prompt in prompts for _ in range(copies)]
    longest = max(map(len, rows))
    ids = torch.tensor([[tokenizer.pad_token_id] * (longest - len(row)) + row for row in rows], device=device)
    mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows], device=device)
    return ids, mask


def _next_logits(model, name: str, state: Steered, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Logits of the next token, (rows, V); keys and values so far are kept in ``state.caches[name]``."""
    positions = (mask.cumsum(1) - 1).clamp(min=0)[:, -ids.shape[1] :]
    out = model(
        input_ids=ids,
        attention_mask=mask,
        position_ids=positions,
        past_key_values=state.caches.get(name),
        use_cache=True,
        logits_to_keep=1,
    )
    state.caches[name] = out.past_key_values
    return out.logits[:, -1].float()


@torch.no_grad()
def stream(
    policy, tokenizer, prompts: list, *, lambdas: Sequence[float], max_new_tokens: int, seed: int, ref_model=None
) -> Iterator[Steered]:
    """Sample all prompts at all lambdas in one batch, a token at a time; yields the same object after each token.

    Both models keep a cache of keys and values. The draws of one prompt share their noise between lambdas (Gumbel
    noise per prompt, step and token, added to the mixed log-probabilities), so that texts differ by lambda, not by
    luck; each one alone is an exact sample.

    Args:
        ref_model: the reference; None takes ``policy`` with its adapter off, so that one model is in memory.
        seed: of the noise; the global generator is left alone.
    """
    state = _start(prompts, lambdas, policy.device)
    ids, mask = _prompt_batch(tokenizer, prompts, len(lambdas), policy.device)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(max_new_tokens):
        policy_logits = _next_logits(policy, "policy", state, ids, mask)
        with reference(policy) if ref_model is None else contextlib.nullcontext(ref_model) as ref:
            ref_logits = _next_logits(ref, "reference", state, ids, mask)
        noise = torch.empty(len(prompts), policy_logits.shape[-1]).exponential_(generator=generator)
        gumbel = -noise.clamp(min=1e-38).log().to(policy.device).repeat_interleave(len(lambdas), 0)
        ids = _advance(state, policy_logits, ref_logits, gumbel, tokenizer)
        mask = torch.cat([mask, torch.ones_like(mask[:, :1])], dim=1)
        yield state
        if not bool(state.running.any()):
            return


def _advance(state: Steered, policy_logits, ref_logits, gumbel, tokenizer) -> torch.Tensor:
    """Draw one token for every row and book it; returns the next input ids (rows, 1)."""
    policy_logps, ref_logps = policy_logits.log_softmax(-1), ref_logits.log_softmax(-1)
    steered = mixed_logits(ref_logps, policy_logps, state.lambdas[:, None]).log_softmax(-1)
    tokens = (steered + gumbel).argmax(-1)
    for total, logps in (
        (state.steered_logps, steered),
        (state.policy_logps, policy_logps),
        (state.ref_logps, ref_logps),
    ):
        total += logps.gather(-1, tokens[:, None]).squeeze(-1) * state.running
    state.kl += (steered.exp() * (steered - ref_logps)).sum(-1) * state.running
    for row in state.running.nonzero().flatten().tolist():
        state.completion_ids[row].append(int(tokens[row]))
    tokens = torch.where(state.running, tokens, tokenizer.pad_token_id)
    state.running = state.running & (tokens != tokenizer.eos_token_id)
    return tokens[:, None]


def rollouts(
    policy, tokenizer, prompts: list, *, lambdas, max_new_tokens: int, seed: int, ref_model=None, batch_rows: int = 64
) -> pd.DataFrame:
    """One steered response per prompt and lambda.

    Returns:
        a row each: ``prompt, strength`` (the lambda)``, text, completion_ids, steered_logps, ref_logps, kl`` with
        ``kl`` as in :class:`Steered`.
    """
    frames, size = [], max(1, batch_rows // len(lambdas))
    for start in range(0, len(prompts), size):
        some = prompts[start : start + size]
        options = {"lambdas": lambdas, "max_new_tokens": max_new_tokens, "seed": seed + start, "ref_model": ref_model}
        *_, state = stream(policy, tokenizer, some, **options)
        columns = {"prompt": [p for p in some for _ in lambdas], "strength": list(lambdas) * len(some)}
        columns |= {"completion_ids": state.completion_ids}
        columns |= {name: getattr(state, name).tolist() for name in ("steered_logps", "ref_logps", "kl")}
        frames.append(pd.DataFrame(columns))
    frame = pd.concat(frames, ignore_index=True)
    frame["text"] = tokenizer.batch_decode(list(frame["completion_ids"]), skip_special_tokens=True)
    return frame


def writings(
    policy,
    tokenizer,
    prompt: str,
    *,
    betas: Sequence[float],
    trained_beta: float,
    max_new_tokens: int,
    seed: int,
    score: Callable[[list[str]], Sequence[float]],
    ref_model=None,
) -> Iterator[list[Writing]]:
    """One prompt written at all betas in one batch: after every token, the continuations so far with their rewards.

    Args:
        score: texts (prompt and continuation together) to rewards.
    """
    lambdas = [strength(beta=beta, trained_beta=trained_beta) for beta in betas]
    options = {"lambdas": lambdas, "max_new_tokens": max_new_tokens, "seed": seed, "ref_model": ref_model}
    for state in stream(policy, tokenizer, [prompt], **options):
        texts = tokenizer.batch_decode(state.completion_ids, skip_special_tokens=True)
        rewards = score([prompt + text for text in texts])
        rows = zip(betas, texts, rewards, state.kl.tolist(), map(len, state.completion_ids), strict=True)
        yield [Writing(beta, text, float(reward), kl, count) for beta, text, reward, kl, count in rows]


@torch.no_grad()
def distances(
    target, policy, tokenizer, prompts: list, completion_ids: list, *, lambdas, ref_model=None, batch_size: int = 16
) -> torch.Tensor:
    """KL(target, steered) per token, averaged over each completion: (len(lambdas), N), in nats.

    Args:
        target: the policy that steering is compared with, usually one retrained at another beta; the completions
            are its samples.
    """
    columns = []
    for start in range(0, len(prompts), batch_size):
        rows = slice(start, start + batch_size)
        prompt_ids = [text_ids(tokenizer, prompt) for prompt in prompts[rows]]
        batch = collate_completions(prompt_ids, completion_ids[rows], pad_token_id=tokenizer.pad_token_id)
        inputs = {key: batch[key].to(policy.device) for key in ("input_ids", "attention_mask")}
        target_logps, policy_logps = (m(**inputs).logits[:, :-1].float().log_softmax(-1) for m in (target, policy))
        with reference(policy) if ref_model is None else contextlib.nullcontext(ref_model) as ref:
            ref_logps = ref(**inputs).logits[:, :-1].float().log_softmax(-1)
        scored = batch["completion_mask"][:, 1:].to(policy.device)
        per_lambda = []
        for value in lambdas:
            steered = mixed_logits(ref_logps, policy_logps, torch.tensor(float(value))).log_softmax(-1)
            kl = (target_logps.exp() * (target_logps - steered)).sum(-1)
            per_lambda.append((kl * scored).sum(1) / scored.sum(1))
        columns.append(torch.stack(per_lambda).cpu())
    return torch.cat(columns, dim=1)


@contextlib.contextmanager
def scaled_update(policy, factor: float, *, ref_model=None):
    """Within this scope: the policy with its change of the weights multiplied by ``factor``.

    With an adapter its scaling is multiplied, and restored afterwards. A fully trained policy needs ``ref_model``;
    then a copy with the weights ref + factor (policy - ref) is made.
    """
    if ref_model is not None:
        model = copy.deepcopy(ref_model)
        with torch.no_grad():
            for own, trained in zip(model.parameters(), policy.parameters(), strict=True):
                own.lerp_(trained, factor)
        yield model.eval()
        return
    layers = [module for module in policy.modules() if isinstance(getattr(module, "scaling", None), dict)]
    if not layers:
        raise TypeError("the policy has no adapter whose scaling could be changed; give ref_model")
    before = [dict(layer.scaling) for layer in layers]
    try:
        for layer in layers:
            layer.scaling.update({name: value * factor for name, value in layer.scaling.items()})
        yield policy
    finally:
        for layer, scaling in zip(layers, before, strict=True):
            layer.scaling.update(scaling)
