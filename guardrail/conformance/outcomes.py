"""How a check ends: with figures, or by raising one of these or the guard's own error."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pydantic import JsonValue

Figures = dict[str, "JsonValue"]


class WrongResultError(Exception):
    """The guard did something else than the slow reference; never reaches a caller."""


class DoesNotApplyError(Exception):
    """The model itself lacks what is checked, as it was seen to; never reaches a caller."""


def expect(holds: bool, otherwise: str) -> None:
    """Go on, or end the check as failed with what was seen."""
    if not holds:
        raise WrongResultError(otherwise)


def first_line(error: BaseException) -> str:
    """An error in one line of at most 160 characters, for a table's footnote."""
    lines = str(error).strip().splitlines()
    text = f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
    return text if len(text) <= 160 else text[:157] + "..."
