"""The audit of a preference file: what is in it, what is wrong with it, and the three things to mend first.

``python -m dpo_tutorial audit FILE`` prints the report; ``display.audit_page`` makes a page of it.
"""

import math
import textwrap
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd

from dpo_tutorial.data import audit_labels, audit_texts, pairs
from dpo_tutorial.data.audit_check import Check, Pairs, count, per_cent

SAMPLE = 10_000  # pairs that the classifiers and the tokenizer look at
_LINE = "_audit_line"
LIMITS = (
    "Not looked at: whether what the responses say is true, whether the labels reward what you want, "
    "whether the prompts are those of your users. Read twenty pairs yourself."
)


@dataclass
class Report:
    """The outcome of an audit; ``findings`` are the checks that found something, the gravest first."""

    path: str
    format: str | None
    frame: pd.DataFrame
    rejected: pd.DataFrame
    checks: list[Check]
    sampled: int
    seconds: float = 0.0
    lines: np.ndarray = field(default_factory=lambda: np.zeros(0, dtype=int))

    @property
    def findings(self) -> list[Check]:
        return sorted((c for c in self.checks if c.finding), key=lambda c: -c.severity)

    @property
    def topics(self) -> list[list[Check]]:
        """The findings by group, so that one cause does not take two places; the gravest group first."""
        groups: dict[str, list[Check]] = {}
        for check in self.findings:
            groups.setdefault(check.group or check.key, []).append(check)
        return list(groups.values())

    @property
    def verdict(self) -> list[str]:
        """The three most important things to mend, each with its remedy; one sentence if there is nothing."""
        found = [f"{sentence(topic)}. Remedy: {topic[0].remedy}." for topic in self.topics[:3]]
        return found or ["Nothing to mend was found by these checks."]

    def as_dict(self) -> dict:
        """The report for machines: numbers per check, findings in order, line numbers of at most 20 rows each."""
        findings = [
            {"key": c.key, "finding": c.finding, "remedy": c.remedy, "severity": c.severity}
            | {"lines": [int(self.lines[k]) for k in c.rows[:20]], "rows": len(c.rows)}
            for c in self.findings
        ]
        return _finite(
            {
                "file": self.path,
                "format": self.format,
                "rows": {"read": len(self.frame) + len(self.rejected), "kept": len(self.frame)}
                | {"rejected": len(self.rejected)},
                "sampled": self.sampled,
                "seconds": round(self.seconds, 1),
                "verdict": self.verdict,
                "findings": findings,
                "checks": {c.key: {"title": c.title, "summary": c.summary, **c.numbers} for c in self.checks},
                "limits": LIMITS,
            }
        )


def audit(
    path: str | Path,
    *,
    test: str | Path | None = None,
    encode: Callable | None = None,
    max_length: int = 1024,
    limit: int | None = None,
    sample: int = SAMPLE,
    seed: int = 0,
    **hub,
) -> Report:
    """Audit one preference file.

    Args:
        path: a file or hub id, as for ``pairs.load``.
        test: a second file whose prompts and responses must not occur in the first.
        encode: from a list of texts to lists of token ids; without it tokens are not counted.
        max_length: tokens of prompt and response that training will keep.
        limit: read only so many rows.
        sample: how many pairs, drawn with ``seed``, the classifiers and the tokenizer look at.
        hub: options of ``datasets.load_dataset`` for a hub id.

    Raises:
        OSError: a file cannot be opened.
        pairs.PairsError: a file holds no row that is a pair.
    """
    start = time.perf_counter()
    frame, rejected = pairs.load(path, on_error="reject", limit=limit, line_field=_LINE, **hub)
    if not len(frame):
        raise _no_pairs(path, rejected)
    unseen = None
    if test is not None:
        unseen, faulty = pairs.load(test, on_error="reject")
        if not len(unseen):
            raise _no_pairs(test, faulty)
    lines = frame.pop(_LINE).to_numpy()
    form = frame.attrs.get("format")
    data = Pairs.of(frame, sample=sample, seed=seed)
    frame = data.frame
    checks = _run(data, rejected, unseen, encode, max_length)
    report = Report(str(path), form, frame, rejected, checks, len(data.sample), lines=lines)
    report.seconds = time.perf_counter() - start
    return report


def _run(data: Pairs, rejected: pd.DataFrame, unseen, encode, max_length: int) -> list[Check]:
    duplicates, contradictions = audit_texts.duplicates(data), audit_texts.contradictions(data)
    known = np.union1d(duplicates.rows, contradictions.rows)
    checks = [rejections(data, rejected), duplicates, audit_texts.near_duplicates(data, known), contradictions]
    if unseen is not None:
        checks.append(audit_texts.leakage(data, unseen))
    checks += [audit_texts.alike(data), audit_texts.repetition(data), audit_texts.damage(data)]
    checks += [audit_texts.prompts(data), audit_labels.length(data), *audit_labels.classifiers(data)]
    checks += [audit_labels.scores(data), audit_labels.votes(data, rejected), audit_labels.position(data)]
    checks.append(audit_labels.sources(data))
    if encode is not None:
        checks.append(audit_texts.tokens(data, encode, max_length))
    return [check for check in checks if check is not None]


def rejections(data: Pairs, rejected: pd.DataFrame) -> Check:
    """Rows that are no pair, grouped by field and remedy."""
    read = len(data) + len(rejected)
    groups: dict[tuple, list] = {}
    for line, name, reason in rejected[["line", "field", "reason"]].itertuples(index=False):
        kind = "a tie" if reason.startswith("a tie") else reason.partition("; remedy: ")[2]
        groups.setdefault((name, kind), []).append((line, reason))
    table = [
        {"rows": len(rows), "field": name, "first_line": int(rows[0][0]), "first_reason": rows[0][1]}
        for (name, _), rows in sorted(groups.items(), key=lambda item: -len(item[1]))
    ]
    check = Check("rejected", "Rows", f"{count(read, 'row')} read, {len(data):,} kept, {len(rejected):,} rejected")
    check.numbers = {"read": read, "kept": len(data), "rejected": len(rejected), "reasons": table[:20]}
    ties = sum(len(rows) for (_, kind), rows in groups.items() if kind == "a tie")
    bad = len(rejected) - ties
    if bad:
        worst = next(row for row in table if not row["first_reason"].startswith("a tie"))
        first = f"line {worst['first_line']}: {worst['first_reason'].partition('; accepted')[0]}"
        check.finding = f"{bad:,} of {count(read, 'row')} ({per_cent(bad / read)}) are no pair, for example {first}"
        check.remedy = 'mend them: pairs.load(path, on_error="reject") gives them with their reasons'
        check.severity = bad / read
    return check


def text(report: Report, width: int = 100) -> str:
    """The report for a terminal; control characters of model text are taken out."""

    def wrap(line: str, indent: str) -> str:
        kept = printable(line).replace(" %", "\u00a0%")  # a number and its unit stay on one line
        filled = textwrap.fill(kept, width, initial_indent=indent, subsequent_indent=" " * (len(indent) + 2))
        return filled.replace("\u00a0", " ")

    parts = [f"Audit of {printable(report.path)}", f"Format: {report.format}", ""]
    for check in report.checks:
        mark = "!" if check.finding else " "
        parts.append(wrap(f"{check.title}: {check.summary}", f"{mark} "))
        if check.key == "rejected":
            for row in check.numbers["reasons"][:5]:
                where = f"{row['rows']:,} x {row['field'] or 'row'}, first in line {row['first_line']}"
                parts.append(wrap(f"{where}: {row['first_reason']}", "    "))
    parts += ["", "To mend first" if report.findings else "Verdict"]
    parts += [wrap(sentence, f"{number}. ") for number, sentence in enumerate(report.verdict, start=1)]
    if rest := [topic[0].title.lower() for topic in report.topics[3:]]:
        parts.append(wrap(f"Then: {', '.join(rest)}.", ""))
    parts += ["", wrap(LIMITS, "")]
    parts.append(f"{report.seconds:.0f} s; classifiers and tokens on {count(report.sampled, 'sampled pair')}.")
    return "\n".join(parts)


def printable(line: str) -> str:
    """``line`` with what is no printable character (escape sequences, line ends) written as an escape or a space."""
    return "".join(c if c.isprintable() else " " if c.isspace() else ascii(c)[1:-1] for c in line)


def sentence(topic: list[Check]) -> str:
    """The findings of one group as a sentence without its full stop."""
    text = "; ".join(check.finding for check in topic)
    return text[0].upper() + text[1:]


def _no_pairs(path, rejected: pd.DataFrame) -> pairs.PairsError:
    first = f"; line {rejected['line'].iloc[0]}: {rejected['reason'].iloc[0]}" if len(rejected) else ""
    found = f"none of {count(len(rejected), 'row')} is a preference pair{first}"
    return pairs.PairsError("", found, "a file with pairs", "see dpo_tutorial/data/formats.py", path=str(path))


def _finite(value):
    """A nested structure as JSON can hold it: NaN becomes null, numpy numbers become plain."""
    if isinstance(value, dict):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    value = value.item() if isinstance(value, np.generic) else value
    return None if isinstance(value, float) and not math.isfinite(value) else value
