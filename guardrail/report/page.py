"""One self-contained HTML page from a template, and its way to the disk.

Templates are package data. They are always autoescaped, and a name that is not given is an error.
The base template forbids every request (Content-Security-Policy), so a page shows the same offline.
"""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from guardrail.artefact.file import write_atomically
from guardrail.extras import require

if TYPE_CHECKING:
    from collections.abc import Sequence

    from jinja2 import Environment
    from markupsafe import Markup

_ROW, _CELL = re.compile(r"<tr\b.*?</tr>", re.DOTALL), re.compile(r"<(th|td)(\s[^>]*)?>")
_SPAN = re.compile(r'colspan="(\d+)"')


def render(template: str, **context: object) -> str:
    """The page that `template` makes of `context`.

    Args:
        template: a file of `guardrail/report/templates`, e.g. `evaluation.html.j2`.
        **context: the template's names. Text is escaped; only `markupsafe.Markup`, which
            `guardrail.report.figures.svg` returns, is taken as HTML.

    Raises:
        MissingExtraError: jinja2 is not installed.
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
    from markupsafe import Markup, escape

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


@cache
def _environment() -> Environment:
    require("jinja2")
    from jinja2 import Environment, PackageLoader, StrictUndefined

    from guardrail.report import numbers

    environment = Environment(
        loader=PackageLoader("guardrail", "report/templates"),
        autoescape=True,  # whatever a template's name ends with
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(numbers.FILTERS, labelled=labelled)
    return environment
