"""Notebook 12's runs on the lab LM: SFT, DPO, best-of-n, RLHF by PPO and RLOO, PPO on the true reward.

Two learning rates are tried for every method, some with one seed only; then the arms on hacking, label noise, a
poor reward model and DPO first. Judges are kept in runs/nb12/ (not in the repository) with what fitting them took.
"""

from pathlib import Path

from dpo_tutorial.training.contest import BEST_OF_N, EXTRAS, METHODS, ONE_SEED, rates

SEEDS = (0, 1, 2)


def main_runs(seed: int) -> list[dict]:
    """Every method at its rates, and best-of-n."""
    grid = [(method, rate) for method in METHODS for rate in rates(method)]
    found = [METHODS[m] | {"learning_rate": rate} for m, rate in grid if seed == 0 or (m, rate) not in ONE_SEED]
    return [config | {"seed": seed} for config in [*found, BEST_OF_N]]


def extra_runs(seed: int) -> list[dict]:
    """The further arms; with the first seed also the second trial of PPO on P(positive)."""
    trial = [EXTRAS["P(positive) + PPO"] | {"learning_rate": 3e-4}] if seed == 0 else []
    return [config | {"seed": seed} for config in [*EXTRAS.values(), *trial]]


def runs() -> list[dict]:
    return [config for part in (main_runs, extra_runs) for seed in SEEDS for config in part(seed)]


def run(config: dict) -> dict:
    from dpo_tutorial.training import contest

    return contest.run(config, cache=Path("runs/nb12"))
