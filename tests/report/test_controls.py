"""A control is beaten only where the figures say so, and the words follow the figures."""

from __future__ import annotations

from typing import Any

import pytest

from guardrail.evaluation.schema import Controls
from guardrail.report.controls import MEANINGS, ControlRow, summary
from guardrail.report.controls import control_rows as rows_of_controls


@pytest.fixture
def controls(report):
    """The text controls of a report, all beaten."""
    return report(4)["controls"][0]


def control_rows(controls: dict[str, Any]) -> list[ControlRow]:
    return rows_of_controls(Controls.model_validate(controls))


def row(controls, name: str) -> ControlRow:
    return next(r for r in control_rows(controls) if r.name == name)


def test_a_guard_far_above_all_controls_holds_up(controls):
    rows = control_rows(controls)
    assert {r.standing for r in rows} == {"beaten"}
    assert summary(rows) == "The guard holds up against all 5 controls that were run."


@pytest.mark.parametrize(
    ("value", "low", "standing"),
    [(0.95, 0.91, "beaten"), (0.85, 0.8, "unclear"), (0.82, 0.78, "not beaten"),
     (0.7, 0.66, "not beaten")],
)  # fmt: skip
def test_intervals_decide_against_the_words_alone(controls, value, low, standing):
    controls["guard"] = {"value": value, "low": low, "high": 1.0}  # the words: 0.82, to 0.87
    assert row(controls, "Words alone").standing == standing


def test_a_length_that_separates_backwards_counts_as_separating(controls):
    controls["length_only"] = {
        "auroc": {"value": 0.04, "low": 0.02, "high": 0.08}, "either_way": 0.96,
    }  # fmt: skip
    assert row(controls, "Length alone").standing == "not beaten"
    assert "does not beat: length alone." in summary(control_rows(controls))


def test_the_best_random_direction_counts_either_way_round(controls):
    controls["random_directions"]["aurocs"] = [0.5, 0.03]
    assert row(controls, "Random directions").standing == "not beaten"


def test_random_directions_that_are_not_beaten_are_named_with_the_reason(controls):
    controls["guard"] = {"value": 1.0, "low": 0.69, "high": 1.0}
    controls["random_directions"]["aurocs"] = [1.0, 0.0, 0.7, 0.5]
    controls |= {"n_harmful": 5, "n_harmless": 6}
    said = summary(control_rows(controls))
    assert "does not beat: random directions (2 of 4 reach its 1.000, p = 0.6;" in said
    assert "with 4 of them no p is below 0.2, n 5 + 6)" in said
    controls["random_directions"]["aurocs"] = [0.9, 0.3, 0.7, 0.5]
    said = summary(control_rows(controls))
    assert "not clearly ahead of: random directions (0 of 4 reach its 1.000, p = 0.2;" in said


def test_shuffled_labels_are_judged_by_their_p_value(controls):
    controls["permuted_labels"]["p_value"] = 0.2
    assert row(controls, "Shuffled labels").standing == "not beaten"


def test_a_low_p_value_below_chance_is_no_win(controls):
    controls["guard"] = {"value": 0.2, "low": 0.1, "high": 0.3}
    assert row(controls, "Shuffled labels").standing == "not beaten"


def test_a_lead_that_length_explains_does_not_hold_up(controls):
    controls["length_matched"]["auroc"] = {"value": 0.5, "low": 0.4, "high": 0.6}
    found = row(controls, "The guard at equal length")
    assert (found.standing, found.result) == ("not beaten", "does not hold up")
    assert "Over pairs of equal length its lead is not shown." in summary(control_rows(controls))


def test_a_control_that_was_not_run_says_why_and_comes_last(controls):
    controls["random_directions"] = None
    controls["skipped"] = {"random_directions": "too few"}
    last = control_rows(controls)[-1]
    assert (last.name, last.standing, last.words) == ("Random directions", "not run", "too few")
    assert last.figure is None


def test_without_any_control_nothing_is_claimed(controls):
    rows = control_rows(controls | dict.fromkeys(MEANINGS) | {"skipped": {}})
    assert {r.standing for r in rows} == {"not run"}
    assert summary(rows).startswith("No control could be run")


def test_a_trained_baseline_below_chance_says_nothing(report):
    controls = report()["controls"][0]
    backwards = {"value": 0.05, "low": 0.01, "high": 0.3}
    controls["text_baseline"] = {"auroc": backwards, "folds": 5}
    rows = control_rows(controls)
    (row,) = [row for row in rows if row.name == "Words alone"]
    assert (row.standing, row.result) == ("backwards", "says nothing")
    assert "below chance" in row.words
    counted = sum(r.standing not in ("not run", "backwards") for r in rows)
    assert f"all {counted} controls" in summary(rows)
