"""What notebook 14's records rest on: folds that share no instruction, shares of words, the bag of words."""

import sys
from pathlib import Path

import numpy as np
import pandas as pd

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tools"))
from record_groups import nb14

from dpo_tutorial.training import records


def test_folds_share_no_instruction_and_use_all():
    instructions = np.repeat(np.arange(23), 3)
    folds = [nb14.heldout_instructions(instructions, nb14.TRAINED | {"split": k}) for k in range(5)]
    assert sorted(np.concatenate(folds)) == list(range(23))


def test_shares_of_words():
    assert nb14.echo("Name a colour of the sky.", "The sky, is blue") == 0.5
    assert nb14.repeated("no No yes no.") == 0.5
    assert nb14.echo("a", "") == nb14.repeated("") == 0.0


def test_bag_of_words_learns_a_word_and_has_no_taste_for_position():
    frame = pd.DataFrame({"chosen": ["good answer", "good one", "good text"] * 4})
    frame["rejected"] = frame["chosen"].str.replace("good", "bad")
    margins = np.array(nb14.bag_of_words(frame, frame))
    turned = nb14.bag_of_words(frame, frame.rename(columns={"chosen": "rejected", "rejected": "chosen"}))
    assert (margins > 0).all()
    np.testing.assert_allclose(margins, np.negative(turned), atol=1e-4)


def test_record_is_numbers_and_its_columns_are_equally_long():
    columns = records.load("nb14", nb14.UNTRAINED)["results"]["columns"]
    assert {len(values) for values in columns.values()} == {len(columns["idx"])}
    for name, values in columns.items():
        assert all(isinstance(value, (int, float)) or value is None for value in values), name
