"""The recorded sweep over beta on SmolLM2: its configuration, and what is measured of each policy.

Notebook 11 trains one of them again; the adapters of one seed ship (data/beta_adapters, :func:`load_policy`).
"""

import functools
import itertools
import math

import pandas as pd

from dpo_tutorial.data import pairs, scoring
from dpo_tutorial.training import encode, frontier, logps, models, records, sampling

# Notebook 09's run with a third of the pairs, half the batch and half the rank, by the fast step.
SWEEP_RUN = records.SENTIMENT_RUN | {
    "pairs": 64,
    "batch_size": 4,
    "rank": 4,
    "samples_per_prompt": 1,
    "loss_pairs": 32,
    "eval_steps": 32,
    "capabilities": "48 reviews, 16 instructions",
}
SWEEP_BETAS = (0.05, 0.1, 0.2, 0.5)
SWEEP_SEEDS = (0, 1, 2)
ADAPTERS = scoring.DATA_DIR / "beta_adapters"
# The record of notebook 15 that holds the reference's answers to the regression suite.
REFERENCE_SUITE = {"question": "capabilities", "samples": 4, "max_new_tokens": 32, "seed": 0, "adapter": "sft"}

# Written for this course: questions whose short answers any instruction-tuned model should find likely.
INSTRUCTIONS = [
    ("What is the capital of France?", "The capital of France is Paris."),
    ("Name the colours of a traffic light.", "The colours of a traffic light are red, yellow and green."),
    ("How many days are there in a week?", "There are seven days in a week."),
    ("What is 2 plus 3?", "2 plus 3 equals 5."),
    ("What do bees make?", "Bees make honey."),
    ("Which planet do we live on?", "We live on planet Earth."),
    ("What is frozen water called?", "Frozen water is called ice."),
    ("Give the opposite of the word hot.", "The opposite of hot is cold."),
    ("In which direction does the sun rise?", "The sun rises in the east."),
    ("List three fruits.", "Three fruits are apples, bananas and oranges."),
    ("How many legs does a spider have?", "A spider has eight legs."),
    ("What is the plural of child?", "The plural of child is children."),
    ("Which gas do people need to breathe?", "People need oxygen to breathe."),
    ("How many minutes are in an hour?", "There are 60 minutes in an hour."),
    ("What do you use to write on a blackboard?", "You use chalk to write on a blackboard."),
    ("Translate good morning into Spanish.", "Good morning in Spanish is buenos días."),
]
REVIEW_WORDS = 40


def _perplexity(model, tokenizer, rows: list[tuple[list[int], list[int]]]) -> float:
    """exp of the mean negative log-probability per completion token, over all rows together."""
    prompt_ids, completion_ids = (list(part) for part in zip(*rows, strict=True))
    total = logps.sample_logps(model, prompt_ids, completion_ids, pad_token_id=tokenizer.pad_token_id).sum().item()
    return math.exp(-total / sum(map(len, completion_ids)))


def capabilities(model, tokenizer) -> dict[str, float]:
    """Perplexity on held-out reviews (the first words of 48, prompt of five words not scored) and on instructions."""
    reviews = []
    for text in scoring.reviews("prompts_heldout", "imdb")["text"].head(48):
        words = text.split()[:REVIEW_WORDS]
        ids, start = encode.text_ids(tokenizer, " ".join(words)), len(encode.text_ids(tokenizer, " ".join(words[:5])))
        reviews.append((ids[:start], ids[start:]))
    answers = []
    for question, answer in INSTRUCTIONS:
        prompt = [{"role": "user", "content": question}]
        start = encode.text_ids(tokenizer, prompt)
        full = encode.text_ids(tokenizer, prompt, [{"role": "assistant", "content": answer}])
        answers.append((start, full[len(start) :]))
    found = {"reviews": reviews, "instructions": answers}
    return {f"perplexity_{name}": round(_perplexity(model, tokenizer, rows), 3) for name, rows in found.items()}


def heldout_pairs(config: dict) -> pd.DataFrame:
    return pairs.load(scoring.DATA_DIR / "pairs" / "sentiment_heldout.jsonl").head(config["heldout_pairs"])


def fresh(model, tokenizer, config: dict, *, samples: int, seed: int, prompts: int | None = None) -> pd.DataFrame:
    """Samples of the policy on held-out prompts with ``reward`` and ``kl`` (log pi - log pi_ref, adapter off)."""
    texts = list(heldout_pairs(config)["prompt"].drop_duplicates())[:prompts]
    options = {"n": samples, "max_new_tokens": config["max_new_tokens"], "seed": seed}
    drawn = sampling.rollouts(model, tokenizer, texts, **options)
    drawn["reward"] = scoring.load_classifier().scores(list(drawn["prompt"] + drawn["text"]))
    drawn["kl"] = drawn["policy_logps"] - drawn["ref_logps"]
    drawn["words"] = drawn["text"].str.split().str.len()
    return drawn


def train(config: dict, *, evaluate: bool = True):
    """Train one cell of the sweep as notebook 09 does; returns TRL's trainer.

    Args:
        config: ``step`` is "fast" (notebook 16's) or "trl", TRL's own.
        evaluate: also measure loss and rewards of ``loss_pairs`` held-out pairs every ``eval_steps`` steps; the
            policy is the same without.
    """
    from dpo_tutorial.training import trl_bridge
    from dpo_tutorial.training.trl_fast import DPOTrainer, FastDPOTrainer

    trl_bridge.quiet_libraries()
    made = {"fast": functools.partial(FastDPOTrainer, full_metrics=False), "trl": DPOTrainer}[config["step"]]
    model, tokenizer = models.load_sft()
    frame = pairs.load(scoring.DATA_DIR / "pairs" / "sentiment_train.jsonl").head(config["pairs"])
    settings = {key: config[key] for key in records.DPO_SETTINGS if evaluate or key != "eval_steps"}
    heldout = trl_bridge.to_dataset(heldout_pairs(config).head(config["loss_pairs"])) if evaluate else None
    trainer = made(
        model=model,
        args=trl_bridge.dpo_config(
            f"runs/nb11_{config['beta']}_{config['seed']}", **settings, eval_strategy="steps" if evaluate else "no"
        ),
        train_dataset=trl_bridge.to_dataset(frame),
        eval_dataset=heldout,
        processing_class=tokenizer,
        peft_config=models.lora_config(rank=config["rank"]),
    )
    trl_bridge.train(trainer)
    return trainer


def measure(model, tokenizer, config: dict, *, drawn: pd.DataFrame | None = None) -> dict:
    """Reward and KL with intervals, words, and perplexities; ``drawn`` are the samples, else they are made here."""
    if drawn is None:
        drawn = fresh(model, tokenizer, config, samples=config["samples_per_prompt"], seed=config["seed"])
    found = {name: frontier.interval(drawn[name], drawn["prompt"]) for name in ("reward", "kl")}
    found["words"] = round(float(drawn["words"].mean()), 2)
    return found | capabilities(model, tokenizer)


def recorded() -> tuple[dict[float, list[dict]], dict]:
    """(results of the recorded runs per beta, a seed each; results of the untrained reference).

    ``suite`` of both holds p of the regression suite's items with options; ``final["suite"]`` is its mean.
    """

    def results(beta, seed):
        return records.load("nb11_smollm2", SWEEP_RUN | {"beta": beta, "seed": seed})["results"]

    runs = {beta: [results(beta, seed) for seed in SWEEP_SEEDS] for beta in SWEEP_BETAS}
    reference, scores = results(None, 0), records.load("nb15", REFERENCE_SUITE)["results"]["p"]
    reference["suite"] = {item: scores[item] for item in runs[SWEEP_BETAS[0]][0]["suite"]}
    for run in itertools.chain([reference], *runs.values()):
        run["final"]["suite"] = sum(run["suite"].values()) / len(run["suite"])
    return runs, reference


def load_policy(beta: float, **options):
    """The reference with the shipped adapter of ``beta`` on it, and the tokenizer."""
    model, tokenizer = models.load_sft(**options)
    return models.load_adapter(model, ADAPTERS / f"beta_{beta:g}"), tokenizer
