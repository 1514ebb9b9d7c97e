"""The whole check: an artefact and another model in, a verdict and perhaps a new artefact out."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from typing import TYPE_CHECKING

from guardrail.drift.fitted import Fitted
from guardrail.drift.measure import measure, score_lists
from guardrail.drift.premises import Reader, fitted_contrast, require_fitted_on, require_shape
from guardrail.drift.repair import recalibrated, renamed, succeeding, supported, targets
from guardrail.drift.schema import DriftReport, FieldChange, Repair, Repaired
from guardrail.drift.transport import Transport, find_transport, transported
from guardrail.drift.verdict import Judgement, judge
from guardrail.fit.reading import Readings, read_all
from guardrail.fit.reference import reference_scores
from guardrail.fit.run import candidates_of, finish
from guardrail.model.fingerprint import fingerprint
from guardrail.refusal import REFUSAL_PREFIXES

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from pydantic import JsonValue

    from guardrail.artefact import Artefact
    from guardrail.artefact.header import Fingerprint, Rates
    from guardrail.fit.collect import Collector, Progress
    from guardrail.fit.dataset import ContrastSet
    from guardrail.fit.select import Candidate
    from guardrail.model.load import LoadedModel


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
    batch_size: int = 16,
    work_dir: Path | None = None,
    progress: Progress | None = None,
) -> Drift:
    """Whether an artefact still holds on a model, and with `fix` one that does.

    Args:
        artefact: fitted on another, or the same, checkpoint.
        loaded: the model to hold it against.
        old_model: the model it was fitted on; its scores are then measured instead of taken from
            the artefact, and a change of basis is recovered from single prompts.
        data: the contrast prompts of the fit, if it did not use the packaged ones alone.
        extend: whether `data` was added to the packaged prompts instead of replacing them.
        fix: make the artefact the verdict asks for.
        batch_size: prompts in one forward pass.
        work_dir: keep residuals there as they are read.
        progress: called with a stage's name, what is done of it, and its total.

    Raises:
        ArtefactMismatchError: the model has another number of layers or another width, or
            `old_model` is not the model the artefact was fitted on.
        DatasetError: the prompts are not those of the fit.
        NoUsableDirectionError: nothing in the new model separates unsafe from safe prompts.
    """
    require_shape(artefact, loaded)
    contrast = fitted_contrast(artefact, data, extend=extend)
    reader = Reader(contrast, batch_size, work_dir, progress)
    rates, identity = targets(artefact), fingerprint(loaded)
    fitted, old_readings = Fitted.of(artefact), None
    if old_model is not None:
        collect = reader.collector(old_model, require_fitted_on(artefact, old_model))
        old_readings = _read(collect, contrast, rates, fitted)
        fitted = Fitted.of(artefact, reference_scores(old_readings, fitted.readout))
    collect = reader.collector(loaded, identity)
    readings = _read(collect, contrast, rates, fitted)
    check = _Check(fitted, identity, collect, readings, candidates_of(readings), old_readings)
    return check.run(fix=fix)


@dataclass(frozen=True)
class _Check:
    fitted: Fitted
    identity: Fingerprint
    collect: Collector
    readings: Readings
    candidates: Sequence[Candidate]
    old_readings: Readings | None

    def run(self, *, fix: bool) -> Drift:
        figures = measure(self.fitted, self.collect, self.readings, self.candidates)
        judged, artefact = judge(figures), self.fitted.artefact
        transport = self._transport() if judged.verdict == "refit" else None
        warnings: list[str] = list(_warnings(self.fitted))
        made, how = self._repaired(judged, transport, warnings) if fix else (None, None)
        if made is not None:  # what the repair cost, thresholds on one's own traffic above all
            old = set(artefact.header.warnings)
            warnings += [warning for warning in made.header.warnings if warning not in old]
        report = DriftReport(
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            guardrail_version=version("guardrail-vlm"),
            model=self.collect.loaded.name,
            artefact_id=artefact.artefact_id,
            verdict=judged.verdict,
            reasons=judged.reasons,
            warnings=tuple(warnings),
            fingerprint=_changes(artefact.header.fingerprint, self.identity),
            data=dict(artefact.header.data),
            readout={
                "estimator": self.fitted.readout.estimator,
                "layers": list(self.fitted.readout.layers),
            },
            figures=figures,
            transport=None if transport is None else transport.figures,
            repaired=None
            if made is None or how is None
            else Repaired(artefact_id=made.artefact_id, how=how),
            scores=tuple(score_lists(self.fitted, self.readings)),
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
            return renamed(old, self.identity, self._record(judged, "fingerprint")), "fingerprint"
        if judged.verdict == "recalibrate":
            record = self._record(judged, "recalibrated")
            return recalibrated(self.fitted, self.readings, self.identity, record), "recalibrated"
        if transport is not None and transport.figures.reason is None:
            record = self._record(judged, "transported")
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
        return succeeding(made, old, self._record(judged, "refitted")), "refitted"

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

    def _record(self, judged: Judgement, how: Repair) -> JsonValue:
        """What the new artefact remembers of why it was made."""
        return {
            "from": self.fitted.artefact.artefact_id,
            "verdict": judged.verdict,
            "how": how,
            "reasons": list(judged.reasons),
        }


def _read(collect: Collector, contrast: ContrastSet, rates: Rates, fitted: Fitted) -> Readings:
    """What the fit read, on this model."""
    return read_all(
        collect,
        contrast,
        rates,
        fitted.per_kind,
        video=fitted.reads_videos,
        videos=fitted.videos,
    )


def _changes(then: Fingerprint, now: Fingerprint) -> tuple[FieldChange, ...]:
    hard = then.differences(now)
    return tuple(
        FieldChange(field=name, fitted=a, running=b, decides=name in hard)
        for name, (a, b) in (hard | then.warnings(now)).items()
    )


def _warnings(fitted: Fitted) -> tuple[str, ...]:
    if fitted.reference:
        return ()
    return (
        "the artefact holds no scores of single prompts, so nothing is compared in pairs and small "
        "shifts may go unseen; fit it again, or give --old-model",
    )
