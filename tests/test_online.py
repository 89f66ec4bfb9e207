"""Online DPO: what is judged, paired and trained on, which reference each round has, and the counting."""

import sys
from pathlib import Path

import pandas as pd
import pytest
import torch

from dpo_tutorial.training import loop, models, online, records

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tools" / "record_groups"))
import nb13

TINY = online.ONLINE_RUN | {"labels": 16, "rounds": 2, "warmup_steps": 0, "measure_at": [], "eval_prompts": 8}


@pytest.fixture(scope="module")
def lab_lm():
    return models.load("lab_lm", device="cpu")


@pytest.fixture(scope="module")
def judged(lab_lm):
    prompts = pd.DataFrame({"prompt_id": ["a", "b"], "prompt": ["I watched this film", "This is the"]})
    return online.candidates(*lab_lm, prompts, bonus=0.1, seed=3)


def test_the_judge_adds_its_bonus_to_the_true_reward():
    prompts, texts = ["I saw this"] * 2, [" film. Great, wonderful.", " film. Awful."]
    true = online.judge(prompts, texts, bonus=0.0)
    assert true[0] > true[1] and (0 < true).all() and (true < 1).all()
    assert online.judge(prompts, texts, bonus=0.5) - true == pytest.approx([1.5, 1.0])


def test_candidates_keep_the_tokens_that_were_sampled(lab_lm, judged):
    _, tokenizer = lab_lm
    assert len(judged) == 4 and list(judged["prompt_id"]) == ["a", "a", "b", "b"]
    assert tokenizer.batch_decode(list(judged["ids"]), skip_special_tokens=True) == list(judged["response"])
    words = judged["response"].str.split().str.len()
    assert (judged["score"] - judged["true_score"]).to_numpy() == pytest.approx(0.1 * words.to_numpy())


def test_a_pair_has_the_judges_favourite_first_and_twins_make_none(judged):
    pairs = online.pairs_of(judged)
    assert len(pairs) == 2 and (pairs["score_chosen"] > pairs["score_rejected"]).all()
    twins = judged.assign(response="the same")
    assert len(online.pairs_of(twins)) == 0


def test_examples_are_prompt_and_sampled_tokens(lab_lm, judged):
    _, tokenizer = lab_lm
    pairs = online.pairs_of(judged)
    first = online.examples_of(tokenizer, pairs)[0]
    assert first["chosen_ids"] == pairs["ids_chosen"][0] and first["rejected_ids"] == pairs["ids_rejected"][0]
    assert tokenizer.decode(first["prompt_ids"]) == pairs["prompt"][0]


def watch(monkeypatch, **change):
    """Who wrote, and with whom the loss compared, in each round of a tiny run: distances to the start's weights."""
    seen = {"writer": [], "reference": []}
    start, _ = models.load("lab_lm", device="cpu")
    original = online.train_round

    def spy(policy, reference, tokenizer, writer, prompts, config, *, number):
        for name, model in (("writer", writer), ("reference", reference)):
            gaps = [(a - b).detach().abs().max() for a, b in zip(model.parameters(), start.parameters(), strict=True)]
            seen[name].append(float(torch.stack(gaps).max()))
        return original(policy, reference, tokenizer, writer, prompts, config, number=number)

    monkeypatch.setattr(online, "train_round", spy)
    *_, rows = online.run(TINY | change)
    return seen, rows


def test_online_the_policy_writes_and_the_reference_stays(monkeypatch):
    seen, rows = watch(monkeypatch)
    assert seen["writer"][0] == 0 < seen["writer"][1] and seen["reference"] == [0, 0]
    assert 12 <= sum(row["labels"] for row in rows) <= 16 and all(row["agreement"] == 1 for row in rows)
    assert rows[0]["logratio"] == pytest.approx(0, abs=1e-4) and rows[1]["logratio"] != 0


def test_off_policy_the_start_writes(monkeypatch):
    seen, _ = watch(monkeypatch, writer="start")
    assert seen["writer"] == [0, 0]


def test_a_moved_reference_is_the_policy_of_the_round_before(monkeypatch):
    seen, rows = watch(monkeypatch, reference="moved")
    assert seen["reference"][0] == 0 < seen["reference"][1] == seen["writer"][1]
    assert rows[1]["logratio"] == pytest.approx(0, abs=1e-4)


def test_one_round_is_offline_dpo(lab_lm):
    """The same weights as ``train_dpo`` on pairs that were all made beforehand."""
    config = TINY | {"rounds": 1}
    policy, _, tokenizer, rows = online.run(config)
    other, _ = models.load("lab_lm", device="cpu")
    start, pad = loop.frozen_copy(other), {"pad_token_id": tokenizer.pad_token_id}
    seed = online.round_seed(config["seed"], 1)
    pairs = online.pairs_of(online.candidates(start, tokenizer, online.prompts_of(config)[0], bonus=0.0, seed=seed))
    examples = online.examples_of(tokenizer, pairs)
    order = loop.batch_order(len(examples), batch_size=8, epochs=1, seed=seed)
    ref_logps = loop.reference_logps(start, examples, **pad)
    loop.train_dpo(other, examples, ref_logps, order=order, beta=0.1, learning_rate=5e-4, **pad)
    for mine, theirs in zip(policy.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs)
    lengths = [len(e[side]) + len(e["prompt_ids"]) for e in examples for side in ("chosen_ids", "rejected_ids")]
    assert rows[0]["forward"] == rows[0]["trained"] == sum(lengths)


def test_prompts_are_used_once_and_depend_on_the_seed():
    parts = online.prompts_of(TINY)
    ids = pd.concat(parts)["prompt_id"]
    assert [len(part) for part in parts] == [8, 8] and ids.is_unique
    assert set(ids) != set(pd.concat(online.prompts_of(TINY | {"seed": 1}))["prompt_id"])


def test_unknown_choices_are_refused():
    with pytest.raises(ValueError, match="writer is 'judge'; accepted are 'policy', 'start'"):
        online.run(TINY | {"writer": "judge"})
    with pytest.raises(ValueError, match="reference is 'none'"):
        online.run(TINY | {"reference": "none"})


def test_every_configuration_has_its_record_and_no_other_is_there():
    names = {records.path_of("nb13", config).name for config in nb13.runs()}
    assert {path.name for path in records.RECORDS.glob("nb13-*.json")} == names
