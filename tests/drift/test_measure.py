from __future__ import annotations

import math
from itertools import product
from typing import TYPE_CHECKING, Any

import pytest
import torch
from scipy.stats import ttest_1samp

from guardrail.drift.fitted import Fitted
from guardrail.drift.measure import mcnemar, measure, rate_drifts, score_lists
from guardrail.fit.select import is_unsafe
from guardrail.stats import Rate, auroc, auroc_interval

if TYPE_CHECKING:
    from guardrail.drift.run import Drift


@pytest.fixture(scope="module")
def tuned(text: Any, changed: Any) -> Any:
    """The planted text model after some gradient steps, read."""
    return text.read(changed("llama", "tuned a little"))


def test_shifts_are_paired_with_students_interval(tuned: Any) -> None:
    found = measure(tuned.fitted, tuned.collect, tuned.readings, tuned.candidates)
    lists = score_lists(tuned.fitted, tuned.readings)
    assert {(row.form, row.label) for row in lists} == {
        ("plain", "unsafe"), ("plain", "safe"), ("carried", "unsafe"), ("carried", "safe"),
    }  # fmt: skip
    for row, scores in zip(found.shifts, lists, strict=True):
        moved = [now - then for now, then in zip(scores.now, scores.fitted, strict=True)]
        wanted = ttest_1samp(moved, 0).confidence_interval(0.95)
        assert row.shift.value == pytest.approx(sum(moved) / len(moved))
        assert (row.shift.low, row.shift.high) == pytest.approx((wanted.low, wanted.high))
        assert row.n == len(moved)


def test_each_form_has_its_auroc_and_interval(tuned: Any) -> None:
    found = measure(tuned.fitted, tuned.collect, tuned.readings, tuned.candidates)
    assert [row.form for row in found.forms] == list(tuned.readings.forms)
    for row in found.forms:
        form = tuned.readings.forms[row.form]
        scores = tuned.fitted.readout.scores(form.rows("select")).tolist()
        kinds = form.kinds_of("select")
        unsafe = [s for s, kind in zip(scores, kinds, strict=True) if is_unsafe(kind)]
        safe = [s for s, kind in zip(scores, kinds, strict=True) if not is_unsafe(kind)]
        assert (row.n_unsafe, row.n_safe) == (len(unsafe), len(safe))
        assert row.old.value == pytest.approx(auroc(unsafe, safe))
        assert (row.old.low, row.old.high) == pytest.approx(auroc_interval(unsafe, safe))
        assert row.fitted is not None


def test_the_figure_is_the_one_a_fit_chooses_by(text: Any, read: Any) -> None:
    """On the fitted model the old, the same and the best readout are one."""
    found = measure(read.fitted, read.collect, read.readings, read.candidates).separation
    recorded = text.artefact.header.readout.figures["auroc"]
    for estimate in (found.fitted, found.old, found.same, found.best):
        assert estimate.value == pytest.approx(recorded)
    assert found.recorded == recorded
    assert found.best_layers == text.artefact.header.readout.layers


def test_the_effect_of_the_edit_is_the_one_the_fit_measured(text: Any, read: Any) -> None:
    found = measure(read.fitted, read.collect, read.readings, read.candidates).steering
    row = text.artefact.header.layers[found.layer]
    assert found.shift_now == pytest.approx(row.causal, abs=1e-3)
    assert found.kl_now == pytest.approx(row.figures["kl"], abs=1e-3)
    assert found.shift_fresh == pytest.approx(row.causal, abs=1e-3)


def test_layers_compare_directions_and_gaps(text: Any, tuned: Any) -> None:
    found = measure(tuned.fitted, tuned.collect, tuned.readings, tuned.candidates).layers
    old, new = text.artefact.tensors["direction"], tuned.readings.directions
    for row in found:
        cosine = torch.nn.functional.cosine_similarity(
            old[row.layer], new.direction[row.layer], dim=0
        )
        assert row.cosine == pytest.approx(float(cosine), abs=1e-5)
        assert row.gap_now == pytest.approx(float(new.norms[row.layer]))
    assert [row.layer for row in found if row.read] == list(text.artefact.header.readout.layers)
    assert [row.layer for row in found if row.edited] == [text.artefact.header.steering.layer]


def test_an_older_artefact_is_measured_without_pairs(text: Any, read: Any) -> None:
    older = Fitted.of(text.artefact.revised(extra={}))
    found = measure(older, read.collect, read.readings, read.candidates)
    assert (found.separation.fitted, found.separation.dropped) == (None, None)
    assert found.separation.recorded is not None
    assert {row.shift for row in found.shifts} == {None}
    assert {row.fitted for row in found.forms} == {None}


def test_a_readout_of_an_unknown_estimator_has_no_twin(text: Any, read: Any) -> None:
    header = text.artefact.header
    made = header.readout.model_copy(update={"estimator": "of a later release"})
    other = Fitted.of(text.artefact.revised(readout=made))
    found = measure(other, read.collect, read.readings, read.candidates)
    assert found.separation.same is None
    assert {row.same for row in found.forms} == {None}


def test_a_detector_without_an_edit_has_no_steering_figures(text: Any, read: Any) -> None:
    tensors = {k: v for k, v in text.artefact.tensors.items() if not k.startswith("steer_")}
    only_detects = Fitted.of(text.artefact.revised(tensors=tensors, steering=None))
    assert only_detects.edit() is None
    found = measure(only_detects, read.collect, read.readings, read.candidates)
    assert found.steering is None


def test_pictures_are_scored_with_the_old_offset(pictures: Any, changed: Any) -> None:
    """As a guard with the old artefact would score them on the new model."""
    from guardrail.decide.detector import Detector
    from guardrail.policy import Policy

    made = pictures.read(changed("llava", "template"))
    form = made.readings.forms["drawn"]
    detector = Detector.from_artefact(pictures.artefact, Policy())
    raw = form.residuals + made.readings.offsets["image"].mean.float()
    wanted = detector.readout.scores(raw[:, list(detector.layers)], ["image"] * len(raw))
    found = made.fitted.scores(made.readings, "drawn")
    torch.testing.assert_close(found, wanted, atol=1e-4, rtol=1e-4)
    shift = made.fitted.readout.scores(form.residuals) - found
    assert float(shift.abs().min()) > 0.05  # the offset has moved, so it matters which is used


def test_residuals_that_overflow_are_an_error(text: Any, read: Any) -> None:
    from dataclasses import replace

    from guardrail.errors import DetectorError

    form = read.readings.forms["plain"]
    broken = replace(form, residuals=form.residuals * math.inf)
    readings = replace(read.readings, forms={**read.readings.forms, "plain": broken})
    with pytest.raises(DetectorError, match="another dtype"):
        read.fitted.scores(readings, "plain")


def test_offsets_that_overflow_are_an_error(pictures: Any) -> None:
    """Two pictures may overflow where one does not."""
    from dataclasses import replace

    from guardrail.drift.measure import offset_drifts
    from guardrail.errors import DetectorError
    from guardrail.fit.directions import no_offsets

    fine = no_offsets(*pictures.artefact.tensors["direction"].shape)
    broken = replace(fine["images"], mean=fine["images"].mean * math.nan)
    with pytest.raises(DetectorError, match="re-centring, images"):
        list(offset_drifts(Fitted.of(pictures.artefact), fine | {"images": broken}))


def test_the_edit_is_told_with_the_prompts_it_was_measured_on(read: Any) -> None:
    from dataclasses import replace

    form = read.readings.forms["plain"]
    ordinary = [
        i
        for i, (split, kind) in enumerate(zip(form.splits, form.kinds, strict=True))
        if (split, kind) == ("select", "ordinary")
    ]
    kept = [i for i in range(len(form.kinds)) if i not in ordinary[5:]]
    fewer = replace(
        form,
        samples=[form.samples[i] for i in kept],
        residuals=form.residuals[kept],
        splits=[form.splits[i] for i in kept],
        kinds=[form.kinds[i] for i in kept],
    )
    readings = replace(read.readings, forms={"plain": fewer})
    found = measure(read.fitted, read.collect, readings, read.candidates)
    assert found.steering.n == 5


def test_an_edit_needs_no_calibration(text: Any) -> None:
    assert Fitted.of(text.artefact.revised(calibration={})).edit() is not None


def test_what_is_lost_is_measured_on_the_same_prompts(drifted: Any) -> None:
    found = drifted("llama", "tuned to comply").report.figures.separation
    assert found.best.value - found.old.value > 0.03
    assert found.lost.value == pytest.approx(found.best.value - found.old.value)
    assert found.dropped.value == pytest.approx(found.fitted.value - found.old.value)
    assert found.lost.low < found.lost.value < found.lost.high


def test_a_stronger_edit_is_measured_at_the_strength_of_the_fits_causal_test(text: Any) -> None:
    kept, factor = text.artefact.header.steering, 2.5
    wider = {name: getattr(kept, name) * factor for name in ("gain", "a_max", "region_max")}
    figures = kept.figures | {"factor": kept.figures["factor"] * factor}
    stronger = kept.model_copy(update=wider | {"figures": figures})
    was, now = (
        Fitted.of(artefact).edit()
        for artefact in (text.artefact, text.artefact.revised(steering=stronger))
    )
    for name in ("gain", "a_max", "region_max"):
        assert getattr(now, name) == pytest.approx(getattr(was, name))


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
