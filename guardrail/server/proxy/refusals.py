"""The policy's refusal in the form of an answer, for requests that do not reach the upstream."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from guardrail.server.completions import form_of
from guardrail.server.proxy.events import DONE, event
from guardrail.server.verdicts import FIELD, told
from guardrail.types import Result, Verdict

if TYPE_CHECKING:
    from guardrail.server.keys import Caller

_NO_TOKENS = {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}
_FILTERED = "content_filter"


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """What is said, to whom, and the verdict beside it."""

    text: str
    model: str
    caller: Caller
    verdict: Verdict
    created: int = field(default_factory=lambda: int(time.time()))

    @property
    def told(self) -> dict[str, object] | None:
        """What its receiver may know of the verdict."""
        return told(self.verdict, self.caller)

    @property
    def request_id(self) -> str:
        """The name of the request."""
        return self.caller.request_id

    def result(self) -> Result:
        """As the guarded model itself would have refused, but for the tokens it read."""
        return Result(
            text=self.text,
            verdict=self.verdict,
            finish_reason="flag",
            prompt_tokens=0,
            completion_tokens=0,
            refused_by_guard=True,
        )


def chat(refusal: Refusal) -> dict[str, Any]:
    """A chat completion."""
    form = form_of(refusal.verdict, refusal.model, refusal.caller, parallel_calls=None)
    return form.whole(refusal.result())


def chat_events(refusal: Refusal, usage: bool) -> list[bytes]:
    """A chat completion's stream."""
    form = form_of(refusal.verdict, refusal.model, refusal.caller, parallel_calls=None)
    opening = form.chunk({"role": "assistant", "content": ""}, usage=usage)
    chunks = [
        opening | {FIELD: refusal.told},
        form.chunk({"content": refusal.text}, usage=usage),
        *form.last_chunks(refusal.result(), usage=usage),
    ]
    return [*map(event, chunks), DONE]


def completion(refusal: Refusal) -> dict[str, Any]:
    """A text completion."""
    return {**_text(refusal, refusal.text, _FILTERED), "usage": _NO_TOKENS, FIELD: refusal.told}


def completion_events(refusal: Refusal, usage: bool) -> list[bytes]:
    """A text completion's stream."""
    chunks = [_text(refusal, refusal.text), _text(refusal, "", _FILTERED)]
    if usage:
        chunks.append({**chunks[0], "choices": [], "usage": _NO_TOKENS})
    chunks[0] = {**chunks[0], FIELD: refusal.told}
    chunks[-1] = {**chunks[-1], FIELD: refusal.told}
    return [*map(event, chunks), DONE]


def response(refusal: Refusal) -> dict[str, Any]:
    """A response, incomplete because of its content."""
    usage = {
        "input_tokens": 0,
        "input_tokens_details": {"cached_tokens": 0},
        "output_tokens": 0,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": 0,
    }
    return {
        "id": f"resp_{refusal.request_id}",
        "object": "response",
        "created_at": refusal.created,
        "status": "incomplete",
        "incomplete_details": {"reason": _FILTERED},
        "error": None,
        "instructions": None,
        "metadata": {},
        "model": refusal.model,
        "output": [_item(refusal, "completed", [_part(refusal.text)])],
        "parallel_tool_calls": True,
        "tool_choice": "auto",
        "tools": [],
        "usage": usage,
        FIELD: refusal.told,
    }


def response_events(refusal: Refusal, usage: bool) -> list[bytes]:
    """A response's stream."""
    whole = response(refusal)
    begun = {**whole, "status": "in_progress", "output": [], "incomplete_details": None}
    item = _item(refusal, "in_progress", [])
    at = {"item_id": item["id"], "output_index": 0, "content_index": 0}
    steps: list[tuple[str, dict[str, Any]]] = [
        ("response.created", {"response": begun, FIELD: refusal.told}),
        ("response.output_item.added", {"output_index": 0, "item": item}),
        ("response.content_part.added", {**at, "part": _part("")}),
        ("response.refusal.delta", {**at, "delta": refusal.text}),
        ("response.refusal.done", {**at, "refusal": refusal.text}),
        ("response.content_part.done", {**at, "part": _part(refusal.text)}),
        ("response.output_item.done", {"output_index": 0, "item": whole["output"][0]}),
        ("response.incomplete", {"response": whole, FIELD: refusal.told}),
    ]
    return [
        event({"type": kind, "sequence_number": i, **data}, kind)
        for i, (kind, data) in enumerate(steps)
    ]


def _text(refusal: Refusal, text: str, finish: str | None = None) -> dict[str, Any]:
    choice = {"index": 0, "text": text, "finish_reason": finish, "logprobs": None}
    return {
        "id": f"cmpl-{refusal.request_id}",
        "object": "text_completion",
        "created": refusal.created,
        "model": refusal.model,
        "choices": [choice],
    }


def _item(refusal: Refusal, status: str, content: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "type": "message",
        "id": f"msg_{refusal.request_id}",
        "role": "assistant",
        "status": status,
        "content": content,
    }


def _part(text: str) -> dict[str, Any]:
    return {"type": "refusal", "refusal": text}
