"""Filters: what each keeps and drops, that nothing is dropped silently, and that they are fast enough."""

import functools
import random
import time

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dpo_tutorial.data import filters

partial = functools.partial


def frame(*triples, **columns):
    rows = pd.DataFrame(triples, columns=["prompt", "chosen", "rejected"], dtype=object)
    return rows.assign(**columns)


def some(n, seed=0, length=30):
    rng = random.Random(seed)
    vocabulary = ["".join(rng.choices("abcdefghijklmnopqrstuvwxyz", k=rng.randint(2, 9))) for _ in range(3000)]

    def text(words):
        return " ".join(rng.choices(vocabulary, k=words))

    rows = [(text(8), text(rng.randint(5, length)), text(rng.randint(5, length))) for _ in range(n)]
    columns = {"prompt_id": [str(k) for k in range(n)], "source": rng.choices("abc", k=n)}
    columns |= {"votes_chosen": rng.choices([2, 3], k=n), "votes_rejected": rng.choices([0, 1], k=n)}
    columns |= {"score_chosen": np.linspace(1, 2, n), "score_rejected": np.linspace(0.5, 1.9, n)}
    return frame(*rows, **columns, chosen_position=rng.choices([1, 2], k=n))


def encode(texts):
    return [[ord(c) for c in text] for text in texts]


ALL = [
    partial(filters.min_agreement, threshold=0.7),
    partial(filters.min_margin, margin=0.3),
    partial(filters.min_ratio, ratio=1.5),
    filters.drop_empty,
    filters.drop_identical,
    partial(filters.drop_near_identical, similarity=0.9),
    filters.drop_duplicates,
    filters.drop_contradictions,
    filters.drop_near_duplicates,
    partial(filters.drop_leaks, test=some(20, seed=1), similarity=0.8),
    partial(filters.drop_truncated, encode=encode, max_length=128),
    filters.keep_script,
    partial(filters.max_length_ratio, ratio=2),
    partial(filters.balance_length, seed=0),
    partial(filters.balance_position, seed=0),
    partial(filters.limit_share, share=0.4, seed=0),
]
NAMES = [getattr(step, "func", step).__name__ for step in ALL]


@pytest.mark.parametrize("step", ALL, ids=NAMES)
def test_filters_are_pure_and_count_what_they_drop(step):
    pairs = some(300)
    pairs.index = pairs.index * 2 + 5
    before = pairs.copy(deep=True)
    kept, reasons = step(pairs)
    assert pairs.equals(before) and len(kept) + reasons.total() == len(pairs)
    assert kept.equals(pairs.loc[kept.index]) and list(kept.index) == sorted(kept.index)
    assert all(isinstance(reason, str) and n > 0 for reason, n in reasons.items())
    again, none = step(kept)
    assert len(again) == len(kept) and not none  # what passed once passes again
    empty, nothing = step(pairs.iloc[:0])
    assert not len(empty) and not nothing


def test_agreement_of_three_annotators():
    pairs = frame(*[("p", "c", "r")] * 5, votes_chosen=[3, 2, 2, 1, 0], votes_rejected=[0, 1, 0, 0, 0])
    kept, reasons = filters.min_agreement(pairs, threshold=0.7)
    assert list(kept.index) == [0, 2, 3] and reasons == {"agreement below 0.7": 1, "no votes": 1}
    kept, _ = filters.min_agreement(pairs.assign(votes_tied=[0, 0, 1, 2, 0]), threshold=0.7)
    assert list(kept.index) == [0]  # ties are votes too
    kept, _ = filters.min_agreement(pairs, threshold=2 / 3)
    assert list(kept.index) == [0, 1, 2, 3]  # two of three reach two thirds, whatever the rounding


def test_a_ratio_depends_on_where_zero_is_and_a_margin_does_not():
    pairs = frame(*[("p", "c", "r")] * 4, score_chosen=[3.0, 1.5, 0.5, np.nan], score_rejected=[2.0, 0.5, -1.0, 0.0])
    kept, reasons = filters.min_ratio(pairs, ratio=1.5)
    assert list(kept.index) == [0, 1]
    assert reasons == {"a score of zero or less has no ratio": 1, "no score": 1}
    shifted = pairs.assign(score_chosen=pairs["score_chosen"] + 5, score_rejected=pairs["score_rejected"] + 5)
    assert list(filters.min_ratio(shifted, ratio=1.5)[0].index) == []
    for scores in (pairs, shifted):
        assert list(filters.min_margin(scores, margin=1.0)[0].index) == [0, 1, 2]


def test_identical_and_near_identical():
    pairs = frame(
        ("p", "A  good film.", "a good film."),
        ("p", "x" * 20, "x" * 19 + "y"),
        ("p", "good", "bad"),
        ("p", "ﬁne", "fine"),
    )
    assert list(filters.drop_identical(pairs)[0].index) == [1, 2]
    assert list(filters.drop_near_identical(pairs, similarity=0.95)[0].index) == [0, 2, 3]
    similarity = filters.similarities(pairs)
    assert similarity[1] == pytest.approx(0.95) and similarity.shape == (4,)


def test_duplicates_and_contradictions():
    pairs = frame(("p", "a", "b"), ("P ", "A", "b"), ("p", "b", "a"), ("q", "a", "b"))
    assert list(filters.drop_duplicates(pairs)[0].index) == [0, 2, 3]
    kept, reasons = filters.drop_contradictions(pairs)
    assert list(kept.index) == [3] and reasons == {"contradiction": 3}


def test_near_duplicates_are_found_and_others_are_not():
    pairs = some(400, length=60)
    changed = pairs.iloc[:40].assign(rejected=[text + " indeed" for text in pairs["rejected"].iloc[:40]])
    both = pd.concat([pairs, changed], ignore_index=True)
    kept, reasons = filters.drop_near_duplicates(both)
    assert len(set(range(400)) - set(kept.index)) == 0  # the first of each stays
    assert reasons["near duplicate"] >= 39
    assert filters.near_matches(["a b c d e", "x y z"], ["a b c d e f"], similarity=0.7).tolist() == [True, False]


def test_texts_of_one_template_take_no_time_squared():
    """Every text overlaps with every other by a half: candidates abound, near duplicates are few."""
    rng = random.Random(0)
    template = " ".join(f"fixed{k}" for k in range(60))
    texts = [f"{template} " + " ".join(f"own{rng.randrange(10**6)}" for _ in range(25)) for _ in range(1500)]
    texts[700] = texts[3] + " more"
    start = time.process_time()
    found = filters.near_matches(texts, similarity=0.8)
    assert np.flatnonzero(found).tolist() == [700] and time.process_time() - start < 10


def test_leaks():
    long = "a response of quite some words that nobody writes twice"
    test = frame(("secret prompt of the test set", long, "short"))
    train = frame(
        ("Secret  prompt of the test set", "x", "y"),
        ("another", long.upper(), "y"),
        ("another", "x", "short"),  # short responses are shared by accident
        ("secret prompt of the test set !!", "x", "y"),
    )
    kept, reasons = filters.drop_leaks(train, test)
    assert list(kept.index) == [2, 3]
    assert reasons == {"prompt is in the test set": 1, "response is in the test set": 1}
    assert list(filters.drop_leaks(train, test, similarity=0.8)[0].index) == [2]


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.tuples(*[st.text("ab é", min_size=1, max_size=12)] * 3), min_size=1, max_size=6), st.integers(1, 20)
)
def test_truncation_by_the_definition(triples, max_length):
    """Against the definition, encoding everything: a tokenizer of words and spaces, at most one token per byte."""

    def words(texts):
        import re

        return [[hash(token) for token in re.findall(r"\S+|\s", text)] for text in texts]

    pairs = frame(*triples)
    kept, reasons = filters.drop_truncated(pairs, encode=words, max_length=max_length)
    expected = []
    for k, (prompt, chosen, rejected) in enumerate(triples):
        room = max_length - len(words([prompt])[0])
        a, b = words([chosen, rejected])
        if room > 0 and a[:room] != b[:room]:
            expected.append(k)
    # Equal texts are equal at any length; they are another filter's business, and short ones are not looked at.
    different = [k for k in range(len(triples)) if triples[k][1] != triples[k][2]]
    assert [k for k in kept.index if k in different] == [k for k in expected if k in different]
    assert len(kept) + reasons.total() == len(pairs)


def test_scripts():
    pairs = frame(
        ("p", "plain", "naïve café"), ("p", "слово и дело", "plain"), ("p", "1 + 1", "漢字"), ("p", "a б", "x")
    )
    assert list(filters.keep_script(pairs)[0].index) == [0]
    assert filters.keep_script(pairs)[1]["chosen is not LATIN"] == 2
    assert list(filters.keep_script(pairs, share=0.5)[0].index) == [0, 3]


def test_balances():
    rng = np.random.default_rng(0)
    lengths = rng.integers(1, 20, (500, 2))
    pairs = frame(
        *[("p", "w " * (a + 3), "w " * b) for a, b in lengths], source=["a"] * 400 + ["b"] * 60 + ["c"] * 40
    )
    kept, _ = filters.balance_length(pairs, seed=0)
    chosen, rejected = filters.word_counts(kept)
    assert (chosen > rejected).sum() == (chosen < rejected).sum() > 0
    assert (chosen == rejected).sum() == np.equal(*filters.word_counts(pairs)).sum()
    kept, _ = filters.limit_share(pairs, share=0.5, seed=0)
    assert kept["source"].value_counts().to_dict() == {"a": 100, "b": 60, "c": 40}
    assert not kept.equals(filters.limit_share(pairs, share=0.5, seed=1)[0])
    kept, reasons = filters.balance_position(pairs.assign(chosen_position=[1] * 300 + [2] * 200), seed=0)
    assert kept["chosen_position"].value_counts().to_dict() == {1: 200, 2: 200} and reasons.total() == 100


def test_conversations_are_filtered_by_their_texts():
    say = lambda role, text: [{"role": role, "content": text}]  # noqa: E731
    pairs = frame((say("user", "p"), say("assistant", "Same."), say("assistant", "same.")))
    assert not len(filters.drop_identical(pairs)[0]) and filters.as_text(say("user", "p")) == "p"


def test_a_chain_of_filters_says_what_each_step_cost():
    pairs = some(200)
    kept, table = filters.run(pairs, [filters.drop_duplicates, partial(filters.min_margin, margin=0.3)])
    assert list(table["step"]) == ["drop_duplicates", "min_margin"] and list(table["left"]) == [200, len(kept)]
    assert table["dropped"].sum() == 200 - len(kept)


@pytest.mark.parametrize(
    ("step", "words"),
    [
        (partial(filters.min_agreement, threshold=70), "threshold is 70; it is a share"),
        (partial(filters.drop_near_identical, similarity=0), "similarity is 0"),
        (partial(filters.max_length_ratio, ratio=0.5), "ratio is 0.5"),
        (partial(filters.limit_share, share=0.2, seed=0), "source has 3 values; a share of 0.2 needs 5"),
        (partial(filters.balance_position, column="source", seed=0), "source is '[abc]' in row 0; accepted are"),
        (
            partial(filters.balance_position, column="nothing", seed=0),
            "no nothing; it has .*prompt.*leave this filter out",
        ),
        (partial(filters.drop_truncated, encode=encode, max_length=0), "max_length is 0"),
    ],
)
def test_errors_say_what_is_accepted(step, words):
    with pytest.raises(ValueError, match=words):
        step(some(20))


@pytest.mark.parametrize("step", ALL, ids=NAMES)
def test_time_grows_with_the_rows_and_no_faster(step):
    """Four times the rows take at most some sixteen times as long: nothing compares every row with every other."""

    def seconds(pairs):
        start = time.process_time()
        step(pairs)
        return time.process_time() - start

    seconds(some(50))
    small, large = seconds(some(1000)), seconds(some(4000))
    assert large < 16 * small + 0.5
