"""The whole check: an artefact and another model in, a verdict and perhaps a new artefact out."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from guardrail.drift.fitted import Fitted
from guardrail.drift.measure import measure, score_lists
from guardrail.drift.premises import Reader, fitted_contrast, require_fitted_on, require_shape
from guardrail.drift.repair import recalibrated, renamed, succeeding, supported, targets
from guardrail.drift.schema import DriftReport, FieldChange, Repair, Repaired
from guardrail.drift.transport import Transport, find_transport, transported
from guardrail.drift.verdict import UNCHANGED, Judgement, judge
from guardrail.errors import ConfigurationError
from guardrail.fit.reading import Readings, read_all
from guardrail.fit.reference import reference_scores
from guardrail.fit.run import candidates_of, finish
from guardrail.model.fingerprint import fingerprint
from guardrail.refusal import REFUSAL_PREFIXES

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from pydantic import JsonValue

    from guardrail.artefact import Artefact
    from guardrail.artefact.header import Fingerprint, Rates
    from guardrail.drift.schema import Figures
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
    contrast = fitted_contrast(artefact, data, extend=extend)
    reader = Reader(contrast, batch_size, work_dir, progress)
    rates = targets(artefact)
    fitted, old_readings = Fitted.of(artefact), None
    if old_model is not None and old_identity is not None:
        collect = reader.collector(old_model, old_identity)
        old_readings = _read(collect, contrast, rates, fitted, per_kind)
        fitted = Fitted.of(artefact, reference_scores(old_readings, fitted.readout))
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
    report = _report(artefact, loaded, identity, judged, warnings=tuple(_other_packages(artefact)))
    if not fix:
        return Drift(report, None)
    made = renamed(artefact, identity, _record(artefact, judged, "fingerprint"))
    repaired = Repaired(artefact_id=made.artefact_id, how="fingerprint")
    return Drift(report.model_copy(update={"repaired": repaired}), made)


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
        made, how = self._repaired(judged, transport, warnings) if fix else (None, None)
        if made is not None:  # what the repair cost, thresholds on one's own traffic above all
            old = set(artefact.header.warnings)
            warnings += [warning for warning in made.header.warnings if warning not in old]
        repaired = None
        if made is not None and how is not None:
            repaired = Repaired(artefact_id=made.artefact_id, how=how)
        report = _report(
            artefact,
            self.collect.loaded,
            self.identity,
            judged,
            warnings=tuple(warnings),
            figures=figures,
            transport=None if transport is None else transport.figures,
            repaired=repaired,
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
            return renamed(old, self.identity, _record(old, judged, "fingerprint")), "fingerprint"
        if judged.verdict == "recalibrate":
            record = _record(old, judged, "recalibrated")
            return recalibrated(self.fitted, self.readings, self.identity, record), "recalibrated"
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
        return succeeding(made, old, _record(old, judged, "refitted")), "refitted"

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
    *,
    figures: Figures | None = None,
    **measured: Any,
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
        figures=figures,
        **measured,
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
