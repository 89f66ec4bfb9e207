"""Decode-time beta against retraining on the lab LM, three seeds (a minute each); needs the policies of ``nb11``.

The policy of beta 0.1 is steered to every other beta of the grid; the policies trained there are the comparison.
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


def runs() -> list[dict]:
    return [
        FRONTIER_RUN | {"seed": seed, "steered_to": list(BETAS), "distance_prompts": DISTANCE_PROMPTS}
        for seed in nb11.SEEDS
    ]


def policy_of(beta: float, seed: int):
    """A policy of the grid: kept from its run, or trained again."""
    config = FRONTIER_RUN | {"beta": beta, "seed": seed}
    if not nb11.policy_file(config).exists():
        return frontier.train(config)[0]
    policy, _ = models.load("lab_lm", device="cpu")
    load_model(policy, str(nb11.policy_file(config)))
    return policy.eval()


def run(config: dict) -> dict:
    """Per beta: steered samples, samples of the scaled weights, and distances per token to the retrained policy."""
    base, tokenizer = models.load("lab_lm", device="cpu")
    base, seed = loop.frozen_copy(base), config["seed"]
    policy = policy_of(TRAINED, seed)
    prompts = list(lab.load_pairs("heldout", config["eval_prompts"])["prompt"])
    lambdas = [steering.strength(beta=beta, trained_beta=TRAINED) for beta in config["steered_to"]]
    drawn = steering.rollouts(
        policy, tokenizer, prompts, lambdas=lambdas, max_new_tokens=lab.MAX_NEW_TOKENS, seed=seed, ref_model=base,
        batch_rows=160,
    )  # fmt: skip
    drawn["reward"] = scoring.load_classifier().scores(list(drawn["prompt"] + drawn["text"]))
    other = policy_of(TRAINED, (seed + 1) % len(nb11.SEEDS))
    found = {"betas": []}
    for beta, value in zip(config["steered_to"], lambdas, strict=True):
        rows = drawn[drawn["strength"] == value]
        with steering.scaled_update(policy, value, ref_model=base) as scaled:
            measured = frontier.fresh(scaled, base, tokenizer, config, prompts=config["eval_prompts"])
        target = policy_of(beta, seed)
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
