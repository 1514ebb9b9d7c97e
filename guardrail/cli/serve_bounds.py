"""Options of `guardrail serve`: how much of everything it takes."""

from __future__ import annotations

from typing import Annotated

import typer

from guardrail.cli.serve_options import ENV

_PANEL = "Bounds"

MaxConcurrent = Annotated[
    int,
    typer.Option(
        envvar=f"{ENV}MAX_CONCURRENT",
        min=1,
        rich_help_panel=_PANEL,
        help="Requests under way at once; more are answered 429.",
    ),
]
MaxPerClient = Annotated[
    int | None,
    typer.Option(
        envvar=f"{ENV}MAX_PER_CLIENT",
        min=1,
        rich_help_panel=_PANEL,
        help="Of them by one key. Default: half where there are several keys.",
    ),
]
MaxConnections = Annotated[
    int,
    typer.Option(
        envvar=f"{ENV}MAX_CONNECTIONS", min=1, rich_help_panel=_PANEL, help="Open at once."
    ),
]
MaxBodyBytes = Annotated[
    int,
    typer.Option(
        envvar=f"{ENV}MAX_BODY_BYTES", min=1, rich_help_panel=_PANEL, help="Of one request."
    ),
]
MaxChecks = Annotated[
    int,
    typer.Option(
        envvar=f"{ENV}MAX_CHECKS",
        min=1,
        rich_help_panel=_PANEL,
        help="Inputs of one request to /v1/checks.",
    ),
]
DefaultTokens = Annotated[
    int,
    typer.Option(
        envvar=f"{ENV}DEFAULT_TOKENS",
        min=1,
        rich_help_panel=_PANEL,
        help="The most tokens of an answer for which the client names no limit.",
    ),
]
Timeout = Annotated[
    float,
    typer.Option(
        envvar=f"{ENV}TIMEOUT",
        min=0.01,
        rich_help_panel=_PANEL,
        help="Seconds from a request to the end of its answer.",
    ),
]
BodyTimeout = Annotated[
    float,
    typer.Option(
        envvar=f"{ENV}BODY_TIMEOUT",
        min=0.01,
        rich_help_panel=_PANEL,
        help="Seconds for a body to arrive.",
    ),
]
HeaderTimeout = Annotated[
    float,
    typer.Option(
        envvar=f"{ENV}HEADER_TIMEOUT",
        min=0.01,
        rich_help_panel=_PANEL,
        help="Seconds for the headers of a request to arrive.",
    ),
]
Drain = Annotated[
    float,
    typer.Option(
        envvar=f"{ENV}DRAIN",
        min=0,
        rich_help_panel=_PANEL,
        help="Seconds that answers under way have after SIGTERM.",
    ),
]
