"""What the browser tests share: Debian's chromium, what must not be seen, what axe-core finds, where notes are kept.

With DPO_TUTORIAL_SCREENSHOTS=FOLDER every page that is tested is also photographed, 1280 and 800 pixels wide.
"""

import json
import os
import re
import shutil
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
CHROMIUM = shutil.which("chromium")
FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"]
FLAGS += ["--disable-background-networking", "--disable-component-update", "--disable-sync"]
RAW_TEX = re.compile(r"\\(?:log|frac|tfrac|pi|sigma|beta|mathrm|sum|mathbb|partial|big|mid|left|right)\b|\$\$")
MEASURED = ROOT / "runs" / "browser.json"  # what was measured last
CLOSED_FORM_MS, LIVE_MS = 30, 100  # the aims, medians; a test fails at three times that
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="no chromium here (Debian: apt install chromium)")


def raw_tex(text: str) -> str:
    """The first piece of TeX source in a text that a reader sees, with what is around it; empty if there is none."""
    match = RAW_TEX.search(text)
    return text[max(0, match.start() - 60) : match.end() + 100] if match else ""


def serious(page, *include: str, without: tuple[str, ...] = ()) -> list[str]:
    """What axe-core calls serious or critical inside these elements, a line per element."""
    from axe_playwright_python.sync_playwright import Axe

    there = [[selector] for selector in include if page.locator(selector).count()]
    found = (
        Axe()
        .run(
            page,
            context={"include": there, "exclude": [[selector] for selector in without]},
            options={"resultTypes": ["violations"]},
        )
        .response
    )
    return [
        f"{rule['id']} ({rule['impact']}): {node['html'][:200]} {node.get('failureSummary', '')[:200]}"
        for rule in found["violations"]
        if rule["impact"] in ("serious", "critical")
        for node in rule["nodes"]
    ]


def note(name: str, **values) -> None:
    """Print what was measured and keep it in runs/browser.json."""
    MEASURED.parent.mkdir(exist_ok=True)
    known = json.loads(MEASURED.read_text()) if MEASURED.exists() else {}
    MEASURED.write_text(json.dumps(known | {name: values}, indent=1, sort_keys=True) + "\n")
    print(f"{name}: {values}")


def photograph(page, name: str, whole: bool = False) -> None:
    """Pictures of the page at both widths, if they are asked for; the page is as wide as before afterwards."""
    folder, size = os.environ.get("DPO_TUTORIAL_SCREENSHOTS"), page.viewport_size
    for width in (1280, 800) if folder else ():
        page.set_viewport_size({"width": width, "height": size["height"]})
        page.wait_for_timeout(400)
        page.screenshot(path=f"{folder}/{name}-{width}.png", full_page=whole)
    page.set_viewport_size(size)
