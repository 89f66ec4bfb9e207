"""One preference pair as a row: what it must hold, how a fault is named, and the id of its prompt.

Two shapes are sound: ``prompt``, ``chosen`` and ``rejected`` as strings, or all three as lists of messages
``{"role": ..., "content": ...}``. Other formats are brought into one of these by :mod:`dpo_tutorial.data.formats`.
"""

import hashlib
import json
import sys
import unicodedata

TEXTS = ("prompt", "chosen", "rejected")
COLUMNS = ("prompt_id", *TEXTS, "source")
SCORES = ("score_chosen", "score_rejected")
VOTES = ("votes_chosen", "votes_rejected", "votes_tied")
ONE_OBJECT = "one JSON object per line"
_INVISIBLE = {"Cc", "Cf", "Zs", "Zl", "Zp"}  # control and format characters, and the kinds of space


class PairsError(ValueError):
    """A row that cannot be a preference pair: ``path``, ``line`` and ``field`` say where, ``reason`` says the rest.

    ``field`` is empty and ``line`` is 0 where the fault belongs to the whole line or the whole file.
    """

    def __init__(self, field: str, found: str, accepted: str, remedy: str, *, path: str = "", line: int = 0):
        self.path, self.line, self.field = path, line, field
        self.reason = f"{found}; accepted: {accepted}; remedy: {remedy}"
        self._parts = (field, found, accepted, remedy)
        where = [path, f"line {line}" if line else "", f"field {show(field)}" if field else ""]
        super().__init__(": ".join(filter(None, [", ".join(filter(None, where)), self.reason])))

    def at(self, path: str, line: int) -> "PairsError":
        """The same fault with its file and line."""
        return PairsError(*self._parts, path=path, line=line)


def prompt_id(prompt: str | list) -> str:
    """The first 16 hex digits of the SHA-256 of a prompt (of its JSON where it is a list of messages).

    >>> prompt_id("The film was")
    'b7d31d6424fecb8f'
    """
    text = prompt if isinstance(prompt, str) else json.dumps(prompt, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def check_json(name: str, value) -> None:
    """Refuse what Python's json module reads and writes although JSON and UTF-8 have no place for it."""
    try:
        json.dumps([name, value], ensure_ascii=False, allow_nan=False).encode()
    except UnicodeEncodeError:
        found = f"half of a surrogate pair, a character cut in two: {show(value)}"
        raise PairsError(name, found, "whole characters", "cut texts between characters, or drop the row") from None
    except ValueError:
        raise PairsError(name, show(value), "finite numbers", "write null or leave the field out") from None
    except TypeError as error:
        raise PairsError(name, str(error), "what JSON can hold", "convert or drop the value") from None


def show(value) -> str:
    """A value as it looks in the file, in ASCII and at most 80 characters long."""
    try:
        text = json.dumps(value)
    except (TypeError, ValueError):
        text = ascii(value)
    return text if len(text) <= 80 else text[:77] + "..."


def blank(text: str) -> bool:
    """Whether nothing in ``text`` can be seen (a zero-width space cannot either)."""
    return all(unicodedata.category(character) in _INVISIBLE for character in text)


def check_row(row: dict, shape: type | None = None) -> type:
    """Check one row against the two accepted shapes.

    Args:
        row: field names and values as JSON gives them.
        shape: ``str`` or ``list`` if the file's earlier rows have that shape, None for the first row.

    Returns:
        ``str`` for texts, ``list`` for lists of messages.

    Raises:
        PairsError: naming the field, the value, what is accepted and the remedy.
    """
    for name in TEXTS:
        if name not in row:
            has = ", ".join(show(key) for key in list(row)[:8]) or "no field"
            accepted = f"the fields {', '.join(TEXTS)}, or one of the formats in dpo_tutorial/data/formats.py"
            raise PairsError(name, f"missing (the line has {has})", accepted, "rename the field that holds it")
    shape = shape or (list if isinstance(row["prompt"], list) else str)
    for name in TEXTS:
        check_messages(name, row[name]) if shape is list else check_text(name, row[name])
    if row["chosen"] == row["rejected"]:
        found = f"the same as chosen: {show(row['rejected'])}"
        raise PairsError("rejected", found, "two different responses", "drop the row: it prefers nothing")
    for name in row.keys() & {"prompt_id", "source", *SCORES, *VOTES}:
        _check_optional(name, row[name])
    return shape


def check_text(name: str, value) -> None:
    accepted = "a string with something to be seen in it"
    if isinstance(value, list):
        remedy = "one file holds texts only or messages only: convert the row, or move it to another file"
        raise PairsError(name, f"a list, {show(value)}", accepted, remedy)
    if not isinstance(value, str):
        raise PairsError(name, f"{show(value)} is not text", accepted, "drop the row or write the text")
    if blank(value):
        raise PairsError(name, f"{show(value)} is empty", accepted, "drop the row or write the text")


def check_messages(name: str, value) -> None:
    accepted = 'a list of messages {"role": ..., "content": ...} whose texts are not empty'
    if not isinstance(value, list) or not value:
        remedy = "where one of prompt, chosen, rejected is a list of messages, all are, in the whole file"
        raise PairsError(name, show(value), accepted, remedy)
    for message in value:
        texts = [message.get(key) for key in ("role", "content")] if isinstance(message, dict) else [None]
        if any(not isinstance(text, str) or blank(text) for text in texts):
            raise PairsError(name, show(message), accepted, "drop the row or write the message")


def _check_optional(name: str, value) -> None:
    """``prompt_id`` and ``source``: text or null (an id may be an integer); scores: finite; votes: counts."""
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    whole = number and isinstance(value, int)
    if name in SCORES:
        good, accepted = number and abs(value) <= sys.float_info.max, "a finite number or null"
    elif name in VOTES:
        good, accepted = whole and 0 <= value < 2**63, "a count (0, 1, 2, ...) or null"
    else:
        text = isinstance(value, str) and not blank(value)
        good, accepted = text or (whole and name == "prompt_id"), "a string that is not empty, or null"
    if value is not None and not good:
        raise PairsError(name, show(value), accepted, "correct the value or leave the field out")
