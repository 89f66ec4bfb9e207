"""Preference pairs at rest: JSONL read line by line, every fault named with its file, line, field and remedy.

Two shapes are accepted, the explicit-prompt ones of TRL: ``prompt``, ``chosen`` and ``rejected`` as strings, or all
three as lists of messages ``{"role": ..., "content": ...}``. One file holds one shape.
"""

import hashlib
import json
import os
import secrets
import sys
import unicodedata
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import pandas as pd

TEXTS = ("prompt", "chosen", "rejected")
COLUMNS = ("prompt_id", *TEXTS, "source")
SCORES = ("score_chosen", "score_rejected")
VOTES = ("votes_chosen", "votes_rejected")
_BOM = b"\xef\xbb\xbf"
_INVISIBLE = {"Cc", "Cf", "Zs", "Zl", "Zp"}  # control and format characters, and the kinds of space
# Legal inside JSON strings, but many readers take them for line ends: written as escapes.
_LINE_ENDS = str.maketrans({"\u2028": "\\u2028", "\u2029": "\\u2029", "\x85": "\\u0085"})
_ONE_OBJECT = "one JSON object per line"


class PairsError(ValueError):
    """A row that cannot be a preference pair: ``path``, ``line`` and ``field`` say where, ``reason`` says the rest.

    ``field`` is empty and ``line`` is 0 where the fault belongs to the whole line or the whole file.
    """

    def __init__(self, field: str, found: str, accepted: str, remedy: str, *, path: str = "", line: int = 0):
        self.path, self.line, self.field = path, line, field
        self.reason = f"{found}; accepted: {accepted}; remedy: {remedy}"
        self._parts = (field, found, accepted, remedy)
        where = [path, f"line {line}" if line else "", f"field {_show(field)}" if field else ""]
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


def load(path: str | Path, *, on_error: str = "raise"):
    """Read preference pairs from a JSONL file, line by line.

    A UTF-8 byte order mark and CRLF line ends are tolerated. Only a line feed ends a line (U+2028 inside a text does
    not). Lines of nothing but white space hold no row: they are skipped and counted neither as kept nor as rejected.

    Args:
        path: the file.
        on_error: ``"raise"`` stops at the first bad line, ``"reject"`` goes on.

    Returns:
        A DataFrame with ``prompt_id, prompt, chosen, rejected, source`` and every further field of the file. A
        missing ``prompt_id`` becomes :func:`prompt_id`, a missing ``source`` the file's name; integers as
        ``prompt_id`` become strings; null in a further field is a missing value. With ``"reject"`` two frames,
        ``(kept, rejected)``, the second with ``line``, ``field``, ``reason`` and ``raw`` (bytes that are not UTF-8
        appear as ``\\xNN``). Their lengths add up to the lines read. Near-identical texts, duplicates and leakage
        are not looked for here.

    Raises:
        PairsError: the first bad line, or a file without any row (``"raise"`` only).
        ValueError: ``on_error`` is something else.
    """
    if on_error not in ("raise", "reject"):
        raise ValueError(f"on_error is {on_error!r}; accepted are 'raise' and 'reject'")
    path, rows, rejected, shape = Path(path), [], [], None
    for number, raw in _lines(path):
        try:
            row, shape = _read(raw, shape, path.name)
        except PairsError as fault:
            if on_error == "raise":
                raise fault.at(str(path), number) from None
            field = fault.field.encode("utf-8", "backslashreplace").decode()
            rejected.append((number, field, fault.reason, raw.decode("utf-8", "backslashreplace")))
        else:
            rows.append(row)
    if not rows and on_error == "raise":
        raise PairsError("", "no row at all", _ONE_OBJECT, "see data/README.md for an example", path=str(path))
    names = dict.fromkeys([*COLUMNS, *(name for row in rows for name in row)])
    kept = pd.DataFrame({name: _column(name, [row.get(name) for row in rows]) for name in names})
    if on_error == "raise":
        return kept
    return kept, pd.DataFrame(rejected, columns=["line", "field", "reason", "raw"])


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Numbers and bytes of the lines that are not blank, without line end and byte order mark."""
    with open(path, "rb") as file:  # binary: text mode would also split at a lone carriage return
        for number, raw in enumerate(file, start=1):
            raw = raw.removesuffix(b"\n").removesuffix(b"\r").removeprefix(_BOM)
            if raw.strip():
                yield number, raw


def _read(raw: bytes, shape: type | None, file_name: str) -> tuple[dict, type]:
    """One line as a checked and completed row, with the shape of its texts."""
    try:
        row = _parse(raw)
        shape = check_row(row, shape)
        given = row.get("prompt_id")
        row["prompt_id"] = prompt_id(row["prompt"]) if given is None else str(given)
        row["source"] = file_name if row.get("source") is None else row["source"]
    except RecursionError:
        raise PairsError("", "hundreds of nested brackets", _ONE_OBJECT, "drop the line") from None
    return row, shape


def _parse(raw: bytes) -> dict:
    """One line as a dict; refuses what is not one strict JSON object in UTF-8."""
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        found = f"byte 0x{raw[error.start]:02x} at position {error.start} is not UTF-8"
        raise PairsError("", found, "UTF-8", "save the file as UTF-8") from None
    try:
        row = json.loads(text, object_pairs_hook=_unique)
    except PairsError:
        raise
    except json.JSONDecodeError as error:
        found = f"not JSON ({error.msg}, column {error.colno}): {_show(text)}"
        raise PairsError("", found, _ONE_OBJECT, "write it with json.dumps, without line breaks") from None
    except ValueError as error:  # an integer of thousands of digits
        raise PairsError("", str(error), _ONE_OBJECT, "drop the line") from None
    if not isinstance(row, dict):
        remedy = "write the rows of a list each on its own line"
        raise PairsError("", f"{_show(row)} is not an object", _ONE_OBJECT, remedy)
    escaped = b"\\u" in raw  # the only way for half a surrogate pair to get through UTF-8
    for name, value in row.items():
        if escaped or not isinstance(value, str):
            _check_json(name, value)
    return row


def _unique(pairs: list[tuple]) -> dict:
    row = {}
    for name, value in pairs:
        if name in row:
            found = f"the field stands twice, as {_show(row[name])} and as {_show(value)}"
            raise PairsError(name, found, "each field once", "keep one of the two")
        row[sys.intern(name)] = value
    return row


def _check_json(name: str, value) -> None:
    """Refuse what Python's json module reads and writes although JSON and UTF-8 have no place for it."""
    try:
        json.dumps([name, value], ensure_ascii=False, allow_nan=False).encode()
    except UnicodeEncodeError:
        found = f"half of a surrogate pair, a character cut in two: {_show(value)}"
        raise PairsError(name, found, "whole characters", "cut texts between characters, or drop the row") from None
    except ValueError:
        raise PairsError(name, _show(value), "finite numbers", "write null or leave the field out") from None
    except TypeError as error:
        raise PairsError(name, str(error), "what JSON can hold", "convert or drop the value") from None


def _show(value) -> str:
    """A value as it looks in the file, in ASCII and at most 80 characters long."""
    try:
        text = json.dumps(value)
    except (TypeError, ValueError):
        text = ascii(value)
    return text if len(text) <= 80 else text[:77] + "..."


def _blank(text: str) -> bool:
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
            has = ", ".join(_show(key) for key in list(row)[:8]) or "no field"
            remedy = "rename the field that holds it"
            if name == "prompt" and isinstance(row.get("chosen"), list):
                remedy = "split the prompt off with trl.data_utils.extract_prompt"
            raise PairsError(name, f"missing (the line has {has})", f"the fields {', '.join(TEXTS)}", remedy)
    shape = shape or (list if isinstance(row["prompt"], list) else str)
    for name in TEXTS:
        _check_messages(name, row[name]) if shape is list else _check_text(name, row[name])
    if row["chosen"] == row["rejected"]:
        found = f"the same as chosen: {_show(row['rejected'])}"
        raise PairsError("rejected", found, "two different responses", "drop the row: it prefers nothing")
    for name in row.keys() & {"prompt_id", "source", *SCORES, *VOTES}:
        _check_optional(name, row[name])
    return shape


def _check_text(name: str, value) -> None:
    accepted = "a string with something to be seen in it"
    if isinstance(value, list):
        remedy = "one file holds texts only or messages only: convert the row, or move it to another file"
        raise PairsError(name, f"a list, {_show(value)}", accepted, remedy)
    if not isinstance(value, str):
        raise PairsError(name, f"{_show(value)} is not text", accepted, "drop the row or write the text")
    if _blank(value):
        raise PairsError(name, f"{_show(value)} is empty", accepted, "drop the row or write the text")


def _check_messages(name: str, value) -> None:
    accepted = 'a list of messages {"role": ..., "content": ...} whose texts are not empty'
    if not isinstance(value, list) or not value:
        remedy = "where one of prompt, chosen, rejected is a list of messages, all are, in the whole file"
        raise PairsError(name, _show(value), accepted, remedy)
    for message in value:
        texts = [message.get(key) for key in ("role", "content")] if isinstance(message, dict) else [None]
        if any(not isinstance(text, str) or _blank(text) for text in texts):
            raise PairsError(name, _show(message), accepted, "drop the row or write the message")


def _check_optional(name: str, value) -> None:
    """``prompt_id`` and ``source``: text or null (an id may be an integer); scores: finite; votes: counts."""
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    whole = number and isinstance(value, int)
    if name in SCORES:
        good, accepted = number and abs(value) <= sys.float_info.max, "a finite number or null"
    elif name in VOTES:
        good, accepted = whole and 0 <= value < 2**63, "a count (0, 1, 2, ...) or null"
    else:
        text = isinstance(value, str) and not _blank(value)
        good, accepted = text or (whole and name == "prompt_id"), "a string that is not empty, or null"
    if value is not None and not good:
        raise PairsError(name, _show(value), accepted, "correct the value or leave the field out")


def _column(name: str, values: list) -> pd.Series:
    """A column that gives every value back as it was (left to itself pandas makes 1, null into 1.0, NaN)."""
    kinds = {type(value) for value in values} - {type(None)}
    if name in SCORES:
        return pd.Series(values, dtype="float64")
    if kinds == {int} and all(value is None or -(2**63) <= value < 2**63 for value in values):
        return pd.Series(values, dtype="Int64" if None in values else "int64")
    dtypes = {str: "str", float: "float64", bool: "object" if None in values else "bool"}
    empty = "str" if name in COLUMNS and not values else "object"
    return pd.Series(values, dtype=dtypes.get(kinds.pop(), "object") if len(kinds) == 1 else empty)


def save(frame: pd.DataFrame, path: str | Path) -> None:
    """Write pairs as JSONL, checked as :func:`load` checks them; loading and saving again gives the same bytes.

    The file appears whole or not at all: it is written beside ``path``, flushed to disk and renamed. Missing values
    of further fields are written as null, scores as floats. Nothing is dropped or reordered.

    Raises:
        PairsError: a column is missing or a row could not be loaded again; the line is the one it would have had.
    """
    if absent := [name for name in COLUMNS if name not in frame.columns]:
        remedy = 'frame.assign(source="where it is from", prompt_id=[pairs.prompt_id(p) for p in frame["prompt"]])'
        raise PairsError("", f"{', '.join(absent)} missing", ", ".join(COLUMNS), remedy)
    names = list(dict.fromkeys([*COLUMNS, *frame.columns]))
    if not frame.columns.is_unique or not all(isinstance(name, str) for name in names):
        raise PairsError("", ascii(list(frame.columns)), "names that are different strings", "rename them")
    if not len(frame):
        raise PairsError("", "no row at all", "one pair or more", "keep some rows")
    _write(path, _json_lines(frame[names], str(path)))


def _json_lines(frame: pd.DataFrame, path: str) -> Iterator[str]:
    shape = None
    for number, values in enumerate(zip(*(frame[name] for name in frame.columns), strict=True), start=1):
        row = {name: _plain(value) for name, value in zip(frame.columns, values, strict=True)}
        try:
            shape = check_row(row, shape)
            for name in ("prompt_id", "source"):
                _check_text(name, row[name])
            for name in SCORES:
                if row.get(name) is not None:
                    row[name] = float(row[name])
            yield _json_line(row)
        except PairsError as fault:
            raise fault.at(path, number) from None


def _json_line(row: dict) -> str:
    try:
        line = json.dumps(row, ensure_ascii=False, allow_nan=False)
        line.encode()
    except (TypeError, ValueError) as error:
        for name, value in row.items():
            _check_json(name, value)
        raise PairsError("", str(error), "what JSON can hold", "drop the row") from error
    return line


def _plain(value):
    """A cell as the json module knows it; every kind of missing value is None."""
    if isinstance(value, np.ndarray):
        return value.tolist()
    if pd.api.types.is_scalar(value) and pd.isna(value):
        return None
    return value.item() if isinstance(value, np.generic) else value


def save_rejected(rejected: pd.DataFrame, path: str | Path) -> None:
    """Write the second frame of :func:`load` as JSONL: ``line``, ``field``, ``reason`` and ``raw`` of each row."""
    _write(path, (json.dumps(row) for row in rejected.to_dict("records")))


def _write(path: str | Path, lines: Iterable[str]) -> None:
    """Write lines to a new file beside ``path``, flush it to disk, and rename it."""
    path = Path(os.path.realpath(path))
    scratch = path.with_name(f".{path.name}.{secrets.token_hex(6)}.tmp")
    try:
        with open(scratch, "xb") as file:
            for line in lines:
                file.write(line.translate(_LINE_ENDS).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
        os.replace(scratch, path)
    finally:
        scratch.unlink(missing_ok=True)
