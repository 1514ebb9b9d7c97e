"""`guardrail explain`: where along one prompt, and where in its pictures, the direction appears."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from guardrail.cli import options as o
from guardrail.cli.derived import Derived
from guardrail.cli.inputs import (
    open_guard,
    read_artefact,
    read_request,
)
from guardrail.cli.output import exit_code, say, session, verdict_rows, write_json, write_rows
from guardrail.extras import require
from guardrail.model.source import LoadingOptions

if TYPE_CHECKING:
    from guardrail.evaluation.explanation import Explanation


class LayoutName(StrEnum):
    """How picture positions are laid out."""

    AUTO = "auto"
    GRID = "grid"
    STRIP = "strip"


def explain(
    *,
    model: o.ModelName,
    artefact: o.ArtefactName,
    asked: o.RequestOptions,
    png: Annotated[
        Path | None,
        typer.Option(metavar="FILE", dir_okay=False, writable=True, help="Write a picture of it."),
    ] = None,
    html: Annotated[
        Path | None,
        typer.Option(metavar="FILE", dir_okay=False, writable=True, help="Write a page of it."),
    ] = None,
    layout: Annotated[
        LayoutName,
        typer.Option(
            help="Picture positions as a grid, or as a strip; auto: a grid where it is certain."
        ),
    ] = LayoutName.AUTO,
    guarding: Annotated[o.GuardOptions, Derived(without=frozenset({"audit"}))],
    loading: LoadingOptions,
    as_json: o.AsJson = False,
    debug: o.Debug = False,
) -> None:
    """Show one request's score at every position of its prompt; exits like `check`."""
    with session(debug=debug) as stdout:
        value = read_request(asked)
        _require_extras(png, html)
        fitted, rules = read_artefact(artefact), guarding.rules()
        with open_guard(model, fitted, rules, guarding, loading) as guard:
            from guardrail.evaluation.explain import explain as run_explain

            found = run_explain(guard, value, layout=layout.value)
        _write(found, png, html)
        if as_json:
            write_json(stdout, found.to_dict())
        else:
            from guardrail.cli.heat_text import show_explanation

            write_rows(stdout, verdict_rows(found.verdict))
            stdout.write("\n")
            show_explanation(stdout, found)
    raise typer.Exit(exit_code(found.verdict, strict=False))


def _require_extras(png: Path | None, html: Path | None) -> None:
    """Name what is missing now, not after a model was loaded."""
    if png is not None or html is not None:
        require("matplotlib")


def _write(found: Explanation, png: Path | None, html: Path | None) -> None:
    from guardrail.artefact.file import write_atomically

    if png is not None:
        from guardrail.report.explain_figure import explanation_png

        write_atomically(png, explanation_png(found))
        say(f"written: {png}")
    if html is not None:
        from guardrail.report.explain_page import explanation_page
        from guardrail.report.page import write_page

        write_page(html, explanation_page(found))
        say(f"written: {html}")
