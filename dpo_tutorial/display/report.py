"""The environment check: what this machine has, what the course needs, and what to do about the difference.

Needed versions are read from the installed package's own metadata, so that they are written down once,
in pyproject.toml. Nothing heavy is imported.
"""

import importlib.metadata
import os
import platform
import shutil
import sys
import textwrap
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from packaging.requirements import Requirement
from packaging.version import Version

DISTRIBUTION = "dpo-tutorial"
INSTALL = "pip install -c constraints.txt -e '.[test]'"
MEMORY_GB, DISK_GB = 4.0, 1.5


class Row(NamedTuple):
    """One line of the check. A row that is not ``ok`` and not ``optional`` keeps the course from running."""

    name: str
    found: str
    needed: str
    ok: bool
    remedy: str = ""
    optional: bool = False


def package_rows(requirements: Iterable[str] | None = None) -> list[Row]:
    """One row for each direct requirement of the course, those of the ``test`` extra marked optional.

    Args:
        requirements: lines as in pyproject.toml; default those of the installed course.
    """
    if requirements is None:
        try:
            requirements = importlib.metadata.requires(DISTRIBUTION) or []
        except importlib.metadata.PackageNotFoundError:
            return [Row(DISTRIBUTION, "not installed", "installed", False, f"in the course's folder: {INSTALL}")]
    rows = []
    for requirement in map(Requirement, requirements):
        marker = requirement.marker
        optional = marker is not None and not marker.evaluate({"extra": ""})
        if optional and not marker.evaluate({"extra": "test"}):
            continue
        rows.append(_package_row(requirement, optional))
    return rows


def _package_row(requirement: Requirement, optional: bool) -> Row:
    needed = str(requirement.specifier) or "any"
    try:
        found = importlib.metadata.version(requirement.name)
    except importlib.metadata.PackageNotFoundError:
        found, ok = "not installed", False
    else:
        ok = requirement.specifier.contains(found, prereleases=True)
    remedy = "" if ok else INSTALL
    return Row(requirement.name, found, needed + (" (tests)" if optional else ""), ok, remedy, optional)


def python_row() -> Row:
    """The Python that runs this, against ``requires-python`` of the installed course."""
    found = platform.python_version()
    try:
        needed = importlib.metadata.metadata(DISTRIBUTION)["Requires-Python"]
    except importlib.metadata.PackageNotFoundError:
        needed = ">=3.11"
    ok = Requirement(f"python{needed}").specifier.contains(Version(found), prereleases=True)
    return Row("Python", found, needed, ok, "" if ok else "make the environment again with a newer Python")


def machine_rows(folder: str | Path) -> list[Row]:
    """Rows on the processor, the cores this process may use, the memory, and the disk that holds ``folder``."""
    if hasattr(os, "sched_getaffinity"):
        cores = len(os.sched_getaffinity(0))
    else:
        cores = os.cpu_count() or 1
    threads = os.environ.get("OMP_NUM_THREADS", "")
    rows = [
        Row("machine", f"{platform.system()} {platform.machine()}", "any", True),
        Row("cores", f"{cores}" + (f" (OMP_NUM_THREADS={threads})" if threads else ""), "any; times are for 2", True),
    ]
    memory = _memory_gb()
    if memory is None:
        rows.append(Row("memory", "unknown", f"{MEMORY_GB:.0f} GB", True, optional=True))
    else:
        # A machine sold with 4 GB reports a little less.
        ok = memory >= 0.9 * MEMORY_GB
        remedy = "" if ok else "close other programs, and keep one notebook's kernel running at a time"
        rows.append(Row("memory", f"{memory:.1f} GB", f"{MEMORY_GB:.0f} GB", ok, remedy))
    place = Path(folder).absolute()
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free / 1e9
    ok = free >= DISK_GB
    remedy = "" if ok else f"make room on the disk that holds {place}"
    rows.append(Row("disk free", f"{free:.1f} GB", f"{DISK_GB:.1f} GB", ok, remedy))
    return rows


def _memory_gb() -> float | None:
    """Total memory, or the limit of the container where that is smaller; None if nobody knows."""
    try:
        import psutil
    except ImportError:
        return None
    total = psutil.virtual_memory().total
    limit = Path("/sys/fs/cgroup/memory.max")
    if limit.exists() and (text := limit.read_text().strip()).isdigit():
        total = min(total, int(text))
    return total / 1e9


def bfloat16_row(speedup: float, device: str) -> Row:
    """Whether bfloat16 is fast here, from a measured ``speedup`` over float32 (``training.models.bfloat16_speedup``).

    The ratio is in the row, so the row differs from run to run: for a terminal, not for stored output.
    """
    if device != "cpu":
        return Row("bfloat16", f"fast on {device}", "any", True)
    verdict = "fast" if speedup > 1.3 else "no gain"
    return Row("bfloat16", f"{verdict} on {device} ({speedup:.2f} times float32)", "any", True)


def environment(folder: str | Path | None = None) -> list[Row]:
    """Every row that needs no import of torch: Python, machine, packages. ``folder`` is where models are kept."""
    return [python_row(), *machine_rows(folder or Path.home()), *package_rows()]


def ready(rows: Iterable[Row]) -> bool:
    """Whether nothing that is needed is missing."""
    return all(row.ok or row.optional for row in rows)


def print_environment(rows: list[Row] | None = None, *, file=None) -> bool:
    """Print the rows as a table, what is missing with its remedy below, and return :func:`ready` of them.

    >>> print_environment([Row("numpy", "2.4.6", ">=2.4", True), Row("trl", "not installed", ">=1.16", False, "pip")])
              name   found          needed
    ok        numpy  2.4.6          >=2.4
    MISSING   trl    not installed  >=1.16
    <BLANKLINE>
    Missing: 1.
      trl: pip
    False
    """
    rows = environment() if rows is None else rows
    file = file or sys.stdout
    widths = [max(len(row[i]) for row in [("name", "found", "needed"), *rows]) for i in range(3)]

    def line(mark: str, cells: Iterable[str]) -> str:
        padded = (cell.ljust(width) for cell, width in zip(cells, widths, strict=True))
        return f"{mark:9} {'  '.join(padded)}".rstrip()

    print(line("", ("name", "found", "needed")), file=file)
    for row in rows:
        print(line("ok" if row.ok else "optional" if row.optional else "MISSING", row[:3]), file=file)
    missing = [row for row in rows if not (row.ok or row.optional)]
    absent = [row for row in rows if row.optional and not row.ok]
    print(file=file)
    print(f"Missing: {len(missing)}." if missing else "Everything that the course needs is here.", file=file)
    for row in missing:
        print(textwrap.indent(f"{row.name}: {row.remedy}", "  "), file=file)
    if absent:
        print(f"Only `make test` needs: {', '.join(row.name for row in absent)}. Remedy: {INSTALL}", file=file)
    return not missing
