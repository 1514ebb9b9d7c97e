"""The middleware: reads a guarded request's body, has it checked, and lets it through or not."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection, Sequence
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import Response

from guardrail.asgi.chats import Content
from guardrail.asgi.content import Body, address_words, media_type, read_content
from guardrail.asgi.problems import answer_to, problem_of
from guardrail.asgi.routes import GuardedRoute, RouteTable
from guardrail.errors import ConfigurationError, GuardrailError
from guardrail.front.consequences import record, resolved, settled
from guardrail.policy.acting import enforces, is_refused_outage, passes_unchecked, stopped
from guardrail.policy.policy import MAX_BODY_BYTES

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from guardrail.audit import Audit
    from guardrail.front.consequences import Checker
    from guardrail.policy import Policy
    from guardrail.types import Verdict

_GONE = 499  # the usual status for a client that hung up; only logs ever see it


Answer = Callable[[Any, Any], Any]

OnFlag = Literal["error", "raise", "annotate"] | Answer

_OPENS_NOTHING = {"local_files": False, "allowed_hosts": frozenset[str]()}

_NEED_NO_BODY = frozenset({"GET", "HEAD", "OPTIONS", "DELETE"})

_log = logging.getLogger(__name__)


class GuardrailASGIMiddleware:
    """Checks what goes to chosen routes of an app before the app sees it.

        app.add_middleware(GuardrailASGIMiddleware, guard=guard, routes=["/v1/chat/completions"])

    Add it with `add_middleware`, inside of any middleware that changes paths or methods: what those
    make of a request is not seen from outside.

    Read are JSON bodies of the OpenAI API (chat completions with tools, responses, completions),
    forms with texts, pictures and videos, and with a route's `select` any other JSON or form; and
    words in the path, in the query, and in the names of a form's fields and files. The app then
    gets the same bytes, so a picture that decoders may read in two ways (transparency, 16 bits, a
    rotation in its EXIF data, several frames, a colour profile) is an error that says how to send
    it instead, whatever the policy's `pictures` says. Other routes, websockets and headers are not
    checked: keep those from the model. What cannot be read is answered with an error and never let
    through, except in shadow mode; what cannot be checked because the detector fails passes where
    the policy fails open (a full queue and a check that takes too long are no such failure).
    Answers are passed on as they come. It runs under asyncio only.

    The app finds the verdict in `request.state.guardrail_verdict`. Its model cannot be steered;
    `policy.unsteerable` says what happens to a request that would be: a caution goes with it where
    the body is one of a chat, response or completion, else it counts as flagged.

    Neither files nor addresses that a client names are ever opened, whatever the policy allows: the
    guard that checks is one of its own under such a policy, on the same model and queue. It is
    closed when the app shuts down. Mounted apps and routes are not told of that: close what guards
    them by `close`.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        guard: Checker,
        routes: Collection[GuardedRoute | str],
        policy: Policy | None = None,
        on_flag: OnFlag | None = None,
        status: int = 400,
        max_body_bytes: int = MAX_BODY_BYTES,
        header: str | None = None,
        audit: Audit | None = None,
    ) -> None:
        """Wrap an app.

        Args:
            app: what is guarded.
            guard: the guard that checks; it stays yours to close.
            routes: the paths that are checked, or `GuardedRoute`s.
            policy: other rules than the guard's.
            on_flag: "error": the app's handler for this status or for HTTP errors answers (the
                verdict is in `request.state.guardrail_verdict`), or an error in the form of the
                OpenAI API. "raise": the violation goes to the middleware outside, which catches it
                by its name. "annotate": the app is called all the same. Or
                `on_flag(scope, verdict)`, which gives an ASGI app that answers, such as a Starlette
                response. Default: "error", or "annotate" when the policy says so.
            status: the HTTP status of flagged requests.
            max_body_bytes: the largest body that is read.
            header: the name of a header that tells the client the action; None adds nothing.
            audit: gets each request's verdict with `{"event": "call", "done": ...}`: flag, caution,
                pass, or unchecked for what passed without a verdict (shadow mode, failing open).

        Raises:
            ConfigurationError: a setting that cannot hold.
        """
        if not (on_flag in (None, "error", "raise", "annotate") or callable(on_flag)):
            raise ConfigurationError(f"on_flag={on_flag!r}: error, raise, annotate or a callable")
        self._app, self._guard, self._routes = app, guard, RouteTable(routes)
        self._policy = (policy or guard.policy).model_copy(update=_OPENS_NOTHING)
        default: OnFlag = "annotate" if self._policy.on_flag == "annotate" else "error"
        self._on_flag: OnFlag = on_flag or default
        self._status, self._max_body_bytes = status, max_body_bytes
        self._header, self._audit = header, audit
        self._own: Checker | None = None
        self._checker()  # a guard that cannot be used is an error now, not at the first request

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer or pass on one connection."""
        route = self._routes.find(scope, self._app) if scope["type"] == "http" else None
        if scope["type"] == "lifespan":
            await self._app(scope, receive, self._closing(send))
        elif route is None:
            await self._app(scope, receive, send)
        elif (channels := await self._judged(route, scope, receive, send)) is not None:
            await self._app(scope, *channels)

    def close(self) -> None:
        """Close the guard of its own, never the one that was given; a later request makes another.

        For mounted apps and routes; otherwise it is called when the app shuts down.
        """
        own, self._own = self._own, None
        close = None if own is self._guard else getattr(own, "close", None)
        if close is not None:
            close()

    async def _judged(
        self, route: GuardedRoute, scope: Scope, receive: Receive, send: Send
    ) -> tuple[Receive, Send] | None:
        """What the app is called with; None when it is not, and the client has its answer."""
        body, headers = Body(receive, self._max_body_bytes), Headers(scope=scope)
        scope.setdefault("state", {})["guardrail_verdict"] = None
        try:
            if scope["method"].upper() in _NEED_NO_BODY and not await body.read(headers):
                if not (words := address_words(scope)):
                    return body.replay(), send
                reading = partial(_said, words)
            else:
                kind = media_type(headers)
                data = await body.read(headers)
                reading = partial(read_content, data, kind, headers, scope, route)
            content, verdict = await body.unless_gone(self._checked(reading))
        except ClientDisconnect:
            # a middleware outside may rely on an answer
            with suppress(OSError):  # how servers say that nobody is there
                await Response(status_code=_GONE)(scope, receive, send)
            return None
        except (HTTPException, GuardrailError) as error:
            if not passes_unchecked(error, self._policy):
                await self._fail(error, scope, body.replay(), send)
                return None
            _log.warning("the policy lets a request through unchecked: %s", error)
            record(self._audit, None, "unchecked")
            return body.replay(), send
        return await self._settled(content, verdict, body, scope, send)

    async def _checked(self, reading: Callable[[], Awaitable[Content]]) -> tuple[Content, Verdict]:
        content, guard = await reading(), self._checker()
        one_reading = self._policy if enforces(self._policy) else None
        return content, await content.judged(guard, one_reading=one_reading)

    async def _settled(
        self, content: Content, verdict: Verdict, body: Body, scope: Scope, send: Send
    ) -> tuple[Receive, Send] | None:
        annotates = self._on_flag == "annotate"
        after = settled(
            verdict,
            self._policy,
            caution=content.cautioned,
            on_flag="annotate" if annotates else "refuse",
        )
        scope["state"]["guardrail_verdict"] = after.verdict
        record(self._audit, after.verdict, after.done)
        send = self._marked(send, after.verdict)
        if after.done == "flag":
            await self._flagged(after.verdict, scope, body.replay(), send)
            return None
        if after.cautioned is not None:
            headers = MutableHeaders(scope=scope)
            del headers["transfer-encoding"]
            headers["content-length"] = str(len(after.cautioned))
        return body.replay(after.cautioned), send

    async def _flagged(self, verdict: Verdict, scope: Scope, receive: Receive, send: Send) -> None:
        error = stopped(verdict)
        if self._on_flag == "raise":
            raise error
        if callable(self._on_flag) and not is_refused_outage(verdict, self._policy):
            answer = await resolved(self._on_flag(scope, verdict))
            await answer(scope, receive, send)
        else:
            await self._fail(error, scope, receive, send)

    async def _fail(self, error: BaseException, scope: Scope, receive: Receive, send: Send) -> None:
        refusal = self._policy.refusal_message
        problem = problem_of(error, refusal=refusal, flag_status=self._status)
        answer = answer_to(error, problem, scope.get("app") or self._app)
        await answer(scope, receive, send)

    def _marked(self, send: Send, verdict: Verdict) -> Send:
        """A send channel that tells the client the action, if it is to be told."""
        if self._header is None:
            return send
        mark = (self._header.lower().encode("latin-1"), verdict.action.encode("latin-1"))

        async def marking(message: Message) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message.get("headers", ()), mark]}
            await send(message)

        return marking

    def _checker(self) -> Checker:
        if self._own is None:
            same = self._policy == self._guard.policy
            self._own = self._guard if same else self._guard.with_policy(self._policy)
        return self._own

    def _closing(self, send: Send) -> Send:
        async def closing(message: Message) -> None:
            if message["type"].startswith("lifespan.shutdown"):
                await asyncio.to_thread(self.close)
            await send(message)

        return closing


async def _said(words: Sequence[str]) -> Content:
    return Content("\n\n".join(words))
