"""A server's state: as plain values, and as a page that asks for no script, picture or font.

Its figures are SVG from a template: quick, and without matplotlib.
"""

from __future__ import annotations

import math
import time
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from markupsafe import Markup

from guardrail import __version__
from guardrail.errors import CalibrationError
from guardrail.monitor.snapshot import LAST, WIDTH, cell_of
from guardrail.report.page import render

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from guardrail.guard import Guard
    from guardrail.monitor.comparing import Comparison, ModalityComparison
    from guardrail.monitor.snapshot import ModalityCounts
    from guardrail.policy import Thresholds
    from guardrail.server.service import Service


_UNTOLD: dict[str, Any] = {
    "median": None,
    "thresholds": {"steer": None, "flag": None},
    "calibration": None,
    "histogram": None,
    "psi": None,
    "reasons": [],
}
_WINDOWS = (("last 5 minutes", 300), ("last hour", 3600))
_LEAST_S = 5
_DRIFT = {
    "alarm": "Scores no longer look like the calibration's.",
    "no alarm": "Scores look like the calibration's.",
    "not judged": "Scores are not held against a calibration yet.",
}
TERMS = (
    ("Score", "The highest reading of a prompt: at the ends of its turns and in windows over its "
              "words, in text gaps. 0 is the centroid of safe, 1 that of unsafe texts at the fit."),
    ("Steered, flagged", "Scores above the first and the second threshold. In shadow mode nothing "
                         "is done; what would have been is counted beside."),
    ("Outage", "The detector failed; never a finding about the request."),
    ("Calibration", "The benign requests on whose scores the thresholds were set."),
)  # fmt: skip

# the figures
_MOST = 32  # bins
_WIDTHS = (5, 10, 20, 25, 50, 100, 200)  # in cells of the monitor's grid
WIDE, HIGH = 440, 260


def status_of(service: Service, *, scores: bool) -> dict[str, Any]:
    """What is in force and what happened of late; no text, no client, no single request.

    Without `scores` it has none, and no thresholds: where little is asked, a median is one request.
    """
    guard, observation = service.guard, service.observation
    recent, drift, load = observation.recent, observation.drift.of(guard), guard.load
    rows = [{"name": name, **asdict(recent.last(seconds))} for name, seconds in _WINDOWS]
    rows.append({"name": "since the start", **asdict(recent.since_start())})
    return {
        "version": __version__,
        "model": service.settings.model_name,
        "artefact_id": guard.artefact.artefact_id,
        "policy": {
            "mode": guard.policy.mode,
            "actions": sorted(map(str, guard.policy.actions)),
            "on_flag": guard.policy.on_flag,
            "fail": guard.policy.fail,
        },
        "started": _moment(recent.since),
        "now": _moment(time.time()),
        "draining": service.lifecycle.draining,
        "note": service.note,
        "queue": {"waiting": load.waiting, "running": load.running, "places": load.places},
        "windows": rows,
        "drift": _drift(drift),
        "scores": scores,
        "modalities": [row if scores else row | _UNTOLD for row in _modalities(guard, drift)],
        "audit_dropped": observation.audit_dropped,
    }


def _drift(comparison: Comparison) -> dict[str, Any]:
    judged = [row for row in comparison.modalities if row.finding in ("alarm", "no alarm")]
    state = "alarm" if comparison.alarm else "no alarm" if judged else "not judged"
    return {
        "state": state,
        "meaning": comparison.meaning,
        "least": comparison.least,
        "since": comparison.since.isoformat(timespec="seconds") if comparison.since else None,
    }


def _modalities(guard: Guard, comparison: Comparison) -> list[dict[str, Any]]:
    counts, compared = guard.monitor.snapshot().modalities, comparison.modalities
    findings: Mapping[Any, ModalityComparison] = {row.modality: row for row in compared}
    rows = []
    for modality, levels in guard.thresholds.items():
        if modality in counts:
            found = _modality(guard, modality, counts[modality], levels)
            row = findings.get(modality)  # a modality's first request may be newer
            finding = {
                "finding": row.finding if row else "too few",
                "psi": row.psi if row else None,
                "reasons": list(row.reasons) if row else [],
            }
            rows.append({**found, **finding})
    return rows


def _modality(
    guard: Guard, modality: Any, counts: ModalityCounts, levels: Thresholds
) -> dict[str, Any]:
    try:
        whose, calibration = guard.artefact.calibration_for(modality)
        before, source = calibration.scores, {"modality": str(whose), "n": calibration.n}
    except CalibrationError:
        before, source = (), None
    return {
        "modality": str(modality),
        "n": counts.n,
        "outages": counts.outages,
        "median": counts.quantile(0.5),
        "thresholds": {"steer": _finite(levels.steer), "flag": _finite(levels.flag)},
        "calibration": source,
        "histogram": binned(counts, before),
    }


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _moment(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")


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


def binned(counts: ModalityCounts, calibration: Sequence[float]) -> dict[str, Any] | None:
    """Shares of both in bins between common `edges`; None where nothing was scored.

    Scores beyond the monitor's grid (10 text gaps to each side) are in its outermost bins.
    """
    now, before = list(counts.cells), [(cell_of(score), 1) for score in calibration]
    if not now:
        return None
    cells = [cell for cell, _ in (*now, *before)]
    low, high = min(cells), max(cells)
    wide = next((w for w in _WIDTHS if high // w - low // w < _MOST), _WIDTHS[-1])
    first, last = low // wide, high // wide
    return {
        "edges": [round(place * wide * WIDTH, 2) for place in range(first, last + 2)],
        "now": _shares(now, wide, first, last),
        "calibration": _shares(before, wide, first, last) if before else None,
    }


def _shares(cells: Iterable[tuple[int, int]], wide: int, first: int, last: int) -> list[float]:
    found = [0] * (last - first + 1)
    for cell, count in cells:
        found[max(-LAST, cell) // wide - first] += count
    total = sum(found)
    return [count / total for count in found]


def score_bars(
    edges: Sequence[float],
    shares: Mapping[str, Sequence[float] | None],
    thresholds: Mapping[str, float | None],
    *,
    title: str,
    counts: Mapping[str, int],
) -> Markup:
    """Shares of scores in bins: `now` as bars, `calibration` as an outline, thresholds as lines.

    Args:
        edges: ascending, one more than bins.
        shares: of `now`, and of `calibration` if there is one; 0 to 1 each.
        thresholds: `steer` and `flag`; what lies outside the figure is told in words only.
        title: a few words, read out by screen readers.
        counts: how many scores the shares are of.
    """
    wide = edges[-1] - edges[0]
    reached = [t for t in thresholds.values()
               if t is not None and edges[0] - wide <= t <= edges[-1] + wide]  # fmt: skip
    told = [f"{name} at {value:.2f}" for name, value in thresholds.items() if value is not None]
    page = render(
        "scores.svg.j2",
        name="s" + "".join(c for c in title.lower() if c.isalnum()),
        title=title,
        counted=", ".join(f"{name} n = {count}" for name, count in counts.items() if count),
        told=", ".join(told) or "none",
        scale=_Scale(
            low=min(edges[0], *reached, edges[-1]),
            high=max(edges[0], *reached, edges[-1]),
            most=max(max(found) for found in shares.values() if found),
        ),
        edges=edges,
        now=shares["now"] or (),
        before=shares.get("calibration") or (),
        thresholds=thresholds,
        counts=counts,
    )
    return Markup(page)


@dataclass(frozen=True, kw_only=True)
class _Scale:
    """From scores and shares to places in the figure and its frame."""

    low: float
    high: float
    most: float

    size = WIDE, HIGH
    left, right, top, bottom = 48, 404, 46, 214

    def x(self, score: float) -> float:
        part = (score - self.low) / (self.high - self.low)
        return round(self.left + part * (self.right - self.left), 1)

    def y(self, share: float) -> float:
        return round(self.bottom - share / self.most * (self.bottom - self.top), 1)
