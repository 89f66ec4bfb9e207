"""Loading, LoRA, the reference view, sampling: on the lab LM, and on SmolLM2 where it matters."""

import pytest
import torch

from dpo_tutorial.training import logps, models, sampling


@pytest.fixture
def lab():
    return models.load("lab_lm", device="cpu")


def test_an_unknown_name_says_what_is_accepted(tmp_path):
    with pytest.raises(FileNotFoundError, match="'smollm2', 'lab_lm'"):
        models.load(str(tmp_path / "nowhere"), device="cpu", dtype=torch.float32)


def test_a_fresh_adapter_leaves_the_policy_at_the_reference_and_is_float32(lab):
    model, tokenizer = lab
    ids = [tokenizer("This movie is")["input_ids"]]
    before = logps.sample_logps(model, ids, [[5, 6, 7]], pad_token_id=tokenizer.pad_token_id)
    adapted = models.add_lora(model.to(torch.bfloat16), rank=4)
    trainable = {p.dtype for p in adapted.parameters() if p.requires_grad}
    assert trainable == {torch.float32}
    adapted = adapted.float()
    after = logps.sample_logps(adapted, ids, [[5, 6, 7]], pad_token_id=tokenizer.pad_token_id)
    assert torch.allclose(before, after, atol=0.05)


def test_reference_switches_the_adapter_off_and_on_again(lab):
    model, _tokenizer = lab
    adapted = models.add_lora(model, rank=4).train()
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.05)
    score = lambda m: logps.sample_logps(m, [[5, 6]], [[7, 8]], pad_token_id=1)  # noqa: E731
    changed = score(adapted)
    with models.reference(adapted) as ref:
        plain = score(ref)
        assert not torch.is_grad_enabled() and not ref.training
    assert adapted.training and not torch.allclose(changed, plain) and torch.equal(score(adapted), changed)
    with pytest.raises(TypeError, match="no adapter"), models.reference(torch.nn.Linear(1, 1)):
        pass


def test_sampling_is_seeded_and_leaves_the_global_generator_alone(lab):
    model, tokenizer = lab
    torch.manual_seed(5)
    state = torch.get_rng_state()
    options = {"n": 2, "max_new_tokens": 8}
    first = sampling.sample(model, tokenizer, ["This movie", "I"], seed=1, **options)
    assert torch.equal(torch.get_rng_state(), state)
    assert sampling.sample(model, tokenizer, ["This movie", "I"], seed=1, **options) == first
    assert sampling.sample(model, tokenizer, ["This movie", "I"], seed=2, **options) != first
    assert [len(row) for row in first] == [2, 2]


def test_greedy_sampling_equals_argmax_token_by_token(lab):
    model, tokenizer = lab
    (sampled,) = sampling.sample(model, tokenizer, ["This movie is"], max_new_tokens=6, temperature=0, seed=0)[0]
    ids = tokenizer("This movie is")["input_ids"]
    for token in sampled:
        assert token == int(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax())
        ids.append(token)


def test_sampled_frequencies_match_the_model(lab):
    model, tokenizer = lab
    draws = sampling.sample(model, tokenizer, ["This movie is"], n=4000, max_new_tokens=1, seed=3, batch_size=2000)[0]
    probs = model(**tokenizer("This movie is", return_tensors="pt")).logits[0, -1].softmax(-1)
    top = probs.topk(5)
    for token, probability in zip(top.indices.tolist(), top.values.tolist(), strict=True):
        share = sum(ids[0] == token for ids in draws) / 4000
        assert abs(share - probability) < 4 * (probability * (1 - probability) / 4000) ** 0.5


def test_rollouts_carry_log_probabilities_of_their_own_tokens(lab):
    model, tokenizer = lab
    adapted = models.add_lora(model, rank=4)
    frame = sampling.rollouts(adapted, tokenizer, ["This movie is", "I"], n=3, max_new_tokens=10, seed=0)
    assert len(frame) == 6 and (frame["policy_logps"] < 0).all()
    assert abs(frame["policy_logps"] - frame["ref_logps"]).max() < 1e-3, "a fresh adapter is the reference"


@pytest.mark.alone
def test_the_speed_of_bfloat16_is_known_soon_even_where_it_is_emulated():
    import time

    models.bfloat16_speedup.cache_clear()
    start = time.perf_counter()
    assert models.bfloat16_speedup() > 0
    assert time.perf_counter() - start < 2, "every process that loads a model waits for it"


@pytest.mark.alone
def test_smollm2_reloads_quickly_and_knows_some_facts():
    import time

    models.fetch_smollm2()
    models.load("smollm2", device="cpu")
    start = time.perf_counter()
    model, tokenizer = models.load("smollm2", device="cpu", dtype=torch.float32)
    assert time.perf_counter() - start < 6, "under 2 s on a quiet machine"
    (ids,) = sampling.sample(model, tokenizer, ["The capital of France is"], max_new_tokens=3, temperature=0, seed=0)[
        0
    ]
    assert "Paris" in tokenizer.decode(ids)
