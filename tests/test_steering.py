"""Steering while decoding: exact on small random models, on one model with its adapter, and on the lab LM."""

import asyncio
import math

import numpy as np
import pytest
import torch
from trl_oracle import WORDS, tiny_llama, tokenizer

from dpo_tutorial.display import frontier_plots
from dpo_tutorial.display.steering_panel import SteeringPanel, Writing, steering_panel, table_html
from dpo_tutorial.training import frontier, models, steering, sweep
from dpo_tutorial.training.encode import collate_completions, text_ids

LAMBDAS = [0.0, 0.5, 1.0, 2.0]
PROMPTS = [" ".join(WORDS[3:6]), " ".join(WORDS[4:9]), WORDS[5]]


def logps_by_hand(model, tok, prompts, completions):
    """Per row the (T, V) log-probabilities of the completion's positions, without a cache, one row at a time."""
    out = []
    for prompt, ids in zip(prompts, completions, strict=True):
        start = text_ids(tok, prompt)
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([start + ids])).logits[0]
        out.append(logits[len(start) - 1 : -1].log_softmax(-1))
    return out


@pytest.fixture(scope="module")
def steered():
    policy, ref, tok = tiny_llama(0).eval(), tiny_llama(1).eval(), tokenizer()
    frame = steering.rollouts(
        policy, tok, PROMPTS, lambdas=LAMBDAS, max_new_tokens=12, seed=3, ref_model=ref, batch_rows=8
    )
    return policy, ref, tok, frame


def test_cached_log_probabilities_equal_an_uncached_recomputation(steered):
    policy, ref, tok, frame = steered
    rows = list(
        zip(*(logps_by_hand(m, tok, frame["prompt"], frame["completion_ids"]) for m in (policy, ref)), strict=True)
    )
    for (policy_logps, ref_logps), row in zip(rows, frame.itertuples(), strict=True):
        mixed = (row.strength * policy_logps + (1 - row.strength) * ref_logps).log_softmax(-1)
        drawn = torch.tensor(row.completion_ids)[:, None]
        assert mixed.gather(-1, drawn).sum().item() == pytest.approx(row.steered_logps, abs=1e-3)
        assert ref_logps.gather(-1, drawn).sum().item() == pytest.approx(row.ref_logps, abs=1e-3)
        assert (mixed.exp() * (mixed - ref_logps)).sum().item() == pytest.approx(row.kl, abs=1e-3)


def test_lambda_0_is_the_reference_and_lambda_1_the_policy(steered):
    policy, _ref, tok, frame = steered
    at = {value: frame[frame["strength"] == value] for value in LAMBDAS}
    assert at[0.0]["kl"].abs().max() < 1e-5
    assert (at[0.0]["steered_logps"] - at[0.0]["ref_logps"]).abs().max() < 1e-5
    by_hand = logps_by_hand(policy, tok, at[1.0]["prompt"], at[1.0]["completion_ids"])
    for logps, row in zip(by_hand, at[1.0].itertuples(), strict=True):
        drawn = torch.tensor(row.completion_ids)[:, None]
        assert logps.gather(-1, drawn).sum().item() == pytest.approx(row.steered_logps, abs=1e-3)
    assert at[2.0]["kl"].mean() > at[1.0]["kl"].mean() > at[0.5]["kl"].mean() > 0


def test_a_row_does_not_depend_on_the_others_in_its_batch(steered):
    policy, ref, tok, _ = steered
    options = {"max_new_tokens": 10, "seed": 5, "ref_model": ref}
    for position, together in enumerate(LAMBDAS):
        *_, all_of_them = steering.stream(policy, tok, [PROMPTS[1]], lambdas=LAMBDAS, **options)
        *_, alone = steering.stream(policy, tok, [PROMPTS[1]], lambdas=[together], **options)
        assert all_of_them.completion_ids[position] == alone.completion_ids[0]


def test_first_tokens_follow_the_mixed_distribution():
    policy, ref, tok = tiny_llama(0).eval(), tiny_llama(1).eval(), tokenizer()
    count = 4000
    (state,) = steering.stream(
        policy, tok, [PROMPTS[0]] * count, lambdas=[0.5], max_new_tokens=1, seed=0, ref_model=ref
    )
    with torch.no_grad():
        both = [
            m(input_ids=torch.tensor([text_ids(tok, PROMPTS[0])])).logits[0, -1].log_softmax(-1)
            for m in (ref, policy)
        ]
    expected = (0.5 * both[0] + 0.5 * both[1]).softmax(-1)
    seen = torch.bincount(torch.tensor(state.completion_ids).flatten(), minlength=len(expected)) / count
    assert (seen - expected).abs().max() < 4 * math.sqrt(0.25 / count)


def test_the_generator_is_left_alone_and_the_seed_decides(steered):
    policy, ref, tok, frame = steered
    torch.manual_seed(9)
    state = torch.get_rng_state()
    options = {"lambdas": LAMBDAS, "max_new_tokens": 12, "ref_model": ref, "batch_rows": 8}
    again = steering.rollouts(policy, tok, PROMPTS, seed=3, **options)
    other = steering.rollouts(policy, tok, PROMPTS, seed=4, **options)
    assert torch.equal(torch.get_rng_state(), state)
    assert list(again["completion_ids"]) == list(frame["completion_ids"]) != list(other["completion_ids"])


def test_distance_is_zero_to_itself_and_equals_the_sum_by_hand(steered):
    policy, ref, tok, frame = steered
    some = frame[frame["strength"] == 0.5]
    arguments = (tok, list(some["prompt"]), list(some["completion_ids"]))
    to_policy = steering.distances(policy, policy, *arguments, lambdas=[0.0, 1.0], ref_model=ref, batch_size=2)
    assert to_policy[1].abs().max() < 1e-5 and to_policy[0].min() > 0
    rows = zip(*(logps_by_hand(m, tok, some["prompt"], some["completion_ids"]) for m in (policy, ref)), strict=True)
    by_hand = [(p.exp() * (p - r)).sum(-1).mean().item() for p, r in rows]
    assert to_policy[0].tolist() == pytest.approx(by_hand, abs=1e-4)


def adapted(seed=0):
    """A tiny Llama with a random adapter that changes it."""
    model = models.add_lora(tiny_llama(2), rank=2, seed=seed).eval()
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data = torch.randn(parameter.shape, generator=generator)
    return model


def test_one_model_with_its_adapter_steers_like_two_models():
    model, tok = adapted(), tokenizer()
    merged, plain = adapted().merge_and_unload().eval(), tiny_llama(2).eval()
    options = {"lambdas": LAMBDAS, "max_new_tokens": 8, "seed": 1}
    one = steering.rollouts(model, tok, PROMPTS, **options)
    two = steering.rollouts(merged, tok, PROMPTS, **options, ref_model=plain)
    assert list(one["completion_ids"]) == list(two["completion_ids"])
    assert (one["kl"] - two["kl"]).abs().max() < 1e-3


def test_scaled_update_at_0_1_and_back_again():
    model, tok = adapted(), tokenizer()
    ids = collate_completions([text_ids(tok, PROMPTS[1])], [[4, 5]], pad_token_id=tok.pad_token_id)["input_ids"]
    with torch.no_grad():
        before, plain = model(input_ids=ids).logits, tiny_llama(2)(input_ids=ids).logits
        with steering.scaled_update(model, 0.0) as scaled:
            assert torch.allclose(scaled(input_ids=ids).logits, plain, atol=1e-4)
        with pytest.raises(RuntimeError), steering.scaled_update(model, 3.0):
            raise RuntimeError
        assert torch.equal(model(input_ids=ids).logits, before)
        full, ref = tiny_llama(0), tiny_llama(1)
        with steering.scaled_update(full, 1.0, ref_model=ref) as scaled:
            assert torch.allclose(scaled(input_ids=ids).logits, full(input_ids=ids).logits, atol=1e-4)
        with steering.scaled_update(full, 0.5, ref_model=ref) as scaled:
            own, one, two = (next(m.parameters()) for m in (scaled, full, ref))
            assert torch.allclose(own, (one + two) / 2)
    with pytest.raises(TypeError, match="no adapter"), steering.scaled_update(full, 2.0):
        pass


def test_wrong_arguments_say_so():
    with pytest.raises(ValueError, match="both must be positive"):
        steering.strength(beta=0.0, trained_beta=0.1)
    with pytest.raises(ValueError, match="at least one of each"):
        next(steering.stream(tiny_llama(0), tokenizer(), [], lambdas=[1.0], max_new_tokens=2, seed=0))


def test_on_a_finite_world_mixing_whole_sequences_gives_the_optimum_at_beta_over_lambda():
    generator = torch.Generator().manual_seed(0)
    ref = torch.randn(12, generator=generator, dtype=torch.float64).log_softmax(0)
    reward = torch.randn(12, generator=generator, dtype=torch.float64)
    optimum = lambda beta: (ref + reward / beta).log_softmax(0)  # noqa: E731
    for value in LAMBDAS[1:]:
        mixed = steering.mixed_logits(ref, optimum(0.4), torch.tensor(value)).log_softmax(-1)
        assert torch.allclose(mixed.double(), optimum(0.4 / value), atol=1e-5)


def test_effective_beta_is_beta_for_calibrated_differences():
    generator = torch.Generator().manual_seed(0)
    delta = 6 * torch.randn(200_000, generator=generator)
    labels = torch.rand(len(delta), generator=generator) < torch.sigmoid(0.3 * delta)
    signed = torch.where(labels, delta, -delta)
    assert frontier.effective_beta(signed) == pytest.approx(0.3, rel=0.03)
    assert frontier.effective_beta(signed / 4) == pytest.approx(1.2, rel=0.03)
    with pytest.raises(ValueError, match="no finite effective beta"):
        frontier.effective_beta(delta.abs())


def test_shuffled_labels_swap_half_of_the_pairs_and_nothing_else():
    from dpo_tutorial.training import lab

    frame = lab.load_pairs("train", 40)
    mixed = frontier.shuffled_labels(frame, seed=1)
    swapped = frame["chosen"] == mixed["rejected"]
    assert swapped.sum() == 20 and (frame["chosen"] == mixed["chosen"]).sum() == 20
    assert (frame["prompt"] == mixed["prompt"]).all()
    assert sorted(frame["chosen"] + frame["rejected"]) != sorted(mixed["chosen"] + mixed["rejected"])
    with pytest.raises(ValueError, match="accepted are 'dpo'"):
        frontier.loss_of({"loss": "ipo", "beta": 0.1})


def fake_write(prompt):
    """Three betas, four tokens."""
    for count in range(1, 5):
        yield [
            Writing(beta, f" {prompt[:2]}{beta}" * count, 0.1 * count, beta * count, count) for beta in (2, 1, 0.5)
        ]


@pytest.fixture
def panel():
    *_, first = fake_write("old prompt")
    return SteeringPanel(fake_write, "old prompt", first, 4)


def test_the_panel_shows_kept_text_at_every_beta_without_writing(panel):
    panel._write = None
    for beta in (2, 1, 0.5):
        panel.slider.value = beta
        assert f"beta = {beta:g}." in panel.text.value and f" ol{beta}" * 4 in panel.text.value
        assert 'aria-live="polite"' in panel.text.value and panel.bar.value == 4
    assert panel.writing == Writing(0.5, " ol0.5" * 4, pytest.approx(0.4), 2.0, 4)


def test_a_new_prompt_is_written_token_by_token_and_the_slider_works_meanwhile(panel):
    async def scene():
        seen = []
        panel.text.observe(lambda change: seen.append(change["new"]), names="value")
        panel.prompt.value = "new <b>"
        await asyncio.sleep(0.002)
        panel.slider.value = 0.5
        await panel._task
        return seen

    seen = asyncio.run(scene())
    assert any("so far" in text and 'aria-live="off"' in text for text in seen)
    assert "so far" not in seen[-1] and "new &lt;b&gt;" in seen[-1] and " ne0.5" * 4 in seen[-1]
    panel._write = None  # now both prompts are kept
    panel.prompt.value = "old prompt"
    assert " ol0.5" in panel.text.value


def test_a_second_prompt_cancels_the_first(panel):
    async def scene():
        panel.prompt.value = "first"
        await asyncio.sleep(0)
        first = panel._task
        panel.prompt.value = "second"
        await panel._task
        return first

    first = asyncio.run(scene())
    assert first.cancelled() and "first" not in panel._kept and "second" in panel.text.value


def test_an_error_while_writing_and_an_empty_prompt_are_said_in_the_panel(panel):
    def broken(prompt):
        raise ValueError("no such model")
        yield

    async def scene():
        panel._write = broken
        panel.prompt.value = "anything"
        await panel._task

    asyncio.run(scene())
    assert "ValueError: no such model" in panel.text.value
    panel.prompt.value = " "
    assert "Type the beginning" in panel.text.value


def test_the_table_escapes_and_the_panel_refuses_two_betas(panel):
    table = table_html("a <i>", [Writing(0.1, " & more", 0.5, 1.25, 3)])
    assert "a &lt;i&gt; &amp; more" in table and ">1.2<" in table and "<i>" not in table
    with pytest.raises(ValueError, match="at least 3"):
        steering_panel(fake_write, prompt="a", first=[], max_new_tokens=4)


def test_the_displayed_panel_has_a_text_for_readers_without_a_kernel(monkeypatch):
    shown = []
    monkeypatch.setattr("IPython.display.display", lambda bundle, **_: shown.append(bundle))
    *_, first = fake_write("x")
    steering_panel(fake_write, prompt="x", first=first, max_new_tokens=4)
    assert "application/vnd.jupyter.widget-view+json" in shown[0] and "five betas" in shown[0]["text/html"]


def test_writings_are_steered_completions_with_their_rewards(steered):
    policy, ref, tok, _ = steered
    options = {"max_new_tokens": 6, "seed": 2, "ref_model": ref}
    *_, last = steering.writings(
        policy,
        tok,
        PROMPTS[0],
        betas=[0.4, 0.1, 0.05],
        trained_beta=0.1,
        score=lambda t: [len(x) for x in t],
        **options,
    )
    *_, state = steering.stream(policy, tok, [PROMPTS[0]], lambdas=[0.25, 1.0, 2.0], **options)
    assert [w.kl for w in last] == state.kl.tolist() and [w.beta for w in last] == [0.4, 0.1, 0.05]
    for w, ids in zip(last, state.completion_ids, strict=True):
        text = tok.decode(ids, skip_special_tokens=True)
        assert (w.text, w.reward, w.tokens) == (text, len(PROMPTS[0] + text), len(ids))


def fake_run(beta, seed):
    rows = [{"step": s, "reward": [0.5 + s / 100, 0, 1], "kl": [s / beta + seed, 0, 9]} for s in (1, 2, 3)]
    for row in rows:
        row["heldout_loss"] = 0.6 + beta
    return {"curve": rows[:2], "final": rows[2]}


def test_curves_begin_at_the_reference_and_end_with_the_run():
    steps, values = frontier_plots.curve([fake_run(1, 0), fake_run(1, 1)], "kl", [0.0, 0.0])
    assert steps == [0, 1, 2, 3] and values.tolist() == [[0, 1, 2, 3], [0, 2, 3, 4]]
    assert frontier_plots.curve([fake_run(2, 0)], "heldout_loss", [0.7])[1].tolist() == [[0.7, 2.6, 2.6, 2.6]]


def test_the_figures_of_the_frontier_are_drawn():
    by_beta = {beta: [fake_run(beta, seed) for seed in (0, 1)] for beta in (0.05, 0.1, 0.2, 0.5, 1, 5)}
    base = {"SFT": by_beta[1], "unlikelihood": by_beta[5]}
    lines = {name: [[0, 0.4], [1, 0.5]] for name in ("one", "two", "three")}
    distances = {1: [[0.2, 0.1, 0.3]] * 2, 0.1: [[0.2, 0.1, 0.3]] * 2}
    distances = {beta: np.array(values) for beta, values in distances.items()}
    long = {"curves": {"eval_loss": [[0, 0.7], [5, 0.8]]}, "measured": [[0, {"reward": 0.4}], [5, {"reward": 0.6}]]}
    finals = [{"kl": [2], "reward": [0.6], "perplexity_reviews": 3, "perplexity_instructions": 2, "suite": 0.4}] * 2
    swept = {beta: [{"final": final} for final in finals] for beta in (0.05, 0.5)}
    figures = [
        frontier_plots.while_training(by_beta, [0.4, 0.5]),
        frontier_plots.reward_against_kl(by_beta, base, by_beta[1], [0.4, 0.5]),
        frontier_plots.loss_and_reward(by_beta, 0.1, 1, [0.4, 0.5], {"long": [long, long]}),
        frontier_plots.recorded_sweep(swept, finals[0]),
        frontier_plots.steered_and_retrained(distances, [0, 1, 2], 0.1, lines, by_beta[1], "retrained"),
    ]
    labels = [text.get_text() for ax in figures[1].axes for text in ax.get_legend().get_texts()]
    assert labels[0] == "DPO, beta 0.05" and "unlikelihood" in labels and len(labels) == 9
    assert all(figure.axes[0].get_xlabel() and figure.axes[0].get_ylabel() for figure in figures)


def test_rewards_at_equal_kl_lie_between_two_strengths():
    near, far = {"kls": [1, 1], "rewards": [0.2, 0.4]}, {"kls": [3, 5], "rewards": [0.6, 0.4]}
    assert frontier.at_equal_kl([near], [far], [{"kls": [1, 2]}])[0] == pytest.approx([0.2 + 0.4 / 6, 0.4])
    line = frontier.path(0.4, [[{"kl": [1, 0, 2], "reward": [0.5, 0, 1]}, {"kl": [3, 0, 9], "reward": [0.7, 0, 1]}]])
    assert line == pytest.approx(np.array([[0, 0.4], [2, 0.6]]))
    with pytest.raises(ValueError, match="KL is 9"):
        frontier.at_equal_kl([near], [far], [{"kls": [9]}])


def test_the_recorded_sweep_is_complete_and_answers_one_suite():
    runs, reference = sweep.recorded()
    assert list(runs) == list(sweep.SWEEP_BETAS) and {len(found) for found in runs.values()} == {3}
    every = [reference, *(run for found in runs.values() for run in found)]
    assert {tuple(run["suite"]) for run in every} == {tuple(reference["suite"])}
    assert all(run["final"]["suite"] == pytest.approx(np.mean(list(run["suite"].values()))) for run in every)


def test_perplexity_is_per_token_over_all_rows_together():
    model, tok = tiny_llama(0).eval(), tokenizer()
    rows = [([3, 4], [5]), ([4, 6, 7], [3, 8, 9])]
    total = sum(
        logps.gather(-1, torch.tensor(ids)[:, None]).sum().item()
        for (prompt, ids) in rows
        for logps in [model(input_ids=torch.tensor([prompt + ids])).logits[0, len(prompt) - 1 : -1].log_softmax(-1)]
    )
    assert sweep._perplexity(model, tok, rows) == pytest.approx(math.exp(-total / 4), rel=1e-4)
    assert len(sweep.INSTRUCTIONS) == len(set(sweep.INSTRUCTIONS)) == 16
    assert len(sweep.heldout_pairs(sweep.SWEEP_RUN)) == 64
