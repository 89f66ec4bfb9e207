"""Notebook 13's grid on the lab LM: who writes the pairs, which reference, which judge; three seeds (30 s a run)."""

from dpo_tutorial.training.online import ONLINE_RUN

SEEDS = (0, 1, 2)
BONUS = 0.02  # per word: ten words more are worth as much as .2 of P(positive)
OFFLINE = {"rounds": 1, "writer": "start", "measure_at": []}
CONDITIONS = {
    "online": {"measure_at": [0, 2, 4]},
    "old pairs": {"writer": "start"},
    "online, length-biased judge": {"bonus": BONUS},
    "old pairs, length-biased judge": {"writer": "start", "bonus": BONUS},
    "offline": OFFLINE,
    "online, reference moved": {"reference": "moved"},
    "offline, two epochs": OFFLINE | {"labels": 320, "epochs": 2},  # as many units as 480 fresh labels, about
}


def config_of(condition: str, seed: int) -> dict:
    return ONLINE_RUN | CONDITIONS[condition] | {"seed": seed}


def runs() -> list[dict]:
    return [config_of(condition, seed) for condition in CONDITIONS for seed in SEEDS]


def run(config: dict) -> dict:
    from dpo_tutorial.training import online

    return online.recorded_run(config)
