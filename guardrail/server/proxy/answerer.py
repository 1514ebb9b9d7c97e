"""Chats answered by another server, each once it was checked here.

Forwarded are the routes of three forms. What is not there is not there: nothing goes on unchecked.
What is sent on is the checked body alone, and pictures and videos must be in it, in one plain form.
"""

from __future__ import annotations

import asyncio
import json
import logging
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

from fastapi import APIRouter, Request, Response
from starlette.exceptions import HTTPException

from guardrail.asgi.chats import read_chat
from guardrail.asgi.content import JSON, media_type
from guardrail.asgi.wire import FIELD, Event, event
from guardrail.errors import DetectorError, GuardrailError, UnsupportedContentError
from guardrail.front.consequences import settled
from guardrail.inputs.canonical import canonical_chat
from guardrail.inputs.parts import strings_in
from guardrail.inputs.threads import read_apart
from guardrail.policy.acting import is_refused_outage, passes_unchecked, stopped
from guardrail.server.answers import (
    STREAM_HEADERS,
    AsciiJSONResponse,
    EventStream,
    headers_of,
    strictest,
    told,
)
from guardrail.server.bodies import bounded_json
from guardrail.server.errors import ApiError, error_answer, told_as, unknown_model
from guardrail.server.proxy.failures import UpstreamProblem
from guardrail.server.proxy.forms import CHAT, COMPLETION, RESPONSE, Refusal
from guardrail.server.proxy.relay import Relay
from guardrail.server.proxy.upstream import Kept, Upstream
from guardrail.server.schemas import ERRORS
from guardrail.server.watching import WatchedStream, settled_answers
from guardrail.types import Action

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Collection

    from starlette.datastructures import Headers

    from guardrail.guard import Guard
    from guardrail.policy import Policy
    from guardrail.server.keys import Caller
    from guardrail.server.proxy.forms import Form
    from guardrail.server.service import Answerer, Service
    from guardrail.server.settings import UpstreamSettings
    from guardrail.types import Verdict


_log = logging.getLogger(__name__)
_JSON = "application/json"
_MODELS_KEPT_S = 30.0
_TROUBLE_KEPT_S = 5.0
# Possessive, so that a long text that does not fit is not gone over again and again.
_PLAIN = re.compile(
    r"(?:data:[\w.+-]+/[\w.+-]+;base64,)?[A-Za-z0-9+/\s]++={0,2}+\s*+", re.ASCII | re.IGNORECASE
)
_ARGUMENTS = frozenset({"arguments", "args"})  # of tool calls: read as text, whatever their keys
_TRACE = re.compile(r"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}")


class ProxyAnswerer:
    """Has the service's guard check, and the upstream answer; never both at once.

    A flagged request never reaches the upstream (unless the policy annotates, or in shadow mode).
    One that would be steered goes on with a caution in it, or as `policy.unsteerable` says.
    """

    routers: tuple[APIRouter, ...] = ()

    def __init__(self, service: Service, settings: UpstreamSettings) -> None:
        self._service, self._settings = service, settings
        self._upstream = Upstream(settings)
        self._trouble = Kept(self._upstream.trouble, _TROUBLE_KEPT_S)
        self._models = Kept(self._upstream.models, _MODELS_KEPT_S)
        self._created = int(time.time())
        _log.info("forwarding", extra={"upstream": settings.url, "key": settings.key is not None})
        if settings.key_in_clear:
            _log.warning("the upstream's key goes over the network without TLS; use https://")

    @property
    def chats(self) -> tuple[APIRouter, ...]:
        """The routes of the three forms; their bodies have more keys than a local model's."""
        router = APIRouter(prefix="/v1", responses=ERRORS)
        for form in (CHAT, COMPLETION, RESPONSE):
            schema = {"type": "object", "required": ["model", form.source]}
            router.add_api_route(
                form.path,
                self._route(form),
                methods=["POST"],
                response_model=None,
                openapi_extra={"requestBody": {"content": {_JSON: {"schema": schema}}}},
            )
        return (router,)

    def _route(self, form: Form) -> Callable[[Request], Awaitable[Response]]:
        async def forward(request: Request) -> Response:
            """Check a request, and answer it by the upstream if it may pass."""
            return await self.relay(form, request)

        return forward

    async def relay(self, form: Form, request: Request) -> Response:
        """The answer to a request in one of the forms.

        Raises:
            GuardrailError: it was not let through.
            HTTPException: the body cannot be read.
        """
        asked = await _read(await request.body(), request.headers, form)
        model, caller = self._model(asked.model), request.state.caller
        deadline = asyncio.get_running_loop().time() + self._service.settings.timeout_s
        options = self._service.ask_options(caller)
        self._service.count_asked(caller, asked.body[form.source])
        unchecked = self._settings.unchecked
        checked = await _check(asked, self._service.guard, unchecked, options)
        headers = headers_of(checked.verdict, caller)
        if checked.done == "flag":
            return _flagged(checked, caller, headers)
        try:
            return await self._forwarded(checked, model, deadline, request, headers)
        except UpstreamProblem as problem:
            about = {"request_id": caller.request_id, "reason": problem.reason}
            _log.warning("no answer to pass on from the upstream", extra=about)
            headers |= problem.headers or {}
            return AsciiJSONResponse(problem.to_dict(), problem.status_code, headers=headers)

    async def models(self) -> list[dict[str, object]]:
        """See `Answerer`; with a map of models, its names, else those of the upstream."""
        if not self._settings.models:
            return await self._models.get()
        about = {"object": "model", "created": self._created, "owned_by": "upstream"}
        return [{"id": name, **about} for name in self._settings.models]

    async def trouble(self) -> str | None:
        """See `Answerer`."""
        if getattr(self._service.guard, "closed", False):
            return "the guard is closed"
        return await self._trouble.get() or None

    async def aclose(self) -> None:
        """Let go of connections."""
        await self._upstream.aclose()

    async def _forwarded(
        self,
        checked: Checked,
        model: str,
        deadline: float,
        request: Request,
        headers: Mapping[str, str],
    ) -> Response:
        asked, upstream = checked.asked, self._upstream
        content = await asyncio.to_thread(asked.sent, model)
        own = asyncio.get_running_loop().time() + self._settings.timeout_s
        deadline = min(deadline, own)
        sent = _sent_headers(request, streams=asked.streams)
        response = await upstream.send(
            "POST", asked.form.path, deadline=deadline, headers=sent, content=content
        )
        verdict = told(checked.verdict, request.state.caller)
        kept = {**headers, **_kept_headers(response.headers, upstream.clean)}
        guard, caller = self._service.guard, request.state.caller
        watched = guard.policy.watch == "answer"
        options = self._service.ask_options(caller)
        if not asked.streams:
            found = await upstream.read_json(response, deadline=deadline)
            after = await settled_answers(guard, asked.form.said(found), options) if watched else []
            if flagged := [each for each in after if each is not None and each.done == "flag"]:
                stop = Checked(asked, flagged[0].verdict, "flag", guard.policy)
                return _flagged(stop, caller, kept | headers_of(stop.verdict, caller))
            told_of = [each.verdict for each in after if each is not None]
            if told_of and (worst := strictest(told_of)).action is Action.FLAG:  # it annotates
                verdict, kept = told(worst, caller), kept | headers_of(worst, caller)
            return AsciiJSONResponse({**found, FIELD: verdict}, headers=kept)

        def cut(verdict: Verdict, last: Mapping[str, Any]) -> list[bytes]:
            return _cut(asked, guard.policy, verdict, caller, last)

        relay = Relay(
            upstream,
            response,
            asked.form,
            verdict,
            usage=asked.wants_usage,
            deadline=deadline,
            request_id=caller.request_id,
            watch=WatchedStream[Event](guard, options) if watched else None,
            tell=partial(told, caller=caller),
            cut=cut,
        )
        await relay.begin()
        return EventStream(relay.chunks(), relay.aclose, kept)

    def _model(self, name: str) -> str:
        """The upstream's name of a model."""
        models = self._settings.models
        if models and name not in models:
            raise unknown_model(name, ", ".join(models))
        return models.get(name, name)


def through(settings: UpstreamSettings) -> Callable[[Service], Answerer]:
    """What `create_app(answerer=...)` takes for an upstream."""
    return lambda service: ProxyAnswerer(service, settings)


def _flagged(checked: Checked, caller: Caller, headers: Mapping[str, str]) -> Response:
    verdict, policy, asked = checked.verdict, checked.policy, checked.asked
    if verdict is None:
        raise DetectorError("a request was stopped without a verdict")
    if policy.on_flag == "raise" or is_refused_outage(verdict, policy):
        error = stopped(verdict)
        answer = error_answer(error, refusal=policy.refusal_message, caller=caller)
        answer.headers.update(headers)
        return answer
    refusal = _refusal(asked, policy, verdict, caller)
    if not asked.streams:
        return AsciiJSONResponse(asked.form.refused(refusal), headers=headers)
    events = b"".join(asked.form.refused_events(refusal))
    headers = {**headers, **STREAM_HEADERS}
    return Response(events, headers=headers, media_type=EventStream.media_type)


def _refusal(asked: Asked, policy: Policy, verdict: Verdict, caller: Caller) -> Refusal:
    return Refusal(
        text=policy.refusal_message,
        model=asked.model,
        caller=caller,
        verdict=verdict,
        usage=asked.wants_usage,
    )


def _cut(
    asked: Asked, policy: Policy, verdict: Verdict, caller: Caller, last: Mapping[str, Any]
) -> list[bytes]:
    """What ends a stream whose answer was flagged, behind its event `last`."""
    if policy.on_flag == "raise" or is_refused_outage(verdict, policy):
        return [event(told_as(stopped(verdict), policy.refusal_message).to_dict())]
    data = asked.form.cut(_refusal(asked, policy, verdict, caller), last)
    return [*(event(datum, datum.get("type")) for datum in data), asked.form.done]


def _sent_headers(request: Request, *, streams: bool) -> dict[str, str]:
    """All that the upstream hears of the client: neither its key nor its cookies."""
    sent = {
        "Content-Type": _JSON,
        "Accept": "text/event-stream" if streams else _JSON,
        "X-Request-ID": request.state.caller.request_id,
    }
    trace = request.headers.get("traceparent", "")
    return sent | ({"traceparent": trace} if _TRACE.fullmatch(trace) else {})


def _kept_headers(headers: Mapping[str, str], clean: Callable[[str], str]) -> dict[str, str]:
    """All that the client hears of the upstream's headers."""
    name = clean(headers.get("x-request-id", ""))
    return {"X-Upstream-Request-ID": name} if re.fullmatch(r"[\w.:-]{1,200}", name, re.A) else {}


@dataclass(frozen=True, slots=True)
class Asked:
    """A body as it was parsed, of a known form, with a model's name."""

    form: Form
    body: Mapping[str, Any]

    @property
    def model(self) -> str:
        """The model that the client names."""
        return str(self.body["model"])

    @property
    def streams(self) -> bool:
        """Whether a stream is asked for."""
        return self.body.get("stream") is True

    @property
    def wants_usage(self) -> bool:
        """Whether a stream's token counts are asked for."""
        options = self.body.get("stream_options")
        return isinstance(options, Mapping) and options.get("include_usage") is True

    def sent(self, model: str) -> bytes:
        """The bytes for the upstream: what was parsed, written again, so that both read the same.

        Raises:
            HTTPException: 400, a text of it has no UTF-8 form.
        """
        body = {**self.body, "model": model}
        try:
            return json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode()
        except UnicodeEncodeError:
            raise HTTPException(400, "a text of the body holds half a character") from None


@dataclass(frozen=True, slots=True)
class Checked:
    """What is sent and the verdict on it; None where the policy lets it pass unchecked."""

    asked: Asked
    verdict: Verdict | None
    done: Literal["flag", "caution", "pass"]
    policy: Policy


async def _read(data: bytes, headers: Headers, form: Form) -> Asked:
    """The JSON body of a request.

    Raises:
        HTTPException: 415, 413 or 400: it is none, of too many values, or two readers could
            differ on it.
        ApiError: it is of another form.
    """
    media_type(headers, (JSON,))
    body = await asyncio.to_thread(bounded_json, data)
    if not isinstance(body, dict):
        raise ApiError("the body is no JSON object")
    if not isinstance(body.get("model"), str) or not body["model"]:
        raise ApiError("model must be the name of a model", param="model")
    if body.get("stream") is not None and not isinstance(body["stream"], bool):
        raise ApiError("stream must be true or false", param="stream")
    if body.get(form.source) is None:
        raise ApiError(f"the body needs {form.source}", param=form.source)
    return Asked(form, body)


async def _check(
    asked: Asked, guard: Guard, unchecked: Collection[str], options: Mapping[str, Any]
) -> Checked:
    """The verdict, and what becomes of the request. `options` are those of `guard.acheck`.

    Raises:
        GuardrailError: it cannot be read or checked, and the policy does not let it pass.
    """
    policy = guard.policy
    try:
        asked = await read_apart(partial(_canonical, asked, policy))
        content = read_chat(asked.body, unchecked)
        verdict = await content.judged(guard, **options)
    except GuardrailError as error:
        if not passes_unchecked(error, policy):
            raise
        _log.warning("the policy lets a request through unchecked: %s", type(error).__name__)
        return Checked(asked, None, "pass", policy)
    after = settled(verdict, policy, caution=content.cautioned)
    if after.cautioned is not None:
        asked = Asked(asked.form, json.loads(after.cautioned))
    return Checked(asked, after.verdict, after.done, policy)


def _canonical(asked: Asked, policy: Policy) -> Asked:
    """The same with pictures that the upstream reads as the guard does."""
    source, said = asked.form.source, asked.body[asked.form.source]
    refuse_unclear_media(said)
    return Asked(asked.form, {**asked.body, source: canonical_chat(said, policy)})


def refuse_unclear_media(value: object) -> None:
    """Refuse addresses, files and forms of base64 that readers take for different pictures.

    The upstream would open an address by itself, and perhaps get another picture than the guard; so
    would a reader that skips a percent sign, or that looks for another comma in a `data:` URL.

    Raises:
        UnsupportedContentError: there is one.
    """
    said = strings_in(value, leave_out=_ARGUMENTS)
    if any(media and _PLAIN.fullmatch(text) is None for text, media in said):
        raise UnsupportedContentError(
            "pictures and videos are sent on as data: URLs with plain base64 alone "
            "(data:image/png;base64,...); send their bytes so"
        )
