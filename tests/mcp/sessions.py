"""Clients of one HTTP front that die in some way, and one that goes on.

    python -m tests.mcp.sessions URL

is a client that waits in a call until somebody kills it.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio
import httpx
from mcp import Client, MCPError
from mcp.shared.exceptions import MCPError as SharedError

from tests.mcp.conftest import said
from tests.waiting import auntil

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

ROOT = Path(__file__).parents[2]
ENDED = (MCPError, SharedError)
OPENING = {
    "jsonrpc": "2.0",
    "id": 1,
    "method": "initialize",
    "params": {
        "protocolVersion": "2025-06-18",
        "capabilities": {},
        "clientInfo": {"name": "a", "version": "1"},
    },
}
ACCEPT = {"accept": "application/json, text/event-stream"}
SERVER = """
import asyncio, os, sys
from mcp.server.mcpserver import Context, MCPServer

made = MCPServer("script")

@made.tool(structured_output=False)
async def echo(text: str) -> str:
    return text

@made.tool(structured_output=False)
async def pid() -> str:
    return str(os.getpid())

@made.tool(structured_output=False)
async def wait(ctx: Context) -> str:
    open(sys.argv[1], "a").write("waiting\\n")
    await ctx.report_progress(0.5, 1.0, "half of it")
    await asyncio.sleep(600)
    return "late"

@made.tool(structured_output=False)
async def die() -> str:
    os._exit(3)

@made.tool(structured_output=False)
async def babble() -> str:
    os.write(1, b"no message\\n\\xff\\xfe\\n" + b"[" * 100_000 + b"\\n")
    os.close(1)
    return "late"

made.run()
"""


def written(folder: Path) -> list[str]:
    """The server as a program; it notes calls that wait in `waiting`."""
    path = folder / "server.py"
    path.write_text(SERVER)
    (folder / "waiting").write_text("")
    return [sys.executable, str(path), str(folder / "waiting")]


class Way:
    """A way to die, for a client of this address; it knows which server's process was its own."""

    def __init__(self, url: str, folder: Path) -> None:
        self.url, self._folder, self.pid = url, folder, 0

    @asynccontextmanager
    async def client(self) -> AsyncIterator[Client]:
        async with Client(self.url) as client:
            self.pid = int(said(await client.call_tool("pid")))
            yield client

    async def waits(self, count: int = 1) -> None:
        """Until so many more calls wait in a server."""
        file = self._folder / "waiting"
        await auntil(lambda: file.read_text().count("\n") >= count)
        file.write_text("")

    @asynccontextmanager
    async def raw(self) -> AsyncIterator[Callable[..., Awaitable[httpx.Response]]]:
        """A session whose messages are written by hand."""
        async with httpx.AsyncClient(timeout=30) as http:
            answer = await http.post(self.url, json=OPENING, headers=ACCEPT)
            session = {"mcp-session-id": answer.headers["mcp-session-id"], **ACCEPT}

            async def post(**message: Any) -> httpx.Response:
                body = {"jsonrpc": "2.0", **message}
                return await http.post(self.url, json=body, headers=session)

            await post(method="notifications/initialized")
            yield post

    # ---- the ways

    async def closes(self) -> None:
        """It leaves as it should, with a DELETE, in the middle of a call."""
        with suppress(*ENDED, BaseExceptionGroup):
            async with self.client() as client, anyio.create_task_group() as tasks:
                tasks.start_soon(client.call_tool, "wait")
                await self.waits()
                tasks.cancel_scope.cancel()

    async def is_killed(self) -> None:
        """Its connections drop in the middle of a call."""
        words = [sys.executable, "-m", "tests.mcp.sessions", self.url]
        with subprocess.Popen(words, cwd=ROOT) as child:
            await self.waits()
            child.send_signal(signal.SIGKILL)

    async def cancels(self) -> None:
        """It gives up a call, and goes on for a while."""
        async with self.client() as client:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(client.call_tool, "wait")
                await self.waits()
                tasks.cancel_scope.cancel()
            assert said(await client.call_tool("echo", {"text": "hi"})) == "hi"

    async def loses_its_server(self) -> None:
        """Its own server ends in the middle of a call."""
        with suppress(*ENDED, BaseExceptionGroup):
            async with self.client() as client:
                await client.call_tool("die")

    async def hears_nonsense(self) -> None:
        """Its own server writes what is no message, and then nothing."""
        with suppress(*ENDED, BaseExceptionGroup):
            async with self.client() as client:
                await client.call_tool("babble")

    async def names_no_request(self) -> None:
        """It cancels by an id that is none, in the middle of a call."""
        async with self.raw() as post, anyio.create_task_group() as tasks:
            call = {"id": 2, "method": "tools/call", "params": {"name": "wait", "arguments": {}}}
            tasks.start_soon(lambda: post(**call))
            await self.waits()
            await post(method="notifications/cancelled", params={"requestId": {"a": []}})
            tasks.cancel_scope.cancel()

    async def vanishes_first(self) -> None:
        """It opens a session, and drops the connection before it is answered, or half asked."""
        host, port = self.url.split("/")[2].split(":")
        body = httpx.Request("POST", self.url, json=OPENING).content
        head = f"POST /mcp HTTP/1.1\r\nhost: {host}:{port}\r\naccept: {ACCEPT['accept']}\r\n"
        head += f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
        for sent in (head.encode(), head.encode() + body[:-5], head.encode() + body):
            stream = await anyio.connect_tcp(host, int(port))
            await stream.send(sent)
            await stream.aclose()


WAYS = [
    name
    for name in vars(Way)
    if not name.startswith("_") and name not in ("client", "raw", "waits")
]


async def survives(url: str, folder: Path, name: str) -> None:
    """Assert that a client's call is answered after another has died, whose server ends, too."""
    way = Way(url, folder)
    async with Client(url) as other:
        assert said(await other.call_tool("echo", {"text": "before"})) == "before"
        with anyio.fail_after(60):
            await getattr(way, name)()
            assert said(await other.call_tool("echo", {"text": "after"})) == "after"
        if way.pid:
            await auntil(lambda: not _runs(way.pid), seconds=20)
        assert said(await other.call_tool("echo", {"text": "later"})) == "later"
    async with Client(url) as newcomer:
        assert said(await newcomer.call_tool("echo", {"text": "new"})) == "new"


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


async def _wait(url: str) -> None:
    async with Client(url) as client:
        await client.call_tool("wait")


if __name__ == "__main__":
    anyio.run(_wait, sys.argv[1])
