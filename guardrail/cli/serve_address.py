"""Options of `guardrail serve`: where it listens, and its name for clients."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from guardrail.cli.serve_options import ENV

_PANEL = "Address"

Host = Annotated[
    str,
    typer.Option(
        envvar=f"{ENV}HOST",
        rich_help_panel=_PANEL,
        help="The address to listen at; others than this machine's loopback need --api-keys.",
    ),
]
Port = Annotated[
    int,
    typer.Option(
        envvar=f"{ENV}PORT", min=0, max=65_535, rich_help_panel=_PANEL, help="0: a free one."
    ),
]
UnixSocket = Annotated[
    Path | None,
    typer.Option(
        "--unix-socket",
        envvar=f"{ENV}UNIX_SOCKET",
        metavar="PATH",
        rich_help_panel=_PANEL,
        help="Listen there instead; open to this user and group.",
    ),
]
TlsCert = Annotated[
    Path | None,
    typer.Option(
        envvar=f"{ENV}TLS_CERT",
        exists=True,
        dir_okay=False,
        metavar="FILE",
        rich_help_panel=_PANEL,
        help="Answer in TLS with this certificate chain (PEM).",
    ),
]
TlsKey = Annotated[
    Path | None,
    typer.Option(
        envvar=f"{ENV}TLS_KEY",
        exists=True,
        dir_okay=False,
        metavar="FILE",
        rich_help_panel=_PANEL,
        help="The certificate's key (PEM).",
    ),
]
ModelAlias = Annotated[
    str,
    typer.Option(
        "--model-name",
        envvar=f"{ENV}MODEL_NAME",
        metavar="NAME",
        rich_help_panel=_PANEL,
        help="What clients name as `model`.",
    ),
]
