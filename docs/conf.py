"""Sphinx configuration of the static site; `make site` builds it from the committed notebooks, without running them.

Pages that exist elsewhere (the notebooks, CLAIMS.md) are copied beside this file first; the copies are not committed.
"""

import json
import shutil
from pathlib import Path

from dpo_tutorial.display import course

HERE = Path(__file__).resolve().parent
REPO = HERE.parent

project = "dpo_tutorial"
author = "the authors of dpo_tutorial"
project_copyright = "Apache-2.0"
extensions = ["myst_nb", "sphinx-mathjax-offline"]
source_suffix = {".md": "myst-nb", ".ipynb": "myst-nb"}
exclude_patterns = ["_build", "front.md"]
templates_path = ["_templates"]

nb_execution_mode = "off"
# Widgets need a kernel; the picture that every control carries stands in for them.
nb_mime_priority_overrides = [
    ("html", "application/vnd.jupyter.widget-view+json", None),
    ("html", "application/javascript", None),
]
nb_render_markdown_format = "myst"  # tables and links in outputs (the map in 00) as in the text
myst_enable_extensions = ["dollarmath", "amsmath"]
myst_heading_anchors = 3
myst_links_external_new_tab = True
suppress_warnings = ["mystnb.unknown_mime_type"]

html_theme = "furo"
html_title = "dpo_tutorial: Direct Preference Optimization, measured"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_js_files = ["site.js"]
html_copy_source = False
html_show_sphinx = False


def _toc(files: list[str], depth: int = 1) -> str:
    return "\n".join(["```{toctree}", f":maxdepth: {depth}", ":hidden:", "", *files, "```", ""])


def stage(app) -> None:
    """Copy the notebooks and CLAIMS.md, and write the index and the table of times from course.json."""
    entries = course.course()
    measured = json.loads((REPO / "notebooks" / "measured.json").read_text(encoding="utf-8"))
    shutil.rmtree(HERE / "notebooks", ignore_errors=True)
    for path in sorted((REPO / "notebooks").rglob("*.ipynb")):
        if any(part in (".ipynb_checkpoints", "runs") for part in path.parts):
            continue
        target = HERE / "notebooks" / path.relative_to(REPO / "notebooks")
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)
    shutil.copyfile(REPO / "CLAIMS.md", HERE / "CLAIMS.md")
    built = [entry for entry in entries if (HERE / "notebooks" / f"{entry['file']}.ipynb").exists()]
    rows = ["| notebook | question | time | memory |", "|---|---|---|---|"]
    for entry in built:
        cost = measured.get(f"{entry['file']}.ipynb")  # one that was not executed yet has none
        spent = f"{course.minutes(cost['seconds'])} | {cost['peak_gb']} GB" if cost else "|"
        rows.append(
            f"| [{entry['file'][:2]} · {entry['title']}](notebooks/{entry['file']}.ipynb) | {entry['question']} "
            f"| {spent} |"
        )
    machines = sorted({entry["machine"] for entry in measured.values()})
    text = (HERE / "front.md").read_text(encoding="utf-8")
    solutions = sorted(
        f"notebooks/solutions/{path.stem}" for path in (HERE / "notebooks" / "solutions").glob("*.ipynb")
    )
    toc = _toc([f"notebooks/{entry['file']}" for entry in built]) + _toc(
        ["cheat_sheet", "glossary", "CLAIMS", "solutions"]
    )
    table = "\n".join(rows) + f"\n\nMeasured on: {'; '.join(machines)}.\n"
    (HERE / "index.md").write_text(text.replace("<!-- notebooks -->", table) + "\n" + toc, encoding="utf-8")
    listing = "# Solutions\n\nEvery exercise, solved and executed.\n\n" + _toc(solutions).replace(":hidden:\n", "")
    (HERE / "solutions.md").write_text(listing, encoding="utf-8")


def setup(app) -> None:
    app.connect("config-inited", lambda app, config: stage(app))
