"""Everything a verdict needs, measured on readings of the new model."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal

import torch

from guardrail.drift.compared import separations
from guardrail.drift.schema import (
    Figures,
    Label,
    LayerDrift,
    PictureDrift,
    RateDrift,
    Scores,
    ScoreShift,
    SteeringDrift,
)
from guardrail.errors import CalibrationError
from guardrail.extras import require
from guardrail.fit.outcome import DECIMALS
from guardrail.fit.recentring import measured
from guardrail.fit.refusal import REFUSAL_PREFIXES
from guardrail.fit.run import CALIBRATED_ON, CONTRAST_SOURCE, groups_of
from guardrail.fit.select import is_safe, is_unsafe
from guardrail.fit.steering import causal_prompts, measured_effects, steering_at
from guardrail.stats import Estimate, Rate, Share
from guardrail.types import Modality

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from guardrail.artefact.header import Calibration
    from guardrail.drift.fitted import Fitted
    from guardrail.fit.collect import Collector
    from guardrail.fit.readings import Readings
    from guardrail.fit.recentring import Beside
    from guardrail.fit.select import Candidate


CLASSES: tuple[tuple[Label, Callable[[str], bool]], ...] = (
    ("unsafe", is_unsafe),
    ("safe", is_safe),
)
Action = Literal["steer", "flag"]
ACTIONS: tuple[Action, ...] = ("steer", "flag")
# A threshold is one prompt's own score; stored scores are rounded, and must not exceed it for that.
TIE = 2 * 10.0**-DECIMALS
# Unsafe prompts of the selection split: no threshold depends on them. None is ever filmed.
UNSAFE_GROUPS = {Modality.TEXT: ("plain", "worded"), Modality.IMAGE: ("pictured",)}


def measure(
    fitted: Fitted, collect: Collector, readings: Readings, candidates: Sequence[Candidate]
) -> Figures:
    """All figures. The model is asked again only for the effect of the edit.

    Raises:
        NoUsableDirectionError: no readout of the new model separates its prompts.
        DetectorError: the old readout gives no finite score on the new model.
    """
    separation, forms = separations(fitted, readings, candidates)
    return Figures(
        separation=separation,
        forms=forms,
        layers=tuple(_layers(fitted, readings)),
        rates=tuple(rate_drifts(fitted, readings)),
        shifts=tuple(_shift(row) for row in score_lists(fitted, readings)),
        centroids_now=_centroids(fitted, readings),
        pictures=tuple(picture_drifts(fitted, readings.beside)),
        steering=_steering(fitted, collect, readings),
    )


def score_lists(fitted: Fitted, readings: Readings) -> list[Scores]:
    """Scores outside the fit split by form and label, old ones beside new ones where known."""
    found = []
    for name in readings.forms:
        for label, belongs in CLASSES:
            now, then = fitted.paired_scores(readings, name, belongs, "select", "calibrate")
            if now:
                fitted_then = None if then is None else tuple(then)
                found.append(Scores(form=name, label=label, now=tuple(now), fitted=fitted_then))
    return found


def _shift(row: Scores) -> ScoreShift:
    """The paired mean difference with Student's interval."""
    now, estimate, then = torch.tensor(row.now, dtype=torch.float64), None, None
    if row.fitted is not None:
        old = torch.tensor(row.fitted, dtype=torch.float64)
        moved, then = now - old, float(old.mean())
        reach = _t_quantile(len(moved)) * float(moved.std()) / math.sqrt(len(moved))
        mean = float(moved.mean())
        if math.isfinite(reach):
            estimate = Estimate(value=mean, low=mean - reach, high=mean + reach)
    return ScoreShift(
        form=row.form,
        label=row.label,
        n=len(now),
        mean_now=float(now.mean()),
        mean_fitted=then,
        shift=estimate,
    )


def _t_quantile(n: int) -> float:
    return float(require("scipy.stats").t.ppf(0.975, n - 1)) if n > 1 else math.nan


def _layers(fitted: Fitted, readings: Readings) -> Iterator[LayerDrift]:
    tensors, header = fitted.artefact.tensors, fitted.artefact.header
    old, new = tensors["direction"].double(), readings.directions.direction.double()
    gaps = (tensors["mu_unsafe"].double() - tensors["mu_safe"].double()).norm(dim=-1)
    edited = None if header.steering is None else header.steering.layer
    for layer, score in enumerate(readings.layers):
        both = score.usable and bool(old[layer].any())
        yield LayerDrift(
            layer=layer,
            read=layer in fitted.readout.layers,
            edited=layer == edited,
            cosine=float(old[layer] @ new[layer]) if both else None,
            gap_fitted=float(gaps[layer]),
            gap_now=score.norm,
        )


def _centroids(fitted: Fitted, readings: Readings) -> tuple[float, float]:
    """The new safe and unsafe centroids of the fit split as the old readout scores ends of turns.

    Forms weigh the same, and nothing is re-centred, so at the fit these were 0 and 1.
    """

    def centroid(keep: Callable[[str], bool]) -> float:
        rows = [form.rows("fit", keep) for form in readings.forms.values()]
        means = [float(fitted.readout.scores(part).mean()) for part in rows if len(part)]
        return sum(means) / len(means)

    return centroid(is_safe), centroid(is_unsafe)


def picture_drifts(fitted: Fitted, beside: Mapping[str, Beside]) -> Iterator[PictureDrift]:
    """What each kind of picture does to the old readout's re-centred score, then and now.

    Raises:
        DetectorError: what it does now is not finite.
    """
    readout, then = fitted.readout, fitted.artefact.header.recentring
    for kind, now in measured(beside, readout.scores, readout.recentring, {}).items():
        if kind in then:
            yield PictureDrift(
                kind=kind,
                safe_fitted=then[kind].safe,
                unsafe_fitted=then[kind].unsafe,
                safe_now=now.safe,
                unsafe_now=now.unsafe,
            )


def _steering(fitted: Fitted, collect: Collector, readings: Readings) -> SteeringDrift | None:
    edit, header = fitted.edit(), fitted.artefact.header
    if edit is None:
        return None
    edits = [edit]
    if edit.layer in readings.usable:
        unsafe = readings.forms["plain"].rows("fit", is_unsafe)
        edits.append(steering_at(readings.directions, edit.layer, unsafe, readings.beside))
    prefixes = header.refusal_prefixes or REFUSAL_PREFIXES
    now, *fresh = measured_effects(collect, readings, edits, prefixes)
    row = next((row for row in header.layers if row.layer == edit.layer), None)
    kl = None if row is None else row.figures.get("kl")
    return SteeringDrift(
        layer=edit.layer,
        n=len(causal_prompts(readings)),
        shift_fitted=None if row is None else row.causal,
        shift_now=_finite(now.log_odds_shift),
        shift_fresh=_finite(fresh[0].log_odds_shift) if fresh else None,
        kl_fitted=kl if isinstance(kl, float) else None,
        kl_now=_finite(now.kl),
        kl_fresh=_finite(fresh[0].kl) if fresh else None,
    )


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def rate_drifts(fitted: Fitted, readings: Readings) -> Iterator[RateDrift]:
    """Every modality, class and threshold for which there are prompts.

    Benign prompts are those that a fit sets its thresholds on.
    """
    for modality in CALIBRATED_ON:
        try:
            source, calibration = fitted.artefact.calibration_for(modality)
        except CalibrationError:
            continue
        contrast = source is modality and calibration.source.startswith(CONTRAST_SOURCE)
        groups = groups_of(modality, calibration if contrast else None)
        rows: tuple[tuple[Label, Callable[[str], bool], Sequence[str], str], ...] = (
            ("safe", is_safe, groups, "calibrate"),
            ("unsafe", is_unsafe, UNSAFE_GROUPS.get(modality, ()), "select"),
        )
        for label, belongs, names, split in rows:
            found = [
                fitted.paired_scores(readings, name, belongs, split)
                for name in names
                if name in readings.forms
            ]
            scores = _together(found)
            aimed = contrast and label == "safe"
            for action in ACTIONS if scores[0] else ():
                yield _rate(modality, label, action, calibration, scores, aimed=aimed)


def _together(
    groups: Sequence[tuple[list[float], list[float] | None]],
) -> tuple[list[float], list[float] | None]:
    """New scores of several groups, and old ones if all are known."""
    then = [old for _, old in groups]
    known = [score for old in then if old is not None for score in old]
    return [s for now, _ in groups for s in now], None if None in then else known


def mcnemar(before: Sequence[bool], now: Sequence[bool]) -> float:
    """Exact p-value of equal shares in pairs (McNemar 1947): a sign test of those that changed."""
    gained = sum(b and not a for a, b in zip(before, now, strict=True))
    changed = sum(a != b for a, b in zip(before, now, strict=True))
    return float(require("scipy.stats").binomtest(gained, changed).pvalue) if changed else 1.0


def _rate(
    modality: Modality,
    label: Label,
    action: Action,
    calibration: Calibration,
    scores: tuple[list[float], list[float] | None],
    *,
    aimed: bool,
) -> RateDrift:
    threshold: float = getattr(calibration.thresholds, action)
    target: float = getattr(calibration.targets, action)
    line = threshold + TIE
    now = [score > line for score in scores[0]]
    before = None if scores[1] is None else [score > line for score in scores[1]]
    return RateDrift(
        modality=modality.value,
        label=label,
        action=action,
        threshold=threshold,
        target=target if aimed else None,
        now=Share.of(Rate.of(now)),
        fitted=None if before is None else Share.of(Rate.of(before)),
        p_value=None if before is None else mcnemar(before, now),
    )
