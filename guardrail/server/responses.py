"""Responses of the guarded model itself: the fields of OpenAI's newer form that it honours.

Nothing is stored: each request brings its whole history, and `store` is answered false.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from fastapi import APIRouter, Request, Response

from guardrail.asgi.chats import function_tools, input_chat
from guardrail.server.bodies import StrictRoute
from guardrail.server.errors import ApiError
from guardrail.server.generating import Asked, answered
from guardrail.server.options import (
    format_options,
    options_of,
    refuse_unheard,
    tool_options,
    unsupported,
    with_format,
)
from guardrail.server.response_form import ResponseAnswer
from guardrail.server.schemas import ERRORS, RESPONSE, ResponseBody

if TYPE_CHECKING:
    from guardrail.guard import Guard
    from guardrail.server.keys import Caller
    from guardrail.types import Verdict

# Fields that this server can only be asked for in these forms; None goes everywhere.
_NEUTRAL: dict[str, tuple[object, ...]] = {
    "previous_response_id": (),
    "conversation": (),
    "background": (False,),
    "truncation": ("disabled",),
    "reasoning": ({}, {"effort": "none"}),
    "prompt": (),
    "context_management": ([],),
    "moderation": (),
}
_NO_STORE = "nothing is stored here, so send the earlier turns in `input`"
_INSTEAD = {
    "previous_response_id": _NO_STORE,
    "conversation": _NO_STORE,
    "truncation": "nothing is cut here, so send less",
    "prompt": "send its words in `instructions` and `input`",
}
_LOGPROBS = "message.output_text.logprobs"
# Of items that no answer here has: there is nothing to include.
_INCLUDABLE = frozenset(
    {
        _LOGPROBS,
        "code_interpreter_call.outputs",
        "computer_call_output.output.image_url",
        "file_search_call.results",
        "message.input_image.image_url",
        "reasoning.encrypted_content",
        "web_search_call.action.sources",
        "web_search_call.results",
    }
)
_TOLD_AGAIN = (
    "instructions",
    "max_output_tokens",
    "max_tool_calls",
    "metadata",
    "parallel_tool_calls",
    "prompt_cache_key",
    "safety_identifier",
    "temperature",
    "tool_choice",
    "tools",
    "top_logprobs",
    "top_p",
    "user",
)

router = APIRouter(prefix="/v1", route_class=StrictRoute, responses=ERRORS)


@router.post("/responses", response_model=None, responses=RESPONSE)
async def responses(body: ResponseBody, request: Request) -> Response:
    """Answer under guard, statelessly: the verdict comes in `guardrail`, and in headers."""
    return await answered(body, request, asked_of)


def asked_of(body: ResponseBody, guard: Guard, default_tokens: int) -> Asked:
    """What the guard is asked.

    Args:
        body: what was asked for.
        guard: who will answer.
        default_tokens: the most tokens of an answer for which the client names no limit.

    Raises:
        ApiError: a field asks for something that would not happen.
        UnsupportedContentError: an item that is not read here.
    """
    refuse_unheard(body, _NEUTRAL, _INSTEAD)
    limit = ("max_output_tokens", body.max_output_tokens)
    chat = input_chat(_history(body.input), body.instructions)
    return Asked(
        value=with_format(chat, "text", body.text),
        options={
            **options_of(body, guard, limit, default_tokens),
            **tool_options(_tools(body.tools), body.tool_choice, guard),
            **_text_options(body.text),
            **_included(body),
        },
        form=partial(_form, body),
    )


def _form(body: ResponseBody, verdict: Verdict, caller: Caller, *, refused: bool) -> ResponseAnswer:
    settings = {name: getattr(body, name) for name in _TOLD_AGAIN}
    if body.text is not None:
        settings["text"] = {"format": {"type": "text"}, **body.text}
    return ResponseAnswer(
        model=body.model,
        verdict=verdict,
        caller=caller,
        refused=refused,
        settings={name: value for name, value in settings.items() if value is not None},
        parallel_calls=body.parallel_tool_calls is not False,
    )


def _history(value: str | list[dict[str, Any]]) -> str | list[dict[str, Any]]:
    """The input without the probabilities that come with an earlier answer's text."""
    return value if isinstance(value, str) else [_plain(item) for item in value]


def _plain(item: dict[str, Any]) -> dict[str, Any]:
    content = item.get("content")
    if item.get("role") != "assistant" or not isinstance(content, list):
        return item
    parts = [
        {key: held for key, held in part.items() if key != "logprobs"}
        if isinstance(part, dict) and part.get("type") == "output_text"
        else part
        for part in content
    ]
    return {**item, "content": parts}


def _tools(tools: list[dict[str, Any]] | None) -> list[dict[str, Any]]:
    for tool in tools or ():
        if tool.get("type") != "function":
            raise unsupported(
                "tools",
                f"one of the tools has the type {str(tool.get('type'))[:80]!r}; this model calls "
                "functions alone, and nothing is run here",
            )
    return function_tools(tools)


def _text_options(text: dict[str, Any] | None) -> dict[str, Any]:
    given = text or {}
    if unknown := given.keys() - {"format", "verbosity"}:
        raise unsupported("text", f"text has the key {min(unknown)[:80]!r}, which is not read here")
    if given.get("verbosity") not in (None, "medium"):
        raise unsupported(
            "text", "this value of text.verbosity is not supported here; leave it out"
        )
    return format_options(given.get("format"), "text")


def _included(body: ResponseBody) -> dict[str, Any]:
    asked = set(body.include or ())
    if unknown := asked - _INCLUDABLE:
        raise unsupported("include", f"{min(unknown)[:80]!r} cannot be included here")
    if _LOGPROBS in asked:
        return {"logprobs": body.top_logprobs or 0}
    if body.top_logprobs:
        raise ApiError(
            f"top_logprobs needs {_LOGPROBS!r} in include",
            param="top_logprobs",
            code="invalid_value",
        )
    return {}
