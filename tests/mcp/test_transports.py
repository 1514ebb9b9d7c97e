"""The proxy between real transports: a program's pipes, and HTTP on either side."""

from __future__ import annotations

import json
import os
import socket
import sys
from contextlib import AsyncExitStack, asynccontextmanager

import anyio
import httpx
import mcp.types as types
import pytest
import uvicorn
from mcp import Client, MCPError
from mcp.server.mcpserver import Context  # noqa: TC002  # tools' parameters are read
from mcp.shared.exceptions import MCPError as SharedError

from guardrail import ConfigurationError, UpstreamClosedError
from guardrail.front.chats import CALL_WITHHELD, RESULT_WITHHELD
from guardrail.mcp import HttpFront, McpProxy, address, pipes, program, transports
from guardrail.testing import FakeGuard
from tests.mcp.conftest import Wire, said
from tests.mcp.sessions import OPENING

SCRIPT = """
import os
from mcp.server.mcpserver import MCPServer

made = MCPServer("script")

@made.tool()
def echo(text: str) -> str:
    return text + os.environ.get("OF_A_TEST", "")

@made.tool()
def die() -> str:
    os._exit(3)

print("what is no message", flush=True)
made.run()
"""


@pytest.fixture
def script(tmp_path):
    path = tmp_path / "server.py"
    path.write_text(SCRIPT)
    return program([sys.executable, str(path)])


@asynccontextmanager
async def client_of(upstream):
    """A client whose proxy has this upstream."""
    async with Wire(relays=False) as wire, upstream() as behind:
        ended = []

        @asynccontextmanager
        async def transport():
            yield wire.client

        async def run():
            try:
                await McpProxy(FakeGuard()).relay(wire.proxys_client, behind, handshake=True)
            except UpstreamClosedError as error:
                ended.append(error)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(run)
            async with Client(transport()) as client:
                yield client, ended
            tasks.cancel_scope.cancel()


async def test_a_program_is_asked_over_its_pipes_and_its_death_is_told(script, monkeypatch, caplog):
    monkeypatch.setenv("OF_A_TEST", "!")
    async with client_of(script) as (client, ended):
        assert said(await client.call_tool("echo", {"text": "hi"})) == "hi!"
        assert said(await client.call_tool("echo", {"text": "bad"})) == CALL_WITHHELD
        with pytest.raises((MCPError, SharedError), match="ended"):
            await client.call_tool("die")
        await anyio.wait_all_tasks_blocked()
    assert len(ended) == 1
    assert "no message" in caplog.text


async def test_a_program_that_is_not_there_is_named():
    with pytest.raises(ConfigurationError, match="'no-such-program' cannot be started"):
        async with program(["no-such-program"])():
            raise AssertionError("it was started")
    with pytest.raises(ConfigurationError, match="name the program"):
        program([])


# ---- pipes towards the client


@pytest.fixture
def ends():
    theirs_in, ours_out = os.pipe()
    ours_in, theirs_out = os.pipe()
    yield (theirs_in, theirs_out), (ours_in, ours_out)
    for descriptor in (theirs_out, ours_in):
        os.close(descriptor)


async def test_pipes_carry_a_message_a_line_and_end_with_the_client(ends, caplog):
    theirs, (ours_in, ours_out) = ends
    ping = {"jsonrpc": "2.0", "id": 1, "method": "ping"}
    async with Wire(relays=False) as wire, pipes(*theirs) as client:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(McpProxy(FakeGuard()).relay, client, wire.proxys_server)
            os.write(ours_out, b"no json\n\n" + json.dumps(ping).encode() + b"\n")
            assert (await wire.got(wire.server))["method"] == "ping"
            await wire.send(wire.server, id=1, result={"a": 1})
            line = await anyio.to_thread.run_sync(os.read, ours_in, 1000)
            os.close(ours_out)  # and the relay is over
    assert json.loads(line) == {"jsonrpc": "2.0", "id": 1, "result": {"a": 1}}
    assert line.endswith(b"\n")
    assert "what the client sent is no message" in caplog.text


async def test_a_line_without_end_ends_the_client(ends, caplog, monkeypatch):
    monkeypatch.setattr(transports, "MAX_BODY_BYTES", 1000)
    theirs, (_, ours_out) = ends
    async with Wire(relays=False) as wire, pipes(*theirs) as client:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(McpProxy(FakeGuard()).relay, client, wire.proxys_server)
            os.write(ours_out, b"a" * 2000)
    os.close(ours_out)
    assert "longer than 1000 bytes" in caplog.text


# ---- HTTP


@asynccontextmanager
async def served(app, listening):
    """An app at a socket of this machine."""
    config = uvicorn.Config(app, lifespan="off", log_level="warning", timeout_graceful_shutdown=1)
    running = uvicorn.Server(config)
    running.install_signal_handlers = lambda: None
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(running.serve, [listening])
        while not running.started:
            await anyio.sleep(0.01)
        yield
        running.should_exit = True


@asynccontextmanager
async def front_of(upstream, guard=None):
    """The address of a proxy's HTTP side."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        host = f"127.0.0.1:{listening.getsockname()[1]}"
        front = HttpFront(McpProxy(guard or FakeGuard()), upstream, host)
        async with front.running(), served(front, listening):
            yield f"http://{host}/mcp", front


@asynccontextmanager
async def upstream_of(made):
    """The address of a real server over HTTP."""
    app = made.streamable_http_app()
    with socket.create_server(("127.0.0.1", 0)) as listening:
        async with made.session_manager.run(), served(app, listening):
            yield f"http://127.0.0.1:{listening.getsockname()[1]}/mcp"


def in_memory(made):
    """A server as an upstream, without a program."""

    @asynccontextmanager
    async def opened():
        lowlevel = made._lowlevel_server
        async with Wire(relays=False) as wire, anyio.create_task_group() as tasks:
            start = lowlevel.create_initialization_options()
            tasks.start_soon(lowlevel.run, *wire.server, start)
            yield wire.proxys_server
            tasks.cancel_scope.cancel()

    return opened


async def test_http_on_both_sides(everything):
    heard = []

    async def progress(done, total, message):
        heard.append(message)

    async with upstream_of(everything) as behind, front_of(address(behind)) as (url, front):
        async with Client(url) as client, Client(url) as other:
            assert "echo" in {tool.name for tool in (await client.list_tools()).tools}
            assert said(await client.call_tool("echo", {"text": "hi"})) == "hi"
            assert said(await client.call_tool("echo", {"text": "bad"})) == CALL_WITHHELD
            result = await client.call_tool("structured", {"back": {"a": "b"}})
            assert result.structured_content == {"a": "b"}
            [_, picture] = (await client.call_tool("screenshot")).content
            assert picture.type == "image"
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(other.call_tool, "slow", {"name": "two"})
                await client.call_tool("slow", {"name": "one"}, progress_callback=progress)
            assert len(front._sessions) == 2
        with anyio.fail_after(5):
            while front._sessions:  # clients that leave say so
                await anyio.sleep(0.01)
    assert heard == ["half of one"]


@pytest.mark.filterwarnings("ignore::mcp.MCPDeprecationWarning")  # of versions after the handshake
@pytest.mark.parametrize("behind", ["memory", "http"])
async def test_a_sample_is_asked_for_over_http(behind, everything):
    async def sample(_context, params):
        content = types.TextContent(type="text", text=f"of {params.messages[0].content.text}")
        return types.CreateMessageResult(role="assistant", content=content, model="m")

    @everything.tool(structured_output=False)
    async def asks(words: str, ctx: Context) -> str:
        """Ask the client's model."""
        content = types.TextContent(type="text", text=words)
        message = types.SamplingMessage(role="user", content=content)
        answer = await ctx.session.create_message([message], max_tokens=5)
        return answer.content.text

    async with AsyncExitStack() as stack:
        upstream = in_memory(everything)
        if behind == "http":
            upstream = address(await stack.enter_async_context(upstream_of(everything)))
        url, _ = await stack.enter_async_context(front_of(upstream))
        client = await stack.enter_async_context(Client(url, sampling_callback=sample))
        assert said(await client.call_tool("asks", {"words": "hi"})) == "of hi"


async def test_an_address_for_a_client_in_memory(everything):
    async with upstream_of(everything) as behind, client_of(address(behind)) as (client, _):
        assert said(await client.call_tool("echo", {"text": "hi"})) == "hi"
        assert said(await client.call_tool("echo", {"text": "bad"})) == CALL_WITHHELD
        note = await client.read_resource("note://ann")
        assert note.contents[0].text == "note of ann"
        with pytest.raises((MCPError, SharedError)):
            await client.get_prompt("greeting", {"name": "bad"})


async def test_http_in_front_of_another_transport_and_what_it_refuses(everything, monkeypatch):
    post = {"accept": "application/json, text/event-stream", "content-type": "application/json"}
    hello = {"jsonrpc": "2.0", "id": 1, "method": "ping"}
    async with front_of(in_memory(everything)) as (url, front):
        async with Client(url) as client:
            assert said(await client.call_tool("echo", {"text": "x", "back": "hi"})) == "hi"
        async with httpx.AsyncClient(headers=post) as http:

            async def status(where=url, body=hello, **headers):
                return (await http.post(where, json=body, headers=headers)).status_code

            assert await status(url.replace("/mcp", "/other")) == 404
            assert await status(**{"mcp-session-id": "nobody's"}) == 404
            assert await status(**{"mcp-protocol-version": "2026-07-28"}) == 400
            assert await status(host="evil.example") == 421
            assert await status(origin="http://evil.example") == 403
            assert await status() == 400  # no session, and no handshake
            monkeypatch.setattr(transports, "MAX_BODY_BYTES", 1000)
            assert await status(body={**hello, "params": {"a": "b" * 2000}}) == 400
        with anyio.fail_after(5):
            while front._sessions:
                await anyio.sleep(0.01)
        monkeypatch.setattr(transports, "MOST_SESSIONS", 0)
        async with httpx.AsyncClient(headers=post) as http:
            assert (await http.post(url, json=OPENING)).status_code == 503


async def test_a_server_that_cannot_be_started_opens_no_session(caplog):
    async with front_of(program(["no-such-program"])) as (url, front):
        with pytest.raises(Exception):  # noqa: B017, PT011  # whatever the client makes of a 503
            async with Client(url):
                raise AssertionError("it was opened")
        assert front._sessions == {}
    assert "'no-such-program' cannot be started" in caplog.text


async def test_sessions_of_clients_that_are_gone_end(everything, monkeypatch):
    monkeypatch.setattr(transports, "IDLE_S", 0.05)
    accept = {"accept": "application/json, text/event-stream"}
    async with front_of(in_memory(everything)) as (url, front), httpx.AsyncClient() as http:
        answer = await http.post(url, json=OPENING, headers=accept)
        assert answer.status_code == 200
        session = {"mcp-session-id": answer.headers["mcp-session-id"], **accept}
        with anyio.fail_after(5):
            while front._sessions:
                await anyio.sleep(0.01)
        assert (await http.post(url, json=OPENING, headers=session)).status_code == 404


async def test_poison_over_http_is_withheld(everything):
    guard = FakeGuard(flag=["poison"])

    @everything.tool()
    async def find(q: str) -> str:
        """Find it."""
        return "poi" + "son"

    async with front_of(in_memory(everything), guard) as (url, _), Client(url) as client:
        assert said(await client.call_tool("find", {"q": "x"})) == RESULT_WITHHELD
