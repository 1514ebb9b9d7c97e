"""What of a chat's fields the guarded model honours, as options of `Guard.agenerate`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from guardrail.server.api_error import ApiError

if TYPE_CHECKING:
    from guardrail.guard import Guard
    from guardrail.server.chat_schema import ChatBody

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
