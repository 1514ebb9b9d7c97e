"""A new artefact for the new model: as little as the verdict asks for, from readings at hand."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from guardrail.artefact import header as h
from guardrail.errors import CalibrationError
from guardrail.fit.calibrate import calibration
from guardrail.fit.outcome import data_record, spread_warnings
from guardrail.fit.reference import reference_scores, to_header
from guardrail.fit.run import CALIBRATED_ON, CONTRAST_SOURCE
from guardrail.fit.select import is_safe, scored
from guardrail.fit.video_notes import NOTE, video_notes

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from pydantic import JsonValue
    from torch import Tensor

    from guardrail.artefact import Artefact
    from guardrail.drift.fitted import Fitted
    from guardrail.fit.reading import Readings
    from guardrail.types import Modality

_RENEWED = ("calibration: ", "re-centring ", "drift: ")  # and of videos, if it reads them
_OF_TRAFFIC = ("calibration", "calibrated_from")  # what `guardrail calibrate` tells of its inputs


def renamed(artefact: Artefact, identity: h.Fingerprint, record: JsonValue) -> Artefact:
    """The same artefact for the new model; itself if it already names it."""
    if artefact.header.fingerprint == identity:
        return artefact
    return artefact.revised(fingerprint=identity, extra=artefact.header.extra | {"drift": record})


def recalibrated(
    fitted: Fitted, readings: Readings, identity: h.Fingerprint, record: JsonValue
) -> Artefact:
    """The old readout and edit, with offsets and thresholds of the new model.

    Thresholds that the contrast prompts cannot renew are left out: none of the old model stay.
    """
    old, readout = fitted.artefact, fitted.readout
    offsets = {
        kind: h.Offset.model_validate(offset.spread(readout.weight, readout.layers, readout.gap))
        for kind, offset in readings.offsets.items()
    }
    made = _calibrations(fitted, readings)
    figures = scored(readout, readings.forms).to_dict()
    return old.revised(
        tensors=_tensors(fitted, readings),
        fingerprint=identity,
        readout=h.Readout.model_validate(old.header.readout.model_dump() | {"figures": figures}),
        offsets=offsets,
        calibration=made,
        data=data_record(readings),
        extra={name: value for name, value in old.header.extra.items() if name not in _OF_TRAFFIC}
        | {"reference": to_header(reference_scores(readings, readout)), "drift": record},
        warnings=tuple(_warnings(old, made, offsets)),
    )


def succeeding(made: Artefact, old: Artefact, record: JsonValue) -> Artefact:
    """A new fit as the successor of an old artefact."""
    return made.revised(
        parent=old.artefact_id,
        extra=made.header.extra | {"drift": record},
        warnings=(*made.header.warnings, *_replaced(old, made.header.calibration)),
    )


def targets(artefact: Artefact) -> h.Rates:
    """The target rates a new fit should hold to: those of text, or of what there is.

    Raises:
        CalibrationError: the artefact has no calibration at all.
    """
    for modality in CALIBRATED_ON:
        if modality in artefact.header.calibration:
            return artefact.header.calibration[modality].targets
    raise CalibrationError(
        f"{artefact.artefact_id} has no calibration of texts or images to compare with; run "
        "`guardrail calibrate` or `guardrail fit`"
    )


def supported(
    rates: h.Rates, readings: Readings, wanted: Iterable[str] = tuple(CALIBRATED_ON.values())
) -> h.Rates:
    """The rates, raised to what the fewest benign prompts of a wanted form can support.

    Rates that were set on much traffic may be smaller than any the contrast prompts can give.
    """
    forms = [readings.forms[name] for name in wanted if name in readings.forms]
    least = 1 / (min(len(form.rows("calibrate", is_safe)) for form in forms) + 1)
    return h.Rates(steer=max(rates.steer, least), flag=max(rates.flag, least))


def _calibrations(fitted: Fitted, readings: Readings) -> dict[Modality, h.Calibration]:
    made = {}
    for modality, form in CALIBRATED_ON.items():
        if form in readings.forms:
            before = fitted.artefact.header.calibration.get(modality)
            wanted = targets(fitted.artefact) if before is None else before.targets
            scores = fitted.readout.scores(readings.forms[form].rows("calibrate", is_safe))
            rates = supported(wanted, readings, [form])
            source = f"{CONTRAST_SOURCE}, {form}"
            made[modality] = calibration(scores.tolist(), rates, source=source)
    return made


def _tensors(fitted: Fitted, readings: Readings) -> dict[str, Tensor]:
    tensors, readout = dict(fitted.artefact.tensors), fitted.readout
    steering = fitted.artefact.header.steering
    for kind in fitted.kinds:
        offset = readings.offsets[kind]
        tensors[f"readout_offset_{kind}"] = offset.along(readout.weight, readout.layers).float()
        if steering is not None:
            at = steering.layer
            edit = offset.along(tensors["direction"][at][None], [at])[0]
            tensors[f"steer_offset_{kind}"] = torch.as_tensor(edit).float()
    return tensors


def _warnings(
    old: Artefact, made: dict[Modality, h.Calibration], offsets: Mapping[str, h.Offset]
) -> Iterator[str]:
    renewed = (*_RENEWED, NOTE) if old.reads_videos else _RENEWED
    yield from (w for w in old.header.warnings if not w.startswith(renewed))
    yield from spread_warnings(offsets)
    yield from _replaced(old, made)
    yield from video_notes(made, reads_videos=old.reads_videos)
    yield "drift: the layers' figures are those of the parent, measured on its model"
    if old.header.steering is not None:
        yield "drift: the steering figures are those of the parent, measured on its model"


def _replaced(old: Artefact, made: Mapping[Modality, h.Calibration]) -> Iterator[str]:
    """What a calibration on one's own inputs has lost to one on contrast prompts."""
    for modality, now in made.items():
        before = old.header.calibration.get(modality)
        if before is None or before.source.startswith(CONTRAST_SOURCE):
            continue
        raised = ""
        if now.targets != before.targets:
            how = "raised" if now.targets.flag >= before.targets.flag else "changed"
            raised = f", with targets {how} to {now.targets.steer:.2g} and {now.targets.flag:.2g}"
        yield (
            f"calibration: {modality} thresholds from {before.source} were replaced by ones from "
            f"{CONTRAST_SOURCE}{raised}; run `guardrail calibrate` again"
        )
    for modality in sorted(set(old.header.calibration) - set(made)):
        yield (
            f"calibration: {modality} thresholds are gone: nothing was read on the new model to "
            "set them; run `guardrail calibrate`"
        )
