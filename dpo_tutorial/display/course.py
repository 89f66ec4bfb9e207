"""The list of the course's notebooks (data/course.json) and the map that notebook 00 shows."""

import json
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def course() -> list[dict]:
    """The 17 notebooks in reading order: ``file`` (without suffix), ``title``, ``part``, ``question``, ``what``."""
    return json.loads((ROOT / "data" / "course.json").read_text(encoding="utf-8"))


def minutes(seconds: float) -> str:
    """A measured time as the tables show it.

    >>> minutes(42), minutes(150)
    ('42 s', '2.5 min')
    """
    return f"{seconds} s" if seconds < 90 else f"{seconds / 60:.1f} min"


def map_markdown() -> str:
    """The map as a Markdown table; notebooks that are not written yet are marked "to come"."""
    lines = ["| notebook | part | question |", "|---|---|---|"]
    for entry in course():
        name = f"{entry['file'][:2]} · {entry['title']}"
        there = (ROOT / "notebooks" / f"{entry['file']}.ipynb").exists()
        link = f"[{name}]({entry['file']}.ipynb)" if there else f"{name} (to come)"
        lines.append(f"| {link} | {entry['part']} | {entry['question']} |")
    return "\n".join(lines)
