"""A regression suite: what a model could do before a training run and can no longer do after it.

The items are written for this course (data/capabilities/, made by tools/make_capabilities.py): six families of forced
choices, scored by the model's own probability of the right answer among the options, and one family of instructions
that a rule checks on samples. Kept are items that the base model gets right 20 to 90 per cent of the time: on those a
loss and a gain can both be seen.
"""

import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from dpo_tutorial.data.scoring import DATA_DIR
from dpo_tutorial.evaluation import stats
from dpo_tutorial.training.encode import common_prefix_length, text_ids
from dpo_tutorial.training.logps import per_token_logps

FAMILIES = ("arithmetic", "facts", "copying", "following", "steps", "code", "rules")
ITEMS = DATA_DIR / "capabilities" / "items.jsonl"


def load_items(path: Path | str = ITEMS) -> pd.DataFrame:
    """The items: ``id, family, prompt``, ``options`` (the right one first; empty for rules), ``rule, argument``,
    ``base`` (how often SmolLM2 gets it right).

    Raises:
        ValueError: a line lacks a field, or names a rule that does not exist.
    """
    rows = [json.loads(line) for line in Path(path).read_text(encoding="utf-8").splitlines()]
    for number, row in enumerate(rows, start=1):
        missing = [key for key in ("id", "family", "prompt", "options", "rule", "argument") if key not in row]
        if missing or (row["rule"] and row["rule"] not in RULES):
            what = f"lacks {', '.join(missing)}" if missing else f"names the rule {row['rule']!r}"
            raise ValueError(f"{path}, line {number} {what}; accepted rules are {', '.join(RULES)}")
    return pd.DataFrame(rows)


def score(
    model, tokenizer, items: pd.DataFrame | None = None, *, sample: Callable | None = None, seed: int = 0,
    batch_size: int = 32,
) -> pd.DataFrame:  # fmt: skip
    """How well a model does on every item.

    Args:
        items: as :func:`load_items` gives them; None takes the course's.
        sample: ``(prompts, seed) -> list of lists of texts`` for the items with a rule, whose prompts are lists of
            messages; None leaves those items out.

    Returns:
        one row per item: ``id, family``, ``p`` (probability of the right option among its options, or the share of
        samples that keep the rule), ``margin`` (log-probability of the right option minus that of the best wrong
        one; NaN for rules). A margin of 0 is a tie: p tells how far it is from one.
    """
    items = load_items() if items is None else items
    by_rule = items["rule"].notna()
    choices, ruled = items[~by_rule], items[by_rule]
    right, wrong = choice_logps(model, tokenizer, choices, batch_size=batch_size)
    p = np.exp(right - np.logaddexp(right, np.logaddexp.reduce(wrong, axis=1)))
    tables = [choices[["id", "family"]].assign(p=p, margin=right - wrong.max(axis=1))]
    if sample is not None and len(ruled):
        texts = sample([[{"role": "user", "content": prompt}] for prompt in ruled["prompt"]], seed)
        kept = [
            float(np.mean([RULES[rule](text, argument) for text in per]))
            for rule, argument, per in zip(ruled["rule"], ruled["argument"], texts, strict=True)
        ]
        tables.append(ruled[["id", "family"]].assign(p=kept, margin=np.nan))
    return pd.concat(tables, ignore_index=True)


def choice_logps(model, tokenizer, items: pd.DataFrame, *, batch_size: int = 32) -> tuple[np.ndarray, np.ndarray]:
    """Log-probabilities of the right option (N,) and of the wrong ones (N, K - 1), each with its closing newline.

    The prompt is read once and its keys and values serve all options, which takes a third of the time.
    """
    prompts, options = [], []
    for prompt, texts in zip(items["prompt"], items["options"], strict=True):
        full = [text_ids(tokenizer, prompt, f"{text}\n") for text in texts]
        alone = text_ids(tokenizer, prompt)
        start = min(common_prefix_length(alone, ids) for ids in full)
        prompts.append(alone[:start])
        options.append([ids[start:] for ids in full])
    counts = {len(row) for row in options}
    if len(counts) != 1:
        raise ValueError(f"items have {sorted(counts)} options; give all of them the same number")
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    out = np.empty((len(order), counts.pop()))
    for start in range(0, len(order), batch_size):
        picked = order[start : start + batch_size]
        out[picked] = _option_logps(
            model, [prompts[i] for i in picked], [options[i] for i in picked], tokenizer.pad_token_id
        )
    return out[:, 0], out[:, 1:]


@torch.no_grad()
def _option_logps(model, prompts: list[list[int]], options: list[list[list[int]]], pad: int) -> np.ndarray:
    """(B, K) summed log-probabilities of K options per prompt; the prompt is computed once."""
    device, count = model.device, len(options[0])
    width = max(map(len, prompts))
    ids = torch.tensor([[pad] * (width - len(row)) + row for row in prompts], device=device)
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in prompts], device=device)
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    read = model(input_ids=ids, attention_mask=mask, position_ids=positions, use_cache=True, logits_to_keep=1)
    read.past_key_values.batch_repeat_interleave(count)
    flat = [row for per_prompt in options for row in per_prompt]
    longest = max(map(len, flat))
    answer = torch.tensor([row + [pad] * (longest - len(row)) for row in flat], device=device)
    scored = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in flat], device=device)
    lengths = torch.tensor([len(row) for row in prompts], device=device).repeat_interleave(count)
    later = model(
        input_ids=answer,
        attention_mask=torch.cat([mask.repeat_interleave(count, 0), scored], dim=1),
        position_ids=lengths[:, None] + torch.arange(longest, device=device),
        past_key_values=read.past_key_values,
        use_cache=True,
    ).logits
    logits = torch.cat([read.logits[:, -1:].repeat_interleave(count, 0), later], dim=1)
    shifted = torch.cat([answer[:, :1], answer], dim=1)  # the first column is read by nobody
    summed = (per_token_logps(logits, shifted) * scored).sum(1)
    return summed.view(-1, count).cpu().double().numpy()


def summary(scores: pd.DataFrame, *, seed: int = 0) -> pd.DataFrame:
    """Mean ``p`` per family and over all items, with 95 % intervals from drawing items again."""
    rows = {}
    for family, part in _families(scores):
        value = stats.paired_difference(part["p"], np.zeros(len(part)), seed=seed)
        rows[family] = {"items": len(part), "p": value.mean, "low": value.low, "high": value.high}
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("family")


def compare(before: pd.DataFrame, after: pd.DataFrame, *, seed: int = 0) -> pd.DataFrame:
    """Change of ``p`` from one model to another on the same items, per family and over all.

    Returns:
        indexed by family: ``items, before, after, change`` with ``low`` and ``high`` (95 %, paired by item),
        ``fell, rose`` (items whose p moved by more than .1). Seven families are seven looks: a single interval
        that just misses zero is weak evidence.

    Raises:
        ValueError: the two frames do not hold the same items.
    """
    both = before.merge(after, on=["id", "family"], suffixes=("_before", "_after"), how="outer", indicator=True)
    if (both["_merge"] != "both").any():
        odd = both.loc[both["_merge"] != "both", "id"].iloc[0]
        raise ValueError(f"item {odd!r} stands in one of the two frames only; score both models on the same items")
    rows = {}
    for family, part in _families(both):
        value = stats.paired_difference(part["p_after"], part["p_before"], seed=seed)
        moved = part["p_after"] - part["p_before"]
        rows[family] = {"items": len(part), "before": part["p_before"].mean(), "after": part["p_after"].mean()}
        rows[family] |= {"change": value.mean, "low": value.low, "high": value.high}
        rows[family] |= {"fell": int((moved < -0.1).sum()), "rose": int((moved > 0.1).sum())}
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("family")


def _families(scores: pd.DataFrame):
    """(name, rows) of every family that is there, in the fixed order, then of all."""
    present = [family for family in FAMILIES if (scores["family"] == family).any()]
    return [(family, scores[scores["family"] == family]) for family in present] + [("all", scores)]


def _json(text: str, argument) -> bool:
    found = re.search(r"\{.*\}", text, re.S)
    try:
        return argument in json.loads(found[0]) if found else False
    except ValueError:
        return False


# What a rule asks of an answer. Arguments come from the item. Each is a few characters of code, so that a reader can
# disagree with it.
RULES: dict[str, Callable[[str, object], bool]] = {
    "one word": lambda text, _: len(text.split()) == 1,
    "at most words": lambda text, n: 0 < len(text.split()) <= n,
    "at least words": lambda text, n: len(text.split()) >= n,
    "contains": lambda text, word: word.lower() in text.lower(),
    "avoids": lambda text, word: bool(text.strip()) and not re.search(rf"\b{word}\b", text, re.I),
    "starts": lambda text, word: text.strip().lower().startswith(word.lower()),
    "ends": lambda text, mark: text.strip().endswith(mark),
    "upper case": lambda text, _: text.isupper(),
    "lower case": lambda text, _: text.islower(),
    "one sentence": lambda text, _: len(re.findall(r"[.!?](?:\s|$)", text.strip())) == 1,
    "list": lambda text, n: len(re.findall(r"^\s*(?:[-*•]|\d+[.)])\s+\S", text, re.M)) == n,
    "commas": lambda text, n: text.strip().count(",") == n,
    "json": _json,
    "no digits": lambda text, _: bool(text.strip()) and not any(map(str.isdigit, text)),
    "digits": lambda text, _: any(map(str.isdigit, text)),
}
