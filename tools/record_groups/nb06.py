"""Notebook 06: what the lab LM learns from pairs sampled at a temperature, as many pairs at each (20 s a run)."""

from dpo_tutorial.data import construct, scoring

SEEDS = (0, 1, 2)
LAB = {
    "model": "lab_lm",
    "prompts": 320,
    "prompt_words": 5,
    "n": 4,
    "max_new_tokens": 40,
    "policy": "widest",
    "pairs": 240,
    "beta": 0.1,
    "learning_rate": 5e-4,
}
TEMPERATURES = (0.1, 0.4, 1.0, 2.0)


def runs() -> list[dict]:
    return [dict(LAB, temperature=t, seed=seed) for seed in SEEDS for t in TEMPERATURES]


def run(config: dict) -> dict:
    """Sample, score, pair; then train on the first ``pairs`` pairs and measure. Numbers only."""
    from dpo_tutorial.training import lab, models, sampling

    model, tokenizer = models.load(config["model"], device="cpu")

    def sample(prompts, draw):
        ids = sampling.sample(
            model, tokenizer, prompts, n=draw.n, max_new_tokens=config["max_new_tokens"],
            temperature=draw.temperature, seed=draw.seed,
        )  # fmt: skip
        return [[construct.whole_sentences(text) for text in row] for row in sampling.texts(tokenizer, ids)]

    prompts = construct.review_prompts("prompts_train", config["prompts"], words=config["prompt_words"])
    plan = [construct.Draw(config["model"], config["temperature"], config["n"], config["seed"])]
    candidates = construct.sample_plan(prompts, plan, sample=sample)
    classifier = scoring.load_classifier()
    candidates["score"] = classifier.scores(list(candidates["prompt"] + candidates["response"]))
    results = construct.candidate_facts(candidates, classifier.vectorizer.vocabulary_)
    made = construct.pairs_from_candidates(candidates, policy=config["policy"], source="nb06")
    results["pairs_made"] = len(made)
    training = dict(lab.LAB_RUN, pairs=config["pairs"], seed=config["seed"])
    training |= {name: config[name] for name in ("beta", "learning_rate")}
    policy, reference, tokenizer, _ = lab.run(training, train=made.head(config["pairs"]))
    measured = lab.measure(policy, reference, tokenizer, prompts=160, seed=config["seed"])
    results |= {name: getattr(measured, name) for name in ("reward", "kl", "words", "ended")}
    results["trained_on"] = min(len(made), config["pairs"])
    return {name: round(value, 4) for name, value in results.items()}
