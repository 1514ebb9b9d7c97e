"""The old readout's AUROC on the new model, beside what it was and what a new fit would reach."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from guardrail.drift.schema import (
    FormSeparation,
    Separation,
)
from guardrail.drift.separation import Judged, MeanAuroc, mean_auroc
from guardrail.fit.select import choose, is_safe, is_unsafe, refitted
from guardrail.stats import Estimate

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from guardrail.drift.fitted import Fitted
    from guardrail.fit.estimators import LinearReadout
    from guardrail.fit.reading import Readings
    from guardrail.fit.select import Candidate, FormResiduals

Judgements = dict[str, Judged]  # by form


def separations(
    fitted: Fitted, readings: Readings, candidates: Sequence[Candidate]
) -> tuple[Separation, tuple[FormSeparation, ...]]:
    """The figure a fit chooses by, and the AUROC in each form, on the selection split.

    Raises:
        NoUsableDirectionError: no readout of the new model separates its prompts.
    """
    found = _scorers(fitted, readings, choose(candidates))
    rows = tuple(_form_row(name, found) for name in found.old)
    return _whole(fitted, found), rows


@dataclass(frozen=True)
class _Scorers:
    """What each readout says of the rows of the selection split, by form."""

    chosen: Candidate
    old: Judgements
    best: Judgements
    same: Judgements | None
    fitted: Judgements | None

    def each(self) -> dict[str, Judgements]:
        """Those that are known, by name."""
        named = {"old": self.old, "best": self.best, "same": self.same, "fitted": self.fitted}
        return {name: rows for name, rows in named.items() if rows is not None}


def _scorers(fitted: Fitted, readings: Readings, best: Candidate) -> _Scorers:
    header = fitted.artefact.header
    try:
        same = refitted(header.readout.estimator, header.readout.layers, readings.forms)
    except ValueError:  # an estimator of another release, or a readout made by hand
        same = None
    forms = {name: form for name, form in readings.forms.items() if form.kinds_of("select")}
    old = {name: fitted.scores(readings, name).tolist() for name in forms}
    known = {name: _known(fitted.reference.get(name, {}), form) for name, form in forms.items()}
    complete = {name: scores for name, scores in known.items() if scores is not None}
    return _Scorers(
        chosen=best,
        old=_judged(forms, old),
        best=_judged(forms, _scored(best.readout, forms)),
        same=None if same is None else _judged(forms, _scored(same.readout, forms)),
        fitted=_judged(forms, complete) if len(complete) == len(forms) else None,
    )


def _scored(readout: LinearReadout, forms: Mapping[str, FormResiduals]) -> dict[str, list[float]]:
    return {name: readout.scores(form.residuals).tolist() for name, form in forms.items()}


def _known(scores: Mapping[int, float], form: FormResiduals) -> list[float] | None:
    """Old scores of a form's rows, 0 in the fit split; None if any other is not known."""
    rows = list(zip(form.samples, form.splits, strict=True))
    if any(split == "select" and sample.index not in scores for sample, split in rows):
        return None
    return [scores.get(sample.index, 0.0) for sample, _ in rows]


def _judged(
    forms: Mapping[str, FormResiduals], scores: Mapping[str, Sequence[float]]
) -> Judgements:
    found = {}
    for name, form in forms.items():
        rows = [i for i, split in enumerate(form.splits) if split == "select"]
        found[name] = Judged(
            [form.samples[i].index for i in rows],
            [form.kinds[i] for i in rows],
            [scores[name][i] for i in rows],
        )
    return found


def _whole(fitted: Fitted, found: _Scorers) -> Separation:
    means = {name: mean_auroc(list(rows.values())) for name, rows in found.each().items()}
    recorded = fitted.artefact.header.readout.figures.get("auroc")
    return Separation(
        n=len(means["old"].influence),
        recorded=recorded if isinstance(recorded, float) else None,
        fitted=_estimate(means, "fitted"),
        old=means["old"].estimate(),
        same=_estimate(means, "same"),
        best=means["best"].estimate(),
        best_estimator=found.chosen.readout.estimator,
        best_layers=found.chosen.readout.layers,
        lost=means["best"].above(means["old"]),
        dropped=means["fitted"].above(means["old"]) if "fitted" in means else None,
    )


def _estimate(means: Mapping[str, MeanAuroc], name: str) -> Estimate | None:
    return means[name].estimate() if name in means else None


def _form_row(name: str, found: _Scorers) -> FormSeparation:
    kinds = found.old[name].kinds
    return FormSeparation(
        form=name,
        n_unsafe=sum(map(is_unsafe, kinds)),
        n_safe=sum(map(is_safe, kinds)),
        fitted=None if found.fitted is None else _auroc(found.fitted[name]),
        old=_auroc(found.old[name]),
        same=None if found.same is None else _auroc(found.same[name]),
        best=_auroc(found.best[name]),
    )


def _auroc(rows: Judged) -> Estimate:
    pairs = list(zip(rows.kinds, rows.scores, strict=True))
    unsafe = [score for kind, score in pairs if is_unsafe(kind)]
    safe = [score for kind, score in pairs if is_safe(kind)]
    return Estimate.of_auroc(unsafe, safe)
