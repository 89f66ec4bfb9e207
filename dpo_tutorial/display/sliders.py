"""Sliders: a control that redraws one figure, readable without a kernel and without scripts.

:func:`closed_form` is for whatever a formula gives at once. Python computes the drawing for every slider value
with the package's own functions; a few lines of script only put the stored numbers of one value into one SVG, so
that no formula is written twice. Where scripts do not run (an untrusted notebook, a printed page) the output is a
picture of three slider values. :func:`live_figure` is for what needs the kernel at every move.
"""

import base64
import hashlib
import html
import json
from collections.abc import Callable, Sequence

from dpo_tutorial.display import plots, svg
from dpo_tutorial.display.svg import Bars, Lines, Series

__all__ = ["Bars", "Lines", "LiveFigure", "Series", "closed_form", "closed_form_html", "handle_names", "live_figure"]

READABLE = 620  # pixels that a drawing of two panels needs
# Background and ink are set, not inherited: the card stays readable on a dark page.
_CARD = "background:#fff;color:#111;padding:10px 14px;border:1px solid #ddd;border-radius:6px;max-width:{width}px"
# data-lm-suppress-shortcuts: otherwise JupyterLab takes the arrow keys for itself.
_CONTROL = (
    '<label style="display:block;color:#111">{label} '
    '<input type="range" min="0" max="{last}" step="1" value="{start}" autocomplete="off" '
    'data-lm-suppress-shortcuts="true" aria-valuetext="{value}" '
    'style="display:block;width:100%;max-width:480px;margin:4px 0;accent-color:{accent}"></label>'
    '<div aria-live="polite" style="color:#111;margin:2px 0 8px;min-height:1.3em">{line}</div>'
    # In a narrow window the drawing scrolls instead of shrinking until nobody can read it.
    '<div tabindex="0" role="group" aria-label="drawing" data-lm-suppress-shortcuts="true" style="overflow-x:auto">'
    '<div style="min-width:{least}px">{drawing}</div></div>'
)
_SCRIPT = """(function (d) {
  document.querySelectorAll('[data-dpo-slider="' + d.id + '"]').forEach(function (root) {
    if (root.dataset.live) return;
    root.dataset.live = "1";
    var box = document.createElement("div");
    box.innerHTML = d.control;
    root.querySelector("img").replaceWith(box);
    var input = box.querySelector("input"), line = box.querySelector("[aria-live]");
    var parts = box.querySelector("svg").children;
    function show() {
      var i = Number(input.value);
      d.slots.forEach(function (slot, k) {
        var part = parts[slot[0]], value = d.moves[k][i];
        if (slot[1]) part.setAttribute(slot[1], value); else part.textContent = value;
      });
      line.textContent = d.lines[i];
      input.setAttribute("aria-valuetext", d.values[i]);
    }
    input.addEventListener("input", show);
    show();
  });
})"""

# Scripts inside a widget's HTML do not run, the onerror of an image that cannot load does. The slider may come later.
_NAMING = """(function (here, left) {
  var root = here.closest(".widget-vbox"), handles = root ? root.querySelectorAll("[role=slider]") : [];
  if (!handles.length) return left && setTimeout(arguments.callee, 100, here, left - 1);
  handles.forEach(function (handle) {
    var label = handle.closest(".widget-inline-hbox").querySelector(".widget-label");
    handle.setAttribute("aria-label", label.textContent);
  });
})(this, 100)"""


def _moves(drawings: Sequence[svg.Drawing]) -> tuple[list[list], list[list[str]]]:
    """What differs between slider values: slots (number of the element, attribute or "" for its text), and values."""
    slots, moves = [], []
    for number, parts in enumerate(zip(*(elements for elements, _, _ in drawings), strict=True)):
        for name in (*parts[0][1], ""):
            values = [attributes[name] if name else text for _, attributes, text in parts]
            if len(set(values)) > 1:
                slots.append([number, name])
                moves.append(values)
    return slots, moves


def _check(label: str, values: Sequence, readouts: Sequence[str], panels: Sequence, start: int, alt: str) -> None:
    if not label.strip() or not alt.strip():
        raise ValueError("label or alt is empty; say what the slider sets and what there is to see")
    if not panels or len(values) < 3:
        raise ValueError(f"{len(panels)} panels and {len(values)} values; give at least 1 and 3")
    if len(readouts) != len(values):
        raise ValueError(f"{len(readouts)} readouts for {len(values)} values; give one text per value")
    if not 0 <= start < len(values):
        raise ValueError(f"start is {start}; it is an index of values, 0 to {len(values) - 1}")


def closed_form_html(
    *,
    label: str,
    values: Sequence[float],
    readouts: Sequence[str],
    panels: Sequence[Bars | Lines],
    start: int,
    alt: str,
    value_format: str = "{:.3g}",
    stills: Sequence[int] | None = None,
) -> str:
    """The slider as HTML that needs nothing from outside; see :func:`closed_form` for the arguments.

    The text is the same for the same arguments on every machine (coordinates are rounded to a tenth of a pixel),
    and its id is a hash of its content, so that several sliders share a page.
    """
    _check(label, values, readouts, panels, start, alt)
    n = len(values)
    shown = [value_format.format(value) for value in values]
    stills = tuple(stills or (n // 10, n // 2, n - 1 - n // 10))
    name = label.split(" (")[0]  # the unit is said once, in the label
    still = svg.layout(panels, stills, n, [f"{name} = {shown[i]}" for i in stills])
    drawings = [svg.layout(panels, [i], n, []) for i in range(n)]
    lines = [f"{name} = {value}. {readout}" for value, readout in zip(shown, readouts, strict=True)]
    escaped = {"label": label, "value": shown[start], "line": lines[start]}
    control = _CONTROL.format(
        **{key: html.escape(text) for key, text in escaped.items()},
        last=n - 1,
        start=start,
        accent=plots.COLOURS["chosen"],
        least=int(min(READABLE, drawings[start][1])),
        drawing=svg.markup(*drawings[start], alt),
    )
    slots, moves = _moves(drawings)
    data = {"control": control, "values": shown, "lines": lines, "slots": slots, "moves": moves}
    data = {"id": hashlib.sha256(json.dumps(data).encode()).hexdigest()[:12]} | data
    # "<" is escaped so that no text inside the data can end the script.
    stored = json.dumps(data, separators=(",", ":")).replace("<", "\\u003c")
    source = "data:image/svg+xml;base64," + base64.b64encode(svg.markup(*still, alt).encode()).decode()
    card = _CARD.format(width=int(max(still[1], drawings[start][1])) + 30)
    return (
        f'<div data-dpo-slider="{data["id"]}" style="{card}">'
        f'<img src="{source}" alt="{html.escape(alt)}" style="max-width:100%">'
        f"<script>{_SCRIPT}({stored})</script></div>"
    )


def closed_form(**arguments) -> None:
    """Display a slider over values for which a formula gives everything at once.

    Args (all by name):
        label: what the slider sets, with its unit.
        values: (N,) the slider's values, in order; at least three.
        readouts: (N,) a sentence per value, shown and announced beside it.
        panels: one or more :class:`Bars` or :class:`Lines`; series that move have one row per value.
        start: index of the value shown first.
        alt: what there is to see, in a sentence, for readers without the picture.
        value_format: how values are written, default ``"{:.3g}"``.
        stills: three indices for the picture that stands in when scripts do not run (default: near both ends and
            in the middle).

    Raises:
        ValueError: lengths or shapes do not fit, a number is not finite, or a text is missing.
    """
    from IPython.display import display

    bundle = {"text/html": closed_form_html(**arguments), "text/plain": f"[slider] {arguments['alt']}"}
    display(bundle, raw=True)


def handle_names():
    """A widget without size that gives the sliders of its box the names that ipywidgets leaves out.

    Screen readers call a slider by the name of its handle; the text beside it is not tied to it.
    """
    import ipywidgets

    source = f'<img src="data:," alt="" onerror="{html.escape(_NAMING)}">'
    return ipywidgets.HTML(source, layout={"display": "none"})


class LiveFigure:
    """A slider, a picture and a text line that follow one another; built by :func:`live_figure`."""

    def __init__(self, fig, update: Callable[[float], str], label: str, shown: dict[str, float], start: int):
        import ipywidgets

        self._fig, self._update, self._name = fig, update, label.split(" (")[0]
        self._text_of = {value: text for text, value in shown.items()}
        self.slider = ipywidgets.SelectionSlider(
            options=list(shown.items()),
            value=list(shown.values())[start],
            description=label,
            style={"description_width": "initial"},
            layout={"width": "480px", "max_width": "100%"},
        )
        self.text = ipywidgets.HTML()
        self.image = ipywidgets.Image(format="png", layout={"max_width": f"{int(fig.get_figwidth() * plots.DPI)}px"})
        self._draw()
        # The layout is solved once; solving it at every move would cost more than the drawing.
        fig.set_layout_engine("none")
        self.slider.observe(lambda change: self._draw(), names="value")
        self.box = ipywidgets.VBox([self.slider, self.text, self.image, handle_names()])

    def _draw(self) -> None:
        value = self.slider.value
        line = f"{self._name} = {self._text_of[value]}. {self._update(value)}"
        self.image.value = plots.png(self._fig)
        self.text.value = f'<span role="status" aria-live="polite">{html.escape(line)}</span>'


def live_figure(
    fig,
    update: Callable[[float], str],
    *,
    label: str,
    values: Sequence[float],
    start: int,
    alt: str,
    value_format: str = "{:.3g}",
) -> LiveFigure:
    """Display a slider whose every move asks the kernel for new data in one figure.

    Args:
        fig: a figure from ``plots.figure``, with its artists already drawn.
        update: puts the data of one value into those artists (``line.set_ydata(...)``, never a new figure) and
            returns the sentence that stands beside the value.
        label, values, start, alt, value_format: as in :func:`closed_form`.

    Returns:
        the :class:`LiveFigure`; set ``.slider.value`` to move it, read ``.image.value`` and ``.text.value``.
        The first picture is part of the output, for readers without a kernel.
    """
    from IPython.display import display

    _check(label, values, [""] * len(values), [fig], start, alt)
    shown = {value_format.format(value): value for value in values}
    if len(shown) < len(values):
        raise ValueError(f"value_format {value_format!r} writes two values alike; give it more digits")
    live = LiveFigure(fig, update, label, shown, start)
    bundle = live.box._repr_mimebundle_() | {"image/png": bytes(live.image.value), "text/plain": f"[slider] {alt}"}
    display(bundle, raw=True, metadata={"image/png": {"alt": alt}})
    return live
