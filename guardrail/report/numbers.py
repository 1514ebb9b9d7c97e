"""How numbers are written in a page: filters of the templates."""

from __future__ import annotations

import math
from datetime import UTC, datetime
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

NONE = "\N{EN DASH}"


def figure(value: float | None, digits: int = 3) -> str:
    """A plain figure, e.g. `0.931`; a dash for None."""
    if value is None or not math.isfinite(value):
        return NONE
    return f"{value:.{digits}f}".replace("-", "\N{MINUS SIGN}")


def percent(value: float | None, digits: int = 1) -> str:
    """A share of 1 in per cent, e.g. `12.5 %`."""
    return NONE if value is None else f"{figure(100 * value, digits)}\N{NO-BREAK SPACE}%"


def points(value: float) -> str:
    """A difference of two shares in percentage points, with its sign."""
    return f"{100 * value:+.1f}".replace("-", "\N{MINUS SIGN}")


def count(value: float) -> str:
    """A whole number with thin spaces between thousands."""
    return f"{value:,.0f}".replace(",", "\N{NARROW NO-BREAK SPACE}")


def small(value: float | None) -> str:
    """A figure that may be very small, to three significant digits."""
    return NONE if value is None else f"{value:.3g}".replace("-", "\N{MINUS SIGN}")


def duration(seconds: float) -> str:
    """A time for people: `0.42 s`, `12 s`, `3 min 05 s`."""
    if seconds < 10:
        return f"{seconds:.2f} s"
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{count(minutes)} min {rest:02d} s"


def tied(text: str) -> str:
    """The text with its per cent signs tied to their figures, so that no line starts with one."""
    return text.replace(" %", "\N{NO-BREAK SPACE}%")


def moment(text: str) -> str:
    """An ISO 8601 time as people write it; anything else as it is."""
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        return text
    if found.tzinfo is not None:
        found = found.astimezone(UTC)
    zone = " UTC" if found.tzinfo is not None else ""
    return f"{found.day} {found:%B %Y, %H:%M}{zone}"


FILTERS: Mapping[str, Callable[..., str]] = {
    "figure": figure,
    "percent": percent,
    "points": points,
    "count": count,
    "small": small,
    "duration": duration,
    "tied": tied,
    "moment": moment,
}
