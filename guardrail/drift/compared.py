"""The old readout's AUROC on the new model, beside what it was and what a new fit would reach.

The figure a fit chooses by averages AUROCs over kinds of safe prompts and over forms. One prompt
appears in several forms, so its rows are no independent draws: variances are taken over prompts
(Obuchowski 1997, section 2: DeLong's placements summed within a cluster).
"""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING

from guardrail.drift.schema import FormSeparation, Separation
from guardrail.fit.select import choose, is_safe, is_unsafe, refitted
from guardrail.stats import Z_95, Estimate, auroc_interval

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from guardrail.drift.fitted import Fitted
    from guardrail.fit.readings import FormResiduals, Readings
    from guardrail.fit.select import Candidate, LinearReadout


@dataclass(frozen=True)
class ScoredRows:
    """Rows of one form: `prompts` and `kinds` say what each is, `scores` what a scorer gave it."""

    prompts: Sequence[int]
    kinds: Sequence[str]
    scores: Sequence[float]


FormScores = dict[str, ScoredRows]  # by form


@dataclass(frozen=True)
class MeanAuroc:
    """An averaged AUROC and how much each prompt of each class moves it from its expectation."""

    value: float
    influence: Mapping[tuple[bool, int], float]

    def estimate(self) -> Estimate:
        """With its interval, kept inside 0 and 1.

        Placements do not vary where no pair is out of order; the interval is then that of as many
        prompts, each counted once, in perfect order.
        """
        reach = _reach(self.influence)
        low, high = max(0.0, self.value - reach), min(1.0, self.value + reach)
        if self.value in (0.0, 1.0):
            unsafe = sum(label for label, _ in self.influence)
            classes = [self.value] * unsafe, [1 - self.value] * (len(self.influence) - unsafe)
            low, high = auroc_interval(*classes)
        return Estimate(value=self.value, low=low, high=high)

    def above(self, other: MeanAuroc) -> Estimate:
        """How much higher this is than another on the same prompts."""
        difference = {
            prompt: moved - other.influence[prompt] for prompt, moved in self.influence.items()
        }
        value, reach = self.value - other.value, _reach(difference)
        return Estimate(value=value, low=value - reach, high=value + reach)


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
    old: FormScores
    best: FormScores
    same: FormScores | None
    fitted: FormScores | None

    def each(self) -> dict[str, FormScores]:
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
        old=_rows_of(forms, old),
        best=_rows_of(forms, _scored(best.readout, forms)),
        same=None if same is None else _rows_of(forms, _scored(same.readout, forms)),
        fitted=_rows_of(forms, complete) if len(complete) == len(forms) else None,
    )


def _scored(readout: LinearReadout, forms: Mapping[str, FormResiduals]) -> dict[str, list[float]]:
    return {
        name: readout.scores(form.residuals, form.media).tolist() for name, form in forms.items()
    }


def _known(scores: Mapping[str, float], form: FormResiduals) -> list[float] | None:
    """Old scores of a form's rows, 0 in the fit split; None if any other is not known."""
    rows = list(zip(form.samples, form.splits, strict=True))
    if any(split == "select" and sample.key not in scores for sample, split in rows):
        return None
    return [scores.get(sample.key, 0.0) for sample, _ in rows]


def _rows_of(
    forms: Mapping[str, FormResiduals], scores: Mapping[str, Sequence[float]]
) -> FormScores:
    found = {}
    for name, form in forms.items():
        rows = [i for i, split in enumerate(form.splits) if split == "select"]
        found[name] = ScoredRows(
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


def _auroc(rows: ScoredRows) -> Estimate:
    pairs = list(zip(rows.kinds, rows.scores, strict=True))
    unsafe = [score for kind, score in pairs if is_unsafe(kind)]
    safe = [score for kind, score in pairs if is_safe(kind)]
    return Estimate.of_auroc(unsafe, safe)


def mean_auroc(forms: Sequence[ScoredRows]) -> MeanAuroc:
    """The mean over forms of the mean over kinds of the AUROC against unsafe prompts.

    Raises:
        ValueError: a form lacks one of the classes, or a score is NaN.
    """
    parts = [_of_form(form) for form in forms]
    moved: dict[tuple[bool, int], float] = defaultdict(float)
    for _, influence in parts:
        for prompt, amount in influence.items():
            moved[prompt] += amount / len(parts)
    return MeanAuroc(sum(value for value, _ in parts) / len(parts), dict(moved))


def _of_form(form: ScoredRows) -> tuple[float, dict[tuple[bool, int], float]]:
    import numpy as np

    rows: dict[str, list[tuple[int, float]]] = defaultdict(list)
    for prompt, kind, score in zip(form.prompts, form.kinds, form.scores, strict=True):
        if math.isnan(score):
            raise ValueError("AUROC of NaN scores is undefined")
        rows[kind].append((prompt, score))
    unsafe = rows.pop("unsafe", [])
    if not unsafe or not rows:
        raise ValueError("AUROC needs scores of both classes")
    influence: dict[tuple[bool, int], float] = defaultdict(float)
    high, total = np.array([score for _, score in unsafe]), 0.0
    for safe in rows.values():
        low = np.array([score for _, score in safe])
        won = (high[:, None] > low).astype(float) + 0.5 * (high[:, None] == low)
        value = float(won.mean())
        total += value / len(rows)
        for group, label, placed in ((unsafe, True, won.mean(1)), (safe, False, won.mean(0))):
            for (prompt, _), place in zip(group, placed.tolist(), strict=True):
                influence[label, prompt] += (place - value) / len(group) / len(rows)
    return total, influence


def _reach(influence: Mapping[tuple[bool, int], float]) -> float:
    """Half the width of the interval: classes vary on their own, prompts within them are drawn."""
    variance = 0.0
    for label in (True, False):
        moved = [amount for (of, _), amount in influence.items() if of is label]
        correction = len(moved) / max(len(moved) - 1, 1)
        variance += correction * sum(amount**2 for amount in moved)
    return Z_95 * math.sqrt(variance)
