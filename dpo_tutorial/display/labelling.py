"""A small labelling panel: a rubric, a prompt, two responses; prefer, tie, edit, undo; a JSONL file after each click.

The file holds one row per label in the format "two responses with votes", which ``data.pairs.load`` reads: response1
stood on the left. It is replaced as a whole after every label, so a kill leaves the old file or the new one.
"""

import hashlib
import html
import json
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from dpo_tutorial.data.pairs import prompt_id, write_atomically

RUBRIC = "Which response would you rather have received? Say tie if you would toss a coin."
_TEXT = "white-space:pre-wrap;overflow-wrap:anywhere;background:#fff;color:#111;line-height:1.45"
_BOX = f"{_TEXT};border:1px solid #bbb;border-radius:6px;padding:8px 10px"


def _key(prompt: str, one: str, two: str) -> str:
    """An id of a prompt with two responses, whichever stands first."""
    return hashlib.sha256("\x00".join((prompt, *sorted((one, two)))).encode()).hexdigest()[:16]


def read_labels(path: str | Path) -> list[dict]:
    """The labels in a file, in the order in which they were given; none if there is no file.

    Raises:
        ValueError: a line is not a label; the panel would not overwrite what it cannot read.
    """
    rows = []
    for number, line in enumerate(Path(path).read_bytes().splitlines() if Path(path).exists() else [], start=1):
        try:
            row = json.loads(line)
            row["item"], row["preference"], row["response1"], row["response2"]
        except (ValueError, TypeError, KeyError):
            raise ValueError(
                f"{path}, line {number} is not a label of this panel; give the panel another file"
            ) from None
        rows.append(row)
    return rows


class LabellingPanel:
    """The panel's state and widgets; built and displayed by :func:`label`.

    ``prefer("left")``, ``prefer("right")``, ``tie()``, ``edit("left")``, ``save_edit()`` and ``undo()`` do what the
    buttons do. ``rows`` are the labels, ``left_to_do`` counts what is open, ``current`` is what is shown (or None).
    """

    def __init__(
        self, items: pd.DataFrame, path: str | Path, *, responses: Sequence[str], rubric: str, labeller: str
    ):
        names = ("prompt", *responses)
        if len(names) != 3 or any(name not in items for name in names):
            raise ValueError(
                f"items need the columns {', '.join(map(str, names))}, they have {', '.join(items.columns)}"
            )
        self.path, self.rubric, self.labeller = Path(path), rubric, labeller
        self.items = {}
        for prompt, one, two in items[list(names)].itertuples(index=False):
            if not all(isinstance(text, str) for text in (prompt, one, two)) or one == two:
                raise ValueError(f"the item {prompt!r} needs a prompt and two different responses, all of them texts")
            key = _key(prompt, one, two)
            sides = (one, two) if int(key[-1], 16) % 2 else (two, one)  # by its hash: which one is left is no habit
            self.items[key] = (prompt, *sides)
        self.rows, self._editing = read_labels(path), None
        self._build()
        self._show()

    @property
    def current(self) -> str | None:
        """Id of the first item without a label."""
        done = {row["item"] for row in self.rows}
        return next((key for key in self.items if key not in done), None)

    @property
    def left_to_do(self) -> int:
        """Number of items without a label."""
        done = {row["item"] for row in self.rows}
        return sum(key not in done for key in self.items)

    def prefer(self, side: str) -> None:
        """The response on that side is better."""
        self._label({"left": 1, "right": 2}[side])

    def tie(self) -> None:
        """Neither is better. The row is written; ``data.pairs.load`` counts it among the rejected."""
        self._label(0)

    def edit(self, side: str) -> None:
        """Open the text of that side for writing; :meth:`save_edit` makes it a pair (yours preferred to the old)."""
        if self.current:
            self._editing = side
            self.text.value = self.items[self.current][1 if side == "left" else 2]
            self._show()

    def save_edit(self) -> None:
        """Write the edited text as preferred to the text it came from."""
        if self._editing is None or self.current is None:
            return
        old = self.items[self.current][1 if self._editing == "left" else 2]
        if not self.text.value.strip() or self.text.value == old:
            self._say("Not saved: change the text first, or press Cancel.")
            return
        self._label(1, response1=self.text.value, response2=old, edited=self._editing)

    def cancel(self) -> None:
        """Close the editor without a label."""
        self._editing = None
        self._show()

    def undo(self) -> None:
        """Take the last label back; its item comes again."""
        if self.rows:
            self.rows.pop()
            self._save()
        self.cancel()

    def _label(self, preference: int, **changes) -> None:
        key = self.current
        if key is None:
            return
        prompt, left, right = self.items[key]
        row = {"prompt_id": prompt_id(prompt), "prompt": prompt, "response1": left, "response2": right}
        row |= {"preference": preference, "source": f"labelled by {self.labeller}", "item": key} | changes
        self.rows.append(row)
        self._save()
        self.cancel()

    def _save(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(self.path, (json.dumps(row).encode() + b"\n" for row in self.rows))

    def _build(self) -> None:
        import ipywidgets

        def button(text: str, act, tooltip: str) -> ipywidgets.Button:
            made = ipywidgets.Button(description=text, tooltip=tooltip)
            made.on_click(lambda _: act())
            return made

        self.buttons = {
            "Prefer left": button("Prefer left", lambda: self.prefer("left"), "The left response is better"),
            "Tie": button("Tie", self.tie, "Neither response is better"),
            "Prefer right": button("Prefer right", lambda: self.prefer("right"), "The right response is better"),
            "Edit left": button(
                "Edit left", lambda: self.edit("left"), "Write a better version of the left response"
            ),
            "Edit right": button("Edit right", lambda: self.edit("right"), "Write a better version of the right one"),
            "Undo": button("Undo", self.undo, "Take the last label back"),
        }
        self.status, self.body = ipywidgets.HTML(), ipywidgets.HTML()
        self.text = ipywidgets.Textarea(
            description="Your version", rows=4, style={"description_width": "initial"}, layout={"width": "98%"}
        )
        self.save_button = button("Save edit", self.save_edit, "Your version is better than the text it came from")
        self.cancel_button = button("Cancel", self.cancel, "Close the editor without a label")
        self.editor = ipywidgets.VBox([self.text, ipywidgets.HBox([self.save_button, self.cancel_button])])
        row = ipywidgets.HBox(list(self.buttons.values()), layout={"flex_flow": "row wrap"})
        self.box = ipywidgets.VBox([self.status, self.body, row, self.editor], layout={"max_width": "860px"})

    def _show(self) -> None:
        key = self.current
        done = len(self.items) - self.left_to_do
        self._say(f"{done} of {len(self.items)} labelled" + ("" if key else ": all done"))
        self.body.value = self.html(key) if key else ""
        for name, button in self.buttons.items():
            button.disabled = self._editing is not None or (not self.rows if name == "Undo" else key is None)
        self.editor.layout.display = "none" if self._editing is None else ""

    def _say(self, text: str) -> None:
        self.status.value = f'<span role="status" aria-live="polite">{html.escape(text)}</span>'

    def html(self, key: str) -> str:
        """Rubric, prompt and both responses of an item as HTML; texts are escaped, nothing in them runs."""
        prompt, left, right = map(html.escape, self.items[key])
        sides = "".join(
            f'<div style="flex:1 1 260px" role="group" aria-label="{name} response"><b>{name}</b>'
            f'<div style="{_BOX}">{text}</div></div>'
            for name, text in (("Left", left), ("Right", right))
        )
        return (
            f'<div style="color:inherit"><p><b>Rubric.</b> {html.escape(self.rubric)}</p>'
            f'<b>Prompt</b><div style="{_BOX}">{prompt}</div>'
            f'<div style="display:flex;flex-wrap:wrap;gap:12px;margin:8px 0">{sides}</div></div>'
        )


def label(
    items: pd.DataFrame, path: str | Path, *, responses: Sequence[str] = ("first", "second"), rubric: str = RUBRIC,
    labeller: str = "me",
) -> LabellingPanel:  # fmt: skip
    """Display a panel that labels the rows of ``items`` and goes on where the file ``path`` ends.

    Args:
        items: a row per comparison, texts in ``prompt`` and in the two columns named by ``responses``.
        path: JSONL file of the labels; made when the first label is given.
        labeller: a name that goes into ``source``.

    Returns:
        the :class:`LabellingPanel`. Readers without a kernel see the first item, its rubric, and what the buttons do.
    """
    from IPython.display import display

    panel = LabellingPanel(items, path, responses=responses, rubric=rubric, labeller=labeller)
    names = ", ".join(panel.buttons)
    still = panel.html(next(iter(panel.items))) if panel.items else "<p>nothing to label</p>"
    still += f"<p>{len(panel.items)} items. Where a kernel runs, these buttons stand here: {names}.</p>"
    bundle = panel.box._repr_mimebundle_() | {
        "text/html": still,
        "text/plain": "[panel] labelling: rubric and buttons",
    }
    display(bundle, raw=True)
    return panel
