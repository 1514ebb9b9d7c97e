"""The whole check: its report, its premises, and the old model at hand."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
import torch

from guardrail.artefact.header import Rates
from guardrail.drift.fitted import Fitted
from guardrail.drift.run import _Check, recalibrated, renamed, targets
from guardrail.drift.schema import DriftReport
from guardrail.errors import (
    ArtefactMismatchError,
    CalibrationError,
    ConfigurationError,
    DatasetError,
)
from guardrail.fit.outcome import from_header
from guardrail.fit.recentring import lines, lost_scores, measured
from guardrail.fit.run import CALIBRATED_ON
from guardrail.fit.select import is_safe
from guardrail.guard import Guard
from guardrail.model.fingerprint import fingerprint
from guardrail.stats import conformal_threshold

if TYPE_CHECKING:
    from guardrail.artefact import Artefact


def test_a_report_comes_back_from_its_json(drifted: Any) -> None:
    report = drifted("llava", "rebased").report
    assert DriftReport.model_validate_json(report.model_dump_json()) == report
    assert report.schema_version == 2


def test_the_report_names_what_was_compared(drifted: Any, text: Any, changed: Any) -> None:
    report = drifted("llama", "rebased").report
    assert report.artefact_id == text.artefact.artefact_id
    assert report.model == changed("llama", "rebased").name
    assert report.readout["layers"] == list(text.artefact.header.readout.layers)
    assert report.data["digest"] == text.artefact.header.data["digest"]
    (change,) = report.fingerprint
    assert (change.field, change.decides) == ("weights_digest", True)
    assert change.fitted == text.artefact.header.fingerprint.weights_digest
    assert report.repaired.artefact_id == drifted("llama", "rebased").artefact.artefact_id
    assert report.warnings == ()


def test_without_fix_nothing_is_made(text: Any, changed: Any) -> None:
    drift = text.check(changed("llama", "rebased"))
    assert drift.artefact is None
    assert drift.report.repaired is None
    assert drift.report.transport.reason is None


@pytest.mark.parametrize(
    ("reads", "seeing", "told"), [(False, True, True), (True, True, False), (False, False, False)]
)
def test_a_refit_says_when_it_reads_no_videos_that_it_could(
    reads: bool, seeing: bool, told: bool
) -> None:
    fitted: Any = SimpleNamespace(reads_videos=reads)
    collect: Any = SimpleNamespace(loaded=SimpleNamespace(is_multimodal=seeing))
    nothing: Any = None
    check = _Check(fitted, nothing, collect, nothing, nothing, nothing)
    assert (check._without_video() is not None) is told


def test_transport_is_looked_for_only_where_the_direction_is_lost(drifted: Any) -> None:
    assert drifted("llama", "bfloat16").report.transport is None
    assert "not a signed permutation" in drifted("llama", "another").report.transport.reason


def test_an_older_artefact_is_compared_through_the_old_model(text: Any, changed: Any) -> None:
    """Measured on the old model or taken from the artefact: the same figures."""
    older = text.artefact.revised(extra={})
    blind = text.check(changed("llama", "tuned a little"), artefact=older)
    assert blind.report.figures.separation.fitted is None
    assert "give --old-model" in blind.report.warnings[0]
    paired = text.check(
        changed("llama", "tuned a little"), artefact=older, old_model=text.loaded
    ).report
    wanted = text.check(changed("llama", "tuned a little")).report
    assert paired.warnings == ()
    assert paired.figures.rates == wanted.figures.rates
    found, known = paired.figures.separation, wanted.figures.separation
    assert found.fitted.value == pytest.approx(known.fitted.value)
    assert found.dropped.low == pytest.approx(known.dropped.low)
    shifts = [[row.shift.value for row in r.figures.shifts] for r in (paired, wanted)]
    assert shifts[0] == pytest.approx(shifts[1], abs=1e-5)
    assert paired.verdict == wanted.verdict


def test_a_basis_is_recovered_from_prompts_with_the_old_model(text: Any, changed: Any) -> None:
    drift = text.check(changed("llama", "rebased"), old_model=text.loaded, fix=True)
    assert drift.report.transport.source == "activations"
    assert drift.report.repaired.how == "transported"


def test_a_transport_that_does_not_hold_ends_in_a_fit(
    text: Any, changed: Any, monkeypatch: Any
) -> None:
    from guardrail.drift import run
    from guardrail.drift.transport import SignedPermutation

    real = run.find_transport

    def wrong(*args: Any) -> Any:
        found = real(*args)
        reversed_map = SignedPermutation(found.map.places.flip(0), found.map.signs)
        return run.Transport(reversed_map, found.figures)

    monkeypatch.setattr(run, "find_transport", wrong)
    drift = text.check(changed("llama", "rebased"), fix=True)
    assert drift.report.repaired.how == "refitted"
    assert "transport was found but does not hold" in drift.report.warnings[0]


def test_the_old_model_must_be_the_artefacts_own(text: Any, changed: Any) -> None:
    with pytest.raises(ArtefactMismatchError, match="weights_digest") as raised:
        text.check(text.loaded, old_model=changed("llama", "another"))
    fitted, running = raised.value.fields["weights_digest"]
    assert fitted == text.artefact.header.fingerprint.weights_digest
    assert running not in str(raised.value)


def test_other_prompts_are_refused_before_the_model_is_asked(text: Any) -> None:
    from guardrail.drift.run import check_drift

    seen: list[str] = []
    with pytest.raises(DatasetError, match="--replace-data"):
        check_drift(
            text.artefact,
            text.loaded,
            measure=True,
            progress=lambda name, *_: seen.append(name),
        )
    assert seen == []


@pytest.mark.parametrize("fix", [False, True])
def test_the_model_of_the_fit_is_kept_without_a_look_at_it(text: Any, fix: bool) -> None:
    seen: list[str] = []
    drift = text.check(
        text.loaded, measure=False, fix=fix, progress=lambda name, *_: seen.append(name)
    )
    report = drift.report
    assert (report.verdict, report.figures, report.scores, seen) == ("keep", None, (), [])
    assert report.reasons[0].startswith("nothing was measured, because nothing has changed")
    assert DriftReport.model_validate_json(report.model_dump_json()) == report
    assert drift.artefact is (text.artefact if fix else None)
    assert (report.repaired is not None) is fix


def test_a_change_that_does_not_decide_is_measured_where_it_moves_scores(
    text: Any, changed: Any
) -> None:
    assert text.check(changed("llama", "bfloat16"), measure=False).report.figures is not None
    elsewhere = text.artefact.header.fingerprint.model_copy(update={"revision": "abc"})
    moved = text.artefact.revised(fingerprint=elsewhere)
    assert text.check(text.loaded, artefact=moved, measure=False).report.figures is None


def test_other_packages_are_named_where_nothing_is_measured(text: Any) -> None:
    older = text.artefact.revised(packages={"torch": "1.0", "safetensors": "0.1"})
    (warning,) = text.check(text.loaded, artefact=older, measure=False).report.warnings
    assert "fitted with torch 1.0" in warning
    assert "--measure" in warning


def test_fewer_prompts_are_among_those_of_the_fit_and_compared_in_pairs(
    text: Any, changed: Any
) -> None:
    whole = text.check(changed("llama", "tuned a little")).report
    fewer = text.check(changed("llama", "tuned a little"), per_kind=5).report
    plain, all_plain = (report.figures.forms[0] for report in (fewer, whole))
    assert (plain.form, plain.n_unsafe) == ("plain", 3)
    assert plain.n_safe < all_plain.n_safe
    assert plain.fitted is not None
    assert all(row.fitted is not None for row in fewer.figures.rates)
    assert fewer.verdict == whole.verdict


def test_a_change_of_basis_is_not_looked_for_in_other_prompts_than_the_means(
    text: Any, changed: Any
) -> None:
    report = text.check(changed("llama", "rebased"), per_kind=5).report
    assert (report.verdict, report.transport) == ("refit", None)


def test_a_repair_of_fewer_prompts_than_the_fits_is_refused(text: Any, changed: Any) -> None:
    with pytest.raises(ConfigurationError, match="as many prompts as the fit"):
        text.check(changed("llama", "rebased"), per_kind=5, fix=True)


def test_the_prompts_of_the_fit_are_read_however_many_it_took(text: Any) -> None:
    from guardrail.drift.fitted import Fitted

    data = text.artefact.header.data
    assert Fitted.of(text.artefact).per_kind == data["per_kind"] == 64
    for wanted in (None, 7):
        stored = text.artefact.revised(data=data | {"per_kind": wanted})
        assert Fitted.of(stored).per_kind == wanted


def test_residuals_are_kept_per_model(text: Any, changed: Any, tmp_path: Any) -> None:
    """One work_dir for several models must not give one model the other's residuals."""
    first = text.check(text.loaded, work_dir=tmp_path)
    second = text.check(changed("llama", "rebased"), work_dir=tmp_path)
    assert first.report.verdict == "keep"
    assert second.report.verdict == "refit"
    before = sorted(path.name for path in tmp_path.iterdir())
    again = text.check(changed("llama", "rebased"), work_dir=tmp_path)
    assert again.report.figures == second.report.figures
    assert sorted(path.name for path in tmp_path.iterdir()) == before


@pytest.fixture(scope="module")
def template(pictures: Any, changed: Any) -> Any:
    """The planted vision-language model behind another chat template, read."""
    return pictures.read(changed("llava", "template"))


@pytest.fixture(scope="module")
def made(template: Any, changed: Any) -> Artefact:
    identity = fingerprint(changed("llava", "template"))
    return recalibrated(template.fitted, template.readings, identity, {"how": "recalibrated"})


def test_a_kept_artefact_changes_its_fingerprint_alone(drifted: Any, text: Any) -> None:
    old, new = text.artefact, drifted("llama", "bfloat16").artefact
    assert all(torch.equal(new.tensors[name], tensor) for name, tensor in old.tensors.items())
    same = (
        "readout",
        "steering",
        "layers",
        "windows",
        "recentring",
        "calibration",
        "data",
        "warnings",
    )
    assert all(getattr(new.header, name) == getattr(old.header, name) for name in same)
    assert new.header.warnings == old.header.warnings
    assert new.header.fingerprint.dtype == "bfloat16"
    assert new.header.extra["reference"] == old.header.extra["reference"]


def test_an_artefact_that_names_the_model_already_is_returned(text: Any) -> None:
    assert renamed(text.artefact, fingerprint(text.loaded), {}) is text.artefact


def test_recalibration_keeps_what_is_read_and_measures_the_rest(
    made: Artefact, template: Any, pictures: Any
) -> None:
    old, readings = pictures.artefact, template.readings
    assert all(torch.equal(made.tensors[name], tensor) for name, tensor in old.tensors.items())
    assert (made.header.windows, made.header.steering) == (old.header.windows, old.header.steering)
    again = Fitted.of(made)
    means = made.header.readout.estimator == "difference of means"
    taken = lines(readings.beside, again.readout.scores) if means else {}
    steering = lines(readings.beside, again.edit().local_scores)
    assert set(made.header.recentring) == {"image", "images", "video"}
    for kind, row in measured(readings.beside, again.readout.scores, taken, steering).items():
        found = made.header.recentring[kind]
        assert found.model_dump(exclude={"score", "steering"}) == pytest.approx(
            row.model_dump(exclude={"score", "steering"}), abs=1e-5
        )
        for name in ("score", "steering"):
            line = getattr(found, name).model_dump()
            assert line == pytest.approx(getattr(row, name).model_dump(), abs=1e-5)
    for modality, groups in CALIBRATED_ON.items():
        tried = [g for g in groups if g in readings.forms]
        if not tried:
            continue
        found = made.header.calibration[modality]
        named = found.source.removeprefix("safe contrast prompts, ").split("+")
        held = [readings.forms[group].of("calibrate", is_safe) for group in named]
        scores = [s for form in held for s in again.joint.scores(form).tolist()]
        assert found.scores == pytest.approx(sorted(scores), abs=1e-6)
        assert found.targets == Rates(steer=0.06, flag=0.05)
        assert found.thresholds.flag == conformal_threshold(found.scores, 0.05)


def test_recalibrated_figures_are_of_the_new_model(made: Artefact, template: Any) -> None:
    from guardrail.fit.select import scored

    figures, again = made.header.readout.figures, Fitted.of(made)
    assert figures["auroc"] == scored(again.readout, template.readings.forms).auroc
    assert "compared" not in figures
    reference = from_header(made.header.extra["reference"])
    scores = again.joint.scores(template.readings.forms["drawn"]).tolist()
    assert list(reference["drawn"].values()) == pytest.approx(scores, abs=1e-6)
    assert any("steering figures are those of the parent" in w for w in made.header.warnings)
    told = [w for w in made.header.warnings if w.startswith("re-centring")]
    assert told == list(lost_scores(made.header.recentring))
    assert [w for w in made.header.warnings if w.startswith("video: ")] == [
        w for w in template.fitted.artefact.header.warnings if w.startswith("video: ")
    ]


def test_an_artefact_without_videos_is_recalibrated_without(
    pictures: Any, template: Any, changed: Any
) -> None:
    old = pictures.artefact
    rows = {kind: row for kind, row in old.header.recentring.items() if kind != "video"}
    fitted = Fitted.of(old.revised(recentring=rows, warnings=()))
    beside = {k: v for k, v in template.readings.beside.items() if k != "video"}
    readings = replace(template.readings, beside=beside)
    made = recalibrated(fitted, readings, fingerprint(changed("llava", "template")), {})
    assert not made.reads_videos
    assert set(made.header.recentring) == {"image", "images"}
    assert not [w for w in made.header.warnings if w.startswith("video")]


def test_a_recalibrated_artefact_passes_the_next_check(
    made: Artefact, pictures: Any, changed: Any
) -> None:
    again = pictures.check(changed("llava", "template"), artefact=made)
    assert again.report.verdict == "keep", again.report.reasons
    assert again.report.fingerprint == ()
    assert again.artefact is None


def test_a_recalibrated_artefact_survives_its_file_and_guards(
    made: Artefact, changed: Any, tmp_path: Any
) -> None:
    path = made.save(tmp_path / "made.guard.safetensors")
    with Guard(changed("llava", "template"), path) as guard:
        assert guard.check("tell me about the user and the dog").action != "pass"


def test_thresholds_of_own_traffic_are_replaced_and_that_is_said(
    pictures: Any, template: Any, changed: Any
) -> None:
    calibration = dict(pictures.artefact.header.calibration)
    own = calibration["text"].model_copy(update={"source": "benign traffic"})
    old = pictures.artefact.revised(
        calibration=calibration | {"text": own},
        warnings=("re-centring: beside a picture (kind 'x') of then", "kept"),
        extra=pictures.artefact.header.extra | {"calibration": {}, "calibrated_from": {}},
    )
    from guardrail.drift.fitted import Fitted

    identity = fingerprint(changed("llava", "template"))
    made = recalibrated(Fitted.of(old), template.readings, identity, {})
    warnings = made.header.warnings
    assert any("text thresholds from benign traffic were replaced" in w for w in warnings)
    assert "kept" in warnings
    assert set(made.header.extra) == {"reference", "drift"}
    assert not any("of then" in w for w in warnings)  # those there are, are of the new model


def with_traffic(old: Artefact, rate: float) -> Artefact:
    """The artefact after a calibration on much traffic, at a rate few prompts can support."""
    calibration = {
        modality: row.model_copy(
            update={"source": "benign traffic", "targets": Rates(steer=rate, flag=rate)}
        )
        for modality, row in old.header.calibration.items()
    }
    return old.revised(calibration=calibration)


@pytest.mark.parametrize(("family", "change"), [("llava", "template"), ("llama", "another")])
def test_targets_beyond_the_prompts_are_raised_and_that_is_said(
    planted_of: Any, changed: Any, family: str, change: str
) -> None:
    old = planted_of(family)
    drift = old.check(changed(family, change), artefact=with_traffic(old.artefact, 1e-4), fix=True)
    found = drift.artefact.header.calibration["text"]
    rate = 1 / (found.n + 1)
    assert found.targets == Rates(steer=rate, flag=rate)
    assert found.thresholds.flag == max(found.scores)
    (warning,) = (w for w in drift.artefact.header.warnings if w.startswith("calibration: text "))
    assert (
        f"targets raised to {rate:.2g} and {rate:.2g}; run `guardrail calibrate` again" in warning
    )


def test_few_videos_do_not_loosen_the_thresholds_of_texts(
    pictures: Any, template: Any, changed: Any
) -> None:
    plain = template.readings.forms["plain"]
    safe = [i for i, s in enumerate(plain.splits) if s == "calibrate" and is_safe(plain.kinds[i])]
    some = safe[:5]
    filmed = plain.taken(some)
    readings = replace(template.readings, forms={**template.readings.forms, "filmed": filmed})
    fitted = Fitted.of(with_traffic(pictures.artefact, 1e-4))
    made = recalibrated(fitted, readings, fingerprint(changed("llava", "template")), {})
    found = made.header.calibration["text"]
    assert found.n > len(safe)  # the bare ones and those with words around
    assert found.targets.flag == 1 / (found.n + 1)
    assert made.header.calibration["video"].targets.flag == 1 / 6


def test_a_new_fit_is_the_successor_of_the_old_artefact(drifted: Any, text: Any) -> None:
    made = drifted("llama", "another").artefact
    assert made.header.parent == text.artefact.artefact_id
    assert made.header.refusal_prefixes == text.artefact.header.refusal_prefixes
    assert made.header.calibration["text"].targets == targets(text.artefact)
    assert made.header.data == text.artefact.header.data
    assert made.header.extra["drift"]["from"] == text.artefact.artefact_id


def test_a_refit_asks_the_model_nothing_twice(text: Any, changed: Any) -> None:
    seen: list[tuple[str, int]] = []
    text.check(
        changed("llama", "another"),
        fix=True,
        progress=lambda name, done, _: seen.append((name, done)),
    )
    reads = [item for item in seen if item[0] == "contrast prompts"]
    assert len(reads) == len(set(reads))
    assert "steering strength" in {name for name, _ in seen}


def test_an_artefact_without_any_calibration_has_no_targets(text: Any) -> None:
    with pytest.raises(CalibrationError, match="no calibration of texts or images"):
        targets(text.artefact.revised(calibration={}))


def test_thresholds_that_cannot_be_renewed_do_not_stay(
    pictures: Any, template: Any, changed: Any
) -> None:
    """None of another model's thresholds under the new model's name."""
    from guardrail.drift.fitted import Fitted

    calibration = pictures.artefact.header.calibration
    old = pictures.artefact.revised(calibration=calibration | {"video": calibration["image"]})
    identity = fingerprint(changed("llava", "template"))
    made = recalibrated(Fitted.of(old), template.readings, identity, {})
    assert set(made.header.calibration) == {"text", "image"}
    assert any("video thresholds are gone" in w for w in made.header.warnings)


def test_an_artefact_for_pictures_alone_is_checked_and_recalibrated(
    pictures: Any, template: Any, changed: Any
) -> None:
    """It has targets, and none for texts."""
    from guardrail.drift.fitted import Fitted

    image = pictures.artefact.header.calibration["image"]
    old = pictures.artefact.revised(calibration={"image": image})
    assert pictures.check(pictures.loaded, artefact=old).report.verdict == "keep"
    identity = fingerprint(changed("llava", "template"))
    made = recalibrated(Fitted.of(old), template.readings, identity, {})
    assert made.header.calibration["text"].targets == image.targets
