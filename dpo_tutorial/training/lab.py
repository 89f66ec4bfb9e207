"""The lab: DPO on the lab LM in seconds, measured by true reward and KL on fresh samples.

One call trains and measures, so that sweeps over beta, seeds, losses and faults are one loop each.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import pandas as pd

from dpo_tutorial.data import pairs, scoring
from dpo_tutorial.theory import losses
from dpo_tutorial.training import encode, loop, models, sampling

MAX_NEW_TOKENS = 40
LAB_RUN = {
    "model": "lab_lm",
    "pairs": 480,
    "heldout_pairs": 160,
    "beta": 0.1,
    "learning_rate": 2e-4,
    "epochs": 1,
    "batch_size": 8,
    "warmup_steps": 6,
    "seed": 0,
    "eval_prompts": 160,
}


@dataclass
class Measured:
    """A policy on fresh samples of held-out prompts: means, and the samples themselves."""

    reward: float
    kl: float
    words: float
    ended: float
    samples: pd.DataFrame


def load_pairs(part: str, count: int) -> pd.DataFrame:
    """The first ``count`` shipped pairs of the lab LM; ``part`` is "train" or "heldout"."""
    frame = pairs.load(scoring.DATA_DIR / "pairs" / f"lab_{part}.jsonl")
    if count > len(frame):
        raise ValueError(f"{count} pairs were asked for, lab_{part}.jsonl holds {len(frame)}")
    return frame.head(count)


def measure(policy, reference, tokenizer, *, prompts: int, seed: int) -> Measured:
    """Sample one response per held-out prompt and score it.

    Returns ``reward``: mean P(positive); ``kl``: mean log pi - log pi_ref, an unbiased estimate of the
    sequence-level KL(policy, reference) in nats; ``words`` per response; ``ended``: share that ended by EOS.
    """
    texts = list(load_pairs("heldout", prompts)["prompt"])
    drawn = sampling.rollouts(
        policy, tokenizer, texts, n=1, max_new_tokens=MAX_NEW_TOKENS, seed=seed, ref_model=reference
    )
    drawn["reward"] = scoring.load_classifier().scores(list(drawn["prompt"] + drawn["text"]))
    drawn["kl"] = drawn["policy_logps"] - drawn["ref_logps"]
    return Measured(
        reward=float(drawn["reward"].mean()),
        kl=float(drawn["kl"].mean()),
        words=float(drawn["text"].str.split().str.len().mean()),
        ended=float((drawn["completion_ids"].str[-1] == tokenizer.eos_token_id).mean()),
        samples=drawn,
    )


def run(
    config: dict = LAB_RUN,
    *,
    policy=None,
    reference=None,
    train: pd.DataFrame | None = None,
    loss: Callable | None = None,
    append_eos: bool = True,
    evaluate_every: int = 0,
):
    """Train a policy on the lab pairs as ``config`` says: (policy, reference, tokenizer, ``loop.Run``).

    Args:
        policy, reference: default to the lab LM, and to a frozen copy of the policy.
        train: other pairs than the shipped ones.
        loss: default DPO at ``config["beta"]``.
    """
    base, tokenizer = models.load(config["model"], device="cpu")
    policy = base if policy is None else policy
    reference = loop.frozen_copy(policy) if reference is None else reference
    encoded = partial(encode.encode_pairs, tokenizer, append_eos=append_eos)
    pad = {"pad_token_id": tokenizer.pad_token_id}
    examples = encoded(load_pairs("train", config["pairs"]) if train is None else train)
    heldout = encoded(load_pairs("heldout", config["heldout_pairs"])) if evaluate_every else None
    result = loop.train_dpo(
        policy,
        examples,
        loop.reference_logps(reference, examples, **pad),
        order=loop.batch_order(len(examples), **{key: config[key] for key in ("batch_size", "epochs", "seed")}),
        heldout=heldout and (heldout, loop.reference_logps(reference, heldout, **pad)),
        evaluate_every=evaluate_every,
        loss=loss or partial(losses.dpo, beta=config["beta"]),
        **{key: config[key] for key in ("beta", "learning_rate", "warmup_steps")},
        **pad,
    )
    return policy, reference, tokenizer, result
