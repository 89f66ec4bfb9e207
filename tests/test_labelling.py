"""The labelling panel: what the buttons write, resuming, escaping, and that its file is read by data.pairs."""

import json

import pandas as pd
import pytest

from dpo_tutorial.data import pairs
from dpo_tutorial.display import labelling

ITEMS = pd.DataFrame(
    [(f"Prompt {i}", f" one {i}", f" two {i} <script>alert(1)</script>") for i in range(5)],
    columns=["prompt", "first", "second"],
)


def panel(path, items=ITEMS, **options):
    options = {"responses": ("first", "second"), "rubric": "Kinder?", "labeller": "me"} | options
    return labelling.LabellingPanel(items, path, **options)


def shown(one):
    """(left, right) of the item on show."""
    return one.items[one.current][1:]


def test_the_buttons_write_what_they_say(tmp_path):
    path = tmp_path / "labels.jsonl"
    one = panel(path)
    assert not path.exists() and one.buttons["Undo"].disabled
    wanted = []
    for name, preference in (("Prefer left", 1), ("Tie", 0), ("Prefer right", 2)):
        left, right = shown(one)
        one.buttons[name].click()
        wanted.append((left, right, preference))
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        assert [(row["response1"], row["response2"], row["preference"]) for row in rows] == wanted
    assert "3 of 5 labelled" in one.status.value and one.left_to_do == 2


def test_the_file_reads_as_pairs_with_ties_counted(tmp_path):
    path = tmp_path / "labels.jsonl"
    one = panel(path)
    left, right = shown(one)
    one.prefer("right")
    one.tie()
    one.edit("left")
    one.text.value = " a better one"
    one.save_edit()
    kept, rejected = pairs.load(path, on_error="reject")
    assert kept["chosen"].tolist() == [right, " a better one"] and kept["rejected"].tolist()[0] == left
    assert len(rejected) == 1 and "tie" in rejected["reason"][0]
    assert set(kept["source"]) == {"labelled by me"} and kept["chosen_position"].tolist() == [2, 1]


def test_it_resumes_and_undoes(tmp_path):
    path = tmp_path / "labels.jsonl"
    one = panel(path)
    first = one.current
    one.prefer("left")
    second = one.current
    one.tie()
    again = panel(path)
    assert again.left_to_do == 3 and again.current not in (first, second)
    again.undo()
    assert again.current == second and len(path.read_text().splitlines()) == 1
    more = panel(path, pd.concat([ITEMS.assign(first="other"), ITEMS]))
    assert more.left_to_do == 10 - 1, "items are known by their content, not by their place"
    swapped = panel(path, ITEMS.rename(columns={"first": "second", "second": "first"}))
    assert swapped.left_to_do == 4, "nor by the order of their responses"


def test_an_edit_must_change_the_text(tmp_path):
    path = tmp_path / "labels.jsonl"
    one = panel(path)
    one.buttons["Edit right"].click()
    assert one.buttons["Tie"].disabled and one.editor.layout.display == ""
    assert one.text.value == shown(one)[1]
    for bad in (shown(one)[1], "  "):
        one.text.value = bad
        one.save_button.click()
        assert "Not saved" in one.status.value and not path.exists()
    one.cancel_button.click()
    assert one.editor.layout.display == "none" and not one.buttons["Tie"].disabled and one.left_to_do == 5


def test_after_the_last_item_only_undo_is_left(tmp_path):
    one = panel(tmp_path / "labels.jsonl")
    for _ in range(5):
        one.tie()
    assert one.current is None and "all done" in one.status.value
    assert [name for name, button in one.buttons.items() if not button.disabled] == ["Undo"]
    one.prefer("left")
    one.edit("left")
    one.save_edit()
    assert len(one.rows) == 5


def test_responses_are_shown_and_never_run(tmp_path):
    one = panel(tmp_path / "labels.jsonl")
    assert "<script" not in one.body.value and "&lt;script&gt;" in one.body.value


def test_sides_do_not_follow_the_columns(tmp_path):
    many = pd.DataFrame([(f"p{i}", "a", "b") for i in range(400)], columns=["prompt", "first", "second"])
    lefts = [left for _, left, _ in panel(tmp_path / "x.jsonl", many).items.values()]
    assert 0.42 < lefts.count("a") / 400 < 0.58


def test_every_control_has_a_name(tmp_path):
    one = panel(tmp_path / "labels.jsonl")
    controls = [*one.buttons.values(), one.save_button, one.cancel_button]
    assert all(button.description and button.tooltip for button in controls) and one.text.description
    assert 'aria-live="polite"' in one.status.value and 'aria-label="Left response"' in one.body.value


def test_a_foreign_file_is_not_overwritten(tmp_path):
    path = tmp_path / "labels.jsonl"
    path.write_text('{"prompt": "p"}\n')
    with pytest.raises(ValueError, match="line 1 is not a label"):
        panel(path)
    assert path.read_text() == '{"prompt": "p"}\n'
    with pytest.raises(ValueError, match="need the columns prompt, a, b"):
        panel(tmp_path / "y.jsonl", responses=("a", "b"))
    with pytest.raises(ValueError, match="two different responses"):
        panel(tmp_path / "y.jsonl", ITEMS.assign(second=ITEMS["first"]))


def test_readers_without_a_kernel_see_the_first_item(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr("IPython.display.display", lambda bundle, **options: seen.append(bundle))
    options = {"rubric": "Kinder?"}
    made = labelling.label(ITEMS, tmp_path / "labels.jsonl", **options)
    made.prefer("left")
    labelling.label(ITEMS, tmp_path / "labels.jsonl", **options)
    assert seen[0]["text/html"] == seen[1]["text/html"], "it does not depend on what was labelled"
    assert "Prompt 0" in seen[0]["text/html"] and "Prefer left" in seen[0]["text/html"]
    assert "application/vnd.jupyter.widget-view+json" in seen[0] and "Widget" not in seen[0]["text/plain"]
