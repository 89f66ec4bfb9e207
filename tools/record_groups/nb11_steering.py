"""Decode-time beta against retraining on the lab LM, three seeds (a minute each); needs the policies of ``nb11``.

The policy of beta 0.1 is steered to every other beta of the grid; the policies trained there are the comparison.
So that DPO and SFT on the chosen can be compared at equal KL, the SFT policy is steered too.
"""

from record_groups import nb11
from safetensors.torch import load_model

from dpo_tutorial.data import scoring
from dpo_tutorial.training import frontier, lab, loop, models, steering
from dpo_tutorial.training.frontier import FRONTIER_RUN

TRAINED = 0.1
BETAS = (1, 0.5, 0.2, 0.1, 0.05)  # lambda 0.1, 0.2, 0.5, 1, 2
GRID = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.2, 1.4, 1.7, 2.0)
DISTANCE_PROMPTS = 80
SFT_STRENGTHS = (0.5, 1.0, 1.5)


def runs() -> list[dict]:
    found = [
        FRONTIER_RUN | {"seed": seed, "steered_to": list(BETAS), "distance_prompts": DISTANCE_PROMPTS}
        for seed in nb11.SEEDS
    ]
    return found + [
        FRONTIER_RUN | {"loss": "sft", "seed": seed, "strengths": list(SFT_STRENGTHS)} for seed in nb11.SEEDS
    ]


def policy_of(config: dict):
    """A policy of the grid: kept from its run, or trained again."""
    config = {key: config[key] for key in FRONTIER_RUN}
    if not nb11.policy_file(config).exists():
        return frontier.train(config)[0]
    policy, _ = models.load("lab_lm", device="cpu")
    load_model(policy, str(nb11.policy_file(config)))
    return policy.eval()


def steered_samples(policy, base, tokenizer, config: dict, lambdas: list[float]):
    """One response per held-out prompt and strength, with its reward."""
    prompts = list(lab.load_pairs("heldout", config["eval_prompts"])["prompt"])
    options = {"max_new_tokens": lab.MAX_NEW_TOKENS, "seed": config["seed"], "ref_model": base, "batch_rows": 160}
    drawn = steering.rollouts(policy, tokenizer, prompts, lambdas=lambdas, **options)
    drawn["reward"] = scoring.load_classifier().scores(list(drawn["prompt"] + drawn["text"]))
    return drawn


def run_sft(config: dict) -> dict:
    base, tokenizer = models.load("lab_lm", device="cpu")
    drawn = steered_samples(policy_of(config), loop.frozen_copy(base), tokenizer, config, config["strengths"])
    return {"strengths": [{"strength": s} | _numbers(drawn[drawn["strength"] == s]) for s in config["strengths"]]}


def run(config: dict) -> dict:
    """Per beta: steered samples, samples of the scaled weights, and distances per token to the retrained policy."""
    if "strengths" in config:
        return run_sft(config)
    base, tokenizer = models.load("lab_lm", device="cpu")
    base, seed = loop.frozen_copy(base), config["seed"]
    policy = policy_of(config | {"beta": TRAINED})
    lambdas = [steering.strength(beta=beta, trained_beta=TRAINED) for beta in config["steered_to"]]
    drawn = steered_samples(policy, base, tokenizer, config, lambdas)
    other = policy_of(config | {"beta": TRAINED, "seed": (seed + 1) % len(nb11.SEEDS)})
    found = {"betas": []}
    for beta, value in zip(config["steered_to"], lambdas, strict=True):
        rows = drawn[drawn["strength"] == value]
        with steering.scaled_update(policy, value, ref_model=base) as scaled:
            measured = frontier.fresh(scaled, base, tokenizer, config, prompts=config["eval_prompts"])
        target = policy_of(config | {"beta": beta})
        own = frontier.fresh(target, base, tokenizer, config, prompts=config["distance_prompts"])
        completions = (tokenizer, list(own["prompt"]), list(own["completion_ids"]))
        apart = steering.distances(target, policy, *completions, lambdas=GRID, ref_model=base).mean(dim=1)
        entry = {"beta": beta, "strength": value, "steered": _numbers(rows), "scaled": _numbers(measured)}
        entry |= {"distances": [round(v, 4) for v in apart.tolist()]}
        entry["rewards"], entry["kls"] = (rows[name].round(3).tolist() for name in ("reward", "kl"))
        if beta == TRAINED:  # how far apart two policies are that differ in their seed alone
            ruler = steering.distances(target, other, *completions, lambdas=[1.0], ref_model=base)
            found["between_seeds"] = round(ruler.mean().item(), 4)
        found["betas"].append(entry)
    return found | {"grid": list(GRID)}


def _numbers(rows) -> dict:
    return {name: frontier.interval(rows[name], rows["prompt"]) for name in ("reward", "kl")}
