"""Notebook 12's runs on the lab LM: SFT, DPO, best-of-n, RLHF by PPO and RLOO, PPO on the true reward.

Three learning rates are tried for every method (the third with one seed); then the arms on hacking, label noise, a
poor reward model and DPO first. Judges are kept in runs/nb12/ (not in the repository) with what fitting them took.
"""

from pathlib import Path

from dpo_tutorial.training.contest import OFFLINE, RLHF

SEEDS = (0, 1, 2)
METHODS = {
    "SFT": OFFLINE | {"arm": "sft"},
    "DPO": OFFLINE | {"arm": "dpo"},
    "RM + PPO": RLHF | {"arm": "ppo"},
    "RM + RLOO": RLHF | {"arm": "rloo"},
    "true reward + PPO": RLHF | {"arm": "ppo", "reward": "true"},
}
RATES = {True: (5e-4, 1e-3, 2e-4), False: (3e-4, 1e-3, 3e-3)}  # offline or not; the last is tried with one seed
BEST_OF_N = OFFLINE | {"arm": "best_of_n", "sizes": [1, 2, 4, 8, 16, 32, 64], "eval_prompts": 80, "measure_at": []}
NOISE = {"flip_rate": 0.25}
EXTRAS = {
    "DPO, long": METHODS["DPO"]
    | {"beta": 0.02, "learning_rate": 1e-3, "epochs": 4, "measure_at": [30, 60, 120, 180]},
    "RM + PPO, long": METHODS["RM + PPO"] | {"beta": 0.0, "iterations": 40, "measure_at": [10, 20, 30]},
    "DPO, noise": METHODS["DPO"] | NOISE,
    "RM + PPO, noise": METHODS["RM + PPO"] | NOISE,
    "RM + PPO, poor judge": METHODS["RM + PPO"] | {"judge_pairs": 120, "judge_epochs": 1},
    "DPO, then RM + PPO": METHODS["RM + PPO"] | {"start": {"learning_rate": 5e-4}, "learning_rate": 3e-4},
}


def rates(method: str) -> tuple[float, ...]:
    return RATES[METHODS[method]["arm"] in ("sft", "dpo")]


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
