"""Preference pairs at rest: read row by row from every common format, every fault named with its place and remedy.

What is read, and how other formats become ``prompt, chosen, rejected``, is in :mod:`dpo_tutorial.data.readers` and
:mod:`dpo_tutorial.data.formats`; what a sound row holds is in :mod:`dpo_tutorial.data.rows`. Written is JSON Lines.
"""

import itertools
import json
import os
import secrets
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import pandas as pd

from dpo_tutorial.data import formats, readers
from dpo_tutorial.data.rows import (
    COLUMNS,
    ONE_OBJECT,
    SCORES,
    TEXTS,
    VOTES,
    PairsError,
    check_json,
    check_row,
    check_text,
    prompt_id,
)

__all__ = [
    "COLUMNS",
    "SCORES",
    "TEXTS",
    "VOTES",
    "PairsError",
    "check_row",
    "load",
    "prompt_id",
    "save",
    "save_rejected",
    "write_atomically",
]
# Legal inside JSON strings, but many readers take them for line ends: written as escapes.
_LINE_ENDS = str.maketrans({"\u2028": "\\u2028", "\u2029": "\\u2029", "\x85": "\\u0085"})
_HEAD = 100  # rows that are looked at to learn a file's format


def load(path: str | Path, *, on_error: str = "raise", limit: int | None = None, line_field: str = "", **hub):
    """Read preference pairs, row by row, from a file or from the Hugging Face hub.

    In JSON Lines a UTF-8 byte order mark and CRLF line ends are tolerated. Only a line feed ends a line (U+2028
    inside a text does not). Lines of nothing but white space hold no row: they are skipped and counted neither as
    kept nor as rejected. One file holds one format (``formats.FORMATS``), the most frequent of its first rows.

    Args:
        path: a file (JSON Lines, a JSON array, Parquet), a hub id ``owner/name``, or a folder with its files.
        on_error: ``"raise"`` stops at the first bad row, ``"reject"`` goes on.
        limit: read no more than so many rows.
        line_field: the name of a field to add, in which each row's line number goes.
        hub: options of ``datasets.load_dataset`` for a hub id, for example ``split="test"``.

    Returns:
        A DataFrame with ``prompt_id, prompt, chosen, rejected, source`` and every further field of the file. A
        missing ``prompt_id`` becomes :func:`prompt_id`, a missing ``source`` the file's name; integers as
        ``prompt_id`` become strings; null in a further field is a missing value; ``.attrs["format"]`` is the format.
        With ``"reject"`` two frames, ``(kept, rejected)``, the second with ``line``, ``field``, ``reason`` and
        ``raw`` (bytes that are not UTF-8 appear as ``\\xNN``). Their lengths add up to the rows read.
        Near-identical texts, duplicates and leakage are not looked for here.

    Raises:
        PairsError: the first bad row, or a file without any row (``"raise"`` only); a file that cannot be read.
        ValueError: ``on_error`` is something else.
    """
    if on_error not in ("raise", "reject"):
        raise ValueError(f"on_error is {on_error!r}; accepted are 'raise' and 'reject'")
    name = str(path) if readers.is_hub_id(path) else Path(path).name
    rows, rejected, table = readers.read(path, limit=limit, **hub), [], _Table()
    head = list(itertools.islice(rows, _HEAD))
    form = formats.majority(row for _, _, row in head if isinstance(row, dict))
    for number, raw, row in itertools.chain(head, rows):
        try:
            table.add(_finish(row, form, name) | ({line_field: number} if line_field else {}))
        except PairsError as fault:
            if on_error == "raise":
                raise fault.at(str(path), number) from None
            field = fault.field.encode("utf-8", "backslashreplace").decode()
            text = raw if isinstance(raw, str) else raw.decode("utf-8", "backslashreplace")
            text = text.encode("utf-8", "backslashreplace").decode()
            rejected.append((number, field, fault.reason, text))
    if not table.rows and on_error == "raise":
        raise PairsError("", "no row at all", ONE_OBJECT, "see data/README.md for an example", path=str(path))
    kept = table.frame()
    kept.attrs["format"] = form
    if on_error == "raise":
        return kept
    return kept, pd.DataFrame(rejected, columns=["line", "field", "reason", "raw"])


def _finish(row: dict | PairsError, form: str | None, name: str) -> dict:
    """One row as a checked and completed pair; raises the fault that it has."""
    if isinstance(row, PairsError):
        raise row
    try:
        row = formats.to_pair(row, form)
        check_row(row, formats.FORMATS.get(form))
        given = row.get("prompt_id")
        row["prompt_id"] = prompt_id(row["prompt"]) if given is None else str(given)
        row["source"] = name if row.get("source") is None else row["source"]
    except RecursionError:
        raise PairsError("", "hundreds of nested brackets", ONE_OBJECT, "drop the line") from None
    return row


class _Table:
    """Rows collected column by column, which takes a third of the memory of a list of dicts."""

    def __init__(self):
        self.rows, self.columns = 0, {name: [] for name in COLUMNS}

    def add(self, row: dict) -> None:
        for name, value in row.items():
            column = self.columns.setdefault(name, [])
            column.extend([None] * (self.rows - len(column)))
            column.append(value)
        self.rows += 1

    def frame(self) -> pd.DataFrame:
        for column in self.columns.values():
            column.extend([None] * (self.rows - len(column)))
        names = list(self.columns)  # each list is given up as soon as its column is made
        return pd.DataFrame({name: _column(name, self.columns.pop(name)) for name in names})


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
                check_text(name, row[name])
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
            check_json(name, value)
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
    write_atomically(path, (line.translate(_LINE_ENDS).encode() + b"\n" for line in lines))


def write_atomically(path: str | Path, chunks: Iterable[bytes]) -> None:
    """Write chunks to a new file beside ``path``, flush it to disk, and rename it: whole or not at all."""
    path = Path(os.path.realpath(path))
    scratch = path.with_name(f".{path.name}.{secrets.token_hex(6)}.tmp")
    try:
        with open(scratch, "xb") as file:
            for chunk in chunks:
                file.write(chunk)
            file.flush()
            os.fsync(file.fileno())
        os.replace(scratch, path)
    finally:
        scratch.unlink(missing_ok=True)
