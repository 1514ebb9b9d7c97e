"""The two sides of the proxy: a program or an address behind it, pipes or HTTP before it."""

from __future__ import annotations

import asyncio
import logging
import os
import sys
import threading
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from inspect import signature
from typing import TYPE_CHECKING, Any, TextIO
from uuid import uuid4

import anyio
import anyio.abc
import anyio.to_thread
from httpx2 import TransportError
from mcp.client.stdio import StdioServerParameters, stdio_client
from mcp.client.streamable_http import streamable_http_client
from mcp.server.streamable_http import StreamableHTTPServerTransport
from mcp.server.transport_security import (
    TransportSecurityMiddleware,
    TransportSecuritySettings,
)
from mcp.shared._httpx_utils import create_mcp_http_client
from mcp.shared.message import SessionMessage
from mcp.types import JSONRPCError, JSONRPCRequest, jsonrpc_message_adapter
from mcp.types.jsonrpc import INVALID_REQUEST
from mcp.types.version import HANDSHAKE_PROTOCOL_VERSIONS
from starlette.requests import Request
from starlette.responses import Response

from guardrail.errors import ConfigurationError, UpstreamClosedError
from guardrail.mcp.proxy import no_handshake
from guardrail.policy.policy import MAX_BODY_BYTES

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Mapping, Sequence
    from contextlib import AbstractAsyncContextManager

    from anyio.abc import TaskGroup
    from starlette.types import Message, Receive, Scope, Send

    from guardrail.mcp.proxy import McpProxy, Streams

    Upstream = Callable[[], AbstractAsyncContextManager[Streams]]

PATH = "/mcp"
MOST_SESSIONS = 64  # each may be a process
IDLE_S = 1800.0
GREETED_S = 60.0  # from a session's first answer to what its client says next
LAST_S = 2.0  # for what is still to be written
_CHUNK = 65_536
_VERSION = "mcp-protocol-version"
_SESSION = "mcp-session-id"

_log = logging.getLogger("guardrail.mcp")

# ---- the server's side


def program(words: Sequence[str]) -> Upstream:
    """A server that is started as a program, and asked over its stdin and stdout.

    It gets this program's environment, in which clients put a server's keys, and its stderr.
    """
    if not words:
        raise ConfigurationError("name the program that is the MCP server: ... -- npx some-server")

    @asynccontextmanager
    async def opened() -> AsyncIterator[Streams]:
        command, *arguments = words
        how = StdioServerParameters(command=command, args=arguments, env=dict(os.environ))
        entered = False
        try:
            async with stdio_client(how, errlog=_stderr()) as streams:
                entered = True
                yield streams
        except (OSError, ValueError) as error:
            if entered:
                raise
            raise ConfigurationError(f"{command!r} cannot be started: {error}") from error

    return opened


def _stderr() -> TextIO:
    """This program's stderr as it is now, or as it was where a program cannot write to that."""
    try:
        sys.stderr.fileno()
    except (OSError, ValueError):
        return sys.__stderr__ or sys.stderr
    return sys.stderr


def address(url: str, headers: Mapping[str, str] | None = None) -> Upstream:
    """A server that is asked over streamable HTTP, with these headers in each request."""
    # Newer clients stop at a megabyte, which a picture in base64 soon has.
    room = "max_sse_event_size"
    known = room in signature(streamable_http_client).parameters
    limit: dict[str, Any] = {room: MAX_BODY_BYTES} if known else {}

    @asynccontextmanager
    async def opened() -> AsyncIterator[Streams]:
        try:
            async with (
                create_mcp_http_client(headers=dict(headers or {})) as client,
                streamable_http_client(url, http_client=client, **limit) as streams,
            ):
                yield streams
        except* TransportError as errors:
            where, why = url.partition("?")[0], first_error(errors)
            raise UpstreamClosedError(
                f"the MCP server at {where} cannot be reached: {why}"
            ) from errors

    return opened


def first_error(error: BaseException) -> BaseException:
    """The first error in a group, at any depth; one that is no group itself."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


# ---- the client's side: pipes


@asynccontextmanager
async def pipes(source: int, sink: int) -> AsyncIterator[Streams]:
    """A client at the other end of two file descriptors, one message a line.

    The SDK's own server side waits for its last line in a thread that nothing can end, and takes
    lines of any length.
    """
    to_proxy, from_client = anyio.create_memory_object_stream[SessionMessage | Exception](0)
    to_client, from_proxy = anyio.create_memory_object_stream[SessionMessage](0)

    async def give(line: bytes | None) -> None:
        if line is None:
            await to_proxy.aclose()
            return
        try:
            message: Any = SessionMessage(
                jsonrpc_message_adapter.validate_json(line, by_name=False)
            )
        except ValueError as error:
            message = error
        await to_proxy.send(message)

    written = anyio.Event()

    async def write() -> None:
        async for item in from_proxy:
            text = item.message.model_dump_json(by_alias=True, exclude_unset=True)
            try:
                line = text.encode() + b"\n"
                await anyio.to_thread.run_sync(_write, sink, line, abandon_on_cancel=True)
            except OSError:  # the client left
                await to_proxy.aclose()
                break
        written.set()

    async with to_proxy, from_client, to_client, from_proxy, anyio.create_task_group() as tasks:
        loop = asyncio.get_running_loop()

        def wait_for(line: bytes | None) -> None:
            asyncio.run_coroutine_threadsafe(give(line), loop).result()

        threading.Thread(target=_read_lines, args=(source, wait_for), daemon=True).start()
        tasks.start_soon(write)
        try:
            yield from_client, to_client
        finally:  # what was answered goes out, however this ends
            await to_client.aclose()
            with anyio.move_on_after(LAST_S, shield=True):
                await written.wait()
    # The thread may wait for a line for ever; it holds no lock, and ends with the process.


def _read_lines(source: int, give: Callable[[bytes | None], object]) -> None:
    held = b""
    # The loop may be gone when a line comes, and whoever took lines, too.
    with suppress(RuntimeError, anyio.ClosedResourceError, anyio.BrokenResourceError):
        while chunk := _read(source):
            *lines, held = (held + chunk).split(b"\n")
            for line in lines:
                if line.strip():
                    give(line)
            if len(held) > MAX_BODY_BYTES:
                _log.error("a line of the client is longer than %d bytes", MAX_BODY_BYTES)
                break
        give(None)


def _read(source: int) -> bytes:
    try:
        return os.read(source, _CHUNK)
    except OSError:
        return b""


def _write(sink: int, data: bytes) -> None:
    while data:
        data = data[os.write(sink, data) :]


# ---- the client's side: HTTP


@dataclass
class _Open:
    """A client's session, and the server's behind it."""

    transport: StreamableHTTPServerTransport
    scope: anyio.CancelScope = field(default_factory=anyio.CancelScope)
    tried: anyio.Event = field(default_factory=anyio.Event)  # it stands, or could not be opened
    stands: bool = False
    under_way: int = 0


class HttpFront:
    """Streamable HTTP for clients, an ASGI app at `/mcp`; each session has a server of its own.

        front = HttpFront(McpProxy(guard), program(["npx", "some-server"]), "127.0.0.1:8000")
        async with front.running():
            ...  # serve it

    Requests must come for one of `hosts`, and from no web page of another origin. Answers are not
    kept for clients that lost a connection. A session that asks nothing for half an hour ends, and
    one whose client says nothing after its first answer within a minute. Sessions share the guard
    and nothing else: what ends one is told in the log, and ends no other.
    """

    def __init__(self, proxy: McpProxy, upstream: Upstream, *hosts: str) -> None:
        self._proxy, self._upstream = proxy, upstream
        origins = [f"{scheme}://{host}" for host in hosts for scheme in ("http", "https")]
        self._security = TransportSecuritySettings(
            enable_dns_rebinding_protection=True,
            allowed_hosts=list(hosts),
            allowed_origins=origins,
        )
        self._checks = TransportSecurityMiddleware(self._security)
        self._sessions: dict[str, _Open] = {}
        self._tasks: TaskGroup | None = None

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Sessions live in this block, and end with it."""
        async with anyio.create_task_group() as self._tasks:
            yield
            self._tasks.cancel_scope.cancel()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            return
        request = Request(scope, receive)
        if scope["path"] != PATH:  # the URL is made of what clients say of the host, too
            await _refused(404, f"the MCP server is at {PATH}")(scope, receive, send)
            return
        version = request.headers.get(_VERSION)
        if version is not None and version not in HANDSHAKE_PROTOCOL_VERSIONS:
            await _handshake(version)(scope, receive, send)
            return
        receive = _bounded(receive)
        name = request.headers.get(_SESSION)
        if name is None:
            await self._greet(request, scope, receive, send)
        elif (session := self._sessions.get(name)) is None:
            await _refused(404, "this session is over")(scope, receive, send)
        else:
            await self._serve(session, scope, receive, send, idle_s=IDLE_S)

    async def _greet(self, request: Request, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request that opens a session; nothing is started for any other one."""
        post = request.method == "POST"
        wrong = await self._checks.validate_request(request, is_post=post)
        if wrong is not None:
            await wrong(scope, receive, send)
            return
        body = await _whole(receive) if post else b""
        if body is None:  # the client left
            return
        if not _opens(body):
            refused = _refused(400, "open a session with a POST of `initialize`")
            await refused(scope, receive, send)
            return
        session = await self._opened()
        if session is None:
            await _refused(503, "no more sessions can be opened now")(scope, receive, send)
            return
        idle_s, answered = min(GREETED_S, IDLE_S), False
        try:
            receive = _again(body, receive)
            answered = await self._serve(session, scope, receive, send, idle_s=idle_s)
        finally:
            if not answered:  # nobody knows its name
                session.scope.cancel()

    async def _serve(
        self, session: _Open, scope: Scope, receive: Receive, send: Send, *, idle_s: float
    ) -> bool:
        """Hand a request to its session; whether it got its whole answer, and no refusal."""
        status, whole = 0, False

        async def told(message: Message) -> None:
            nonlocal status, whole
            await send(message)
            status = message.get("status", status)
            whole = message["type"] == "http.response.body" and not message.get("more_body")

        session.under_way += 1
        session.scope.deadline = float("inf")
        try:
            await session.transport.handle_request(scope, receive, told)
        finally:
            session.under_way -= 1
            if not session.under_way:
                session.scope.deadline = anyio.current_time() + idle_s
            if session.transport.is_terminated:
                session.scope.cancel()
        return whole and status == 200

    async def _opened(self) -> _Open | None:
        """A new session, once its server answers; None where there is no room or no server."""
        if self._tasks is None:
            raise ConfigurationError("serve an HttpFront inside `async with front.running()`")
        if len(self._sessions) >= MOST_SESSIONS:
            _log.warning("a client is refused: there are %d sessions", len(self._sessions))
            return None
        name = uuid4().hex
        transport = StreamableHTTPServerTransport(name, security_settings=self._security)
        session = self._sessions[name] = _Open(transport)
        self._tasks.start_soon(self._run, name, session)
        try:
            await session.tried.wait()
        except BaseException:  # whoever asked is gone
            session.scope.cancel()
            raise
        return session if session.stands else None

    async def _run(self, name: str, session: _Open) -> None:
        """One session, whose end of any kind is its own."""
        try:
            with session.scope:
                async with session.transport.connect() as client, self._upstream() as server:
                    session.stands = True
                    session.tried.set()
                    await self._proxy.relay(client, server, handshake=True)
        except Exception as error:  # a border: what ends one session ends no other
            _tell_end(error)
        except BaseException as error:
            # Somebody's code cancelled the task itself; a task group would end all others for it.
            if self._is_ending or not _is_cancellation(error):
                raise
            _log.error("a session ended: it was cancelled from inside")
        finally:
            self._sessions.pop(name, None)
            session.stands = False
            session.tried.set()
            with anyio.CancelScope(shield=True):
                await session.transport.terminate()

    @property
    def _is_ending(self) -> bool:
        return self._tasks is None or self._tasks.cancel_scope.cancel_called


def _is_cancellation(error: BaseException) -> bool:
    """Whether it is a cancellation, and no more than that and common errors."""
    if isinstance(error, BaseExceptionGroup):
        return all(map(_is_cancellation, error.exceptions))
    return isinstance(error, Exception | asyncio.CancelledError)


def _tell_end(error: Exception) -> None:
    """Log why a session ended: a line for what is known to end one, a traceback for the rest."""
    first = first_error(error)
    known = isinstance(first, UpstreamClosedError | ConfigurationError | OSError)
    what = str(first) if known else f"{type(first).__name__}: {first}"
    _log.error("a session ended: %s", what, exc_info=None if known else error)


def _refused(status: int, said: str) -> Response:
    return _response(status, {"code": INVALID_REQUEST, "message": said})


def _handshake(version: str) -> Response:
    return _response(400, no_handshake(version).model_dump(exclude_none=True))


def _response(status: int, error: Mapping[str, Any]) -> Response:
    body = JSONRPCError.model_validate({"jsonrpc": "2.0", "id": None, "error": error})
    text = body.model_dump_json(by_alias=True, exclude_unset=True)
    return Response(text, status_code=status, media_type="application/json")


async def _whole(receive: Receive) -> bytes | None:
    """A request's body; None where the client leaves before its end."""
    parts = []
    while (message := await receive())["type"] == "http.request":
        parts.append(message.get("body", b""))
        if not message.get("more_body"):
            return b"".join(parts)
    return None


def _again(body: bytes, receive: Receive) -> Receive:
    """A body that was read already, and then what comes after it."""
    waiting: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def replayed() -> Message:
        return waiting.pop() if waiting else await receive()

    return replayed


def _opens(body: bytes) -> bool:
    """Whether a body is the request that opens a session."""
    try:
        message = jsonrpc_message_adapter.validate_json(body, by_name=False)
    except ValueError:
        return False
    return isinstance(message, JSONRPCRequest) and message.method == "initialize"


def _bounded(receive: Receive) -> Receive:
    """A body that ends where it gets too long, and is then no JSON."""
    left = MAX_BODY_BYTES

    async def counted() -> Message:
        nonlocal left
        message = await receive()
        left -= len(message.get("body", b""))
        if left >= 0:
            return message
        return {"type": "http.request", "body": b"", "more_body": False}

    return counted
