"""Notebook 12's runs on SmolLM2: DPO, and RLOO on TRL's reward model; one seed, some minutes each."""

from dpo_tutorial.training import contest_smollm2


def runs() -> list[dict]:
    return [*contest_smollm2.DPO.values(), contest_smollm2.DPO_BY_TRL, *contest_smollm2.RLOO.values()]


def run(config: dict) -> dict:
    return contest_smollm2.run(config)
