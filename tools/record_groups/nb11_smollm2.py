"""Notebook 11's sweep over beta on SmolLM2 (some two minutes a run); the adapters of seed 0 ship.

The first record is the reference's own: what an untrained policy scores.
"""

import shutil

from make_data import save_adapter

from dpo_tutorial.data import pairs, scoring
from dpo_tutorial.training import models, records, sweep


def runs() -> list[dict]:
    reference = sweep.SWEEP_RUN | {"beta": None, "seed": 0}
    return [reference] + [
        sweep.SWEEP_RUN | {"beta": beta, "seed": s} for s in (0, 1, 2) for beta in sweep.SWEEP_BETAS
    ]


def run(config: dict) -> dict:
    """Train as notebook 09 does, by the fast step, and measure; results are numbers only."""
    from dpo_tutorial.training import trl_bridge
    from dpo_tutorial.training.trl_fast import FastDPOTrainer

    trl_bridge.quiet_libraries()
    model, tokenizer = models.load_sft()
    if config["beta"] is None:
        policy = models.add_lora(model, rank=config["rank"])  # B is zero: the reference itself
        return {"final": sweep.measure(policy, tokenizer, config)}
    train = pairs.load(scoring.DATA_DIR / "pairs" / "sentiment_train.jsonl").head(config["pairs"])
    folder = f"runs/nb11_{config['beta']}_{config['seed']}"
    settings = {key: config[key] for key in records.DPO_SETTINGS}
    trainer = FastDPOTrainer(
        full_metrics=False,
        model=model,
        args=trl_bridge.dpo_config(folder, **settings, eval_strategy="steps"),
        train_dataset=trl_bridge.to_dataset(train),
        eval_dataset=trl_bridge.to_dataset(sweep.heldout_pairs(config).head(config["loss_pairs"])),
        processing_class=tokenizer,
        peft_config=models.lora_config(rank=config["rank"]),
    )
    trl_bridge.train(trainer)
    names = ("eval_loss", "eval_rewards/margins", "eval_rewards/accuracies", "eval_rewards/chosen")
    curves = {name: [[s, round(v, 4)] for s, v in trl_bridge.history(trainer, name)] for name in names}
    final = sweep.measure(trainer.model, tokenizer, config)
    if config["seed"] == 0:
        save_adapter(trainer.model, sweep.ADAPTERS / f"beta_{config['beta']:g}")
    shutil.rmtree(folder, ignore_errors=True)
    return {"final": final, "dtype": str(model.dtype), "curves": curves}
