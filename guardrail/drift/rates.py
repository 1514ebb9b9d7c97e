"""Shares of held-out prompts beyond the old thresholds, and whether they have changed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from guardrail.drift.schema import (
    Label,
    RateDrift,
)
from guardrail.errors import CalibrationError
from guardrail.fit.reference import DECIMALS
from guardrail.fit.run import CALIBRATED_ON, CONTRAST_SOURCE
from guardrail.fit.select import is_safe, is_unsafe
from guardrail.stats import Rate, Share
from guardrail.types import Modality

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from guardrail.artefact.header import Calibration
    from guardrail.drift.fitted import Fitted
    from guardrail.fit.reading import Readings

Action = Literal["steer", "flag"]
ACTIONS: tuple[Action, ...] = ("steer", "flag")
# A threshold is one prompt's own score; stored scores are rounded, and must not exceed it for that.
TIE = 2 * 10.0**-DECIMALS
# Unsafe prompts of the selection split: no threshold depends on them. None is ever filmed.
UNSAFE_FORM = {Modality.TEXT: "plain", Modality.IMAGE: "pictured", Modality.VIDEO: "filmed"}


def rate_drifts(fitted: Fitted, readings: Readings) -> Iterator[RateDrift]:
    """Every modality, class and threshold for which there are prompts.

    Benign prompts are those that a fit sets its thresholds on.
    """
    for modality, form in CALIBRATED_ON.items():
        try:
            source, calibration = fitted.artefact.calibration_for(modality)
        except CalibrationError:
            continue
        contrast = source is modality and calibration.source.startswith(CONTRAST_SOURCE)
        for label, name, split in (
            ("safe", form, "calibrate"),
            ("unsafe", UNSAFE_FORM[modality], "select"),
        ):
            pairs = _scores(fitted, readings, name, split, unsafe=label == "unsafe")
            for action in ACTIONS if pairs[0] else ():
                yield _rate(
                    modality,
                    "safe" if label == "safe" else "unsafe",
                    action,
                    calibration,
                    pairs,
                    aimed=contrast and label == "safe",
                )


def mcnemar(before: Sequence[bool], now: Sequence[bool]) -> float:
    """Exact p-value of equal shares in pairs (McNemar 1947): a sign test of those that changed."""
    from scipy.stats import binomtest

    gained = sum(b and not a for a, b in zip(before, now, strict=True))
    changed = sum(a != b for a, b in zip(before, now, strict=True))
    return float(binomtest(gained, changed).pvalue) if changed else 1.0


def _scores(
    fitted: Fitted, readings: Readings, form: str, split: str, *, unsafe: bool
) -> tuple[list[float], list[float] | None]:
    """Scores of a form's rows of one split and class, new and old; none of a form not read."""
    if form not in readings.forms:
        return [], None
    belongs = is_unsafe if unsafe else is_safe
    return fitted.paired_scores(readings, form, lambda s, kind: s == split and belongs(kind))


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
