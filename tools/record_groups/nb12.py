"""Notebook 12's runs on the lab LM: SFT, DPO, best-of-n, RLHF by PPO and RLOO, PPO on the true reward.

Two learning rates are tried for every method, some with one seed only; then the arms on label noise, hacking, few
labels, DPO first, unary labels, a small reward model, short responses and the unit of the reward. Judges are kept
in runs/nb12/ (not in the repository) with what fitting them took.
"""

from pathlib import Path

from dpo_tutorial.training.contest import BEST_OF_N, EXTRAS, METHODS, ONE_SEED, rates

SEEDS = (0, 1, 2)


def main_runs(seed: int) -> list[dict]:
    """Every method at its rates, and best-of-n."""
    grid = [(method, rate) for method in METHODS for rate in rates(method)]
    found = [METHODS[m] | {"learning_rate": rate} for m, rate in grid if seed == 0 or (m, rate) not in ONE_SEED]
    return [config | {"seed": seed} for config in [*found, BEST_OF_N]]


def extra_runs() -> list[dict]:
    """The further arms, arm by arm; at the end the second trial of PPO on P(positive), with the first seed."""
    trial = EXTRAS["P(positive) + PPO"] | {"learning_rate": 3e-4, "seed": 0}
    return [*(config | {"seed": seed} for config in EXTRAS.values() for seed in SEEDS), trial]


def runs() -> list[dict]:
    return [config for seed in SEEDS for config in main_runs(seed)] + extra_runs()


def run(config: dict) -> dict:
    from dpo_tutorial.training import contest

    return contest.run(config, cache=Path("runs/nb12"))
