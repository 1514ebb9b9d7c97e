"""A verdict on the wire: headers, and the field `guardrail` of JSON answers."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from guardrail.types import Verdict

FIELD = "guardrail"


def headers_of(verdict: Verdict | None) -> dict[str, str]:
    """The headers of a judged answer; a score of None has none."""
    if verdict is None:
        return {}
    told = {
        "Action": verdict.action,
        "Would-Be": verdict.would_be,
        "Modality": verdict.modality,
        "Reason": verdict.reason,
        "Mode": verdict.mode,
        "Artefact": verdict.artefact_id,
    }
    if verdict.score is not None:
        told["Score"] = f"{verdict.score:.4f}"
    return {f"X-Guardrail-{name}": str(value) for name, value in told.items()}
