"""CLAIMS.md is complete: each statement of folklore has one verdict, and prose refers to claims that were printed."""

import json
import re
import sys
from collections import Counter
from pathlib import Path

import nbformat
import pytest

from dpo_tutorial.display.claims import VERDICTS, parse_lines
from dpo_tutorial.display.course import course

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tools"))
import execute_notebooks as tool  # noqa: E402

BOOKS = sorted((ROOT / "notebooks").glob("[0-9][0-9]_*.ipynb"))
FOLKLORE = {item["id"]: item["notebook"] for item in json.loads((ROOT / "data" / "folklore.json").read_text("utf-8"))}
REFERENCE = re.compile(r"(?<![\d.,])(\d\d)\.(\d{1,2})(?![\d%]|\.\d| %)")
ROW = re.compile(r"^\|\s*\**(F\d\d)\**\s*\|(.*)\|\s*$", re.M)


def printed(book) -> list[tuple[str, str, str]]:
    """The entries in a notebook's stored outputs."""
    outputs = [output for cell in book.cells for output in cell.get("outputs", [])]
    return [entry for output in outputs if output.get("name") == "stdout" for entry in parse_lines(output["text"])]


def disagreements(book, number: str, verdicts: dict[str, str]) -> list[str]:
    """References of a notebook's prose to claims it did not print, and rows of tables with another verdict."""
    prose = "\n".join(cell.source for cell in book.cells if cell.cell_type == "markdown")
    prose = re.sub(r"\$\$?[^$]*\$\$?|`[^`]*`|https?://\S+|arXiv \d{4}\.\d+", "", prose)
    own = {id for mark, id, _ in printed(book) if mark == "HOLDS"}
    found = []
    for inside in re.findall(r"\(((?:\d\d\.\d{1,2}(?:, | and )?)+)\)", prose):  # (16.2, 16.3)
        for chapter, index in REFERENCE.findall(inside):
            if chapter == number and f"{chapter}.{index}" not in own:
                found.append(f"the text refers to claim {chapter}.{index}, which is not printed")
    for id, row in ROW.findall(prose):
        said = [word for word in VERDICTS if re.search(rf"\b{word}\b", row)]
        longest = max(said, key=len, default=None)  # "holds only when" holds "holds"
        if longest and verdicts.get(id) != longest:
            found.append(f"a table says of {id} {longest!r}, CLAIMS.md {verdicts.get(id)!r}")
    return found


def all_verdicts() -> list[tuple[str, str]]:
    return [(id, text.partition(":")[0]) for mark, id, text, _, _ in tool.printed_claims() if mark == "VERDICT"]


@pytest.mark.parametrize("path", BOOKS, ids=lambda path: path.name)
def test_prose_and_claims_agree(path):
    assert disagreements(nbformat.read(path, as_version=4), path.name[:2], dict(all_verdicts())) == []


def test_no_statement_has_two_verdicts():
    counts = Counter(id for id, _ in all_verdicts())
    assert [id for id, count in counts.items() if count > 1] == []
    assert all(verdict in VERDICTS for _, verdict in all_verdicts())


def test_every_statement_has_its_verdict_once_the_course_is_complete():
    there, given = {path.stem for path in BOOKS}, {id for id, _ in all_verdicts()}
    missing = sorted(entry["file"] for entry in course() if entry["file"] not in there)
    owed = {id for id, notebook in FOLKLORE.items() if any(name.startswith(notebook) for name in missing)}
    assert set(FOLKLORE) - given == owed, "a verdict is missing that no missing notebook owes"
    table = (ROOT / "CLAIMS.md").read_text("utf-8").split("## Claims by notebook")[0]
    assert {id for id, verdict in re.findall(r"^\| (F\d\d) \|.*?\| (\w[\w ]*) \|", table, re.M)} == set(FOLKLORE)
    assert len(re.findall(r"^\| F\d\d .*\| open \|", table, re.M)) == len(owed)


def test_a_wrong_reference_and_a_wrong_row_are_seen():
    cells = [
        nbformat.v4.new_markdown_cell("Seen (16.1, 16.2).\n\n| F01 | so | fails |\n| F02 | x | holds only when |")
    ]
    output = nbformat.v4.new_output("stream", name="stdout", text="HOLDS [16.1] a | b\n")
    book = nbformat.v4.new_notebook(cells=[*cells, nbformat.v4.new_code_cell("1", outputs=[output])])
    found = disagreements(book, "16", {"F01": "holds", "F02": "holds only when"})
    assert len(found) == 2 and "16.2" in found[0] and "F01" in found[1]
