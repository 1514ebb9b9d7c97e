"""Chats answered by the guarded model itself: the fields it honours, and how it streams."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from fastapi import APIRouter, Request, Response

from guardrail.asgi.wire import DONE, event
from guardrail.errors import GuardrailViolation
from guardrail.server.answers import AsciiJSONResponse, ChatCompletion, EventStream, headers_of
from guardrail.server.bodies import StrictRoute
from guardrail.server.errors import ApiError, stream_end, told_as, unknown_model
from guardrail.server.schemas import ANSWER, ERRORS, ChatBody
from guardrail.server.service import require_verdict

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from guardrail.guard import Guard
    from guardrail.online.streams import AsyncGuardStream
    from guardrail.server.keys import Caller
    from guardrail.server.service import Service
    from guardrail.types import Verdict

_COLDEST = 0.01  # colder is greedy in effect, and overflows in float32
# Fields that this server can only be asked for in these forms; None goes everywhere.
_NEUTRAL: dict[str, tuple[object, ...]] = {
    "n": (1,),
    "logprobs": (False,),
    "top_logprobs": (0,),
    "frequency_penalty": (0,),
    "presence_penalty": (0,),
    "logit_bias": ({},),
    "response_format": ({"type": "text"},),
    "modalities": (["text"], []),
    "reasoning_effort": ("none",),
    "verbosity": ("medium",),
    "audio": (),
    "prediction": (),
    "moderation": (),
    "web_search_options": (),
    "functions": ([],),
    "function_call": ("none", "auto"),
}
_INSTEAD = {
    "n": "ask several times",
    "functions": "send `tools`",
    "response_format": "say in a message which form the answer should have",
}

router = APIRouter(prefix="/v1", route_class=StrictRoute, responses=ERRORS)


@router.post("/chat/completions", response_model=None, responses=ANSWER)
async def chat_completions(body: ChatBody, request: Request) -> Response:
    """Answer a chat under guard: with the answer come its verdict in `guardrail`, and headers."""
    service, caller = request.app.state.service, request.state.caller
    guard, settings = service.guard, service.settings
    if body.model != settings.model_name:
        raise unknown_model(body.model, settings.model_name)
    asked = generate_options(body, guard, default_tokens=settings.default_tokens)
    asked |= service.ask_options(caller)
    service.count_asked(caller, body.messages)
    if body.stream:
        return await _streamed(guard, body, asked, caller)
    result = await guard.agenerate(body.messages, **asked)
    verdict = require_verdict(result.verdict, guard.policy)
    answer = _completion(body, verdict, caller).whole(result)
    return AsciiJSONResponse(answer, headers=headers_of(verdict, caller))


class LocalAnswerer:
    """Asks the service's guard for an answer and a verdict in one prefill."""

    chats = router
    routers: tuple[APIRouter, ...] = ()

    def __init__(self, service: Service) -> None:
        self._service, self._created = service, int(time.time())

    async def models(self) -> list[dict[str, object]]:
        """See `Answerer`."""
        name = self._service.settings.model_name
        return [{"id": name, "object": "model", "created": self._created, "owned_by": "local"}]

    async def trouble(self) -> str | None:
        """See `Answerer`."""
        return None  # the guard says it

    async def aclose(self) -> None:
        """Nothing is held here."""


async def _streamed(
    guard: Guard, body: ChatBody, asked: dict[str, Any], caller: Caller
) -> Response:
    """An answer whose head is sent once its verdict and its first words are there."""
    stream = guard.astream(body.messages, **asked)
    try:
        first = await anext(stream, None)
        verdict = require_verdict(stream.verdict, guard.policy)
    except BaseException:  # a cancelled task among them
        await stream.aclose()
        raise
    form = _completion(body, verdict, caller)
    told = events(stream, first, form, refusal=guard.policy.refusal_message)
    return EventStream(told, stream.aclose, headers_of(verdict, caller))


def _completion(body: ChatBody, verdict: Verdict, caller: Caller) -> ChatCompletion:
    return ChatCompletion(
        model=body.model,
        verdict=verdict,
        caller=caller,
        parallel_calls=body.parallel_tool_calls is not False,
        usage=body.wants_usage,
    )


async def events(
    stream: AsyncGuardStream, first: str | None, form: ChatCompletion, *, refusal: str
) -> AsyncIterator[bytes]:
    """Events of one answer, the verdict before the first word.

    A failure is an event with an `error`, and no end follows it: a client must not take a part of
    an answer for the whole.

    Args:
        stream: the answer, whose verdict is known.
        first: its first chunk of text; None when there is none.
        form: what all chunks have in common.
        refusal: the policy's words.
    """
    async with stream:
        yield event(form.opening())
        try:
            if first is not None:
                yield event(form.chunk({"content": first}))
            async for text in stream:
                yield event(form.chunk({"content": text}))
        # a border: the status is sent, so the stream says it
        except (Exception, GuardrailViolation) as error:
            yield stream_end(told_as(error, refusal))
            return
        if stream.result is not None:
            for chunk in form.closing(stream.result):
                yield event(chunk)
            yield DONE


def generate_options(body: ChatBody, guard: Guard, *, default_tokens: int) -> dict[str, Any]:
    """As keywords of `Guard.agenerate`; temperatures from 0 to 0.01 count as 0.01, except 0.

    Args:
        body: what was asked for.
        guard: who will answer.
        default_tokens: the most tokens of an answer for which the client names no limit.

    Raises:
        ApiError: a field asks for something that would not happen.
    """
    _refuse_unheard(body)
    given: dict[str, Any] = {
        "max_new_tokens": _limit(body, guard.policy.limits.new_tokens, default_tokens),
        "temperature": max(body.temperature, _COLDEST) if body.temperature else body.temperature,
        "top_p": body.top_p,
        "top_k": None if body.top_k is None else max(body.top_k, 0),
        "repetition_penalty": body.repetition_penalty,
        "seed": body.seed,
        "stop": [body.stop] if isinstance(body.stop, str) else body.stop,
        "tools": _tools(body, guard),
    }
    return {name: value for name, value in given.items() if value is not None}


def _refuse_unheard(body: ChatBody) -> None:
    """Nothing that was asked for is passed over."""
    for name, value in (body.model_extra or {}).items():
        if value is not None:
            raise ApiError(
                f"{name[:80]!r} is no field of this API; leave it out",
                param=name[:80],
                code="unknown_parameter",
            )
    for name, allowed in _NEUTRAL.items():
        value = getattr(body, name)
        if value is not None and value not in allowed:
            instead = f"; {_INSTEAD[name]}" if name in _INSTEAD else ""
            raise ApiError(
                f"this value of {name} is not supported here; leave it out{instead}",
                param=name,
                code="unsupported_value",
            )


def _limit(body: ChatBody, allowed: int, default: int) -> int:
    name = "max_tokens" if body.max_completion_tokens is None else "max_completion_tokens"
    limit: int | None = getattr(body, name)
    if limit is None:
        return min(default, allowed)
    if limit > allowed:
        raise ApiError(
            f"{name} is {limit}; answers here have at most {allowed} tokens",
            param=name,
            code="invalid_value",
        )
    return limit


def _tools(body: ChatBody, guard: Guard) -> list[dict[str, Any]] | None:
    """The tools that the model is shown: none where it may not call any."""
    if body.tool_choice not in (None, "none", "auto"):
        raise ApiError(
            "a call cannot be forced here; tool_choice is 'auto' or 'none'",
            param="tool_choice",
            code="unsupported_value",
        )
    if not body.tools or body.tool_choice == "none":
        return None
    if not guard.supports_tools:
        raise ApiError(
            "this model's chat template knows no tools; leave them out",
            param="tools",
            code="unsupported_value",
        )
    return body.tools
