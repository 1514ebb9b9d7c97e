"""Figures with their 95 % intervals, as reports write them down."""

from __future__ import annotations

from typing import TYPE_CHECKING, Self

from pydantic import BaseModel, ConfigDict

from guardrail.metrics import auroc, auroc_interval

if TYPE_CHECKING:
    from collections.abc import Sequence

    from guardrail.metrics import Rate


class Frozen(BaseModel):
    """A record of plain, finite values; a key it does not know is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Estimate(Frozen):
    """A figure and its 95 % interval."""

    value: float
    low: float
    high: float

    @classmethod
    def of_auroc(cls, unsafe: Sequence[float], safe: Sequence[float]) -> Self:
        """The AUROC of two classes' scores.

        Raises:
            ValueError: as `auroc`.
        """
        low, high = auroc_interval(unsafe, safe)
        return cls(value=auroc(unsafe, safe), low=low, high=high)


class Share(Frozen):
    """A rate of n inputs and its 95 % interval."""

    rate: float
    hits: int
    n: int
    low: float
    high: float

    @classmethod
    def of(cls, rate: Rate) -> Self:
        """A `Rate` as it is written down."""
        return cls.model_validate(rate.to_dict())
