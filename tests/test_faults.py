"""Each warning caused for real: a fault switched on, a short run on the lab LM, and the monitor names it."""

import copy
import sys
from pathlib import Path

import pytest
import torch

from dpo_tutorial.data import filters
from dpo_tutorial.display.monitor import Monitor
from dpo_tutorial.training import encode, faults, logps, models, records

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tools" / "record_groups"))
import nb10

# 13 steps of 2 pairs: enough for a curve to settle, a second or two each.
SHORT = {"count": 26, "batch_size": 2, "heldout_count": 8, "evaluate_every": 0, "warmup_steps": 1}
FLAT = ("rate too low", "beta too small", "identical pairs", "tied reference", "nothing scored")


def run(**switches):
    return faults.train(seed=1, **(SHORT | switches))


@pytest.mark.parametrize("name", FLAT)
def test_a_flat_line_is_named_and_only_by_its_own_name(name):
    assert set(run(**faults.GALLERY[name]).warnings) & set(FLAT) == {name}


@pytest.mark.parametrize(
    ("switches", "name"),
    [
        ({"learning_rate": 1e-2}, "rate too high"),
        ({"beta": 20.0}, "beta too high"),
        ({"dtype": "float16"}, "not finite"),
        ({"dtype": "bfloat16"}, "updates lost"),
        ({"reference": "misaligned"}, "wrong reference"),
        ({"reference": "before SFT"}, "wrong reference"),
        ({"pairs": "easy", "learning_rate": 1e-3}, "too easy"),
        ({"eos": 0}, "EOS not once"),
        ({"eos": 2}, "EOS not once"),
    ],
)
def test_a_fault_is_named(switches, name):
    assert name in run(**switches).warnings


def test_float32_arithmetic_on_bfloat16_weights_is_that_of_the_float32_model_with_these_weights():
    stored, tokenizer = models.load("lab_lm", device="cpu", dtype=torch.bfloat16)
    whole = copy.deepcopy(stored).float()
    rows = faults.encode_rows(tokenizer, faults.pairs_of("as shipped", "train", 2))
    batch = encode.collate(rows, pad_token_id=tokenizer.pad_token_id)
    found = faults.in_float32(logps.completion_logps)(stored, batch)
    expected = logps.completion_logps(whole, batch)
    assert torch.equal(found, expected)
    found.sum().backward()
    expected.sum().backward()
    for mine, right in zip(stored.parameters(), whole.parameters(), strict=True):
        assert mine.grad.dtype == torch.bfloat16
        torch.testing.assert_close(mine.grad.float(), right.grad, rtol=1e-2, atol=1e-5)


def test_what_is_written_warns_too():
    wild = run(learning_rate=2e-2)
    faults.measure(wild, prompts=24, seed=1)
    assert {"runs on", "repeats itself"} & set(wild.warnings)


def test_memory_is_told_from_learning():
    seen = {"heldout_count": 16, "evaluate_every": 4, "learning_rate": 1e-3}
    assert "overfitting" in run(count=8, batch_size=4, epochs=10, **seen).warnings


def test_a_shortcut_shows_on_the_tasks_own_held_out_pairs_and_in_the_samples():
    taken = run(pairs="longer loses", count=52, batch_size=4, heldout_count=16, evaluate_every=13)
    faults.measure(taken, prompts=24, seed=1)
    assert {"shortcut", "stops early"} <= set(taken.warnings)


def test_similar_pairs_fall_together():
    fell = run(pairs="similar", count=24, batch_size=4, epochs=3, learning_rate=2e-3)
    assert "displacement" in fell.warnings, fell.history["chosen_logratios"][-6:]


def test_a_healthy_run_is_left_alone():
    assert run().warnings == []


def test_switches_and_kinds_that_do_not_exist_are_refused():
    with pytest.raises(ValueError, match="no such switch: lr; there are pairs, count"):
        faults.train(seed=0, lr=1e-3)
    with pytest.raises(ValueError, match="pairs is 'odd'; accepted are as shipped"):
        faults.pairs_of("odd", "train", 4)
    with pytest.raises(ValueError, match="objective is 'odd'"):
        faults.objective("odd", 0.1)


def test_a_doubled_template_is_named():
    monitor = Monitor("template", show=False)
    monitor.update(0, {"template_openings": 2.0})
    assert [symptom.name for symptom in monitor.warnings()] == ["template twice"]


def test_every_configuration_has_its_record_and_no_other_is_there():
    names = {records.path_of("nb10", config).name for config in nb10.runs()}
    assert {path.name for path in records.RECORDS.glob("nb10-*.json")} == names


@pytest.mark.parametrize("name", faults.GALLERY)
def test_the_telltale_of_a_fault_is_on_its_side_in_every_recorded_seed(name):
    telltale = faults.TELLTALES[name]
    prompts = 48 if name in nb10.READ else 0
    values = [
        run["telltales"][name] for run in faults.recorded(prompts=prompts, **faults.SHORT | faults.GALLERY[name])
    ]
    assert all(map(telltale.caught, values))
    low, high = faults.band(values, telltale.threshold)
    assert low < min(values) <= max(values) < high


@pytest.mark.parametrize("switches", [faults.SHORT, faults.LONG], ids=["short", "long"])
def test_no_recorded_healthy_run_is_caught_by_any_telltale(switches):
    for run in faults.recorded(**switches):
        assert run["warnings"] == [] and set(run["telltales"]) == set(faults.TELLTALES)
        assert not [name for name, value in run["telltales"].items() if faults.TELLTALES[name].caught(value)]


def test_a_telltale_has_two_sides():
    below, above = faults.TELLTALES["too easy"], faults.TELLTALES["rate too high"]
    low, high = ({"loss": list(enumerate([value] * 12))} for value in (0.05, 0.9))
    assert below.caught(below.value(low)) and not below.caught(below.value(high))
    assert above.caught(above.value(high)) and not above.caught(above.value(low))
    assert not below.caught(below.value({})) and not above.caught(above.value({}))


def test_the_mixture_is_half_similar_and_the_filter_takes_that_half_out():
    mixed, kept = (faults.pairs_of(kind, "train", 40) for kind in ("half similar", "half similar, filtered"))
    shipped = faults.pairs_of("as shipped", "train", 40)
    assert (mixed["rejected"] != shipped["rejected"]).sum() == 20
    assert 20 <= len(kept) < 24 and (filters.similarities(kept) < faults.SIMILAR).all()
