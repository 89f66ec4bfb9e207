"""Notebook 12's runs on SmolLM2, one seed: DPO, and RLOO on a reward model fitted on the same pairs.

Both train LoRA of one rank on the same reference; the reward model is TRL's (``trl_reward``), and so is RLOO
(``trl_rloo``); DPO takes the fast step of notebook 16, which gives TRL's numbers in less time.
"""

import tempfile

from dpo_tutorial.data import pairs, scoring
from dpo_tutorial.training import frontier, models, records, reward_model, sampling, sweep, trl_bridge
from dpo_tutorial.training.contest import Meter, judged

SHARED = {
    name: value for name, value in records.SENTIMENT_RUN.items() if name not in ("epochs", "eval_steps", "step")
}
DPO = {epochs: SHARED | {"arm": "dpo", "epochs": epochs, "step": "fast"} for epochs in (0.25, 1, 2)}
DPO_BY_TRL = DPO[1] | {"step": "trl"}  # the same run by TRL's own step, for its seconds
ROLLOUTS = {"iterations": 15, "samples": 32, "group": 4, "passes": 2, "minibatch": 32}
RLOO = {
    rate: SHARED
    | ROLLOUTS
    | {"arm": "rloo", "learning_rate": rate, "judge_rate": 1e-3, "judge_epochs": 2, "measure_at": [8]}
    for rate in (1e-3, 3e-3)
}


def measure(policy, tokenizer, config: dict) -> dict:
    """True reward and KL of fresh samples on held-out prompts, with intervals; words and the share that ended."""
    drawn = sweep.fresh(policy, tokenizer, config, samples=config["samples_per_prompt"], seed=config["seed"])
    found = {name: frontier.interval(drawn[name], drawn["prompt"]) for name in ("reward", "kl", "words")}
    ended = drawn["completion_ids"].str[-1] == tokenizer.eos_token_id
    return found | {"ended": round(float(ended.mean()), 3)}


def before(config: dict) -> dict:
    """The reference's reward on the same prompts, by the same number of samples."""
    model, tokenizer = models.load_sft()
    prompts = list(sweep.heldout_pairs(config)["prompt"].drop_duplicates())
    options = {"n": config["samples_per_prompt"], "max_new_tokens": config["max_new_tokens"], "seed": config["seed"]}
    texts = sampling.texts(tokenizer, sampling.sample(model, tokenizer, prompts, **options))
    flat = [(prompt, text) for prompt, row in zip(prompts, texts, strict=True) for text in row]
    rewards = scoring.load_classifier().scores([prompt + text for prompt, text in flat])
    return {"reward": frontier.interval(rewards, [prompt for prompt, _ in flat])}


def dpo(config: dict, meter: Meter):
    """(policy, tokenizer, further results)."""
    with meter.stage("train"):
        trainer = sweep.train(config, evaluate=False)
    return trainer.model, trainer.processing_class, {}


def fit_judge(model, tokenizer, train, config: dict):
    """TRL's reward model on the pairs ``train``."""
    from dpo_tutorial.training import trl_reward

    options = {name: config[name] for name in ("batch_size", "rank", "seed")}
    options |= {"learning_rate": config["judge_rate"], "epochs": config["judge_epochs"]}
    with tempfile.TemporaryDirectory() as folder:
        return trl_reward.train_reward_model(model, tokenizer, train, output_dir=folder, **options)


def rloo(config: dict, meter: Meter):
    """(policy, tokenizer, further results): the reward model first, then RLOO on its rewards."""
    from dpo_tutorial.training import trl_reward, trl_rloo

    trl_bridge.quiet_libraries()
    model, tokenizer = models.load_sft()
    train = pairs.load(scoring.DATA_DIR / "pairs" / "sentiment_train.jsonl").head(config["pairs"])
    with meter.stage("reward model"):
        judge = fit_judge(model, tokenizer, train, config)
    parts = {"train": train, "heldout": sweep.heldout_pairs(config)}
    accuracy = {name: round(trl_reward.accuracy(judge, tokenizer, part), 4) for name, part in parts.items()}
    rows, curve = [], []
    policy = models.add_lora(model, rank=config["rank"], seed=config["seed"])

    def proxy(prompts, texts, completion_ids):
        return reward_model.scores(judge, tokenizer, list(prompts), list(completion_ids)).numpy()

    def watch(iteration):
        if iteration + 1 in config["measure_at"]:
            with meter.stage("measuring"):
                curve.append({"at": iteration + 1} | measure(policy.eval(), tokenizer, config))
            policy.train()

    options = {name: config[name] for name in ("beta", "learning_rate", "seed", "max_new_tokens", *ROLLOUTS)} | {
        "on_iteration": watch
    }
    score = judged(meter, proxy, rows)
    with tempfile.TemporaryDirectory() as folder, meter.stage("train"):
        log = trl_rloo.train_rloo(policy, tokenizer, list(train["prompt"]), score, folder, **options)
    for row, logged in zip(rows, log, strict=False):  # the log ends with a summary
        row["kl"] = logged["kl"] * logged["completions/mean_length"]
    rollouts = [{name: round(value, 4) for name, value in row.items()} for row in rows]
    return policy, tokenizer, {"judge_accuracy": accuracy, "rollouts": rollouts, "curve": curve}


def run(config: dict) -> dict:
    """One run as numbers: ``before``, ``final``, ``spent`` by stage, and for RLOO the reward model and the way."""
    meter = Meter(frozen_embedding=True)
    policy, tokenizer, results = {"dpo": dpo, "rloo": rloo}[config["arm"]](config, meter)
    with meter.stage("measuring"):
        results["final"] = measure(policy.eval(), tokenizer, config)
    return results | {"before": before(config), "spent": meter.numbers()}
