"""Notebook 14: PandaLM's human votes as pairs, and what SmolLM2's implicit reward makes of them.

Needs DPO_TUTORIAL_DATA; numbers only enter the records, no text. The untrained model's log-probabilities are computed
once and are the reference of the three training runs, whose held-out instructions do not overlap.
"""

import functools
import shutil

import numpy as np
import pandas as pd
import torch

from dpo_tutorial.data import external, formats
from dpo_tutorial.training import encode, fast_step, models, records, trl_bridge
from dpo_tutorial.training.trl_fast import FastDPOTrainer

PANDALM = {"source": "pandalm", "model": "smollm2", "prompt_tokens": 160, "response_tokens": 96}
UNTRAINED = PANDALM | {"question": "untrained log-probabilities"}
TRAINED = PANDALM | {
    "question": "implicit reward",
    "folds": 5,
    "pairs_per_instruction": 3,
    "beta": 0.1,
    "learning_rate": 2e-4,
    "rank": 16,
    "epochs": 1,
    "batch_size": 8,
    "seed": 0,
}


def runs() -> list[dict]:
    return [UNTRAINED, *(TRAINED | {"split": split} for split in range(3))]


def run(config: dict) -> dict:
    return untrained(config) if config["question"] == UNTRAINED["question"] else trained(config)


@functools.lru_cache(maxsize=1)
def voted_pairs() -> pd.DataFrame:
    """PandaLM's rows with a majority, as pairs; ``instruction`` numbers the instructions, whatever their input."""
    kept, _ = formats.from_votes(external.load("pandalm", network=False))
    return kept.assign(instruction=pd.factorize(kept["prompt"].str.split("\n\n").str[0])[0])


def encoded(tokenizer, config: dict) -> tuple[pd.DataFrame, list[dict]]:
    """The pairs whose prompt is short enough, and their ids, responses cut; ``tokens_*`` count before the cut."""
    frame, rows = voted_pairs(), []
    for prompt, chosen, rejected in zip(frame["prompt"], frame["chosen"], frame["rejected"], strict=True):
        sides = [[{"role": "assistant", "content": text}] for text in (chosen, rejected)]
        rows.append(encode.encode_pair(tokenizer, [{"role": "user", "content": prompt}], *sides))
    for side in ("chosen", "rejected"):
        frame = frame.assign(**{f"tokens_{side}": [len(row[f"{side}_ids"]) for row in rows]})
    short = np.array([len(row["prompt_ids"]) <= config["prompt_tokens"] for row in rows])
    cut = config["response_tokens"]
    rows = [
        {name: ids if name == "prompt_ids" else ids[:cut] for name, ids in row.items()}
        for row, keep in zip(rows, short, strict=True)
        if keep
    ]
    return frame[short].reset_index(drop=True), rows


@torch.no_grad()
def token_logps(model, rows: list[dict], *, pad_token_id: int) -> list[tuple[list[float], list[float]]]:
    """Per pair the log-probabilities of the chosen's and of the rejected's tokens, by the fast step."""
    found: list = [None] * len(rows)
    order = sorted(range(len(rows)), key=lambda i: sum(len(ids) for ids in rows[i].values()))
    for start in range(0, len(order), 8):
        picked = order[start : start + 8]
        batch = encode.collate([rows[i] for i in picked], pad_token_id=pad_token_id)
        labels = batch["input_ids"].masked_fill(batch["completion_mask"] == 0, -100)
        scores = fast_step.pair_scores(model, batch["input_ids"], batch["attention_mask"], labels, metrics=False)
        logps = [row[mask].tolist() for row, mask in zip(scores["log_probs"], scores["label_mask"], strict=True)]
        for i, one, two in zip(picked, logps[: len(picked)], logps[len(picked) :], strict=True):
            found[i] = (one, two)
    return found


def echo(prompt: str, response: str) -> float:
    """Share of the response's words that stand in the prompt.

    >>> echo("Name a colour of the sky.", "the sky is blue")
    0.5
    """
    known = set(words(prompt))
    mine = words(response)
    return sum(word in known for word in mine) / len(mine) if mine else 0.0


def words(text: str) -> list[str]:
    return [word.strip(".,;:!?\"'()").lower() for word in text.split()]


def repeated(text: str) -> float:
    """Share of the words that occurred before in the same text.

    >>> repeated("no no yes no")
    0.5
    """
    mine = words(text)
    return 1 - len(set(mine)) / len(mine) if mine else 0.0


def untrained(config: dict) -> dict:
    """Columns over the pairs: votes, lengths, log-probabilities (sum, first token, end), words copied or repeated."""
    model, tokenizer = models.load(config["model"], device="cpu", dtype=torch.float32)
    frame, rows = encoded(tokenizer, config)
    logps = token_logps(model, rows, pad_token_id=tokenizer.pad_token_id)
    columns = {name: frame[name].tolist() for name in ("idx", "instruction", "votes_chosen", "votes_rejected")}
    columns["prompt_tokens"] = [len(row["prompt_ids"]) for row in rows]
    for k, side in enumerate(("chosen", "rejected")):
        of_side = [pair[k] for pair in logps]
        ended = [tokenizer.eos_token_id in row[f"{side}_ids"] for row in rows]
        columns |= {
            f"tokens_{side}": frame[f"tokens_{side}"].tolist(),
            f"words_{side}": frame[side].str.split().str.len().tolist(),
            f"kept_{side}": [len(one) for one in of_side],
            f"logps_{side}": [round(sum(one), 3) for one in of_side],
            f"first_{side}": [round(one[0], 3) for one in of_side],
            f"end_{side}": [round(sum(one[-2:]), 3) if e else None for one, e in zip(of_side, ended, strict=True)],
            f"echo_{side}": [round(echo(p, r), 3) for p, r in zip(frame["prompt"], frame[side], strict=True)],
            f"repeated_{side}": [round(repeated(text), 3) for text in frame[side]],
        }
    return {"pairs_with_majority": len(voted_pairs()), "columns": columns}


def heldout_instructions(instructions: np.ndarray, config: dict) -> np.ndarray:
    """The instructions of one fold, drawn by the seed; the folds of other splits share none of them."""
    names = np.random.default_rng(config["seed"]).permutation(np.unique(instructions))
    return names[config["split"] :: config["folds"]]


class PreparedTrainer(FastDPOTrainer):
    """For rows that are token ids already and bring their reference's log-probabilities."""

    def _prepare_dataset(self, dataset, *args):
        return dataset

    def _precompute_ref_logps(self, dataset, *args):
        return dataset


def trained(config: dict) -> dict:
    """Train on the other instructions' pairs; margins of the held-out pairs, beside a bag of words on the same."""
    trl_bridge.quiet_libraries()
    before = records.load("nb14", UNTRAINED)["results"]["columns"]
    model, tokenizer = models.load(config["model"], device="cpu", dtype=torch.float32)
    frame, rows = encoded(tokenizer, config)
    frame["row"] = np.arange(len(frame))
    heldout = frame["instruction"].isin(heldout_instructions(frame["instruction"].to_numpy(), config))
    order = np.random.default_rng(config["seed"]).permutation(frame.index[~heldout])
    train = frame.loc[order].groupby("instruction").head(config["pairs_per_instruction"])
    policy, curves = fit(model, tokenizer, [rows[i] for i in train["row"]], train["row"].tolist(), before, config)
    test = frame[heldout]
    after = token_logps(policy, [rows[i] for i in test["row"]], pad_token_id=tokenizer.pad_token_id)
    results = {"train_pairs": len(train), "train_instructions": int(train["instruction"].nunique()), "curves": curves}
    results["idx"] = test["idx"].tolist()
    for k, side in enumerate(("chosen", "rejected")):
        ref = [before[f"logps_{side}"][i] for i in test["row"]]
        results[f"logratio_{side}"] = [round(sum(a[k]) - b, 4) for a, b in zip(after, ref, strict=True)]
    return results | {"bag_of_words": bag_of_words(train, test)}


def fit(model, tokenizer, rows: list[dict], numbers: list[int], before: dict, config: dict) -> tuple:
    """The trained model and its curves."""
    import datasets

    columns = {name: [row[name] for row in rows] for name in ("prompt_ids", "chosen_ids", "rejected_ids")}
    columns |= {f"ref_{side}_logps": [before[f"logps_{side}"][i] for i in numbers] for side in ("chosen", "rejected")}
    folder = f"runs/nb14_{config['split']}"
    settings = {name: config[name] for name in ("beta", "learning_rate", "epochs", "batch_size", "seed")}
    trainer = PreparedTrainer(
        model=model,
        args=trl_bridge.dpo_config(folder, **settings),
        train_dataset=datasets.Dataset.from_dict(columns),
        processing_class=tokenizer,
        peft_config=models.lora_config(rank=config["rank"]),
        full_metrics=False,
    )
    trl_bridge.train(trainer)
    if trainer.fast_step_reason:
        raise RuntimeError(f"the fast step was not used: {trainer.fast_step_reason}")
    shutil.rmtree(folder, ignore_errors=True)
    names = ("loss", "rewards/margins")
    curves = {name: [round(value, 4) for _, value in trl_bridge.history(trainer, name)] for name in names}
    return trainer.model.base_model.model, curves


def bag_of_words(train: pd.DataFrame, test: pd.DataFrame) -> list[float]:
    """Margins of the test pairs by a logistic regression on the difference of their TF-IDF vectors, no intercept."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression

    vectorizer = TfidfVectorizer(sublinear_tf=True, min_df=2, norm=None)
    vectorizer.fit([*train["chosen"], *train["rejected"]])
    gaps = [vectorizer.transform(part["chosen"]) - vectorizer.transform(part["rejected"]) for part in (train, test)]
    signs = np.where(np.arange(len(train)) % 2, 1, -1)
    model = LogisticRegression(C=0.01, fit_intercept=False, max_iter=2000)
    model.fit(gaps[0].multiply(signs[:, None]).tocsr(), signs)
    return [round(float(value), 4) for value in model.decision_function(gaps[1])]
