"""A prompt, a beta slider, and a model's text as it is written: decode-time steering by hand.

The panel knows nothing of models. It is given a function that writes one prompt at all betas at once, a token at a
time; it keeps what was written, so that moving the slider afterwards only shows it. The work is done between the
kernel's own messages (one token, then back to the event loop): moves and a new prompt are answered while it writes,
and no second thread touches the model.
"""

import asyncio
import html
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from dpo_tutorial.display import plots, sliders

_CARD = "background:#fff;color:#111;padding:10px 14px;border:1px solid #ddd;border-radius:6px;max-width:640px"
_BAR = '<span style="display:inline-block;height:8px;width:{width}px;background:{colour};margin-right:8px"></span>'


@dataclass(frozen=True)
class Writing:
    """One prompt's continuation at one beta, whole or so far."""

    beta: float
    text: str
    reward: float
    kl: float
    tokens: int


def table_html(prompt: str, writings: Sequence[Writing]) -> str:
    """A table of continuations, one row per beta, for readers without a kernel."""
    rows = [
        f'<td style="text-align:right">{w.beta:g}</td><td style="text-align:right">{w.reward:.2f}</td>'
        f'<td style="text-align:right">{w.kl:.1f}</td><td style="text-align:left">{html.escape(prompt + w.text)}</td>'
        for w in writings
    ]
    head = "<th>beta</th><th>reward</th><th>KL (nats)</th><th>text</th>"
    body = "".join(f"<tr>{row}</tr>" for row in rows)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def show_table(prompt: str, writings: Sequence[Writing]) -> None:
    """Display :func:`table_html`, with the same rows as plain text."""
    from IPython.display import display

    lines = [f"beta {w.beta:g}, reward {w.reward:.2f}, KL {w.kl:.1f}: {prompt}{w.text}" for w in writings]
    display({"text/html": table_html(prompt, writings), "text/plain": "\n".join(lines)}, raw=True)


class SteeringPanel:
    """The live control; :func:`steering_panel` builds and displays it.

    Set ``.slider.value`` to move it, ``.prompt.value`` to write anew; read ``.text.value``.
    """

    def __init__(
        self, write: Callable[[str], Iterator[list[Writing]]], prompt: str, first: Sequence[Writing], tokens: int
    ):
        import ipywidgets

        self._write, self._total, self._task = write, tokens, None
        self._kept: dict[str, list[Writing]] = {prompt: list(first)}
        self._now: list[Writing] = list(first)
        self._shown_prompt, self._busy = prompt, False
        wide = {"width": "640px", "max_width": "calc(100% - 4px)"}  # widgets have a margin of 2 pixels
        style = {"description_width": "60px"}
        self.prompt = ipywidgets.Text(
            value=prompt, description="prompt", continuous_update=False, layout=wide, style=style
        )
        self.slider = ipywidgets.SelectionSlider(
            options=[(f"{w.beta:g}", w.beta) for w in first],
            value=first[len(first) // 2].beta,
            description="beta",
            layout=wide,
            style=style,
        )
        self.bar = ipywidgets.IntProgress(max=tokens, value=tokens, description="written", layout=wide, style=style)
        self.text = ipywidgets.HTML(layout=wide)
        self.prompt.observe(lambda change: self.start(change["new"]), names="value")
        self.slider.observe(lambda change: self._show(), names="value")
        self.box = ipywidgets.VBox([self.prompt, self.slider, self.bar, self.text, sliders.handle_names()])
        self._show()

    @property
    def writing(self) -> Writing:
        """What is shown: the continuation at the slider's beta."""
        return next(w for w in self._now if w.beta == self.slider.value)

    def start(self, prompt: str) -> None:
        """Write a new prompt at all betas; whatever was being written is given up. Known prompts show at once."""
        if self._task is not None:
            self._task.cancel()
        prompt = prompt.strip()
        if not prompt:
            self._say("Type the beginning of a review, then press Enter.")
        elif prompt in self._kept:
            self._set(prompt, self._kept[prompt], busy=False)
        else:
            self._task = asyncio.get_running_loop().create_task(self._fill(prompt))

    async def _fill(self, prompt: str) -> None:
        writings: list[Writing] = []
        try:
            self.bar.value, self.bar.description = 0, "writing"
            for writings in self._write(prompt):
                self._set(prompt, writings, busy=True)
                await asyncio.sleep(0.001)  # the slider and a new prompt are heard here
        except Exception as error:  # shown where the reader looks: a task's exception would vanish
            self._say(f"{type(error).__name__}: {error}")
            return
        self._kept[prompt] = writings
        self._set(prompt, writings, busy=False)

    def _set(self, prompt: str, writings: list[Writing], *, busy: bool) -> None:
        self._shown_prompt, self._now, self._busy = prompt, writings, busy
        self.bar.value = max(w.tokens for w in writings) if busy else self._total
        self.bar.description = "writing" if busy else "written"
        self._show()

    def _say(self, message: str) -> None:
        self.text.value = f'<div style="{_CARD}" role="status" aria-live="polite">{html.escape(message)}</div>'

    def _show(self) -> None:
        w = self.writing
        largest = max([1.0, *(other.kl for other in self._now)])
        bars = [(w.reward, plots.COLOURS["optimum"]), (w.kl / largest, plots.COLOURS["policy"])]
        drawn = [_BAR.format(width=round(180 * max(share, 0.0)), colour=colour) for share, colour in bars]
        live = "off" if self._busy else "polite"  # while it writes, a screen reader would hear every token
        self.text.value = (
            f'<div style="{_CARD}"><div role="status" aria-live="{live}" aria-busy="{str(self._busy).lower()}">'
            f"<div>beta = {w.beta:g}. Reward {w.reward:.2f}, KL {w.kl:.1f} nats, {w.tokens} tokens"
            f"{' so far' if self._busy else ''}.</div>"
            f'<div style="margin-top:8px;line-height:1.5"><b>{html.escape(self._shown_prompt)}</b>'
            f"{html.escape(w.text)}</div></div>"
            f'<div aria-hidden="true" style="margin-top:8px;font-size:12px;line-height:1.4">'
            f"<div>{drawn[0]}reward</div><div>{drawn[1]}KL</div></div></div>"
        )


def steering_panel(
    write: Callable[[str], Iterator[list[Writing]]], *, prompt: str, first: Sequence[Writing], max_new_tokens: int
) -> SteeringPanel:
    """Display a prompt box and a beta slider over a model's text.

    Args:
        write: ``write(prompt)`` yields, after every token, the continuations so far, one per beta in a fixed order.
        prompt, first: what is shown first: a prompt and its finished continuations.
        max_new_tokens: the length of the progress bar.

    Returns:
        the :class:`SteeringPanel`. Readers without a kernel see a sentence that points to the table.
    """
    from IPython.display import display

    if len(first) < 3:
        raise ValueError(f"{len(first)} betas; a slider needs at least 3")
    panel = SteeringPanel(write, prompt, first, max_new_tokens)
    note = (
        "A prompt box and a beta slider stand here when a kernel runs; the table shows the same prompt at five betas."
    )
    bundle = panel.box._repr_mimebundle_() | {
        "text/html": f"<p><em>{note}</em></p>",
        "text/plain": f"[slider] {note}",
    }
    display(bundle, raw=True)
    return panel
