from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from guardrail.types import Action, Modality, Verdict

if TYPE_CHECKING:
    from collections.abc import Callable


@pytest.fixture
def verdict_of() -> Callable[..., Verdict]:
    """`verdict_of(score=0.4, action=Action.STEER)`: any verdict."""

    def make(**changes: Any) -> Verdict:
        action = changes.get("action", Action.PASS)
        facts = {
            "action": action,
            "would_be": action,
            "score": 0.25,
            "tau_steer": 0.5,
            "tau_flag": 0.9,
            "layers": (3, 4),
            "modality": Modality.TEXT,
            "artefact_id": "guard-0123456789abcdef",
        }
        return Verdict(**(facts | changes))

    return make


@pytest.fixture
def outage_of(verdict_of) -> Callable[..., Verdict]:
    """A verdict of a detector that failed."""

    def make(**changes: Any) -> Verdict:
        failed = {"action": Action.FLAG, "score": None, "reason": "detector_failed"}
        return verdict_of(**(failed | changes))

    return make
