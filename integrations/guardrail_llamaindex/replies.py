"""What a guard answers -> LlamaIndex's responses, whole and in chunks."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, TypeVar

from llama_index.core.base.llms import types
from llama_index.core.base.llms.types import (
    ChatMessage,
    ChatResponse,
    CompletionResponse,
    MessageRole,
    TextBlock,
)

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Generator

    from guardrail.online.streams import AsyncGuardStream, GuardStream
    from guardrail.types import Result, ToolCall, Verdict

R = TypeVar("R", ChatResponse, CompletionResponse)

# The first releases of 0.14 keep calls in `additional_kwargs` alone.
_CALL_BLOCK: Any = getattr(types, "ToolCallBlock", None)


def whole(result: Result, *, delta: str | None = None, single_call: bool = False) -> ChatResponse:
    """A complete answer; of several calls only the first with `single_call`."""
    calls = result.tool_calls[:1] if single_call else result.tool_calls
    usage = {
        "prompt_tokens": result.prompt_tokens,
        "completion_tokens": result.completion_tokens,
        "total_tokens": result.prompt_tokens + result.completion_tokens,
    }
    verdict = result.verdict.to_dict()
    raw = {
        "verdict": verdict,
        "finish_reason": result.finish_reason,
        "usage": usage,
        "refused_by_guard": result.refused_by_guard,
    }
    return ChatResponse(
        message=_message(result.text, calls),
        raw=raw,
        delta=delta,
        additional_kwargs={**usage, "verdict": dict(verdict)},
    )


def refusal(words: str, verdict: Verdict) -> ChatResponse:
    """What stands for an answer of a model that was not asked."""
    raw = {"finish_reason": "flag", "refused_by_guard": True}
    return told(ChatResponse(message=_message(words, ()), raw=raw, delta=words), verdict)


def told(response: R, verdict: Verdict) -> R:
    """A response with the verdict beside it; `raw` is another model's, and may be an object."""
    plain, raw = verdict.to_dict(), response.raw
    if raw is None or isinstance(raw, dict):
        raw = {**(raw or {}), "verdict": plain}
    beside = {**response.additional_kwargs, "verdict": dict(plain)}
    return response.model_copy(update={"raw": raw, "additional_kwargs": beside})


def as_completion(response: ChatResponse) -> CompletionResponse:
    """The same answer as a completion."""
    return CompletionResponse(
        text=response.message.content or "",
        raw=response.raw,
        delta=response.delta,
        additional_kwargs=response.additional_kwargs,
    )


def chunks(stream: GuardStream, *, single_call: bool = False) -> Generator[ChatResponse]:
    """The answer so far with every chunk; last, without new text, the whole with its figures."""
    text = ""
    with stream:
        for delta in stream:
            text += delta
            yield _so_far(text, delta, stream.verdict)
        if stream.result is not None:
            yield whole(stream.result, delta="", single_call=single_call)


async def achunks(
    stream: AsyncGuardStream, *, single_call: bool = False
) -> AsyncGenerator[ChatResponse]:
    """`chunks` for `async for`."""
    text = ""
    async with stream:
        async for delta in stream:
            text += delta
            yield _so_far(text, delta, stream.verdict)
        if stream.result is not None:
            yield whole(stream.result, delta="", single_call=single_call)


def completions(responses: Generator[ChatResponse]) -> Generator[CompletionResponse]:
    """A stream of answers as completions."""
    for response in responses:
        yield as_completion(response)


async def acompletions(
    responses: AsyncGenerator[ChatResponse],
) -> AsyncGenerator[CompletionResponse]:
    """`completions` for `async for`."""
    async for response in responses:
        yield as_completion(response)


def _so_far(text: str, delta: str, verdict: Verdict | None) -> ChatResponse:
    told = {} if verdict is None else {"verdict": verdict.to_dict()}
    return ChatResponse(
        message=_message(text, ()), raw=told, delta=delta, additional_kwargs=dict(told)
    )


def _message(text: str, calls: tuple[ToolCall, ...]) -> ChatMessage:
    blocks: list[Any] = [TextBlock(text=text)] if text or not calls else []
    extra: dict[str, Any] = {}
    if calls:
        extra["tool_calls"] = [_openai_call(call) for call in calls]
        if _CALL_BLOCK is not None:
            blocks += [_call_block(call) for call in calls]
    return ChatMessage(role=MessageRole.ASSISTANT, blocks=blocks, additional_kwargs=extra)


def _call_block(call: ToolCall) -> Any:
    return _CALL_BLOCK(
        tool_call_id=call.id, tool_name=call.name, tool_kwargs=_plain(call.arguments)
    )


def _openai_call(call: ToolCall) -> dict[str, Any]:
    arguments = _plain(call.arguments)
    text = arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
    return {
        "id": call.id,
        "type": "function",
        "function": {"name": call.name, "arguments": text},
    }


def _plain(arguments: Any) -> Any:
    return arguments if isinstance(arguments, str) else dict(arguments)
