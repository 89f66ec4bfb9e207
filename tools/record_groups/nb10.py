"""Notebook 10 on the lab LM, three seeds a record (about 15 seconds a record on a quiet machine)."""

from dpo_tutorial.training import faults

RATES = {"full": (1e-4, 5e-4, 1e-3, 5e-3), "LoRA": (5e-4, 1e-3, 1e-2), "SFT": (1e-4, 1e-3, 5e-3)}
CURVES = ("loss", "eval_loss", "chosen_logratios", "rejected_logratios", "eval_chosen_logratios", "grad_norm")
WRITTEN = ("reward", "kl", "words", "ended", "distinct")


def runs() -> list[dict]:
    """Rates for full training, LoRA and SFT; two remedies for displacement; swapped labels; epochs."""
    end = {"count": 96, "evaluate_every": 12}  # 12 steps, evaluated before the first and after the last
    grid = [{"learning_rate": rate} | end for rate in RATES["full"]]
    grid += [{"learning_rate": rate, "rank": 8} | end for rate in RATES["LoRA"]]
    grid += [{"learning_rate": rate, "objective": "sft"} | end for rate in RATES["SFT"]]
    grid += [{"learning_rate": 1e-3, "objective": name} | end for name in ("dpo + sft", "dpo-positive")]
    more = {"count": 320, "learning_rate": 5e-4, "evaluate_every": 40}
    grid += [more, more | {"pairs": "swapped"}]
    grid += [{"epochs": 10, "count": 32, "evaluate_every": 4}]
    return [faults.record_config(**switches) for switches in grid]


def run(config: dict) -> dict:
    """Per seed: the warnings seen, curves, and what the policy writes (None where the loss became NaN)."""
    results = {}
    for seed in config["seeds"]:
        trained = faults.train(seed=seed, **config["switches"])
        if "not finite" not in trained.warnings:
            faults.measure(trained, prompts=config["prompts"], seed=seed)
        history = trained.history
        results[f"seed {seed}"] = {
            "warnings": trained.warnings,
            "written": {name: round(history[name][-1][1], 4) if name in history else None for name in WRITTEN},
            "before": {name: round(history[name][0][1], 4) if name in history else None for name in WRITTEN},
            "curves": {
                name: [[step, round(value, 6)] for step, value in history.get(name, []) if value == value]
                for name in CURVES
            },
        }
    return results
