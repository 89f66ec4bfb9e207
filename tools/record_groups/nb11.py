"""Notebook 11's grid on the lab LM: beta, baselines and shuffled labels, three seeds (20 s a run).

The trained policies are kept in runs/nb11/ (not in the repository): ``nb11_steering`` compares with them.
"""

from pathlib import Path

from dpo_tutorial.data.construct import config_hash
from dpo_tutorial.training.frontier import FRONTIER_RUN

SEEDS = (0, 1, 2)
BETAS = (0.05, 0.1, 0.2, 0.5, 1, 5)
FLOOR_BETAS = (0.1,)
ALPHA = 0.1


def runs() -> list[dict]:
    found = []
    for seed in SEEDS:
        base = FRONTIER_RUN | {"seed": seed}
        found += [base | {"beta": beta} for beta in BETAS]
        found += [base | {"loss": "sft"}, base | {"loss": "unlikelihood", "alpha": ALPHA}]
        found += [base | {"labels": "shuffled", "beta": beta} for beta in FLOOR_BETAS]
    return found


def policy_file(config: dict) -> Path:
    """Where the policy of a run is kept between groups."""
    return Path("runs/nb11") / f"{config_hash(config)}.safetensors"


def run(config: dict) -> dict:
    from safetensors.torch import save_model

    from dpo_tutorial.training import frontier

    results, (policy, _, _) = frontier.run(config)
    policy_file(config).parent.mkdir(parents=True, exist_ok=True)
    save_model(policy, str(policy_file(config)))
    return results
