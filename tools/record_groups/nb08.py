"""Notebook 08's grids: what is scored, how long to train, where to start from, batch sizes; three seeds each.

The lab LM's runs take some 10 seconds each (its long runs half a minute), SmolLM2's a minute or two.
"""

from functools import partial

import torch

from dpo_tutorial.data import pairs, scoring
from dpo_tutorial.theory import losses
from dpo_tutorial.training import encode, lab, logps, loop, models, sampling

SEEDS = (0, 1, 2)
FAST = dict(lab.LAB_RUN, pairs=320, heldout_pairs=96, learning_rate=5e-4)
FORMAT = "Opening: {prompt} Review:"
ARMS = {"right": {}, "shifted": {}, "no eos": {}, "mean": {}, "mean, beta 2": {"beta": 2.0}}  # what is scored
STARTS = ("base", "sft")
SMOLLM2 = {
    "model": "smollm2",
    "pairs": 64,
    "heldout_pairs": 32,
    "beta": 0.1,
    "learning_rate": 1e-3,
    "epochs": 1,
    "batch_size": 8,
    "warmup_steps": 2,
    "rank": 8,
    "eval_prompts": 48,
    "max_new_tokens": 40,
}


def runs() -> list[dict]:
    scored = [FAST | {"scored": arm} | change for arm, change in ARMS.items()]
    long = [dict(FAST, pairs=160, heldout_pairs=64, epochs=4, evaluate_every=10, measure_every=20, eval_prompts=96)]
    batches = [
        dict(FAST, learning_rate=rate, batch_size=size, warmup_steps=max(1, 48 // size))
        for size, rate in ((32, 1e-3), (80, 2e-3))
    ]
    starts = [dict(FAST, pairs=160, start=start, format=FORMAT, eval_prompts=96) for start in STARTS]
    smollm2 = [dict(SMOLLM2, start=start) for start in STARTS]
    return [dict(config, seed=seed) for config in scored + long + batches + starts + smollm2 for seed in SEEDS]


def run(config: dict) -> dict:
    """Train and measure as the configuration says; results are numbers only."""
    if config["model"] == "smollm2":
        return _smollm2(config)
    for key, experiment in (("scored", _scored), ("start", _start), ("evaluate_every", _long)):
        if key in config:
            return experiment(config)
    policy, reference, tokenizer, result = lab.run(config)
    return _measured(policy, reference, tokenizer, config) | {"loss": _curve(result, "loss")}


def _curve(result: loop.Run, name: str) -> list[list[float]]:
    return [[step, round(value, 4)] for step, value in zip(*result.curve(name), strict=True)]


def _numbers(measured: lab.Measured) -> dict:
    return {name: round(getattr(measured, name), 4) for name in ("reward", "kl", "words", "ended")}


def _measured(policy, reference, tokenizer, config: dict) -> dict:
    return _numbers(lab.measure(policy, reference, tokenizer, prompts=config["eval_prompts"], seed=config["seed"]))


def _frames(config: dict) -> list:
    return [lab.load_pairs(part, config[key]) for part, key in (("train", "pairs"), ("heldout", "heldout_pairs"))]


def shifted_logps(model, batch):
    """The fault: the mask is moved the wrong way, so the first token is lost and the one after EOS is scored."""
    logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    return (logps.per_token_logps(logits, batch["input_ids"]) * batch["completion_mask"][:, :-1]).sum(1)


def _scored(config: dict) -> dict:
    """One epoch with another score; the reference is computed in the training's own batches."""
    arm = config["scored"]
    policy, tokenizer = models.load("lab_lm", device="cpu")
    reference = loop.frozen_copy(policy)
    pad = {"pad_token_id": tokenizer.pad_token_id}
    average = partial(logps.completion_logps, average=True)
    logps_of = {
        "mean": average,
        "mean, beta 2": average,
        "shifted": shifted_logps,
    }.get(arm, logps.completion_logps)
    examples, heldout = (
        encode.encode_pairs(tokenizer, frame, append_eos=arm != "no eos") for frame in _frames(config)
    )
    order = loop.batch_order(len(examples), batch_size=config["batch_size"], epochs=1, seed=config["seed"])
    ref_logps = torch.empty(len(examples), 2)
    for picked in order:
        ref_logps[picked] = loop.reference_logps(reference, [examples[i] for i in picked], logps_of=logps_of, **pad)
    settings = {key: config[key] for key in ("beta", "learning_rate", "warmup_steps")}
    result = loop.train_dpo(
        policy, examples, ref_logps, order=order, logps_of=logps_of, evaluate_every=20,
        heldout=(heldout, loop.reference_logps(reference, heldout, logps_of=logps_of, **pad)), **settings, **pad,
    )  # fmt: skip
    right = encode.encode_pairs(tokenizer, _frames(config)[1])
    truth = loop.evaluate(
        policy,
        right,
        loop.reference_logps(reference, right, **pad),
        loss=partial(losses.dpo, beta=0.1),
        beta=0.1,
        **pad,
    )
    return _measured(policy, reference, tokenizer, config) | {
        "right_heldout": {name: round(value, 4) for name, value in truth.items()},
        "first_token_kl": round(first_token_kl(policy, reference, right, **pad), 4),
        "curves": {name: _curve(result, name) for name in ("loss", "eval_loss", "accuracies", "eval_accuracies")},
    }


@torch.no_grad()
def first_token_kl(policy, reference, examples, *, pad_token_id: int) -> float:
    """Mean over prompts of KL(policy, reference) at the first token of the response."""
    total = 0.0
    for example in examples:
        ids = torch.tensor([example["prompt_ids"]])
        new, old = (model(input_ids=ids).logits[0, -1].log_softmax(-1) for model in (policy, reference))
        total += (new.exp() * (new - old)).sum().item()
    return total / len(examples)


def _long(config: dict) -> dict:
    """Four epochs on few pairs; every ``measure_every`` steps the policy is also measured on fresh samples."""
    policy, tokenizer = models.load("lab_lm", device="cpu")
    reference = loop.frozen_copy(policy)
    pad = {"pad_token_id": tokenizer.pad_token_id}
    examples, heldout = (encode.encode_pairs(tokenizer, frame) for frame in _frames(config))
    ref_logps, ref_heldout = (loop.reference_logps(reference, rows, **pad) for rows in (examples, heldout))
    every, measured = config["measure_every"], [[0, _measured(reference, reference, tokenizer, config)]]

    def measure(step, metrics):
        if "loss" in metrics and (step + 1) % every == 0:  # the weights that the next evaluation sees
            measured.append([step + 1, _measured(policy.eval(), reference, tokenizer, config)])

    settings = {key: config[key] for key in ("beta", "learning_rate", "warmup_steps")}
    order = loop.batch_order(len(examples), **{key: config[key] for key in ("batch_size", "epochs", "seed")})
    result = loop.train_dpo(
        policy, examples, ref_logps, order=order, on_step=measure,
        heldout=(heldout, ref_heldout), evaluate_every=config["evaluate_every"], **settings, **pad,
    )  # fmt: skip
    return {
        "best_step": result.best_step,
        "measured": measured,
        "curves": {name: _curve(result, name) for name in ("loss", "eval_loss", "eval_accuracies", "eval_margins")},
    }


def _start(config: dict) -> dict:
    """DPO in a prompt format that the lab LM has not seen: from it as it is, or from it after SFT on the chosen."""
    policy, tokenizer = models.load("lab_lm", device="cpu")
    base = loop.frozen_copy(policy)
    pad = {"pad_token_id": tokenizer.pad_token_id}
    frames = [
        frame.assign(prompt=[config["format"].format(prompt=p) for p in frame["prompt"]]) for frame in _frames(config)
    ]
    examples, heldout = (encode.encode_pairs(tokenizer, frame) for frame in frames)
    order = loop.batch_order(len(examples), **{key: config[key] for key in ("batch_size", "epochs", "seed")})
    settings = {key: config[key] for key in ("beta", "learning_rate", "warmup_steps")} | {"order": order} | pad
    if config["start"] != "base":
        unused = torch.zeros(len(examples), 2)
        loop.train_dpo(policy, examples, unused, loss=lambda chosen, *rest: -chosen / 20, **settings)
    start = loop.frozen_copy(policy)
    result = loop.train_dpo(
        policy, examples, loop.reference_logps(start, examples, **pad),
        heldout=(heldout, loop.reference_logps(start, heldout, **pad)), evaluate_every=20, **settings,
    )  # fmt: skip
    prompts = frames[1].head(config["eval_prompts"])
    return {
        "before": _in_format(start, base, tokenizer, prompts, config),
        "after": _in_format(policy, start, tokenizer, prompts, config),
        "curves": {name: _curve(result, name) for name in ("loss", "eval_loss", "eval_accuracies")},
    }


def _in_format(policy, reference, tokenizer, frame, config: dict) -> dict:
    """Reward, KL, words and ended in the prompt format; the reward reads opening and response, not the format."""
    options = {"n": 1, "max_new_tokens": lab.MAX_NEW_TOKENS, "seed": config["seed"], "ref_model": reference}
    drawn = sampling.rollouts(policy, tokenizer, list(frame["prompt"]), **options)
    openings = _frames(config)[1].head(len(frame))["prompt"]
    drawn["reward"] = scoring.load_classifier().scores(list(openings.to_numpy() + drawn["text"].to_numpy()))
    return _summary(drawn, tokenizer)


def _summary(drawn, tokenizer) -> dict:
    ended = drawn["completion_ids"].str[-1] == tokenizer.eos_token_id
    return {
        "reward": round(float(drawn["reward"].mean()), 4),
        "kl": round(float((drawn["policy_logps"] - drawn["ref_logps"]).mean()), 4),
        "words": round(float(drawn["text"].str.split().str.len().mean()), 4),
        "ended": round(float(ended.mean()), 4),
    }


def _smollm2(config: dict) -> dict:
    """The same question with LoRA on SmolLM2: SFT is the shipped adapter, trained on review openings."""
    train, heldout = (
        pairs.load(scoring.DATA_DIR / "pairs" / f"sentiment_{part}.jsonl") for part in ("train", "heldout")
    )
    prompts = list(heldout["prompt"].drop_duplicates().head(config["eval_prompts"]))
    base, tokenizer = models.load("smollm2")
    model = base if config["start"] == "base" else models.load_sft()[0]
    pad = {"pad_token_id": tokenizer.pad_token_id}
    examples = encode.encode_pairs(tokenizer, train.head(config["pairs"]))
    held = encode.encode_pairs(tokenizer, heldout.head(config["heldout_pairs"]))
    refs = [loop.reference_logps(model, rows, **pad) for rows in (examples, held)]
    options = {"n": 1, "max_new_tokens": config["max_new_tokens"], "seed": config["seed"]}

    def measured(policy, ref_model):
        drawn = sampling.rollouts(policy, tokenizer, prompts, ref_model=ref_model, **options)
        drawn["reward"] = scoring.load_classifier().scores(list(drawn["prompt"] + drawn["text"]))
        return _summary(drawn, tokenizer)

    before = measured(model, base)
    policy = models.add_lora(model, rank=config["rank"], seed=config["seed"])
    result = loop.train_dpo(
        policy, examples, refs[0], heldout=(held, refs[1]), evaluate_every=4,
        order=loop.batch_order(len(examples), **{key: config[key] for key in ("batch_size", "epochs", "seed")}),
        **{key: config[key] for key in ("beta", "learning_rate", "warmup_steps")}, **pad,
    )  # fmt: skip
    return {
        "before": before,
        "after": measured(policy, None),
        "dtype": str(model.dtype),
        "curves": {name: _curve(result, name) for name in ("loss", "eval_loss", "eval_accuracies")},
    }
