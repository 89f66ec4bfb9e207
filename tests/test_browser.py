"""The course in a real JupyterLab in a real browser (Debian's chromium, driven by playwright).

Two notebooks live: they open without an error, run, and their sliders obey the arrow keys. Every notebook as a fresh
clone shows it, untrusted: pictures, no blank boxes, no raw TeX. Nothing is asked of any other machine.
"""

import os
import re
import secrets
import shutil
import socket
import statistics
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).resolve().parents[1]
BOOKS = sorted((ROOT / "notebooks").glob("[0-9][0-9]_*.ipynb"))
CHROMIUM = shutil.which("chromium")
FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"]
FLAGS += ["--disable-background-networking", "--disable-component-update", "--disable-sync"]
RAW_TEX = re.compile(r"\\(?:log|frac|pi|sigma|beta|mathrm|sum|mathbb|partial)\b|\$\$")
CLOSED_FORM_MS = 30  # the aim; the test fails at three times that
pytestmark = [
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine (Debian: apt install chromium)"),
    pytest.mark.timeout(240),
]


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """A JupyterLab of its own, on a copy of the notebooks (so that nothing is saved over): its address and token."""
    home = tmp_path_factory.mktemp("lab")
    shutil.copytree(ROOT / "notebooks", home / "notebooks", ignore=shutil.ignore_patterns("runs"))
    for name in ("data", "benchmarks", "recipes", "tools", "labconfig"):
        os.symlink(ROOT / name, home / name)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    token = secrets.token_hex(8)
    folders = {f"JUPYTER_{name}_DIR": str(home / f"jupyter_{name.lower()}") for name in ("CONFIG", "RUNTIME", "DATA")}
    folders |= {f"JUPYTERLAB_{name}_DIR": str(home / name.lower()) for name in ("SETTINGS", "WORKSPACES")}
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", f"--port={port}"]
    command += [f"--ServerApp.root_dir={home}", f"--IdentityProvider.token={token}"]
    command += ["--LabApp.expose_app_in_browser=True"]
    environment = os.environ | folders | {"JUPYTER_CONFIG_PATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    with (home / "lab.log").open("w") as log:
        server = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
    address = f"http://127.0.0.1:{port}"
    try:
        wait_for(f"{address}/api?token={token}", home / "lab.log")
        yield address, token
    finally:
        server.terminate()
        server.wait(20)


def wait_for(url: str, log: Path) -> None:
    for _ in range(300):
        try:
            urllib.request.urlopen(url, timeout=5)
            return
        except (urllib.error.URLError, OSError):
            time.sleep(0.5)
    raise AssertionError(f"JupyterLab did not start: {log.read_text()[-2000:]}")


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield chromium
        chromium.close()


@pytest.fixture
def page(browser, lab):
    """A page that notes errors in ``page.errors`` and requests to other machines in ``page.outside``."""
    address, _ = lab
    page = browser.new_page(viewport={"width": 1280, "height": 1400})
    page.errors, page.outside = [], []
    page.on("pageerror", lambda error: page.errors.append(str(error)))
    inside = (address, address.replace("http", "ws"), "data:", "blob:", "about:", "chrome")
    page.on("request", lambda sent: None if sent.url.startswith(inside) else page.outside.append(sent.url))
    yield page
    page.close()


def open_book(page, lab, name: str) -> None:
    """The notebook in a workspace of its own, rendered, without the file browser beside it."""
    address, token = lab
    page.goto(f"{address}/lab/workspaces/w{secrets.token_hex(4)}/tree/notebooks/{name}?token={token}")
    page.wait_for_selector(".jp-Notebook .jp-Cell", timeout=90_000)
    page.wait_for_function("window.jupyterapp && window.jupyterapp.shell.currentWidget?.content?.widgets?.length > 3")


def seen_while_scrolling(page) -> dict:
    """Text, pictures without size, and kinds of outputs of all cells, which JupyterLab renders only when in view."""
    return page.evaluate(
        """async () => {
          const book = window.jupyterapp.shell.currentWidget.content;
          const found = {text: '', broken: 0, pictures: 0, blank: []};
          const seen = new Set();
          for (let i = 0; i < book.widgets.length; i++) {
            await book.scrollToItem(i, 'start');
            await new Promise(done => setTimeout(done, 60));
            for (const cell of document.querySelectorAll('.jp-Notebook .jp-Cell')) {
              const id = cell.getAttribute('data-windowed-list-index') ?? i;
              if (seen.has(id) && cell.querySelector('.MathJax, mjx-container, img') === null) continue;
              if (!seen.has(id)) {
                for (const image of cell.querySelectorAll('img')) {
                  await image.decode().catch(() => null);
                  found.pictures += 1;
                  if (!image.naturalWidth) found.broken += 1;
                }
                for (const output of cell.querySelectorAll('.jp-OutputArea-output')) {
                  if (output.getBoundingClientRect().height < 4) found.blank.push(i);
                }
              }
              seen.add(id);
            }
          }
          await new Promise(done => setTimeout(done, 400));
          return found;
        }"""
    )


def stored_pictures(path: Path) -> int:
    """Outputs of a stored notebook that hold a picture."""
    cells = nbformat.read(path, as_version=4).cells
    bundles = [output.get("data", {}) for cell in cells for output in cell.get("outputs", [])]
    return sum("image/png" in data or "<img" in str(data.get("text/html", "")) for data in bundles)


def visible_text(page) -> str:
    """What can be read in every cell: rendered Markdown without its hidden TeX sources, and outputs."""
    return page.evaluate(
        """async () => {
          const book = window.jupyterapp.shell.currentWidget.content;
          let text = '';
          for (let i = 0; i < book.widgets.length; i++) {
            if (book.widgets[i].model.type === 'code' && !book.widgets[i].model.outputs.length) continue;
            await book.scrollToItem(i, 'start');
            await new Promise(done => setTimeout(done, 40));
            const node = book.widgets[i].node;
            const part = node.querySelector('.jp-RenderedMarkdown') ?? node.querySelector('.jp-OutputArea');
            text += (part?.innerText ?? '') + '\\n';
          }
          return text;
        }"""
    )


@pytest.mark.parametrize("path", BOOKS, ids=lambda path: path.name)
def test_a_fresh_clone_shows_every_notebook(path, page, lab):
    """Untrusted, no kernel needed: what a reader meets before having run anything."""
    open_book(page, lab, path.name)
    found = seen_while_scrolling(page)
    text = visible_text(page)
    assert path.name[:2] in text, "the title is not there"
    assert "Error displaying widget" not in text and "Loading widget" not in text
    assert not RAW_TEX.search(text), RAW_TEX.search(text) and text[RAW_TEX.search(text).start() - 60 :][:160]
    assert found["broken"] == 0 and found["pictures"] >= min(1, stored_pictures(path))
    assert found["blank"] == [], f"empty boxes in cells {found['blank']}"
    assert page.outside == [] and page.errors == []


def run_all(page) -> list[str]:
    """Run every cell in a fresh kernel; the errors that the outputs then hold."""
    page.evaluate(
        """async () => {
          const panel = window.jupyterapp.shell.currentWidget;
          await panel.sessionContext.ready;
          await panel.sessionContext.session?.kernel?.info;
          await window.jupyterapp.commands.execute('notebook:run-all-cells');
        }"""
    )
    return page.evaluate(
        """() => window.jupyterapp.shell.currentWidget.content.widgets
          .filter(cell => cell.model.type === 'code')
          .flatMap(cell => cell.model.outputs.toJSON())
          .filter(output => output.output_type === 'error').map(output => output.ename + ': ' + output.evalue)"""
    )


def scroll_to(page, text: str) -> None:
    """Bring the code cell that contains ``text``, and its output, into view."""
    page.evaluate(
        """async text => {
          const book = window.jupyterapp.shell.currentWidget.content;
          const at = book.widgets.findIndex(
            cell => cell.model.type === 'code' && cell.model.sharedModel.source.includes(text));
          await book.scrollToItem(at, 'start');
          book.widgets[at].outputArea.node.scrollIntoView();
        }""",
        text,
    )
    page.wait_for_timeout(300)


# From a key going down to the first frame after the text line has changed.
WATCH = """input => {
  const root = input.closest('[data-dpo-slider]'), line = root.querySelector('[aria-live]');
  window.moves = [];
  let start = 0;
  input.addEventListener('keydown', () => { start = performance.now(); }, true);
  new MutationObserver(() => requestAnimationFrame(() => window.moves.push(performance.now() - start)))
    .observe(line, {childList: true, characterData: true, subtree: true});
}"""


def test_01_runs_and_its_slider_obeys_the_arrow_keys(page, lab, record_property):
    open_book(page, lab, "01_optimum_of_kl_regularised_reward.ipynb")
    assert run_all(page) == []
    scroll_to(page, "sliders.closed_form(")
    control = page.locator("[data-dpo-slider] input[type=range]").first
    control.wait_for(timeout=20_000)
    card = page.locator("[data-dpo-slider]").first
    line, drawing = card.locator("[aria-live]"), card.locator("svg")
    control.evaluate(WATCH)
    control.focus()
    before = control.input_value(), line.inner_text(), drawing.inner_html(), control.get_attribute("aria-valuetext")
    page.keyboard.press("ArrowRight")
    page.wait_for_timeout(100)
    after = control.input_value(), line.inner_text(), drawing.inner_html(), control.get_attribute("aria-valuetext")
    assert int(after[0]) == int(before[0]) + 1, "JupyterLab took the key"
    assert all(new != old for new, old in zip(after, before, strict=True))
    for key in ["ArrowLeft", "ArrowRight"] * 8:
        page.keyboard.press(key)
        page.wait_for_timeout(60)
    moves = page.evaluate("window.moves")
    assert len(moves) >= 12
    record_property("median_latency_ms", round(statistics.median(moves), 1))
    assert statistics.median(moves) < 3 * CLOSED_FORM_MS
    assert page.errors == [] and page.outside == []


def test_00_runs_and_its_slider_chooses_a_text(page, lab):
    """The first thing a learner does: run the start page and move beta with the keys."""
    open_book(page, lab, "00_start_here.ipynb")
    assert run_all(page) == []
    scroll_to(page, "steering_panel.steering_panel(")
    control = page.locator(".jp-OutputArea [role=slider], .jp-OutputArea input[type=range]").first
    control.wait_for(timeout=30_000)
    panel = control.locator("xpath=ancestor::*[contains(@class, 'jp-OutputArea-output')][1]")
    before = panel.inner_text()
    control.focus()
    for key in ("ArrowLeft", "ArrowLeft"):
        page.keyboard.press(key)
    for _ in range(100):  # the kernel may be writing
        page.wait_for_timeout(200)
        if panel.inner_text() != before:
            break
    assert panel.inner_text() != before, "the text did not follow the slider"
    assert page.errors == [] and page.outside == []
