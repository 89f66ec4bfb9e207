"""Length control: what it removes when length is all there is, the published figures, and its input checks."""

import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy.special import expit
from scipy.stats import spearmanr

from dpo_tutorial.evaluation import length_control
from dpo_tutorial.evaluation.length_control import length_controlled_win_rates

FOLDER = Path(os.environ.get("DPO_TUTORIAL_DATA", "nowhere")) / "alpaca_eval"
needs_data = pytest.mark.skipif(not FOLDER.is_dir(), reason="set DPO_TUTORIAL_DATA to the folder with alpaca_eval/")
APART = ["gpt4_gamed", "gpt4_1106_preview"]  # treated specially by the original; the baseline itself


def judged(strengths: dict, length_bias: float, *, n: int = 800, seed: int = 0) -> pd.DataFrame:
    """Judgements of models that are longer than the baseline by ``shift`` characters, by a judge who likes length."""
    rng, frames = np.random.default_rng(seed), []
    difficulty = rng.normal(size=n)
    for name, (strength, shift) in strengths.items():
        difference = rng.normal(shift, 400, size=n)
        spread = np.tanh(difference / difference.std())
        probs = expit(strength + length_bias * spread + difficulty)
        frame = {"model": name, "instruction_id": np.arange(n), "preference": 1.0 + (rng.random(n) < probs)}
        frames.append(pd.DataFrame(frame | {"len_output": 2000 + difference, "len_baseline": 2000.0}))
    return pd.concat(frames, ignore_index=True)


def test_a_verbose_twin_loses_its_advantage():
    models = {"plain": (0.0, 0), "verbose": (0.0, 400), "terse": (0.0, -400), "better": (1.0, 0)}
    rates = length_controlled_win_rates(judged(models, 1.5))
    raw, controlled = rates["win_rate"], rates["length_controlled_win_rate"]
    assert raw["verbose"] - raw["terse"] > 30
    assert abs(controlled["verbose"] - controlled["terse"]) < 8
    assert controlled["better"] - controlled["plain"] > 12
    assert (rates["length_effect"] > 0.5).all()


def test_without_a_length_bias_control_changes_little():
    rates = length_controlled_win_rates(judged({"plain": (0.0, 0), "verbose": (0.4, 400)}, 0.0))
    assert (rates["win_rate"] - rates["length_controlled_win_rate"]).abs().max() < 5
    assert rates["length_effect"].abs().max() < 0.25


def test_gradient_is_that_of_the_posterior(monkeypatch):
    from scipy.optimize import approx_fprime

    def compare(function, start, **_):
        x = start + np.random.default_rng(0).normal(size=len(start)) / 3
        numeric = approx_fprime(x, lambda y: function(y)[0], 1e-6)
        np.testing.assert_allclose(function(x)[1], numeric, rtol=1e-3, atol=1e-3)
        raise StopIteration

    monkeypatch.setattr(length_control, "minimize", compare)
    with pytest.raises(StopIteration):
        length_controlled_win_rates(judged({"a": (0.0, 0), "b": (1.0, 300)}, 1.0, n=12))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda frame: frame.drop(columns="len_output"), "len_output are missing"),
        (lambda frame: frame.assign(preference=[0.5] + [1.0] * (len(frame) - 1)), "row 0 .*: preference is .*0.5"),
        (lambda frame: frame.assign(len_baseline=float("nan")), "row 0 .*: len_baseline is .*nan"),
        (lambda frame: frame.head(0), "no annotations"),
    ],
)
def test_bad_input_is_named(change, message):
    with pytest.raises(ValueError, match=message):
        length_controlled_win_rates(change(judged({"a": (0.0, 0)}, 1.0, n=5)))


def test_answers_of_one_length_are_no_error():
    frame = judged({"a": (0.0, 0)}, 0.0, n=50).assign(len_output=100, len_baseline=100)
    rates = length_controlled_win_rates(frame)
    assert rates["length_effect"]["a"] == pytest.approx(0, abs=1e-6) and np.isfinite(rates).all(axis=None)


@needs_data
@pytest.mark.parametrize(("length", "weight", "difficulty"), [(1, 9, 1), (1, 5, 1), (1, 20, 1), (1, 9, 2)])
def test_published_figures_of_alpaca_eval(monkeypatch, length, weight, difficulty):
    """Within 1.1 points on average, Spearman .98; and not by the luck of one prior."""
    for name, value in zip(("LENGTH", "WEIGHT", "DIFFICULTY"), (length, weight, difficulty), strict=True):
        monkeypatch.setattr(length_control, name, float(value))
    published = pd.read_csv(FOLDER / "leaderboard.csv", index_col=0)
    rates = length_controlled_win_rates(pd.read_csv(FOLDER / "annotations.csv.gz"))
    both = rates.join(published, how="inner", rsuffix="_published").drop(APART, errors="ignore")
    assert len(both) == 41
    np.testing.assert_allclose(both["win_rate"], both["win_rate_published"], atol=0.2)
    difference = both["length_controlled_win_rate"] - both["length_controlled_winrate"]
    assert difference.abs().mean() < 1.1
    assert spearmanr(both["length_controlled_win_rate"], both["length_controlled_winrate"]).statistic > 0.98
