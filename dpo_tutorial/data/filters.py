"""Filters: pure functions from pairs to the rows kept and a count per reason of the rows dropped.

Every filter takes a DataFrame of pairs (texts or lists of messages), leaves it as it is, and returns ``(kept,
reasons)``: rows in their order with their index, and a Counter with ``len(frame) - len(kept)`` in all. What a filter
cannot judge (no votes, no score) it drops under a reason of its own; nothing is dropped silently.
"""

import hashlib
import re
import unicodedata
import zlib
from collections import Counter, deque
from collections.abc import Callable

import numpy as np
import pandas as pd

Filtered = tuple[pd.DataFrame, Counter]
# Bands and rows of the MinHash index: texts that overlap by .8 meet in a band with 99 %, by .5 with 32 %.
_BANDS, _ROWS = 12, 5


def min_agreement(frame: pd.DataFrame, *, threshold: float) -> Filtered:
    """Keep pairs whose chosen response got at least ``threshold`` of all votes, ties among them.

    Votes come from ``votes_chosen``, ``votes_rejected`` and, where present, ``votes_tied``.

    >>> pairs = pd.DataFrame({"votes_chosen": [3, 2], "votes_rejected": [0, 1]})
    >>> [len(min_agreement(pairs, threshold=share)[0]) for share in (0.6, 0.7)]
    [2, 1]
    """
    _need(frame, "votes_chosen", "votes_rejected")
    _share("threshold", threshold)
    tied = _numbers(frame, "votes_tied") if "votes_tied" in frame else 0
    chosen = _numbers(frame, "votes_chosen")
    votes = chosen + _numbers(frame, "votes_rejected") + np.nan_to_num(tied)
    with np.errstate(invalid="ignore", divide="ignore"):
        low = chosen / votes < threshold - 1e-9
    return _drop(frame, {"no votes": ~(votes > 0), f"agreement below {threshold:g}": low})


def min_margin(frame: pd.DataFrame, *, margin: float) -> Filtered:
    """Keep pairs whose chosen response scores at least ``margin`` more than the rejected one."""
    chosen, rejected = _scores(frame)
    low = chosen - rejected < margin
    return _drop(frame, {"no score": np.isnan(chosen - rejected), f"margin below {margin:g}": low})


def min_ratio(frame: pd.DataFrame, *, ratio: float) -> Filtered:
    """Keep pairs whose chosen response scores at least ``ratio`` times the rejected one.

    A ratio needs a scale with a true zero. Rewards of the Bradley-Terry kind have none: a constant added to all
    of them changes nothing but every ratio. Scores that are not positive are dropped under a reason of their own.
    """
    chosen, rejected = _scores(frame)
    sign = (chosen <= 0) | (rejected <= 0)
    low = chosen < ratio * rejected
    reasons = {"no score": np.isnan(chosen - rejected), "a score of zero or less has no ratio": sign}
    return _drop(frame, reasons | {f"ratio below {ratio:g}": low})


def drop_empty(frame: pd.DataFrame) -> Filtered:
    """Drop pairs with a text in which nothing is to be seen."""
    texts = _texts(frame)
    return _drop(frame, {f"{name} is empty": [not normal(t) for t in texts[name]] for name in texts})


def drop_identical(frame: pd.DataFrame) -> Filtered:
    """Drop pairs whose responses are equal but for case, spaces and Unicode form."""
    texts = _texts(frame, "chosen", "rejected")
    same = [normal(a) == normal(b) for a, b in zip(texts["chosen"], texts["rejected"], strict=True)]
    return _drop(frame, {"identical responses": same})


def drop_near_identical(frame: pd.DataFrame, *, similarity: float) -> Filtered:
    """Drop pairs whose responses are at least ``similarity`` alike, 0 to 1 (:func:`similarities`)."""
    _share("similarity", similarity)
    return _drop(frame, {f"responses {similarity:g} similar": similarities(frame) >= similarity})


def similarities(frame: pd.DataFrame) -> np.ndarray:
    """(N,) how alike chosen and rejected are: twice their longest common subsequence over both lengths.

    This is rapidfuzz's ``ratio``, from 0 to 1.
    """
    from rapidfuzz import fuzz, process

    texts = _texts(frame, "chosen", "rejected")
    if not len(frame):
        return np.zeros(0)
    return process.cpdist(texts["chosen"], texts["rejected"], scorer=fuzz.ratio, dtype=np.float32) / np.float32(100)


def drop_duplicates(frame: pd.DataFrame) -> Filtered:
    """Keep the first of pairs with the same prompt, chosen and rejected (but for case, spaces, Unicode form)."""
    keys = pd.Series(list(zip(*_keys(frame).values(), strict=True)), dtype=object)
    return _drop(frame, {"duplicate": keys.duplicated().to_numpy()})


def drop_contradictions(frame: pd.DataFrame) -> Filtered:
    """Drop pairs whose prompt and responses occur with the opposite label too: all of them, on both sides."""
    keys = list(zip(*_keys(frame).values(), strict=True))
    seen = set(keys)
    return _drop(frame, {"contradiction": [a != b and (p, b, a) in seen for p, a, b in keys]})


def drop_near_duplicates(frame: pd.DataFrame, *, similarity: float = 0.8) -> Filtered:
    """Keep the first of pairs whose runs of three words overlap by at least ``similarity`` (Jaccard).

    Compared is prompt, chosen and rejected as one text. Candidates come from datasketch's MinHash (at .8
    one in a hundred is missed, below .5 it is of no use) and are then compared exactly.
    """
    _share("similarity", similarity)
    texts = [" ".join(parts) for parts in zip(*_texts(frame).values(), strict=True)]
    return _drop(frame, {"near duplicate": near_matches(texts, similarity=similarity)})


def near_matches(texts: list[str], references: list[str] | None = None, *, similarity: float) -> np.ndarray:
    """(N,) which texts nearly repeat a reference; without references, which nearly repeat an earlier text kept."""
    _share("similarity", similarity)
    own = references is None
    everything = texts if own else [*references, *texts]
    first = 0 if own else len(references)
    sketches = _sketches(everything)
    # Which texts share a band with which: for every band, the texts whose band occurs more than once, by group.
    groups = [[] for _ in everything]
    for band in range(_BANDS):
        part = np.ascontiguousarray(sketches[:, band * _ROWS : (band + 1) * _ROWS])
        keys = part.view(np.dtype((np.void, part.itemsize * _ROWS))).ravel()
        _, codes, counts = np.unique(keys, return_inverse=True, return_counts=True)
        for k in np.flatnonzero(counts[codes] > 1):
            groups[k].append((band, int(codes[k])))
    kept, found = {}, np.zeros(len(everything), dtype=bool)
    for k, mine in enumerate(groups):
        if k >= first:
            others = sorted({other for group in mine for other in kept.get(group, ())})
            found[k] = bool(others) and _repeats(k, np.array(others), everything, sketches, similarity)
        if (own and not found[k]) or k < first:
            for group in mine:
                kept.setdefault(group, deque(maxlen=50)).append(k)
    return found[first:]


def _sketches(texts: list[str]) -> np.ndarray:
    """(N, bands x rows) MinHash values of the texts' runs of three words."""
    from datasketch import MinHash

    made = MinHash.generator(map(_shingles, texts), num_perm=_BANDS * _ROWS, hashfunc=zlib.crc32)
    values = [sketch.hashvalues.astype(np.uint32) for sketch in made]
    return np.stack(values) if values else np.zeros((0, _BANDS * _ROWS), dtype=np.uint32)


def _repeats(k: int, others: np.ndarray, texts: list[str], sketches: np.ndarray, similarity: float) -> bool:
    """Whether text ``k`` overlaps with one of ``others``: sketches rule most out, the rest are compared exactly."""
    estimate = (sketches[others] == sketches[k]).mean(axis=1)
    order = np.argsort(-estimate, kind="stable")[:5]  # texts of one template have hundreds of others
    likely = others[order[estimate[order] >= similarity - 0.25]]  # four standard errors of the estimate
    own = _shingles(texts[k]) if len(likely) else set()
    return any(_jaccard(own, _shingles(texts[other])) >= similarity for other in likely)


def drop_leaks(frame: pd.DataFrame, test: pd.DataFrame, *, similarity: float | None = None) -> Filtered:
    """Drop training pairs whose prompt, or a response with its prompt, stands in ``test``.

    Args:
        frame: the training pairs.
        test: the pairs that must stay unseen.
        similarity: also drop prompts that nearly repeat one of the test's (as in :func:`near_matches`).

    Responses of fewer than eight words are not compared: they are shared by accident.
    """
    unseen = {normal(t) for t in _texts(test, "prompt")["prompt"]}
    prompts = [normal(t) for t in _texts(frame, "prompt")["prompt"]]
    reasons = {"prompt is in the test set": [p in unseen for p in prompts]}
    answers = {normal(t) for values in _texts(test, "chosen", "rejected").values() for t in values}
    answers = {text for text in answers if len(text.split()) >= 8}
    own = _texts(frame, "chosen", "rejected")
    reasons["response is in the test set"] = [
        normal(a) in answers or normal(b) in answers for a, b in zip(own["chosen"], own["rejected"], strict=True)
    ]
    if similarity is not None:
        _share("similarity", similarity)
        reasons["prompt is nearly in the test set"] = near_matches(prompts, sorted(unseen), similarity=similarity)
    return _drop(frame, reasons)


def drop_truncated(frame: pd.DataFrame, *, encode: Callable, max_length: int) -> Filtered:
    """Drop pairs that teach nothing at ``max_length`` tokens of prompt and response: the difference is cut off.

    Args:
        frame: the pairs.
        encode: from a list of texts to a list of lists of token ids, without special tokens; a text may not have
            more tokens than bytes (no tokenizer of a language model does that), which spares most pairs the work.
        max_length: tokens of prompt and response together that are kept, from the start.
    """
    if not (isinstance(max_length, int) and max_length > 0):
        raise ValueError(f"max_length is {max_length!r}; it is a number of tokens, 1 or more")
    texts = _texts(frame)
    shared = np.array([_shared_bytes(a, b) for a, b in zip(texts["chosen"], texts["rejected"], strict=True)], int)
    reach = (
        np.array([len(text.encode("utf-8", "replace")) for text in texts["prompt"]], int) + shared + 8 >= max_length
    )
    prompts = list({texts["prompt"][k]: None for k in np.flatnonzero(reach)})
    lengths = dict(zip(prompts, map(len, encode(prompts)), strict=True)) if prompts else {}
    room = np.array([max_length - lengths.get(text, 0) for text in texts["prompt"]], dtype=int)
    maybe = np.flatnonzero(reach & (room > 0) & (shared + 8 >= room))  # else the tokens differ before room ends
    equal = np.zeros(len(frame), dtype=bool)
    if len(maybe):
        sides = [encode([texts[name][k] for k in maybe]) for name in ("chosen", "rejected")]
        equal[maybe] = [a[: room[k]] == b[: room[k]] for k, a, b in zip(maybe, *sides, strict=True)]
    reasons = {f"the prompt fills {max_length} tokens": room <= 0}
    return _drop(frame, reasons | {f"equal within {max_length} tokens": equal})


def keep_script(frame: pd.DataFrame, *, script: str = "LATIN", share: float = 0.9) -> Filtered:
    """Keep pairs in which at least ``share`` of each text's letters belong to a script (as in Unicode's names).

    Scripts are named "LATIN", "CYRILLIC", "GREEK", "ARABIC", "CJK", "HANGUL" and so on. This tells scripts apart,
    not languages: French and English are both Latin. A text without letters passes.
    """
    _share("share", share)
    fits = {}

    def belongs(text: str) -> bool:
        if text.isascii() and script == "LATIN":
            return True
        counts = Counter(text)
        letters = {character: n for character, n in counts.items() if character.isalpha()}
        for character in letters.keys() - fits.keys():
            fits[character] = unicodedata.name(character, "").startswith(script)
        return sum(n for c, n in letters.items() if fits[c]) >= share * sum(letters.values())

    texts = _texts(frame)
    return _drop(frame, {f"{name} is not {script}": [not belongs(t) for t in texts[name]] for name in texts})


def max_length_ratio(frame: pd.DataFrame, *, ratio: float) -> Filtered:
    """Keep pairs whose longer response has at most ``ratio`` times the words of the shorter."""
    if not ratio >= 1:
        raise ValueError(f"ratio is {ratio}; it is 1 or more")
    chosen, rejected = word_counts(frame)
    longer, shorter = np.maximum(chosen, rejected), np.maximum(np.minimum(chosen, rejected), 1)
    return _drop(frame, {f"length ratio above {ratio:g}": longer > ratio * shorter})


def word_counts(frame: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    """(N,) and (N,): words of the chosen and of the rejected responses."""
    texts = _texts(frame, "chosen", "rejected")
    return tuple(np.array([len(text.split()) for text in texts[name]], dtype=int) for name in texts)


def balance_length(frame: pd.DataFrame, *, seed: int) -> Filtered:
    """Drop pairs at random until the chosen response is the longer one as often as the shorter one.

    Pairs of equal length (in words) stay.
    """
    chosen, rejected = word_counts(frame)
    return _balance(frame, np.sign(chosen - rejected), [1, -1], "more pairs with the longer response chosen", seed)


def balance_position(frame: pd.DataFrame, *, column: str = "chosen_position", seed: int) -> Filtered:
    """Drop pairs at random until the chosen response stood first (1) as often as second (2) before its judges."""
    _need(frame, column)
    positions = _numbers(frame, column)
    if (wrong := ~np.isin(positions, [1, 2])).any():
        row = int(np.flatnonzero(wrong)[0])
        raise ValueError(f"{column} is {frame[column].iloc[row]!r} in row {row}; accepted are 1 and 2")
    return _balance(frame, positions, [1, 2], "more pairs with one position chosen", seed)


def limit_share(frame: pd.DataFrame, *, column: str = "source", share: float, seed: int) -> Filtered:
    """Drop pairs at random until no value of ``column`` holds more than ``share`` of the rows that are left.

    Raises:
        ValueError: there are fewer values than that allows (two values cannot both stay below a half).
    """
    _need(frame, column)
    _share("share", share)
    values = frame[column].astype(object).where(frame[column].notna(), None).to_numpy()
    codes, labels = pd.factorize(values, use_na_sentinel=False)
    counts = np.bincount(codes, minlength=len(labels))
    if len(frame) and len(labels) * share < 1 - 1e-9:
        raise ValueError(f"{column} has {len(labels)} values; a share of {share:g} needs {int(np.ceil(1 / share))}")
    # The largest cap c with c <= share * sum(min(count, c)): the groups above it are cut to it.
    cap = next(
        (c for c in range(int(counts.max(initial=0)), 0, -1) if c <= share * np.minimum(counts, c).sum() + 1e-9), 0
    )
    keep = np.zeros(len(frame), dtype=bool)
    rng = np.random.default_rng(seed)
    for code in range(len(labels)):
        rows = np.flatnonzero(codes == code)
        keep[rng.permutation(rows)[:cap]] = True
    return _drop(frame, {f"a value of {column} above {share:g} of the rows": ~keep})


def run(frame: pd.DataFrame, steps: list[Callable]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Filters one after the other: ``(kept, table)`` with ``step, reason, dropped, left``.

    Args:
        frame: the pairs.
        steps: functions of a frame alone, for example ``functools.partial(min_margin, margin=0.5)``.
    """
    rows = []
    for step in steps:
        name = getattr(getattr(step, "func", step), "__name__", repr(step))
        frame, reasons = step(frame)
        rows += [(name, reason, n, len(frame)) for reason, n in reasons.items()] or [(name, "", 0, len(frame))]
    return frame, pd.DataFrame(rows, columns=["step", "reason", "dropped", "left"])


def as_text(value) -> str:
    """A text as it is; a list of messages as their contents, one below the other."""
    return value if isinstance(value, str) else "\n".join(message["content"] for message in value)


def _texts(frame: pd.DataFrame, *names: str) -> dict[str, list[str]]:
    names = names or ("prompt", "chosen", "rejected")
    _need(frame, *names)
    return {name: [as_text(value) for value in frame[name]] for name in names}


def normal(text: str) -> str:
    """A text without its case, its runs of white space, its invisible characters and its Unicode form."""
    if not text.isascii():
        text = "".join(c for c in unicodedata.normalize("NFKC", text) if unicodedata.category(c) != "Cf")
    return " ".join(text.casefold().split())


def _keys(frame: pd.DataFrame) -> dict[str, list[bytes]]:
    """Digests of the normal forms of the texts: equal where the texts are, at 16 bytes each."""
    return {name: [digest(text) for text in values] for name, values in _texts(frame).items()}


def digest(text: str) -> bytes:
    """16 bytes that are equal for texts which differ in case, spaces and Unicode form only."""
    return hashlib.blake2b(normal(text).encode("utf-8", "surrogatepass"), digest_size=16).digest()


def _shingles(text: str) -> set[bytes]:
    """The runs of three words of a text (of a shorter text, all its words), as bytes."""
    words = re.findall(r"\w+", text.casefold()) or [text]
    runs = [words[k : k + 3] for k in range(max(1, len(words) - 2))]
    return {" ".join(run).encode("utf-8", "replace") for run in runs}


def _shared_bytes(a: str, b: str) -> int:
    """Bytes of the common beginning of two texts."""
    from rapidfuzz.distance import Prefix

    return len(a[: Prefix.similarity(a, b)].encode("utf-8", "replace"))


def _jaccard(a: set, b: set) -> float:
    return len(a & b) / len(a | b)


def _numbers(frame: pd.DataFrame, name: str) -> np.ndarray:
    values = pd.to_numeric(frame[name], errors="coerce").to_numpy(dtype=float, na_value=np.nan)
    if (wrong := np.isnan(values) & frame[name].notna().to_numpy()).any():
        row = int(np.flatnonzero(wrong)[0])
        raise ValueError(f"{name} is {frame[name].iloc[row]!r} in row {row}; accepted are numbers and missing values")
    return values


def _scores(frame: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    _need(frame, "score_chosen", "score_rejected")
    return _numbers(frame, "score_chosen"), _numbers(frame, "score_rejected")


def _need(frame: pd.DataFrame, *names: str) -> None:
    if missing := [name for name in names if name not in frame]:
        has = ", ".join(map(str, frame.columns))
        raise ValueError(
            f"the frame has no {', '.join(missing)}; it has {has}; add the column, or leave this filter out"
        )


def _share(name: str, value: float) -> None:
    if not 0 < value <= 1:
        raise ValueError(f"{name} is {value}; it is a share above 0 and at most 1")


def _balance(frame: pd.DataFrame, sides: np.ndarray, two: list, reason: str, seed: int) -> Filtered:
    """Cut the more frequent of two sides, at random, to the size of the other."""
    rows = sorted((np.flatnonzero(sides == side) for side in two), key=len)
    out = np.zeros(len(frame), dtype=bool)
    out[np.random.default_rng(seed).permutation(rows[1])[len(rows[0]) :]] = True
    return _drop(frame, {reason: out})


def _drop(frame: pd.DataFrame, reasons: dict) -> Filtered:
    """Drop the rows for which a reason holds; each is counted under the first one."""
    gone, counts = np.zeros(len(frame), dtype=bool), Counter()
    for reason, holds in reasons.items():
        new = np.asarray(holds, dtype=bool) & ~gone
        if new.any():
            counts[reason] = int(new.sum())
        gone |= new
    return frame[~gone], counts
