"""The whole check: an artefact and another model in, a verdict and perhaps a new artefact out."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import UTC, datetime
from importlib.metadata import version
from typing import TYPE_CHECKING

from guardrail.artefact.header import Rates, Readout
from guardrail.drift.fitted import Fitted, Reader, fitted_contrast, require_shape
from guardrail.drift.measure import measure, score_lists
from guardrail.drift.schema import DriftReport, FieldChange, Repair, Repaired
from guardrail.drift.transport import Transport, find_transport, transported
from guardrail.drift.verdict import UNCHANGED, Judgement, judge
from guardrail.errors import CalibrationError, ConfigurationError
from guardrail.extras import require_extra
from guardrail.fit.outcome import (
    NOTE,
    data_record,
    reference_scores,
    to_header,
    video_notes,
)
from guardrail.fit.readings import read_all
from guardrail.fit.recentring import lines, lost_scores, measured
from guardrail.fit.refusal import REFUSAL_PREFIXES
from guardrail.fit.run import (
    CALIBRATED_ON,
    CONTRAST_SOURCE,
    calibrations,
    candidates_of,
    finish,
    recentred_readout,
)
from guardrail.fit.select import is_safe, scored
from guardrail.model.fingerprint import fingerprint, require_fitted_on
from guardrail.types import Modality

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

    from pydantic import JsonValue

    from guardrail.artefact import Artefact
    from guardrail.artefact.header import Calibration, Fingerprint, Recentring
    from guardrail.drift.schema import Figures, Scores, TransportFigures
    from guardrail.fit.collect import Collector, Progress
    from guardrail.fit.dataset import ContrastSet
    from guardrail.fit.joint import JointReadout
    from guardrail.fit.readings import Readings
    from guardrail.fit.select import Candidate
    from guardrail.model.load import LoadedModel

_RENEWED = ("calibration: ", "re-centring: ", "drift: ")  # and of videos, if it reads them
_OF_TRAFFIC = ("calibration", "calibrated_from")  # what `guardrail calibrate` tells of its inputs


@dataclass(frozen=True)
class Drift:
    """The report, and the artefact that was made if one was asked for."""

    report: DriftReport
    artefact: Artefact | None


def check_drift(
    artefact: Artefact,
    loaded: LoadedModel,
    *,
    old_model: LoadedModel | None = None,
    data: str | Path | None = None,
    extend: bool = True,
    fix: bool = False,
    measure: bool = False,
    per_kind: int | None = None,
    batch_size: int = 16,
    work_dir: Path | None = None,
    progress: Progress | None = None,
) -> Drift:
    """Whether an artefact still holds on a model, and with `fix` one that does.

    A model with the artefact's own fingerprint, in the dtype of the fit, is the one it was fitted
    on: it is kept, and nothing is measured unless `measure` asks for it.

    Args:
        artefact: fitted on another, or the same, checkpoint.
        loaded: the model to hold it against.
        old_model: the model it was fitted on; its scores are then measured instead of taken from
            the artefact, and a change of basis is recovered from single prompts.
        data: the contrast prompts of the fit, if it did not use the packaged ones alone.
        extend: whether `data` was added to the packaged prompts instead of replacing them.
        fix: make the artefact the verdict asks for.
        measure: read the prompts even if the model has not changed.
        per_kind: read at most so many bare prompts of a kind (half as many to select among), out of
            those that the fit read, which None reads all. Fewer are faster and tell less: the new
            fit that is compared with is one on as few, and no change of basis is looked for.
        batch_size: prompts in one forward pass.
        work_dir: keep residuals there as they are read.
        progress: called with a stage's name, what is done of it, and its total.

    Raises:
        ArtefactMismatchError: the model has another number of layers or another width, or
            `old_model` is not the model the artefact was fitted on.
        ConfigurationError: `per_kind` with `fix`: a repair is made of all that the fit read.
        DatasetError: the prompts are not those of the fit.
        MissingExtraError: the extra `fit` is not installed, and something is to be measured.
        NoUsableDirectionError: nothing in the new model separates unsafe from safe prompts.
    """
    if per_kind is not None and fix:
        raise ConfigurationError(
            "a repair is made of as many prompts as the fit read; leave out how many of a kind, or "
            "`guardrail fit --per-kind` on the new model"
        )
    require_shape(artefact, loaded)
    identity = fingerprint(loaded)
    old_identity = None if old_model is None else require_fitted_on(artefact, old_model)
    if not measure and _unchanged(artefact.header.fingerprint, identity):
        return _kept(artefact, loaded, identity, fix=fix)
    require_extra("fit")
    contrast = fitted_contrast(artefact, data, extend=extend)
    reader = Reader(contrast, batch_size, work_dir, progress)
    rates = targets(artefact)
    fitted, old_readings = Fitted.of(artefact), None
    if old_model is not None and old_identity is not None:
        collect = reader.collector(old_model, old_identity)
        old_readings = _read(collect, contrast, rates, fitted, per_kind)
        fitted = Fitted.of(artefact, reference_scores(old_readings, fitted.joint))
    collect = reader.collector(loaded, identity)
    readings = _read(collect, contrast, rates, fitted, per_kind)
    found = candidates_of(readings)
    few = per_kind is not None and (fitted.per_kind is None or per_kind < fitted.per_kind)
    check = _Check(fitted, identity, collect, readings, found, old_readings, few=few)
    return check.run(fix=fix)


def _unchanged(then: Fingerprint, now: Fingerprint) -> bool:
    """Whether it is the model of the fit, in the same precision; from which commit is no matter."""
    return not then.differences(now) and then.dtype == now.dtype


def _kept(artefact: Artefact, loaded: LoadedModel, identity: Fingerprint, *, fix: bool) -> Drift:
    """The answer for the model of the fit itself, without a look at it."""
    judged = Judgement("keep", (UNCHANGED,))
    made = repaired = None
    if fix:
        made = renamed(artefact, identity, _record(artefact, judged, "fingerprint"))
        repaired = Repaired(artefact_id=made.artefact_id, how="fingerprint")
    told = _other_packages(artefact)
    return Drift(_report(artefact, loaded, identity, judged, told, repaired=repaired), made)


@dataclass(frozen=True)
class _Check:
    fitted: Fitted
    identity: Fingerprint
    collect: Collector
    readings: Readings
    candidates: Sequence[Candidate]
    old_readings: Readings | None
    few: bool = False  # prompts: fewer than the fit read

    def run(self, *, fix: bool) -> Drift:
        figures = measure(self.fitted, self.collect, self.readings, self.candidates)
        judged, artefact = judge(figures), self.fitted.artefact
        # The artefact's means, by which a change of basis is known, are of all prompts of the fit.
        lost = judged.verdict == "refit" and not self.few
        transport = self._transport() if lost else None
        warnings: list[str] = list(_warnings(self.fitted))
        made, repaired = None, None
        if fix:
            made, how = self._repaired(judged, transport, warnings)
            repaired = Repaired(artefact_id=made.artefact_id, how=how)
            # what the repair cost, thresholds on one's own traffic above all
            old = set(artefact.header.warnings)
            warnings += [warning for warning in made.header.warnings if warning not in old]
        report = _report(
            artefact,
            self.collect.loaded,
            self.identity,
            judged,
            warnings,
            figures=figures,
            transport=None if transport is None else transport.figures,
            repaired=repaired,
            scores=score_lists(self.fitted, self.readings),
        )
        return Drift(report, made)

    def _transport(self) -> Transport:
        old = None if self.old_readings is None else self.old_readings.forms["plain"]
        return find_transport(self.fitted, self.readings.forms["plain"], old)

    def _repaired(
        self, judged: Judgement, transport: Transport | None, warnings: list[str]
    ) -> tuple[Artefact, Repair]:
        old = self.fitted.artefact
        if judged.verdict == "keep":
            made = renamed(old, self.identity, _record(old, judged, "fingerprint"))
            return answering(made, old), "fingerprint"
        if judged.verdict == "recalibrate":
            record = _record(old, judged, "recalibrated")
            made = recalibrated(self.fitted, self.readings, self.identity, record)
            return answering(made, old), "recalibrated"
        if transport is not None and transport.figures.reason is None:
            record = _record(old, judged, "transported")
            carried = transported(old, transport.map, self.identity, record)
            if self._holds(carried, warnings):
                return carried, "transported"
        made = finish(
            self.collect,
            self.readings,
            self.candidates,
            identity=self.identity,
            rates=supported(targets(old), self.readings),
            prefixes=old.header.refusal_prefixes or REFUSAL_PREFIXES,
            without_video=self._without_video(),
        )
        record = _record(old, judged, "refitted")
        return answering(succeeding(made, old, record), old), "refitted"

    def _without_video(self) -> str | None:
        """Why a new fit of a model that takes pictures reads no videos; None if it does."""
        if self.fitted.reads_videos or not self.collect.loaded.is_multimodal:
            return None
        return "the artefact before it was fitted without them; run `guardrail fit` to read them"

    def _holds(self, carried: Artefact, warnings: list[str]) -> bool:
        """Whether a transported artefact passes the same check as the old one failed."""
        again = Fitted.of(carried, self.fitted.reference)
        judged = judge(measure(again, self.collect, self.readings, self.candidates))
        if judged.verdict != "keep":
            warnings.append(f"transport was found but does not hold: {'; '.join(judged.reasons)}")
        return judged.verdict == "keep"


def _report(
    artefact: Artefact,
    loaded: LoadedModel,
    identity: Fingerprint,
    judged: Judgement,
    warnings: Iterable[str],
    *,
    figures: Figures | None = None,
    transport: TransportFigures | None = None,
    repaired: Repaired | None = None,
    scores: Iterable[Scores] = (),
) -> DriftReport:
    return DriftReport(
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        guardrail_version=version("guardrail-vlm"),
        model=loaded.name,
        artefact_id=artefact.artefact_id,
        verdict=judged.verdict,
        reasons=judged.reasons,
        fingerprint=_changes(artefact.header.fingerprint, identity),
        data=dict(artefact.header.data),
        readout={
            "estimator": artefact.header.readout.estimator,
            "layers": list(artefact.header.readout.layers),
        },
        warnings=tuple(warnings),
        figures=figures,
        transport=transport,
        repaired=repaired,
        scores=tuple(scores),
    )


def _record(old: Artefact, judged: Judgement, how: Repair) -> JsonValue:
    """What the new artefact remembers of why it was made."""
    return {
        "from": old.artefact_id,
        "verdict": judged.verdict,
        "how": how,
        "reasons": list(judged.reasons),
    }


def _read(
    collect: Collector,
    contrast: ContrastSet,
    rates: Rates,
    fitted: Fitted,
    per_kind: int | None,
) -> Readings:
    """What the fit read, on this model, or `per_kind` of the bare prompts among it."""
    return read_all(
        collect,
        contrast,
        rates,
        fitted.per_kind,
        of_these=per_kind,
        video=fitted.reads_videos,
        videos=fitted.videos,
    )


def _changes(then: Fingerprint, now: Fingerprint) -> tuple[FieldChange, ...]:
    hard = then.differences(now)
    return tuple(
        FieldChange(field=name, fitted=a, running=b, decides=name in hard)
        for name, (a, b) in (hard | then.warnings(now)).items()
    )


def _other_packages(artefact: Artefact) -> Iterator[str]:
    """What a fingerprint does not tell: the same weights, run by other code."""
    then = artefact.header.packages
    for name in ("torch", "transformers"):
        if name in then and then[name] != version(name):
            yield (
                f"the artefact was fitted with {name} {then[name]}, this is {version(name)}; "
                "--measure tells whether that matters"
            )


def _warnings(fitted: Fitted) -> tuple[str, ...]:
    if fitted.reference:
        return ()
    return (
        "the artefact holds no scores of single prompts, so nothing is compared in pairs and small "
        "shifts may go unseen; fit it again, or give --old-model",
    )


def renamed(artefact: Artefact, identity: Fingerprint, record: JsonValue) -> Artefact:
    """The same artefact for the new model; itself if it already names it."""
    if artefact.header.fingerprint == identity:
        return artefact
    return artefact.revised(fingerprint=identity, extra=artefact.header.extra | {"drift": record})


def recalibrated(
    fitted: Fitted, readings: Readings, identity: Fingerprint, record: JsonValue
) -> Artefact:
    """The old readout and edit, with re-centring and thresholds of the new model.

    Thresholds that the contrast prompts cannot renew are left out: none of the old model stay.
    """
    old = fitted.artefact
    readout = recentred_readout(fitted.readout, readings)
    joint = replace(fitted.joint, readout=readout)
    edit = fitted.edit()
    along = {} if edit is None else lines(readings.beside, edit.local_scores)
    recentring = measured(readings.beside, readout.scores, readout.recentring, along)
    made = _calibrations(fitted, readings, joint)
    figures = scored(readout, readings.forms).to_dict()
    return old.revised(
        fingerprint=identity,
        readout=Readout.model_validate(old.header.readout.model_dump() | {"figures": figures}),
        recentring=recentring,
        calibration=made,
        data=data_record(readings),
        extra={name: value for name, value in old.header.extra.items() if name not in _OF_TRAFFIC}
        | {"reference": to_header(reference_scores(readings, joint)), "drift": record},
        warnings=tuple(_warnings_of_recalibrated(old, made, recentring)),
    )


def succeeding(made: Artefact, old: Artefact, record: JsonValue) -> Artefact:
    """A new fit as the successor of an old artefact."""
    return made.revised(
        parent=old.artefact_id,
        extra=made.header.extra | {"drift": record},
        warnings=(*made.header.warnings, *_replaced(old, made.header.calibration)),
    )


def answering(made: Artefact, old: Artefact) -> Artefact:
    """The artefact without a readout of answers that was fitted on another model.

    Answers are not read again here, so whether it holds there is not known.
    """
    moved = made.header.fingerprint.differences(old.header.fingerprint)
    if old.header.answers is None or (made.header.answers is not None and not moved):
        return made
    why = "fitted on an earlier model, and not measured on this one; `guardrail fit --answers`"
    return made.without_answers(why, parent=made.header.parent)


def targets(artefact: Artefact) -> Rates:
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
    rates: Rates, readings: Readings, wanted: Iterable[Modality] = tuple(CALIBRATED_ON)
) -> Rates:
    """The rates, raised to what the fewest benign prompts of a wanted modality can support.

    Groups of texts count together, as they set one threshold. Rates that were set on much traffic
    may be smaller than any the contrast prompts can give.
    """
    counts = [
        (sum if modality is Modality.TEXT else max)(
            len(readings.forms[g].of("calibrate", is_safe).samples) for g in groups
        )
        for modality in wanted
        if (groups := [g for g in CALIBRATED_ON[modality] if g in readings.forms])
    ]
    least = 1 / (min(counts) + 1)
    return Rates(steer=max(rates.steer, least), flag=max(rates.flag, least))


def _calibrations(
    fitted: Fitted, readings: Readings, joint: JointReadout
) -> dict[Modality, Calibration]:
    made: dict[Modality, Calibration] = {}
    for modality, groups in CALIBRATED_ON.items():
        if any(group in readings.forms for group in groups):
            before = fitted.artefact.header.calibration.get(modality)
            wanted = targets(fitted.artefact) if before is None else before.targets
            rates = supported(wanted, readings, [modality])
            made |= calibrations(readings, joint, rates, [modality])
    return made


def _warnings_of_recalibrated(
    old: Artefact, made: dict[Modality, Calibration], rows: Mapping[str, Recentring]
) -> Iterator[str]:
    renewed = (*_RENEWED, NOTE) if old.reads_videos else _RENEWED
    yield from (w for w in old.header.warnings if not w.startswith(renewed))
    yield from lost_scores(rows)
    yield from _replaced(old, made)
    yield from video_notes(made, reads_videos=old.reads_videos)
    yield "drift: the layers' figures are those of the parent, measured on its model"
    if old.header.steering is not None:
        yield "drift: the steering figures are those of the parent, measured on its model"


def _replaced(old: Artefact, made: Mapping[Modality, Calibration]) -> Iterator[str]:
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
