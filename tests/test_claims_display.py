"""Claims fail loudly, verdicts rest on checked claims, printed lines can be read back; the monitor and figures."""

import json

import numpy as np
import pytest

from dpo_tutorial.display import claims, course, plots
from dpo_tutorial.display.monitor import Monitor


def test_a_claim_that_holds_is_printed_and_read_back(capsys):
    statement = "a long sentence " * 12
    claims.claim("04.1", statement.strip(), True, "exact")
    printed = capsys.readouterr().out
    assert all(len(line) <= 100 for line in printed.splitlines())
    assert claims.parse_lines(printed) == [("HOLDS", "04.1", f"{statement.strip()} | exact")]


def test_a_claim_that_does_not_hold_raises_with_the_numbers_and_prints_nothing(capsys):
    with pytest.raises(claims.ClaimFailed, match=r"(?s)Claim 04\.2.*0\.7 is not above 0\.9"):
        claims.claim("04.2", "it is high", False, "0.7 is not above 0.9")
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("holds", [None, "yes", [], np.array([True, True]), (True,)])
def test_what_is_not_one_truth_value_is_refused(holds):
    with pytest.raises(TypeError, match="one truth value"):
        claims.claim("04.3", "s", holds, "e")


@pytest.mark.parametrize("bad", ["4.1", "04.", "F01", "04.1234", ""])
def test_malformed_ids_are_refused(bad):
    with pytest.raises(ValueError, match="claim id"):
        claims.claim(bad, "s", True, "e")


def test_close_and_within_refuse_nan_and_what_is_outside():
    claims.close("04.4", "s", 1.0000001, 1.0, 1e-6)
    claims.within("04.5", "s", 0.5, 0.4, 0.6)
    for value in (float("nan"), 1.1, float("inf")):
        with pytest.raises(claims.ClaimFailed):
            claims.close("04.4", "s", value, 1.0, 1e-6)
        with pytest.raises(claims.ClaimFailed):
            claims.within("04.5", "s", value, 0.4, 0.6)
    with pytest.raises(ValueError, match="tolerance"):
        claims.close("04.4", "s", 1.0, 1.0, 0.0)
    with pytest.raises(ValueError, match="low must be below"):
        claims.within("04.5", "s", 1.0, 2.0, 1.0)


def test_a_verdict_needs_claims_that_were_checked(capsys):
    claims.claim("04.6", "s", True, "e")
    claims.verdict("F06", "holds only when", "said why", claims=["04.6"], scale="finite world")
    assert "VERDICT [F06] holds only when: said why" in capsys.readouterr().out
    with pytest.raises(claims.ClaimFailed, match=r"not checked in this kernel: 04\.99"):
        claims.verdict("F06", "holds", "b", claims=["04.99"], scale="s")
    with pytest.raises(ValueError, match="at least one claim"):
        claims.verdict("F06", "fails", "b", claims=[], scale="s")
    with pytest.raises(ValueError, match="accepted are holds"):
        claims.verdict("F06", "maybe", "b", claims=["04.6"], scale="s")


def test_monitor_keeps_history_and_refuses_what_is_no_number():
    monitor = Monitor("run", show=False)
    monitor.update(1, {"loss": 0.69, "eval_margins": float("nan")})
    monitor.update(2, {"loss": 0.5})
    assert monitor.history["loss"] == [(1, 0.69), (2, 0.5)]
    assert plots.png(monitor.figure()).startswith(b"\x89PNG")
    with pytest.raises(TypeError, match="'loss' at step 3 is a str"):
        monitor.update(3, {"loss": "low"})


def test_roles_and_alt_text_are_checked():
    with pytest.raises(ValueError, match="role is 'winner'"):
        plots.line("winner")
    fig, _ = plots.figure()
    with pytest.raises(ValueError, match="alt is empty"):
        plots.show(fig, " ")


def test_dots_stand_at_the_means_and_their_bars_reach_to_the_extremes():
    _, ax = plots.figure()
    plots.dots(ax, "a|b,/c", np.array([[1.0, 0.1], [2.0, 0.1], [6.0, 0.1]]))
    assert ax.lines[0].get_ydata().tolist() == pytest.approx([3, 0.1])
    assert [bar[:, 1].tolist() for bar in ax.collections[0].get_segments()] == [[1, 6], pytest.approx([0.1, 0.1])]
    assert [tick.get_text() for tick in ax.get_xticklabels()] == ["a", "b,\nc"]
    with pytest.raises(ValueError, match="number of FixedLocator locations"):
        plots.dots(ax, "a|b|c", np.ones((3, 2)))


def test_a_logarithmic_axis_has_the_given_ticks_only():
    _, ax = plots.figure()
    ax.plot([40, 640], [0, 1])
    plots.log_ticks(ax, [40, 640], "pairs")
    assert ax.get_xscale() == "log" and ax.get_xticks().tolist() == [40, 640]
    assert ax.get_xticks(minor=True).size == 0


def test_the_course_has_17_notebooks_and_the_map_marks_those_to_come():
    entries = course.course()
    assert [entry["file"][:2] for entry in entries] == [f"{k:02d}" for k in range(17)]
    for entry, line in zip(entries, course.map_markdown().splitlines()[2:], strict=True):
        there = (course.ROOT / "notebooks" / f"{entry['file']}.ipynb").exists()
        assert ("(to come)" in line) != there


def test_folklore_is_complete():
    folklore = json.loads((course.ROOT / "data" / "folklore.json").read_text(encoding="utf-8"))
    assert len(folklore) == 47 and all(item["statement"] and item["notebook"].isdigit() for item in folklore)
