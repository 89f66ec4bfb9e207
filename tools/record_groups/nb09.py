"""Notebook 09's run of SmolLM2, three seeds (some two minutes each); seed 0's adapter ships."""

import shutil

from make_data import save_adapter

from dpo_tutorial.data import pairs, scoring
from dpo_tutorial.training import records


def runs() -> list[dict]:
    return [dict(records.SENTIMENT_RUN, seed=seed) for seed in (0, 1, 2)]


def run(config: dict) -> dict:
    """Train and evaluate as notebook 09 does; results are numbers only."""
    from dpo_tutorial.evaluation import stats
    from dpo_tutorial.training import models, sampling, trl_bridge
    from dpo_tutorial.training.trl_fast import FastDPOTrainer

    trl_bridge.quiet_libraries()
    model, tokenizer = models.load_sft()
    train, heldout = (
        pairs.load(scoring.DATA_DIR / "pairs" / f"sentiment_{part}.jsonl").head(config[key])
        for part, key in (("train", "pairs"), ("heldout", "heldout_pairs"))
    )
    folder = f"runs/nb09_record_{config['seed']}"
    settings = {key: config[key] for key in records.DPO_SETTINGS}
    trainer = FastDPOTrainer(
        model=model,
        args=trl_bridge.dpo_config(folder, **settings, eval_strategy="steps"),
        train_dataset=trl_bridge.to_dataset(train),
        eval_dataset=trl_bridge.to_dataset(heldout),
        processing_class=tokenizer,
        peft_config=models.lora_config(rank=config["rank"]),
    )
    trl_bridge.train(trainer)
    options = {"n": config["samples_per_prompt"], "max_new_tokens": config["max_new_tokens"], "seed": config["seed"]}
    prompts = list(heldout["prompt"].drop_duplicates())
    drawn = sampling.rollouts(trainer.model, tokenizer, prompts, **options)
    with models.reference(trainer.model) as ref:
        before = sampling.texts(tokenizer, sampling.sample(ref, tokenizer, prompts, **options))
    score = scoring.load_classifier().scores
    after = score(list(drawn["prompt"] + drawn["text"]))
    base = score([prompt + text for prompt, row in zip(prompts, before, strict=True) for text in row])
    difference = stats.paired_difference(after, base, drawn["prompt"], seed=0)
    names = ("loss", "rewards/chosen", "rewards/rejected", "rewards/margins", "rewards/accuracies")
    curves = {
        name: trl_bridge.history(trainer, name) for prefix in ("", "eval_") for name in [prefix + n for n in names]
    }
    if config["seed"] == 0:
        save_adapter(trainer.model, scoring.DATA_DIR / "dpo_adapter")  # seed 0 ships
    shutil.rmtree(folder, ignore_errors=True)
    return {
        "reward_policy": round(float(after.mean()), 4),
        "reward_reference": round(float(base.mean()), 4),
        "reward_difference": [round(value, 4) for value in (difference.mean, difference.low, difference.high)],
        "kl": round(float((drawn["policy_logps"] - drawn["ref_logps"]).mean()), 3),
        "dtype": str(model.dtype),
        "curves": {name: [[step, round(value, 4)] for step, value in points] for name, points in curves.items()},
    }


def draw() -> None:
    """docs/figures/first_run.png, the picture in README.md, from the three records."""
    import numpy as np

    from dpo_tutorial.display import plots

    results = [records.load("nb09", config)["results"] for config in runs()]
    fig, axes = plots.figure(1, 4, width=12, height=2.9)

    def band(ax, name, role, label, scale=1.0):
        steps = [step for step, _ in results[0]["curves"][name]]
        values = np.array([[value for _, value in result["curves"][name]] for result in results])
        plots.band(ax, steps, values * scale, **plots.line(role, label=label))

    band(axes[0], "eval_loss", "policy", "held out")
    axes[0].axhline(np.log(2), **plots.line("reference", label="log 2"))
    band(axes[1], "eval_rewards/margins", "policy", "held out")
    for role in ("chosen", "rejected"):
        band(axes[2], f"eval_rewards/{role}", role, role, 1 / records.SENTIMENT_RUN["beta"])
    for number, result in enumerate(results):
        mean, low, high = result["reward_difference"]
        color = plots.COLOURS["optimum"]
        axes[3].errorbar(number, mean, [[mean - low], [high - mean]], fmt="o", color=color, capsize=4)
    axes[3].axhline(0, **plots.line("reference", label=None))
    axes[3].set(xticks=[0, 1, 2], xlabel="seed", xlim=(-0.6, 2.6), title="held-out reward gained")
    for ax, title in zip(axes, ("loss", "margin", "log-ratio (nats)"), strict=False):
        ax.set(xlabel="step", title=title)
    for ax in (axes[0], axes[2]):
        ax.legend()
    path = scoring.DATA_DIR.parent / "docs" / "figures" / "first_run.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(plots.png(fig))
