"""The audit's checks of texts: duplicates, leakage, pairs that are alike, repetition, damage, diversity, tokens."""

import re
import unicodedata
from collections import Counter
from collections.abc import Callable

import numpy as np
import pandas as pd

from dpo_tutorial.data import filters
from dpo_tutorial.data.audit_check import Check, Pairs, count, per_cent, quantiles

ALIKE = 0.9  # responses as alike as this are near-identical
# UTF-8 read as Latin-1 or Windows-1252 leaves these pairs; U+FFFD is what is left of a byte nobody could read.
_DAMAGE = re.compile("\ufffd|Ã[\x80-\xbf©¨ª«¼¶¤±³]|â€[™œ\x9d“”˜¦]|Â[\xa0£©®°»«]|[\x00-\x08\x0b\x0c\x0e-\x1f]")


def rows_gone(filtered: filters.Filtered, frame: pd.DataFrame) -> np.ndarray:
    """Positions of the rows that a filter dropped."""
    return np.flatnonzero(~frame.index.isin(filtered[0].index))


def duplicates(pairs: Pairs) -> Check:
    rows = rows_gone(filters.drop_duplicates(pairs.frame), pairs.frame)
    check = Check(
        "duplicates", "Exact duplicates", f"{count(len(rows), 'pair')} repeat an earlier one", group="duplicates"
    )
    check.numbers, check.rows = {"pairs": len(rows), "share": len(rows) / len(pairs)}, rows
    if len(rows):
        check.finding = f"{count(len(rows), 'pair')} ({per_cent(len(rows) / len(pairs))}) repeat an earlier pair"
        check.remedy = "filters.drop_duplicates; split train and test by prompt only afterwards"
        check.severity = len(rows) / len(pairs)
    return check


def near_duplicates(pairs: Pairs, known: np.ndarray) -> Check:
    """Among the pairs outside ``known`` (exact duplicates and contradictions, which have checks of their own)."""
    texts = [" ".join(parts) for parts in zip(pairs.prompts, pairs.chosen, pairs.rejected, strict=True)]
    others = np.setdiff1d(np.arange(len(pairs)), known)
    rows = others[filters.near_matches([texts[k] for k in others], similarity=0.8)]
    summary = f"{count(len(rows), 'pair')} share 80 % of their runs of three words with an earlier one"
    check = Check("near_duplicates", "Near duplicates", summary, group="duplicates")
    check.numbers, check.rows = {"pairs": len(rows), "share": len(rows) / len(pairs)}, rows
    if len(rows) >= max(1, 0.001 * len(pairs)):
        check.finding = (
            f"{count(len(rows), 'pair')} ({per_cent(len(rows) / len(pairs))}) nearly repeat an earlier pair"
        )
        check.remedy = "filters.drop_near_duplicates; split train and test by prompt only afterwards"
        check.severity = 0.8 * len(rows) / len(pairs)
    return check


def contradictions(pairs: Pairs) -> Check:
    rows = rows_gone(filters.drop_contradictions(pairs.frame), pairs.frame)
    summary = f"{count(len(rows), 'pair')} occur with the opposite label too"
    check = Check("contradictions", "Contradictions", summary)
    check.numbers, check.rows = {"pairs": len(rows), "share": len(rows) / len(pairs)}, rows
    if len(rows):
        check.finding = f"{count(len(rows), 'pair')} ({per_cent(len(rows) / len(pairs))}) occur with both labels"
        check.remedy = "filters.drop_contradictions, or ask more annotators and keep the majority"
        check.severity = 3 * len(rows) / len(pairs)
    return check


def leakage(pairs: Pairs, test: pd.DataFrame) -> Check:
    dropped = filters.drop_leaks(pairs.frame, test, similarity=0.8)
    rows, reasons = rows_gone(dropped, pairs.frame), dropped[1]
    summary = f"{count(len(rows), 'pair')} share a prompt or response with the test file ({count(len(test), 'pair')})"
    check = Check("leakage", "Leakage into the test file", summary)
    check.numbers = {"pairs": len(rows), "share": len(rows) / len(pairs), "test_pairs": len(test)} | dict(reasons)
    check.rows = rows
    if len(rows):
        which = ", ".join(f"{reason}: {n:,}" for reason, n in reasons.items())
        check.finding = f"{count(len(rows), 'pair')} ({per_cent(len(rows) / len(pairs))}) leak: {which}"
        check.remedy = "filters.drop_leaks(train, test, similarity=0.8), or split by prompt again"
        check.severity = 1 + len(rows) / len(pairs)  # nothing measured on that test file holds
    return check


def alike(pairs: Pairs) -> Check:
    similarity = filters.similarities(pairs.frame)
    rows = np.flatnonzero(similarity >= ALIKE)
    same = rows_gone(filters.drop_identical(pairs.frame), pairs.frame)
    rows = np.union1d(rows, same)
    part = len(rows) / len(pairs)
    summary = f"median similarity {np.median(similarity):.2f}; {count(len(rows), 'pair')} at {ALIKE} or above"
    check = Check("alike", "Responses that are nearly identical", summary, rows=rows)
    check.numbers = {"pairs": len(rows), "share": part, "equal_but_for_case_and_spaces": len(same)}
    check.numbers |= {f"similarity_{name}": value for name, value in quantiles(similarity).items()}
    check.series = {"similarity": similarity}
    if part >= 0.01 or len(same):
        check.finding = (
            f"in {count(len(rows), 'pair')} ({per_cent(part)}) chosen and rejected are nearly identical "
            f"({len(same):,} differ in case or spaces only)"
        )
        check.remedy = f"filters.drop_near_identical(frame, similarity={ALIKE})"
        check.severity = part
    return check


def repetition(pairs: Pairs) -> Check:
    """One and the same response in many pairs: boilerplate, or a sampler that collapsed."""
    texts = [*pairs.chosen, *pairs.rejected]
    keys = [filters.digest(text) for text in texts]
    counts = Counter(keys)
    key, n = counts.most_common(1)[0]
    often = {key for key, n in counts.items() if n >= max(5, 0.005 * len(pairs))}
    half = len(pairs)
    rows = np.array([k for k in range(half) if keys[k] in often or keys[half + k] in often], dtype=int)
    summary = (
        f"{len(counts) / len(keys):.3f} distinct responses per response; the most frequent stands {count(n, 'time')}"
    )
    check = Check("repetition", "Responses that are repeated", summary, rows=rows)
    check.numbers = {"distinct_share": len(counts) / len(keys), "most_frequent": n, "pairs": len(rows)}
    if len(rows) >= 0.01 * half and len(set(pairs.prompts)) > 1:
        example = texts[keys.index(key)][:60]
        check.finding = f"{count(len(often), 'response')} recur and stand in {count(len(rows), 'pair')}: {example!r}"
        check.remedy = "drop the pairs with boilerplate, or sample again with a higher temperature"
        check.severity = 0.8 * len(rows) / half
    return check


def damage(pairs: Pairs) -> Check:
    """Characters that no writer meant, and pairs whose letters belong to another script than the file's."""
    triples = list(zip(pairs.prompts, pairs.chosen, pairs.rejected, strict=True))
    broken = {k for k, texts in enumerate(triples) if any(_DAMAGE.search(text) for text in texts)}
    scripts = _scripts(triples)
    main = scripts.most_common(1)[0][0] if scripts else "LATIN"
    foreign = set(rows_gone(filters.keep_script(pairs.frame, script=main, share=0.5), pairs.frame).tolist())
    rows = np.array(sorted(broken | foreign), dtype=int)
    summary = f"script {main}; {count(len(foreign), 'pair')} in another one, {len(broken):,} with damaged characters"
    check = Check("damage", "Characters", summary, rows=rows)
    check.numbers = {"script": main, "other_script": len(foreign), "damaged": len(broken)}
    if len(broken) >= max(1, 0.0005 * len(pairs)) or len(foreign) >= max(1, 0.002 * len(pairs)):
        check.finding = (
            f"{count(len(broken), 'pair')} with damaged characters, {len(foreign):,} in another script than {main}"
        )
        check.remedy = f'look at the examples, read the source as UTF-8; filters.keep_script(frame, script="{main}")'
        check.severity = len(rows) / len(pairs)
    return check


def _scripts(triples: list) -> Counter:
    """Letters per script in at most 2,000 pairs, evenly spread."""
    letters = Counter(
        c for texts in triples[:: max(1, len(triples) // 2000)] for t in texts for c in t if c.isalpha()
    )
    scripts = Counter()
    for letter, n in letters.items():
        scripts[unicodedata.name(letter, "UNKNOWN").split(" ")[0]] += n
    return scripts


def prompts(pairs: Pairs) -> Check:
    counts = pd.Series(Counter(pairs.prompts)).sort_values(ascending=False)
    shares = counts.to_numpy() / len(pairs)
    effective = float(np.exp(-(shares * np.log(shares)).sum()))
    openings = Counter(" ".join(prompt.split()[:3]) for prompt in counts.index)
    summary = f"{count(len(counts), 'prompt')}, as diverse as {effective:,.0f} used equally often"
    check = Check("prompts", "Prompt diversity", summary)
    check.numbers = {"prompts": len(counts), "effective_prompts": effective, "largest_share": float(shares[0])}
    check.numbers |= {"pairs_per_prompt_max": int(counts.iloc[0]), "openings": dict(openings.most_common(8))}
    if len(pairs) >= 100 and (shares[0] > 0.05 or effective < 50):
        check.rows = np.flatnonzero(np.array(pairs.prompts, dtype=object) == counts.index[0])
        largest = f"one prompt has {per_cent(shares[0])} of the pairs"
        check.finding = f"few prompts: as diverse as {effective:,.0f} used equally often; {largest}"
        check.remedy = 'filters.limit_share(frame, column="prompt_id", share=0.01, seed=0), or collect more prompts'
        check.severity = max(float(shares[0]), 0.3 if effective < 50 else 0.0)
    return check


def tokens(pairs: Pairs, encode: Callable, max_length: int) -> Check:
    """Tokens of prompt and response, and what is lost at ``max_length``; on the sample."""
    frame = pairs.frame.iloc[pairs.sample]
    texts = [[side[k] for k in pairs.sample] for side in (pairs.prompts, pairs.chosen, pairs.rejected)]
    prompt, chosen, rejected = (np.array([len(ids) for ids in encode(side)]) for side in texts)
    longest = prompt + np.maximum(chosen, rejected)
    cut = longest > max_length
    dropped = filters.drop_truncated(frame, encode=encode, max_length=max_length)
    useless = rows_gone(dropped, frame)
    most = f"{np.quantile(longest, 0.95):.0f}"
    summary = f"prompt and longer response: median {np.median(longest):.0f} tokens, 95 % up to {most}"
    summary += f"; {per_cent(cut.mean())} of {count(len(frame), 'sampled pair')} are cut at {max_length}"
    check = Check("tokens", f"Tokens, and truncation at {max_length}", summary, rows=pairs.sample[useless])
    check.numbers = {"sampled": len(frame), "max_length": max_length, "cut": float(cut.mean())} | dict(dropped[1])
    check.numbers |= {f"tokens_{name}": value for name, value in quantiles(longest).items()}
    check.series = {"tokens": longest, "max_length": max_length}
    if len(useless) or cut.mean() > 0.05:
        check.finding = (
            f"at {max_length} tokens {per_cent(cut.mean())} of the pairs lose text and "
            f"{per_cent(len(useless) / len(frame))} lose all that tells the responses apart"
        )
        check.remedy = f"raise max_length (95 % need up to {most}), or filters.drop_truncated"
        check.severity = 2 * len(useless) / len(frame) + 0.3 * float(cut.mean())
    return check
