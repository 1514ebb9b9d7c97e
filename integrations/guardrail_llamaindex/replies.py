"""What goes to a guard's model beside messages, and LlamaIndex's responses of what comes back.

A violation is no `Exception`, so no retry and no fallback answers what was refused. LlamaIndex
passes nothing but an `Exception` on to whoever reads a stream that another task or thread writes,
as workflows and chat engines do; such a stream would never end. Its instrumentation tells of both,
and here the reader is told.
"""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from llama_index.core.base.llms import types
from llama_index.core.base.llms.types import (
    ChatMessage,
    ChatResponse,
    CompletionResponse,
    MessageRole,
    TextBlock,
)
from llama_index.core.chat_engine.types import StreamingAgentChatResponse
from llama_index.core.instrumentation.span_handlers import NullSpanHandler
from llama_index.core.llms.llm import ToolSelection
from llama_index.core.workflow import Context, StopEvent
from llama_index_instrumentation import get_dispatcher

from guardrail.errors import GuardrailViolation
from guardrail.inputs.tools import tool_choice
from guardrail.policy.acting import stopped
from guardrail.types import Verdict
from guardrail_llamaindex.messages import to_tools, tool_calls

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Generator, Mapping

    from guardrail.online.streams import AsyncGuardStream, GuardStream
    from guardrail.types import Result, TokenLogprob, ToolCall

R = TypeVar("R", ChatResponse, CompletionResponse)

# The first releases of 0.14 keep calls in `additional_kwargs` alone.
_CALL_BLOCK: Any = getattr(types, "ToolCallBlock", None)


class Offer(NamedTuple):
    """The tools that go with a request, and whether one of them must be called."""

    tools: list[Mapping[str, Any]] | None = None
    choice: str | None = None
    single_call: bool = False


def offer(options: dict[str, Any]) -> Offer:
    """Take what is said about tools out of a call's keywords.

    `tool_choice` may be None or "auto", "any" or "required" (the answer is a call), "none" (no tool
    is offered), or name the tool that must be called.

    Raises:
        ConfigurationError: `tool_choice` names no tool that was given.
    """
    tools = to_tools(options.pop("tools", None) or ())
    choice = tool_choice(options.pop("tool_choice", None), tools)
    single = not options.pop("allow_parallel_tool_calls", True)
    return Offer(tools or None, choice, single)


def whole(result: Result, *, delta: str | None = None, single_call: bool = False) -> ChatResponse:
    """A complete answer; of several calls only the first with `single_call`."""
    calls = result.tool_calls[:1] if single_call else result.tool_calls
    usage = {
        "prompt_tokens": result.prompt_tokens,
        "completion_tokens": result.completion_tokens,
        "total_tokens": result.prompt_tokens + result.completion_tokens,
    }
    verdict = result.verdict.to_dict(words=False)
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
        logprobs=None if result.logprobs is None else [*map(_likely, result.logprobs)],
        additional_kwargs={**usage, "verdict": dict(verdict)},
    )


def _likely(token: TokenLogprob) -> list[types.LogProb]:
    """A token, and then the likeliest ones in its place."""
    return [
        types.LogProb(token=each.text, logprob=each.logprob, bytes=list(each.raw))
        for each in (token, *token.top)
    ]


def refusal(words: str, verdict: Verdict) -> ChatResponse:
    """What stands for an answer of a model that was not asked."""
    raw = {"finish_reason": "flag", "refused_by_guard": True}
    return told(ChatResponse(message=_message(words, ()), raw=raw, delta=words), verdict)


def told(response: R, verdict: Verdict) -> R:
    """A response with the verdict beside it; `raw` is another model's, and may be an object."""
    plain, raw = verdict.to_dict(words=False), response.raw
    if raw is None or isinstance(raw, dict):
        raw = {**(raw or {}), "verdict": plain}
    beside = {**response.additional_kwargs, "verdict": dict(plain)}
    return response.model_copy(update={"raw": raw, "additional_kwargs": beside})


def is_refusal(raw: Any) -> bool:
    """Whether a response's `raw` says that the guard refused the request."""
    return isinstance(raw, dict) and bool(raw.get("refused_by_guard"))


def raise_refusal(raw: Any) -> None:
    """Raise a refusal where it has no place, such as where a call must be.

    Raises:
        GuardrailViolation, DetectorError: a response's `raw` says that the guard refused.
    """
    if is_refusal(raw):
        raise stopped(Verdict.from_dict(raw["verdict"]))


def raise_cut(raw: Any) -> None:
    """Raise where an object or a call must come, and its length ended the answer before.

    Raises:
        ValueError: a response's `raw` says so.
    """
    if isinstance(raw, dict) and raw.get("finish_reason") == "length":
        raise ValueError(
            "the answer was cut off before its form was complete; allow more `max_new_tokens`"
        )


def as_completion(response: ChatResponse) -> CompletionResponse:
    """The same answer as a completion."""
    return CompletionResponse(
        text=response.message.content or "",
        raw=response.raw,
        delta=response.delta,
        logprobs=response.logprobs,
        additional_kwargs=response.additional_kwargs,
    )


def selections(response: ChatResponse, *, required: bool) -> list[ToolSelection]:
    """The calls of an answer as LlamaIndex makes them.

    Raises:
        GuardrailViolation, DetectorError: a call is `required`, and the guard refused the request.
        ValueError: a call is `required` and there is none, or its arguments are no JSON object.
    """
    calls = tool_calls(response.message)
    if required and not calls:
        raise_refusal(response.raw)
        raise ValueError("expected a tool call; the model answered with text only")
    return [
        ToolSelection(
            tool_id=call.get("id") or "",
            tool_name=call["function"]["name"],
            tool_kwargs=_arguments(call["function"]["arguments"]),
        )
        for call in calls
    ]


def _arguments(arguments: Any) -> dict[str, Any]:
    read = json.loads(arguments or "{}") if isinstance(arguments, str) else arguments
    if not isinstance(read, dict):
        raise ValueError(f"a tool call's arguments must be an object, not {type(read).__name__}")
    return read


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
    told = {} if verdict is None else {"verdict": verdict.to_dict(words=False)}
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
    return {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": text}}


def _plain(arguments: Any) -> Any:
    return arguments if isinstance(arguments, str) else dict(arguments)


def end_streams() -> None:
    """See to it, once for all workflows and chat engines of this process."""
    for name, kind in _SPANS.items():
        spans = get_dispatcher(name)
        if not any(isinstance(handler, kind) for handler in spans.span_handlers):
            spans.add_span_handler(kind())


class _OnViolation(NullSpanHandler):
    """Looks at spans that end in a violation."""

    def span_drop(self, *args: Any, err: BaseException | None = None, **kwargs: Any) -> None:
        """A span has ended in an error."""
        if isinstance(err, GuardrailViolation):
            self.violated(kwargs.get("instance"), err)

    def violated(self, instance: Any, violation: GuardrailViolation) -> None:
        """Tell whoever reads."""


class _OfSteps(_OnViolation):
    """Ends the events of a workflow whose step has raised; who awaits the run gets the error."""

    @classmethod
    def class_name(cls) -> str:
        return "GuardrailViolationsOfSteps"

    def violated(self, instance: Any, violation: GuardrailViolation) -> None:
        try:
            asyncio.get_running_loop()
        except RuntimeError:  # a step that is no coroutine runs in a thread, which has no events
            return
        Context.get_step_context().write_event_to_stream(StopEvent())


class _OfChats(_OnViolation):
    """Raises the violation where a chat engine's stream is read, as LlamaIndex does its errors."""

    @classmethod
    def class_name(cls) -> str:
        return "GuardrailViolationsOfChats"

    def violated(self, instance: Any, violation: GuardrailViolation) -> None:
        if not isinstance(instance, StreamingAgentChatResponse):
            return
        told: Any = violation
        instance.exception = told
        instance.put_in_queue("")
        if instance.is_function_false_event is not None:  # written by a task
            instance.is_function_false_event.set()
            instance.aput_in_queue("")


_SPANS = {"workflows.workflow": _OfSteps, "llama_index.core.chat_engine.types": _OfChats}
