"""Sliders: the page is deterministic and safe, its numbers are the package's, and a move draws new data."""

import base64
import json
import re
from xml.etree import ElementTree

import numpy as np
import pytest

from dpo_tutorial.display import plots, sliders, svg
from dpo_tutorial.display.sliders import Bars, Lines, Series

BETAS = np.geomspace(0.1, 10, 5)
REFERENCE = np.array([0.5, 0.3, 0.2])


def _arguments(**changes):
    weights = REFERENCE * np.exp(np.array([-1.0, 0.5, 2.0]) / BETAS[:, None])
    optimum = weights / weights.sum(axis=1, keepdims=True)
    bars = Bars(
        ["Sure.", "No <b> & no", "Why?"],
        [Series("reference", REFERENCE, role="reference"), Series("optimum", optimum, role="optimum")],
        title="policies",
        x_label="probability",
    )
    grid = np.linspace(0, 1, 4)
    lines = Lines(
        [Series("curve", BETAS[:, None] * grid, grid), Series("", [[b] for b in BETAS], [0.5], kind="dots")]
    )
    arguments = {
        "label": "beta (reward units per nat)",
        "values": BETAS,
        "readouts": [f"Row {i} </script>" for i in range(5)],
        "panels": [bars, lines],
        "start": 2,
        "alt": "Bars & a line",
    }
    return arguments | changes


def _data(page: str) -> dict:
    return json.loads(re.search(r"\}\)\((\{.*\})\)</script>", page, re.S)[1])


def _svg_of(page: str) -> ElementTree.Element:
    picture = re.search(r'src="data:image/svg\+xml;base64,([^"]+)"', page)[1]
    return ElementTree.fromstring(base64.b64decode(picture))


def test_same_arguments_give_the_same_bytes_and_other_arguments_another_id():
    page = sliders.closed_form_html(**_arguments())
    assert page == sliders.closed_form_html(**_arguments())
    other = sliders.closed_form_html(**_arguments(label="gamma"))
    assert _data(page)["id"] != _data(other)["id"]


def test_noise_in_the_last_bits_does_not_reach_the_page():
    quiet = Lines([Series("a", np.full((5, 2), 0.5), [0.0, 1.0])], y_limits=(0, 1))
    noisy = Lines([Series("a", np.full((5, 2), 0.5) - 1e-13, [-1e-17, 1.0])], y_limits=(0, 1))
    pages = [sliders.closed_form_html(**_arguments(panels=[panel])) for panel in (quiet, noisy)]
    assert pages[0] == pages[1]
    assert "-0 " not in pages[0] and '"-0"' not in pages[0]


def test_fallback_is_a_picture_of_three_values():
    root = _svg_of(sliders.closed_form_html(**_arguments(stills=(0, 2, 4))))
    texts = [element.text for element in root]
    assert [t for t in texts if t and t.startswith("beta =")] == ["beta = 0.1", "beta = 1", "beta = 10"]
    assert texts.count("No <b> & no") == 1  # names stand once, at the left
    assert root.attrib["aria-label"] == "Bars & a line"


def test_text_cannot_end_the_script_or_open_a_tag():
    page = sliders.closed_form_html(**_arguments())
    assert page.count("</script>") == 1
    assert "<b>" not in page
    assert _data(page)["lines"][3].endswith("Row 3 </script>")


def test_nothing_comes_from_outside_and_the_control_is_accessible():
    page = sliders.closed_form_html(**_arguments())
    addresses = set(re.findall(r"https?://[^\s\"'\\]+", page + base64.b64decode(_picture(page)).decode()))
    assert addresses == {"http://www.w3.org/2000/svg"}
    control = _data(page)["control"]
    assert 'data-lm-suppress-shortcuts="true"' in control and 'aria-live="polite"' in control
    assert re.search(r"<label[^>]*>beta \(reward units per nat\) <input type=\"range\"", control)
    assert 'aria-valuetext="1"' in control


def _picture(page: str) -> str:
    return re.search(r"base64,([^\"]+)", page)[1]


def test_every_move_gives_the_drawing_of_that_value():
    """Replays the script in Python: start drawing + stored moves = drawing of the value."""
    arguments = _arguments()
    data = _data(sliders.closed_form_html(**arguments))
    start, _, _ = svg.layout(arguments["panels"], [2], 5, [])
    for i in range(5):
        elements = [[tag, dict(attributes), text] for tag, attributes, text in start]
        for (number, name), moves in zip(data["slots"], data["moves"], strict=True):
            if name:
                elements[number][1][name] = moves[i]
            else:
                elements[number][2] = moves[i]
        expected, _, _ = svg.layout(arguments["panels"], [i], 5, [])
        assert elements == [list(element) for element in expected]


def test_bar_lengths_are_proportional_to_the_values():
    values = np.array([[0.1, 0.2, 0.4]] * 3)
    elements, _, _ = svg.layout([Bars("abc", [Series("p", values)], limits=(0, 1))], [0], 3, [])
    widths = [float(a["width"]) for tag, a, _ in elements if tag == "rect" and "fill-opacity" in a][1:]  # [0]: legend
    np.testing.assert_allclose(np.array(widths) / widths[2], [0.25, 0.5, 1.0], atol=1e-3)


def test_roles_differ_without_colour():
    marks = [Series("x", [1.0], role=role).strokes.get("stroke-dasharray", "") for role in plots.COLOURS]
    assert len(set(marks)) >= 3


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"readouts": ["one"]}, "one text per value"),
        ({"start": 5}, "0 to 4"),
        ({"alt": " "}, "alt is empty"),
        ({"values": [1, 2], "readouts": ["", ""]}, "at least 1 and 3"),
        ({"panels": [Lines([Series("a", np.ones((4, 2)), [0, 1])])]}, "one row per slider value"),
        ({"panels": [Lines([Series("a", [0, np.inf], [0, 1])])]}, "not finite"),
        ({"panels": [Bars("ab", [Series("a", [0.1, 0.2, 0.3])])]}, "one per category"),
        ({"panels": [Lines([Series("a", [0, 1], [0, 1])], x_log=True)]}, "above 0 on a log axis"),
    ],
)
def test_mistakes_are_named(changes, message):
    with pytest.raises(ValueError, match=message):
        sliders.closed_form_html(**_arguments(**changes))


def test_closed_form_displays_html_and_text(monkeypatch):
    shown = []
    monkeypatch.setattr("IPython.display.display", lambda bundle, **_: shown.append(bundle))
    sliders.closed_form(**_arguments())
    assert set(shown[0]) == {"text/html", "text/plain"}
    assert shown[0]["text/plain"] == "[slider] Bars & a line"


def test_live_figure_moves_one_figure(monkeypatch):
    shown = []
    monkeypatch.setattr("IPython.display.display", lambda bundle, **_: shown.append(bundle))
    fig, ax = plots.figure()
    (line,) = ax.plot([0, 1], [0, 1], **plots.line("policy"))

    def update(beta):
        line.set_ydata([0, beta])
        return f"Ends at {beta:.1f} <here>"

    live = sliders.live_figure(fig, update, label="beta (unit)", values=[0.1, 0.5, 1.0], start=1, alt="A line")
    before = bytes(live.image.value)
    assert live.text.value.endswith("beta = 0.5. Ends at 0.5 &lt;here&gt;</span>")
    assert 'aria-live="polite"' in live.text.value
    live.slider.value = 1.0
    assert list(line.get_ydata()) == [0, 1.0]
    assert bytes(live.image.value) != before and before.startswith(b"\x89PNG")
    live.slider.value = 0.5
    assert bytes(live.image.value) == before
    assert shown[0]["image/png"] == before and shown[0]["text/plain"] == "[slider] A line"
    assert "application/vnd.jupyter.widget-view+json" in shown[0]


def test_live_figure_refuses_values_that_look_alike():
    fig, _ = plots.figure()
    with pytest.raises(ValueError, match="more digits"):
        sliders.live_figure(fig, lambda v: "", label="b", values=[1.0, 1.0001, 2], start=0, alt="x")
