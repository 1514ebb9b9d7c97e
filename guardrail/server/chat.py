"""Chats answered by the guarded model itself: the fields of the OpenAI form that it honours."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from fastapi import APIRouter, Request, Response

from guardrail.server.answers import ChatCompletion
from guardrail.server.bodies import StrictRoute
from guardrail.server.errors import ApiError
from guardrail.server.generating import Asked, answered
from guardrail.server.options import (
    answers_of,
    format_options,
    options_of,
    refuse_unheard,
    tool_options,
    with_format,
)
from guardrail.server.schemas import ANSWER, ERRORS, ChatBody

if TYPE_CHECKING:
    from guardrail.guard import Guard
    from guardrail.server.keys import Caller
    from guardrail.types import Verdict

# Fields that this server can only be asked for in these forms; None goes everywhere.
_NEUTRAL: dict[str, tuple[object, ...]] = {
    "frequency_penalty": (0,),
    "presence_penalty": (0,),
    "logit_bias": ({},),
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
_INSTEAD = {"functions": "send `tools`"}

router = APIRouter(prefix="/v1", route_class=StrictRoute, responses=ERRORS)


@router.post("/chat/completions", response_model=None, responses=ANSWER)
async def chat_completions(body: ChatBody, request: Request) -> Response:
    """Answer a chat under guard: with the answer come its verdict in `guardrail`, and headers."""
    return await answered(body, request, _asked)


def generate_options(body: ChatBody, guard: Guard, *, default_tokens: int) -> dict[str, Any]:
    """As keywords of `Guard.agenerate`.

    Args:
        body: what was asked for.
        guard: who will answer.
        default_tokens: the most tokens of an answer for which the client names no limit.

    Raises:
        ApiError: a field asks for something that would not happen.
    """
    refuse_unheard(body, _NEUTRAL, _INSTEAD)
    name = "max_tokens" if body.max_completion_tokens is None else "max_completion_tokens"
    return {
        **options_of(body, guard, (name, getattr(body, name)), default_tokens),
        **tool_options(body.tools, body.tool_choice, guard),
        **format_options(body.response_format, "response_format"),
        **_probabilities(body),
    }


def _probabilities(body: ChatBody) -> dict[str, Any]:
    if body.logprobs:
        return {"logprobs": body.top_logprobs or 0}
    if body.top_logprobs:
        raise ApiError("top_logprobs needs logprobs", param="top_logprobs", code="invalid_value")
    return {}


def _asked(body: ChatBody, guard: Guard, default_tokens: int) -> Asked:
    answers = answers_of(body.n, guard)
    return Asked(
        value=with_format(body.messages, "response_format", body.response_format),
        options=generate_options(body, guard, default_tokens=default_tokens),
        form=partial(_form, body, answers),
        answers=answers,
    )


def _form(
    body: ChatBody, answers: int, verdict: Verdict, caller: Caller, *, refused: bool
) -> ChatCompletion:
    """A refusal is told when an answer ends: its words are content, too."""
    return ChatCompletion(
        model=body.model,
        verdict=verdict,
        caller=caller,
        answers=answers,
        parallel_calls=body.parallel_tool_calls is not False,
        usage=body.wants_usage,
    )
