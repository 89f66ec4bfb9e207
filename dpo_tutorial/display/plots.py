"""One style for every figure: size, colours, line styles, and a display that carries alt text."""

import io

import matplotlib
import matplotlib.pyplot as plt

DPI = 110
WIDTH, HEIGHT = 6.4, 3.4
COLOURS = {
    "chosen": "#1f5fa8",
    "rejected": "#d9720b",
    "reference": "#7a7a7a",
    "policy": "#111111",
    "optimum": "#2c8a4b",
}
STYLES = {"chosen": "-", "rejected": "--", "reference": ":", "policy": "-", "optimum": "-"}
# For sweeps (beta, seeds, losses): ordered from light to dark, so that order survives greyscale.
SWEEP = ("#b5c7e6", "#86a5d9", "#567fc0", "#2f5fa0", "#173f78", "#0a2047")
_RC = {
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e4e4e4",
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
    "legend.frameon": False,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "lines.linewidth": 1.8,
    "figure.constrained_layout.use": True,
}


def figure(nrows: int = 1, ncols: int = 1, *, width: float | None = None, height: float | None = None, **kwargs):
    """A figure in the house style that is not shown twice: returns (fig, axes) like ``plt.subplots``.

    Width and height are in inches; by default one panel is 6.4 x 3.4 and the whole is at most 10 wide.
    """
    width = width or min(10.0, WIDTH * (1 + 0.62 * (ncols - 1)))
    height = height or HEIGHT * (1 + 0.8 * (nrows - 1))
    matplotlib.rcParams.update(_RC)  # not a context: legends and titles are drawn later
    fig, axes = plt.subplots(nrows, ncols, figsize=(width, height), dpi=DPI, **kwargs)
    plt.close(fig)
    return fig, axes


def line(role: str, **overrides) -> dict:
    """Keyword arguments of ``ax.plot`` for a role of ``COLOURS``: colour, line style, and the role as label."""
    if role not in COLOURS:
        raise ValueError(f"role is {role!r}; accepted are {', '.join(COLOURS)}")
    return {"color": COLOURS[role], "linestyle": STYLES[role], "label": role} | overrides


def band(ax, x, runs, **line_kwargs) -> None:
    """Plot the mean of ``runs`` (seeds, len(x)) with a band from their smallest to their largest value."""
    low, mean, high = runs.min(axis=0), runs.mean(axis=0), runs.max(axis=0)
    (drawn,) = ax.plot(x, mean, **line_kwargs)
    ax.fill_between(x, low, high, color=drawn.get_color(), alpha=0.18, linewidth=0)


def dots(ax, ticks: str, values) -> None:
    """Conditions side by side: a dot at the mean over seeds, a bar from the smallest to the largest value.

    Args:
        ticks: the conditions' short names, separated by ``|``, a slash for a new line.
        values: (seeds, conditions).
    """
    low, mean, high = values.min(axis=0), values.mean(axis=0), values.max(axis=0)
    bars = [(mean - low).clip(min=0), (high - mean).clip(min=0)]
    ax.errorbar(range(len(mean)), mean, yerr=bars, fmt="o", color=COLOURS["policy"], capsize=4)
    ax.set_xticks(range(len(mean)), ticks.replace("/", "\n").split("|"), fontsize=8)
    ax.set_xlim(-0.5, len(mean) - 0.5)


def log_ticks(ax, ticks: list[float], label: str) -> None:
    """A logarithmic x-axis with these ticks only."""
    ax.set(xscale="log", xlabel=label)
    ax.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    ax.minorticks_off()


def tokens(ax, rows: list[list[str]], scored: list[list[int]], *, roles: list[str], labels: list[str]) -> None:
    """Rows of tokens as boxes, the first row on top: filled in the role's colour where scored, white elsewhere.

    Args:
        rows, scored: the tokens' texts and, for each, 1 if it is scored; an empty text leaves its place free.
        roles, labels: per row, a role of ``COLOURS`` and what stands in front of the row.
    """
    for y, (row, marks, role, label) in enumerate(zip(rows, scored, roles, labels, strict=True)):
        x = 0.0
        ax.text(-0.6, -y, label, ha="right", va="center", fontsize=8)
        for text, mark in zip(row, marks, strict=True):
            face, ink = (COLOURS[role], "white") if mark else ("white", "#555555")
            box = {"boxstyle": "round,pad=0.18", "facecolor": face, "edgecolor": "#bbbbbb", "linewidth": 0.6}
            if text:
                ax.text(x, -y, text, va="center", fontsize=7.5, family="monospace", color=ink, bbox=box)
            x += len(text) + 0.9
    widest = max(sum(len(text) + 0.9 for text in row) for row in rows)
    ax.set(xlim=(-1, widest), ylim=(-len(rows) + 0.4, 0.6))
    ax.axis("off")


def png(fig) -> bytes:
    """The figure as PNG bytes."""
    buffer = io.BytesIO()
    fig.savefig(buffer, format="png", dpi=DPI)
    return buffer.getvalue()


def show(fig, alt: str) -> None:
    """Display the figure as a PNG whose alternative text (and text/plain) is ``alt``.

    ``alt`` says what there is to see; it holds no measured digit that differs between machines,
    since the text, unlike the picture, is compared when the notebooks are checked.
    """
    from IPython.display import display

    if not alt.strip():
        raise ValueError("alt is empty; say in a sentence what the figure shows")
    plt.close(fig)
    display({"image/png": png(fig), "text/plain": f"[figure] {alt}"}, raw=True, metadata={"image/png": {"alt": alt}})
