"""Faults on purpose: short DPO runs on the lab LM, each fault switched on by one argument (notebook 10)."""

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import pandas as pd
import torch

from dpo_tutorial.data import filters
from dpo_tutorial.display import symptoms
from dpo_tutorial.display.monitor import Monitor
from dpo_tutorial.theory import losses
from dpo_tutorial.training import encode, lab, logps, loop, models, records

HEALTHY = {
    "pairs": "as shipped",
    "count": 128,
    "heldout_count": 32,
    "beta": 0.1,
    "learning_rate": 3e-4,
    "epochs": 1,
    "batch_size": 8,
    "warmup_steps": 3,
    "max_grad_norm": 1.0,
    "dtype": "float32",
    "rank": 0,
    "eos": 1,
    "scored": "completion",
    "reference": "start",
    "objective": "dpo",
    "evaluate_every": 8,
}
GALLERY = {
    "rate too low": {"learning_rate": 1e-6},
    "beta too small": {"beta": 1e-3},
    "identical pairs": {"pairs": "cut"},
    "tied reference": {"reference": "policy"},
    "nothing scored": {"scored": "nothing"},
    "rate too high": {"learning_rate": 1e-2},
    "beta too high": {"beta": 5.0},
    "not finite": {"dtype": "float16"},
    "updates lost": {"dtype": "bfloat16"},
    "wrong reference": {"reference": "before SFT"},
    "cache in another order": {"reference": "misaligned"},
    "too easy": {"pairs": "easy"},
    "shortcut": {"pairs": "longer loses"},
}
LONG = {"count": 480, "batch_size": 16, "evaluate_every": 10}  # a healthy run: 30 batches
SHORT = {"count": 104, "evaluate_every": 13, "learning_rate": 5e-4}  # a run of the gallery: 13 batches of 8 pairs
RECORDED_SEEDS = (0, 1, 2)
OPENING = " I will tell you what I think of it, so here is my honest view of this film, in a few words."
SIMILAR = 0.7  # of drop_near_identical: 1 is the same text
CUT = 24  # tokens: the opening alone is longer


def _swap(frame: pd.DataFrame) -> pd.DataFrame:
    return frame.rename(columns={"chosen": "rejected", "rejected": "chosen"})


def _similar(frame: pd.DataFrame) -> pd.DataFrame:
    """The rejected response is the chosen one with its middle word taken from the rejected one."""
    rejected = []
    for chosen, other in zip(frame["chosen"].str.split(" "), frame["rejected"].str.split(), strict=True):
        place = len(chosen) // 2
        rejected.append(" ".join([*chosen[:place], other[min(place, len(other) - 1)], *chosen[place + 1 :]]))
    return frame.assign(rejected=rejected)


def _half_similar(frame: pd.DataFrame) -> pd.DataFrame:
    """Every second pair is similar."""
    odd = pd.Series(range(len(frame)), index=frame.index) % 2 == 1
    return frame.assign(rejected=frame["rejected"].where(~odd, _similar(frame)["rejected"]))


def _filtered(frame: pd.DataFrame) -> pd.DataFrame:
    """Half similar, and then what ``filters.drop_near_identical`` leaves of them."""
    return filters.drop_near_identical(_half_similar(frame), similarity=SIMILAR)[0]


PAIRS: dict[str, Callable[[pd.DataFrame], pd.DataFrame]] = {
    "as shipped": lambda frame: frame,
    "cut": lambda frame: frame.assign(chosen=OPENING + frame["chosen"], rejected=OPENING + frame["rejected"]),
    "easy": lambda frame: frame.assign(rejected=" word" * 10),
    "longer loses": lambda frame: frame.assign(rejected=frame["chosen"] + frame["rejected"]),
    "swapped": _swap,
    "similar": _similar,
    "half similar": _half_similar,
    "half similar, filtered": _filtered,
    "long": lambda frame: frame.assign(**{k: frame[k] * 3 for k in ("chosen", "rejected")}),
}

TASK_HELD_OUT = ("easy", "longer loses")


@dataclass
class Trained:
    """A run: its settings, the policy and the reference after it, and the monitor that watched it."""

    settings: dict
    policy: object
    reference: object
    tokenizer: object
    monitor: Monitor

    @property
    def history(self) -> dict[str, list[tuple[int, float]]]:
        return self.monitor.history

    @property
    def warnings(self) -> list[str]:
        """Names of the symptoms that the monitor saw."""
        return [symptom.name for symptom in self.monitor.warnings()]


def pairs_of(kind: str, part: str, count: int) -> pd.DataFrame:
    """Lab pairs of ``part`` ("train", "heldout") with the fault ``kind`` of ``PAIRS``.

    Held-out pairs of the kinds in ``TASK_HELD_OUT`` stay as shipped: the task one cares about.
    """
    if kind not in PAIRS:
        raise ValueError(f"pairs is {kind!r}; accepted are {', '.join(PAIRS)}")
    frame = lab.load_pairs(part, count)
    return frame if part == "heldout" and kind in TASK_HELD_OUT else PAIRS[kind](frame)


def encode_rows(tokenizer, frame, *, eos: int = 1, max_length: int | None = None) -> list[dict[str, list[int]]]:
    """Encoded pairs with ``eos`` EOS tokens per response, cut to ``max_length`` tokens (prompt included)."""
    rows = encode.encode_pairs(tokenizer, frame, append_eos=eos > 0)
    for row in rows:
        room = None if max_length is None else max_length - len(row["prompt_ids"])
        for key in ("chosen_ids", "rejected_ids"):
            row[key] = (row[key] + [tokenizer.eos_token_id] * (eos - 1))[:room]
    return rows


def look(rows: list[dict[str, list[int]]], tokenizer) -> dict[str, float]:
    """What can be known before the first step: EOS tokens and tokens per response, share of equal pairs."""
    responses = [row[key] for row in rows for key in ("chosen_ids", "rejected_ids")]
    return {
        "eos_per_response": sum(ids.count(tokenizer.eos_token_id) for ids in responses) / len(responses),
        "tokens_per_response": sum(map(len, responses)) / len(responses),
        "equal_pairs": sum(row["chosen_ids"] == row["rejected_ids"] for row in rows) / len(rows),
    }


def score_all(model, batch) -> torch.Tensor:
    """The sum over every real token, the prompt's included: (rows,)."""
    return logps.completion_logps(model, batch | {"completion_mask": batch["attention_mask"]})


def score_nothing(model, batch) -> torch.Tensor:
    """The sum over an empty mask: 0 for every row, which ``logps.completion_logps`` refuses to return."""
    return logps.completion_logps(model, batch) * 0.0


class _InFloat32:
    """A model called with float32 copies of its weights; gradients reach the weights as they are stored."""

    def __init__(self, model):
        self.model, self.device = model, model.device
        self.weights = {name: weight.float() for name, weight in model.named_parameters()}

    def __call__(self, **inputs):
        return torch.func.functional_call(self.model, self.weights, kwargs=inputs)


def in_float32(logps_of: Callable) -> Callable:
    """``logps_of`` with float32 arithmetic on weights that stay bfloat16, for processors that emulate bfloat16."""
    return lambda model, batch: logps_of(_InFloat32(model), batch)


SCORED = {"completion": logps.completion_logps, "prompt too": score_all, "nothing": score_nothing}


def sft_loss(policy_chosen, policy_rejected, ref_chosen, ref_rejected) -> torch.Tensor:
    """Minus the log-probability of the chosen response, over 20 tokens: SFT as a loss of the same loop; (B,)."""
    return -policy_chosen / 20


def objective(name: str, beta: float) -> Callable:
    """The loss called ``name``: "dpo", "sft", "dpo + sft" (SFT's loss added) or "dpo-positive".

    DPO-positive (Smaug, arXiv 2402.13228, with its lambda at 5) subtracts 5 max(0, log pi_ref - log pi) of the
    chosen response inside the sigmoid.
    """
    dpo = partial(losses.dpo, beta=beta)

    def positive(policy_chosen, policy_rejected, ref_chosen, ref_rejected):
        lost = 5.0 * torch.relu(ref_chosen - policy_chosen)
        return dpo(policy_chosen - lost, policy_rejected, ref_chosen, ref_rejected)

    table = {
        "dpo": dpo,
        "sft": sft_loss,
        "dpo + sft": lambda *logps_of_both: dpo(*logps_of_both) + sft_loss(*logps_of_both),
        "dpo-positive": positive,
    }
    if name not in table:
        raise ValueError(f"objective is {name!r}; accepted are {', '.join(table)}")
    return table[name]


@dataclass(frozen=True)
class Telltale:
    """The number that catches a fault: a fault lies below the threshold, or above it with ``above``."""

    metric: str
    value: Callable[[symptoms.History], float]
    threshold: float
    above: bool = False

    def caught(self, value: float) -> bool:
        """Whether a number lies on the fault's side of the threshold; NaN does not."""
        return value > self.threshold if self.above else value < self.threshold


def _off_log2(history: symptoms.History) -> float:
    return max((abs(value - symptoms.LOG2) for value in symptoms.recent(history, "loss")), default=math.nan)


def _first_logratio(history: symptoms.History) -> float:
    return max(abs(symptoms.first(history, f"{side}_logratios")) for side in ("chosen", "rejected"))


def _finite(history: symptoms.History) -> float:
    return float(sum(math.isfinite(value) for _, value in history["loss"]))


def _gap(history: symptoms.History) -> float:
    return symptoms.last(history, "eval_loss") - symptoms.mean(history, "loss")


def _gradient(history: symptoms.History) -> float:
    return symptoms.largest(history, "grad_norm")


_LOSS = partial(symptoms.mean, name="loss")
_AT_START = Telltale("|log-ratio| at the first step (nats)", _first_logratio, 0.5, above=True)
_RAISED = Telltale("recent loss", _LOSS, symptoms.LOG2 + 0.1, above=True)
TELLTALES = {
    "rate too low": Telltale("largest recent |log-ratio| (nats)", symptoms.moved, symptoms.MOVED),
    "beta too small": Telltale("largest recent |loss - log 2|", _off_log2, symptoms.FLAT),
    "identical pairs": Telltale("largest recent |delta| (nats)", symptoms.delta, 1e-4),
    "tied reference": Telltale("largest recent |log-ratio| (nats)", symptoms.moved, 1e-6),
    "nothing scored": Telltale("largest recent gradient norm", _gradient, 1e-6),
    "rate too high": _RAISED,
    "beta too high": _RAISED,
    "not finite": Telltale("finite losses", _finite, SHORT["evaluate_every"]),
    "updates lost": Telltale("share of weights a step changes", partial(symptoms.mean, name="updated"), 0.4),
    "wrong reference": _AT_START,
    "cache in another order": _AT_START,
    "too easy": Telltale("recent loss", _LOSS, 0.1),
    "shortcut": Telltale("last held-out loss - recent loss", _gap, 0.014, above=True),
}


def record_config(*, prompts: int = 48, **switches) -> dict:
    """The configuration of a record of notebook 10: what is switched, from what, seeds, prompts measured on."""
    return {"switches": switches, "healthy": HEALTHY, "seeds": list(RECORDED_SEEDS), "prompts": prompts}


def recorded(**switches) -> list[dict]:
    """The recorded runs with these switches, one per seed: ``warnings, before, written, curves, telltales``.

    Telltales are computed anew from the recorded curves, but for those whose curve was not kept.
    """
    results = records.load("nb10", record_config(**switches))["results"]
    for run in results.values():
        anew = {name: telltale.value(run["curves"]) for name, telltale in TELLTALES.items()}
        run["telltales"] = run.get("telltales", {}) | {k: v for k, v in anew.items() if math.isfinite(v)}
    return [results[f"seed {seed}"] for seed in RECORDED_SEEDS]


def band(values: list[float], threshold: float) -> tuple[float, float]:
    """:func:`records.band`, widened also by a tenth of a telltale's threshold."""
    return records.band(values, 0.1 * threshold)


@functools.lru_cache(maxsize=3)
def _lab_lm(dtype: str):
    """The lab LM, frozen: the reference of every run here, and what its policy is copied from."""
    model, tokenizer = models.load("lab_lm", device="cpu", dtype=getattr(torch, dtype))
    return model.requires_grad_(False), tokenizer


def train(*, seed: int, monitor: Monitor | None = None, **switches) -> Trained:
    """Train the lab LM on ``HEALTHY`` settings but for ``switches``, watched by a monitor.

    Switches are the keys of ``HEALTHY``. ``dtype`` is that of the weights (the arithmetic of
    bfloat16 ones is float32's where that is faster); ``rank`` > 0 trains LoRA; ``eos`` is
    how many EOS tokens end a response; ``reference`` is "start" (right), "policy" (moves along), "before SFT"
    (the policy has had an epoch of SFT, the reference has not) or "misaligned" (its cache is off by one row).

    A loss that is not finite ends the run and stands as NaN in the history.
    """
    unknown = set(switches) - set(HEALTHY)
    if unknown:
        raise ValueError(f"no such switch: {', '.join(sorted(unknown))}; there are {', '.join(HEALTHY)}")
    setting = HEALTHY | switches
    monitor = monitor or Monitor(", ".join(f"{k} {v}" for k, v in switches.items()) or "healthy", show=False)
    base, tokenizer = _lab_lm(setting["dtype"])
    cut = {"eos": setting["eos"], "max_length": CUT if setting["pairs"] == "cut" else None}
    rows, heldout = (
        encode_rows(tokenizer, pairs_of(setting["pairs"], part, setting[count]), **cut)
        for part, count in (("train", "count"), ("heldout", "heldout_count"))
    )
    monitor.update(0, look(rows, tokenizer))
    policy = loop.frozen_copy(base).requires_grad_(True)
    if setting["reference"] == "before SFT":
        _fit(policy, rows, tokenizer, HEALTHY | {"seed": seed}, torch.zeros(len(rows), 2), loss=sft_loss)
    if setting["rank"]:
        policy = models.add_lora(policy, rank=setting["rank"], seed=seed)
    _train(policy, base, tokenizer, rows, heldout, setting | {"seed": seed}, monitor)
    return Trained(setting | {"seed": seed}, policy.eval(), base, tokenizer, monitor)


def _train(policy, reference, tokenizer, rows, heldout, setting, monitor) -> None:
    """The run itself; the monitor keeps its numbers."""
    logps_of = SCORED[setting["scored"]]
    if setting["dtype"] == "bfloat16" and models.bfloat16_speedup() < 1:
        logps_of = in_float32(logps_of)  # what is lost is lost where the weights are stored
    cache = partial(loop.reference_logps, pad_token_id=tokenizer.pad_token_id, logps_of=logps_of)
    ref_logps = cache(reference, rows)
    if setting["reference"] == "policy":

        def ref_logps(numbers):
            return cache(policy, [rows[i] for i in numbers])

    elif setting["reference"] == "misaligned":
        ref_logps = ref_logps.roll(1, 0)
    try:
        _fit(
            policy, rows, tokenizer, setting, ref_logps,
            loss=objective(setting["objective"], setting["beta"]), logps_of=logps_of,
            heldout=(heldout, cache(reference, heldout)) if setting["evaluate_every"] else None,
            evaluate_every=setting["evaluate_every"], on_step=_watch(policy, monitor),
        )  # fmt: skip
    except FloatingPointError:
        monitor.update(len(monitor.history.get("grad_norm", [])), {"loss": math.nan})
    monitor.close()


def _fit(policy, rows, tokenizer, setting, ref_logps, **options) -> None:
    order = loop.batch_order(len(rows), **{key: setting[key] for key in ("batch_size", "epochs", "seed")})
    keys = ("beta", "learning_rate", "warmup_steps", "max_grad_norm")
    settings = {key: setting[key] for key in keys}
    loop.train_dpo(policy, rows, ref_logps, order=order, pad_token_id=tokenizer.pad_token_id, **settings, **options)


def _watch(policy, monitor: Monitor) -> Callable[[int, dict], None]:
    """An ``on_step`` that adds ``updated``, the share of trained weights that the step changed."""
    trained = [p for p in policy.parameters() if p.requires_grad]
    count = sum(p.numel() for p in trained)
    before = [p.detach().clone() for p in trained]

    def on_step(step: int, row: dict) -> None:
        changed = sum((p != old).sum().item() for p, old in zip(trained, before, strict=True))
        for old, p in zip(before, trained, strict=True):
            old.copy_(p.detach())
        monitor.update(step, row | ({"updated": changed / count} if "loss" in row and step else {}))

    return on_step


@functools.lru_cache(maxsize=8)
def lab_lm_writes(prompts: int, seed: int) -> dict[str, float]:
    """What the lab LM itself writes, in the numbers of :func:`measure`."""
    model, tokenizer = _lab_lm("float32")
    return _written(lab.measure(model, model, tokenizer, prompts=prompts, seed=seed))


def _written(drawn: lab.Measured) -> dict[str, float]:
    words = drawn.samples["text"].str.split()
    distinct = sum(len(set(row)) / max(len(row), 1) for row in words) / len(words)
    return {name: getattr(drawn, name) for name in ("reward", "kl", "words", "ended")} | {"distinct": distinct}


def measure(run: Trained, *, prompts: int, seed: int) -> list[str]:
    """Add to the run's monitor what is written on held-out prompts: by the lab LM, then by the policy.

    Metrics: ``reward, kl, words, ended`` as in ``lab.measure``, and ``distinct``, the share of different words in a
    sample. Returns the policy's samples, prompts included.
    """
    drawn = lab.measure(run.policy, run.reference, run.tokenizer, prompts=prompts, seed=seed)
    run.monitor.update(0, lab_lm_writes(prompts, seed))
    run.monitor.update(len(run.history["loss"]), _written(drawn))
    return list(drawn.samples["prompt"] + drawn.samples["text"])
