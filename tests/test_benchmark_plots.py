"""The figures of notebook 15 are drawn: labels, marks and as many lines as there is to see."""

import pandas as pd

from dpo_tutorial.display import benchmark_plots


def test_rates_have_an_arrow_per_pair_and_a_star():
    rates = pd.DataFrame({"raw": [5, 9, 4, 80], "controlled": [6, 7, 5, 85]}, index=["a", "b", "c", "same"])
    fig = benchmark_plots.raw_and_controlled(
        rates, ["c"], [("a", "b", "chosen", "a to b")], star=("same", "one answer")
    )
    (ax,) = fig.axes
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["no change", "a to b", "one answer"]
    (arrow,) = ax.texts
    assert list(arrow.xy) == [9, 7] and list(arrow.xyann) == [5, 6]
    assert ax.get_xscale() == ax.get_yscale() == "log" and ax.get_xlabel() and ax.get_ylabel()


def test_judges_stand_in_the_order_of_their_accuracy():
    columns = {"accuracy": [0.7, 0.6, 0.75], "low": [0.65, 0.55, 0.7], "high": [0.75, 0.65, 0.8]}
    against = pd.DataFrame(columns | {"kappa": [0.4, 0.3, 0.5]}, index=["machine", "longer", "overlap"])
    fig = benchmark_plots.judges_and_people(against, ["machine"], [0.85, 0.9])
    assert [tick.get_text() for tick in fig.axes[0].get_yticklabels()] == ["longer", "machine", "overlap"]
    squares, circles = (list(line.get_xdata()) for line in fig.axes[1].lines)
    assert squares == [0.4] and sorted(circles) == [0.3, 0.5]
    assert all(ax.get_xlabel() for ax in fig.axes)


def test_changes_have_a_panel_per_run_and_one_over_beta():
    change = pd.DataFrame(
        {"change": [0.1, -0.1, 0.0], "low": [0.0, -0.2, -0.1], "high": [0.2, 0.0, 0.1]},
        index=pd.Index(["facts", "code", "all"], name="family"),
    )
    by_beta = pd.concat({beta: change * beta for beta in (0.05, 0.5)})
    fig = benchmark_plots.capability_changes({"one": change, "two": change}, by_beta, "three")
    assert [ax.get_title(loc="left") for ax in fig.axes] == ["one", "two", "three"]
    assert [tick.get_text() for tick in fig.axes[0].get_yticklabels()] == ["all", "code", "facts"]
    grey = [line for line in fig.axes[2].lines if line.get_color() == benchmark_plots.GREY]
    assert len(grey) == 2 and [tick.get_text() for tick in fig.axes[2].get_xticklabels()] == ["0.05", "0.5"]


def test_every_seed_of_every_arm_starts_at_the_taught_model():
    start = {"right": [1, 1], "calculations": [2, 2], "everyday_words": [40, 60]}
    later = {"right": [1, 0], "calculations": [1, 2], "everyday_words": [0, 10]}
    arms = {name: [{"measured": [start, later]}] * 2 for name in ("short", "both", "whole", "worked")}
    fig = benchmark_plots.along_the_epoch(start, arms)
    assert [ax.get_ylabel() for ax in fig.axes] == list(benchmark_plots.EPOCH.values())
    assert [len(ax.lines) for ax in fig.axes] == [8, 8, 8]
    assert {tuple(line.get_ydata()) for line in fig.axes[2].lines} == {(50, 50, 5)}
    assert [text.get_text() for text in fig.axes[0].get_legend().get_texts()] == list(arms)
