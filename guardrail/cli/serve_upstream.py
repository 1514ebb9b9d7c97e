"""Options of `guardrail serve` for proxy mode: the server that answers what was checked here."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from pydantic import ValidationError

from guardrail.cli.serve_options import ENV
from guardrail.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from guardrail.server.service import Answerer, Service

_ENV = f"{ENV}UPSTREAM"
_PANEL = "Upstream: check here, let another server answer"

Url = Annotated[
    str | None,
    typer.Option(
        "--upstream",
        envvar=_ENV,
        metavar="URL",
        rich_help_panel=_PANEL,
        help="An OpenAI-compatible server that answers what passes the check: vLLM, Ollama, a "
        "hosted model. One without a path gets /v1. MODEL only checks then.",
    ),
]
KeyEnv = Annotated[
    str | None,
    typer.Option(
        "--upstream-key-env",
        envvar=f"{_ENV}_KEY_ENV",
        metavar="VARIABLE",
        rich_help_panel=_PANEL,
        help="The variable that holds the upstream's key. Clients' own keys are never sent on.",
    ),
]
KeyFile = Annotated[
    Path | None,
    typer.Option(
        "--upstream-key-file",
        envvar=f"{_ENV}_KEY_FILE",
        exists=True,
        dir_okay=False,
        metavar="FILE",
        rich_help_panel=_PANEL,
        help="Or the file that holds it.",
    ),
]
Models = Annotated[
    list[str] | None,
    typer.Option(
        "--upstream-model",
        envvar=f"{_ENV}_MODELS",
        metavar="NAME[=UPSTREAM]",
        rich_help_panel=_PANEL,
        help="A model that clients may name, and its name there; repeatable. Default: all.",
    ),
]
Timeout = Annotated[
    float,
    typer.Option(
        "--upstream-timeout",
        envvar=f"{_ENV}_TIMEOUT",
        min=0.01,
        rich_help_panel=_PANEL,
        help="Seconds for the upstream's whole answer; --timeout holds as well.",
    ),
]
Retries = Annotated[
    int,
    typer.Option(
        "--upstream-retries",
        envvar=f"{_ENV}_RETRIES",
        min=0,
        max=10,
        rich_help_panel=_PANEL,
        help="More attempts where the upstream certainly did not begin: no connection, or a 429 or "
        "503 with Retry-After.",
    ),
]
Unchecked = Annotated[
    list[str] | None,
    typer.Option(
        "--upstream-unchecked",
        envvar=f"{_ENV}_UNCHECKED",
        metavar="KEY",
        rich_help_panel=_PANEL,
        help="A key of bodies that the upstream never shows to its model; repeatable. Other keys "
        "that nobody here reads are refused.",
    ),
]
CaFile = Annotated[
    Path | None,
    typer.Option(
        "--upstream-ca",
        envvar=f"{_ENV}_CA",
        exists=True,
        dir_okay=False,
        metavar="FILE",
        rich_help_panel=_PANEL,
        help="Trust these authorities (PEM) for the upstream, in place of the usual ones.",
    ),
]
TrustEnv = Annotated[
    bool,
    typer.Option(
        "--upstream-trust-env",
        envvar=f"{_ENV}_TRUST_ENV",
        rich_help_panel=_PANEL,
        help="Heed HTTP_PROXY and the like.",
    ),
]


def upstream_answerer(
    url: str | None,
    *,
    key_env: str | None,
    key_file: Path | None,
    models: Sequence[str] | None,
    unchecked: Sequence[str] | None,
    **settings: Any,
) -> Callable[[Service], Answerer] | None:
    """What answers in the place of the guarded model; None without an upstream.

    Raises:
        ConfigurationError: a setting cannot hold, or the key is not where it should be.
    """
    if url is None:
        if key_env or key_file or models or unchecked:
            raise typer.BadParameter("--upstream-... options need --upstream URL")
        return None
    from guardrail.server.proxy import UpstreamSettings, read_key, through

    named = [name.partition("=") for name in models or ()]
    if not all(name and (to or not sign) for name, sign, to in named):
        raise typer.BadParameter("--upstream-model is NAME or NAME=UPSTREAM")
    try:
        upstream = UpstreamSettings(
            url=url,
            key=read_key(env=key_env, file=key_file),
            models={name: to or name for name, _, to in named},
            unchecked=frozenset(unchecked or ()),
            **settings,
        )
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        said = first["msg"].removeprefix("Value error, ")
        raise ConfigurationError(f"--upstream: {said}") from None
    return through(upstream)
