"""Notebook 12's runs on the lab LM: SFT, DPO, best-of-n, RLHF by PPO and RLOO, PPO on the true reward.

Three learning rates are tried for every method (the third with one seed); then the arms on hacking, label noise, a
poor reward model and DPO first. Judges are kept in runs/nb12/ (not in the repository) with what fitting them took.
"""

from pathlib import Path

from dpo_tutorial.training.contest import BEST_OF_N, EXTRAS, METHODS, rates

SEEDS = (0, 1, 2)


def main_runs(seeds=SEEDS) -> list[dict]:
    """Two learning rates a method, best-of-n, every seed."""
    grid = [(seed, rate) for seed in seeds for rate in (0, 1)]
    found = [METHODS[m] | {"learning_rate": rates(m)[rate], "seed": seed} for seed, rate in grid for m in METHODS]
    return found + [BEST_OF_N | {"seed": seed} for seed in seeds]


def extra_runs(seeds=SEEDS) -> list[dict]:
    third = [METHODS[m] | {"learning_rate": rates(m)[2]} for m in METHODS]
    return third + [config | {"seed": seed} for seed in seeds for config in EXTRAS.values()]


def runs() -> list[dict]:
    return main_runs() + extra_runs()


def run(config: dict) -> dict:
    from dpo_tutorial.training import contest

    return contest.run(config, cache=Path("runs/nb12"))
