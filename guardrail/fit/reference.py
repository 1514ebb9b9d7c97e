"""Scores of held-out prompts as the fit saw them: a later model is compared with them in pairs."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pydantic import JsonValue

    from guardrail.fit.estimators import LinearReadout
    from guardrail.fit.reading import Readings

DECIMALS = 6
Scores = dict[str, dict[int, float]]


def reference_scores(readings: Readings, readout: LinearReadout) -> Scores:
    """Re-centred scores of every prompt outside the fit split, by form and place in the set."""
    found: Scores = {}
    for name, form in readings.forms.items():
        rows = zip(form.samples, form.splits, readout.scores(form.residuals).tolist(), strict=True)
        found[name] = {
            sample.index: round(score, DECIMALS)
            for sample, split, score in rows
            if split != "fit" and math.isfinite(score)
        }
    return found


def to_header(scores: Scores) -> dict[str, JsonValue]:
    """As stored: parallel lists of places and scores, which take less room than pairs."""
    return {
        form: {"index": list(rows), "score": list(rows.values())} for form, rows in scores.items()
    }


def from_header(stored: JsonValue | None) -> Scores:
    """What `to_header` stored; empty for an artefact that has none, or none that can be read."""
    if not isinstance(stored, dict):
        return {}
    try:
        return {form: _rows(columns) for form, columns in stored.items()}
    except (TypeError, KeyError, ValueError):
        return {}


def _rows(columns: Mapping[str, list[float]] | JsonValue) -> dict[int, float]:
    if not isinstance(columns, dict):
        raise TypeError("not a form's columns")
    index, score = columns["index"], columns["score"]
    if not isinstance(index, list) or not isinstance(score, list):
        raise TypeError("not lists")
    return {int(i): float(s) for i, s in zip(index, score, strict=True)}
