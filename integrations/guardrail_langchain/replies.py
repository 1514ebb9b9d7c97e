"""A guard's results and streams -> LangChain messages."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from langchain_core.messages import AIMessage, AIMessageChunk
from langchain_core.messages.tool import tool_call, tool_call_chunk
from langchain_core.outputs import ChatGenerationChunk
from langchain_core.runnables import RunnableGenerator

from guardrail.policy.acting import stopped
from guardrail.types import Verdict

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from langchain_core.messages.ai import UsageMetadata
    from langchain_core.runnables import Runnable

    from guardrail import Result


def message(result: Result, model: str) -> AIMessage:
    """The answer as a message; its verdict, and logprobs if asked for, in `response_metadata`."""
    likely: dict[str, Any] = {}
    if result.logprobs is not None:
        likely["logprobs"] = {"content": [token.to_dict() for token in result.logprobs]}
    return AIMessage(
        content=result.text,
        tool_calls=[
            tool_call(name=call.name, args=_arguments(call.arguments), id=call.id)
            for call in result.tool_calls
        ],
        usage_metadata=_usage(result),
        response_metadata=metadata(result.verdict, model)
        | {"finish_reason": finish_reason(result), "refused_by_guard": result.refused_by_guard}
        | likely,
    )


def text_chunk(text: str) -> ChatGenerationChunk:
    """A piece of an answer."""
    return ChatGenerationChunk(message=AIMessageChunk(content=text))


def last_chunk(result: Result, model: str) -> ChatGenerationChunk:
    """What comes after the last piece: calls, counts and the verdict, once."""
    whole = message(result, model)
    return ChatGenerationChunk(
        message=AIMessageChunk(
            content="",
            tool_call_chunks=[
                tool_call_chunk(name=c["name"], args=json.dumps(c["args"]), id=c["id"], index=i)
                for i, c in enumerate(whole.tool_calls)
            ],
            usage_metadata=whole.usage_metadata,
            response_metadata=whole.response_metadata,
            chunk_position="last",
        )
    )


def refusal(text: str, verdict: Verdict, model: str = "guardrail") -> AIMessage:
    """The policy's refusal where no model was asked."""
    return AIMessage(
        content=text,
        response_metadata=metadata(verdict, model)
        | {"finish_reason": "flag", "refused_by_guard": True},
    )


def metadata(verdict: Verdict, model: str) -> dict[str, Any]:
    """What a message says about how it came about."""
    return {
        "model_name": model,
        "model_provider": "guardrail",
        "verdict": verdict.to_dict(words=False),
        "artefact_id": verdict.artefact_id,
    }


def no_refusals() -> Runnable[AIMessage, AIMessage]:
    """A step that hands answers on, and raises in place of a refusal what `stopped` says."""

    def checked(answers: Iterator[AIMessage]) -> Iterator[AIMessage]:
        for answer in answers:
            yield _unrefused(answer)

    async def achecked(answers: AsyncIterator[AIMessage]) -> AsyncIterator[AIMessage]:
        async for answer in answers:
            yield _unrefused(answer)

    return RunnableGenerator(checked, achecked)


def _unrefused(answer: AIMessage) -> AIMessage:
    told = answer.response_metadata
    if told.get("refused_by_guard"):
        raise stopped(Verdict.from_dict(told["verdict"]))
    return answer


def finish_reason(result: Result) -> str:
    """As the guard says it, but for calls, which have a name of their own."""
    return "tool_calls" if result.tool_calls else result.finish_reason


def _arguments(value: Any) -> dict[str, Any]:
    return dict(value)


def _usage(result: Result) -> UsageMetadata:
    return {
        "input_tokens": result.prompt_tokens,
        "output_tokens": result.completion_tokens,
        "total_tokens": result.prompt_tokens + result.completion_tokens,
    }
