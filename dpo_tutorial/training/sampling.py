"""Sampling completions: batched, seeded without touching the global generator, with a progress bar."""

import contextlib

import pandas as pd
import torch

from dpo_tutorial.display.monitor import progress
from dpo_tutorial.training.encode import text_ids
from dpo_tutorial.training.logps import sample_logps
from dpo_tutorial.training.models import reference


@torch.no_grad()
def sample(
    model,
    tokenizer,
    prompts: list,
    *,
    n: int = 1,
    max_new_tokens: int,
    temperature: float = 1.0,
    seed: int,
    batch_size: int = 32,
    label: str = "",
) -> list[list[list[int]]]:
    """Sample ``n`` completions for every prompt from the model's own distribution (no top-k, no top-p).

    Args:
        prompts: texts, or lists of messages for the chat template.
        temperature: 0 decodes greedily.
        seed: decides the draws; the global generator is left as it was.
        label: shown beside the progress bar; empty for none.

    Returns:
        per prompt, per sample, the completion's token ids: with the EOS token at the end where the model
        ended by itself, without it where ``max_new_tokens`` cut it off. ``tokenizer.decode(ids,
        skip_special_tokens=True)`` gives the text.
    """
    if n < 1 or max_new_tokens < 1 or temperature < 0:
        raise ValueError(f"n {n}, max_new_tokens {max_new_tokens} must be at least 1, temperature {temperature} >= 0")
    rows = [ids for prompt in prompts for ids in [text_ids(tokenizer, prompt)] * n]
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
    out: list[list[int]] = [[] for _ in rows]
    options = {"do_sample": temperature > 0, "max_new_tokens": max_new_tokens, "pad_token_id": tokenizer.pad_token_id}
    if temperature > 0:
        options |= {"temperature": temperature, "top_k": 0, "top_p": 1.0}
    starts = range(0, len(order), batch_size)
    with torch.random.fork_rng(devices=[model.device] if model.device.type == "cuda" else []):
        torch.manual_seed(seed)
        for start in progress(starts, label):
            picked = order[start : start + batch_size]
            batch = _left_padded([rows[i] for i in picked], tokenizer.pad_token_id, model.device)
            tokens = model.generate(**batch, **options)[:, batch["input_ids"].shape[1] :].tolist()
            for i, ids in zip(picked, tokens, strict=True):
                out[i] = _until_eos(ids, tokenizer.eos_token_id)
    return [out[i : i + n] for i in range(0, len(out), n)]


def _left_padded(rows: list[list[int]], pad: int, device) -> dict[str, torch.Tensor]:
    """input_ids and attention_mask (B, T), padded on the left so that all completions start together."""
    longest = max(map(len, rows))
    ids = torch.tensor([[pad] * (longest - len(row)) + row for row in rows])
    mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows])
    return {"input_ids": ids.to(device), "attention_mask": mask.to(device)}


def _until_eos(ids: list[int], eos: int) -> list[int]:
    """``ids`` up to and including the first EOS.

    >>> _until_eos([5, 0, 9, 9], eos=0)
    [5, 0]
    """
    return ids[: ids.index(eos) + 1] if eos in ids else ids


def texts(tokenizer, samples: list[list[list[int]]]) -> list[list[str]]:
    """Decode what :func:`sample` returned, special tokens removed."""
    return [tokenizer.batch_decode(per_prompt, skip_special_tokens=True) for per_prompt in samples]


def rollouts(
    model, tokenizer, prompts: list, *, n: int, max_new_tokens: int, seed: int, ref_model=None, label: str = ""
) -> pd.DataFrame:
    """Fresh samples with their log-probabilities under the policy and under its reference.

    Args:
        ref_model: the reference; None takes ``model`` with its adapter off.

    Returns:
        a row per sample: ``prompt, text, completion_ids, policy_logps, ref_logps`` (sums over the
        completion, EOS included). The mean of ``policy_logps - ref_logps`` estimates the sequence-level
        KL(policy, reference) per prompt without bias.
    """
    samples = sample(model, tokenizer, prompts, n=n, max_new_tokens=max_new_tokens, seed=seed, label=label)
    frame = pd.DataFrame(
        [(prompt, ids) for prompt, per in zip(prompts, samples, strict=True) for ids in per],
        columns=["prompt", "completion_ids"],
    )
    frame["text"] = tokenizer.batch_decode(list(frame["completion_ids"]), skip_special_tokens=True)
    prompt_ids = [text_ids(tokenizer, prompt) for prompt in frame["prompt"]]
    pad = {"pad_token_id": tokenizer.pad_token_id}
    frame["policy_logps"] = sample_logps(model, prompt_ids, list(frame["completion_ids"]), **pad).numpy()
    with reference(model) if ref_model is None else contextlib.nullcontext(ref_model) as ref:
        frame["ref_logps"] = sample_logps(ref, prompt_ids, list(frame["completion_ids"]), **pad).numpy()
    return frame
