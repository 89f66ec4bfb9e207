"""Reading rows from files: JSON Lines, JSON arrays, Parquet, and datasets of the Hugging Face hub, row by row.

Each reader yields ``(number, raw, row)``: the number of the line (of the row, where there are no lines), what stood
there, and the row as a dict or the :class:`PairsError` that says why it is none.
"""

import base64
import contextlib
import datetime
import decimal
import gzip
import itertools
import json
import re
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path

from dpo_tutorial.data.rows import ONE_OBJECT, PairsError, check_json, show

Read = tuple[int, bytes | str, "dict | PairsError"]
_BOM = b"\xef\xbb\xbf"
_HUB = re.compile(r"[\w.-]+/[\w.-]+")
_SUFFIXES = (".json", ".jsonl", ".ndjson", ".parquet", ".gz", ".txt", ".csv")
_SPACE = re.compile(r"[ \t\r\n]*")


def is_hub_id(path: str | Path) -> bool:
    """Whether ``path`` names a dataset on the hub: a string ``owner/name`` without a file's ending, no file here."""
    return (
        isinstance(path, str)
        and bool(_HUB.fullmatch(path))
        and not path.endswith(_SUFFIXES)
        and not Path(path).exists()
    )


def read(path: str | Path, *, limit: int | None = None, **hub) -> Iterator[Read]:
    """The rows of a file, of a hub dataset, or of a folder with a hub dataset's files (a clone of its repository).

    Args:
        path: a file: ``.parquet``; ``.json`` that begins with ``[`` (an array of objects); anything else is read as
            JSON Lines; all but Parquet may be gzipped (``.gz``). Or a hub id, ``owner/name``, or a folder.
        limit: stop after so many rows.
        hub: for hub datasets and folders, options of ``datasets.load_dataset``; ``split`` is "train" unless given.
    """
    if is_hub_id(path) or Path(path).is_dir():
        rows = _hub(str(path), **hub)
    elif hub:
        raise ValueError(
            f"{', '.join(hub)}: only datasets of the hub and folders take options; {path} is read as a file"
        )
    elif Path(path).suffix == ".parquet":
        rows = _parquet(Path(path))
    elif Path(path).name.removesuffix(".gz").endswith(".json") and _first_byte(Path(path)) == b"[":
        rows = _array(Path(path))
    else:
        rows = _json_lines(Path(path))
    return itertools.islice(rows, limit)


@contextlib.contextmanager
def _open(path: Path):
    """The bytes of a file, unpacked where its name ends in ``.gz``; a broken archive is named as one."""
    try:
        with gzip.open(path, "rb") if path.suffix == ".gz" else open(path, "rb") as file:
            yield file
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise PairsError("", str(error), "a whole gzip file", "pack or download it again", path=str(path)) from error


def _first_byte(path: Path) -> bytes:
    with _open(path) as file:
        return file.read(4096).removeprefix(_BOM).lstrip()[:1]


def _json_lines(path: Path) -> Iterator[Read]:
    """Lines that are not blank, without line end and byte order mark."""
    with _open(path) as file:  # binary: text mode would also split at a lone carriage return
        for number, raw in enumerate(file, start=1):
            raw = raw.removesuffix(b"\n").removesuffix(b"\r").removeprefix(_BOM)
            if raw.strip():
                yield number, raw, _attempt(raw)


def _attempt(raw: bytes) -> dict | PairsError:
    try:
        return _parse(raw)
    except PairsError as fault:
        return fault
    except RecursionError:
        return PairsError("", "hundreds of nested brackets", ONE_OBJECT, "drop the line")


def _array(path: Path) -> Iterator[Read]:
    """The elements of a JSON array, one decoded at a time; their numbers are the lines on which they begin.

    What follows an element that is not JSON cannot be told apart: it comes as one faulty row.
    """
    with _open(path) as file:
        text = file.read().removeprefix(_BOM).decode("utf-8", "surrogateescape")
    decoder, place, number, last = json.JSONDecoder(), text.index("[") + 1, 1, 0
    while True:
        place = _SPACE.match(text, place).end()
        number, last = number + text.count("\n", last, place), place
        if text[place : place + 1] == "]":
            return
        try:
            end = decoder.raw_decode(text, place)[1]
            after = _SPACE.match(text, end).end()
            if text[after : after + 1] not in (",", "]"):
                raise ValueError("a comma or the closing bracket is missing")
        except (ValueError, RecursionError) as error:
            what = (
                "hundreds of nested brackets" if isinstance(error, RecursionError) else str(error).partition(":")[0]
            )
            rest = text[place:].encode("utf-8", "surrogateescape")
            found = f"not JSON from here on ({what}): {show(text[place : place + 80])}"
            remedy = "mend it, or write one object per line so that one fault costs one row"
            yield number, rest, PairsError("", found, "an array of JSON objects", remedy)
            return
        raw = text[place:end].encode("utf-8", "surrogateescape")
        yield number, raw, _attempt(raw)
        if text[after] == "]":
            return
        place = after + 1


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
        found = f"not JSON ({error.msg}, column {error.colno}): {show(text)}"
        raise PairsError("", found, ONE_OBJECT, "write it with json.dumps, without line breaks") from None
    except ValueError as error:  # an integer of thousands of digits
        raise PairsError("", str(error), ONE_OBJECT, "drop the line") from None
    if not isinstance(row, dict):
        remedy = "write the rows of a list each on its own line, or name the file .json"
        raise PairsError("", f"{show(row)} is not an object", ONE_OBJECT, remedy)
    escaped = b"\\u" in raw  # the only way for half a surrogate pair to get through UTF-8
    for name, value in row.items():
        if escaped or not isinstance(value, str):
            check_json(name, value)
    return row


def _unique(pairs: list[tuple]) -> dict:
    row = {}
    for name, value in pairs:
        if name in row:
            found = f"the field stands twice, as {show(row[name])} and as {show(value)}"
            raise PairsError(name, found, "each field once", "keep one of the two")
        row[sys.intern(name)] = value
    return row


def _parquet(path: Path) -> Iterator[Read]:
    """The rows of a Parquet file, a thousand at a time."""
    import pyarrow
    from pyarrow import parquet

    try:
        with parquet.ParquetFile(path) as file:
            rows = itertools.chain.from_iterable(batch.to_pylist() for batch in file.iter_batches(batch_size=1000))
            yield from _checked(rows)
    except pyarrow.ArrowException as error:
        reason = str(error).splitlines()[0]
        raise PairsError("", reason, "a Parquet file", "write or download it again", path=str(path)) from error


def _hub(name: str, *, split: str = "train", **options) -> Iterator[Read]:
    """The rows of a hub dataset, streamed: no more is downloaded than is read."""
    import datasets

    try:
        yield from _checked(datasets.load_dataset(name, split=split, streaming=True, **options))
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        if Path(name).is_dir():
            found, remedy = (
                f"no dataset can be read from this folder (split {split!r})",
                "give a data file's own path",
            )
        else:
            found = f"no file of this name, and the hub did not give it (split {split!r})"
            remedy = "correct the name, or connect to the network, or download a file and give its path"
        wanted = "a file, a dataset's folder, or a dataset id owner/name"
        raise PairsError("", f"{found}: {reason}", wanted, remedy, path=name) from error


def _checked(rows) -> Iterator[Read]:
    for number, row in enumerate(rows, start=1):
        row = {str(name): _as_json(value) for name, value in row.items()}
        raw = json.dumps(row, ensure_ascii=False, default=str)
        try:
            for name, value in row.items():
                check_json(name, value)
        except PairsError as fault:
            yield number, raw, fault
        else:
            yield number, raw, row


def _as_json(value):
    """Values that JSON does not know (dates, decimals, bytes), as text."""
    if isinstance(value, (datetime.date, datetime.time, decimal.Decimal, datetime.timedelta)):
        return str(value)
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    if isinstance(value, dict):
        return {str(key): _as_json(item) for key, item in value.items()}
    return [_as_json(item) for item in value] if isinstance(value, list) else value
