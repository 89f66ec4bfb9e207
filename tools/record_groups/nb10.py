"""Notebook 10 on the lab LM, three seeds a record (5 to 40 seconds a record on a quiet machine)."""

import math

from dpo_tutorial.training import faults

RATES = {"full": (1e-4, 5e-4, 1e-3, 5e-3), "LoRA": (5e-4, 1e-3, 1e-2), "SFT": (1e-4, 1e-3, 5e-3)}
END = {"count": 96, "evaluate_every": 12}  # 12 steps, evaluated before the first and after the last
FOUR = {"count": 16, "batch_size": 4, "warmup_steps": 0, "evaluate_every": 0}  # four steps
DIVERGE = {"clipped": {}, "not clipped": {"max_grad_norm": 1e9}, "long": {"pairs": "long"}}
HARMLESS = ({"warmup_steps": 0}, {"max_grad_norm": 1e9}, {"eos": 0}, {"eos": 2})
READ = ("rate too high", "shortcut")  # runs of the gallery whose samples are read
CURVES = ("loss", "eval_loss", "chosen_logratios", "rejected_logratios", "eval_chosen_logratios", "grad_norm")
WRITTEN = ("reward", "kl", "words", "ended", "distinct")


def runs() -> list[dict]:
    """Rates for full training, LoRA and SFT; remedies for displacement; the gallery; what does harm and what not."""
    grid = [{"learning_rate": rate} | END for rate in RATES["full"]]
    grid += [{"learning_rate": rate, "rank": 8} | END for rate in RATES["LoRA"]]
    grid += [{"learning_rate": rate, "objective": "sft"} | END for rate in RATES["SFT"]]
    grid += [{"learning_rate": 1e-3, "objective": name} | END for name in ("dpo + sft", "dpo-positive")]
    more = {"count": 320, "learning_rate": 5e-4, "evaluate_every": 40}
    grid += [more, more | {"pairs": "swapped"}]
    grid += [faults.LONG, {"epochs": 10, "count": 32, "evaluate_every": 4}]
    similar = [{"pairs": "similar"}, {"pairs": "half similar"}, {"pairs": "half similar, filtered", "count": 192}]
    grid += [{"learning_rate": 1e-3} | END | switch for switch in similar]
    grid += [faults.SHORT | switch for switch in ({}, *HARMLESS)]
    grid += [faults.SHORT | faults.GALLERY[name] for name in READ]
    unread = [faults.SHORT | switch for name, switch in faults.GALLERY.items() if name not in READ]
    unread += [faults.SHORT | {"beta": beta} for beta in (1.0, 20.0)]
    unread += [FOUR | switch | {"learning_rate": rate} for switch in DIVERGE.values() for rate in (1e-3, 1e-2, 1e-1)]
    configs = [faults.record_config(**switches) for switches in grid]
    return configs + [faults.record_config(prompts=0, **switches) for switches in unread]


def run(config: dict) -> dict:
    """Per seed: the warnings seen, curves, and what the policy writes (None where the loss became NaN)."""
    results = {}
    for seed in config["seeds"]:
        trained = faults.train(seed=seed, **config["switches"])
        if config["prompts"] and "not finite" not in trained.warnings:
            faults.measure(trained, prompts=config["prompts"], seed=seed)
        history = trained.history
        tells = {name: float(telltale.value(history)) for name, telltale in faults.TELLTALES.items()}
        results[f"seed {seed}"] = {
            "warnings": trained.warnings,
            "telltales": {name: round(value, 9) for name, value in tells.items() if math.isfinite(value)},
            "written": {name: round(history[name][-1][1], 4) if name in history else None for name in WRITTEN},
            "before": {name: round(history[name][0][1], 4) if name in history else None for name in WRITTEN},
            "curves": {
                name: [[step, round(value, 6)] for step, value in history.get(name, []) if value == value]
                for name in CURVES
            },
        }
    return results
