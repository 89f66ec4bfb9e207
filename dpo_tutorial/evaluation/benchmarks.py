"""Benchmarks: text metrics as judges, MT-Bench's protocol, AlpacaEval's format, and notebook 15's external tables.

What a leaderboard reports is a judge's opinion under a protocol. These functions read and write the formats of the
official tools, and measure judges against people.
"""

import itertools
import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from dpo_tutorial.data import agreement, external
from dpo_tutorial.evaluation import stats
from dpo_tutorial.evaluation.length_control import length_controlled_win_rates

ANNOTATORS = ["annotator1", "annotator2", "annotator3"]
JUDGES = ["gpt_35_turbo", "pandalm_7b", "longer", "rouge_l", "bleu", "tfidf"]
_WINNER = {"model_1": 1.0, "tie": 0.5, "model_2": 0.0}


# Text metrics
def tokens(text: str) -> list[str]:
    """Lower-case runs of letters and digits, as the rouge-score package takes them.

    >>> tokens("It's 3.5 m!")
    ['it', 's', '3', '5', 'm']
    """
    return re.findall(r"[a-z0-9]+", text.lower())


def rouge_l(candidate: str, reference: str) -> float:
    """ROUGE-L: F1 of the longest common subsequence of words (Lin 2004). No stemming.

    >>> rouge_l("the cat sat", "the cat has sat down")
    0.75
    """
    from rapidfuzz.distance import LCSseq

    a, b = tokens(candidate), tokens(reference)
    common = LCSseq.similarity(a, b)
    return 2 * common / (len(a) + len(b)) if common else 0.0


def bleu(candidate: str, reference: str) -> float:
    """Sentence BLEU of sacrebleu, 0 to 100, with as many n-gram orders as the candidate has."""
    from sacrebleu.metrics import BLEU

    return float(BLEU(effective_order=True).sentence_score(candidate, [reference]).score)


def similarities(candidates: Sequence[str], references: Sequence[str]) -> np.ndarray:
    """(N,) cosine of TF-IDF vectors of candidate and reference, fitted on all of them.

    A cheap stand-in for embeddings: it sees shared words, weighted by rarity, and no paraphrase.
    """
    from sklearn.feature_extraction.text import TfidfVectorizer

    vectors = TfidfVectorizer(sublinear_tf=True).fit_transform([*candidates, *references])
    return np.asarray(vectors[: len(candidates)].multiply(vectors[len(candidates) :]).sum(1)).ravel()


def verdicts(first: Sequence[float], second: Sequence[float]) -> np.ndarray:
    """(N,) 1 where the first score is higher, 2 where the second is, 0 where they are equal.

    >>> verdicts([1, 2, 3], [2, 2, 2]).tolist()
    [2, 0, 1]
    """
    first, second = np.asarray(first, float), np.asarray(second, float)
    return np.select([first > second, second > first], [1, 2], 0)


# Judges against people
def pandalm_verdicts(*, network: bool = True) -> pd.DataFrame:
    """PandaLM's comparisons, one row each, as verdicts 1, 2, 0 (tie), missing where a judge said something else.

    Returns:
        ``instruction`` (a number), ``annotator1`` to ``annotator3``, ``people`` (their majority), the machine judges
        ``gpt_35_turbo`` and ``pandalm_7b``, and four rules: ``longer`` (characters), and ``rouge_l``, ``bleu``,
        ``tfidf`` against the reference answer that gpt-3.5-turbo wrote when it judged (they lean on the same model).
    """
    frame = external.load("pandalm", network=network)
    judges = external.load("pandalm_judges", network=network).set_index("idx").loc[frame["idx"]]
    references = _references(frame["idx"])
    table = frame[ANNOTATORS].reset_index(drop=True)
    table["instruction"] = pd.factorize(frame["prompt_id"])[0]
    table["people"] = agreement.majority(table[ANNOTATORS].T.to_numpy())
    table = table.join(judges.reset_index(drop=True))
    first, second = (frame[name].astype(str).tolist() for name in ("response1", "response2"))
    pairs = list(zip(first, second, references, strict=True))
    table["longer"] = verdicts([len(a) for a in first], [len(b) for b in second])
    for name, metric in (("rouge_l", rouge_l), ("bleu", bleu)):
        table[name] = verdicts([metric(a, r) for a, _, r in pairs], [metric(b, r) for _, b, r in pairs])
    both = similarities(first + second, references * 2)
    table["tfidf"] = verdicts(both[: len(first)].round(9), both[len(first) :].round(9))
    return table.astype("Int64")


def _references(idx) -> list[str]:
    """The reference answers in the file of gpt-3.5-turbo's verdicts, "" where there is none."""
    path = external.CATALOGUE["pandalm_judges"].files[0].path
    folder = next(f for f in (external.data_dir(), external.cache_dir()) if f and (f / path).is_file())
    rows = {row["idx"]: row for row in json.loads((folder / path).read_text(encoding="utf-8"))}
    rows |= {int(key): row for key, row in rows.items() if str(key).isdigit()}
    return [str(rows[i].get("gpt_reference") or "") for i in idx]


def against_people(table: pd.DataFrame, judges: Sequence[str]) -> pd.DataFrame:
    """How far each judge agrees with people.

    Args:
        table: as :func:`pandalm_verdicts` gives it.

    Returns:
        indexed by judge: ``answered``; ``accuracy`` with ``low, high`` (95 %): share of all comparisons with the
        majority's verdict, a tie being one of three verdicts and a missing answer being wrong; ``decided``: accuracy
        where both name a winner; ``kappa`` (mean of Cohen's kappa with each annotator, comparable with that of
        annotators among themselves) over the answered ones; ``ties``; ``first``: share of "1" among its decided
        verdicts, and ``people_first``: of the people's decided verdicts on the same rows.
    """
    rows = {}
    for judge in judges:
        said, people = table[judge], table["people"]
        right = agreement.percent_agreement(said.fillna(-1), people)
        there = said.notna()
        kappas = [
            agreement.cohen_kappa(said[there], table.loc[there, one], repetitions=1).value for one in ANNOTATORS
        ]
        both = there & (said != 0).fillna(False) & (people != 0)
        rows[judge] = {
            "answered": int(there.sum()),
            "accuracy": right.value, "low": right.low, "high": right.high,
            "decided": float((said[both] == people[both]).mean()),
            "kappa": float(np.mean(kappas)),
            "ties": float((said[there] == 0).mean()),
            "first": float((said[both] == 1).mean()),
            "people_first": float((people[both] == 1).mean()),
        }  # fmt: skip
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("judge")


def judge_numbers(table: pd.DataFrame) -> dict:
    """Everything that notebook 15 shows of :func:`pandalm_verdicts`, as numbers for a record.

    Returns:
        ``against_people``: :func:`against_people` of all judges; ``counts``: per judge, (people, judge, rows) with
        verdicts 0, 1, 2 and -1 for none; ``people``: Cohen's kappa of each two annotators; ``differences``: paired
        differences of accuracy between judges, with 95 % intervals from drawing instructions again.
    """
    rates = against_people(table, JUDGES)
    counts = {
        judge: [[int(p), int(j), int(n)] for (p, j), n in table.fillna(-1).groupby(["people", judge]).size().items()]
        for judge in JUDGES
    }
    right = {judge: (table[judge] == table["people"]).fillna(False).astype(float) for judge in JUDGES}
    differences = {}
    for a, b in (
        ("gpt_35_turbo", "longer"),
        ("pandalm_7b", "longer"),
        ("rouge_l", "gpt_35_turbo"),
        ("rouge_l", "longer"),
    ):
        value = stats.paired_difference(right[a], right[b], table["instruction"])
        differences[f"{a} - {b}"] = [round(x, 4) for x in (value.mean, value.low, value.high)]
    pairs = itertools.combinations(ANNOTATORS, 2)
    people = [round(agreement.cohen_kappa(table[a], table[b], repetitions=1).value, 4) for a, b in pairs]
    return {
        "against_people": {name: row.round(4).to_dict() for name, row in rates.iterrows()},
        "counts": counts,
        "people": people,
        "differences": differences,
    }


# MT-Bench
def write_mt_bench(path: str | Path, table: pd.DataFrame, *, judge_name: str) -> None:
    """A comparison (``compare.compare``) in the layout of FastChat's ``gpt-4_pair.jsonl``: two games per question."""
    names = {1.0: "model_1", 0.5: "tie", 0.0: "model_2"}
    rows = [
        {"question_id": row.prompt_id, "model_1": row.model_a, "model_2": row.model_b}
        | {"g1_winner": names.get(row.a_first, "error"), "g2_winner": names.get(row.b_first, "error")}
        | {"judge": [judge_name, "pair-v2"], "turn": 1}
        for row in table.itertuples()
    ]
    Path(path).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def read_mt_bench(path: str | Path) -> pd.DataFrame:
    """Judged games by MT-Bench's protocol: a win has to be won in both orders, everything else is a tie.

    Returns:
        ``question_id, turn, model_1, model_2, g1_winner, g2_winner``, ``outcome`` of model_1 (1, .5, 0; NaN where a
        game has an error: FastChat leaves those out as well).

    Raises:
        ValueError: a line lacks a field or names a winner that is none.
    """
    rows = [json.loads(line) for line in Path(path).read_text(encoding="utf-8").splitlines() if line.strip()]
    names = ["question_id", "turn", "model_1", "model_2", "g1_winner", "g2_winner"]
    for number, row in enumerate(rows, start=1):
        wrong = [n for n in names if n not in row and n != "turn"]
        wrong += [n for n in names[4:] if row.get(n) not in (*_WINNER, "error")]
        if wrong:
            accepted = ", ".join((*_WINNER, "error"))
            raise ValueError(f"{path}, line {number}: {wrong[0]} is {row.get(wrong[0])!r}; winners are {accepted}")
    frame = pd.DataFrame(rows).assign(turn=[row.get("turn", 1) for row in rows])[names]
    one, two = (frame[name].map(_WINNER) for name in names[4:])
    outcome = np.where(one == two, one, 0.5)
    return frame.assign(outcome=np.where(one.isna() | two.isna(), np.nan, outcome))


# AlpacaEval
def alpaca_eval_rows(
    policy: Callable, instructions: Sequence[str], *, name: str, seed: int = 0, datasets: Sequence[str] | None = None
) -> list[dict]:
    """A policy's answers in AlpacaEval's format: ``instruction, output, generator``, and ``dataset`` where given.

    Args:
        policy: ``(prompts, seed) -> texts``.
        name: becomes ``generator``, the name on the leaderboard; one name per file.
    """
    texts = list(policy(list(instructions), seed))
    if len(texts) != len(instructions):
        raise ValueError(
            f"the policy gave {len(texts)} texts for {len(instructions)} instructions; one each is needed"
        )
    rows = [{"instruction": x, "output": str(y), "generator": name} for x, y in zip(instructions, texts, strict=True)]
    return rows if datasets is None else [row | {"dataset": d} for row, d in zip(rows, datasets, strict=True)]


def write_alpaca_eval(path: str | Path, rows: list[dict]) -> None:
    """``model_outputs.json`` for ``alpaca_eval --model_outputs``: one JSON list."""
    generators = {row["generator"] for row in rows}
    if len(generators) != 1:
        raise ValueError(f"generators are {sorted(generators)}; one file holds the answers of one model")
    Path(path).write_text(json.dumps(rows, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


def annotations(table: pd.DataFrame) -> pd.DataFrame:
    """A comparison (``compare.compare``) as AlpacaEval annotations for ``length_controlled_win_rates``.

    ``model_b`` is taken as the baseline; comparisons without a verdict are left out; lengths are in characters.
    """
    judged = table[table["outcome"].notna()]
    return pd.DataFrame(
        {
            "model": judged["model_a"],
            "instruction_id": judged["prompt_id"],
            "preference": 1.0 + judged["outcome"],
            "len_output": judged["text_a"].str.len(),
            "len_baseline": judged["text_b"].str.len(),
        }
    ).reset_index(drop=True)


def rates_beside_published(judged: pd.DataFrame, published: pd.DataFrame) -> pd.DataFrame:
    """Our rates of every model, its mean length in characters, and the published rates (NaN where there are none).

    Args:
        judged: annotations as ``external.load("alpaca_eval")`` gives them.
        published: as ``external.alpaca_eval_leaderboard()`` gives them.
    """
    rates = length_controlled_win_rates(judged).drop(columns="n").round(2)
    rates["characters"] = judged.groupby("model")["len_output"].mean().round(0)
    names = {"win_rate": "published", "length_controlled_winrate": "published_controlled"}
    return rates.join(published[list(names)].rename(columns=names).round(2))
