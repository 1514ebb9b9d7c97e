"""Answers in the OpenAI form: whole ones, and the chunks of streamed ones."""

from __future__ import annotations

import json
import time
import uuid
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from guardrail.server.verdicts import FIELD, told

if TYPE_CHECKING:
    from guardrail.server.keys import Caller
    from guardrail.types import Result, ToolCall, Verdict

_FINISH = {"stop": "stop", "length": "length", "flag": "content_filter"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Form:
    """What all parts of one answer have in common."""

    model: str
    fingerprint: str
    caller: Caller
    parallel_calls: bool = True
    id: str = field(default_factory=lambda: f"chatcmpl-{uuid.uuid4().hex}")
    created: int = field(default_factory=lambda: int(time.time()))

    def whole(self, result: Result) -> dict[str, Any]:
        """A complete answer."""
        calls = self._calls(result)
        message: dict[str, Any] = {
            "role": "assistant",
            "content": None if calls and not result.text else result.text,
            "refusal": result.text if result.refused_by_guard else None,
        }
        if calls:
            message["tool_calls"] = calls
        choice = {
            "index": 0,
            "message": message,
            "finish_reason": self._finish(result),
            "logprobs": None,
        }
        return {
            **self._head("chat.completion"),
            "choices": [choice],
            "usage": _usage(result),
            FIELD: told(result.verdict, self.caller),
        }

    def chunk(
        self, delta: dict[str, Any], finish: str | None = None, **more: Any
    ) -> dict[str, Any]:
        """A part of a streamed answer."""
        choice = {"index": 0, "delta": delta, "finish_reason": finish, "logprobs": None}
        return {**self._head("chat.completion.chunk"), "choices": [choice], **more}

    def last_chunks(self, result: Result, *, usage: bool) -> list[dict[str, Any]]:
        """What follows a stream's words: calls, why it ended, and token counts if wanted.

        The verdict stands in the very last of them.
        """
        verdict = {FIELD: told(result.verdict, self.caller)}
        calls = [{"index": i, **call} for i, call in enumerate(self._calls(result))]
        none: dict[str, Any] = {"usage": None} if usage else {}
        chunks = [self.chunk({"tool_calls": [call]}, **none) for call in calls]
        if result.refused_by_guard:
            chunks.append(self.chunk({"refusal": result.text}, **none))
        chunks.append(self.chunk({}, self._finish(result), **none))
        if usage:
            head = self._head("chat.completion.chunk")
            chunks.append({**head, "choices": [], "usage": _usage(result)})
        return [*chunks[:-1], chunks[-1] | verdict]

    def _head(self, kind: str) -> dict[str, Any]:
        return {
            "id": self.id,
            "object": kind,
            "created": self.created,
            "model": self.model,
            "system_fingerprint": self.fingerprint,
        }

    def _calls(self, result: Result) -> list[dict[str, Any]]:
        wanted = None if self.parallel_calls else 1
        return [_call(call) for call in result.tool_calls[:wanted]]

    def _finish(self, result: Result) -> str:
        """Calls of an answer that was cut may not be all of them, so it does not end in calls."""
        finish = _FINISH[result.finish_reason]
        return "tool_calls" if finish == "stop" and result.tool_calls else finish


def form_of(verdict: Verdict, model: str, caller: Caller, *, parallel_calls: bool | None) -> Form:
    """A new answer's form; without `parallel_calls` only the first call of several is told."""
    return Form(
        model=model,
        fingerprint=verdict.artefact_id,
        caller=caller,
        parallel_calls=parallel_calls is not False,
    )


def _call(call: ToolCall) -> dict[str, Any]:
    arguments = call.arguments
    if not isinstance(arguments, str):
        arguments = json.dumps(arguments, ensure_ascii=False)
    return {
        "id": call.id or f"call_{uuid.uuid4().hex[:24]}",
        "type": "function",
        "function": {"name": call.name, "arguments": arguments},
    }


def _usage(result: Result) -> dict[str, int]:
    asked, said = result.prompt_tokens, result.completion_tokens
    return {"prompt_tokens": asked, "completion_tokens": said, "total_tokens": asked + said}
