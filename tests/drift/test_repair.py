"""What `fix` makes: as little as the verdict asks for, and all of it of the new model."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
import torch

from guardrail.artefact.header import Rates
from guardrail.drift.fitted import Fitted
from guardrail.drift.repair import recalibrated, renamed, targets
from guardrail.errors import CalibrationError
from guardrail.fit.outcome import WIDE_SPREAD
from guardrail.fit.reference import from_header
from guardrail.fit.select import FormResiduals, is_safe
from guardrail.guard import Guard
from guardrail.model.fingerprint import fingerprint
from guardrail.stats import conformal_threshold

if TYPE_CHECKING:
    from guardrail.artefact import Artefact


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
    same = ("readout", "steering", "layers", "offsets", "calibration", "data", "warnings")
    assert all(getattr(new.header, name) == getattr(old.header, name) for name in same)
    assert new.header.fingerprint.dtype == "bfloat16"
    assert new.header.extra["reference"] == old.header.extra["reference"]


def test_an_artefact_that_names_the_model_already_is_returned(text: Any) -> None:
    assert renamed(text.artefact, fingerprint(text.loaded), {}) is text.artefact


def test_recalibration_keeps_directions_and_measures_the_rest(
    made: Artefact, template: Any, pictures: Any
) -> None:
    old, readings = pictures.artefact, template.readings
    for name in ("direction", "mu_safe", "mu_unsafe", "readout_weight", "readout_gap"):
        assert torch.equal(made.tensors[name], old.tensors[name])
    layers, weight = made.header.readout.layers, made.tensors["readout_weight"]
    at = made.header.steering.layer
    for kind in ("image", "images", "video"):
        along = readings.offsets[kind].along(weight, layers)
        torch.testing.assert_close(made.tensors[f"readout_offset_{kind}"], along.float())
        edit = readings.offsets[kind].along(made.tensors["direction"][at][None], [at])[0]
        assert float(made.tensors[f"steer_offset_{kind}"]) == pytest.approx(float(edit), abs=1e-5)
        size = float((along / made.tensors["readout_gap"]).mean())
        assert made.header.offsets[kind].size == pytest.approx(size, abs=1e-5)
    for modality, form in (("text", "plain"), ("image", "drawn")):
        scores = template.fitted.readout.scores(readings.forms[form].rows("calibrate", is_safe))
        found = made.header.calibration[modality]
        assert found.scores == pytest.approx(sorted(scores.tolist()))
        assert found.targets == Rates(steer=0.1, flag=0.05)
        assert found.thresholds.flag == conformal_threshold(found.scores, 0.05)


def test_recalibrated_figures_are_of_the_new_model(made: Artefact, template: Any) -> None:
    from guardrail.fit.select import scored

    figures = made.header.readout.figures
    assert figures["auroc"] == scored(template.fitted.readout, template.readings.forms).auroc
    assert "compared" not in figures
    reference = from_header(made.header.extra["reference"])
    scores = template.fitted.readout.scores(template.readings.forms["drawn"].residuals)
    assert list(reference["drawn"].values()) == pytest.approx(scores.tolist(), abs=1e-6)
    assert any("steering figures are those of the parent" in w for w in made.header.warnings)
    wide = [k for k, row in made.header.offsets.items() if row.spread_colours > WIDE_SPREAD]
    assert wide  # of meaningless pictures in a random model
    for kind in wide:
        assert any(w.startswith(f"re-centring of kind {kind!r} ") for w in made.header.warnings)
    assert [w for w in made.header.warnings if w.startswith("video: ")] == [
        w for w in template.fitted.artefact.header.warnings if w.startswith("video: ")
    ]


def test_an_artefact_without_videos_is_recalibrated_without(
    pictures: Any, template: Any, changed: Any
) -> None:
    old = pictures.artefact
    header = {
        "offsets": {kind: row for kind, row in old.header.offsets.items() if kind != "video"},
        "warnings": (),
    }
    tensors = {n: t for n, t in old.tensors.items() if not n.endswith("_video")}
    fitted = Fitted.of(old.revised(tensors=tensors, **header))
    readings = replace(
        template.readings,
        offsets={k: v for k, v in template.readings.offsets.items() if k != "video"},
    )
    made = recalibrated(fitted, readings, fingerprint(changed("llava", "template")), {})
    assert not made.reads_videos
    assert set(made.header.offsets) == {"image", "images"}
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
        warnings=("re-centring of kind x", "kept"),
        extra=pictures.artefact.header.extra | {"calibration": {}, "calibrated_from": {}},
    )
    from guardrail.drift.fitted import Fitted

    identity = fingerprint(changed("llava", "template"))
    made = recalibrated(Fitted.of(old), template.readings, identity, {})
    warnings = made.header.warnings
    assert any("text thresholds from benign traffic were replaced" in w for w in warnings)
    assert "kept" in warnings
    assert set(made.header.extra) == {"reference", "drift"}
    assert "re-centring of kind x" not in warnings  # those there are, are of the new model


def with_traffic(old: Artefact, rate: float) -> Artefact:
    """The artefact after a calibration on much traffic, at a rate few prompts can support."""
    calibration = {
        modality: row.model_copy(
            update={"source": "benign traffic", "targets": Rates(steer=rate, flag=rate)}
        )
        for modality, row in old.header.calibration.items()
    }
    return old.revised(calibration=calibration)


@pytest.mark.parametrize("change", ["template", "another"])
def test_targets_beyond_the_prompts_are_raised_and_that_is_said(
    text: Any, changed: Any, change: str
) -> None:
    drift = text.check(
        changed("llama", change), artefact=with_traffic(text.artefact, 1e-4), fix=True
    )
    found = drift.artefact.header.calibration["text"]
    assert found.targets == Rates(steer=1 / (found.n + 1), flag=1 / (found.n + 1))
    assert found.thresholds.flag == max(found.scores)
    (warning,) = (w for w in drift.artefact.header.warnings if w.startswith("calibration: "))
    assert "targets raised to 0.018 and 0.018; run `guardrail calibrate` again" in warning


def test_few_videos_do_not_loosen_the_thresholds_of_texts(
    pictures: Any, template: Any, changed: Any
) -> None:
    plain = template.readings.forms["plain"]
    safe = [i for i, s in enumerate(plain.splits) if s == "calibrate" and is_safe(plain.kinds[i])]
    texts, some = len(safe), safe[:5]
    few = FormResiduals(
        samples=[plain.samples[i] for i in some],
        residuals=plain.residuals[some],
        splits=[plain.splits[i] for i in some],
        kinds=[plain.kinds[i] for i in some],
    )
    readings = replace(template.readings, forms={**template.readings.forms, "filmed": few})
    fitted = Fitted.of(with_traffic(pictures.artefact, 1e-4))
    made = recalibrated(fitted, readings, fingerprint(changed("llava", "template")), {})
    assert made.header.calibration["text"].targets.flag == 1 / (texts + 1)
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
