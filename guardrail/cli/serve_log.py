"""Options of `guardrail serve`: its log and its record of verdicts."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from guardrail.cli.serve_options import ENV

_PANEL = "Log and audit"

Audit = Annotated[
    Path | None,
    typer.Option(
        "--audit",
        metavar="FILE",
        dir_okay=False,
        envvar=f"{ENV}AUDIT",
        rich_help_panel=_PANEL,
        help="Append each verdict as a JSON line, without what was asked.",
    ),
]
AuditMaxBytes = Annotated[
    int,
    typer.Option(
        envvar=f"{ENV}AUDIT_MAX_BYTES",
        min=0,
        rich_help_panel=_PANEL,
        help="Start the next --audit file at this size. 0: never.",
    ),
]
AuditBackups = Annotated[
    int,
    typer.Option(
        envvar=f"{ENV}AUDIT_BACKUPS", min=0, rich_help_panel=_PANEL, help="Older audit files kept."
    ),
]
LogFormat = Annotated[
    str,
    typer.Option(
        envvar=f"{ENV}LOG_FORMAT",
        metavar="json|text",
        rich_help_panel=_PANEL,
        help="A JSON object or key=value pairs a line, on stderr.",
    ),
]
LogLevel = Annotated[
    str,
    typer.Option(
        envvar=f"{ENV}LOG_LEVEL", metavar="debug|info|warning|error", rich_help_panel=_PANEL
    ),
]
LogPrompts = Annotated[
    bool,
    typer.Option(
        "--log-prompts",
        envvar=f"{ENV}LOG_PROMPTS",
        rich_help_panel=_PANEL,
        help="Write what was asked to the log, too. Off, no text of a request is ever there.",
    ),
]
