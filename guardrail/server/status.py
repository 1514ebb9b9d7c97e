"""A server's state as plain values, for its status page and `/status.json`."""

from __future__ import annotations

import math
import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from guardrail import __version__
from guardrail.errors import CalibrationError
from guardrail.server.score_bins import binned

if TYPE_CHECKING:
    from collections.abc import Mapping

    from guardrail.guard import Guard
    from guardrail.monitor.comparing import Comparison, ModalityComparison
    from guardrail.monitor.snapshot import ModalityCounts
    from guardrail.observe.recent import Counts
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


def status_of(service: Service, *, scores: bool) -> dict[str, Any]:
    """What is in force and what happened of late; no text, no client, no single request.

    Without `scores` it has none, and no thresholds: where little is asked, a median is one request.
    """
    guard, observation = service.guard, service.observation
    recent, drift, load = observation.recent, observation.drift.of(guard), guard.load
    rows = [{"name": name, **_counts(recent.last(seconds))} for name, seconds in _WINDOWS]
    rows.append({"name": "since the start", **_counts(recent.since_start())})
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


def _counts(counts: Counts) -> dict[str, Any]:
    return {
        "n": counts.n,
        "actions": {str(action): count for action, count in counts.actions.items()},
        "would_be": {str(action): count for action, count in counts.would_be.items()},
        "modalities": {str(modality): count for modality, count in counts.modalities.items()},
        "outages": counts.outages,
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
