"""Meta-test of the notebooks: executed in order, clean, small, and in step with README.md and CLAIMS.md."""

import itertools
import json
import re
import statistics
import sys
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tools"))
import execute_notebooks as tool  # noqa: E402

BOOKS = sorted((ROOT / "notebooks").glob("[0-9][0-9]_*.ipynb"))
SOLUTIONS = sorted((ROOT / "notebooks" / "solutions").glob("*.ipynb"))
ABSOLUTE_PATH = re.compile(r"(?<![\w.:/])/(home|root|tmp|Users|work|usr|opt|var)/[\w.-]+")


def problems(path: Path) -> list[str]:
    """Everything about a stored notebook that must not be so, each as one line."""
    book = nbformat.read(path, as_version=4)
    found = []
    code = [cell for cell in book.cells if cell.cell_type == "code" and cell.source.strip()]
    counts = [cell.execution_count for cell in code]
    if counts != list(range(1, len(code) + 1)):
        found.append(f"execution counts are {counts}, not 1..{len(code)}")
    if "widgets" in book.metadata:
        found.append("metadata.widgets is stored")
    for number, cell in enumerate(book.cells):
        where = f"cell {number}"
        raises = "raises-exception" in cell.metadata.get("tags", [])
        errors = [output for output in cell.get("outputs", []) if output.output_type == "error"]
        if bool(errors) != raises:
            found.append(
                f"{where}: {'an error is stored' if errors else 'tagged raises-exception but raises nothing'}"
            )
        for output in cell.get("outputs", []):
            if output.get("name") == "stderr":
                found.append(f"{where}: stderr is stored: {output.text[:80]!r}")
            data = output.get("data", {})
            if tool.WIDGET_VIEW in data:
                found.append(f"{where}: a widget view is stored")
            if data.get("text/plain", "").startswith(("[figure]", "[monitor]")) and "image/png" not in data:
                found.append(f"{where}: a figure has no picture")
        if ABSOLUTE_PATH.search(nbformat.writes(nbformat.v4.new_notebook(cells=[without_images(cell)]))):
            found.append(f"{where}: names an absolute path")
        if cell.cell_type == "code" and len(cell.source.splitlines()) > 30:
            found.append(f"{where}: {len(cell.source.splitlines())} lines of code, at most 30")
    if not code:
        found.append("no code cell")
    if path.stat().st_size > 2_000_000:
        found.append(f"{path.stat().st_size / 1e6:.1f} MB, at most 2 MB")
    return found


def without_images(cell):
    """A copy of the cell whose pictures and HTML bundles are left out (base64 looks like paths)."""
    copy = nbformat.from_dict(json.loads(json.dumps(cell)))
    for output in copy.get("outputs", []):
        for mime in ("image/png", "text/html", "image/svg+xml"):
            output.get("data", {}).pop(mime, None)
    return copy


@pytest.mark.parametrize("path", BOOKS + SOLUTIONS, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_notebook_is_clean(path):
    assert problems(path) == []


@pytest.mark.parametrize("path", BOOKS, ids=lambda path: path.name)
def test_notebook_has_the_house_shape(path):
    book = nbformat.read(path, as_version=4)
    text = "\n".join(cell.source for cell in book.cells if cell.cell_type == "markdown")
    first = book.cells[0].source
    assert first.startswith(f"# {path.name[:2]} · "), "the first cell starts with '# NN · Title'"
    assert "**Question.**" in first
    assert re.search(r"^\*\*Measured\.\*\*.* <!-- measured -->$", first, re.M), "run `make notebooks` for this one"
    assert re.search(r"\[index\].* <!-- navigation -->$", first, re.M)
    if path.name[:2] != "00":
        for heading in ("## What we found", "## Try it", "## Exercises"):
            assert heading in text, f"{heading} is missing"
        assert (ROOT / "notebooks" / "solutions" / path.name).exists(), "its solutions are missing"
    lines = [len(cell.source.splitlines()) for cell in book.cells if cell.cell_type == "code"]
    assert statistics.median(lines) <= 15, "the aim is 6: one idea per cell"
    assert any(mark == "HOLDS" for mark, _, _, where, _ in tool.printed_claims() if where == path), (
        "it claims nothing"
    )


@pytest.mark.parametrize("path", BOOKS + SOLUTIONS, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_a_notebook_that_measures_time_runs_alone(path, request):
    code = "\n".join(cell.source for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code")
    alone = next(plugin.ALONE for plugin in request.config.pluginmanager.get_plugins() if hasattr(plugin, "ALONE"))
    assert path.name.startswith(alone) or not re.search(r"perf_counter|process_time|%time|import time", code)


def broken_sentences(source: str) -> list[str]:
    """Lines of a paragraph that Markdown reads as the beginning of a list: "in Figure", "1. Then"."""
    text = re.sub(r"\$\$.*?\$\$|```.*?```", "", source, flags=re.S)
    return [
        line
        for before, line in itertools.pairwise(text.splitlines())
        if re.match(r"\d+\.\s", line) and before.strip() and not re.match(r"\s*\d+\.\s|\s+\S|#", before)
        and not before.rstrip().endswith((":", "</summary>"))
    ]  # fmt: skip


@pytest.mark.parametrize("path", BOOKS + SOLUTIONS, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_no_sentence_becomes_a_list(path):
    cells = [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "markdown"]
    assert [line for cell in cells for line in broken_sentences(cell.source)] == []
    assert broken_sentences("The curve of Figure\n1. Drag.\n\n1. one\n2. two\n\nThree:\n1. a\n2. b") == ["1. Drag."]
    assert all("<!-- measured -->\n\n" in cells[0].source for _ in cells[:1]), "time and links are two paragraphs"


def test_links_between_notebooks_lead_somewhere():
    for path in BOOKS + SOLUTIONS:
        for cell in nbformat.read(path, as_version=4).cells:
            if cell.cell_type == "markdown":
                for target in re.findall(r"\]\((?!https?:|#|attachment:)([^)#]+)", cell.source):
                    assert (path.parent / target).exists(), f"{path.name} links to {target}"


def test_claim_ids_are_unique_and_belong_to_their_notebook():
    entries = tool.printed_claims()
    ids = [id for _, id, _, _, _ in entries]
    assert len(ids) == len(set(ids)), sorted({id for id in ids if ids.count(id) > 1})
    for mark, id, _, path, _ in entries:
        if mark == "HOLDS":
            assert id.startswith(path.name[:2]), f"claim {id} stands in {path.name}"


def test_verdicts_stand_in_the_notebook_that_owns_them():
    folklore = json.loads((ROOT / "data" / "folklore.json").read_text(encoding="utf-8"))
    assert [item["id"] for item in folklore] == [f"F{k:02d}" for k in range(1, 48)]
    owner = {item["id"]: item["notebook"] for item in folklore}
    given = {id: path.name[:2] for mark, id, _, path, _ in tool.printed_claims() if mark == "VERDICT"}
    assert given == {id: owner[id] for id in given}
    there = {path.name[:2] for path in BOOKS}
    assert {id for id, number in owner.items() if number in there} <= set(given), "a notebook owes a verdict"


def test_claims_md_is_what_the_outputs_say():
    assert (ROOT / "CLAIMS.md").read_text(encoding="utf-8") == tool.claims_markdown()


def test_readme_table_is_complete():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    measured = json.loads(tool.MEASURED.read_text())
    assert tool.readme_table(measured) in readme
    on_disk = {path.stem for path in BOOKS}
    linked = set(re.findall(r"\]\(notebooks/(\d\d_\w+)\.ipynb\)", readme))
    assert linked == on_disk
    known = {str(path.relative_to(ROOT / "notebooks")) for path in BOOKS + SOLUTIONS}
    assert known == set(measured), "every notebook has its measured time, and nothing else has one"
