"""The static site: it builds from the committed notebooks without a warning, and needs nothing from elsewhere."""

import json
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parents[1]
NOTEBOOKS = sorted(path.stem for path in (REPO / "notebooks").glob("*.ipynb"))


class Resources(HTMLParser):
    """Addresses that a page loads by itself (not the links a reader may follow), and the links."""

    def __init__(self):
        super().__init__()
        self.loaded, self.links = [], []

    def handle_starttag(self, tag, attributes):
        found = dict(attributes)
        if tag in ("script", "img", "iframe", "source") and found.get("src"):
            self.loaded.append(found["src"])
        if tag == "link" and found.get("rel") in ("stylesheet", "icon", "preload"):
            self.loaded.append(found["href"])
        if tag == "a" and found.get("href"):
            self.links.append(found["href"])


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    out = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-b", "html", "-d", str(out / "trees")]
    result = subprocess.run([*command, str(REPO / "docs"), str(out / "html")], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-3000:]
    return out / "html"


def read(path):
    page = Resources()
    page.feed(path.read_text(encoding="utf-8"))
    return page


def test_every_notebook_and_every_page_is_there(site):
    index = (site / "index.html").read_text(encoding="utf-8")
    for name in NOTEBOOKS:
        assert (site / "notebooks" / f"{name}.html").exists() and f"notebooks/{name}.html" in index
    for name in ("cheat_sheet", "glossary", "CLAIMS", "solutions", "search"):
        assert (site / f"{name}.html").exists(), name


def test_nothing_is_loaded_from_elsewhere_and_no_link_is_dead(site):
    for path in sorted(site.rglob("*.html")):
        page = read(path)
        outside = [address for address in page.loaded if re.match(r"(https?:)?//", address)]
        assert not outside, (path.name, outside)
        for address in page.links:
            if re.match(r"(https?|mailto):", address) or address.startswith(("#", "data:")):
                continue
            target = (path.parent / address.split("#")[0].split("?")[0]).resolve()
            assert target.exists(), (path.name, address)


def test_mathematics_search_and_sliders_work_offline(site):
    page = (site / "notebooks" / "01_optimum_of_kl_regularised_reward.html").read_text(encoding="utf-8")
    assert "mathjax" in page and (site / "_static" / "mathjax" / "tex-chtml.js").exists()
    assert 'type="range"' in page or "range" in page
    assert "Error displaying widget" not in page
    terms = json.loads((site / "searchindex.js").read_text(encoding="utf-8")[len("Search.setIndex(") : -1])
    assert any(term.startswith("preferenc") for term in terms["terms"])
