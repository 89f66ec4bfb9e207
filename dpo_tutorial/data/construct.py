"""Making preference pairs: prompts, a sampling plan, a scorer or a judge, a pair policy, provenance per row.

Nothing here loads a model: whoever calls gives a ``sample`` callable.
"""

import hashlib
import itertools
import json
import math
import random
import re
from collections.abc import Callable, Sequence
from typing import NamedTuple

import pandas as pd
from rapidfuzz import fuzz

from dpo_tutorial.data import judges
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


POLICIES = ("widest", "all", "adjacent")


def picks(
    texts: Sequence[str], scores: Sequence[float], *, policy: str, min_margin: float = 0.0
) -> list[tuple[int, int]]:
    """Which responses of one prompt make a pair: (index of the better, index of the worse).

    Args:
        policy: ``"widest"`` (best against worst), ``"all"`` pairs, or ``"adjacent"`` in the ranking.
        min_margin: pairs whose scores differ by no more are left out (equal texts and equal scores always are).

    >>> picks(["bad", "good", "fair"], [0.1, 0.9, 0.5], policy="adjacent")
    [(1, 2), (2, 0)]
    """
    if policy not in POLICIES:
        raise ValueError(f"policy is {policy!r}; accepted are {', '.join(map(repr, POLICIES))}")
    ranked = sorted(range(len(texts)), key=lambda i: (scores[i], texts[i]), reverse=True)
    candidates = {
        "widest": [(ranked[0], ranked[-1])] if ranked else [],
        "all": list(itertools.combinations(ranked, 2)),
        "adjacent": list(itertools.pairwise(ranked)),
    }[policy]
    return [(i, j) for i, j in candidates if texts[i] != texts[j] and scores[i] - scores[j] > min_margin]


def _check_flip_rate(flip_rate: float) -> None:
    if not 0 <= flip_rate <= 1:
        raise ValueError(f"flip_rate is {flip_rate}; it is a share between 0 and 1")


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
        policy, min_margin: as in :func:`picks`.
        source: written into every row.
        flip_rate: share of pairs whose labels are swapped, drawn with ``seed``; the scores stay with their texts.

    Returns:
        ``prompt_id, prompt, chosen, rejected, source, score_chosen, score_rejected``.
    """
    _check_flip_rate(flip_rate)
    rng, rows = random.Random(seed), []
    for (pid, prompt), texts, values in zip(
        prompts[["prompt_id", "prompt"]].itertuples(index=False), responses, scores, strict=True
    ):
        for i, j in picks(texts, values, policy=policy, min_margin=min_margin):
            better, worse = (i, j) if rng.random() >= flip_rate else (j, i)
            rows.append((pid, prompt, texts[better], texts[worse], source, values[better], values[worse]))
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


class Draw(NamedTuple):
    """One entry of a sampling plan: ``n`` responses per prompt from ``model`` at ``temperature`` with ``seed``."""

    model: str
    temperature: float
    n: int
    seed: int


def sample_plan(
    prompts: pd.DataFrame, plan: Sequence[Draw], *, sample: Callable[[list[str], Draw], list[list[str]]]
) -> pd.DataFrame:
    """Run every entry of a sampling plan over all prompts.

    Args:
        prompts: ``prompt_id, prompt``.
        sample: (prompts, draw) -> per prompt, ``draw.n`` responses.

    Returns:
        a row per response: ``prompt_id, prompt, response, model, temperature, seed, number`` (of the ``n``), grouped
        by prompt in the prompts' order; whatever is added as a column travels into the pairs as provenance.

    Raises:
        ValueError: the same entry stands twice (it would draw the same texts), or ``sample`` gave another number.
    """
    if not plan or len(set(plan)) < len(plan):
        raise ValueError(f"the plan has {len(plan)} entries, {len(set(plan))} of them different; give each one once")
    rows = []
    for draw in plan:
        responses = sample(list(prompts["prompt"]), draw)
        if len(responses) != len(prompts) or any(len(texts) != draw.n for texts in responses):
            raise ValueError(
                f"sample gave another number of responses than {draw.n} for each of {len(prompts)} prompts"
            )
        for place, (row, texts) in enumerate(zip(prompts.itertuples(), responses, strict=True)):
            provenance = (draw.model, draw.temperature, draw.seed)
            rows += [(place, row.prompt_id, row.prompt, text, *provenance, k) for k, text in enumerate(texts)]
    names = ["place", "prompt_id", "prompt", "response", "model", "temperature", "seed", "number"]
    frame = pd.DataFrame(rows, columns=names).sort_values("place", kind="stable")
    return frame.drop(columns="place").reset_index(drop=True)


def _pair(better: dict, worse: dict, source: str) -> dict:
    """A row of a preference file from two candidates; what is known of each gets the suffix of its side."""
    row = {"prompt_id": better["prompt_id"], "prompt": better["prompt"]}
    row |= {"chosen": better["response"], "rejected": worse["response"], "source": source}
    for side, candidate in (("chosen", better), ("rejected", worse)):
        row |= {f"{name}_{side}": value for name, value in candidate.items() if name not in (*row, "response")}
    return row


def pairs_from_candidates(
    candidates: pd.DataFrame,
    *,
    policy: str,
    source: str,
    min_margin: float = 0.0,
    flip_rate: float = 0.0,
    seed: int = 0,
) -> pd.DataFrame:
    """Preference pairs from the frame of :func:`sample_plan` with a column ``score``; all draws of a prompt compete.

    Policy and margin as in :func:`picks`; ``flip_rate`` as in :func:`pairs_from_scores`.

    Returns:
        ``prompt_id, prompt, chosen, rejected, source``, then provenance of both sides: ``model_chosen``,
        ``model_rejected``, ``temperature_chosen``, ..., ``score_chosen``, ``score_rejected``.
    """
    if "score" not in candidates:
        raise ValueError("the candidates have no column score; add one: candidates.assign(score=...)")
    _check_flip_rate(flip_rate)
    rng, rows = random.Random(seed), []
    for _, group in candidates.groupby("prompt_id", sort=False):
        drawn = group.to_dict("records")
        texts, scores = [one["response"] for one in drawn], [one["score"] for one in drawn]
        for i, j in picks(texts, scores, policy=policy, min_margin=min_margin):
            better, worse = (i, j) if rng.random() >= flip_rate else (j, i)
            rows.append(_pair(drawn[better], drawn[worse], source))
    return pd.DataFrame(rows)


def pairs_from_judge(
    candidates: pd.DataFrame, judge: judges.Judge, *, source: str, per_prompt: int = 1, seed: int = 0
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Preference pairs from a judge that compares, asked in both orders; ties and missing verdicts make no pair.

    Args:
        candidates: as :func:`sample_plan` returns them.
        per_prompt: how many pairs of different responses of a prompt the judge sees, drawn with ``seed``.

    Returns:
        the pairs, with provenance as in :func:`pairs_from_candidates`, and the frame of ``judges.both_orders``.
    """
    rng, drawn = random.Random(seed), []
    for _, group in candidates.groupby("prompt_id", sort=False):
        rows = group.to_dict("records")
        rng.shuffle(rows)
        different = [two for two in itertools.combinations(rows, 2) if two[0]["response"] != two[1]["response"]]
        drawn += rng.sample(different, min(per_prompt, len(different)))
    asked = [judges.Comparison(one["prompt"], one["response"], two["response"]) for one, two in drawn]
    verdicts = judges.both_orders(judge, asked)
    made = []
    for (one, two), verdict in zip(drawn, verdicts["verdict"], strict=True):
        if verdict in ("first", "second"):
            made.append(_pair(*((one, two) if verdict == "first" else (two, one)), source))
    return pd.DataFrame(made), verdicts


def twin_share(texts: Sequence[str], *, alike: float = 80) -> float:
    """Share of the pairs of ``texts`` that are nearly identical: ``rapidfuzz.fuzz.ratio`` of ``alike`` or more.

    >>> twin_share(["a good film", "a good film!", "what a bore"])
    0.3333333333333333
    """
    ratios = [fuzz.ratio(a, b) for a, b in itertools.combinations(texts, 2)]
    return sum(ratio >= alike for ratio in ratios) / len(ratios) if ratios else 0.0


def candidate_facts(candidates: pd.DataFrame, vocabulary) -> dict[str, float]:
    """What a set of candidates offers, averaged over prompts.

    Args:
        candidates: ``prompt_id, response, score``.
        vocabulary: a container of known words in lower case.

    Returns:
        ``margin``: best minus worst score; ``twins``: :func:`twin_share`; ``unknown``: share of all words that
        ``vocabulary`` does not hold.
    """
    groups = candidates.groupby("prompt_id")
    words = [word for text in candidates["response"] for word in re.findall(r"\w[\w']*", text.lower())]
    return {
        "margin": float((groups["score"].max() - groups["score"].min()).mean()),
        "twins": float(groups["response"].apply(lambda texts: twin_share(list(texts))).mean()),
        "unknown": sum(word not in vocabulary for word in words) / max(1, len(words)),
    }


def config_hash(config: dict) -> str:
    """SHA-256 (first 16 hex digits) of a configuration's canonical JSON: the name that records and data carry.

    >>> config_hash({"b": 1, "a": 2}) == config_hash({"a": 2, "b": 1})
    True
    """
    text = json.dumps(config, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
