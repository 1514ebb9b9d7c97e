"""An answer in the form of OpenAI's Responses, whole or as the typed events of a stream.

A response holds items: a message, whose parts are text or a refusal, and calls of functions. What
is told of an item before it is complete has the id that it will have in the end.
"""

from __future__ import annotations

import time
import uuid
from dataclasses import dataclass, field
from itertools import count
from typing import TYPE_CHECKING, Any, ClassVar

from guardrail.asgi.wire import FIELD
from guardrail.server.answers import call_arguments, call_id, ending_of, token_logprobs, told

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from guardrail.asgi.problems import Problem
    from guardrail.server.keys import Caller
    from guardrail.types import Result, ToolCall, Verdict

Datum = dict[str, Any]

_ERRORS = {429: "rate_limit_exceeded"}  # of the codes that clients know; more is in the message
# What a response says of its request where nobody says otherwise.
_SETTINGS: Mapping[str, Any] = {
    "background": False,
    "instructions": None,
    "max_output_tokens": None,
    "metadata": {},
    "parallel_tool_calls": True,
    "previous_response_id": None,
    "store": False,  # whatever was asked for: nothing is stored
    "temperature": None,
    "text": {"format": {"type": "text"}},
    "tool_choice": "auto",
    "tools": [],
    "top_p": None,
    "truncation": "disabled",
}


@dataclass(slots=True, kw_only=True)
class ResponseAnswer:
    """One answer; see `AnswerForm`. Its events are numbered as they are made.

    `refused` says that its words are the policy's; `settings` are told again, as the API does.
    Without `parallel_calls` only the first call of several is told.
    """

    done: ClassVar[bytes] = b""

    model: str
    verdict: Verdict
    caller: Caller
    refused: bool
    settings: Mapping[str, Any] = field(default_factory=dict)
    parallel_calls: bool = True
    id: str = field(default_factory=lambda: f"resp_{uuid.uuid4().hex}")
    created: int = field(default_factory=lambda: int(time.time()))
    _numbers: Iterator[int] = field(default_factory=count)
    _message_id: str = field(default_factory=lambda: f"msg_{uuid.uuid4().hex}")
    _begun: bool = False  # whether the message is

    def whole(self, results: Sequence[Result]) -> Datum:
        """A complete response."""
        [result] = results
        return self._whole(result, self._items(result))

    def opening(self) -> list[Datum]:
        """The response without a word, and its verdict."""
        begun = self._response("in_progress")
        return [
            self._event("response.created", response=begun, **{FIELD: self._told}),
            self._event("response.in_progress", response=begun),
        ]

    def words(self, number: int, text: str) -> list[Datum]:
        """A piece of the message's text, which begins with the first one."""
        kind = "response.refusal.delta" if self.refused else "response.output_text.delta"
        more: Datum = {} if self.refused else {"logprobs": []}
        return [*self._beginning(), self._part_event(kind, delta=text, **more)]

    def ending(self, number: int, result: Result, results: Sequence[Result] | None) -> list[Datum]:
        """The end of the message, the calls, and the whole response with its verdict."""
        items = self._items(result)
        events = self._message_end(items[0]) if items[0]["type"] == "message" else []
        for index, item in enumerate(items):
            if item["type"] == "function_call":
                events += self._call_events(index, item)
        whole = self._whole(result, items)
        closing = self._event(
            f"response.{whole['status']}", response=whole, **{FIELD: whole[FIELD]}
        )
        return [*events, closing]

    def failed(self, problem: Problem) -> Datum:
        """The response that failed. It holds none of the words that went before."""
        code = _ERRORS.get(problem.status, "server_error")
        error = {"code": code, "message": problem.message}
        return self._event("response.failed", response=self._response("failed", error=error))

    @property
    def _told(self) -> dict[str, object] | None:
        return told(self.verdict, self.caller)

    def _whole(self, result: Result, items: list[Datum]) -> Datum:
        reason = self._lacks(result)
        status = "completed" if reason is None else "incomplete"
        whole = self._response(status, output=items, usage=_usage(result))
        whole["completed_at"] = int(time.time()) if reason is None else None
        whole["incomplete_details"] = None if reason is None else {"reason": reason}
        return whole | {FIELD: told(result.verdict, self.caller)}

    def _lacks(self, result: Result) -> str | None:
        """Why it is incomplete: one that was cut while it was told is no refusal as a whole."""
        if result.refused_by_guard and not self.refused:
            return "content_filter"
        return ending_of(result).incomplete

    def _response(self, status: str, **more: Any) -> Datum:
        return {
            "id": self.id,
            "object": "response",
            "created_at": self.created,
            "status": status,
            "error": None,
            "incomplete_details": None,
            "model": self.model,
            "output": [],
            "usage": None,
            **_SETTINGS,
            **self.settings,
            **more,
        }

    def _event(self, kind: str, **data: Any) -> Datum:
        return {"type": kind, "sequence_number": next(self._numbers), **data}

    # ---- the message

    def _items(self, result: Result) -> list[Datum]:
        """The items of a complete answer; one without words or calls has an empty message."""
        calls = result.tool_calls[: None if self.parallel_calls else 1]
        items = [_call_item(call) for call in calls]
        if result.text or self._begun or not items:
            status = "incomplete" if self._lacks(result) else "completed"
            part = self._part(result.text, token_logprobs(result))
            items.insert(0, self._message(status, [part]))
        return items

    def _message(self, status: str, parts: list[Datum]) -> Datum:
        return {
            "type": "message",
            "id": self._message_id,
            "role": "assistant",
            "status": status,
            "content": parts,
        }

    def _part(self, text: str, logprobs: Sequence[Datum] = ()) -> Datum:
        if self.refused:
            return {"type": "refusal", "refusal": text}
        return {"type": "output_text", "text": text, "annotations": [], "logprobs": [*logprobs]}

    def _part_event(self, kind: str, **data: Any) -> Datum:
        at = {"item_id": self._message_id, "output_index": 0, "content_index": 0}
        return self._event(kind, **at, **data)

    def _beginning(self) -> list[Datum]:
        if self._begun:
            return []
        self._begun = True
        item = self._message("in_progress", [])
        return [
            self._event("response.output_item.added", output_index=0, item=item),
            self._part_event("response.content_part.added", part=self._part("")),
        ]

    def _message_end(self, item: Datum) -> list[Datum]:
        [part] = item["content"]
        if self.refused:
            done = ("response.refusal.done", {"refusal": part["refusal"]})
        else:
            done = (
                "response.output_text.done",
                {"text": part["text"], "logprobs": part["logprobs"]},
            )
        return [
            *self._beginning(),
            self._part_event(done[0], **done[1]),
            self._part_event("response.content_part.done", part=part),
            self._event("response.output_item.done", output_index=0, item=item),
        ]

    # ---- calls

    def _call_events(self, index: int, item: Datum) -> list[Datum]:
        at = {"item_id": item["id"], "output_index": index}
        written, begun = item["arguments"], {**item, "status": "in_progress", "arguments": ""}
        of_arguments = "response.function_call_arguments"
        return [
            self._event("response.output_item.added", output_index=index, item=begun),
            self._event(f"{of_arguments}.delta", **at, delta=written),
            self._event(f"{of_arguments}.done", **at, name=item["name"], arguments=written),
            self._event("response.output_item.done", output_index=index, item=item),
        ]


def _call_item(call: ToolCall) -> Datum:
    return {
        "type": "function_call",
        "id": f"fc_{uuid.uuid4().hex}",
        "call_id": call_id(call),
        "name": call.name,
        "arguments": call_arguments(call),
        "status": "completed",
    }


def _usage(result: Result) -> Datum:
    asked, said = result.prompt_tokens, result.completion_tokens
    return {
        "input_tokens": asked,
        "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
        "output_tokens": said,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": asked + said,
    }
