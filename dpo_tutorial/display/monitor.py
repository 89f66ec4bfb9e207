"""The live monitor: one figure that is redrawn in place while a model trains, and a progress bar.

``DPO_TUTORIAL_MONITOR=plain`` (set by the tool that executes the notebooks) draws once, at the end. In
both modes the text beside the picture never changes, since it is compared when notebooks are checked.
"""

import math
import os
import sys
import textwrap
import time
from collections.abc import Iterable

import numpy as np

from dpo_tutorial.display import plots, symptoms

PANELS = (
    ("loss", (("loss", "policy", "train"), ("eval_loss", "optimum", "held out"))),
    ("margin (nats x beta)", (("margins", "policy", "train"), ("eval_margins", "optimum", "held out"))),
    ("accuracy", (("accuracies", "policy", "train"), ("eval_accuracies", "optimum", "held out"))),
    ("log-ratio (nats)", (("chosen_logratios", "chosen", "chosen"), ("rejected_logratios", "rejected", "rejected"))),
    ("KL estimate (nats)", (("kl", "policy", "policy from reference"),)),
)


def plain() -> bool:
    """Whether the monitor draws only once, at the end (``DPO_TUTORIAL_MONITOR=plain``)."""
    return os.environ.get("DPO_TUTORIAL_MONITOR", "live") == "plain"


def in_notebook() -> bool:
    """Whether a kernel is there to show figures."""
    return "ipykernel" in sys.modules


class Monitor:
    """Collects metrics by step and shows them as curves: loss, margin, accuracy, log-ratios, KL.

    Below the curves stand the warnings of ``display.symptoms`` that the history so far calls for: a name, the likely
    cause and the check. They are part of the picture; the text beside it never changes.

    >>> monitor = Monitor("a run", show=False)
    >>> monitor.update(1, {"loss": 0.69, "margins": 0.0})
    >>> monitor.history["loss"]
    [(1, 0.69)]
    """

    def __init__(self, title: str, *, show: bool = True, every: float = 2.0):
        self.title, self.every = title, every
        self.history: dict[str, list[tuple[int, float]]] = {}
        self._last, self._handle = time.monotonic(), None
        if show and in_notebook():
            from IPython.display import DisplayHandle

            self._handle = DisplayHandle()
            self._handle.display(self._bundle(), raw=True, metadata=self._alt())

    def update(self, step: int, metrics: dict[str, float]) -> None:
        """Add the metrics of a step; the figure is redrawn at most every ``every`` seconds."""
        for name, value in metrics.items():
            if not isinstance(value, (int, float)):
                raise TypeError(f"metric {name!r} at step {step} is a {type(value).__name__}; give a number")
            self.history.setdefault(name, []).append((step, float(value)))
        if self._handle and not plain() and time.monotonic() - self._last > self.every:
            self._last = time.monotonic()
            self._handle.update(self._bundle(), raw=True, metadata=self._alt())

    def close(self) -> None:
        """Draw the final figure."""
        if self._handle:
            self._handle.update(self._bundle(), raw=True, metadata=self._alt())

    def warnings(self) -> list[symptoms.Symptom]:
        """The symptoms that the history shows so far."""
        return symptoms.warnings(self.history)

    def figure(self):
        """The figure as it stands now, with its warnings below."""
        lines = [
            f"{row.name.upper()}: {row.metric}. Likely {row.cause}. Check: {row.check}." for row in self.warnings()
        ]
        panels = [panel for panel in PANELS if any(name in self.history for name, _, _ in panel[1])] or PANELS
        text = "\n".join(textwrap.fill(line, 30 * len(panels)) for line in lines)
        height = 2.5 + 0.2 * len(text.splitlines())
        fig, axes = plots.figure(1, len(panels), width=2.5 * len(panels), height=height)
        if text:
            fig.supxlabel(text, x=0.01, ha="left", fontsize=9, color=plots.COLOURS["rejected"])
        for ax, (ylabel, series) in zip(np.atleast_1d(axes), panels, strict=True):
            for name, role, label in series:
                points = [(s, v) for s, v in self.history.get(name, []) if math.isfinite(v)]
                if points:
                    ax.plot(*zip(*points, strict=True), **plots.line(role, label=label))
            ax.set(xlabel="step", title=ylabel)
            if len(ax.lines) > 1:
                ax.legend(fontsize=8)
        if self.history.get("loss"):
            fig.axes[0].axhline(math.log(2), **plots.line("reference", label=None, linewidth=1))
        fig.suptitle(self.title, x=0.01, ha="left", fontsize=10)
        return fig

    def _bundle(self) -> dict:
        return {"image/png": plots.png(self.figure()), "text/plain": f"[monitor] {self.title}"}

    def _alt(self) -> dict:
        return {"image/png": {"alt": f"Curves of a training run, {self.title}, with the warnings they call for"}}


def progress(iterable: Iterable, label: str = ""):
    """Iterate with a progress bar in a notebook or terminal; silent when plain or without a label."""
    if not label or plain():
        yield from iterable
        return
    from tqdm.auto import tqdm

    yield from tqdm(iterable, desc=label, leave=False)
