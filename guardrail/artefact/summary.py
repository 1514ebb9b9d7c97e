"""What people want to know first of an artefact, as plain values."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

from guardrail.errors import CalibrationError
from guardrail.types import Modality

if TYPE_CHECKING:
    from collections.abc import Iterator

    from guardrail.artefact.artefact import Artefact


def summary_of(artefact: Artefact) -> dict[str, Any]:
    """Identity, model, detection, steering, offsets and calibrations, ready for JSON."""
    header = artefact.header
    layers, width = artefact.tensors["direction"].shape
    return {
        "artefact_id": artefact.artefact_id,
        "created": header.created,
        "parent": header.parent,
        "architecture": header.fingerprint.architecture,
        "revision": header.fingerprint.revision,
        "layers": layers,
        "d_model": width,
        "readout": header.readout.model_dump(mode="json"),
        "steering": header.steering and header.steering.model_dump(mode="json"),
        "offsets": {kind: row.size for kind, row in header.offsets.items()},
        "calibration": dict(_calibrations(artefact)),
        "data": header.data,
        "packages": header.packages,
        "warnings": list(header.warnings),
    }


def _calibrations(artefact: Artefact) -> Iterator[tuple[str, dict[str, Any]]]:
    """The thresholds of each modality as stored, and whose calibration each comes from."""
    for modality in Modality:
        if modality is Modality.VIDEO and not artefact.reads_videos:
            continue
        with contextlib.suppress(CalibrationError):
            used, row = artefact.calibration_for(modality)
            kept = row.model_dump(mode="json", exclude={"scores", "intervals", "thresholds"})
            yield modality.value, {"from": used.value, **kept, **row.thresholds.model_dump()}
