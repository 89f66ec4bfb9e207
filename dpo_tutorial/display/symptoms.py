"""Symptoms of a DPO run: what is seen, the likely cause, the check that tells, the cure.

One table, used twice: ``display.monitor`` applies it live, and notebook 10 prints and tests it. A rule reads
nothing but the history of metrics, ``{name: [(step, value), ...]}``, and says nothing where a metric is missing.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import pandas as pd

LOG2 = math.log(2)
RECENT = 6  # steps that a "recent" value looks back on
SETTLED = 12  # no rule about a curve's shape speaks before so many steps
FLAT = 0.002  # a loss is flat when it stays this close to log 2
MOVED = 0.05  # nats: below, the log-ratios have hardly moved

History = dict[str, list[tuple[int, float]]]


def first(history: History, name: str) -> float:
    """The first value of a metric; NaN where there is none (and no comparison with NaN is true)."""
    return history[name][0][1] if history.get(name) else math.nan


def last(history: History, name: str) -> float:
    """The last value of a metric, NaN where there is none."""
    return history[name][-1][1] if history.get(name) else math.nan


def recent(history: History, name: str) -> list[float]:
    """The values of the last ``RECENT`` steps, once ``SETTLED`` steps are there; empty before."""
    points = history.get(name, [])
    return [value for _, value in points[-RECENT:]] if len(points) >= SETTLED else []


def mean(history: History, name: str) -> float:
    """Mean over the last steps, NaN where :func:`recent` is empty."""
    values = recent(history, name)
    return sum(values) / len(values) if values else math.nan


def largest(history: History, *names: str) -> float:
    """The largest recent absolute value of some metrics, NaN where one of them is missing."""
    values = [[abs(value) for value in recent(history, name)] for name in names]
    return max(map(max, values)) if all(values) else math.nan


def moved(history: History) -> float:
    """How far the log-ratios have moved, in nats: largest recent |chosen| or |rejected| log-ratio."""
    return largest(history, "chosen_logratios", "rejected_logratios")


def raised(history: History) -> bool:
    """Whether a loss that started near log 2 has risen by more than .1 (another loss, SFT's say, is not judged)."""
    return mean(history, "loss") > LOG2 + 0.1 and abs(first(history, "loss") - LOG2) < 1


def delta(history: History) -> float:
    """Largest recent |chosen - rejected log-ratio|, in nats: the margin without beta."""
    chosen, rejected = recent(history, "chosen_logratios"), recent(history, "rejected_logratios")
    return max((abs(c - r) for c, r in zip(chosen, rejected, strict=True)), default=math.nan)


def flat(history: History) -> bool:
    """Whether every recent loss is log 2, to within ``FLAT``."""
    losses = recent(history, "loss")
    return bool(losses) and max(abs(loss - LOG2) for loss in losses) < FLAT


def not_finite(history: History) -> bool:
    """Whether any loss or gradient norm is NaN or infinite."""
    return any(not math.isfinite(value) for name in ("loss", "grad_norm") for _, value in history.get(name, []))


@dataclass(frozen=True)
class Symptom:
    """One line of the table. ``seen(history)`` is the check that ``metric`` states in words."""

    name: str
    symptom: str
    metric: str
    seen: Callable[[History], bool]
    cause: str
    check: str
    cure: str


TABLE = (
    Symptom(
        name="not finite",
        symptom="the loss is NaN",
        metric="loss or grad_norm is NaN or infinite",
        seen=not_finite,
        cause="float16 weights: Adam's epsilon and small squares round to 0",
        check="the dtype of the trained weights",
        cure="train in float32, or keep float32 copies of the trained weights; bfloat16 has the range, few digits",
    ),
    Symptom(
        name="wrong reference",
        symptom="the first loss is not log 2",
        metric="|chosen or rejected log-ratio| at the first step > 0.5 nats",
        seen=lambda h: max(abs(first(h, "chosen_logratios")), abs(first(h, "rejected_logratios"))) > 0.5,
        cause="the reference is not the model that training starts from, or its cache is in another order",
        check="log-ratios of a few pairs before the first step: all 0",
        cure="copy the policy after SFT and before DPO; index the cache with the rows of the batch",
    ),
    Symptom(
        name="EOS not once",
        symptom="samples do not end, or end twice",
        metric="EOS tokens per response differ from 1",
        seen=lambda h: abs(first(h, "eos_per_response") - 1) > 0.02,
        cause="EOS was not appended, or max_length cut it off, or it was appended to text that had one",
        check="decode the last two tokens of ten rows",
        cure="append EOS once, in one place",
    ),
    Symptom(
        name="template twice",
        symptom="good losses, poor samples",
        metric="the template's opening stands in a prompt more than once",
        seen=lambda h: first(h, "template_openings") > 1.02,
        cause="text that already went through the chat template went through it again",
        check="decode one prompt and read it",
        cure="give the trainer messages, or text, not templated text as a message",
    ),
    Symptom(
        name="nothing scored",
        symptom="flat at .693",
        metric="flat; log-ratios and gradient are 0",
        seen=lambda h: flat(h) and moved(h) < 1e-6 and largest(h, "grad_norm") < 1e-6,
        cause="no completion token is scored (an empty mask, a prompt that fills max_length)",
        check="scored tokens per row",
        cure="mend the mask; raise max_length",
    ),
    Symptom(
        name="tied reference",
        symptom="flat at .693",
        metric="flat; log-ratios are 0, the gradient is not",
        seen=lambda h: flat(h) and moved(h) < 1e-6 and largest(h, "grad_norm") >= 1e-6,
        cause="the reference is the policy itself and moves with it",
        check="are reference and policy the same object, or share weights?",
        cure="a frozen copy, or the adapter switched off",
    ),
    Symptom(
        name="identical pairs",
        symptom="flat at .693",
        metric="flat; chosen minus rejected log-ratio below 1e-4",
        seen=lambda h: flat(h) and moved(h) >= 1e-6 and delta(h) < 1e-4,
        cause="chosen and rejected are the same, or the same after max_length cut them",
        check="share of pairs whose ids are equal after truncation",
        cure="raise max_length; drop equal pairs",
    ),
    Symptom(
        name="rate too low",
        symptom="flat at .693",
        metric="flat; every |log-ratio| below 0.05 nats",
        seen=lambda h: flat(h) and delta(h) >= 1e-4 and moved(h) < MOVED,
        cause="the learning rate, or a warm-up that is longer than the run",
        check="log-ratios: have they moved at all?",
        cure="raise the rate threefold until they do",
    ),
    Symptom(
        name="beta too small",
        symptom="flat at .693",
        metric="flat; some |log-ratio| above 0.05 nats",
        seen=lambda h: flat(h) and delta(h) >= 1e-4 and moved(h) >= MOVED,
        cause="beta: the log-ratios move, the margins (beta times those) do not",
        check="margins divided by log-ratios",
        cure="raise beta; the reward on samples says whether the policy was learning all the same",
    ),
    Symptom(
        name="beta too high",
        symptom="the loss rises above .693 at once",
        metric="recent loss > .793 while the log-ratios are below 5 nats",
        seen=lambda h: raised(h) and moved(h) < 5,
        cause="beta multiplies the noise of the log-ratios into large margins of both signs",
        check="|margin| against |log-ratio|",
        cure="lower beta",
    ),
    Symptom(
        name="rate too high",
        symptom="the loss rises above .693 and stays there",
        metric="recent loss > .793 while log-ratios exceed 5 nats",
        seen=lambda h: raised(h) and moved(h) >= 5,
        cause="the learning rate",
        check="log-ratios of both responses: tens of nats below 0",
        cure="lower the rate threefold until the held-out loss falls",
    ),
    Symptom(
        name="updates lost",
        symptom="learns slowly, or not at all",
        metric="less than .4 of the weights change in a step",
        seen=lambda h: mean(h, "updated") < 0.4,
        cause="bfloat16 weights: a step below their last digit is rounded away",
        check="share of weights that one step changes",
        cure="float32 weights (or LoRA in float32 over a bfloat16 base)",
    ),
    Symptom(
        name="too easy",
        symptom="the loss falls to 0 and flattens there",
        metric="recent loss < .1 within 40 steps",
        seen=lambda h: len(h.get("loss", [])) <= 40 and mean(h, "loss") < 0.1,
        cause="one look tells chosen from rejected: nonsense, length, a stock phrase",
        check="held-out loss on pairs of the task you care about; ten rejected responses, read",
        cure="harder pairs: both from the model itself",
    ),
    Symptom(
        name="overfitting",
        symptom="held-out loss turns up",
        metric="held-out loss > its best + .02 while the training loss is .1 below it",
        seen=lambda h: (
            last(h, "eval_loss") > min((v for _, v in h.get("eval_loss", [])), default=math.nan) + 0.02
            and mean(h, "loss") < min(LOG2, last(h, "eval_loss") - 0.1)
        ),
        cause="more epochs than the pairs can bear",
        check="held-out loss by epoch",
        cure="stop at the best held-out step, then measure samples; more pairs",
    ),
    Symptom(
        name="displacement",
        symptom="both log-ratios fall",
        metric="recent chosen log-ratio < -5 nats while the margin is positive",
        seen=lambda h: mean(h, "chosen_logratios") < -5 and mean(h, "margins") > 0,
        cause="the loss sees the difference only; similar responses share most tokens",
        check="chosen log-ratio, and what the policy writes now",
        cure="an SFT term, DPO-positive, pairs that differ more; or nothing, if the samples are better",
    ),
    Symptom(
        name="shortcut",
        symptom="training loss falls, held-out loss never does",
        metric="recent loss < .683, held-out loss at its end > log 2 + .004",
        seen=lambda h: mean(h, "loss") < LOG2 - 0.01 and last(h, "eval_loss") > LOG2 + 0.004,
        cause="the training labels follow something else (length, a phrase, flipped columns) than the held-out ones",
        check="do length or a word alone give the label away?",
        cure="balance what gives the label away",
    ),
    Symptom(
        name="runs on",
        symptom="samples grow longer and do not end",
        metric="share of samples that end < .7 of the reference's, or words > 1.4 times",
        seen=lambda h: last(h, "ended") < 0.7 * first(h, "ended") or last(h, "words") > 1.4 * first(h, "words"),
        cause="EOS lost probability: a rate too high, long chosen responses, EOS not scored",
        check="words and share ended, of samples",
        cure="lower the rate; balance lengths; score EOS",
    ),
    Symptom(
        name="stops early",
        symptom="samples shrink",
        metric="words < .8 of the reference's",
        seen=lambda h: last(h, "words") < 0.8 * first(h, "words"),
        cause="the chosen responses are the shorter ones",
        check="mean words of chosen and rejected",
        cure="balance lengths",
    ),
    Symptom(
        name="repeats itself",
        symptom="samples repeat words",
        metric="share of different words in a sample < .9 of the reference's",
        seen=lambda h: last(h, "distinct") < 0.9 * first(h, "distinct"),
        cause="the policy left the data: too low a beta or too high a rate for too long",
        check="read ten samples",
        cure="a shorter leash: higher beta, lower rate, fewer steps",
    ),
    Symptom(
        name="reward falls",
        symptom="every curve is healthy, the samples are worse",
        metric="reward of samples < the reference's - .05",
        seen=lambda h: last(h, "reward") < first(h, "reward") - 0.05,
        cause="chosen and rejected are swapped, or the labels reward something else",
        check="ten pairs, read; the reward of samples",
        cure="swap back; look at the labels",
    ),
)


def warnings(history: History) -> list[Symptom]:
    """The symptoms that this history shows, in the table's order.

    >>> [s.name for s in warnings({"loss": [(0, 0.69), (1, float("nan"))]})]
    ['not finite']
    """
    return [symptom for symptom in TABLE if symptom.seen(history)]


def frame() -> pd.DataFrame:
    """The table as a frame: symptom, metric and threshold, likely cause, check, cure; indexed by name."""
    columns = ["name", "symptom", "metric", "cause", "check", "cure"]
    return pd.DataFrame([[getattr(row, column) for column in columns] for row in TABLE], columns=columns).set_index(
        "name"
    )
