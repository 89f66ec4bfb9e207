"""The audit as one HTML page: pictures inside, no script, every text of the file escaped."""

import base64
import html

import numpy as np

from dpo_tutorial.data.audit import LIMITS, Report, printable, sentence
from dpo_tutorial.data.audit_check import Check, count, per_cent, share
from dpo_tutorial.data.filters import as_text
from dpo_tutorial.display import plots

EXAMPLES, LETTERS = 3, 400
# Nothing but this page's own styles and pictures is ever loaded, and no script runs, whatever a text holds.
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
_STYLE = """
:root { color-scheme: light; }
body { font: 16px/1.5 system-ui, sans-serif; color: #1b1b1b; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin: 2.2rem 0 .4rem; }
.file { font-family: ui-monospace, monospace; overflow-wrap: anywhere; }
.verdict { border: 2px solid #1f5fa8; border-radius: 8px; padding: .4rem 1.2rem; }
.verdict li { margin: .5rem 0; }
.remedy { color: #444; }
table { border-collapse: collapse; width: 100%; }
td, th { text-align: left; overflow-wrap: anywhere; vertical-align: top; padding: .3rem .6rem; }
tr { border-bottom: 1px solid #ddd; }
td.number { text-align: right; font-variant-numeric: tabular-nums; }
.mark { font-weight: 700; white-space: nowrap; } .found .mark { color: #a33d00; } .fine .mark { color: #1d6b38; }
img { max-width: 100%; height: auto; display: block; margin: .6rem 0; }
pre { white-space: pre-wrap; overflow-wrap: anywhere; margin: .2rem 0; font: 13px/1.45 ui-monospace, monospace; }
.pair { border-left: 3px solid #ccc; margin: .6rem 0; padding: .1rem .8rem; }
.pair b, .pair p { font-size: 13px; margin: .2rem 0; }
footer { margin-top: 2.5rem; color: #555; font-size: .9rem; }
"""


def page(report: Report) -> str:
    """The page as a string of HTML."""
    parts = [
        "<!doctype html>",
        '<html lang="en"><head><meta charset="utf-8">',
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>Audit of {_escape(report.path)}</title><style>{_STYLE}</style></head><body>",
        f'<h1>Audit of <span class="file">{_escape(report.path)}</span></h1>',
        f"<p>{_escape(report.checks[0].summary)}. Format: {_escape(str(report.format))}.</p>",
        _verdict(report),
        _overview(report),
        *_pictures(report),
        *(_examples(report, check) for check in report.findings if len(check.rows)),
        _rejected(report),
        f"<footer><p>{_escape(LIMITS)}</p><p>{count(round(report.seconds), 'second')}; classifiers and tokens on "
        f"{count(report.sampled, 'sampled pair')}.</p></footer></body></html>",
    ]
    return "\n".join(filter(None, parts))


def _escape(text: str) -> str:
    return html.escape("".join(c if c.isprintable() or c == "\n" else printable(c) for c in text))


def _verdict(report: Report) -> str:
    items = []
    for topic in report.topics[:3]:
        remedy = f'<span class="remedy">Remedy: {_escape(topic[0].remedy)}.</span>'
        items.append(f"<li>{_escape(sentence(topic))}.<br>{remedy}</li>")
    body = f"<ol>{''.join(items)}</ol>" if items else f"<p>{_escape(report.verdict[0])}</p>"
    title = "To mend first" if items else "Verdict"
    return f'<section class="verdict"><h2 style="margin-top:.6rem">{title}</h2>{body}</section>'


def _overview(report: Report) -> str:
    rows = []
    for check in report.checks:
        kind, mark = ("found", "to mend") if check.finding else ("fine", "ok")
        cells = f"<td>{_escape(check.title)}</td><td>{_escape(check.summary)}</td>"
        rows.append(f'<tr class="{kind}"><td class="mark">{mark}</td>{cells}</tr>')
    return f"<h2>All checks</h2><table>{''.join(rows)}</table>"


def _pictures(report: Report) -> list[str]:
    checks = {check.key: check for check in report.checks}
    drawn = [
        _length_picture(checks["length"], report),
        _classifier_picture(checks),
        _histogram(checks["alike"], "similarity", "similarity of chosen and rejected", np.linspace(0, 1, 51)),
        _histogram(checks.get("scores"), "margin", "score of chosen minus score of rejected", 50, zero=True),
        _token_picture(checks.get("tokens")),
    ]
    return list(filter(None, drawn))


def _picture(title: str, fig, alt: str, caption: str) -> str:
    data = base64.b64encode(plots.png(fig)).decode()
    image = f'<img alt="{html.escape(alt)}" src="data:image/png;base64,{data}">'
    return f"<h2>{_escape(title)}</h2>{image}<p>{_escape(caption)}</p>"


def _sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}."


def _length_picture(check: Check, report: Report) -> str:
    chosen, rejected = check.series["chosen"], check.series["rejected"]
    fig, (left, right) = plots.figure(1, 2)
    top = max(int(np.quantile(np.concatenate([chosen, rejected]), 0.99)), 1)
    step = -(-top // 40)  # whole words, or some bins would hold more lengths than others
    bins = np.arange(0, top + step + 1, step) - 0.5
    for role, values in (("chosen", chosen), ("rejected", rejected)):
        style = plots.line(role)
        left.hist(values, bins=bins, histtype="step", linewidth=1.8, **style)
    left.set(xlabel="words", ylabel="responses", title="Length of the responses")
    left.margins(y=0.15)
    left.legend()
    gap = np.abs(chosen - rejected)
    decided = gap > 0
    if decided.sum() >= 20:
        edges = np.unique(np.quantile(gap[decided], np.linspace(0, 1, 7)))
        group = np.clip(np.searchsorted(edges, gap, side="right") - 1, 0, max(len(edges) - 2, 0))
        ids = report.frame["prompt_id"].to_numpy()
        for k in range(max(len(edges) - 1, 1)):
            rows = decided & (group == k)
            rate = share((chosen > rejected)[rows].astype(float), ids[rows])
            if rate.n:
                error = [[rate.value - rate.low], [rate.high - rate.value]]
                right.errorbar(np.median(gap[rows]), rate.value, yerr=error, fmt="o", color="#111111", capsize=3)
    right.axhline(0.5, **plots.line("reference", label=None))
    right.set(xlabel="difference in words", ylabel="share", title="Longer response chosen", ylim=(0, 1))
    caption = (
        "Left: words per response (the longest 1 % not drawn). Right: how often the longer response is the chosen "
    )
    caption += "one, by how much longer it is, with 95 % intervals; the dotted line is one half."
    return _picture("Length", fig, f"Histograms of response lengths; {check.summary}", caption)


def _classifier_picture(checks: dict[str, Check]) -> str:
    drawn = [checks[key] for key in ("length_classifier", "word_classifier") if key in checks]
    drawn = [check for check in drawn if "rate" in check.series]
    if not drawn:
        return ""
    fig, ax = plots.figure(height=1.1 + 0.5 * len(drawn))
    for row, check in enumerate(drawn):
        rate = check.series["rate"]
        error = [[rate.value - rate.low], [rate.high - rate.value]]
        ax.errorbar(rate.value, row, xerr=error, fmt="o", color="#111111", capsize=3)
    ax.axvline(0.5, **plots.line("reference", label=None))
    ax.set_yticks(range(len(drawn)), [check.title for check in drawn])
    ax.set(xlim=(0.4, 1), ylim=(len(drawn) - 0.5, -0.5), xlabel="held-out accuracy")
    words = next((check.numbers.get("telling_words") for check in drawn if "telling_words" in check.numbers), None)
    caption = "Two classifiers that never see the prompt; guessing is right half the time (dotted line). "
    caption += "A high figure means that the labels can be had without reading. "
    if words:
        caption += f"Most telling words for chosen: {', '.join(words['chosen'])}; for rejected: "
        caption += f"{', '.join(words['rejected'])}."
    alt = "; ".join(f"{check.title}: {check.summary}" for check in drawn)
    return _picture("What the labels give away", fig, alt, caption)


def _histogram(check: Check | None, name: str, label: str, bins, *, zero: bool = False) -> str:
    if check is None or name not in check.series:
        return ""
    values = np.clip(check.series[name], -1e12, 1e12)  # what is beyond cannot be drawn
    fig, ax = plots.figure(height=2.6)
    ax.hist(values, bins=bins, color="#86a5d9", edgecolor="#173f78", linewidth=0.5)
    if zero:
        ax.axvline(0, **plots.line("reference", label=None))
    ax.set(xlabel=label, ylabel="pairs")
    return _picture(check.title, fig, f"Histogram of the {label}", _sentence(check.summary))


def _token_picture(check: Check | None) -> str:
    if check is None:
        return ""
    tokens, limit = np.sort(check.series["tokens"]), check.series["max_length"]
    fig, ax = plots.figure(height=2.6)
    ax.plot(tokens, np.arange(1, len(tokens) + 1) / len(tokens), color="#111111")
    ax.axvline(limit, **plots.line("rejected", label=f"max_length {limit}"))
    ax.set(xlabel="tokens of prompt and longer response", ylabel="share of pairs", ylim=(0, 1.02), xlim=(0, None))
    ax.legend(loc="best")
    return _picture(check.title, fig, check.summary, f"Share of pairs by length. {_sentence(check.summary)}")


def _examples(report: Report, check: Check) -> str:
    shown = []
    for k in check.rows[:EXAMPLES]:
        texts = [
            f"<b>{name}</b><pre>{_escape(_short(as_text(report.frame[name].iloc[k])))}</pre>"
            for name in ("prompt", "chosen", "rejected")
        ]
        shown.append(f'<div class="pair"><p>line {report.lines[k]}</p>{"".join(texts)}</div>')
    lead = f"{count(len(check.rows), 'pair')}; the first {len(shown)} in the file:"
    return f"<h2>Examples: {_escape(check.title.lower())}</h2><p>{_escape(lead)}</p>{''.join(shown)}"


def _short(text: str) -> str:
    return text if len(text) <= LETTERS else text[:LETTERS] + " ..."


def _rejected(report: Report) -> str:
    reasons = report.checks[0].numbers["reasons"]
    if not reasons:
        return ""
    rows = [
        f'<tr><td class="number">{row["rows"]:,}</td><td>{_escape(row["field"] or "row")}</td>'
        f'<td class="number">{row["first_line"]}</td><td>{_escape(row["first_reason"])}</td></tr>'
        for row in reasons
    ]
    head = "<tr><th>rows</th><th>field</th><th>first line</th><th>reason given there</th></tr>"
    part = per_cent(len(report.rejected) / (len(report.rejected) + len(report.frame)))
    return f"<h2>Rejected rows ({part})</h2><table>{head}{''.join(rows)}</table>"
