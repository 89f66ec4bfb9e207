"""Small SVG drawings, computed in Python and the same to the last byte on every machine.

For the sliders: text, lines, bars and dots as a flat list of elements, so that a script can move one of them by its
number. Figures that need no script are matplotlib's and live in ``plots.py``.
"""

import html
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.ticker import MaxNLocator

from dpo_tutorial.display import plots

FONT = 12
CHARACTER = 6.6  # width of a character in pixels at that size, rather too wide than too narrow
DASHES = {"chosen": "", "rejected": "7 4", "reference": "2 3", "policy": "", "optimum": ""}
_INK, _GRID = "#111111", "#e4e4e4"
Element = tuple[str, dict[str, str], str]  # tag, attributes, text
Drawing = tuple[list[Element], float, float]  # elements, width, height


@dataclass(frozen=True)
class Series:
    """One thing drawn in a panel: it moves with the slider where an array has one row more per slider value.

    Args:
        label: its name in the legend; an empty one leaves it out.
        y: (N,) where it stands still, (slider values, N) where it moves. For bars N is the number of categories.
        x: the same shapes; unused for bars.
        role: gives colour and dash pattern, one of ``plots.COLOURS``.
        kind: "line" or "dots"; unused for bars.
        colour, dash: instead of the role's own, for example ``plots.SWEEP[2]`` and "4 2".
        size: line width, or radius of the dots, in pixels.
    """

    label: str
    y: Sequence | np.ndarray
    x: Sequence | np.ndarray | None = None
    role: str = "policy"
    kind: str = "line"
    colour: str | None = None
    dash: str | None = None
    size: float = 2.0

    @property
    def ink(self) -> str:
        return self.colour or plots.COLOURS[self.role]

    @property
    def strokes(self) -> dict[str, str]:
        dash = DASHES[self.role] if self.dash is None else self.dash
        return {"stroke": self.ink, "stroke-width": f"{self.size:g}"} | ({"stroke-dasharray": dash} if dash else {})


@dataclass(frozen=True)
class Bars:
    """A panel of horizontal bars, a group per category. ``limits`` bound their axis (default: 0 to the largest)."""

    categories: Sequence[str]
    series: Sequence[Series]
    title: str = ""
    x_label: str = ""
    limits: tuple[float, float] | None = None
    value_format: str = "{:.2f}"
    height: int = 0


@dataclass(frozen=True)
class Lines:
    """A panel of lines and dots. What lies beyond the given limits is drawn on the border."""

    series: Sequence[Series]
    title: str = ""
    x_label: str = ""
    y_label: str = ""
    x_limits: tuple[float, float] | None = None
    y_limits: tuple[float, float] | None = None
    x_log: bool = False
    height: int = 230


Panel = Bars | Lines


def _at(values, frame: int, n_frames: int, what: str) -> np.ndarray:
    """The row of ``frame`` as float64, rounded so that the last bits of a processor cannot reach the page."""
    array = np.asarray(values, dtype=float)
    if array.ndim not in (1, 2) or (array.ndim == 2 and len(array) != n_frames):
        raise ValueError(f"{what} has shape {array.shape}; give (N,) or ({n_frames}, N), one row per slider value")
    if not np.isfinite(array).all():
        raise ValueError(f"{what} holds a value that is not finite; leave it out or clip it before drawing")
    return np.round(array if array.ndim == 1 else array[frame], 9) + 0.0


def _limits(given, series: Sequence[Series], n_frames: int, axis: str, log: bool = False) -> tuple[float, float]:
    """Limits over all slider values, so that the axes stand still while the data moves."""
    if given:
        return given
    rows = [_at(getattr(one, axis), i, n_frames, one.label) for one in series for i in range(n_frames)]
    low, high = float(min(row.min() for row in rows)), float(max(row.max() for row in rows))
    return (low, high) if log else (low - 0.04 * (high - low or 1), high + 0.04 * (high - low or 1))


def _ticks(low: float, high: float, log: bool, count: int) -> list[float]:
    if log:
        steps = (1, 2, 5) if high / low < 50 else (1,)
        decades = range(int(np.floor(np.log10(low))), int(np.ceil(np.log10(high))) + 1)
        ticks = [step * 10.0**decade for decade in decades for step in steps]
    else:
        ticks = MaxNLocator(count, steps=[1, 2, 5, 10]).tick_values(low, high)
    return [float(t) for t in ticks if low - 1e-9 <= t <= high * (1 + 1e-9) + 1e-9]


def _scale(low: float, high: float, start: float, end: float, log: bool = False) -> Callable[[float], float]:
    if not low < high or (log and low <= 0):
        raise ValueError(f"axis limits are {low} to {high}; low must be below high, and above 0 on a log axis")
    warp = np.log10 if log else float
    return lambda v: start + (end - start) * (warp(min(max(v, low), high)) - warp(low)) / (warp(high) - warp(low))


def _px(value: float) -> str:
    return f"{round(float(value), 1) + 0.0:g}"


def _text(x: float, y: float, text: str, anchor: str = "start", **more: str) -> Element:
    return ("text", {"x": _px(x), "y": _px(y), "text-anchor": anchor, "fill": _INK} | more, text)


def _line(x1: float, y1: float, x2: float, y2: float, ink: str = _GRID) -> Element:
    return ("line", {"x1": _px(x1), "y1": _px(y1), "x2": _px(x2), "y2": _px(y2), "stroke": ink}, "")


def _fill(one: Series) -> dict[str, str]:
    """How a bar is filled: a role with a dash pattern is pale inside a dashed outline, which survives greyscale."""
    pale = "0.25" if "stroke-dasharray" in one.strokes else "1"
    return one.strokes | {"stroke-width": "1", "fill": one.ink, "fill-opacity": pale}


def _bars(panel: Bars, frame: int, n: int, x0: float, x1: float, top: float, names: bool) -> list[Element]:
    """A panel of bars between ``x0`` and ``x1``; ``names`` says whether the categories are written at its left."""
    bottom = top + _height(panel) - 38
    rows = [_at(one.y, i, n, one.label) for one in panel.series for i in range(n)]
    if any(len(row) != len(panel.categories) for row in rows):
        raise ValueError(f"bars need {len(panel.categories)} values, one per category, in every series")
    low, high = panel.limits or (0.0, float(max(row.max() for row in rows)))
    x = _scale(low, high, x0, x1 - 34)  # 34: room for the number at the end of the longest bar
    out = [_text(x0, top + 14, panel.title, **{"font-weight": "bold"})]
    for tick in _ticks(low, high, False, 4):
        out += [_line(x(tick), top + 24, x(tick), bottom), _text(x(tick), bottom + 16, f"{tick:g}", "middle")]
    out += [_text((x0 + x1) / 2, bottom + 33, panel.x_label, "middle")]
    slot = (bottom - top - 24) / len(panel.categories)
    thick = 0.78 * slot / len(panel.series)
    for c, name in enumerate(panel.categories):
        middle = top + 24 + slot * (c + 0.5)
        out += [_text(x0 - 6, middle + 4, name if names else "", "end")]
        for s, one in enumerate(panel.series):
            value, y = float(_at(one.y, frame, n, one.label)[c]), middle + thick * (s - len(panel.series) / 2)
            box = {"x": _px(x0), "y": _px(y), "width": _px(x(value) - x0), "height": _px(thick - 1)}
            out += [("rect", box | _fill(one), "")]
            out += [_text(x(value) + 4, y + thick / 2 + 3, panel.value_format.format(value), **{"font-size": "11"})]
    return [*out, _line(x0, top + 24, x0, bottom, _INK)]


def _lines(panel: Lines, frame: int, n: int, x0: float, x1: float, top: float, names: bool) -> list[Element]:
    """A panel of lines and dots between ``x0`` and ``x1``; ``names`` says whether its y axis is labelled."""
    bottom = top + panel.height - 38
    x_limits = _limits(panel.x_limits, panel.series, n, "x", panel.x_log)
    y_limits = _limits(panel.y_limits, panel.series, n, "y")
    x, y = _scale(*x_limits, x0, x1, panel.x_log), _scale(*y_limits, bottom, top + 26)
    out = [_text(x0, top + 14, panel.title, **{"font-weight": "bold"})]
    for tick in _ticks(*x_limits, panel.x_log, 5):
        out += [_line(x(tick), top + 26, x(tick), bottom), _text(x(tick), bottom + 16, f"{tick:g}", "middle")]
    for tick in _ticks(*y_limits, False, 5):
        out += [_line(x0, y(tick), x1, y(tick)), _text(x0 - 5, y(tick) + 4, f"{tick:g}" if names else "", "end")]
    out += [_text((x0 + x1) / 2, bottom + 33, panel.x_label, "middle")]
    middle = (top + 26 + bottom) / 2
    turn = f"rotate(-90 {_px(x0 - 44)} {_px(middle)})"
    out += [_text(x0 - 44, middle, panel.y_label if names else "", "middle", transform=turn)]
    out += [_line(x0, bottom, x1, bottom, _INK), _line(x0, top + 26, x0, bottom, _INK)]
    for one in panel.series:
        xs, ys = _at(one.x, frame, n, one.label), _at(one.y, frame, n, one.label)
        points = [(_px(x(a)), _px(y(b))) for a, b in zip(xs, ys, strict=True)]
        if one.kind == "line":
            out += [("polyline", {"points": " ".join(map(",".join, points)), "fill": "none"} | one.strokes, "")]
        else:
            out += [("circle", {"cx": a, "cy": b, "r": f"{one.size:g}", "fill": one.ink}, "") for a, b in points]
    return out


def _height(panel: Panel) -> int:
    return panel.height or 62 + max(32, 19 * len(panel.series)) * len(panel.categories)


def _margin(panel: Panel) -> float:
    """Room at the left for names of categories, or for numbers and the label of the y axis."""
    return 14 + CHARACTER * max(map(len, panel.categories)) if isinstance(panel, Bars) else 58.0


def _legend(panels: Sequence[Panel], width: float) -> tuple[list[Element], float]:
    """One strip over the whole drawing with every named series once, and its height."""
    out, x, y, seen = [], 12.0, 16.0, set()
    for panel, one in ((owner, one) for owner in panels for one in owner.series):
        if not one.label or (one.label, one.ink) in seen:
            continue
        seen.add((one.label, one.ink))
        room = 48 + CHARACTER * len(one.label)
        x, y = (12.0, y + 18) if x + room > width and x > 12 else (x, y)
        if isinstance(panel, Bars):
            box = {"x": _px(x), "y": _px(y - 9), "width": "24", "height": "9"}
            out += [("rect", box | _fill(one), "")]
        elif one.kind == "line":
            ends = {"x1": _px(x), "y1": _px(y - 4), "x2": _px(x + 26), "y2": _px(y - 4)}
            out += [("line", ends | one.strokes, "")]
        else:
            out += [("circle", {"cx": _px(x + 12), "cy": _px(y - 4), "r": f"{one.size:g}", "fill": one.ink}, "")]
        out += [_text(x + 32, y, one.label)]
        x += room
    return out, y + 8 if out else 0.0


def markup(elements: Sequence[Element], width: float, height: float, alt: str) -> str:
    """The drawing as text. Its elements are flat children, so that the script finds each by its number."""
    body = ""
    for tag, attributes, text in elements:
        written = "".join(f' {name}="{html.escape(value)}"' for name, value in attributes.items())
        body += f"<{tag}{written}>{html.escape(text)}</{tag}>"
    size = f'viewBox="0 0 {_px(width)} {_px(height)}" width="{_px(width)}" height="{_px(height)}"'
    look = f'font-family="Helvetica, Arial, sans-serif" font-size="{FONT}" style="max-width:100%;height:auto"'
    name = f'role="img" aria-label="{html.escape(alt)}"'
    return f'<svg xmlns="http://www.w3.org/2000/svg" {size} {look} {name}>{body}</svg>'


def layout(panels: Sequence[Panel], frames: Sequence[int], n: int, titles: Sequence[str]) -> Drawing:
    """Draw one slider value with two panels a row, or several values with a column each and a row per panel.

    Args:
        panels: what to draw; ``n`` is the number of slider values.
        frames: which slider values.
        titles: one per column, written above it; unused for a single value.

    Returns:
        the elements, the width and the height. All frames give the same elements, with other attributes.
    """
    draw, many = {Bars: _bars, Lines: _lines}, len(frames) > 1
    columns = len(frames) if many else min(2, len(panels))
    cell = 236.0 if many else (430.0 if columns > 1 else 600.0)
    first = max(map(_margin, panels)) if many else 0.0
    width = first + cell * columns
    legend, top = _legend(panels, width)
    out: list[Element] = [("rect", {"width": _px(width), "height": "0", "fill": "#ffffff"}, ""), *legend]
    if many:
        bold = {"font-weight": "bold", "fill": plots.COLOURS["chosen"]}
        out += [_text(first + cell * i, top + 14, title, **bold) for i, title in enumerate(titles)]
        top += 24
    cells = [(panel, frame) for panel in panels for frame in frames]
    for start in range(0, len(cells), columns):
        row = cells[start : start + columns]
        for i, (panel, frame) in enumerate(row):
            x0 = first + cell * i + (0 if many else _margin(panel))
            out += draw[type(panel)](panel, frame, n, x0, first + cell * (i + 1) - 20, top, i == 0 or not many)
        top += max(_height(panel) for panel, _ in row) + 10
    out[0][1]["height"] = _px(top - 8)
    return out, width, top - 8
