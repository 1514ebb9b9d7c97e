"""The drift report as a page: the verdict first, then every figure behind it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from guardrail.errors import ConfigurationError
from guardrail.report.drift_figures import cosine_curve, score_histogram
from guardrail.report.page import render

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from markupsafe import Markup

SCHEMA_VERSION = 1
MEANING = {
    "keep": "The artefact still holds on this model.",
    "recalibrate": "The directions still hold, but thresholds or offsets have moved.",
    "refit": "The directions no longer hold on this model.",
}
TERMS = (
    ("Score", "Projection of the last prompt position's residual on the readout, in text gaps: 0 "
              "is the centroid of safe, 1 that of unsafe prompts at the fit."),
    ("AUROC", "Chance that a random unsafe prompt scores above a random safe one; 0.5 is chance."),
    ("At the fit", "The same figure of the same prompts on the model the artefact was fitted on."),
    ("New fit", "A readout fitted on this model's own activations."),
    ("p", "Exact McNemar test of whether the share of the same prompts has changed."),
    (
        "Offset",
        "What a meaningless picture or video adds to the score; taken off before thresholds apply.",
    ),
)  # fmt: skip


def drift_page(report: dict[str, Any]) -> str:
    """A self-contained HTML page of a drift report.

    Args:
        report: `DriftReport.model_dump(mode="json")` of `guardrail.drift.schema`, or that JSON read
            back from a file.

    Raises:
        ConfigurationError: this is no drift report of the version this release reads.
        MissingExtraError: jinja2 or matplotlib is not installed.
    """
    version = report.get("schema_version")
    missing = {"verdict", "figures", "fingerprint", "scores"} - set(report)
    if version != SCHEMA_VERSION or missing:
        raise ConfigurationError(
            f"this is no drift report of version {SCHEMA_VERSION} (it says {version!r}); make one "
            "with `guardrail drift --out`"
        )
    figures = report["figures"]
    return render(
        "drift.html.j2",
        report=report,
        meaning=MEANING[report["verdict"]],
        cosines=figures and cosine_curve(figures["layers"]),
        histograms=list(_histograms(report)),
        terms=TERMS,
    )


def _histograms(report: Mapping[str, Any]) -> Iterator[tuple[str, Markup]]:
    forms = dict.fromkeys(row["form"] for row in report["scores"])
    for form in forms:
        yield form, score_histogram(form, [r for r in report["scores"] if r["form"] == form])
