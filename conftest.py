"""Which notebooks run alone; and the last lines of a test run: which cells could not be checked here, and why."""

import os
from pathlib import Path

import nbformat
import pytest

NOTEBOOKS = Path(__file__).resolve().parent / "notebooks"
ALONE = ("09", "12", "16")  # 09 trains for minutes on both cores; 12 and 16 measure time


def pytest_collection_modifyitems(items):
    for item in items:
        if item.path.suffix == ".ipynb" and item.path.name.startswith(ALONE):
            item.add_marker(pytest.mark.alone)


def unchecked() -> list[str]:
    """A line per notebook with cells that need data the course does not ship, while that data is not here."""
    if os.environ.get("DPO_TUTORIAL_DATA"):
        return []
    lines = []
    for path in sorted(NOTEBOOKS.glob("[0-9][0-9]_*.ipynb")):
        cells = nbformat.read(path, as_version=4).cells
        numbers = [str(k) for k, cell in enumerate(cells) if "external-data" in cell.metadata.get("tags", [])]
        if numbers:
            lines.append(f"{path.name}: cells {', '.join(numbers)} (they showed what is recorded)")
    return lines


def pytest_terminal_summary(terminalreporter):
    if lines := unchecked():
        terminalreporter.section("cells not checked here: DPO_TUTORIAL_DATA is not set (see CONTRIBUTING.md)")
        for line in lines:
            terminalreporter.write_line(line)
