from __future__ import annotations

import math
from dataclasses import replace
from itertools import product
from typing import TYPE_CHECKING, Any

import pytest
import torch
from scipy.stats import ttest_1samp

from guardrail.drift.fitted import Fitted
from guardrail.drift.measure import mcnemar, measure, picture_drifts, rate_drifts, score_lists
from guardrail.errors import DetectorError
from guardrail.fit.recentring import Beside
from guardrail.fit.select import is_unsafe, separation
from guardrail.guard import Guard
from guardrail.stats import Rate, auroc, auroc_interval
from tests.fit.residuals import with_last

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
        ("plain", "unsafe"), ("plain", "safe"), ("worded", "unsafe"), ("worded", "safe"),
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
        held = form.of("select")
        scores, kinds = tuned.fitted.joint.scores(held).tolist(), held.kinds
        unsafe = [s for s, kind in zip(scores, kinds, strict=True) if is_unsafe(kind)]
        safe = [s for s, kind in zip(scores, kinds, strict=True) if not is_unsafe(kind)]
        assert (row.n_unsafe, row.n_safe) == (len(unsafe), len(safe))
        assert row.old.value == pytest.approx(auroc(unsafe, safe))
        assert (row.old.low, row.old.high) == pytest.approx(auroc_interval(unsafe, safe))
        assert row.fitted is not None


def mean_auroc_of(joint: Any, readings: Any) -> float:
    """Over kinds of safe prompts, then over forms, of the joint score."""
    held = [form.of("select") for form in readings.forms.values()]
    found = [separation(joint.scores(form), form.kinds).mean for form in held if form.kinds]
    return sum(found) / len(found)


def test_the_figure_is_the_one_a_fit_chooses_by(text: Any, read: Any) -> None:
    """On the fitted model the same and the best readout are one, and old scores those of then."""
    found = measure(read.fitted, read.collect, read.readings, read.candidates).separation
    recorded = text.artefact.header.readout.figures["auroc"]
    for estimate in (found.same, found.best):
        assert estimate.value == pytest.approx(recorded)
    assert found.old.value == pytest.approx(found.fitted.value)
    assert found.old.value == pytest.approx(
        mean_auroc_of(read.fitted.joint, read.readings), abs=1e-6
    )
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
    assert found[-1].cosine is None  # that layer is not read
    for row in found[:-1]:
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
    only_detects = Fitted.of(text.artefact.revised(steering=None))
    assert only_detects.edit() is None
    found = measure(only_detects, read.collect, read.readings, read.candidates)
    assert found.steering is None


def test_pictures_are_scored_as_a_guard_with_the_old_artefact_would(
    pictures: Any, changed: Any
) -> None:
    made, model = pictures.read(changed("llava", "template")), changed("llava", "template")
    found = made.fitted.scores(made.readings, "drawn").tolist()
    requests = [sample.request for sample in made.readings.forms["drawn"].samples]
    with Guard(model, pictures.artefact, allow_mismatch=True) as guard:
        wanted = [verdict.score for verdict in guard.check_batch(requests)]
    assert found == pytest.approx(wanted, abs=2e-3)


def test_what_pictures_do_is_measured_with_the_old_lines(pictures: Any, changed: Any) -> None:
    made = pictures.read(changed("llava", "template"))
    then = pictures.artefact.header.recentring
    rows = list(picture_drifts(made.fitted, made.readings.beside))
    assert [row.kind for row in rows] == list(then)
    for row in rows:
        beside = made.readings.beside[row.kind].of("select")
        kinds = [row.kind] * len(beside.splits)
        moved = made.fitted.readout.scores(beside.beside, kinds)
        moved -= made.fitted.readout.scores(beside.alone)
        unsafe = torch.tensor(beside.unsafe)
        assert row.safe_now == pytest.approx(float(moved[~unsafe].mean()))
        assert row.unsafe_now == pytest.approx(float(moved[unsafe].mean()))
        assert (row.safe_fitted, row.unsafe_fitted) == (then[row.kind].safe, then[row.kind].unsafe)


def test_residuals_that_overflow_are_an_error(text: Any, read: Any) -> None:
    form = read.readings.forms["plain"]
    broken = with_last(form, form.residuals * math.inf)
    readings = replace(read.readings, forms={**read.readings.forms, "plain": broken})
    with pytest.raises(DetectorError, match="another dtype"):
        read.fitted.scores(readings, "plain")


def test_pictures_that_overflow_are_an_error(pictures: Any) -> None:
    """Two pictures may overflow where one does not."""
    rows = torch.randn(8, *pictures.artefact.tensors["direction"].shape)
    fine = Beside(["select"] * 8, [True, False] * 4, rows, rows)
    broken = replace(fine, beside=rows * math.nan)
    with pytest.raises(DetectorError, match="re-centring, images"):
        list(picture_drifts(Fitted.of(pictures.artefact), {"image": fine, "images": broken}))


def test_the_edit_is_told_with_the_prompts_it_was_measured_on(read: Any) -> None:
    form = read.readings.forms["plain"]
    ordinary = [
        i
        for i, (split, kind) in enumerate(zip(form.splits, form.kinds, strict=True))
        if (split, kind) == ("select", "ordinary")
    ]
    kept = [i for i in range(len(form.kinds)) if i not in ordinary[5:]]
    readings = replace(read.readings, forms={"plain": form.taken(kept)})
    found = measure(read.fitted, read.collect, readings, read.candidates)
    assert found.steering.n == 5


@pytest.mark.parametrize("family", ["llama", "llava"])
def test_centroids_of_the_fitted_model_are_zero_and_one(planted_of: Any, family: str) -> None:
    """Those of the readout, by which scores have their scale, whatever windows add."""
    case = planted_of(family)
    made = case.read(case.loaded)
    found = measure(made.fitted, made.collect, made.readings, made.candidates)
    assert found.centroids_now == pytest.approx((0, 1), abs=1e-4)


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
    held = [f.of("select", is_unsafe).kinds for f in read.readings.forms.values()]
    assert (unsafe.now.n, unsafe.target) == (sum(map(len, held)), None)
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
