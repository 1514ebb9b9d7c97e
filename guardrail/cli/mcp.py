"""`guardrail mcp`: a guard in front of any server of the Model Context Protocol."""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from pydantic import Field

from guardrail.cli import options as o
from guardrail.cli.derived import Derived
from guardrail.cli.inputs import open_guard, read_artefact
from guardrail.cli.output import session
from guardrail.errors import ConfigurationError
from guardrail.extras import require
from guardrail.model.source import LoadingOptions
from guardrail.server.settings import is_loopback, read_key

if TYPE_CHECKING:
    from guardrail.guard import Guard
    from guardrail.mcp import McpProxy
    from guardrail.mcp.transports import Upstream

_RULES = Derived(only=frozenset({"policy", "judged", "allow_mismatch", "audit"}))


class WhereOptions(o.Options):
    """Where the server is, and where clients come."""

    url: str | None = Field(
        default=None,
        description="The server's address, where it is asked over streamable HTTP.",
        json_schema_extra={"metavar": "URL"},
    )
    key_env: str | None = Field(
        default=None,
        description="The variable that holds the key for --url, sent as a bearer token.",
        json_schema_extra={"metavar": "VARIABLE"},
    )
    key_file: Path | None = Field(
        default=None, description="Or the file that holds it.", json_schema_extra=o.FILE
    )
    http: bool = Field(
        default=False,
        description="Clients come over streamable HTTP (at /mcp); without this over stdin and "
        "stdout.",
    )
    host: str = Field(
        default="127.0.0.1", description="With --http, an address of this machine's loopback."
    )
    port: int = Field(default=8000, ge=0, le=65_535, description="With --http. 0: a free one.")


def mcp(
    *,
    model: o.ModelName,
    artefact: o.ArtefactName,
    where: WhereOptions,
    guarding: Annotated[o.GuardOptions, _RULES],
    loading: LoadingOptions,
    words: Annotated[
        list[str] | None,
        typer.Argument(metavar="[-- SERVER ...]", help="The server as a program, behind --."),
    ] = None,
    debug: o.Debug = False,
) -> None:
    """Stand in front of an MCP server: `guardrail mcp MODEL -a ARTEFACT -- npx some-server`.

    What the server says is read before the client hears it, and calls of tools before the server
    gets them. Put this command in the place of the server's own into a client's settings; its
    variables reach the server. The log is on stderr. It exits with 2 when the server ends first.
    """
    with session(debug=debug):
        require("mcp")
        upstream = _upstream(where, words or [])
        if where.http and not is_loopback(where.host):
            raise typer.BadParameter(
                "--host is to be of this machine (127.0.0.1): nobody asks for keys here; put a "
                "server that does in front"
            )
        logging.basicConfig(level="INFO", format="%(name)s: %(message)s", stream=sys.stderr)
        logging.getLogger("mcp").setLevel("WARNING")
        # Nothing but the protocol goes to stdout, whatever a model's own code prints, in C too.
        wire = None if where.http else _diverted()
        fitted, rules = read_artefact(artefact), guarding.rules()
        with open_guard(model, fitted, rules, guarding, loading) as guard:
            _run(guard, upstream, where, wire)


def _upstream(where: WhereOptions, words: list[str]) -> Upstream:
    from guardrail.mcp import address, program

    if (where.url is None) == (not words):
        raise typer.BadParameter("name one server: --url URL, or -- and the program that it is")
    key = read_key(env=where.key_env, file=where.key_file)
    if where.url is None:
        if key is not None:
            raise typer.BadParameter("--key-env and --key-file are for --url")
        return program(words)
    if not where.url.startswith(("http://", "https://")):
        raise typer.BadParameter("--url begins with http:// or https://")
    headers = {} if key is None else {"Authorization": f"Bearer {key.get_secret_value()}"}
    return address(where.url, headers)


def _diverted() -> tuple[int, int]:
    """Own descriptors of stdin and stdout; theirs are nothing and stderr from now on."""
    own = os.dup(0), os.dup(1)
    os.dup2(2, 1)
    with open(os.devnull, "rb") as nothing:
        os.dup2(nothing.fileno(), 0)
    return own


def _run(
    guard: Guard, upstream: Upstream, where: WhereOptions, wire: tuple[int, int] | None
) -> None:
    import asyncio

    from guardrail.mcp import McpProxy

    proxy = McpProxy(guard)
    if wire is None:
        asyncio.run(_serve_http(proxy, upstream, where))
    else:
        asyncio.run(_serve_pipes(proxy, upstream, wire, handshake=where.url is not None))


async def _serve_pipes(
    proxy: McpProxy, upstream: Upstream, wire: tuple[int, int], *, handshake: bool
) -> None:
    from guardrail.errors import UpstreamClosedError
    from guardrail.mcp import pipes
    from guardrail.mcp.transports import first_error

    try:
        async with upstream() as server, pipes(*wire) as client:
            await proxy.relay(client, server, handshake=handshake)
    except* (UpstreamClosedError, ConfigurationError) as errors:
        raise first_error(errors) from None


async def _serve_http(proxy: McpProxy, upstream: Upstream, where: WhereOptions) -> None:
    import socket

    import uvicorn

    from guardrail.mcp import HttpFront

    family = socket.AF_INET6 if ":" in where.host else socket.AF_INET
    with socket.socket(family) as listening:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listening.bind((where.host.strip("[]"), where.port))
            listening.listen()  # who reads the line below may come at once
        except OSError as error:
            raise ConfigurationError(f"--host {where.host} --port {where.port}: {error}") from error
        port = listening.getsockname()[1]
        names = ("127.0.0.1", "localhost", "[::1]")
        front = HttpFront(proxy, upstream, *(f"{name}:{port}" for name in names))
        logging.getLogger("guardrail.mcp").info("listening at http://%s:%d/mcp", where.host, port)
        config = uvicorn.Config(front, lifespan="off", log_level="warning", log_config=None)
        async with front.running():
            await uvicorn.Server(config).serve(sockets=[listening])
