"""Online DPO on the lab LM: rounds of sample, judge, pair, train (Guo et al. 2024, https://arxiv.org/abs/2402.04792).

With one round it is offline DPO. Who writes the responses (the policy as it is now, or the start) and which policy
the loss compares with (the start, or the policy at the round's beginning) are two knobs.
"""

from collections.abc import Callable

import numpy as np
import pandas as pd

from dpo_tutorial.data import construct, scoring
from dpo_tutorial.training import encode, lab, loop, models, sampling

ONLINE_RUN = {
    "model": "lab_lm",
    "labels": 480,
    "rounds": 6,
    "writer": "policy",
    "reference": "fixed",
    "bonus": 0.0,
    "beta": 0.1,
    "learning_rate": 5e-4,
    "epochs": 1,
    "batch_size": 8,
    "warmup_steps": 2,
    "seed": 0,
    "measure_at": [2, 4],
    "eval_prompts": 160,
}
CHOICES = {"writer": ("policy", "start"), "reference": ("fixed", "moved")}


def judge(prompts: list[str], texts: list[str], *, bonus: float) -> np.ndarray:
    """What the judge thinks of each response, (N,): P(positive) plus ``bonus`` per word; 0 is the true reward."""
    words = np.array([len(text.split()) for text in texts])
    return scoring.load_classifier().scores([p + t for p, t in zip(prompts, texts, strict=True)]) + bonus * words


def candidates(writer, tokenizer, prompts: pd.DataFrame, *, bonus: float, seed: int) -> pd.DataFrame:
    """Two responses per prompt from ``writer``, judged: ``sample_plan``'s columns, ``ids, score, true_score``.

    Nothing is cut to whole sentences and no EOS is added: what is trained on is what was written, token by token.
    """
    drawn = sampling.sample(
        writer, tokenizer, list(prompts["prompt"]), n=2, max_new_tokens=lab.MAX_NEW_TOKENS, seed=seed
    )
    plan = [construct.Draw("writer", 1.0, 2, seed)]
    frame = construct.sample_plan(prompts, plan, sample=lambda *_: sampling.texts(tokenizer, drawn))
    frame["ids"] = [ids for per_prompt in drawn for ids in per_prompt]
    both = list(frame["prompt"]), list(frame["response"])
    return frame.assign(score=judge(*both, bonus=bonus), true_score=judge(*both, bonus=0.0))


def pairs_of(judged: pd.DataFrame) -> pd.DataFrame:
    """One pair per prompt, the judge's favourite first; two equal texts make none."""
    return construct.pairs_from_candidates(judged, policy="widest", source="online")


def examples_of(tokenizer, pairs: pd.DataFrame) -> list[dict]:
    """The pairs as ``loop.train_dpo`` takes them: the very tokens that were sampled."""
    columns = zip(pairs["prompt"], pairs["ids_chosen"], pairs["ids_rejected"], strict=True)
    return [
        {"prompt_ids": encode.text_ids(tokenizer, prompt), "chosen_ids": chosen, "rejected_ids": rejected}
        for prompt, chosen, rejected in columns
    ]


def round_seed(seed: int, number: int) -> int:
    """A seed of its own for every round of every run."""
    return 1000 * (seed + 1) + number


def train_round(policy, reference, tokenizer, writer, prompts: pd.DataFrame, config: dict, *, number: int) -> dict:
    """One round: ``writer`` samples, the judge labels, ``policy`` is trained in place. Returns the round's row.

    The row: ``labels``; the tokens ``generated``, ``forward`` (the reference reads the pairs), ``trained`` (forward
    and backward); ``agreement`` of the judge with the true reward; ``words`` of the texts; before training on them,
    the mean log pi / pi_ref of their tokens under the policy, ``logratio``, and the rates that the loss shows.
    """
    seed, pad = round_seed(config["seed"], number), {"pad_token_id": tokenizer.pad_token_id}
    judged = candidates(writer, tokenizer, prompts, bonus=config["bonus"], seed=seed)
    pairs = pairs_of(judged)
    examples = examples_of(tokenizer, pairs)
    ref_logps = loop.reference_logps(reference, examples, **pad)
    before = loop.reference_logps(policy, examples, **pad) - ref_logps
    order = loop.batch_order(len(examples), batch_size=config["batch_size"], epochs=config["epochs"], seed=seed)
    options = {name: config[name] for name in ("beta", "learning_rate", "warmup_steps")}
    loop.train_dpo(policy, examples, ref_logps, order=order, **options, **pad)
    read = sum(2 * len(e["prompt_ids"]) + len(e["chosen_ids"]) + len(e["rejected_ids"]) for e in examples)
    return {
        "labels": len(pairs),
        "generated": int(judged["ids"].str.len().sum()),
        "forward": read,
        "trained": read * config["epochs"],
        "agreement": float((pairs["true_score_chosen"] > pairs["true_score_rejected"]).mean()),
        "margin": float((pairs["true_score_chosen"] - pairs["true_score_rejected"]).mean()),
        "words": float(judged["response"].str.split().str.len().mean()),
        "logratio": float(before.mean()),
    }


def prompts_of(config: dict) -> list[pd.DataFrame]:
    """The training prompts of every round, shuffled by the run's seed; each prompt is used once."""
    prompts = construct.review_prompts("prompts_train", 800, words=5).sample(
        config["labels"], random_state=config["seed"]
    )
    return [
        prompts.iloc[rows].reset_index(drop=True)
        for rows in np.array_split(np.arange(len(prompts)), config["rounds"])
    ]


def run(config: dict, on_round: Callable[[int, object, dict], None] = lambda number, policy, row: None):
    """All rounds of a run: (policy, start, tokenizer, the rounds' rows).

    Args:
        config: as ``ONLINE_RUN``. ``writer`` is "policy" (on-policy pairs) or "start" (off-policy); ``reference``
            is "fixed" at the start or "moved" to the policy at each round's beginning; ``bonus`` is the judge's.
        on_round: called after each round with its number from 1, the policy and the row.
    """
    for name, accepted in CHOICES.items():
        if config[name] not in accepted:
            raise ValueError(f"{name} is {config[name]!r}; accepted are {', '.join(map(repr, accepted))}")
    policy, tokenizer = models.load(config["model"], device="cpu")
    start = reference = loop.frozen_copy(policy)
    rows = []
    for number, prompts in enumerate(prompts_of(config), 1):
        writer = policy if config["writer"] == "policy" else start
        rows.append(train_round(policy, reference, tokenizer, writer, prompts, config, number=number))
        on_round(number, policy, rows[-1])
        if config["reference"] == "moved":
            reference = loop.frozen_copy(policy)
    return policy, start, tokenizer, rows


def recorded_run(config: dict) -> dict:
    """A run as numbers: ``rounds`` (their rows) and ``curve``, the policy on held-out prompts after some rounds.

    Measured are the rounds of ``config["measure_at"]`` (0 is the start) and the last one, whose ``rewards`` and
    ``kls`` are given per held-out prompt too. ``kl`` is that to the start, whichever reference the loss had.
    """
    start, tokenizer = models.load(config["model"], device="cpu")
    curve, last = [], {}

    def measure(number, policy, row):
        if number in (*config["measure_at"], config["rounds"]):
            values, drawn = measured(policy, start, tokenizer, config)
            curve.append({"labels": number * config["labels"] // config["rounds"]} | values)
            last.update({f"{name}s": drawn[name].round(3).tolist() for name in ("reward", "kl")})

    measure(0, start, {})
    *_, rows = run(config, measure)
    return {"rounds": [{k: round(v, 4) for k, v in row.items()} for row in rows], "curve": curve} | last


def measured(policy, start, tokenizer, config: dict) -> tuple[dict, pd.DataFrame]:
    """Reward, KL to the start, words and share that ended by itself on fresh samples; and the samples."""
    found = lab.measure(policy, start, tokenizer, prompts=config["eval_prompts"], seed=config["seed"])
    values = {name: round(getattr(found, name), 4) for name in ("reward", "kl", "words", "ended")}
    return values, found.samples
