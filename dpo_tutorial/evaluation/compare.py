"""Two or more policies on one set of prompts, judged in both orders: one tidy table, resumable, nothing dropped.

Texts and verdicts are JSON lines, appended as soon as they are there; a run that was stopped goes on where it
stopped. A judge's answer that is no verdict is kept as it came and counted as missing, never as a tie.
"""

import itertools
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from dpo_tutorial.data.construct import config_hash
from dpo_tutorial.data.judges import VERDICTS, AnswerCache, Comparison, Judge
from dpo_tutorial.data.pairs import prompt_id
from dpo_tutorial.evaluation import stats

Policy = Callable[[Sequence[str], int], Sequence[str]]
_OUTCOME = {"first": 1.0, "tie": 0.5, "second": 0.0}


def compare(
    policies: dict[str, Policy], prompts: Sequence[str], judge: Judge, *, judge_name: str,
    seeds: Sequence[int] = (0,), settings: dict | None = None, path: str | Path | None = None,
    batch_size: int = 32, ask_again: bool = False,
) -> pd.DataFrame:  # fmt: skip
    """Answers of all policies and the judge's verdicts on every pair of them, in both orders.

    Args:
        policies: name -> ``(prompts, seed) -> texts``; the first one is "A" wherever it takes part.
        judge: as in ``data.judges``: comparisons in, ``"first"``, ``"second"``, ``"tie"`` or None out. A scorer of
            texts becomes one by ``judges.from_scorer``.
        judge_name, settings: written into the file, with everything else that decides the result (decoding settings,
            the models' versions): a file made under other settings is refused, not mixed in.
        path: JSONL file to append to and to resume from; None keeps everything in memory.
        batch_size: comparisons handed to the judge at once, and so the most that a stop can lose.
        ask_again: whether a resumed run asks again where the judge gave no verdict (an endpoint that was down).

    Returns:
        a row per pair of policies, prompt and seed: ``model_a, model_b, prompt_id, prompt, seed, text_a, text_b``;
        ``a_first, b_first``: what the judge said in each order, as the outcome of A (1, .5, 0, NaN for no verdict);
        ``outcome``: both orders together (a judge that contradicts itself says tie; NaN where an order is
        missing); ``status``: "agreed", "contradicted" or "missing"; ``answer``: what came instead of a verdict.
        Two policies that wrote the same text tie without being asked.

    Raises:
        ValueError: fewer than two policies, a repeated prompt, a policy or judge that returns another number of
            answers than it was asked for, or a file of another run.
    """
    _check(policies, prompts, seeds)
    log = _Log(path, [list(policies), list(prompts), list(seeds), judge_name, settings or {}])
    texts = {
        (name, seed): _texts(log, name, policy, prompts, seed) for name, policy in policies.items() for seed in seeds
    }
    rows = [
        {"model_a": a, "model_b": b, "prompt_id": prompt_id(prompt), "prompt": prompt, "seed": seed}
        | {"text_a": texts[a, seed][k], "text_b": texts[b, seed][k]}
        for a, b in itertools.combinations(policies, 2)
        for seed in seeds
        for k, prompt in enumerate(prompts)
    ]
    table = pd.DataFrame(rows)
    _judge(log, judge, table, batch_size, ask_again)
    return _with_outcomes(table, log)


def _check(policies: dict, prompts: Sequence[str], seeds: Sequence[int]) -> None:
    if len(policies) < 2 or not len(prompts) or not len(seeds):
        raise ValueError(
            f"{len(policies)} policies, {len(prompts)} prompts, {len(seeds)} seeds; a comparison needs two policies "
            "or more, one prompt and one seed"
        )
    repeated = [prompt for k, prompt in enumerate(prompts) if prompt in prompts[:k]]
    if repeated:
        raise ValueError(f"the prompt {repeated[0]!r} stands there twice; give each once, and more seeds instead")


class _Log:
    """Texts and verdicts by key, in memory and, given a path, appended line by line; a torn line is as none."""

    def __init__(self, path: str | Path | None, run: list):
        self.file = AnswerCache(path) if path is not None else None
        self.rows = self.file.answers if self.file else {}
        header = {"key": "run", "run": config_hash({"run": run})}
        found = self.rows.get("run", header)
        if found != header:
            raise ValueError(
                f"{path} was made with other policies, prompts, seeds, judge or settings; give another path"
            )
        if "run" not in self.rows:
            self.add(header)

    def add(self, row: dict) -> None:
        if self.file:
            self.file.add(row)
        else:
            self.rows[row["key"]] = row


def _texts(log: _Log, name: str, policy: Policy, prompts: Sequence[str], seed: int) -> list[str]:
    """One policy's answers for a seed: read, or generated all together (a batch shares its random numbers)."""
    key = json.dumps(["texts", name, seed])
    if key not in log.rows:
        answers = [_storable(text) for text in policy(list(prompts), seed)]
        if len(answers) != len(prompts):
            raise ValueError(
                f"policy {name!r} gave {len(answers)} texts for {len(prompts)} prompts; one each is needed"
            )
        log.add({"key": key, "texts": answers})
    return log.rows[key]["texts"]


def _storable(text) -> str:
    """The text without lone surrogates (half an emoji, from a tokenizer that cut one), which no file can hold."""
    return str(text).encode("utf-8", "replace").decode("utf-8")


def _key(row, order: str) -> str:
    return json.dumps(["verdict", row.model_a, row.model_b, row.seed, row.prompt_id, order])


def _judge(log: _Log, judge: Judge, table: pd.DataFrame, batch_size: int, ask_again: bool) -> None:
    """Ask for every verdict that is not there yet, in both orders, in batches."""
    asked = {}
    for row in table.itertuples():
        one = Comparison(row.prompt, row.text_a, row.text_b)
        if row.text_a != row.text_b:
            asked |= {_key(row, "a first"): one, _key(row, "b first"): one.swapped()}
    done = {key for key, row in log.rows.items() if not (ask_again and row.get("verdict", "") is None)}
    fresh = [(key, one) for key, one in asked.items() if key not in done]
    for start in range(0, len(fresh), batch_size):
        batch = fresh[start : start + batch_size]
        answers = list(judge([one for _, one in batch]))
        if len(answers) != len(batch):
            raise ValueError(f"the judge gave {len(answers)} answers to {len(batch)} comparisons; one each is needed")
        for (key, _), answer in zip(batch, answers, strict=True):
            verdict = answer if isinstance(answer, str) and answer in VERDICTS else None
            log.add({"key": key, "verdict": verdict} | ({} if verdict else {"answer": repr(answer)[:200]}))


def _with_outcomes(table: pd.DataFrame, log: _Log) -> pd.DataFrame:
    said = {"a_first": [], "b_first": []}
    answers = []
    for row in table.itertuples():
        same = {"verdict": "tie"} if row.text_a == row.text_b else None
        one, two = (same or log.rows[_key(row, order)] for order in ("a first", "b first"))
        said["a_first"].append(_OUTCOME.get(one["verdict"], np.nan))
        said["b_first"].append(1 - _OUTCOME.get(two["verdict"], np.nan))
        answers.append(next((x["answer"] for x in (one, two) if x["verdict"] is None), None))
    table = table.assign(**said)
    table["outcome"] = stats.swap(table["a_first"], table["b_first"]).outcomes
    missing = table["outcome"].isna()
    agreed = table["a_first"] == table["b_first"]
    table["status"] = np.where(missing, "missing", np.where(agreed, "agreed", "contradicted"))
    return table.assign(answer=pd.Series(answers, dtype=object))


def summary(table: pd.DataFrame, *, seed: int = 0) -> pd.DataFrame:
    """One row per pair of policies: rates with intervals, what the judge's order did, lengths, and what is missing.

    Returns:
        indexed by (model_a, model_b): ``n`` comparisons, ``judged`` of them; ``rate`` of A with ``low, high`` (95 %,
        whole prompts drawn again), ``rate_without_ties``, ``wins, ties, losses``, ``p_value`` (sign test,
        a prompt counts once);
        ``contradicted``, ``missing``; ``lowest, highest``: the rate if every missing comparison had been lost, or
        won; ``consistency`` and ``first_shown`` (share of decided verdicts that went to what was shown first);
        ``words_a, words_b`` and ``longer_wins`` (share of decided comparisons won by the longer text).
        A pair without any verdict has NaN rates.
    """
    rows = {}
    for pair, part in table.groupby(["model_a", "model_b"], sort=False):
        judged, order = part[part["outcome"].notna()], stats.swap(part["a_first"], part["b_first"])
        row = {"n": len(part), "judged": len(judged)}
        if len(judged):
            won = stats.win_rate(judged["outcome"], judged["prompt_id"], seed=seed)
            row |= {"rate": won.rate, "low": won.low, "high": won.high, "rate_without_ties": won.rate_without_ties}
            row |= {"wins": won.wins, "ties": won.ties, "losses": won.losses, "p_value": won.p_value}
        gained = judged["outcome"].sum()
        row |= {"contradicted": order.contradicted, "missing": order.missing}
        row |= {"lowest": gained / len(part), "highest": (gained + order.missing) / len(part)}
        decided = order.first + order.second
        row |= {"consistency": order.consistency, "first_shown": order.first / decided if decided else np.nan}
        words = [part[f"text_{side}"].str.split().str.len() for side in "ab"]
        longer = np.sign(words[0] - words[1])[part["outcome"].isin((0.0, 1.0))]
        outcome = part["outcome"][longer.index][longer != 0]
        agree = (outcome == (longer[longer != 0] > 0)).mean() if len(outcome) else np.nan
        rows[pair] = row | {"words_a": words[0].mean(), "words_b": words[1].mean(), "longer_wins": agree}
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis(["model_a", "model_b"])


def missing(table: pd.DataFrame) -> pd.DataFrame:
    """The comparisons without a verdict, with ``answer``: what came instead."""
    columns = ["model_a", "model_b", "seed", "prompt_id", "prompt", "answer"]
    return table.loc[table["status"] == "missing", columns].reset_index(drop=True)
