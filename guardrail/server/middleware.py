"""The way of every HTTP request to the routes and back: one `Exchange`, seen by all concerns.

From the outside to the inside: it is counted, traced, named and logged; pages of other sites may
ask (CORS); errors become answers; who asks is let in or not; its body is read; it takes a place
among the requests under way; it is served until its answer, its deadline, its client's end or the
server's.
"""

from __future__ import annotations

import asyncio
import logging
import time
from contextlib import contextmanager, nullcontext, suppress
from typing import TYPE_CHECKING, Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect, Request

from guardrail.asgi.content import raced
from guardrail.asgi.problems import Problem
from guardrail.errors import GuardrailError
from guardrail.server.access import DRAINING, HEALTH, METRICS, Access, Places
from guardrail.server.bodies import Bodies
from guardrail.server.errors import (
    LATE,
    AnswerCutError,
    RefusedError,
    refuse,
    stream_end,
    tell,
)
from guardrail.server.keys import Caller, request_id_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from guardrail.observe.tracing import Tracing
    from guardrail.server.observing import Observation
    from guardrail.server.service import Service

_FREE = frozenset({"GET", "HEAD", "OPTIONS"})  # they cost next to nothing, and bring no body
_OTHER = "other"
_NO_ANSWER = 499  # what many servers write when the client was gone before an answer began

_FAILED, _OK = 500, 200
_LAST_WORD_S = 1.0  # for a client that does not read to take the end of its stream
_METHODS = frozenset({"CONNECT", "DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT"})
_PROBES = HEALTH | METRICS  # asked every few seconds, and nobody wants to read it
_EXPOSED = (
    *(f"X-Guardrail-{name}" for name in ("Action", "Would-Be", "Score", "Modality", "Reason")),
    "X-Guardrail-Mode",
    "X-Guardrail-Artefact",
    "X-Request-ID",
)

_BROKEN = Problem(500, "the server failed at this request", "internal_error")

_log = logging.getLogger(__name__)
_access_log = logging.getLogger("guardrail.access")


class Exchange:
    """One HTTP request and how far its answer has come.

    `send` is the only one that looks at what is answered, and puts the request's id on it;
    `receive` is the app's, fed by `watch`. `answer` is `send` with what CORS adds to it.
    """

    def __init__(self, scope: Scope, send: Send) -> None:
        self.scope, self.caller = scope, Caller(request_id_of(scope["headers"]))
        scope.setdefault("state", {}).update(caller=self.caller, exchange=self)
        self.answer: Send = self.send
        self.status: int | None = None
        self.headers = Headers()  # of the answer
        self.first_s: float | None = None  # from the start to a stream's first bytes
        self.complete = False
        self.span: Any = None  # of its trace
        self._send, self._start = send, time.perf_counter()
        self._between_events = True
        self._messages: asyncio.Queue[Message] = asyncio.Queue()
        self._left = asyncio.Event()

    @property
    def begun(self) -> bool:
        """Whether the client has a status already."""
        return self.status is not None

    @property
    def seconds(self) -> float:
        """The time since the request came."""
        return time.perf_counter() - self._start

    async def send(self, message: Message) -> None:
        """Pass a part of the answer on."""
        if message["type"] == "http.response.start":
            self.headers = headers = MutableHeaders(scope=message)
            headers["X-Request-ID"] = self.caller.request_id
            self.status = message["status"]
        elif body := message.get("body"):
            if self.first_s is None and self._streams:
                self.first_s = self.seconds
            self._between_events = body.endswith(b"\n\n")
        await self._send(message)
        self.complete = message["type"] == "http.response.body" and not message.get("more_body")

    async def receive(self) -> Message:
        """The next message for the app."""
        if self._left.is_set() and self._messages.empty():
            return {"type": "http.disconnect"}
        return await self._messages.get()

    async def watch(self, receive: Receive) -> None:
        """Ends when the client has left before its answer was complete."""
        while not self._left.is_set():
            message = await receive()
            self._messages.put_nowait(message)
            if message["type"] == "http.disconnect":
                self._left.set()
        if self.complete:  # the usual end; what the app does after it is not cut short
            await asyncio.Event().wait()

    async def refuse(self, problem: Problem) -> None:
        """Answer by a problem."""
        await refuse(problem, self.scope, self.receive, self.answer)

    async def end(self, problem: Problem) -> None:
        """Tell the client that its answer ends here, as far as that can still be told.

        Raises:
            AnswerCutError: it had begun, and is no whole answer.
        """
        if not self.begun:
            await self.refuse(problem)
        elif self._streams and self._between_events and not self.complete:
            last = {"type": "http.response.body", "body": stream_end(problem), "more_body": False}
            with suppress(TimeoutError):
                async with asyncio.timeout(_LAST_WORD_S):
                    await self.answer(last)
        if not self.complete:
            raise AnswerCutError(problem.code or "unknown")

    @property
    def _streams(self) -> bool:
        return self.headers.get("content-type", "").startswith("text/event-stream")


class ExchangeMiddleware:
    """Takes every HTTP request to the routes and back, as the module says; others pass as they are.

    Whatever ends a request cancels what it does, so its place in the model is free. An answer that
    has begun ends with an error event if it is an event stream, and is cut otherwise.
    """

    def __init__(self, app: ASGIApp, *, service: Service) -> None:
        self._app, self._service = app, service
        self._access, self._bodies = Access(service), Bodies(service)
        self._places = Places(service)
        self._way: ASGIApp = self._bordered
        if origins := service.settings.cors_origins:
            self._way = CORSMiddleware(
                self._bordered,
                allow_origins=list(origins),
                allow_methods=["GET", "POST"],
                allow_headers=["Authorization", "Content-Type", "X-Request-ID"],
                expose_headers=_EXPOSED,
            )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        exchange = Exchange(scope, send)
        with observed(exchange, self._service.observation):
            await self._way(scope, receive, exchange.send)

    async def _bordered(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer 500 for an unexpected error, or cut an answer that has begun.

        The package's own errors are told here, too: Starlette's handlers are for an `Exception`,
        which that of a flagged request need not be.

        The HTTP server would log the error's words, which may quote the request, so it hears of
        another error in its place.
        """
        exchange: Exchange = scope["state"]["exchange"]
        exchange.answer = send
        try:
            await self._serve(exchange, receive)
        except ClientDisconnect:
            _log.debug("a client left before its answer")
        except AnswerCutError:
            raise
        except (Exception, GuardrailError) as error:  # the border
            if isinstance(error, GuardrailError) and not exchange.begun:
                await tell(Request(scope), error)(scope, receive, send)
                return
            _log.error("a request failed", exc_info=error)
            if exchange.begun:
                raise AnswerCutError(type(error).__name__) from None
            await exchange.refuse(_BROKEN)

    async def _serve(self, exchange: Exchange, receive: Receive) -> None:
        service, scope, caller = self._service, exchange.scope, exchange.caller
        problem = self._access.problem(scope, caller)
        if problem is not None:
            await exchange.refuse(problem)
            return
        deadline = asyncio.get_running_loop().time() + service.settings.timeout_s
        probe = scope["path"] in HEALTH  # they go on to the end, and must not put it off
        under_way = nullcontext() if probe else service.lifecycle.request()
        free = scope["method"] in _FREE
        with (
            _known(exchange, service.observation.tracing),
            self._bodies.counted(receive, caller.client) as counted,
            under_way,
        ):
            try:
                body = await self._bodies.read(scope, counted, caller, short=free)
                with nullcontext() if free else self._places.taken(caller.client):
                    await self._within(deadline, exchange, body)
            except RefusedError as refused:
                await exchange.end(refused.problem)

    async def _within(self, deadline: float, exchange: Exchange, receive: Receive) -> None:
        """Run the app to the end of its answer.

        Raises:
            RefusedError: the time is over, of the request or of the server.
            ClientDisconnect: nobody waits for the answer any more.
        """
        left = deadline - asyncio.get_running_loop().time()
        async with raced(
            self._app(exchange.scope, exchange.receive, exchange.answer),
            exchange.watch(receive),
            self._service.lifecycle.expired.wait(),
            timeout=max(left, 0),
        ) as (job, gone, over):
            if job.done():
                job.result()
            elif gone.done():
                gone.result()
                raise ClientDisconnect
            else:
                raise RefusedError(DRAINING if over.done() else LATE)


@contextmanager
def observed(exchange: Exchange, observation: Observation) -> Iterator[None]:
    """Count, trace and log a request, whatever becomes of it and whoever answers it.

    All name the route's template, never the path or the query: both may hold what was asked.
    """
    scope, tracing, failed = exchange.scope, observation.tracing, None
    method = scope["method"] if scope["method"] in _METHODS else "_OTHER"
    if tracing is not None:
        asked = Headers(scope=scope)
        exchange.span = tracing.begin(method, scope.get("scheme", "http"), asked)
    try:
        yield
    except (Exception, GuardrailError) as error:
        failed = type(error).__name__
        raise
    finally:  # a cancelled task is a client or a server that went away, not a fault
        route, seconds = route_of(scope), exchange.seconds
        status = exchange.status or (_FAILED if failed else _NO_ANSWER)
        _log_access(exchange, route, status, seconds)
        observation.metrics.answered(route, status, seconds, exchange.first_s)
        if tracing is not None:
            tracing.end(exchange.span, f"{method} {route}", route, status, failed=failed)


def _log_access(exchange: Exchange, route: str, status: int, seconds: float) -> None:
    _access_log.log(
        logging.DEBUG if route in _PROBES and status == _OK else logging.INFO,
        "request",
        extra={
            "method": exchange.scope["method"],
            "route": route,
            "status": status,
            "seconds": round(seconds, 4),
            "request_id": exchange.caller.request_id,
            "client": exchange.caller.client,
            "action": exchange.headers.get("x-guardrail-action"),
            "score": exchange.caller.score,
        },
    )


@contextmanager
def _known(exchange: Exchange, tracing: Tracing | None) -> Iterator[None]:
    """Tell the request's span whose it is, so that checks and answers belong to it."""
    if tracing is None:
        yield
        return
    caller = exchange.caller
    tracing.known_as(exchange.span, caller.request_id, caller.client)
    try:
        yield
    finally:
        tracing.over(caller.request_id)


def route_of(scope: Scope) -> str:
    """The template of the route that answers a request, `other` where there is none.

    What is refused before it reaches a route is named by the route it was meant for, if that one's
    template has no parameters.
    """
    template = getattr(scope.get("route"), "path", None)
    if isinstance(template, str):
        return template
    path = scope["path"]
    known = path in _templates(getattr(scope.get("app"), "routes", ()))
    return str(path) if known else _OTHER


def _templates(routes: Iterable[object]) -> Iterator[str]:
    for route in routes:
        path = getattr(route, "path", None)
        if isinstance(path, str):
            yield path
        # FastAPI keeps a router that was included as one route
        yield from _templates(getattr(getattr(route, "original_router", None), "routes", ()))
