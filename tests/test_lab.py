"""The lab: one call trains, one measures; what it says about a policy that has not moved is exact."""

import pytest

from dpo_tutorial.training import lab, models


def test_an_untrained_policy_has_no_kl_and_a_trained_one_has_moved():
    config = dict(lab.LAB_RUN, pairs=64, heldout_pairs=32, epochs=3, warmup_steps=2)
    policy, reference, tokenizer, run = lab.run(config, evaluate_every=12)
    steps, losses = run.curve("eval_loss")
    assert steps == [0, 12, 24] and losses[0] == pytest.approx(0.6931, abs=1e-3)
    assert run.curve("loss")[1][-1] < 0.65, "the third epoch knows its pairs"
    options = {"prompts": 24, "seed": 0}
    before = lab.measure(reference, reference, tokenizer, **options)
    after = lab.measure(policy, reference, tokenizer, **options)
    assert before.kl == pytest.approx(0, abs=1e-4) and after.samples["kl"].abs().mean() > 0.1
    assert 0 < before.reward < 1 and 0 < before.ended <= 1 and len(after.samples) == 24


def test_more_pairs_than_there_are_is_an_error():
    with pytest.raises(ValueError, match="100000 pairs were asked for"):
        lab.load_pairs("train", 100_000)


def test_the_lab_lm_is_that_of_its_card():
    import json

    card = json.loads((lab.scoring.DATA_DIR / "lab_lm" / "card.json").read_text(encoding="utf-8"))
    model, tokenizer = models.load("lab_lm", device="cpu")
    assert card["parameters"] == sum(p.numel() for p in model.parameters()) < 5_000_000
    assert (lab.scoring.DATA_DIR / "lab_lm" / "model.safetensors").stat().st_size < 12_000_000
    assert len(tokenizer) == 4096 and card["validation_loss"][-1][0] == card["steps"]
    losses = [loss for _, loss in card["validation_loss"]]
    assert losses == sorted(losses, reverse=True), "validation loss fell throughout"
