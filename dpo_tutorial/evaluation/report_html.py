"""A comparison as one HTML page that a team can attach to a decision: self-contained, no script, all text escaped."""

import html
from pathlib import Path

import pandas as pd

from dpo_tutorial.evaluation import compare

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #111; }
h1 { font-size: 1.5rem } h2 { font-size: 1.15rem; margin-top: 2rem; border-bottom: 1px solid #ccc }
table { border-collapse: collapse; width: 100%; margin: .6rem 0 } th, td { text-align: left; vertical-align: top;
padding: .25rem .5rem; border-bottom: 1px solid #ddd }
.number { text-align: right; font-variant-numeric: tabular-nums }
pre { white-space: pre-wrap; overflow-wrap: anywhere; margin: 0; font: 13px/1.45 ui-monospace, monospace }
.warning { border-left: 4px solid #d9720b; background: #fdf3e7; padding: .5rem .8rem }
@media print { body { margin: 0 } h2 { break-after: avoid } tr { break-inside: avoid } }
"""
SHARES = ["lowest", "highest", "consistency", "first_shown", "longer_wins"]
CONSISTENT = 0.8  # where a warning begins: two verdicts in ten turn with the order
LENGTHY = 0.65  # and two in three go to the longer answer
FEW = 20  # below so many prompts the bootstrap's interval is too narrow
LEVEL = 0.05  # of the sign test
POLICY = "default-src 'none'; style-src 'unsafe-inline'"


def report(
    table: pd.DataFrame, *, title: str, judge_name: str, settings: dict | None = None, examples: int = 3,
    capabilities: pd.DataFrame | None = None,
) -> str:  # fmt: skip
    """The page as text.

    Args:
        table: as ``compare.compare`` returns it.
        judge_name, settings: said at the top; they should be those of the comparison.
        examples: losses and wins of A shown per pair of policies, those closest in length first.
        capabilities: as ``capabilities.compare`` returns it, shown as "what else changed".
    """
    numbers = compare.summary(table)
    parts = [f"<h1>{_text(title)}</h1>", _head(table, judge_name, settings or {})]
    for (a, b), row in numbers.iterrows():
        part = table[(table["model_a"] == a) & (table["model_b"] == b)]
        parts += [f"<h2>{_text(a)} against {_text(b)}</h2>", f"<p>{_sentence(a, b, row)}</p>"]
        if row["judged"]:
            parts.append(_picture(a, row))
        prompts = part.loc[part["outcome"].notna(), "prompt_id"].nunique()
        parts += [_warnings(row, prompts), _counts(row), _examples(part, a, b, examples)]
    if capabilities is not None:
        parts += ["<h2>What else changed</h2>", _capabilities(capabilities)]
    parts.append(_missing(compare.missing(table)))
    head = f'<meta charset="utf-8"><meta http-equiv="Content-Security-Policy" content="{POLICY}">'
    head += f'<meta name="viewport" content="width=device-width"><title>{_text(title)}</title><style>{STYLE}</style>'
    return f'<!doctype html>\n<html lang="en"><head>{head}</head><body>\n' + "\n".join(parts) + "\n</body></html>\n"


def write(path: str | Path, table: pd.DataFrame, **options) -> Path:
    """:func:`report` into a file; returns its path."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(report(table, **options), encoding="utf-8")
    return path


def _text(value) -> str:
    """Escaped, with control characters shown instead of obeyed (a model can write anything)."""
    shown = "".join(c if c.isprintable() or c in "\n\t" else f"\\u{ord(c):04x}" for c in str(value))
    return html.escape(shown, quote=True)


def _rows(header: list[str], rows: list[list]) -> str:
    """A table; numbers are set to the right, texts keep their line breaks."""
    cells = [
        "".join(
            f'<td class="number">{value:.3g}</td>' if isinstance(value, float)
            else f'<td class="number">{value}</td>' if isinstance(value, int)
            else f"<td><pre>{_text(value)}</pre></td>"
            for value in row
        )
        for row in rows
    ]  # fmt: skip
    numeric = [' class="number"' if isinstance(value, (int, float)) else "" for value in rows[0]]
    head = "".join(f'<th scope="col"{n}>{_text(name)}</th>' for name, n in zip(header, numeric, strict=True))
    body = "".join(f"<tr>{line}</tr>" for line in cells)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _head(table: pd.DataFrame, judge_name: str, settings: dict) -> str:
    said = {"judge": judge_name, "prompts": table["prompt_id"].nunique(), "seeds": table["seed"].nunique()} | settings
    return _rows(["setting", "value"], [[str(key), str(value)] for key, value in said.items()])


def _sentence(a: str, b: str, row: pd.Series) -> str:
    """The result in words; "better" only where the interval excludes a half and the sign test agrees.

    The interval alone is not enough: where all of a few outcomes are alike, its two ends fall together.
    """
    if not row["judged"]:
        return f"The judge gave no verdict on any of the {row['n']:.0f} comparisons: nothing can be said."
    percent = [f"{100 * row[name]:.0f}" for name in ("rate", "low", "high")]
    found = f"{_text(a)} wins {percent[0]} % (95 % interval {percent[1]} to {percent[2]} %, a tie is half a win)"
    if row["low"] <= 0.5 <= row["high"]:
        return f"{found}: <strong>not decided</strong>, the interval holds a half."
    if row["p_value"] < LEVEL:
        better, other = (a, b) if row["low"] > 0.5 else (b, a)
        return f"{found}: by this judge <strong>{_text(better)} is better than {_text(other)}</strong>."
    coin = f"a coin splits the prompts as unevenly with probability {row['p_value']:.2g}"
    return f"{found}: <strong>not decided</strong>, the interval excludes a half, but {coin} (sign test)."


def _picture(a: str, row: pd.Series) -> str:
    """The rate with its interval on a line from 0 to 100 %, as inline SVG."""
    low, rate, high = (20 + 500 * row[name] for name in ("low", "rate", "high"))
    label = "Win rate of {}: {:.0f} per cent, 95 per cent interval {:.0f} to {:.0f}".format(
        a, *(100 * row[name] for name in ("rate", "low", "high"))
    )
    ticks = "".join(
        f'<text x="{20 + 5 * t}" y="52" font-size="12" text-anchor="middle">{t} %</text>'
        for t in (0, 25, 50, 75, 100)
    )
    return (
        f'<svg viewBox="0 0 540 60" width="540" role="img" aria-label="{_text(label)}">'
        '<line x1="20" x2="520" y1="35" y2="35" stroke="#999"/>'
        '<line x1="270" x2="270" y1="8" y2="38" stroke="#7a7a7a" stroke-dasharray="2 3"/>'
        f'<line x1="{low:.1f}" x2="{high:.1f}" y1="22" y2="22" stroke="#111" stroke-width="3"/>'
        f'<circle cx="{rate:.1f}" cy="22" r="6" fill="#111"/>{ticks}</svg>'
    )


def _warnings(row: pd.Series, prompts: int) -> str:
    """What makes the rate doubtful, in words; empty if nothing does. ``prompts``: those with a verdict."""
    share = 100 * row[SHARES].astype(float)
    found = []
    if 0 < prompts < FEW:
        found.append(
            f"Only {prompts} prompt{'s' if prompts > 1 else ''} with a verdict: below {FEW} the interval is too "
            "narrow, since prompts that are drawn again cannot show what these few did not."
        )
    if row["missing"]:
        found.append(
            f"{row['missing']:.0f} of {row['n']:.0f} comparisons have no verdict and are left out, not counted as "
            f"ties; had all of them been lost or won, the rate would be {share['lowest']:.0f} or "
            f"{share['highest']:.0f} %. They are listed below."
        )
    if row["consistency"] < CONSISTENT:
        found.append(
            f"Asked again with the answers exchanged, the judge said the same in {share['consistency']:.0f} % of the "
            f"comparisons; the answer shown first won {share['first_shown']:.0f} % of the decided verdicts."
        )
    if row["longer_wins"] > LENGTHY:
        found.append(
            f"The longer answer won {share['longer_wins']:.0f} % of the decided comparisons ({row['words_a']:.0f} "
            f"against {row['words_b']:.0f} words): control for length before believing the rate."
        )
    return "".join(f'<p class="warning">{sentence}</p>' for sentence in found)


def _counts(row: pd.Series) -> str:
    names = ["wins", "ties", "losses", "contradicted", "missing"]
    numbers = ["rate_without_ties", "p_value", "consistency", "first_shown", "longer_wins", "words_a", "words_b"]
    values = [int(row[name]) if pd.notna(row.get(name)) else "none" for name in names]
    values += [float(row[name]) if pd.notna(row.get(name)) else "none" for name in numbers]
    return _rows([name.replace("_", " ") for name in names + numbers], [values])


def _examples(part: pd.DataFrame, a: str, b: str, count: int) -> str:
    gap = (part["text_a"].str.len() - part["text_b"].str.len()).abs()
    ordered = part.loc[gap.sort_values(kind="stable").index]
    rows = [
        [kind, *one]
        for kind, outcome in (("loss", 0.0), ("win", 1.0))
        for one in ordered.loc[ordered["outcome"] == outcome, ["prompt", "text_a", "text_b"]].head(count).to_numpy()
    ]
    return _rows([f"{a}:", "prompt", str(a), str(b)], rows) if rows else ""


def _capabilities(table: pd.DataFrame) -> str:
    columns = ["items", "before", "after", "change", "low", "high"]
    rows = [
        [str(family), int(row["items"]), *(float(row[name]) for name in columns[1:])]
        for family, row in table.iterrows()
    ]
    return _rows(["family", *columns], rows)


def _missing(listed: pd.DataFrame) -> str:
    if listed.empty:
        return ""
    rows = listed[["model_a", "model_b", "prompt", "answer"]].astype(str).to_numpy().tolist()
    return "<h2>Comparisons without a verdict</h2>" + _rows(["A", "B", "prompt", "what the judge said"], rows)
