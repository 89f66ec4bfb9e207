"""Claims: sentences about results, each with a check that can fail.

A notebook states a result by calling :func:`claim` or :func:`close`; the sentence is printed only
when the check passed. :func:`verdict` answers a statement of folklore from claims that were checked
in the same kernel. ``tools/execute_notebooks.py`` reads the printed lines back with
:func:`parse_lines` and builds CLAIMS.md from them.
"""

import math
import re
import textwrap

VERDICTS = ("holds", "holds only when", "fails", "not tested here")
_ID = re.compile(r"^\d\d\.\d{1,2}$")
_FOLKLORE_ID = re.compile(r"^F\d\d$")
_LINE = re.compile(r"^(?P<mark>HOLDS|VERDICT) +\[(?P<id>[\dF][\d.]+)\] (?P<text>.*)$")
_checked: dict[str, str] = {}


class ClaimFailed(AssertionError):
    """A sentence of this notebook is not true in this run."""


def _show(mark: str, claim_id: str, text: str) -> None:
    """Print one wrapped entry; continuation lines are indented so that they can be joined again."""
    print("\n".join(textwrap.wrap(f"{mark} [{claim_id}] {text}", width=100, subsequent_indent="    ")))


def claim(id: str, statement: str, holds: bool, evidence: str) -> None:
    """Print ``statement`` with its evidence if ``holds``, raise :class:`ClaimFailed` if not.

    Args:
        id: ``"NN.k"``, notebook and running number, unique in the course.
        statement: the sentence, in the present tense, without a measured digit that differs between machines.
        holds: the outcome of the check, computed in the same cell. Arrays are refused: say ``.all()``.
        evidence: what was compared, with digits only where they are the same on every machine.

    Raises:
        ClaimFailed: the check is false; the message holds statement and evidence.
        ValueError: the id is malformed.
        TypeError: ``holds`` is not a single truth value.
    """
    if not _ID.match(id):
        raise ValueError(f"claim id is {id!r}; accepted is 'NN.k', for example '04.2'")
    if getattr(holds, "ndim", 0) or isinstance(holds, (str, list, tuple, dict)) or holds is None:
        raise TypeError(f"claim {id}: holds is a {type(holds).__name__}; give one truth value, for example x.all()")
    if not bool(holds):
        raise ClaimFailed(
            f"\n\nClaim {id} does not hold in this run.\n  statement: {statement}\n  measured:  {evidence}\n"
            "  If you changed a knob, this is a finding: read the cell's numbers. If you changed nothing,\n"
            "  run `python -m dpo_tutorial doctor` and report the lines above."
        )
    _checked[id] = statement
    _show("HOLDS", id, f"{statement} | {evidence}")


def close(id: str, statement: str, value: float, expected: float, tolerance: float) -> None:
    """Claim that ``|value - expected| <= tolerance``; NaN never passes.

    The evidence names the tolerance and not the distance, so that the printed line is the same on
    every machine; the distance appears when the claim fails.
    """
    if not tolerance > 0:
        raise ValueError(f"claim {id}: tolerance is {tolerance}; it must be positive")
    distance = abs(float(value) - float(expected))
    holds = distance <= tolerance  # False for NaN
    evidence = (
        f"within {tolerance:.0e} of {float(expected):.6g}"
        if holds
        else (
            f"value {float(value):.10g}, expected {float(expected):.10g}, "
            f"distance {distance:.3g}, tolerance {tolerance:.0e}"
        )
    )
    claim(id, statement, holds, evidence)


def within(id: str, statement: str, value: float, low: float, high: float) -> None:
    """Claim that a measured number lies in a band; prints the band, and the number only when it is outside."""
    if not low < high:
        raise ValueError(f"claim {id}: the band is {low} to {high}; low must be below high")
    holds = math.isfinite(value) and low <= value <= high
    evidence = f"band {low:g} to {high:g}" if holds else f"value {float(value):.6g}, band {low:g} to {high:g}"
    claim(id, statement, holds, evidence)


def below(distance: float, *limits: float) -> str:
    """The size class of a tiny difference, which is the same on every machine while its digits are not.

    >>> below(3e-13, 1e-12, 1e-8), below(3e-3, 1e-8)
    ('below 1e-12', '3.0e-03')
    """
    return next((f"below {limit:.0e}" for limit in limits if distance < limit), f"{distance:.1e}")


def verdict(id: str, verdict: str, because: str, claims: list[str], scale: str) -> None:
    """Answer a statement of folklore from claims that passed in this kernel.

    Args:
        id: ``"F01"`` to ``"F47"``, as listed in data/folklore.json.
        verdict: one of ``VERDICTS``.
        because: the condition or the reason, one or two sentences.
        claims: ids of the claims that carry it; empty only for "not tested here".
        scale: model and data behind it, for example "finite world, exact".
    """
    if not _FOLKLORE_ID.match(id):
        raise ValueError(f"folklore id is {id!r}; accepted are 'F01' to 'F47'")
    if verdict not in VERDICTS:
        raise ValueError(f"verdict is {verdict!r}; accepted are {', '.join(VERDICTS)}")
    if not claims and verdict != "not tested here":
        raise ValueError(f"{id}: a verdict needs at least one claim that carries it")
    missing = [name for name in claims if name not in _checked]
    if missing:
        raise ClaimFailed(f"{id} rests on claims that were not checked in this kernel: {', '.join(missing)}")
    carried = f" | claims {', '.join(claims)}" if claims else ""
    _show("VERDICT", id, f"{verdict}: {because} | {scale}{carried}")


def parse_lines(text: str) -> list[tuple[str, str, str]]:
    """Read printed claims back: (mark, id, text) for every entry in a cell's output.

    >>> parse_lines("HOLDS [04.1] beta scales\\n    the gradient | exact")
    [('HOLDS', '04.1', 'beta scales the gradient | exact')]
    """
    entries: list[list[str]] = []
    for line in text.splitlines():
        match = _LINE.match(line)
        if match:
            entries.append([match["mark"], match["id"], match["text"]])
        elif entries and line.startswith("    ") and line.strip():
            entries[-1][2] += " " + line.strip()
    return [tuple(entry) for entry in entries]
