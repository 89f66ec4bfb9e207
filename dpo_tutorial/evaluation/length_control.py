"""Length-controlled win rates: what a model's win rate would be if its answers were as long as the baseline's.

Dubois et al. 2024 (https://arxiv.org/abs/2404.04475) explain a judge's preference for model m over the baseline on
instruction i by three terms and drop the middle one:

    logit P(m preferred) = model[m] + length[m] * tanh(length difference / its spread) + weight[m] * difficulty[i]

The original takes the difficulties from a published table and chooses an L1 penalty by cross-validation. Here the
difficulties are estimated from the same judgements, jointly with everything else, under weak normal priors.
"""

import numpy as np
import pandas as pd
from scipy.optimize import minimize
from scipy.special import expit

COLUMNS = ("model", "instruction_id", "preference", "len_output", "len_baseline")
# Precisions of the priors: length ~ N(0, 1), weight ~ N(1, 1/3), difficulty ~ N(0, 1), in logits. The model terms are
# free. None of them was tuned to a model or to a published figure; tests/test_length_control.py varies them.
LENGTH, WEIGHT, DIFFICULTY = 1.0, 9.0, 1.0


def length_controlled_win_rates(annotations: pd.DataFrame) -> pd.DataFrame:
    """Raw and length-controlled win rates of all models, fitted together.

    Args:
        annotations: one row per judgement, with the columns ``model``, ``instruction_id``, ``preference`` (1: the
            baseline wins, 2: the model wins, values between are shares), ``len_output`` and ``len_baseline``
            (characters, or tokens).

    Returns:
        Indexed by model: ``win_rate`` and ``length_controlled_win_rate`` in per cent, ``length_effect`` (logits that
        the judge adds when the answer is longer by one spread, times tanh 1), ``n``.

    Raises:
        ValueError: a column is missing, a value is not a number, or a preference lies outside 1 to 2.
    """
    _check(annotations)
    models, m = np.unique(annotations["model"].astype(str), return_inverse=True)
    instructions, i = np.unique(annotations["instruction_id"], return_inverse=True)
    wins = annotations["preference"].to_numpy(float) - 1.0
    longer = _relative_length(annotations, m)
    theta, length, weight, difficulty = _fit(wins, longer, m, i, len(models), len(instructions))
    controlled = expit(theta[m] + weight[m] * difficulty[i])
    counts = np.bincount(m)
    return pd.DataFrame(
        {
            "win_rate": 100 * np.bincount(m, wins) / counts,
            "length_controlled_win_rate": 100 * np.bincount(m, controlled) / counts,
            "length_effect": length * np.tanh(1.0),
            "n": counts,
        },
        index=pd.Index(models, name="model"),
    )


def _check(annotations: pd.DataFrame) -> None:
    missing = [name for name in COLUMNS if name not in annotations]
    if missing or not len(annotations):
        what = f"the columns {', '.join(missing)} are missing" if missing else "there are no annotations"
        raise ValueError(f"{what}; needed are one row per judgement with {', '.join(COLUMNS)}")
    for name in COLUMNS[2:]:
        values = pd.to_numeric(annotations[name], errors="coerce").to_numpy(float)
        wrong = ~np.isfinite(values)
        if name == "preference":
            wrong |= (values < 1) | (values > 2)
        if wrong.any():
            row = int(np.flatnonzero(wrong)[0])
            accepted = "1 (baseline wins) to 2 (model wins)" if name == "preference" else "a number"
            raise ValueError(
                f"row {row} (counted from 0): {name} is {annotations[name].iloc[row]!r}; accepted is {accepted}; "
                "drop or mend the row"
            )


def _relative_length(annotations: pd.DataFrame, m: np.ndarray) -> np.ndarray:
    """tanh of the length difference divided by its standard deviation within the model; 0 where it does not vary."""
    difference = (annotations["len_output"] - annotations["len_baseline"]).to_numpy(float)
    mean = np.bincount(m, difference) / np.bincount(m)
    spread = np.sqrt(np.bincount(m, (difference - mean[m]) ** 2) / np.bincount(m))
    return np.tanh(np.divide(difference, spread[m], out=np.zeros_like(difference), where=spread[m] > 0))


def _fit(wins, longer, m, i, n_models: int, n_instructions: int):
    """Maximum a posteriori by L-BFGS: (model, length, weight) of shape (models,) and difficulty (instructions,)."""
    cuts = [n_models, 2 * n_models, 3 * n_models]

    def negative_log_posterior(x):
        theta, length, weight, difficulty = np.split(x, cuts)
        logits = theta[m] + length[m] * longer + weight[m] * difficulty[i]
        value = np.logaddexp(0, logits).sum() - (wins * logits).sum()
        value += (LENGTH * length @ length + WEIGHT * (weight - 1) @ (weight - 1)) / 2
        value += DIFFICULTY * difficulty @ difficulty / 2
        error = expit(logits) - wins
        gradient = [
            np.bincount(m, error, n_models),
            np.bincount(m, error * longer, n_models) + LENGTH * length,
            np.bincount(m, error * difficulty[i], n_models) + WEIGHT * (weight - 1),
            np.bincount(i, error * weight[m], n_instructions) + DIFFICULTY * difficulty,
        ]
        return value, np.concatenate(gradient)

    start = np.concatenate([np.zeros(2 * n_models), np.ones(n_models), np.zeros(n_instructions)])
    options = {"maxiter": 5000, "maxfun": 10000, "ftol": 1e-10}
    found = minimize(negative_log_posterior, start, jac=True, method="L-BFGS-B", options=options)
    if not found.success:
        raise ArithmeticError(f"the fit did not converge: {found.message}; look for a model with very few judgements")
    return np.split(found.x, cuts)
