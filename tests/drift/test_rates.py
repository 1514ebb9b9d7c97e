from __future__ import annotations

from itertools import product
from typing import TYPE_CHECKING, Any

import pytest

from guardrail.drift.fitted import Fitted
from guardrail.drift.rates import mcnemar, rate_drifts
from guardrail.stats import Rate

if TYPE_CHECKING:
    from guardrail.drift.run import Drift


def by_hand(gained: int, lost: int) -> float:
    """Share of all ways the changed prompts could have changed that are as lopsided or more."""
    changed = gained + lost
    ways = [abs(2 * sum(signs) - changed) for signs in product((0, 1), repeat=changed)]
    return sum(way >= abs(gained - lost) for way in ways) / len(ways)


@pytest.mark.parametrize(("gained", "lost"), [(0, 1), (5, 0), (4, 2), (3, 3), (7, 1)])
def test_mcnemar_counts_only_prompts_that_changed(gained: int, lost: int) -> None:
    before = [False] * gained + [True] * lost + [True] * 20 + [False] * 30
    now = [True] * gained + [False] * lost + [True] * 20 + [False] * 30
    assert mcnemar(before, now) == pytest.approx(by_hand(gained, lost))


def test_nothing_changed_is_no_evidence() -> None:
    assert mcnemar([True, False], [True, False]) == 1.0


def test_rates_are_counted_on_the_calibration_prompts(text: Any, read: Any) -> None:
    rows = {(r.label, r.action): r for r in rate_drifts(read.fitted, read.readings)}
    calibration = text.artefact.calibration_for("text")[1]
    for action in ("steer", "flag"):
        row, tau = rows["safe", action], getattr(calibration.thresholds, action)
        wanted = Rate.of([score > tau for score in calibration.scores])
        assert (row.now.hits, row.now.n) == (wanted.hits, wanted.n)
        assert (row.now.low, row.now.high) == pytest.approx(wanted.interval())
        assert row.target == getattr(calibration.targets, action)
        assert row.threshold == tau
        assert row.fitted == row.now
    unsafe = rows["unsafe", "steer"]
    assert (unsafe.now.n, unsafe.target) == (16, None)
    assert unsafe.now.rate > 0.8


def test_a_prompt_on_the_threshold_is_not_beyond_it(text: Any, read: Any) -> None:
    """Stored scores are rounded, up as often as down; the threshold is one of them, unrounded."""
    from guardrail.policy import Thresholds

    scores = read.fitted.reference["plain"]
    place = max(scores, key=lambda index: scores[index])
    calibration = text.artefact.header.calibration["text"]
    for nudge in (-4e-7, 0.0, 4e-7):
        tau = scores[place] + nudge
        at = calibration.model_copy(update={"thresholds": Thresholds(steer=tau, flag=tau)})
        fitted = Fitted.of(text.artefact.revised(calibration={"text": at}))
        rows = [r for r in rate_drifts(fitted, read.readings) if r.label == "unsafe"]
        assert {(row.now.hits, row.fitted.hits) for row in rows} == {(0, 0)}


def test_without_old_scores_nothing_is_paired(text: Any, read: Any) -> None:
    older = Fitted.of(text.artefact.revised(extra={}))
    rows = list(rate_drifts(older, read.readings))
    assert {(row.fitted, row.p_value) for row in rows} == {(None, None)}
    assert any(row.target is not None for row in rows)


def test_thresholds_of_other_inputs_have_no_target_here(text: Any, read: Any) -> None:
    calibration = text.artefact.header.calibration["text"]
    own = calibration.model_copy(update={"source": "benign traffic"})
    traffic = Fitted.of(text.artefact.revised(calibration={"text": own}))
    rows = list(rate_drifts(traffic, read.readings))
    assert {row.target for row in rows} == {None}
    assert all(row.p_value == 1 for row in rows)


def test_pictures_have_rates_of_their_own(drifted: Any) -> None:
    drift: Drift = drifted("llava", "nothing")
    found = {(row.modality, row.label) for row in drift.report.figures.rates}
    assert found == {(m, label) for m in ("text", "image") for label in ("safe", "unsafe")}
