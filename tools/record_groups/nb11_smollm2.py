"""Notebook 11's sweep over beta on SmolLM2 (some two minutes a run); the adapters of seed 0 ship.

The first record is the reference's own: what an untrained policy scores. Its answers to the regression suite stand in
``nb15`` (adapter "sft"); here each trained policy answers the items that have options.
"""

import shutil

from make_data import save_adapter

from dpo_tutorial.training import models, sweep


def runs() -> list[dict]:
    reference = sweep.SWEEP_RUN | {"beta": None, "seed": 0}
    return [reference] + [
        sweep.SWEEP_RUN | {"beta": beta, "seed": s} for s in (0, 1, 2) for beta in sweep.SWEEP_BETAS
    ]


def run(config: dict) -> dict:
    """Train as notebook 09 does, by the fast step, and measure; results are numbers only."""
    from dpo_tutorial.evaluation import capabilities
    from dpo_tutorial.training import trl_bridge

    if config["beta"] is None:
        model, tokenizer = models.load_sft()
        policy = models.add_lora(model, rank=config["rank"])  # B is zero: the reference itself
        return {"final": sweep.measure(policy, tokenizer, config)}
    trainer = sweep.train(config)
    policy, tokenizer = trainer.model, trainer.processing_class
    names = ("eval_loss", "eval_rewards/margins", "eval_rewards/accuracies", "eval_rewards/chosen")
    curves = {name: [[s, round(v, 4)] for s, v in trl_bridge.history(trainer, name)] for name in names}
    curves["loss"] = [[s, round(v, 4)] for s, v in trl_bridge.history(trainer, "loss")]
    drawn = sweep.fresh(policy, tokenizer, config, samples=config["samples_per_prompt"], seed=config["seed"])
    scores = capabilities.score(policy, tokenizer)
    results = {
        "final": sweep.measure(policy, tokenizer, config, drawn=drawn),
        "rewards": drawn["reward"].round(4).tolist(),
        "kls": drawn["kl"].round(4).tolist(),
        "suite": {id: round(p, 4) for id, p in zip(scores["id"], scores["p"], strict=True)},
        "dtype": str(policy.dtype),
        "curves": curves,
    }
    if config["seed"] == 0:
        save_adapter(policy, sweep.ADAPTERS / f"beta_{config['beta']:g}")
    shutil.rmtree(trainer.args.output_dir, ignore_errors=True)
    return results
