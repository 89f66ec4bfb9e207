"""The reviews' split, the true reward, and the making of pairs; what ships is compared with what made it."""

import hashlib
import json
import math
import sys

import numpy as np
import pandas as pd
import pytest

from dpo_tutorial.data import construct, pairs, scoring

ROOT = scoring.DATA_DIR.parent
sys.path.insert(0, str(ROOT / "tools"))
import make_data  # noqa: E402

PROMPTS = pd.DataFrame({"prompt_id": ["a", "b"], "prompt": ["A film", "The cast"]})
RESPONSES = [["w", "x", "y", "z"], ["p", "p", "q", "r"]]
SCORES = [[0.1, 0.9, 0.5, 0.4], [0.7, 0.7, 0.2, 0.7]]


def test_the_split_is_the_committed_one_and_disjoint():
    assert scoring.split_summary() == json.loads((scoring.DATA_DIR / "split.json").read_text())
    frame = scoring.load_reviews()
    assert frame["text"].is_unique and set(frame["part"]) == set(scoring.PARTS)


def test_an_unknown_part_is_refused():
    with pytest.raises(ValueError, match="'test'; accepted are classifier"):
        scoring.reviews("test")


def test_the_shipped_classifier_is_the_fitted_one_and_accurate_on_held_out_reviews():
    shipped, fitted = scoring.load_classifier(), scoring.fit_classifier()
    heldout = scoring.reviews("prompts_heldout", "imdb")
    texts = list(heldout["text"])[:300]
    assert np.abs(shipped.logits(texts) - fitted.logits(texts)).max() < 1e-3
    assert 0.86 < shipped.accuracy(heldout) < 0.92
    assert shipped.scores(["a wonderful, moving film"])[0] > 0.8 > 0.2 > shipped.scores(["a dull, awful mess"])[0]


def test_widest_pairs_best_against_worst():
    frame = construct.pairs_from_scores(PROMPTS, RESPONSES, SCORES, policy="widest", source="test")
    assert frame[["prompt", "chosen", "rejected", "score_chosen", "score_rejected"]].values.tolist() == [
        ["A film", "x", "w", 0.9, 0.1],
        ["The cast", "r", "q", 0.7, 0.2],
    ]


@pytest.mark.parametrize(("policy", "count"), [("all", 6 + 3), ("adjacent", 3 + 1)])
def test_pair_policies_leave_out_equal_scores(policy, count):
    frame = construct.pairs_from_scores(PROMPTS, RESPONSES, SCORES, policy=policy, source="test")
    assert len(frame) == count
    assert (frame["score_chosen"] > frame["score_rejected"]).all() and (frame["chosen"] != frame["rejected"]).all()


def test_margin_threshold_and_flip_rate():
    options = {"policy": "all", "source": "test"}
    wide = construct.pairs_from_scores(PROMPTS, RESPONSES, SCORES, min_margin=0.45, **options)
    assert (wide["score_chosen"] - wide["score_rejected"] > 0.45).all() and len(wide) == 2 + 3
    flipped = construct.pairs_from_scores(PROMPTS, RESPONSES, SCORES, flip_rate=1.0, **options)
    assert (flipped["score_chosen"] < flipped["score_rejected"]).all()
    many = pd.concat([PROMPTS.head(1)] * 2000)
    some = construct.pairs_from_scores(many, [["a", "b"]] * 2000, [[0, 1]] * 2000, flip_rate=0.3, seed=1, **options)
    assert 0.26 < (some["score_chosen"] < some["score_rejected"]).mean() < 0.34
    with pytest.raises(ValueError, match=r"flip_rate is 1\.5"):
        construct.pairs_from_scores(PROMPTS, RESPONSES, SCORES, flip_rate=1.5, **options)
    with pytest.raises(ValueError, match="'best'; accepted"):
        construct.pairs_from_scores(PROMPTS, RESPONSES, SCORES, policy="best", source="test")


def test_split_by_prompt_keeps_prompts_apart():
    frame = pd.DataFrame({"prompt_id": list("aabbccdd"), "prompt": list("aabbccdd")})
    train, heldout = construct.split_by_prompt(frame, heldout=0.25, seed=3)
    assert len(train) == 6 and len(heldout) == 2 and not set(train["prompt_id"]) & set(heldout["prompt_id"])


def test_whole_sentences():
    assert construct.whole_sentences("One two three four five. Six seven") == "One two three four five."
    assert construct.whole_sentences("Mr. Bean is on his way to") == "Mr. Bean is on his way to"
    assert construct.whole_sentences('He said "it was all right." Then he') == 'He said "it was all right."'


def test_config_hash_sees_every_change_and_refuses_nan():
    base = {"beta": 0.1, "seed": 0}
    assert len({construct.config_hash(base), construct.config_hash({**base, "seed": 1})}) == 2
    with pytest.raises(ValueError):
        construct.config_hash({"beta": math.nan})


def test_prompts_come_from_their_part_and_are_different():
    train = construct.review_prompts("prompts_train", 50, words=5)
    heldout = construct.review_prompts("prompts_heldout", 50, words=5)
    assert not set(train["prompt"]) & set(heldout["prompt"]) and train["prompt"].is_unique
    assert all(len(prompt.split()) == 5 for prompt in train["prompt"])
    with pytest.raises(ValueError, match=r"gives .* prompts of 5 words, 100000 were asked for"):
        construct.review_prompts("prompts_train", 100_000, words=5)


@pytest.mark.parametrize(("card", "config"), [("card.json", make_data.PAIRS), ("lab_card.json", make_data.LAB_PAIRS)])
def test_the_shipped_pairs_are_those_of_their_card_and_of_the_current_configuration(card, config):
    card = json.loads((scoring.DATA_DIR / "pairs" / card).read_text())
    assert card["config_hash"] == construct.config_hash(config) == construct.config_hash(card["config"])
    for name, facts in card["files"].items():
        path = scoring.DATA_DIR / "pairs" / name
        assert hashlib.sha256(path.read_bytes()).hexdigest() == facts["sha256"]
        frame = pairs.load(path)
        assert len(frame) == facts["pairs"] and (frame["score_chosen"] > frame["score_rejected"]).all()
        part = "train" if "train" in name else "heldout"
        known = construct.review_prompts(f"prompts_{part}", config["prompts"][part], words=config["prompt_words"])
        assert set(frame["prompt_id"]) <= set(known["prompt_id"])


def test_the_scores_in_the_shipped_pairs_are_the_true_rewards():
    frame = pairs.load(scoring.DATA_DIR / "pairs" / "sentiment_heldout.jsonl")
    score = scoring.load_classifier().scores
    for side in ("chosen", "rejected"):
        assert np.abs(score(list(frame["prompt"] + frame[side])) - frame[f"score_{side}"]).max() < 1e-3


def test_the_sft_adapter_is_that_of_its_card():
    card = json.loads((scoring.DATA_DIR / "sft_adapter" / "card.json").read_text())
    assert card["config_hash"] == construct.config_hash(make_data.SFT)
    weights = scoring.DATA_DIR / "sft_adapter" / "adapter_model.safetensors"
    assert hashlib.sha256(weights.read_bytes()).hexdigest() == card["sha256"]
