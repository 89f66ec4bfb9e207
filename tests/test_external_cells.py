"""Cells that need data the course does not ship: shown from a record without it, every claim evaluated with it.

Such cells carry the tags ``external-data`` and ``nbval-ignore-output``. They rest on the notebook's first code cell
(imports and knobs) and on each other only, so that they can be run here without the rest of the notebook.
"""

import os
import re
from contextlib import chdir, redirect_stdout
from io import StringIO
from pathlib import Path

import nbformat
import pytest

from dpo_tutorial.data import external
from dpo_tutorial.display import claims

NOTEBOOKS = Path(__file__).resolve().parents[1] / "notebooks"
CLAIM_ID = re.compile(r"""claims\.(?:claim|close|within|verdict)\(\s*["']([F\d][\d.]+)["']""")
WITHOUT = "external-data"


def tagged_cells() -> dict[str, list]:
    """Notebook name -> its cells tagged ``external-data``."""
    found = {}
    for path in sorted(NOTEBOOKS.glob("[0-9][0-9]_*.ipynb")):
        cells = [c for c in nbformat.read(path, as_version=4).cells if WITHOUT in c.metadata.get("tags", [])]
        if cells:
            found[path.name] = cells
    return found


TAGGED = tagged_cells()


def stored_text(cell) -> str:
    return "".join(output.get("text", "") for output in cell.outputs)


def run(name: str) -> list[str]:
    """What the notebook's tagged cells print, cell by cell, after its first code cell."""
    book = nbformat.read(NOTEBOOKS / name, as_version=4)
    first = next(cell for cell in book.cells if cell.cell_type == "code")
    space, printed = {"__name__": "__main__"}, []
    with chdir(NOTEBOOKS):
        for cell in [first, *TAGGED[name]]:
            out = StringIO()
            with redirect_stdout(out):
                exec(compile(cell.source, name, "exec"), space)
            printed.append(out.getvalue())
    return printed[1:]


def test_notebook_07_has_such_a_cell():
    assert "07_filter_and_audit_pairs.ipynb" in TAGGED


@pytest.mark.parametrize("name", TAGGED)
def test_their_output_is_ignored_and_was_stored_with_the_data(name):
    for cell in TAGGED[name]:
        assert "nbval-ignore-output" in cell.metadata.tags
        stored = {id for _, id, _ in claims.parse_lines(stored_text(cell))}
        assert stored == set(CLAIM_ID.findall(cell.source)), "execute the notebook with DPO_TUTORIAL_DATA set"


@pytest.mark.parametrize("name", TAGGED)
def test_with_the_data_every_claim_is_evaluated(name):
    if not os.environ.get("DPO_TUTORIAL_DATA"):
        pytest.skip("DPO_TUTORIAL_DATA is not set")
    for cell, printed in zip(TAGGED[name], run(name), strict=True):
        assert {id for _, id, _ in claims.parse_lines(printed)} == set(CLAIM_ID.findall(cell.source))
        assert printed == stored_text(cell), "verdicts only, the same on every machine"


@pytest.mark.parametrize("name", TAGGED)
def test_without_the_data_they_say_what_is_missing(name, monkeypatch, tmp_path):
    monkeypatch.delenv("DPO_TUTORIAL_DATA", raising=False)
    monkeypatch.setenv("DPO_TUTORIAL_CACHE", str(tmp_path))
    printed = "".join(run(name))
    assert "DPO_TUTORIAL_DATA" in printed and "recorded" in printed
    assert "HOLDS" not in printed


@pytest.mark.parametrize("name", TAGGED)
def test_a_wrong_file_makes_a_claim_fail(name, monkeypatch):
    if not os.environ.get("DPO_TUTORIAL_DATA"):
        pytest.skip("DPO_TUTORIAL_DATA is not set")
    load = external.load

    def shuffled(*args, **kwargs):
        """The real data with one column's values in another order."""
        frame = load(*args, **kwargs).copy()
        column = "annotator1" if "annotator1" in frame else frame.columns[-1]
        frame[column] = frame[column].to_numpy()[::-1]
        return frame

    monkeypatch.setattr(external, "load", shuffled)
    with pytest.raises(claims.ClaimFailed):
        run(name)
