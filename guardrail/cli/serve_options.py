"""Options of `guardrail serve` itself: the address, the keys, the bounds, the log."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from guardrail.cli.options import MODEL_HELP

_ENV = "GUARDRAIL_SERVE_"

_ADDRESS, _ACCESS, _BOUNDS, _LOG = "Address", "Who may ask", "Bounds", "Log and audit"

Model = Annotated[str, typer.Argument(metavar="MODEL", envvar=f"{_ENV}MODEL", help=MODEL_HELP)]
Artefact = Annotated[
    str,
    typer.Option(
        "--artefact",
        "-a",
        metavar="ARTEFACT",
        envvar=f"{_ENV}ARTEFACT",
        help="The fitted file, or its hub id.",
    ),
]
Policy = Annotated[
    Path | None,
    typer.Option(
        "--policy",
        metavar="FILE",
        exists=True,
        dir_okay=False,
        envvar=f"{_ENV}POLICY",
        help="Rules in TOML, YAML or JSON. Default: GUARDRAIL_POLICY_* variables.",
    ),
]
Device = Annotated[
    str | None,
    typer.Option(envvar=f"{_ENV}DEVICE", help="cpu, cuda, cuda:1, ... Default: the best there is."),
]
Dtype = Annotated[
    str,
    typer.Option(
        envvar=f"{_ENV}DTYPE", help="float32, bfloat16, ... or auto, the checkpoint's own."
    ),
]
Audit = Annotated[
    Path | None,
    typer.Option(
        "--audit",
        metavar="FILE",
        dir_okay=False,
        envvar=f"{_ENV}AUDIT",
        rich_help_panel=_LOG,
        help="Append each verdict as a JSON line, without what was asked.",
    ),
]
Host = Annotated[
    str,
    typer.Option(
        envvar=f"{_ENV}HOST",
        rich_help_panel=_ADDRESS,
        help="The address to listen at; others than this machine's loopback need --api-keys.",
    ),
]
Port = Annotated[
    int,
    typer.Option(
        envvar=f"{_ENV}PORT", min=0, max=65_535, rich_help_panel=_ADDRESS, help="0: a free one."
    ),
]
UnixSocket = Annotated[
    Path | None,
    typer.Option(
        "--unix-socket",
        envvar=f"{_ENV}UNIX_SOCKET",
        metavar="PATH",
        rich_help_panel=_ADDRESS,
        help="Listen there instead; open to this user and group.",
    ),
]
TlsCert = Annotated[
    Path | None,
    typer.Option(
        envvar=f"{_ENV}TLS_CERT",
        exists=True,
        dir_okay=False,
        metavar="FILE",
        rich_help_panel=_ADDRESS,
        help="Answer in TLS with this certificate chain (PEM).",
    ),
]
TlsKey = Annotated[
    Path | None,
    typer.Option(
        envvar=f"{_ENV}TLS_KEY",
        exists=True,
        dir_okay=False,
        metavar="FILE",
        rich_help_panel=_ADDRESS,
        help="The certificate's key (PEM).",
    ),
]
ModelAlias = Annotated[
    str,
    typer.Option(
        "--model-name",
        envvar=f"{_ENV}MODEL_NAME",
        metavar="NAME",
        rich_help_panel=_ADDRESS,
        help="What clients name as `model`.",
    ),
]
ApiKeys = Annotated[
    Path | None,
    typer.Option(
        "--api-keys",
        envvar="GUARDRAIL_API_KEYS_FILE",
        exists=True,
        dir_okay=False,
        metavar="FILE",
        rich_help_panel=_ACCESS,
        help="name:token lines (or name:sha256:HEX); only their bearers may ask. The variable "
        "GUARDRAIL_API_KEYS holds the same between commas.",
    ),
]
Insecure = Annotated[
    bool,
    typer.Option(
        "--insecure-no-keys",
        envvar=f"{_ENV}INSECURE_NO_KEYS",
        rich_help_panel=_ACCESS,
        help="Answer everybody, at any address: only behind something that asks for keys.",
    ),
]
OpenMetrics = Annotated[
    bool,
    typer.Option(
        "--open-metrics",
        envvar=f"{_ENV}OPEN_METRICS",
        rich_help_panel=_ACCESS,
        help="/metrics needs no key.",
    ),
]
OpenStatus = Annotated[
    bool,
    typer.Option(
        "--open-status",
        envvar=f"{_ENV}OPEN_STATUS",
        rich_help_panel=_ACCESS,
        help="The status page needs no key.",
    ),
]
CorsOrigins = Annotated[
    list[str] | None,
    typer.Option(
        "--cors-origin",
        envvar=f"{_ENV}CORS_ORIGINS",
        metavar="ORIGIN",
        rich_help_panel=_ACCESS,
        help="A site whose pages may ask from a browser; repeatable. Default: none.",
    ),
]
FetchUrls = Annotated[
    bool,
    typer.Option(
        "--fetch-urls",
        envvar=f"{_ENV}FETCH_URLS",
        rich_help_panel=_ACCESS,
        help="Fetch pictures from the policy's `allowed_hosts`; otherwise only data: URLs.",
    ),
]
MaxConcurrent = Annotated[
    int,
    typer.Option(
        envvar=f"{_ENV}MAX_CONCURRENT",
        min=1,
        rich_help_panel=_BOUNDS,
        help="Requests under way at once; more are answered 429.",
    ),
]
MaxPerClient = Annotated[
    int | None,
    typer.Option(
        envvar=f"{_ENV}MAX_PER_CLIENT",
        min=1,
        rich_help_panel=_BOUNDS,
        help="Of them by one key. Default: half where there are several keys.",
    ),
]
MaxConnections = Annotated[
    int,
    typer.Option(
        envvar=f"{_ENV}MAX_CONNECTIONS", min=1, rich_help_panel=_BOUNDS, help="Open at once."
    ),
]
MaxBodyBytes = Annotated[
    int, typer.Option(envvar=f"{_ENV}MAX_BODY_BYTES", min=1, rich_help_panel=_BOUNDS)
]
Timeout = Annotated[
    float,
    typer.Option(
        envvar=f"{_ENV}TIMEOUT",
        min=0.01,
        rich_help_panel=_BOUNDS,
        help="Seconds from a request to the end of its answer.",
    ),
]
BodyTimeout = Annotated[
    float,
    typer.Option(
        envvar=f"{_ENV}BODY_TIMEOUT",
        min=0.01,
        rich_help_panel=_BOUNDS,
        help="Seconds for a body to arrive.",
    ),
]
HeaderTimeout = Annotated[
    float,
    typer.Option(
        envvar=f"{_ENV}HEADER_TIMEOUT",
        min=0.01,
        rich_help_panel=_BOUNDS,
        help="Seconds for the headers of a request to arrive.",
    ),
]
Drain = Annotated[
    float,
    typer.Option(
        envvar=f"{_ENV}DRAIN",
        min=0,
        rich_help_panel=_BOUNDS,
        help="Seconds that answers under way have after SIGTERM.",
    ),
]
AuditMaxBytes = Annotated[
    int,
    typer.Option(
        envvar=f"{_ENV}AUDIT_MAX_BYTES",
        min=0,
        rich_help_panel=_LOG,
        help="Start the next --audit file at this size. 0: never.",
    ),
]
AuditBackups = Annotated[
    int,
    typer.Option(
        envvar=f"{_ENV}AUDIT_BACKUPS", min=0, rich_help_panel=_LOG, help="Older audit files kept."
    ),
]
LogFormat = Annotated[
    str,
    typer.Option(
        envvar=f"{_ENV}LOG_FORMAT",
        metavar="json|text",
        rich_help_panel=_LOG,
        help="A JSON object or key=value pairs a line, on stderr.",
    ),
]
LogLevel = Annotated[
    str,
    typer.Option(
        envvar=f"{_ENV}LOG_LEVEL", metavar="debug|info|warning|error", rich_help_panel=_LOG
    ),
]
LogPrompts = Annotated[
    bool,
    typer.Option(
        "--log-prompts",
        envvar=f"{_ENV}LOG_PROMPTS",
        rich_help_panel=_LOG,
        help="Write what was asked to the log, too. Off, no text of a request is ever there.",
    ),
]
