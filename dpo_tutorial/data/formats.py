"""The formats of preference files, and how a row of each becomes ``prompt, chosen, rejected``.

``FORMATS`` lists them with the shape that comes out: ``str`` for texts, ``list`` for lists of messages. Fields that a
format does not use stay as they are.
"""

import json
import re
from collections import Counter
from collections.abc import Iterable

import pandas as pd

from dpo_tutorial.data.rows import PairsError, check_messages, check_row, check_text, prompt_id, show

FORMATS = {
    "prompt, chosen, rejected": str,
    "prompt, chosen, rejected as messages": list,
    "chosen, rejected (the prompt is their common beginning)": str,
    "chosen, rejected as messages (the prompt is their common beginning)": list,
    "prompt as text, chosen, rejected as messages": list,
    "Human/Assistant transcripts": str,
    "instruction, input, chosen, rejected": str,
    "two responses with votes": str,
}
EXPLICIT, MESSAGES, IMPLICIT, IMPLICIT_MESSAGES, TEXT_PROMPT, TRANSCRIPT, INSTRUCTION, VOTED = FORMATS
RESPONSES = (("response1", "response2"), ("response_1", "response_2"), ("response_a", "response_b"))
RESPONSES += (("output_1", "output_2"), ("output1", "output2"), ("answer1", "answer2"))
COUNTS = ("votes1", "votes2", "votes_tied")
_VOTES = {"1": 1, "2": 2, "0": 0, "a": 1, "b": 2, "tie": 0, "response1": 1, "response2": 2}
_VOTES |= {"response_1": 1, "response_2": 2, "response_a": 1, "response_b": 2}
_ASSISTANT = re.compile(r"(?:^|\n)Assistant:")


def detect(row: dict) -> str | None:
    """The format of one row, by its fields and the kinds of their values; None if it is none of ``FORMATS``."""
    if {"chosen", "rejected"} <= row.keys():
        sides = [row["chosen"], row["rejected"]]
        messages = any(isinstance(side, list) for side in sides)
        if "prompt" in row:
            return MESSAGES if isinstance(row["prompt"], list) else TEXT_PROMPT if messages else EXPLICIT
        if "instruction" in row:
            return INSTRUCTION
        if messages:
            return IMPLICIT_MESSAGES
        return TRANSCRIPT if all(isinstance(s, str) and _ASSISTANT.search(s) for s in sides) else IMPLICIT
    if _response_names(row) and row.keys() & {"prompt", "instruction"}:
        return VOTED
    return None


def majority(rows: Iterable[dict]) -> str | None:
    """The most frequent format of some rows (the first of equals), None if none has one."""
    counts = Counter(filter(None, map(detect, rows)))
    return counts.most_common(1)[0][0] if counts else None


def to_pair(row: dict, form: str | None) -> dict:
    """``row``, which should have the format ``form``, with ``prompt``, ``chosen`` and ``rejected`` in it.

    Values are checked only as far as the conversion needs it; ``rows.check_row`` does the rest.

    Raises:
        PairsError: the row cannot be read as a row of this format.
    """
    own = detect(row)
    if form not in (None, EXPLICIT, MESSAGES) and own != form:
        found = f"a row of the format {own!r}" if own else f"the fields {', '.join(map(show, list(row)[:8]))}"
        remedy = "one file holds one format: convert the row, or move it to another file"
        raise PairsError("", found, f"the format of the file's other rows, {form!r}", remedy)
    return _CONVERT[form](row) if form in _CONVERT else dict(row)


def from_votes(frame: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Pairs from a frame of two responses with votes (``external.load("pandalm")``), and the rows without a winner.

    Returns:
        ``(kept, rejected)``: the first with ``prompt_id, prompt, chosen, rejected, source``, ``votes_chosen,
        votes_rejected, votes_tied``, ``chosen_position`` (1 or 2) and the further columns; the second the rows of
        ``frame`` whose votes are tied (or that are no pair for another reason), with a column ``reason``.
    """
    kept, reasons = [], {}
    for index, row in zip(frame.index, frame.to_dict("records"), strict=True):
        row = {name: value for name, value in row.items() if not (pd.api.types.is_scalar(value) and pd.isna(value))}
        try:
            pair = to_pair(row, VOTED)
            check_row(pair, str)
        except PairsError as fault:
            reasons[index] = fault.reason
        else:
            pair.setdefault("prompt_id", prompt_id(pair["prompt"]))
            pair.setdefault("source", "votes")
            kept.append(pair)
    first = ["prompt_id", "prompt", "chosen", "rejected", "source"]
    pairs = pd.DataFrame(kept, columns=None if kept else first)
    pairs = pairs[[*first, *(name for name in pairs.columns if name not in first)]]
    return pairs, frame.loc[list(reasons)].assign(reason=list(reasons.values()))


def _implicit(row: dict) -> dict:
    """Texts that begin alike: the prompt is the common beginning, cut before its last run of white space.

    TRL cuts at the first character that differs, inside a word if need be; a prompt that ends within a word makes
    tokens that no model was trained on.
    """
    for name in ("chosen", "rejected"):
        check_text(name, row[name])
    chosen, rejected = row["chosen"], row["rejected"]
    shared = _common(chosen, rejected)
    cut = len(re.sub(r"\s+\S*$", "", chosen[:shared])) if re.search(r"\s", chosen[:shared]) else 0
    if not chosen[:cut].strip():
        raise _no_beginning(chosen, rejected)
    return row | {"prompt": chosen[:cut], "chosen": chosen[cut:], "rejected": rejected[cut:]}


def _transcript(row: dict) -> dict:
    """Transcripts: the prompt is the common beginning up to and with its last "Assistant:"."""
    chosen, rejected = row["chosen"], row["rejected"]
    shared = _common(chosen, rejected)
    ends = [match.end() for match in _ASSISTANT.finditer(chosen) if match.end() <= shared]
    if not ends:
        raise _no_beginning(chosen, rejected)
    return row | {"prompt": chosen[: ends[-1]], "chosen": chosen[ends[-1] :], "rejected": rejected[ends[-1] :]}


def _implicit_messages(row: dict) -> dict:
    """Message lists that begin alike: the prompt is the messages they share."""
    for name in ("chosen", "rejected"):
        check_messages(name, row[name])
    chosen, rejected = row["chosen"], row["rejected"]
    shared = _common(chosen, rejected)
    if not shared or shared == min(len(chosen), len(rejected)):
        raise _no_beginning(chosen, rejected)
    return row | {"prompt": chosen[:shared], "chosen": chosen[shared:], "rejected": rejected[shared:]}


def _text_prompt(row: dict) -> dict:
    """A prompt as text beside message lists: one of the messages they share, or the user's message before them."""
    check_text("prompt", row["prompt"])
    for name in ("chosen", "rejected"):
        check_messages(name, row[name])
    if row["chosen"][0] != row["rejected"][0]:
        return row | {"prompt": [{"role": "user", "content": row["prompt"]}]}
    pair = _implicit_messages(row)
    if not any(message["content"] == row["prompt"] for message in pair["prompt"]):
        accepted = "the text of a message that chosen and rejected share, or no shared message"
        raise PairsError("prompt", f"{show(row['prompt'])} is in none", accepted, "drop the field prompt")
    return pair


def _instruction(row: dict) -> dict:
    """``instruction`` and, where it is not empty, ``input`` below it, are the prompt."""
    check_text("instruction", row["instruction"])
    extra = row.get("input")
    if extra is not None and not isinstance(extra, str):
        raise PairsError("input", f"{show(extra)} is not text", "a string or null", "drop the row or write the text")
    rest = {name: value for name, value in row.items() if name not in ("instruction", "input")}
    return {"prompt": row["instruction"] + (f"\n\n{extra}" if extra and extra.strip() else "")} | rest


def _voted(row: dict) -> dict:
    """Two responses: chosen is the one with more votes; as many votes for each is a tie and no pair."""
    if "prompt" not in row:
        row = _instruction(row)
    names = _response_names(row)
    one, two, tied = _count_votes(row)
    if one == two:
        found = f"a tie: {one} votes for each response, {tied} for neither"
        raise PairsError("", found, "more votes for one response", "drop the row: it prefers nothing")
    first, second = names if one > two else names[::-1]
    rest = {name: value for name, value in row.items() if name not in (*names, *COUNTS)}
    votes = {"votes_chosen": max(one, two), "votes_rejected": min(one, two), "votes_tied": tied}
    return rest | {"chosen": row[first], "rejected": row[second], "chosen_position": 1 if one > two else 2} | votes


def _count_votes(row: dict) -> tuple[int, int, int]:
    """Votes for the first response, for the second, and for neither."""
    if {"votes1", "votes2"} <= row.keys():
        counts = [row.get(name) or 0 for name in COUNTS]
        if all(isinstance(count, int) and count >= 0 for count in counts):
            return tuple(counts)
        raise PairsError("votes1", show(counts), "counts (0, 1, 2, ...)", "correct the value")
    if isinstance(strength := row.get("preference_strength"), (int, float)):
        return int(strength < 0), int(strength > 0), int(strength == 0)
    names = sorted(name for name in row if re.fullmatch(r"(?:annotator|vote|label)_?\d*|preference|winner", name))
    votes = [(name, row[name]) for name in names]
    if isinstance(row.get("votes"), list):
        votes += [("votes", vote) for vote in row["votes"]]
    votes = [(name, vote) for name, vote in votes if vote is not None]
    counts = Counter(_vote(name, vote) for name, vote in votes)
    if not votes:
        accepted = "annotator1, annotator2, ..., or votes, preference, winner, votes1 and votes2, preference_strength"
        raise PairsError("", "no vote", accepted, "add a field with the votes, or drop the row")
    return counts[1], counts[2], counts[0]


def _vote(name: str, vote) -> int:
    text = str(vote).strip().lower() if isinstance(vote, (str, int)) and not isinstance(vote, bool) else ""
    if text not in _VOTES:
        accepted = '1 or "a" (first response), 2 or "b" (second), 0 or "tie", or null'
        raise PairsError(name, f"{show(vote)} is no vote", accepted, "correct the vote or write null")
    return _VOTES[text]


def _response_names(row: dict) -> tuple[str, str] | None:
    return next((names for names in RESPONSES if row.keys() >= set(names)), None)


def _common(a, b) -> int:
    """How many characters (messages) two texts (lists) share at their beginning."""
    return next((k for k, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def _no_beginning(chosen, rejected) -> PairsError:
    found = (
        f"missing, and chosen {_start(chosen)} and rejected {_start(rejected)} share no beginning with an end to it"
    )
    accepted = "a field prompt, or a common beginning before two different responses"
    return PairsError("prompt", found, accepted, "add the field prompt, or drop the row")


def _start(value) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return show(text[:30])


_CONVERT = {
    IMPLICIT: _implicit,
    IMPLICIT_MESSAGES: _implicit_messages,
    TEXT_PROMPT: _text_prompt,
    TRANSCRIPT: _transcript,
    INSTRUCTION: _instruction,
    VOTED: _voted,
}
