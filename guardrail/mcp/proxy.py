"""Messages between one client and one server of the Model Context Protocol, judged on their way.

A session hands messages on under the ids that they have, whatever version of the protocol they are
of; what it knows of a request is who asked and what, so that an answer is read for what it is.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import anyio
from mcp.shared.message import ClientMessageMetadata, ServerMessageMetadata, SessionMessage
from mcp.types import (
    ErrorData,
    JSONRPCError,
    JSONRPCNotification,
    JSONRPCRequest,
    JSONRPCResponse,
)
from mcp.types.jsonrpc import (
    CONNECTION_CLOSED,
    INTERNAL_ERROR,
    INVALID_REQUEST,
    UNSUPPORTED_PROTOCOL_VERSION,
)
from mcp.types.version import HANDSHAKE_PROTOCOL_VERSIONS

from guardrail.errors import UpstreamClosedError
from guardrail.front.consequences import Reaction
from guardrail.inputs.labels import is_label
from guardrail.mcp.judging import CALL_TOOL, LIST_TOOLS, McpRules, Ruling

if TYPE_CHECKING:
    from anyio.abc import TaskGroup
    from mcp.types import RequestId

    from guardrail.audit import Audit
    from guardrail.front.consequences import Checker, OnFlag
    from guardrail.mcp.judging import Json
    from guardrail.policy import Policy

    Streams = tuple[Any, Any]  # what a transport of the SDK opens: to read from, and to write to

MOST_UNDER_WAY = 256  # requests of one session, and notifications that are judged
_CANCELLED = "notifications/cancelled"
_PROGRESS = "notifications/progress"
_OF_A_REQUEST = frozenset({_PROGRESS, "notifications/message"})
_LOST = (anyio.ClosedResourceError, anyio.BrokenResourceError)

_log = logging.getLogger("guardrail.mcp")


class McpProxy:
    """A guard between clients and a server of the Model Context Protocol.

        proxy = McpProxy(guard)
        async with server_transport as server, client_transport as client:
            await proxy.relay(client, server)

    Everything a server says is judged before the client hears it: its instructions, the names,
    descriptions and schemas of its tools, prompts and resources, results of calls with their
    pictures, embedded resources and structured content, prompts, resources, errors, log lines,
    words of progress, and what it asks of the client's model. So are the arguments of calls before
    the server gets them. Other messages pass as they are.

    A call that is stopped, or whose result is withheld, is answered with an error that the model
    reads as data; under `on_flag="raise"`, and for other requests, with an error of the protocol
    (-32010). A flagged tool, prompt or resource is left out of its list, and calls of the tool are
    refused. A log line or word of progress is held back. What cannot be judged (sound, files that
    are neither text nor picture) is withheld, too, and the answer says why. What would be steered
    follows the policy's `unsteerable`: a caution goes before a result, a description, instructions
    or a request for a sample; arguments, structured content and all else have no place for one and
    count as flagged.

    Args:
        guard: the guard that reads.
        on_flag: another `on_flag` than the policy's. "annotate" hands on what was flagged with
            `{"guardrail-vlm/verdict": {"action": "flag"}}` in its `_meta`.
        policy: other rules than the guard's.
        audit: gets each verdict with `{"event": "call", "done": "flag", "caution" or "pass"}`.
    """

    def __init__(
        self,
        guard: Checker,
        *,
        on_flag: OnFlag | None = None,
        policy: Policy | None = None,
        audit: Audit | None = None,
    ) -> None:
        self._rules = McpRules(Reaction.of(guard, on_flag, policy=policy, audit=audit))

    async def relay(self, client: Streams, server: Streams, *, handshake: bool = False) -> None:
        """Hand messages on until the client ends.

        Args:
            client: the streams of a transport that a client is at the other end of.
            server: those of a transport with a server.
            handshake: one of them is HTTP, where versions without the handshake (2026-07-28 and
                later) want headers that are not handed on. Clients are told to shake hands.

        Raises:
            UpstreamClosedError: the server ended first; requests under way were told so.
        """
        await _Session(self._rules, client, server, handshake=handshake).run()


@dataclass
class _Asked:
    """A request of the client that is under way."""

    request: JSONRPCRequest
    metadata: Any
    scope: anyio.CancelScope | None = None  # of a judgement that is under way
    sent: bool = False
    answered: bool = False

    def judging(self) -> anyio.CancelScope:
        """A scope for one judgement, which ends with the request."""
        self.scope = anyio.CancelScope()
        return self.scope

    @property
    def token(self) -> Any:
        """What words of progress name it by."""
        return _meta(self.request).get("progressToken")


@dataclass
class _Notice:
    """A notification of the server, and the one before it.

    They are judged at once, and told in their order.
    """

    before: _Notice | None
    told: anyio.Event = field(default_factory=anyio.Event)


class _Session:
    """One client and one server."""

    def __init__(
        self, rules: McpRules, client: Streams, server: Streams, *, handshake: bool
    ) -> None:
        self._rules, self._handshake = rules, handshake
        self._from_client, self._to_client = client
        self._from_server, self._to_server = server
        self._asked: dict[RequestId, _Asked] = {}
        self._owed: set[RequestId] = set()  # requests of the server
        self._withheld: set[str] = set()  # tools that the client is not shown
        self._version: str | None = None
        self._server_ended = False
        self._last: _Notice | None = None
        self._notices = anyio.Semaphore(MOST_UNDER_WAY)

    async def run(self) -> None:
        """Hand on until one side ends."""
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._read_client, tasks)
            tasks.start_soon(self._read_server, tasks)
        if self._server_ended:
            raise UpstreamClosedError(
                "the MCP server ended, or its connection was lost; its own log says why"
            )

    async def _read_client(self, tasks: TaskGroup) -> None:
        try:
            async for item in self._from_client:
                await self._apart(self._of_client, item, tasks)
        except _LOST:
            pass
        tasks.cancel_scope.cancel()

    async def _of_client(self, item: Any, tasks: TaskGroup) -> None:
        match item if isinstance(item, Exception) else item.message:
            case JSONRPCRequest() as request:
                await self._take(request, item.metadata, tasks)
            case JSONRPCNotification(method=method) as notification:
                if method != _CANCELLED or await self._still_to_tell(notification):
                    await self._to(self._to_server, notification)
            case JSONRPCResponse() | JSONRPCError() as answer:
                if answer.id in self._owed:
                    self._owed.discard(answer.id)
                    await self._to(self._to_server, answer)
            case error:
                _log.warning("what the client sent is no message: %s", type(error).__name__)

    async def _read_server(self, tasks: TaskGroup) -> None:
        try:
            async for item in self._from_server:
                await self._apart(self._of_server, item, tasks)
        except _LOST:
            pass
        await _told(self._last)
        self._server_ended = True
        lost = ErrorData(code=CONNECTION_CLOSED, message="the MCP server behind the guard ended")
        for asked in list(self._asked.values()):
            await self._reply(asked, lost)
        tasks.cancel_scope.cancel()

    async def _of_server(self, item: Any, tasks: TaskGroup) -> None:
        match item if isinstance(item, Exception) else item.message:
            case JSONRPCRequest() as request:
                self._owed.add(request.id)
                tasks.start_soon(self._hand_on_request, request, self._last)
            case JSONRPCNotification() as notification:
                await self._notices.acquire()
                self._last = _Notice(self._last)
                tasks.start_soon(self._hand_on_notice, notification, self._last)
            case JSONRPCResponse() | JSONRPCError() as answer:
                asked = None if answer.id is None else self._asked.get(answer.id)
                if asked is None or asked.answered:
                    _log.warning("the server answered what nobody asked; it is dropped")
                    return
                asked.answered = True
                tasks.start_soon(self._hand_on_answer, asked, answer, self._last)
            case error:
                _log.warning("what the server sent is no message: %s", type(error).__name__)

    # ---- from the client

    async def _take(self, request: JSONRPCRequest, metadata: Any, tasks: TaskGroup) -> None:
        asked = _Asked(request, metadata)
        if request.id in self._asked or len(self._asked) >= MOST_UNDER_WAY:
            said = "this id is under way" if request.id in self._asked else "too many under way"
            error = ErrorData(code=INVALID_REQUEST, message=said)
            await self._to(self._to_client, JSONRPCError(jsonrpc="2.0", id=request.id, error=error))
            return
        self._asked[request.id] = asked
        if self._handshake and request.method == "server/discover":
            version = _meta(request).get("io.modelcontextprotocol/protocolVersion")
            await self._reply(asked, no_handshake(str(version)))
        elif request.method == CALL_TOOL:
            tasks.start_soon(self._take_call, asked)
        else:
            await self._send(asked, request.params)

    async def _take_call(self, asked: _Asked) -> None:
        """Judge a call; one that is cancelled meanwhile never reaches the server."""
        params = asked.request.params or {}
        with asked.judging():
            if str(params.get("name")) in self._withheld:
                await self._reply(asked, self._rules.refused_call("flagged"))
                return
            ruled = await self._safely(self._rules.call, params)
            if isinstance(ruled, Ruling):
                await self._reply(asked, self._rules.refused_call(str(ruled.why)))
            elif isinstance(ruled, ErrorData):
                await self._reply(asked, ruled)
            else:
                await self._send(asked, ruled)

    async def _send(self, asked: _Asked, params: Json | None) -> None:
        asked.sent = True
        changed = asked.request.params is not params
        request = asked.request.model_copy(update={"params": params}) if changed else asked.request
        await self._to(self._to_server, request)

    async def _still_to_tell(self, notification: JSONRPCNotification) -> bool:
        """Whether the server knows of the request that is cancelled; here it is over."""
        name = (notification.params or {}).get("requestId")
        asked = self._asked.pop(name, None) if isinstance(name, int | str) else None
        if asked is None:
            return True
        if asked.scope is not None:
            asked.scope.cancel()
        ended = getattr(asked.metadata, "on_request_unanswered", None)
        if ended is not None:  # a response over HTTP that would stay open
            await ended()
        return asked.sent

    # ---- from the server

    async def _hand_on_answer(
        self, asked: _Asked, answer: JSONRPCResponse | JSONRPCError, after: _Notice | None
    ) -> None:
        with asked.judging():
            if isinstance(answer, JSONRPCError):
                told = await self._safely(self._rules.failure, answer.error)
            else:
                told = await self._safely(self._rules.answer, asked.request.method, answer.result)
                self._note(asked.request.method, answer.result, told)
            await _told(after)
            await self._reply(asked, told)

    def _note(self, method: str, result: Json, told: Json | ErrorData) -> None:
        """Remember what later messages hang on: tools that are not shown, and the version."""
        if isinstance(told, ErrorData):
            return
        if method == LIST_TOOLS:
            shown = _names(told)
            self._withheld = (self._withheld - shown) | (_names(result) - shown)
        elif method == "initialize":
            version = str(told.get("protocolVersion"))
            self._version = version if is_label(version) else None  # it goes into a header

    async def _hand_on_request(self, request: JSONRPCRequest, after: _Notice | None) -> None:
        if is_label(str(request.id)):
            ruled = await self._safely(self._rules.request, request.method, request.params or {})
        else:
            ruled = ErrorData(code=INVALID_REQUEST, message="this id is no label")
        if isinstance(ruled, ErrorData):
            self._owed.discard(request.id)
            await self._to(self._to_server, JSONRPCError(jsonrpc="2.0", id=request.id, error=ruled))
            return
        await _told(after)
        params = ruled if request.params is not None else None
        newest = next(reversed(self._asked), None)
        await self._to(
            self._to_client,
            request.model_copy(update={"params": params}),
            ServerMessageMetadata(related_request_id=newest),
        )

    async def _hand_on_notice(self, notification: JSONRPCNotification, notice: _Notice) -> None:
        """Judge a notification beside others, and tell it after those that came before it."""
        try:
            given = notification.params
            params = await self._safely(self._rules.notice, notification.method, given or {})
            await _told(notice.before)
            if isinstance(params, dict):
                await self._tell(notification, None if given is None else params)
        finally:
            notice.before = None  # a chain of them would keep them all
            notice.told.set()
            self._notices.release()

    async def _tell(self, notification: JSONRPCNotification, params: Json | None) -> None:
        related = None
        if notification.method in _OF_A_REQUEST:
            related = next(reversed(self._asked), None)
        if notification.method == _PROGRESS and params is not None:
            token = params.get("progressToken")
            of_it = (i for i, asked in self._asked.items() if asked.token == token is not None)
            related = next(of_it, None)
        await self._to(
            self._to_client,
            notification.model_copy(update={"params": params}),
            ServerMessageMetadata(related_request_id=related),
        )

    # ---- what both have

    async def _apart(self, hand_on: Any, item: Any, tasks: TaskGroup) -> None:
        """Hand a message on; one that breaks the rules is lost, and the session goes on."""
        try:
            await hand_on(item, tasks)
        except _LOST:
            raise
        except Exception:  # a border: what one message does, it does to no other
            _log.exception("a message could not be handed on")

    async def _safely(self, judge: Any, *given: Any) -> Any:
        """What a judgement comes to; where it breaks nothing goes on, and the session lives."""
        try:
            return await judge(*given)
        except Exception:  # a border: what a message does to one request, it does to no other
            _log.exception("a message could not be judged")
            return ErrorData(code=INTERNAL_ERROR, message="the guard failed; its log says why")

    async def _reply(self, asked: _Asked, told: Json | ErrorData) -> None:
        if self._asked.pop(asked.request.id, None) is None:
            return
        reply: JSONRPCResponse | JSONRPCError
        if isinstance(told, ErrorData):
            reply = JSONRPCError(jsonrpc="2.0", id=asked.request.id, error=told)
        else:
            reply = JSONRPCResponse(jsonrpc="2.0", id=asked.request.id, result=told)
        await self._to(self._to_client, reply)

    async def _to(self, stream: Any, message: Any, metadata: Any = None) -> None:
        """Write to one side; one that is gone is noticed where it is read."""
        if stream is self._to_server and self._version is not None:
            headers = {"mcp-protocol-version": self._version}
            metadata = ClientMessageMetadata(headers=headers)  # what HTTP asks for
        try:
            await stream.send(SessionMessage(message, metadata))
        except _LOST:
            _log.debug("a message came too late: the other side is gone")


def no_handshake(version: str) -> ErrorData:
    """The error that has a client shake hands."""
    known = {"supported": list(HANDSHAKE_PROTOCOL_VERSIONS), "requested": version}
    return ErrorData(
        code=UNSUPPORTED_PROTOCOL_VERSION, message="Unsupported protocol version", data=known
    )


async def _told(notice: _Notice | None) -> None:
    if notice is not None:
        await notice.told.wait()


def _meta(request: JSONRPCRequest) -> Json:
    meta = (request.params or {}).get("_meta")
    return meta if isinstance(meta, dict) else {}


def _names(listed: Json) -> set[str]:
    tools = listed.get("tools")
    items = tools if isinstance(tools, list) else []
    return {str(item.get("name")) for item in items if isinstance(item, dict)}
