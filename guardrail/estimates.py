"""Figures with their 95 % intervals, as reports write them down."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Self

from pydantic import BaseModel, ConfigDict, ValidationError

from guardrail.errors import ConfigurationError
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

    @property
    def complement(self) -> Share:
        """The share of inputs that this one leaves over; its exact interval is the mirror image."""
        return Share(
            rate=1 - self.rate,
            hits=self.n - self.hits,
            n=self.n,
            low=1 - self.high,
            high=1 - self.low,
        )


class SavedReport(Frozen):
    """A report that is kept as JSON and names the version of its schema."""

    name: ClassVar[str]
    command: ClassVar[str]

    @classmethod
    def from_json(cls, text: str | bytes) -> Self:
        """A report as its file holds it.

        Raises:
            ConfigurationError: this is no such report of the version this release reads.
        """
        try:
            return cls.model_validate_json(text)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            place = ".".join(map(str, first["loc"]))
            told = f"{place or 'the file'}: {first['msg']}"
            if place == "schema_version":
                told = f"it says {first['input']!r}"
            version = cls.model_fields["schema_version"].default
            raise ConfigurationError(
                f"this is no {cls.name} of version {version} ({told}); make one with "
                f"`{cls.command}`"
            ) from error
