"""The static site: it builds from the committed notebooks without a warning, and needs nothing from elsewhere.

In the browser it is read from the folder, without a server: mathematics, search and sliders work, axe-core finds
nothing serious.
"""

import json
import re
import statistics
import subprocess
import sys
import tomllib
from html.parser import HTMLParser
from pathlib import Path

import pytest
import yaml
from chromium import CLOSED_FORM_MS, needs_chromium, note, photograph, raw_tex, serious

from dpo_tutorial.display import symptoms

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


def test_the_copies_are_those_of_the_committed_notebooks(site):
    """Pages are made from copies beside conf.py, written at every build: none is missing, old or left over."""
    copies = REPO / "docs" / "notebooks"
    originals = {path.relative_to(REPO / "notebooks") for path in (REPO / "notebooks").glob("*.ipynb")}
    originals |= {path.relative_to(REPO / "notebooks") for path in (REPO / "notebooks/solutions").glob("*.ipynb")}
    assert {path.relative_to(copies) for path in copies.rglob("*.ipynb")} == originals
    for path in originals:
        assert (copies / path).read_bytes() == (REPO / "notebooks" / path).read_bytes()
    ignored = subprocess.run(["git", "check-ignore", "docs/notebooks", "docs/CLAIMS.md", "docs/index.md"], cwd=REPO)
    assert ignored.returncode == 0 or not (REPO / ".git").exists()


def test_times_claims_and_terms_are_there(site):
    index, claims, terms = (
        (site / f"{name}.html").read_text(encoding="utf-8") for name in ("index", "CLAIMS", "glossary")
    )
    measured = json.loads((REPO / "notebooks" / "measured.json").read_text())
    for name in NOTEBOOKS:
        row = re.search(rf"<tr[^>]*>(?:(?!</tr>).)*notebooks/{name}\.html.*?</tr>", index, re.S)[0]
        peak = measured[f"{name}.ipynb"]["peak_gb"]
        assert f"{peak} GB" in row and re.search(r"\d+ s|\d+\.\d min", row)
        page = (site / "notebooks" / f"{name}.html").read_text(encoding="utf-8")
        assert "Measured." in page and re.search(r'href="(00_start_here|01_\w+)\.html"', page), "time, navigation"
    for line in (REPO / "CLAIMS.md").read_text(encoding="utf-8").splitlines():
        if found := re.match(r"\| (F\d\d|\d\d\.\d+) \|", line):
            assert f"<p>{found[1]}</p>" in claims, found[1]
    assert all(term in terms for term in ("log-ratio", "implicit reward", "displacement"))


def test_the_cheat_sheet_has_every_symptom_and_its_cure():
    sheet = (REPO / "docs" / "cheat_sheet.md").read_text(encoding="utf-8")
    rows = [f"| {row.name} | {row.symptom} | {row.cause} | {row.cure} |" for row in symptoms.TABLE]
    assert [row for row in rows if row not in sheet] == []
    flat = [row for row in symptoms.TABLE if row.symptom == "flat at .693"]
    assert "A flat loss has five causes" in sheet and len(flat) == 5


def test_the_workflow_installs_what_the_site_needs():
    workflow = yaml.safe_load((REPO / ".github/workflows/site.yml").read_text())
    runs = [step["run"] for step in workflow["jobs"]["publish"]["steps"] if "run" in step]
    project = tomllib.loads((REPO / "pyproject.toml").read_text())["project"]
    needed = {re.split(r"[><=]", line)[0] for line in project["optional-dependencies"]["docs"]}
    assert needed == set(runs[0].removeprefix("pip install -c constraints.txt ").split())
    assert "-W" in runs[1] and runs[1].endswith("docs docs/_build/html")
    paths = [step["with"]["path"] for step in workflow["jobs"]["publish"]["steps"] if "path" in step.get("with", {})]
    assert paths == ["docs/_build/html"] and workflow["permissions"]["pages"] == "write"


def test_mathematics_search_and_sliders_work_offline(site):
    page = (site / "notebooks" / "01_optimum_of_kl_regularised_reward.html").read_text(encoding="utf-8")
    assert "mathjax" in page and (site / "_static" / "mathjax" / "tex-chtml.js").exists()
    assert 'type="range"' in page or "range" in page
    assert "Error displaying widget" not in page
    terms = json.loads((site / "searchindex.js").read_text(encoding="utf-8")[len("Search.setIndex(") : -1])
    assert any(term.startswith("preferenc") for term in terms["terms"])


@pytest.fixture
def page(browser):
    """A page that notes errors, and requests that are not for a file of this machine."""
    page = browser.new_page(viewport={"width": 1280, "height": 1200})
    page.errors, page.outside = [], []
    page.on("pageerror", lambda error: page.errors.append(str(error)))
    inside = ("file:", "data:", "blob:")
    page.on("request", lambda sent: None if sent.url.startswith(inside) else page.outside.append(sent.url))
    yield page
    page.close()


def opened(page, path: Path) -> str:
    """Open a page of the site from the folder; its visible text once mathematics has been typeset."""
    page.goto(path.as_uri())
    page.wait_for_load_state("load")
    if page.locator(".math").count():
        page.wait_for_selector("mjx-container", timeout=30_000, state="attached")
        page.evaluate("() => window.MathJax?.startup?.promise")
    return page.locator("article").inner_text()


PAGES = ["index", "cheat_sheet", "glossary", "CLAIMS", "solutions", *(f"notebooks/{name}" for name in NOTEBOOKS)]

# The notebooks' outputs are looked at in JupyterLab (test_browser.py); here three of them, and everything else.
AXE = [name for name in PAGES if "/" not in name or name[10:12] in ("01", "09", "14")]


@needs_chromium
@pytest.mark.parametrize("name", PAGES)
def test_a_page_reads_well(site, page, name):
    text = opened(page, site / f"{name}.html")
    photograph(page, f"site-{name.replace('/', '-')}")
    assert len(text) > 300 or name == "solutions"
    assert not raw_tex(text), raw_tex(text)
    assert "Error displaying widget" not in text
    broken = "() => [...document.images].filter(i => i.complete && !i.naturalWidth).map(i => i.src.slice(0, 80))"
    assert page.evaluate(broken) == []
    wide = """() => [...document.querySelectorAll('article *')]
      .filter(part => part.getBoundingClientRect().right > innerWidth + 1)
      .filter(part => !part.closest('table, pre, .cell_output, mjx-container, .highlight'))
      .map(part => part.outerHTML.slice(0, 120))"""
    page.set_viewport_size({"width": 800, "height": 1200})
    page.wait_for_timeout(100)
    assert page.evaluate(wide) == [], "something leaves the page at 800 pixels"
    if name in AXE:
        assert serious(page, "article") == []
    assert page.errors == [] and page.outside == []


@needs_chromium
def test_a_slider_is_alive_without_a_kernel(site, page):
    opened(page, site / "notebooks" / "01_optimum_of_kl_regularised_reward.html")
    control = page.locator("[data-dpo-slider] input[type=range]").first
    card = page.locator("[data-dpo-slider]").first
    control.scroll_into_view_if_needed()
    before = control.input_value(), card.locator("[aria-live]").inner_text(), card.locator("svg").inner_html()
    times = []
    for key in ["ArrowRight"] * 9:
        control.evaluate(
            """control => {
              control.addEventListener('keydown', () => { window.start = performance.now(); }, {once: true});
              control.addEventListener('input', () => requestAnimationFrame(
                () => { window.took = performance.now() - window.start; }), {once: true});
            }"""
        )
        control.press(key)
        page.wait_for_timeout(50)
        times.append(page.evaluate("window.took"))
    after = control.input_value(), card.locator("[aria-live]").inner_text(), card.locator("svg").inner_html()
    assert int(after[0]) == int(before[0]) + 9 and all(new != old for new, old in zip(after, before, strict=True))
    median = round(statistics.median(times), 1)
    note("slider of the site, key to picture", median_ms=median, aim_ms=CLOSED_FORM_MS)
    assert median < 3 * CLOSED_FORM_MS


@needs_chromium
def test_search_finds_without_a_server(site, page):
    page.goto((site / "search.html").as_uri() + "?q=displacement")
    page.wait_for_selector("#search-results li", timeout=20_000)
    found = page.locator("#search-results li a").evaluate_all("links => links.map(link => link.textContent)")
    assert any(title.startswith("04") for title in found), found
    assert page.outside == []
