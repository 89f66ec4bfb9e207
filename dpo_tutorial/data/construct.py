"""Making preference pairs: prompts from reviews, sampled responses, a scorer, a pair policy, provenance."""

import hashlib
import itertools
import json
import math
import random
import re
from collections.abc import Callable

import pandas as pd

from dpo_tutorial.data.pairs import prompt_id
from dpo_tutorial.data.scoring import reviews

_SENTENCE_END = re.compile(r"[.!?][\"')]*(?=\s|$)")


def review_prompts(part: str, n: int, *, words: int) -> pd.DataFrame:
    """The first ``words`` words of ``n`` different IMDb reviews of ``part``: ``prompt_id, prompt``.

    Reviews come in their fixed order; prefixes that end a sentence or occur twice are passed over.
    """
    prompts = []
    for text in reviews(part, "imdb")["text"]:
        prefix = " ".join(text.split()[:words])
        if re.fullmatch(r"[A-Z][A-Za-z' ,-]*[A-Za-z]", prefix) and prefix not in prompts:
            prompts.append(prefix)
        if len(prompts) == n:
            break
    else:
        raise ValueError(f"{part} gives {len(prompts)} prompts of {words} words, {n} were asked for")
    return pd.DataFrame({"prompt_id": [prompt_id(prompt) for prompt in prompts], "prompt": prompts})


def whole_sentences(text: str, *, least: int = 5) -> str:
    """``text`` up to its last sentence end, if at least ``least`` words stand before it; else unchanged.

    >>> whole_sentences("It was a very good film. I would", least=3)
    'It was a very good film.'
    """
    ends = [match.end() for match in _SENTENCE_END.finditer(text)]
    return text[: ends[-1]] if ends and len(text[: ends[-1]].split()) >= least else text


def pairs_from_scores(
    prompts: pd.DataFrame,
    responses: list[list[str]],
    scores: list[list[float]],
    *,
    policy: str,
    source: str,
    min_margin: float = 0.0,
    flip_rate: float = 0.0,
    seed: int = 0,
) -> pd.DataFrame:
    """Preference pairs from scored responses.

    Args:
        prompts: ``prompt_id, prompt``, one row per entry of ``responses``.
        responses, scores: per prompt, the responses and their scores.
        policy: ``"widest"`` (best against worst), ``"all"`` pairs, or ``"adjacent"`` in the ranking.
        source: written into every row.
        min_margin: pairs whose scores differ by no more are left out (equal texts and equal scores always are).
        flip_rate: share of pairs whose labels are swapped, drawn with ``seed``; the scores stay with their texts.

    Returns:
        ``prompt_id, prompt, chosen, rejected, source, score_chosen, score_rejected``.
    """
    if policy not in ("widest", "all", "adjacent"):
        raise ValueError(f"policy is {policy!r}; accepted are 'widest', 'all', 'adjacent'")
    if not 0 <= flip_rate <= 1:
        raise ValueError(f"flip_rate is {flip_rate}; it is a share between 0 and 1")
    rng, rows = random.Random(seed), []
    for (pid, prompt), texts, values in zip(
        prompts[["prompt_id", "prompt"]].itertuples(index=False), responses, scores, strict=True
    ):
        ranked = sorted(zip(values, texts, strict=True), reverse=True)
        picks = {
            "widest": [(ranked[0], ranked[-1])],
            "all": list(itertools.combinations(ranked, 2)),
            "adjacent": list(itertools.pairwise(ranked)),
        }[policy]
        for (high, better), (low, worse) in picks:
            if better == worse or not high - low > min_margin:
                continue
            pair = (better, worse, high, low) if rng.random() >= flip_rate else (worse, better, low, high)
            rows.append((pid, prompt, *pair[:2], source, *pair[2:]))
    columns = ["prompt_id", "prompt", "chosen", "rejected", "source", "score_chosen", "score_rejected"]
    return pd.DataFrame(rows, columns=columns)


def split_by_prompt(frame: pd.DataFrame, *, heldout: float, seed: int) -> tuple[pd.DataFrame, pd.DataFrame]:
    """(train, held out) with all pairs of a prompt on one side, so that no prompt is seen twice."""
    if not 0 < heldout < 1:
        raise ValueError(f"heldout is {heldout}; it is a share between 0 and 1")
    ids = sorted(set(frame["prompt_id"]))
    random.Random(seed).shuffle(ids)
    out = frame["prompt_id"].isin(ids[: math.ceil(heldout * len(ids))])
    return frame[~out].reset_index(drop=True), frame[out].reset_index(drop=True)


def make_pairs(prompts: pd.DataFrame, *, sample: Callable, score: Callable, policy: str, source: str) -> pd.DataFrame:
    """Prompts to pairs: ``sample(prompts) -> responses`` per prompt, ``score(texts) -> values``, then the policy.

    The score is that of prompt and response together, read as one review.
    """
    responses = sample(list(prompts["prompt"]))
    flat = [prompt + text for prompt, texts in zip(prompts["prompt"], responses, strict=True) for text in texts]
    values = iter(float(value) for value in score(flat))
    scores = [[round(next(values), 4) for _ in texts] for texts in responses]
    return pairs_from_scores(prompts, responses, scores, policy=policy, source=source)


def config_hash(config: dict) -> str:
    """SHA-256 (first 16 hex digits) of a configuration's canonical JSON: the name that records and data carry.

    >>> config_hash({"b": 1, "a": 2}) == config_hash({"a": 2, "b": 1})
    True
    """
    text = json.dumps(config, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
