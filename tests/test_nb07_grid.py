"""The pairs behind notebook 07's records: each fault is there in the dose that its condition names."""

import sys
from pathlib import Path

import pytest

from dpo_tutorial.training import records

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tools" / "record_groups"))
import nb07


def pairs(**level):
    return nb07.build(nb07.BASE | level | {"seed": 1})


def test_every_configuration_has_its_record_and_no_other_is_there():
    names = {records.path_of("nb07", config).name for config in nb07.runs()}
    assert {path.name for path in records.RECORDS.glob("nb07-*.json")} == names


def test_clean_pairs_are_shipped_ones_with_true_labels():
    shipped = {(row.prompt, row.chosen, row.rejected) for row in nb07.lab.load_pairs("train", 800).itertuples()}
    frame = pairs(pairs=64)
    assert len(frame) == 64 and frame["truth"].all()
    assert set(frame[["prompt", "chosen", "rejected"]].itertuples(index=False, name=None)) <= shipped


@pytest.mark.parametrize("rate", [0.2, 0.4])
def test_flipped_share(rate):
    wrong = 1 - pairs(pairs=640, flip_rate=rate)["truth"].mean()
    assert abs(wrong - rate) < 0.07
    frame = pairs(pairs=640, flip_rate=rate)
    better = nb07.rewards(frame, "chosen") > nb07.rewards(frame, "rejected")
    assert (better == frame["truth"]).all()


def test_longer_wins_in_nine_of_ten_with_true_labels():
    frame = pairs(longer_wins=0.9)
    longer = frame["chosen"].map(nb07.length) > frame["rejected"].map(nb07.length)
    assert longer.mean() == 0.9 and frame["truth"].all()


def test_twins_differ_in_one_word_and_nonsense_has_as_many_words():
    frame = pairs(twins=1.0)
    for a, b in zip(frame["chosen"], frame["rejected"], strict=True):
        assert sum(x != y for x, y in zip(a.split(), b.split(), strict=True)) == 1
    assert (nb07.rewards(frame, "chosen") >= nb07.rewards(frame, "rejected")).all()
    frame = pairs(nonsense=1.0)
    assert (frame["chosen"].map(nb07.length) == frame["rejected"].map(nb07.length)).all()


def test_labels_by_a_ruler_and_by_the_judge():
    frame = pairs(label="longer")
    assert (frame["chosen"].map(nb07.length) >= frame["rejected"].map(nb07.length)).mean() > 0.95
    frame = pairs(label="letters per word")
    assert (frame["chosen"].map(nb07.letters_per_word) >= frame["rejected"].map(nb07.letters_per_word)).mean() > 0.95
    one, part = pairs(by_judge=1.0)["truth"].mean(), pairs(by_judge=0.8)["truth"].mean()
    assert 0.55 < one < part < 0.85
