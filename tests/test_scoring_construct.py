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
    shipped = scoring.load_classifier()
    vocabulary = shipped.vectorizer.vocabulary_
    fitted = scoring.fit_classifier(sorted(vocabulary, key=vocabulary.get))
    heldout = scoring.reviews("prompts_heldout", "imdb")
    texts = list(heldout["text"])[:300]
    assert np.abs(shipped.logits(texts) - fitted.logits(texts)).max() < 1e-3
    assert 0.86 < shipped.accuracy(heldout) < 0.92
    assert shipped.scores(["a wonderful, moving film"])[0] > 0.8 > 0.2 > shipped.scores(["a dull, awful mess"])[0]


def test_the_shipped_terms_are_the_most_frequent_but_for_ties_at_the_cut():
    from sklearn.feature_extraction.text import CountVectorizer

    texts = scoring.reviews("classifier")["text"]
    ours = {name: value for name, value in scoring._TFIDF.items() if name in CountVectorizer().get_params()}
    counter = CountVectorizer(min_df=3, **ours).fit(texts)
    counts = np.asarray(counter.transform(texts).sum(axis=0)).ravel()
    shipped = set(scoring.load_classifier().vectorizer.vocabulary_)
    kept = np.array([term in shipped for term in counter.get_feature_names_out()])
    assert kept.sum() == len(shipped) and counts[kept].min() >= counts[~kept].max()


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


def test_picks_of_one_prompt():
    texts, scores = ["w", "x", "y", "y"], [0.1, 0.9, 0.5, 0.5]
    assert construct.picks(texts, scores, policy="widest") == [(1, 0)]
    assert construct.picks(texts, scores, policy="adjacent") in ([(1, 2), (3, 0)], [(1, 3), (2, 0)])
    assert len(construct.picks(texts, scores, policy="all")) == 5, "equal texts make no pair"
    assert construct.picks(texts, scores, policy="all", min_margin=0.45) == [(1, 0)]
    assert construct.picks([], [], policy="widest") == [] == construct.picks(["a"], [1.0], policy="widest")


PLAN = [construct.Draw("m", 0.5, 2, 7), construct.Draw("m", 1.0, 3, 7)]


def _sample(prompts, draw):
    return [[f" {prompt} at {draw.temperature} no {k}" for k in range(draw.n)] for prompt in prompts]


def test_a_sampling_plan_keeps_what_made_each_response():
    frame = construct.sample_plan(PROMPTS, PLAN, sample=_sample)
    assert len(frame) == 2 * 5 and frame["prompt_id"].tolist() == ["a"] * 5 + ["b"] * 5
    row = frame.iloc[4]
    assert row.to_dict() == {
        "prompt_id": "a", "prompt": "A film", "response": " A film at 1.0 no 2", "model": "m", "temperature": 1.0,
        "seed": 7, "number": 2,
    }  # fmt: skip
    with pytest.raises(ValueError, match="2 entries, 1 of them different"):
        construct.sample_plan(PROMPTS, [PLAN[0], PLAN[0]], sample=_sample)
    with pytest.raises(ValueError, match="another number of responses than 2"):
        construct.sample_plan(PROMPTS, PLAN, sample=lambda prompts, draw: [["x"]] * len(prompts))


def test_pairs_from_candidates_carry_the_provenance_of_both_sides(tmp_path):
    frame = construct.sample_plan(PROMPTS, PLAN, sample=_sample)
    frame["score"] = [0.1, 0.2, 0.3, 0.4, 0.5, 0.9, 0.7, 0.5, 0.3, 0.1]
    made = construct.pairs_from_candidates(frame, policy="widest", source="test")
    assert made["temperature_chosen"].tolist() == [1.0, 0.5] and made["temperature_rejected"].tolist() == [0.5, 1.0]
    assert made["number_chosen"].tolist() == [2, 0] and made["score_chosen"].tolist() == [0.5, 0.9]
    assert "response_chosen" not in made and "prompt_chosen" not in made
    pairs.save(made, tmp_path / "p.jsonl")
    loaded = pairs.load(tmp_path / "p.jsonl")
    assert all(loaded[name].tolist() == made[name].tolist() for name in made.columns)
    flipped = construct.pairs_from_candidates(frame, policy="widest", source="test", flip_rate=1.0)
    assert flipped["chosen"].tolist() == made["rejected"].tolist()
    assert flipped["temperature_chosen"].tolist() == made["temperature_rejected"].tolist()
    with pytest.raises(ValueError, match="no column score"):
        construct.pairs_from_candidates(frame.drop(columns="score"), policy="widest", source="test")


def test_both_ways_from_scores_to_pairs_agree():
    frame = pd.DataFrame(
        [("a", "A film", t, s) for t, s in zip(RESPONSES[0], SCORES[0], strict=True)]
        + [("b", "The cast", t, s) for t, s in zip(RESPONSES[1], SCORES[1], strict=True)],
        columns=["prompt_id", "prompt", "response", "score"],
    )
    for policy in construct.POLICIES:
        one = construct.pairs_from_candidates(frame, policy=policy, source="t", flip_rate=0.5, seed=3)
        two = construct.pairs_from_scores(
            PROMPTS, RESPONSES, SCORES, policy=policy, source="t", flip_rate=0.5, seed=3
        )
        assert one[list(two.columns)].equals(two)


def test_pairs_from_a_judge_leave_out_ties_and_missing_verdicts():
    frame = construct.sample_plan(PROMPTS, PLAN, sample=_sample)

    def judge(asked):
        return [None if one.prompt == "The cast" else "first" if "at 1.0" in one.first else "second" for one in asked]

    made, verdicts = construct.pairs_from_judge(frame, judge, source="judged", per_prompt=10)
    assert len(verdicts) == 20 and verdicts["verdict"].isna().sum() == 10
    mixed = [{"at 0.5" in a, "at 0.5" in b} == {True, False} for a, b in verdicts[["first", "second"]].values]
    assert len(made) == sum(mixed[:10]) == 6, "two of the same temperature: the judge contradicts itself, a tie"
    assert set(made["temperature_chosen"]) == {1.0} and set(made["temperature_rejected"]) == {0.5}


def test_facts_of_candidates():
    assert construct.twin_share(["a b c d e", "a b c d e", "zzzz"]) == pytest.approx(1 / 3)
    assert construct.twin_share(["only one"]) == 0.0
    frame = pd.DataFrame(
        {
            "prompt_id": list("aabb"),
            "response": ["Good film", "good film", "x y", "qq"],
            "score": [0.5, 0.5, 0.9, 0.3],
        }
    )
    facts = construct.candidate_facts(frame, {"good", "film"})
    assert facts == {
        "margin": pytest.approx(0.3), "twins": pytest.approx(0.5), "unknown": pytest.approx(3 / 7),
    }  # fmt: skip
