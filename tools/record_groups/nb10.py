"""Notebook 10's faults on the lab LM, three seeds each (about 20 seconds a record on a quiet machine)."""

from dpo_tutorial.training import faults

RATES = (1e-5, 1e-4, 3e-4, 5e-4, 1e-3, 3e-3, 1e-2)
CURVES = ("loss", "eval_loss", "margins", "chosen_logratios", "rejected_logratios", "grad_norm", "updated")
WRITTEN = ("reward", "kl", "words", "ended", "distinct")


def runs() -> list[dict]:
    """The healthy run, the gallery, rates for full training, LoRA and SFT, and what may or may not do harm."""
    grid = [{}, *faults.GALLERY.values()]
    grid += [{"learning_rate": rate} for rate in RATES]
    grid += [{"learning_rate": rate, "rank": 8} for rate in (*RATES[1:], 3e-2)]
    grid += [{"learning_rate": rate, "objective": "sft"} for rate in RATES]
    grid += [{"beta": beta} for beta in (1.0, 20.0)]
    grid += [{"epochs": 10, "count": 96}]
    grid += [{"learning_rate": rate, "max_grad_norm": 1e9} for rate in (3e-4, 3e-3, 1e-2)]
    grid += [{"warmup_steps": 0, "learning_rate": rate} for rate in (3e-4, 1e-3, 3e-3)]
    grid += [{"eos": 0}, {"eos": 2}, {"scored": "prompt too"}]
    grid += [{"learning_rate": rate, "pairs": "long"} for rate in (3e-4, 3e-3, 1e-2)]
    grid += [{"learning_rate": 1e-3, "objective": name} for name in ("dpo + sft", "dpo-positive")]
    unique = {str(switches): switches for switches in grid if switches != {"learning_rate": 3e-4}}
    return [faults.record_config(**switches) for switches in unique.values()]


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
