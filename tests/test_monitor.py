"""The monitor and its warnings: the table of symptoms, thresholds on both sides, and each fault caused for real."""

import math

import pytest

from dpo_tutorial.display import symptoms
from dpo_tutorial.display.monitor import Monitor

LOG2 = math.log(2)


def history(steps=14, **metrics):
    """The same value at every step, per metric; a pair (first, last) for what is measured twice."""
    out = {}
    for name, value in metrics.items():
        values = list(value) if isinstance(value, tuple) else [value] * steps
        out[name] = list(enumerate(values))
    return out


LOW = history(loss=0.5)
STILL = {"chosen_logratios": 0.0, "rejected_logratios": 0.0}
# name of the symptom: (a history just beyond its threshold, one just short of it)
EDGES = {
    "not finite": (history(loss=(0.69, math.inf)), history(loss=(0.69, 1e9))),
    "wrong reference": (
        history(chosen_logratios=(-0.51, 0), rejected_logratios=(0.0, 0)),
        history(chosen_logratios=(-0.49, 9), rejected_logratios=(0.49, 9)),
    ),
    "EOS not once": (history(eos_per_response=(0.97,)), history(eos_per_response=(0.99,))),
    "template twice": (history(template_openings=(2.0,)), history(template_openings=(1.0,))),
    "nothing scored": (history(loss=LOG2, grad_norm=0.0, **STILL), history(loss=LOG2, grad_norm=1e-5, **STILL)),
    "tied reference": (history(loss=LOG2, grad_norm=1e-5, **STILL), history(loss=LOG2, grad_norm=0.0, **STILL)),
    "identical pairs": (
        history(loss=LOG2, chosen_logratios=0.2, rejected_logratios=0.2),
        history(loss=LOG2, chosen_logratios=0.2, rejected_logratios=0.1998),
    ),
    "rate too low": (
        history(loss=LOG2 + 0.0019, chosen_logratios=0.049, rejected_logratios=0.03),
        history(loss=LOG2 + 0.0021, chosen_logratios=0.049, rejected_logratios=0.03),
    ),
    "beta too small": (
        history(loss=LOG2, chosen_logratios=0.051, rejected_logratios=0.03),
        history(loss=LOG2, chosen_logratios=0.049, rejected_logratios=0.03),
    ),
    "beta too high": (
        history(loss=0.80, chosen_logratios=-4.9, rejected_logratios=-4.0),
        history(loss=0.79, chosen_logratios=-4.9, rejected_logratios=-4.0),
    ),
    "rate too high": (
        history(loss=0.80, chosen_logratios=-5.1, rejected_logratios=-4.0),
        history(loss=0.80, chosen_logratios=-4.9, rejected_logratios=-4.0),
    ),
    "updates lost": (history(updated=0.39), history(updated=0.41)),
    "too easy": (history(loss=0.09), history(loss=0.11)),
    "overfitting": (history(eval_loss=(0.65, 0.675)) | LOW, history(eval_loss=(0.65, 0.66)) | LOW),
    "shortcut": (history(eval_loss=(0.69, 0.70)) | LOW, history(eval_loss=(0.69, 0.695)) | LOW),
    "displacement": (history(chosen_logratios=-5.1, margins=0.1), history(chosen_logratios=-4.9, margins=0.1)),
    "runs on": (history(ended=(0.8, 0.55)), history(ended=(0.8, 0.57))),
    "stops early": (history(words=(15, 11.9)), history(words=(15, 12.1))),
    "repeats itself": (history(distinct=(0.95, 0.85)), history(distinct=(0.95, 0.86))),
    "reward falls": (history(reward=(0.43, 0.37)), history(reward=(0.43, 0.39))),
}  # fmt: skip


def names(of):
    return [symptom.name for symptom in symptoms.warnings(of)]


@pytest.mark.parametrize("name", [symptom.name for symptom in symptoms.TABLE])
def test_each_threshold_has_two_sides(name):
    beyond, short = EDGES[name]
    assert name in names(beyond)
    assert name not in names(short)


def test_the_table_is_whole():
    assert sorted(EDGES) == sorted(symptoms.frame().index) and symptoms.frame().index.is_unique
    assert (symptoms.frame().map(len) > 3).all(axis=None)


def test_a_loss_that_is_not_dpos_is_not_called_too_high():
    for chosen, name in ((-4.9, "beta too high"), (-9.0, "rate too high")):
        moved = {"chosen_logratios": chosen, "rejected_logratios": -4.0}
        assert name not in names(history(loss=5.2, **moved)) and name in names(history(loss=0.9, **moved))


def test_no_metric_no_warning():
    assert names({}) == [] and names({"loss": [(0, 0.7)]}) == []


@pytest.mark.parametrize("steps", range(1, symptoms.SETTLED))
def test_a_curve_is_not_judged_before_it_has_settled(steps):
    assert names(history(steps, loss=LOG2, grad_norm=1.0, updated=0.1, **STILL)) == []


def test_the_five_flat_lines_exclude_each_other():
    flats = ("nothing scored", "tied reference", "identical pairs", "rate too low", "beta too small")
    assert [names(EDGES[name][0]) for name in flats] == [[name] for name in flats]


def test_the_monitor_warns_in_its_picture_and_nowhere_else():
    monitor = Monitor("a run", show=False)
    quiet = monitor._bundle()
    monitor.update(0, {"chosen_logratios": 3.0, "rejected_logratios": 0.0, "loss": 0.5})
    loud = monitor._bundle()
    assert [symptom.name for symptom in monitor.warnings()] == ["wrong reference"]
    assert monitor.figure()._supxlabel.get_text().startswith("WRONG REFERENCE: ")
    assert quiet["text/plain"] == loud["text/plain"] == "[monitor] a run" and set(loud) == {"image/png", "text/plain"}
    assert quiet["image/png"] != loud["image/png"]


def test_a_healthy_history_is_left_alone():
    """Notebook 09's recorded runs, which all raised the held-out reward: no warning."""
    from dpo_tutorial.training import records

    ours = {"loss": "loss", "rewards/margins": "margins", "rewards/chosen": "chosen_logratios"}
    ours |= {"rewards/rejected": "rejected_logratios"}
    for seed in (0, 1, 2):
        curves = records.load("nb09", dict(records.SENTIMENT_RUN, seed=seed))["results"]["curves"]
        seen = {}
        for name, points in curves.items():
            prefix, plain = ("eval_", name[5:]) if name.startswith("eval_") else ("", name)
            if plain in ours:
                beta = records.SENTIMENT_RUN["beta"] if ours[plain].endswith("logratios") else 1
                seen[prefix + ours[plain]] = [(step, value / beta) for step, value in points]
        assert len(seen["loss"]) == 48 and len(seen["eval_loss"]) == 4
        assert names(seen) == []


def test_swapped_labels_in_recorded_runs_show_in_the_reward_and_in_nothing_else():
    """Notebook 10's runs on right and on swapped labels, three seeds: what the policies wrote, before and after."""
    from dpo_tutorial.training import faults

    more = {"count": 320, "learning_rate": 5e-4, "evaluate_every": 40}
    for kind, expected in (("as shipped", False), ("swapped", True)):
        for run in faults.recorded(**more, **({} if kind == "as shipped" else {"pairs": kind})):
            seen = {name: [(0, run["before"][name]), (40, run["written"][name])] for name in run["written"]}
            assert ("reward falls" in names(seen | run["curves"])) is expected
