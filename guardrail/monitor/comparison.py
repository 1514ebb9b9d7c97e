"""The outcome of holding a monitor's counts against a calibration, as data."""

from __future__ import annotations

from datetime import datetime
from typing import Literal

from pydantic import BaseModel, ConfigDict

from guardrail.types import Modality


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Exceedance(_Frozen):
    """The share of inputs beyond one of the calibration's thresholds, and its target.

    `p_value`: how probable so many are without a shift (`exceedance_p_value`).
    """

    action: Literal["steer", "flag"]
    threshold: float
    target: float
    rate: float
    hits: int
    n: int
    low: float
    high: float
    p_value: float
    alarm: bool


class ModalityComparison(_Frozen):
    """One modality's scores beside the calibration they are held to (`reference`: whose it is).

    `psi` is the population stability index; it alarms when it exceeds both `psi_limit` and
    `psi_by_chance`, what the numbers of inputs alone explain. `finding` is "too few" or "no
    calibration" where nothing is judged, and the figures then are None.
    """

    modality: Modality
    finding: Literal["alarm", "no alarm", "too few", "no calibration"]
    n: int
    outages: int
    median: float | None
    reference: Modality | None = None
    reference_n: int | None = None
    reference_median: float | None = None
    reference_source: str | None = None
    psi: float | None = None
    psi_by_chance: float | None = None
    exceedances: tuple[Exceedance, ...] = ()
    reasons: tuple[str, ...] = ()


class Comparison(_Frozen):
    """A snapshot beside its artefact's calibration.

    `alpha` is the chance of any false alarm, shared out evenly among `tests`. `meaning` says what
    an alarm may mean, and is empty without one. `outages` counts requests without any decision.
    """

    artefact_id: str
    since: datetime | None
    until: datetime | None
    outages: int
    alarm: bool
    meaning: str
    psi_limit: float
    alpha: float
    least: int
    tests: int
    modalities: tuple[ModalityComparison, ...]

    def to_dict(self) -> dict[str, object]:
        """Plain values, ready for JSON."""
        return self.model_dump(mode="json")
