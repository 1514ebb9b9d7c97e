"""Options of `guardrail serve`: who may ask, and for what."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from guardrail.cli.serve_options import ENV

_PANEL = "Who may ask"

ApiKeys = Annotated[
    Path | None,
    typer.Option(
        "--api-keys",
        envvar="GUARDRAIL_API_KEYS_FILE",
        exists=True,
        dir_okay=False,
        metavar="FILE",
        rich_help_panel=_PANEL,
        help="name:token lines (or name:sha256:HEX); only their bearers may ask. Those of "
        "name+trusted:token are told scores. The variable GUARDRAIL_API_KEYS holds the same "
        "between commas.",
    ),
]
ExposeScores = Annotated[
    bool | None,
    typer.Option(
        "--expose-scores/--hide-scores",
        envvar=f"{ENV}EXPOSE_SCORES",
        rich_help_panel=_PANEL,
        help="Tell scores and thresholds to everybody, or to nobody. Default: to trusted keys, and "
        "without keys to this machine: they help a search for a request that passes.",
    ),
]
Insecure = Annotated[
    bool,
    typer.Option(
        "--insecure-no-keys",
        envvar=f"{ENV}INSECURE_NO_KEYS",
        rich_help_panel=_PANEL,
        help="Answer everybody, at any address: only behind something that asks for keys.",
    ),
]
OpenMetrics = Annotated[
    bool,
    typer.Option(
        "--open-metrics",
        envvar=f"{ENV}OPEN_METRICS",
        rich_help_panel=_PANEL,
        help="/metrics needs no key.",
    ),
]
OpenStatus = Annotated[
    bool,
    typer.Option(
        "--open-status",
        envvar=f"{ENV}OPEN_STATUS",
        rich_help_panel=_PANEL,
        help="The status page needs no key.",
    ),
]
CorsOrigins = Annotated[
    list[str] | None,
    typer.Option(
        "--cors-origin",
        envvar=f"{ENV}CORS_ORIGINS",
        metavar="ORIGIN",
        rich_help_panel=_PANEL,
        help="A site whose pages may ask from a browser; repeatable. Default: none.",
    ),
]
FetchUrls = Annotated[
    bool,
    typer.Option(
        "--fetch-urls",
        envvar=f"{ENV}FETCH_URLS",
        rich_help_panel=_PANEL,
        help="Fetch pictures from the policy's `allowed_hosts`; otherwise only data: URLs.",
    ),
]
