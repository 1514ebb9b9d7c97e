"""Chats answered by the guarded model itself."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from guardrail.errors import DetectorError
from guardrail.server.api_error import unknown_model
from guardrail.server.ascii_json import AsciiJSONResponse
from guardrail.server.asking import ask_options, count_asked
from guardrail.server.chat_options import generate_options
from guardrail.server.completions import form_of
from guardrail.server.streaming import EventStream, events
from guardrail.server.verdicts import headers_of
from guardrail.settling import is_refused_outage

if TYPE_CHECKING:
    from fastapi import Request, Response

    from guardrail.guard import Guard
    from guardrail.server.chat_schema import ChatBody
    from guardrail.server.keys import Caller
    from guardrail.server.service import Service
    from guardrail.types import Verdict


class LocalAnswerer:
    """Asks the service's guard for an answer and a verdict in one prefill."""

    def __init__(self, service: Service) -> None:
        self._service, self._created = service, int(time.time())

    async def answer(self, body: ChatBody, caller: Caller, request: Request) -> Response:
        """See `Answerer`."""
        guard, settings = self._service.guard, self._service.settings
        if body.model != settings.model_name:
            raise unknown_model(body.model, settings.model_name)
        asked = generate_options(body, guard, default_tokens=settings.default_tokens)
        asked |= ask_options(self._service, caller)
        count_asked(self._service, caller, body.messages)
        if body.stream:
            return await _streamed(guard, body, asked, caller)
        result = await guard.agenerate(body.messages, **asked)
        verdict = _judged(result.verdict, guard)
        form = form_of(verdict, body.model, caller, parallel_calls=body.parallel_tool_calls)
        return AsciiJSONResponse(form.whole(result), headers=headers_of(verdict, caller))

    async def models(self) -> list[dict[str, object]]:
        """See `Answerer`."""
        name = self._service.settings.model_name
        return [{"id": name, "object": "model", "created": self._created, "owned_by": "local"}]

    async def trouble(self) -> str | None:
        """See `Answerer`."""
        return "the guard is closed" if self._service.guard.closed else None

    async def aclose(self) -> None:
        """Nothing is held here."""


async def _streamed(
    guard: Guard, body: ChatBody, asked: dict[str, Any], caller: Caller
) -> Response:
    """An answer whose head is sent once its verdict and its first words are there."""
    stream = guard.astream(body.messages, **asked)
    try:
        first = await anext(stream, None)
        verdict = _judged(stream.verdict, guard)
    except BaseException:  # a cancelled task among them
        await stream.aclose()
        raise
    form = form_of(verdict, body.model, caller, parallel_calls=body.parallel_tool_calls)
    told = events(
        stream,
        first,
        form,
        usage=body.wants_usage,
        refusal=guard.policy.refusal_message,
    )
    return EventStream(stream, told, caller)


def _judged(verdict: Verdict | None, guard: Guard) -> Verdict:
    """The verdict of an answer that may be told: an outage is no finding of the guard's.

    Raises:
        DetectorError: there is none, or there is none but for a failure, and those are refused.
    """
    if verdict is None:
        raise DetectorError("an answer without a verdict; it is not given out")
    if is_refused_outage(verdict, guard.policy):
        raise DetectorError("the detector failed, and the policy fails closed")
    return verdict
