"""One self-contained HTML page from a template, and its way to the disk.

Templates are package data. They are always autoescaped, and a name that is not given is an error.
The base template forbids every request (Content-Security-Policy), so a page shows the same offline.
"""

from __future__ import annotations

import math
import re
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from guardrail.artefact.file import write_atomically

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence


_ROW, _CELL = re.compile(r"<tr\b.*?</tr>", re.DOTALL), re.compile(r"<(th|td)(\s[^>]*)?>")
_SPAN = re.compile(r'colspan="(\d+)"')
NONE = "\N{EN DASH}"


def render(template: str, **context: object) -> str:
    """The page that `template` makes of `context`.

    Args:
        template: a file of `guardrail/report/templates`, e.g. `evaluation.html.j2`.
        **context: the template's names. Text is escaped; only `markupsafe.Markup`, which
            `guardrail.report.figures.svg` returns, is taken as HTML.

    Raises:
        jinja2.UndefinedError: the template uses a name that `context` lacks.
    """
    return _environment().get_template(template).render(context)


def write_page(path: str | Path, html: str) -> None:
    """Put a page at `path` in one step: a reader sees the old file or the whole new one.

    A lone surrogate, which UTF-8 cannot hold, becomes a character reference.
    """
    write_atomically(Path(path), html.encode("utf-8", "xmlcharrefreplace"))


def labelled(rows: Markup, heads: Sequence[str]) -> Markup:
    """Rows of a table whose cells tell their columns' heads, for where it is shown as a list."""

    def cells(row: re.Match[str]) -> str:
        place = 0

        def cell(found: re.Match[str]) -> str:
            nonlocal place
            head, more = heads[place] if place < len(heads) else "", found[2] or ""
            span = _SPAN.search(more)
            place += int(span[1]) if span else 1
            return f'<{found[1]} data-head="{escape(head)}"{more}>'

        return _CELL.sub(cell, row[0])

    return Markup(_ROW.sub(cells, rows))  # it was markup before


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


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("guardrail", "report/templates"),
        autoescape=True,  # whatever a template's name ends with
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(FILTERS, labelled=labelled)
    return environment
