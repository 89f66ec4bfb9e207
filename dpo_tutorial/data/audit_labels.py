"""The audit's checks of labels: length, what a classifier tells without reading, scores, votes, position, source."""

import json
import re

import numpy as np
import pandas as pd

from dpo_tutorial.data import agreement, filters
from dpo_tutorial.data.audit_check import Check, Pairs, Share, count, per_cent, quantiles, share

FOLDS = 5


def length(pairs: Pairs) -> Check:
    """How long the texts are, and how often the longer response is the chosen one."""
    chosen, rejected = filters.word_counts(pairs.frame)
    prompt = np.array([len(text.split()) for text in pairs.prompts])
    decided = chosen != rejected
    longer = (chosen > rejected)[decided].astype(float)
    rate = share(longer, pairs.frame["prompt_id"].to_numpy()[decided])
    ratio = np.maximum(chosen, rejected) / np.maximum(np.minimum(chosen, rejected), 1)
    check = Check("length", "Length", "", series={"chosen": chosen, "rejected": rejected}, group="length")
    check.summary = (
        f"words: prompt {np.median(prompt):.0f}, chosen {np.median(chosen):.0f}, rejected {np.median(rejected):.0f} "
        f"(medians); the longer response is chosen in {rate.text()} of {count(rate.n, 'pair')}"
    )
    check.numbers = rate.numbers("longer_is_chosen") | {"ratio_above_5": float((ratio > 5).mean())}
    for name, values in (("prompt", prompt), ("chosen", chosen), ("rejected", rejected)):
        check.numbers |= {f"words_{name}_{key}": value for key, value in quantiles(values).items()}
    if rate.n and (rate.low > 0.5 or rate.high < 0.5) and abs(rate.value - 0.5) >= 0.1:
        check.finding = f"the longer response is chosen in {rate.text()} of the pairs: length stands in for quality"
        check.remedy = "filters.balance_length(frame, seed=0), and judge the result with length control"
        check.severity = 2 * abs(rate.value - 0.5)
    elif (ratio > 5).mean() > 0.05:
        check.rows = np.flatnonzero(ratio > 5)
        check.finding = (
            f"in {per_cent((ratio > 5).mean())} of the pairs one response is five times as long as the other"
        )
        check.remedy = "filters.max_length_ratio(frame, ratio=5)"
        check.severity = 0.5 * float((ratio > 5).mean())
    return check


def classifiers(pairs: Pairs) -> list[Check]:
    """What two classifiers that see no prompt can tell: one by length alone, one by the words of the responses.

    Trained and tested on the sample in five folds that share no prompt. Each pair is turned round at random, and the
    features are differences of the two sides, so that guessing is right half the time.
    """
    groups = pairs.frame["prompt_id"].to_numpy()[pairs.sample]
    if len(pairs.sample) < 100 or len(set(groups)) < 2 * FOLDS:
        too_few = f"not run: {len(pairs.sample)} pairs of {len(set(groups))} prompts are too few for five folds"
        return [Check("length_classifier", "Labels told by length alone", too_few)]
    first, second = ([side[k] for k in pairs.sample] for side in (pairs.chosen, pairs.rejected))
    return [_by_length(first, second, groups, pairs.seed), _by_words(first, second, groups, pairs.seed)]


def _by_length(first: list[str], second: list[str], groups: np.ndarray, seed: int) -> Check:
    sides = [np.array([_lengths(text) for text in side]) for side in (first, second)]
    difference = sides[0] - sides[1]
    difference = difference / np.maximum(difference.std(axis=0), 1e-9)
    rate = _accuracy(difference, groups, seed)[0]
    title = "Labels told by length alone"
    summary = f"right in {rate.text()} of {rate.n:,} sampled pairs"
    check = Check("length_classifier", title, summary, group="length")
    check.numbers, check.series = rate.numbers("accuracy"), {"rate": rate}
    if rate.low > 0.6:
        check.finding = f"a classifier that knows only lengths is right in {rate.text()} of the pairs"
        check.remedy = "filters.balance_length(frame, seed=0); look at what else goes with length"
        check.severity = rate.value - 0.5
    return check


def _lengths(text: str) -> tuple[float, float, float, float]:
    words, characters = len(text.split()), len(text)
    return np.log1p(words), np.log1p(characters), words, text.count("\n")


def _by_words(first: list[str], second: list[str], groups: np.ndarray, seed: int) -> Check:
    from sklearn.feature_extraction.text import TfidfVectorizer

    options = {"sublinear_tf": True, "min_df": 3, "max_features": 20_000, "token_pattern": r"(?u)\b\w[\w']*\b"}
    title, vectorizer = "Labels told by single words", TfidfVectorizer(**options)
    try:
        vectorizer.fit([*first, *second])
    except ValueError:  # no word occurs three times
        return Check("word_classifier", title, "not run: no word occurs in three responses")
    difference = vectorizer.transform(first) - vectorizer.transform(second)
    rate, weights = _accuracy(difference, groups, seed)
    names = vectorizer.get_feature_names_out()
    order = np.argsort(weights)
    telling = {"chosen": list(map(str, names[order[::-1][:8]])), "rejected": list(map(str, names[order[:8]]))}
    check = Check("word_classifier", title, f"right in {rate.text()} of {rate.n:,} sampled pairs")
    check.numbers, check.series = rate.numbers("accuracy") | {"telling_words": telling}, {"rate": rate}
    if rate.low > 0.75:
        words = ", ".join(telling["chosen"][:4]), ", ".join(telling["rejected"][:4])
        check.finding = (
            f"single words, without the prompt, tell the label in {rate.text()} of the pairs "
            f"(for chosen: {words[0]}; for rejected: {words[1]})"
        )
        check.remedy = (
            "collect pairs of closer responses; check that the words are what the labels are meant to reward"
        )
        check.severity = rate.value - 0.5
    return check


def _accuracy(difference, groups: np.ndarray, seed: int) -> tuple[Share, np.ndarray]:
    """Held-out accuracy of a logistic regression without a constant, and its weights on all pairs."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import GroupKFold

    turned = np.random.default_rng(seed).random(difference.shape[0]) < 0.5
    signs = np.where(turned, -1.0, 1.0)
    features = (
        difference.multiply(signs[:, None]).tocsr() if hasattr(difference, "tocsr") else difference * signs[:, None]
    )
    labels = ~turned
    right = np.zeros(len(labels))
    model = LogisticRegression(fit_intercept=False, max_iter=1000)
    for train, test in GroupKFold(FOLDS).split(features, labels, groups):
        scores = model.fit(features[train], labels[train]).decision_function(features[test])
        right[test] = np.where(np.abs(scores) < 1e-12, 0.5, (scores > 0) == labels[test])
    return share(right, groups), model.fit(features, labels).coef_[0]


def scores(pairs: Pairs) -> Check | None:
    """Margins, where the file has scores, and labels that contradict them."""
    if not {"score_chosen", "score_rejected"} <= set(pairs.frame.columns):
        return None
    margin = (pairs.frame["score_chosen"] - pairs.frame["score_rejected"]).to_numpy(float)
    known = ~np.isnan(margin)
    if not known.any():
        return None
    rows = np.flatnonzero(known & (margin < 0))
    ties = int((margin == 0).sum())
    check = Check("scores", "Scores", "", rows=rows, series={"margin": margin[known]})
    check.summary = (
        f"{count(int(known.sum()), 'pair')} with scores, margin {np.median(margin[known]):.3g} (median); "
        f"{len(rows):,} labels against their scores, {ties:,} equal scores"
    )
    check.numbers = {"scored": int(known.sum()), "against": len(rows), "equal": ties}
    check.numbers |= {f"margin_{name}": value for name, value in quantiles(margin[known]).items()}
    if len(rows) or ties:
        part = (len(rows) + ties) / len(pairs)
        check.finding = (
            f"{len(rows):,} pairs are labelled against their scores, {ties:,} have equal scores ({per_cent(part)})"
        )
        check.remedy = "swap or drop them: filters.min_margin with the smallest margin that you trust"
        check.severity = 3 * len(rows) / len(pairs) + ties / len(pairs)
    return check


def votes(pairs: Pairs, rejected: pd.DataFrame) -> Check | None:
    """Agreement: the chosen response's share of the votes, and kappa and alpha where single votes are there.

    Coefficients take in the rejected rows that hold votes: without those ties agreement looks better than it is.
    """
    if not {"votes_chosen", "votes_rejected"} <= set(pairs.frame.columns):
        return None
    counts = pairs.frame.reindex(columns=["votes_chosen", "votes_rejected", "votes_tied"]).astype(float).fillna(0)
    total = counts.sum(axis=1).to_numpy()
    if not (total > 0).any():
        return None
    agreed = counts["votes_chosen"].to_numpy()[total > 0] / total[total > 0]
    low = float((agreed < 0.7).mean())
    check = Check("votes", "Agreement", "", series={"agreed": agreed})
    check.rows = np.flatnonzero(total > 0)[agreed < 0.7]
    check.numbers = {"voted": int((total > 0).sum()), "mean_agreement": float(agreed.mean()), "below_70": low}
    check.numbers["unanimous"] = float((agreed > 1 - 1e-9).mean())
    kappa = _coefficients(pairs.frame, rejected)
    check.numbers |= kappa
    alpha = f"; Krippendorff's alpha {kappa['krippendorff_alpha']:.2f}" if "krippendorff_alpha" in kappa else ""
    check.summary = (
        f"the chosen response has {per_cent(agreed.mean())} of the votes on average, all of them in "
        f"{per_cent(check.numbers['unanimous'])} of {count(check.numbers['voted'], 'pair')}{alpha}"
    )
    if agreed.mean() < 0.75 or kappa.get("krippendorff_alpha", 1.0) < 0.6:
        check.finding = (
            f"annotators agree little: {per_cent(low)} of the pairs have less than 70 % of the votes{alpha}"
        )
        check.remedy = "filters.min_agreement(frame, threshold=0.7), clearer instructions, more annotators per pair"
        check.severity = 1 - float(agreed.mean())
    return check


def _coefficients(frame: pd.DataFrame, rejected: pd.DataFrame) -> dict:
    """Cohen's kappa per pair of annotators (at most six pairs) and Krippendorff's alpha, from annotator columns."""
    names = [name for name in frame.columns if re.fullmatch(r"annotator_?\d+", str(name))]
    if len(names) < 2:
        return {}
    rows = frame[names].astype(object).to_numpy().tolist()
    for raw in rejected["raw"]:
        try:
            row = json.loads(raw)
        except ValueError:
            continue
        if isinstance(row, dict) and set(names) <= row.keys():
            rows.append([row[name] for name in names])
    table = pd.DataFrame([[_label(vote) for vote in row] for row in rows], columns=names, dtype=object)
    numbers = {}
    try:
        numbers["krippendorff_alpha"] = agreement.krippendorff_alpha(table.T, repetitions=1).value
        for k, one in enumerate(names[:4]):
            for two in names[k + 1 : 4]:
                both = table[[one, two]].dropna()
                numbers[f"cohen_kappa_{one}_{two}"] = agreement.cohen_kappa(both[one], both[two], repetitions=1).value
    except ValueError:  # one label only: no coefficient
        return {}
    return numbers | {"rated_items": len(table)}


def _label(vote) -> str | None:
    return None if pd.isna(vote) else str(vote).strip().lower()


def position(pairs: Pairs) -> Check | None:
    """Whether the response that stood first before the judges wins more often than the second."""
    if "chosen_position" not in pairs.frame:
        return None
    values = pd.to_numeric(pairs.frame["chosen_position"], errors="coerce").to_numpy(float)
    known = np.isin(values, [1, 2])
    if not known.any():
        return None
    rate = share((values[known] == 1).astype(float), pairs.frame["prompt_id"].to_numpy()[known])
    check = Check("position", "Position", f"the first response is chosen in {rate.text()} of {count(rate.n, 'pair')}")
    check.numbers = rate.numbers("first_is_chosen")
    if (rate.low > 0.5 or rate.high < 0.5) and abs(rate.value - 0.5) >= 0.05:
        check.finding = f"the response shown first is chosen in {rate.text()} of the pairs"
        check.remedy = "ask in both orders and keep the consistent verdicts; filters.balance_position(frame, seed=0)"
        check.severity = abs(rate.value - 0.5)
    return check


def sources(pairs: Pairs) -> Check:
    counts = pairs.frame["source"].astype(str).value_counts()
    largest = counts.iloc[0] / len(pairs)
    check = Check("sources", "Sources", f"{count(len(counts), 'source')}; the largest has {per_cent(largest)}")
    check.numbers = {"sources": len(counts), "largest_share": float(largest), "counts": counts.head(8).to_dict()}
    if 1 < len(counts) and largest >= 0.9:
        check.finding = f"one of {count(len(counts), 'source')} has {per_cent(largest)} of the pairs"
        check.remedy = 'filters.limit_share(frame, column="source", share=0.5, seed=0)'
        check.severity = 0.5 * (float(largest) - 0.5)
    return check
