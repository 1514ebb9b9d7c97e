"""What the checks found, as frozen values that are written as JSON and read again."""

from __future__ import annotations

from enum import StrEnum
from typing import Self

from pydantic import BaseModel, ConfigDict, Field, JsonValue, model_validator

FORMAT_VERSION = 1


class Outcome(StrEnum):
    """`no` is the guard's own clear refusal; a wrong result is `FAILED`."""

    YES = "yes"
    NO = "no"
    NOT_APPLICABLE = "n/a"
    FAILED = "FAILED"


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Check(_Frozen):
    """One check: what it found, why, and the figures behind it.

    `reason` is there for everything but a `yes`, and for a `yes` that is restricted. `figures` are
    plain values, each named for what it counts or measures. `mode` marks a way of generating, or a
    kind of input, that a guard can do without.
    """

    name: str
    title: str
    outcome: Outcome
    mode: bool = False
    reason: str | None = None
    figures: dict[str, JsonValue] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _reasoned(self) -> Self:
        if self.outcome is not Outcome.YES and not self.reason:
            raise ValueError(f"{self.name}: an outcome of {self.outcome} needs a reason")
        return self


class Report(_Frozen):
    """All checks of one model, in the order of `CHECKS`."""

    format_version: int = Field(default=FORMAT_VERSION, ge=1, le=FORMAT_VERSION)
    architecture: str
    source: str
    layers: int
    d_model: int
    dtype: str
    device: str
    pictures: bool
    packages: dict[str, str]
    checks: tuple[Check, ...]

    @property
    def failed(self) -> tuple[Check, ...]:
        """The checks with a wrong result."""
        return tuple(check for check in self.checks if check.outcome is Outcome.FAILED)

    @property
    def ok(self) -> bool:
        """Whether nothing went wrong; a clear refusal is not wrong."""
        return not self.failed

    @property
    def works(self) -> bool:
        """Whether a guard works inside the model: nothing wrong, and a `yes` beyond all modes."""
        core = [check.outcome for check in self.checks if not check.mode]
        return self.ok and all(outcome is Outcome.YES for outcome in core)

    def __getitem__(self, name: str) -> Check:
        """The check of that name; KeyError when it was not run."""
        for check in self.checks:
            if check.name == name:
                return check
        raise KeyError(name)
