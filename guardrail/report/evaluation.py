"""The evaluation as a page that a safety reviewer reads from top to bottom."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from guardrail.errors import ConfigurationError
from guardrail.report import fit_figures, rate_figures
from guardrail.report.control_figures import control_dots
from guardrail.report.controls import control_rows, summary
from guardrail.report.curves import Scores, histogram, level, scores_by_modality
from guardrail.report.page import render
from guardrail.report.ranking import false_positives, misses, shown
from guardrail.report.score_figures import roc, score_histogram
from guardrail.report.terms import TERMS

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from markupsafe import Markup

SCHEMA_VERSION = 1
_LONGEST = 300  # characters of one setting


def evaluation_page(
    report: dict[str, Any],
    *,
    base: Path | None = None,
    explained: Mapping[str, Markup] | None = None,
) -> str:
    """A self-contained HTML page of an evaluation report.

    Args:
        report: `Report.model_dump(mode="json")` of `guardrail.evaluation.schema`, or that JSON read
            back from a file.
        base: the folder that relative picture paths start from. Without it only absolute ones are
            opened. Small copies of the pictures shown become part of the page, so make pages only
            from reports whose paths you trust.
        explained: parts made by `explanation_html`, by the id of the input they belong to; they
            stand beside the worst mistakes.

    Raises:
        ConfigurationError: this is no evaluation report of the version this release reads.
        MissingExtraError: jinja2 or matplotlib is not installed.
    """
    _check(report)
    groups = {by: _groups(report, by) for by in ("modality", "source", "category")}
    trials = fit_figures.shown_trials(report["strength"])
    return render(
        "evaluation.html.j2",
        report=report,
        sides=_sides(report),
        groups=groups,
        scores=[_score_figures(found) for found in _in_order(report, groups["modality"])],
        actions=rate_figures.action_bars(groups["modality"]),
        refusals=rate_figures.refusal_dots(groups["modality"]),
        controls=[_controls(found) for found in report["controls"]],
        layer_map=fit_figures.layer_map(report["layers"]),
        trials=trials,
        strength=fit_figures.strength_curve(trials) if trials else None,
        divergence=fit_figures.divergence_curve(trials) if trials else None,
        false_positives=shown(false_positives(report), base),
        misses=shown(misses(report), base),
        made={
            name: list(_flat(report[name])) for name in ("artefact", "policy", "settings", "data")
        },
        explained=explained or {},
        terms=TERMS,
    )


def _check(report: Mapping[str, Any]) -> None:
    version = report.get("schema_version")
    missing = {"model", "groups", "controls", "items", "thresholds"} - set(report)
    if version != SCHEMA_VERSION or missing:
        raise ConfigurationError(
            f"this is no evaluation report of version {SCHEMA_VERSION} (it says {version!r}"
            f"{', without ' + ', '.join(sorted(missing)) if missing else ''}); make one with "
            "`guardrail evaluate`"
        )


def _sides(report: Mapping[str, Any]) -> dict[str, int]:
    labels = [item["label"] for item in report["items"]]
    return {name: labels.count(name) for name in ("harmful", "harmless")}


def _groups(report: Mapping[str, Any], by: str) -> list[dict[str, Any]]:
    """The slices of one kind, each with the shares that were steered or flagged."""
    return [
        {**group, "hit": {k: _complement(v["passed"]) for k, v in group["actions"].items()}}
        for group in report["groups"]
        if group["by"] == by
    ]


def _in_order(report: Mapping[str, Any], groups: list[dict[str, Any]]) -> list[Scores]:
    """The scores by modality, in the order of the tables."""
    names = [group["name"] for group in groups]
    found = scores_by_modality(report)
    return sorted(found, key=lambda s: names.index(s.modality) if s.modality in names else 99)


def _complement(share: Mapping[str, Any]) -> dict[str, Any]:
    """The share of inputs that a share leaves over; its exact interval is the mirror image."""
    return {
        "rate": 1 - share["rate"],
        "hits": share["n"] - share["hits"],
        "n": share["n"],
        "low": 1 - share["high"],
        "high": 1 - share["low"],
    }


def _score_figures(scores: Scores) -> dict[str, Any]:
    both = bool(scores.harmful and scores.harmless)
    drawn = scores.reached(histogram(scores)[0])
    return {
        "modality": scores.modality,
        "counts": scores.counts,
        "named_counts": f"{scores.modality}: {scores.counts}",
        "drawn": drawn,
        "beyond": [level(n, v) for n, v in scores.thresholds.items() if n not in drawn],
        "roc": roc(scores) if both else None,
        "histogram": score_histogram(scores),
    }


def _controls(controls: Mapping[str, Any]) -> dict[str, Any]:
    rows = control_rows(controls)
    return {
        **controls,
        "rows": rows,
        "summary": summary(rows),
        "figure": control_dots(controls["modality"], controls["guard"], rows),
    }


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Nested settings as (dotted name, text) pairs, long texts cut short."""
    for name, value in values.items():
        if isinstance(value, dict) and value:
            yield from _flat(value, f"{prefix}{name}.")
            continue
        text = _plain(value)
        yield f"{prefix}{name}", text if len(text) <= _LONGEST else f"{text[:_LONGEST]} ..."


def _plain(value: Any) -> str:
    """One setting in words; what is too nested for a line is only counted."""
    if value is None or value in ([], {}, ""):
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.6g}"
    if not isinstance(value, list):
        return str(value)
    if any(isinstance(part, (dict, list)) for part in value):
        return f"{len(value)} entries, in the JSON report"
    return ", ".join(map(_plain, value))
