"""Artefacts whose calibration is known, verdicts to count, and log lines."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from guardrail.artefact.header import Rates
from guardrail.fit.calibrate import calibration
from guardrail.testing import tiny_artefact
from guardrail.types import Action, Modality, Verdict

if TYPE_CHECKING:
    from collections.abc import Callable

    from guardrail.artefact import Artefact

RATES = Rates(steer=0.05, flag=0.01)


@pytest.fixture(scope="session")
def artefact_with(llava: Any) -> Callable[..., Artefact]:
    """`artefact_with(text=scores, image=scores)`: thresholds for 5 % and 1 % of each."""
    plain = tiny_artefact(llava.model, llava.processor)

    def make(**scores: Any) -> Artefact:
        rows = {
            Modality(name): calibration(list(found), RATES, source="safe prompts")
            for name, found in scores.items()
        }
        return plain.revised(calibration=rows)

    return make


@pytest.fixture(scope="session")
def artefact(artefact_with: Callable[..., Artefact]) -> Artefact:
    """Normal scores: 999 of texts around 0, 399 of images around 0.2."""
    rng = np.random.default_rng(0)
    return artefact_with(
        text=rng.normal(0, 0.5, 999).tolist(), image=rng.normal(0.2, 0.5, 399).tolist()
    )


@pytest.fixture(scope="session")
def verdict_of() -> Callable[..., Verdict]:
    """`verdict_of(artefact, 0.3, Modality.IMAGE)`: as its stored thresholds ask for."""

    def make(
        artefact: Artefact, score: float | None, modality: Modality = Modality.TEXT
    ) -> Verdict:
        taus = artefact.calibration_for(modality)[1].thresholds
        would_be = Action.PASS
        if score is None or score > taus.flag:
            would_be = Action.FLAG
        elif score > taus.steer:
            would_be = Action.STEER
        return Verdict(
            action=would_be,
            would_be=would_be,
            score=score,
            tau_steer=taus.steer,
            tau_flag=taus.flag,
            layers=(1,),
            modality=modality,
            artefact_id=artefact.artefact_id,
            reason="detector_failed" if score is None else "score",
        )

    return make
