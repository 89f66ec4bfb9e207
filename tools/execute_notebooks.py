"""Execute notebooks in fresh kernels and write everything that must never be typed by hand.

    python tools/execute_notebooks.py            all notebooks and solutions
    python tools/execute_notebooks.py 04 09      those two and their solutions
    python tools/execute_notebooks.py --tables   only README.md's table, CLAIMS.md and the navigation

Per notebook: outputs, measured time and peak memory (notebooks/measured.json), navigation links. Transient
metadata, widget state and widget views are removed. Over all: the table in README.md and CLAIMS.md.
"""

import argparse
import json
import os
import platform
import re
import threading
import time
from pathlib import Path

import nbformat
import psutil
from nbclient import NotebookClient

from dpo_tutorial.display.claims import parse_lines
from dpo_tutorial.display.course import course, minutes

ROOT = Path(__file__).resolve().parents[1]
BOOKS, MEASURED = ROOT / "notebooks", ROOT / "notebooks" / "measured.json"
WIDGET_VIEW = "application/vnd.jupyter.widget-view+json"
CELL_TIMEOUT = 900


def notebooks(numbers: list[str]) -> list[Path]:
    """Paths in reading order, each followed by its solution; all of them when no number is given."""
    found = sorted(BOOKS.glob("[0-9][0-9]_*.ipynb"))
    if numbers:
        unknown = [number for number in numbers if not any(path.name.startswith(f"{number}_") for path in found)]
        if unknown:
            raise SystemExit(
                f"no notebook {', '.join(unknown)}; there are {', '.join(path.name[:2] for path in found)}"
            )
        found = [path for path in found if path.name[:2] in numbers]
    solutions = {path.name: path for path in (BOOKS / "solutions").glob("*.ipynb")}
    return [path for book in found for path in (book, solutions.get(book.name)) if path]


class PeakMemory(threading.Thread):
    """Samples the resident memory of this process's descendants (the kernel and what it starts)."""

    def __init__(self):
        super().__init__(daemon=True)
        self.peak, self.running = 0, True

    def run(self):
        while self.running:
            total = 0
            for process in psutil.Process().children(recursive=True):
                try:
                    total += process.memory_info().rss
                except psutil.Error:
                    continue
            self.peak = max(self.peak, total)
            time.sleep(0.2)


def execute(path: Path) -> dict:
    """Run one notebook in place and return its measured seconds and peak memory."""
    book = nbformat.read(path, as_version=4)
    book.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    memory, start = PeakMemory(), time.time()
    memory.start()
    NotebookClient(book, timeout=CELL_TIMEOUT, resources={"metadata": {"path": str(path.parent)}}).execute()
    memory.running = False
    strip(book)
    nbformat.write(book, path)
    return {
        "seconds": round(time.time() - start),
        "peak_gb": round(memory.peak / 1e9, 1),
        "machine": f"{os.cpu_count()} cores, {platform.machine()}",
    }


def strip(book) -> None:
    """Remove what differs from run to run or must not be stored: widget state and views, timestamps, versions."""
    book.metadata = {"kernelspec": book.metadata["kernelspec"], "language_info": {"name": "python"}}
    for number, cell in enumerate(book.cells):
        cell.metadata = {key: value for key, value in cell.metadata.items() if key == "tags"}
        cell["id"] = f"cell-{number:02d}"
        kept = []
        for output in cell.get("outputs", []):
            if "data" in output:
                output["data"].pop(WIDGET_VIEW, None)
                if not output["data"] or (
                    set(output["data"]) == {"text/plain"} and "Widget" in output["data"]["text/plain"]
                ):
                    continue
            kept.append(output)
        if cell.cell_type == "code":
            cell["outputs"] = kept


def navigation(path: Path, order: list[Path]) -> str:
    """Links to the previous notebook, the index and the next one, relative to ``path``."""
    if path.parent.name == "solutions":
        return f"[back to the notebook](../{path.name}) · [index](../00_start_here.ipynb)"
    place, parts = order.index(path), []
    if place:
        parts.append(f"previous: [{order[place - 1].stem[:2]}]({order[place - 1].name})")
    parts.append("[index](00_start_here.ipynb)")
    if place + 1 < len(order):
        parts.append(f"next: [{order[place + 1].stem[:2]}]({order[place + 1].name})")
    return " · ".join(parts)


def write_header(path: Path, order: list[Path], measured: dict) -> None:
    """Fill the lines of the first cell that hold the markers for measured time and navigation."""
    book = nbformat.read(path, as_version=4)
    run = measured.get(str(path.relative_to(BOOKS)))
    time_line = (
        f"**Measured.** {minutes(run['seconds'])}, {run['peak_gb']} GB at most ({run['machine']})." if run else ""
    )
    filled = {"measured": time_line, "navigation": navigation(path, order)}
    text = book.cells[0]["source"]
    for name, line in filled.items():
        text, count = re.subn(rf"^.*<!-- {name} -->.*$", f"{line} <!-- {name} -->".strip(), text, flags=re.M)
        if count != 1:
            raise SystemExit(f"{path.name}: the first cell needs one line '<!-- {name} -->', it has {count}")
    text = re.sub(r"(<!-- measured -->\n)(?!\n)", r"\1\n", text)  # else both lines are one paragraph
    book.cells[0]["source"] = text
    nbformat.write(book, path)


def readme_table(measured: dict) -> str:
    """The table of all notebooks of the course; those to come are marked."""
    lines = ["| notebook | question | time | memory |", "|---|---|---|---|"]
    for entry in course():
        run = measured.get(f"{entry['file']}.ipynb")
        there = (BOOKS / f"{entry['file']}.ipynb").exists()
        title = f"{entry['file'][:2]} · {entry['title']}"
        title = f"[{title}](notebooks/{entry['file']}.ipynb)" if there else f"{title} (to come)"
        cost = f"{minutes(run['seconds'])} | {run['peak_gb']} GB" if run else "|"
        lines.append(f"| {title} | {entry['question']} | {cost} |")
    return "\n".join(lines)


def replace_between(text: str, name: str, content: str) -> str:
    """Put ``content`` between ``<!-- name -->`` and ``<!-- /name -->``."""
    pattern = rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)"
    if not re.search(pattern, text, flags=re.S):
        raise SystemExit(f"the markers <!-- {name} --> and <!-- /{name} --> are missing")
    return re.sub(pattern, lambda match: f"{match[1]}{content}\n{match[2]}", text, flags=re.S)


def printed_claims() -> list[tuple[str, str, str, Path, int]]:
    """(mark, id, text, notebook, cell number) of every claim and verdict in the notebooks' stored outputs."""
    entries = []
    for path in sorted(BOOKS.glob("[0-9][0-9]_*.ipynb")):
        for number, cell in enumerate(nbformat.read(path, as_version=4).cells):
            for output in cell.get("outputs", []):
                if output.get("name") == "stdout":
                    entries += [(*entry, path, number) for entry in parse_lines(output["text"])]
    return entries


def claims_markdown() -> str:
    """CLAIMS.md: the verdict on every statement of folklore, then every claim, read from the notebooks' outputs."""
    entries = printed_claims()
    verdicts = {id: (text, path) for mark, id, text, path, _ in entries if mark == "VERDICT"}
    lines = [
        "# Claims", "",
        "Written by `make notebooks` from the notebooks' outputs; nothing here is typed by hand. A line stands here",
        "because its check passed when the notebook ran; `make test` runs them all again.", "",
        "## Folklore", "",
        "What people say about DPO, and what came out here. Each statement has one verdict, in one notebook.", "",
        "| id | statement | verdict | why | scale and claims | notebook |", "|---|---|---|---|---|---|",
    ]  # fmt: skip
    for item in json.loads((ROOT / "data" / "folklore.json").read_text(encoding="utf-8")):
        text, path = verdicts.get(item["id"], ("", None))
        verdict, _, because = text.partition(": ")
        because, _, scale = because.partition(" | ")
        link = f"[{item['notebook']}](notebooks/{path.name})" if path else f"{item['notebook']}, to come"
        scale = scale.replace(" | ", "; ")
        lines.append(f"| {item['id']} | {item['statement']} | {verdict or 'open'} | {because} | {scale} | {link} |")
    lines += ["", "## Claims by notebook", "", "| id | claim | evidence | where |", "|---|---|---|---|"]
    for mark, id, text, path, number in entries:
        if mark == "HOLDS":
            statement, _, evidence = text.partition(" | ")
            where = f"[{path.stem[:2]}](notebooks/{path.name}), cell {number}"
            cells = [cell.replace("|", "\\|") for cell in (id, statement, evidence, where)]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def write_tables() -> None:
    """Navigation in every notebook, README.md's table and CLAIMS.md."""
    measured = json.loads(MEASURED.read_text()) if MEASURED.exists() else {}
    order = sorted(BOOKS.glob("[0-9][0-9]_*.ipynb"))
    for path in notebooks([]):
        write_header(path, order, measured)
    readme = ROOT / "README.md"
    readme.write_text(
        replace_between(readme.read_text(encoding="utf-8"), "notebooks", readme_table(measured)), "utf-8"
    )
    (ROOT / "CLAIMS.md").write_text(claims_markdown(), encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("numbers", nargs="*", help="two-digit numbers; none means all")
    parser.add_argument("--tables", action="store_true", help="execute nothing")
    args = parser.parse_args()
    os.environ["DPO_TUTORIAL_MONITOR"] = "plain"
    os.environ.setdefault("PYDEVD_DISABLE_FILE_VALIDATION", "1")
    for path in [] if args.tables else notebooks(args.numbers):
        print(f"executing {path.relative_to(ROOT)} ...", flush=True)
        run = execute(path)
        measured = json.loads(MEASURED.read_text()) if MEASURED.exists() else {}
        measured[str(path.relative_to(BOOKS))] = run
        MEASURED.write_text(json.dumps(dict(sorted(measured.items())), indent=1) + "\n")
        print(f"  {minutes(run['seconds'])}, {run['peak_gb']} GB", flush=True)
    write_tables()


if __name__ == "__main__":
    main()
