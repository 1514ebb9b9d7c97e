"""The status as a page that asks for nothing else: no script, no picture, no font."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from guardrail.report.bars import score_bars
from guardrail.report.page import render

if TYPE_CHECKING:
    from collections.abc import Mapping

    from markupsafe import Markup

_LEAST_S = 5
_DRIFT = {
    "alarm": "Scores no longer look like the calibration's.",
    "no alarm": "Scores look like the calibration's.",
    "not judged": "Scores are not held against a calibration yet.",
}
TERMS = (
    ("Score", "Projection of the last prompt position's residual on the readout, in text gaps: 0 "
              "is the centroid of safe, 1 that of unsafe prompts at the fit."),
    ("Steered, flagged", "Scores above the first and the second threshold. In shadow mode nothing "
                         "is done; what would have been is counted beside."),
    ("Outage", "The detector failed; never a finding about the request."),
    ("Calibration", "The benign requests on whose scores the thresholds were set."),
)  # fmt: skip


def status_page(status: Mapping[str, Any], *, refresh: int) -> str:
    """A self-contained HTML page of `status_of`, asked for again after `refresh` s unless 0."""
    return render(
        "status.html.j2",
        status=status,
        refresh=max(refresh, _LEAST_S) if refresh else 0,
        drift_words=_DRIFT[status["drift"]["state"]],
        figures={row["modality"]: _figure(row) for row in status["modalities"]},
        terms=TERMS,
    )


def _figure(row: Mapping[str, Any]) -> Markup | None:
    found = row["histogram"]
    if found is None:
        return None
    source = row["calibration"]
    return score_bars(
        found["edges"],
        {"now": found["now"], "calibration": found["calibration"]},
        row["thresholds"],
        title=f"Scores, {row['modality']}",
        counts={"now": row["n"], "calibration": source["n"] if source else 0},
    )
