"""Runs of the beta frontier on the lab LM: a policy, and its reward and KL on fresh samples while it trains.

Notebook 11 makes some of these runs live; the full grid over beta, seeds and baselines is recorded.
"""

from collections.abc import Callable, Iterable
from functools import partial

import numpy as np
import pandas as pd
import torch

from dpo_tutorial.theory import losses
from dpo_tutorial.training import encode, lab, loop, models, records

FRONTIER_RUN = {
    "model": "lab_lm",
    "loss": "dpo",
    "labels": "as judged",
    "pairs": 480,
    "heldout_pairs": 160,
    "beta": 0.1,
    "learning_rate": 5e-4,
    "epochs": 1,
    "batch_size": 8,
    "warmup_steps": 6,
    "seed": 0,
    "eval_prompts": 160,
    "measure_at": [20, 40],
    "curve_prompts": 80,
    "final_samples": 1,
}


def loss_of(config: dict) -> Callable:
    """The run's loss with DPO's signature.

    ``"dpo"``; ``"sft"`` raises the chosen response alone, -log pi(y_w | x); ``"unlikelihood"`` also lowers the
    rejected one with weight ``config["alpha"]``: -log pi(y_w | x) + alpha log pi(y_l | x), the baseline of the DPO
    paper's section 6. The last two know neither a reference nor beta.
    """
    weight = {"sft": 0.0, "unlikelihood": config.get("alpha")}
    if config["loss"] == "dpo":
        return partial(losses.dpo, beta=config["beta"])
    if config["loss"] not in weight:
        raise ValueError(f"loss is {config['loss']!r}; accepted are 'dpo', 'sft', 'unlikelihood'")
    alpha = weight[config["loss"]]
    return lambda policy_chosen, policy_rejected, *_: -policy_chosen + alpha * policy_rejected


def shuffled_labels(frame: pd.DataFrame, *, seed: int) -> pd.DataFrame:
    """The same pairs with chosen and rejected exchanged in a random half: nothing is left to be learnt."""
    swap = np.random.default_rng(seed).permutation(len(frame)) < len(frame) // 2
    out = frame.copy()
    out.loc[swap, ["chosen", "rejected"]] = frame.loc[swap, ["rejected", "chosen"]].to_numpy()
    return out


def fresh(policy, reference, tokenizer, config: dict, *, prompts: int, samples: int = 1) -> pd.DataFrame:
    """``samples`` responses to each of ``prompts`` held-out prompts, with ``reward, kl, words, ended``.

    ``kl`` is log pi - log pi_ref of the response; its mean estimates the sequence-level KL without bias.
    """
    draws = [
        lab.measure(policy, reference, tokenizer, prompts=prompts, seed=1000 * k + config["seed"])
        for k in range(samples)
    ]
    drawn = pd.concat([draw.samples for draw in draws], ignore_index=True)
    drawn["words"] = drawn["text"].str.split().str.len()
    drawn["ended"] = drawn["completion_ids"].str[-1] == tokenizer.eos_token_id
    return drawn


def interval(values, clusters) -> list[float]:
    """[mean, low, high]: 95 % normal interval of a mean over prompts (samples of one prompt are averaged first)."""
    means = pd.Series(np.asarray(values, float)).groupby(np.asarray(clusters)).mean()
    half = 1.96 * means.std() / np.sqrt(len(means))
    return [round(float(means.mean() + shift), 4) for shift in (0, -half, half)]


def recorded_band(intervals: list[list[float]]) -> tuple[float, float]:
    """:func:`records.band` of recorded means, widened also by two standard errors, half of the widest interval.

    >>> recorded_band([[0.5, 0.46, 0.54], [0.6, 0.56, 0.64]])
    (0.41, 0.69)
    """
    errors = max(high - low for _, low, high in intervals) / 2
    low, high = records.band([mean for mean, _, _ in intervals], errors)
    return round(low, 2), round(high, 2)


def path(start: float, strengths: Iterable[list[dict]]) -> np.ndarray:
    """(1 + strengths, 2): KL and reward, averaged over seeds, from the reference, which earns ``start``, on.

    ``strengths`` holds the numbers of each seed per strength of steering, as :func:`numbers` gives them.
    """
    points = [[np.mean([run[name][0] for run in seeds]) for name in ("kl", "reward")] for seeds in strengths]
    return np.array([[0, start], *points])


def at_equal_kl(near: list[dict], far: list[dict], others: list[dict]) -> np.ndarray:
    """(seeds, prompts): rewards of a policy at the KL of ``others``, between two strengths of steering it.

    All are lists of runs, a seed each, with ``rewards`` and ``kls`` per prompt. Per seed both strengths are weighted
    so that their mean KLs give that of the other run.

    Raises:
        ValueError: the other run's KL does not lie between the two.
    """
    found = []
    for low, high, other in zip(near, far, others, strict=True):
        kls = [np.mean(run["kls"]) for run in (low, other, high)]
        if not kls[0] <= kls[1] <= kls[2]:
            raise ValueError(f"KL is {kls[1]:.2f}; accepted is what lies between {kls[0]:.2f} and {kls[2]:.2f}")
        weight = (kls[1] - kls[0]) / (kls[2] - kls[0])
        found.append((1 - weight) * np.array(low["rewards"]) + weight * np.array(high["rewards"]))
    return np.array(found)


def numbers(drawn: pd.DataFrame) -> dict:
    """Reward and KL of fresh samples with their intervals, words per response, share that ended by itself."""
    return {
        "reward": interval(drawn["reward"], drawn["prompt"]),
        "kl": interval(drawn["kl"], drawn["prompt"]),
        "words": round(float(drawn["words"].mean()), 2),
        "ended": round(float(drawn["ended"].mean()), 3),
    }


def train(config: dict, on_measure: Callable[[int, object], None] = lambda step, policy: None):
    """Train as ``config`` says: (policy, reference, tokenizer, ``loop.Run``).

    ``on_measure(steps done, policy)`` is called at ``config["measure_at"]``.
    """
    policy, tokenizer = models.load(config["model"], device="cpu")
    reference = loop.frozen_copy(policy)
    frame = lab.load_pairs("train", config["pairs"])
    if config["labels"] == "shuffled":
        frame = shuffled_labels(frame, seed=config["seed"])
    examples, pad = encode.encode_pairs(tokenizer, frame), {"pad_token_id": tokenizer.pad_token_id}

    def watch(step, _):
        if step + 1 in config["measure_at"]:
            on_measure(step + 1, policy.eval())

    run = loop.train_dpo(
        policy,
        examples,
        loop.reference_logps(reference, examples, **pad),
        order=loop.batch_order(len(examples), **{key: config[key] for key in ("batch_size", "epochs", "seed")}),
        loss=loss_of(config),
        on_step=watch,
        **{key: config[key] for key in ("beta", "learning_rate", "warmup_steps")},
        **pad,
    )
    return policy, reference, tokenizer, run


def heldout_logratios(policy, reference, tokenizer, config: dict) -> torch.Tensor:
    """(N, 2): log pi - log pi_ref of the held-out pairs' chosen and rejected responses."""
    examples = encode.encode_pairs(tokenizer, lab.load_pairs("heldout", config["heldout_pairs"]))
    both = [loop.reference_logps(m, examples, pad_token_id=tokenizer.pad_token_id) for m in (policy, reference)]
    return both[0] - both[1]


def preference_numbers(logratios: torch.Tensor, *, beta: float) -> dict:
    """Held-out preference loss and accuracy at ``beta``, and the mean log-ratios."""
    delta = logratios[:, 0] - logratios[:, 1]
    loss = losses.dpo(*logratios.T, torch.zeros(len(delta)), torch.zeros(len(delta)), beta=beta)
    means = {name: float(v) for name, v in zip(("chosen", "rejected"), logratios.mean(0), strict=True)}
    found = {"heldout_loss": loss.mean().item(), "accuracy": (delta > 0).float().mean().item()} | means
    return {name: round(value, 4) for name, value in found.items()}


def effective_beta(delta_logratios: torch.Tensor) -> float:
    """The beta at which a policy's log-ratio differences predict the preferences best.

    Minimises the mean of -log sigmoid(b * delta) over b > 0. A policy that is optimal at beta is calibrated there,
    so b = beta; one that has not moved far enough for its beta looks like the optimum of a larger one. That is so for
    preferences drawn with Bradley-Terry's noise; without noise no policy is optimal, and b is only the scale at which
    the differences are neither too bold nor too timid.

    Raises:
        ValueError: every difference has one sign, so that no finite b is best.
    """
    delta = delta_logratios.double()
    if bool((delta > 0).all()) or bool(delta.mean() <= 0):
        raise ValueError("the policy orders all pairs rightly, or none on average: no finite effective beta fits")
    from scipy.optimize import minimize_scalar

    def loss(log_beta: float) -> float:
        return -torch.nn.functional.logsigmoid(np.exp(log_beta) * delta).mean().item()

    return float(np.exp(minimize_scalar(loss, bounds=(np.log(1e-5), np.log(1e3)), method="bounded").x))


def run(config: dict) -> tuple[dict, tuple]:
    """One run of the grid: (results as numbers, (policy, reference, tokenizer)).

    Results: ``curve``, per measured step the numbers of fresh samples and of the held-out pairs; ``final`` the same
    at the end; ``rewards`` and ``kls``, a value per held-out prompt, for differences between runs.
    """
    base, tokenizer = models.load(config["model"], device="cpu")
    curve = []

    def measure(step, policy):
        held = preference_numbers(heldout_logratios(policy, base, tokenizer, config), beta=config["beta"])
        drawn = fresh(policy, base, tokenizer, config, prompts=config["curve_prompts"])
        curve.append({"step": step} | numbers(drawn) | held)

    policy, reference, tokenizer, trained = train(config, measure)
    sizes = {"prompts": config["eval_prompts"], "samples": config["final_samples"]}
    drawn = fresh(policy, reference, tokenizer, config, **sizes)
    logratios = heldout_logratios(policy, reference, tokenizer, config)
    final = {"step": len(trained.history) - 1} | numbers(drawn)
    final |= preference_numbers(logratios, beta=config["beta"])
    delta = logratios[:, 0] - logratios[:, 1]
    # no finite fit where every pair is ordered rightly, or none on average
    final["effective_beta"] = round(effective_beta(delta), 4) if (delta <= 0).any() and delta.mean() > 0 else None
    per_prompt = drawn.groupby("prompt", sort=False)[["reward", "kl"]].mean().round(3)
    results = {"curve": curve, "final": final}
    results |= {"rewards": per_prompt["reward"].tolist(), "kls": per_prompt["kl"].tolist()}
    return results, (policy, reference, tokenizer)
