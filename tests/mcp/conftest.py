"""A real server and a real client with the proxy between them, in memory."""

from __future__ import annotations

import base64
import io
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import anyio
import mcp.types as types
import pytest
from mcp import Client
from mcp.server.mcpserver import Audio, Context, Image, MCPServer
from mcp.server.mcpserver.exceptions import ToolError
from mcp.shared.memory import create_client_server_memory_streams
from mcp.shared.message import SessionMessage
from PIL import Image as Pillow

from guardrail.errors import UpstreamClosedError
from guardrail.mcp import McpProxy
from guardrail.testing import FakeGuard

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


def png(colour: str = "red") -> bytes:
    buffer = io.BytesIO()
    Pillow.new("RGB", (40, 30), colour).save(buffer, "PNG")
    return buffer.getvalue()


def server() -> MCPServer:
    """A server with everything; what its tools say is what they are asked to say."""
    made: Any = MCPServer("everything", instructions="Ask for an echo.")
    made.calls, made.waiting, made.both = [], [], anyio.Event()

    @made.tool(structured_output=False)
    async def echo(text: str, back: str = "") -> str:
        """Say it again."""
        made.calls.append(text)
        return back or text

    @made.tool()
    async def structured(back: dict[str, str]) -> dict[str, str]:
        """Give it back as data."""
        return back

    @made.tool(structured_output=False)
    async def slow(name: str, ctx: Context) -> str:
        """Wait for the others."""
        await ctx.report_progress(0.5, 1.0, f"half of {name}")
        made.waiting.append(name)
        if len(made.waiting) == 2:
            made.both.set()
        await made.both.wait()
        return name

    @made.tool(structured_output=False)
    async def fails(words: str) -> str:
        """Fail."""
        raise ToolError(words)

    _with_media(made)
    return made


def _with_media(made: MCPServer) -> None:
    @made.tool(structured_output=False)
    async def screenshot() -> list[Any]:
        """Look at the screen."""
        return ["the screen:", Image(data=png(), format="png")]

    @made.tool(structured_output=False)
    async def sound() -> Audio:
        """Hear it."""
        return Audio(data=b"RIFF....WAVE", format="wav")

    @made.prompt()
    def greeting(name: str) -> str:
        """Greet somebody."""
        return f"Greet {name}."

    @made.resource("note://{name}", mime_type="text/plain")
    def note(name: str) -> str:
        """A note."""
        return f"note of {name}"

    @made.resource("picture://one", mime_type="image/png")
    def picture() -> bytes:
        """A picture."""
        return png("blue")


@asynccontextmanager
async def through(
    guard: Any, server: MCPServer, *, mode: str = "legacy", client: Any = None, **options: Any
) -> AsyncIterator[Client]:
    """A client of the server, with the proxy between them."""

    @asynccontextmanager
    async def transport() -> AsyncIterator[Any]:
        lowlevel = server._lowlevel_server
        async with (
            create_client_server_memory_streams() as (ours, clients_far_end),
            create_client_server_memory_streams() as (to_server, far_end),
            anyio.create_task_group() as tasks,
        ):
            start = lowlevel.create_initialization_options()
            tasks.start_soon(lowlevel.run, far_end[0], far_end[1], start)
            tasks.start_soon(McpProxy(guard, **options).relay, clients_far_end, to_server)
            yield ours
            tasks.cancel_scope.cancel()

    async with Client(transport(), mode=mode, **(client or {})) as made:
        yield made


@pytest.fixture
def everything() -> MCPServer:
    return server()


def said(result: Any) -> str:
    """The words of a call's result."""
    return "\n".join(block.text for block in result.content if block.type == "text")


def b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


class Wire:
    """A proxy between two ends that a test writes to and reads from."""

    def __init__(self, guard=None, *, relays=True):
        self.guard, self._relays = guard or FakeGuard(), relays

    async def __aenter__(self):
        self._near = create_client_server_memory_streams()
        self._far = create_client_server_memory_streams()
        (self.client, self.proxys_client) = await self._near.__aenter__()
        (self.proxys_server, self.server) = await self._far.__aenter__()
        self.ended, self.over = None, anyio.Event()
        self._tasks = anyio.create_task_group()
        await self._tasks.__aenter__()

        async def run():
            try:
                await McpProxy(self.guard).relay(self.proxys_client, self.proxys_server)
            except UpstreamClosedError as error:
                self.ended = error
            self.over.set()

        if self._relays:
            self._tasks.start_soon(run)
        return self

    async def __aexit__(self, *error):
        self._tasks.cancel_scope.cancel()
        await self._tasks.__aexit__(*error)
        await self._far.__aexit__(None, None, None)
        await self._near.__aexit__(None, None, None)

    async def send(self, side, **message):
        read = types.jsonrpc_message_adapter.validate_python({"jsonrpc": "2.0", **message})
        await side[1].send(SessionMessage(read))

    async def got(self, side):
        with anyio.fail_after(5):
            item = await side[0].receive()
        return item.message.model_dump(exclude_unset=True)
