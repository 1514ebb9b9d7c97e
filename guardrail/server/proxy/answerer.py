"""Chats answered by another server, each once it was checked here."""

from __future__ import annotations

import asyncio
import logging
import re
import time
from typing import TYPE_CHECKING

from starlette.responses import Response

from guardrail.errors import DetectorError
from guardrail.server import problems
from guardrail.server.api_error import ApiError
from guardrail.server.ascii_json import AsciiJSONResponse
from guardrail.server.asking import ask_options, count_asked
from guardrail.server.proxy import checking, routes
from guardrail.server.proxy.failures import UpstreamProblem
from guardrail.server.proxy.forms import CHAT, wants_usage
from guardrail.server.proxy.reach import Reach
from guardrail.server.proxy.refusals import Refusal
from guardrail.server.proxy.relay import STREAM_HEADERS, Relay, RelayResponse
from guardrail.server.proxy.upstream import Upstream
from guardrail.server.verdicts import FIELD, headers_of, told
from guardrail.settling import is_refused_outage, stopped

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from fastapi import APIRouter, Request

    from guardrail.server.chat_schema import ChatBody
    from guardrail.server.keys import Caller
    from guardrail.server.proxy.checking import Checked
    from guardrail.server.proxy.forms import Form
    from guardrail.server.service import Answerer, Service
    from guardrail.server.settings import UpstreamSettings

_log = logging.getLogger(__name__)
_JSON = "application/json"
_TRACE = re.compile(r"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}")


class ProxyAnswerer:
    """Has the service's guard check, and the upstream answer; never both at once.

    A flagged request never reaches the upstream (unless the policy annotates, or in shadow mode).
    One that would be steered goes on with a caution in it, or as `policy.unsteerable` says.
    """

    def __init__(self, service: Service, settings: UpstreamSettings) -> None:
        self._service, self._settings = service, settings
        self._upstream = Upstream(settings)
        self._reach = Reach(self._upstream)
        self._made = int(time.time())
        _log.info("forwarding", extra={"upstream": settings.url, "key": settings.key is not None})
        if settings.key_in_clear:
            _log.warning("the upstream's key goes over the network without TLS; use https://")

    @property
    def routers(self) -> tuple[APIRouter, ...]:
        """Routes that come before the app's own: bodies have more keys here than local ones."""
        return (routes.router,)

    async def answer(self, body: ChatBody, caller: Caller, request: Request) -> Response:
        """See `Answerer`; the body is read again as it came."""
        return await self.relay(CHAT, request)

    async def relay(self, form: Form, request: Request) -> Response:
        """The answer to a request in one of the forms.

        Raises:
            GuardrailError: it was not let through.
            HTTPException: the body cannot be read.
        """
        asked = await checking.read(await request.body(), request.headers, form)
        model, caller = self._model(asked.model), request.state.caller
        deadline = asyncio.get_running_loop().time() + self._service.settings.timeout_s
        options = ask_options(self._service, caller)
        count_asked(self._service, caller, asked.body[form.source])
        unchecked = self._settings.unchecked
        checked = await checking.check(asked, self._service.guard, unchecked, options)
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
            return await self._reach.models()
        about = {"object": "model", "created": self._made, "owned_by": "upstream"}
        return [{"id": name, **about} for name in self._settings.models]

    async def trouble(self) -> str | None:
        """See `Answerer`."""
        if getattr(self._service.guard, "closed", False):
            return "the guard is closed"
        return await self._reach.trouble()

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
        if not asked.streams:
            found = await upstream.read_json(response, deadline=deadline)
            return AsciiJSONResponse({**found, FIELD: verdict}, headers=kept)
        relay = Relay(
            upstream,
            response,
            asked.form,
            verdict,
            usage=wants_usage(asked.body),
            deadline=deadline,
            request_id=request.state.caller.request_id,
        )
        await relay.begin()
        return RelayResponse(relay, kept)

    def _model(self, name: str) -> str:
        """The upstream's name of a model."""
        models = self._settings.models
        if models and name not in models:
            raise ApiError(
                f"the model {name[:80]!r} does not exist here; there are {', '.join(models)}",
                status=404,
                param="model",
                code="model_not_found",
            )
        return models.get(name, name)


def through(settings: UpstreamSettings) -> Callable[[Service], Answerer]:
    """What `create_app(answerer=...)` takes for an upstream."""
    return lambda service: ProxyAnswerer(service, settings)


def _flagged(checked: Checked, caller: Caller, headers: Mapping[str, str]) -> Response:
    verdict, policy, asked = checked.verdict, checked.policy, checked.asked
    if verdict is None:
        raise DetectorError("a request was stopped without a verdict")
    if policy.on_flag == "raise" or is_refused_outage(verdict, policy):
        error = stopped(verdict, policy)
        answer = problems.answer(error, refusal=policy.refusal_message, caller=caller)
        answer.headers.update(headers)
        return answer
    refusal = Refusal(
        text=policy.refusal_message,
        model=asked.model,
        caller=caller,
        verdict=verdict,
    )
    if not asked.streams:
        return AsciiJSONResponse(asked.form.refused(refusal), headers=headers)
    events = b"".join(asked.form.refused_events(refusal, wants_usage(asked.body)))
    headers = {**headers, **STREAM_HEADERS}
    return Response(events, headers=headers, media_type=RelayResponse.media_type)


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
