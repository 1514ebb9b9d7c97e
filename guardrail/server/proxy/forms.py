"""The three ways of asking a model that the OpenAI API has: their events, ends and refusals.

Events are bytes: cut into whole events, looked into, and otherwise left alone. A refusal is the
policy's, in the form of an answer, for requests that do not reach the upstream.
"""

from __future__ import annotations

import json
import re
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from guardrail.inputs.strict_json import strict_json
from guardrail.server.answers import DONE, FIELD, ChatCompletion, event, told
from guardrail.types import Result, Verdict

if TYPE_CHECKING:
    from guardrail.server.keys import Caller


Data = Mapping[str, Any]

# Atomic, so that the two bytes of one line end never count as two line ends.
_BLANK_LINE = re.compile(rb"(?>\r\n|\n|\r)(?>\r\n|\n|\r)")
_LINE_END = re.compile(r"\r\n|\n|\r")
_DONE = "[DONE]"
_LAST = frozenset({"response.completed", "response.incomplete", "response.failed", "error"})
_NO_TOKENS = {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}
_FILTERED = "content_filter"


class EventTooLargeError(ValueError):
    """An event does not end within the bytes that are allowed for one."""


class Splitter:
    """Cuts a stream of bytes into events, each with the blank line that ends it."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._data, self._seen = bytearray(), 0

    def feed(self, chunk: bytes) -> list[bytes]:
        """The events that are whole now.

        Raises:
            EventTooLargeError: what is not whole yet is larger than allowed.
        """
        self._data += chunk
        found, start = [], 0
        where = max(self._seen - 3, 0)  # a blank line may have come in two pieces
        while match := _BLANK_LINE.search(self._data, where):
            found.append(bytes(self._data[start : match.end()]))
            start = where = match.end()
        del self._data[:start]
        self._seen = len(self._data)
        if self._seen > self._max_bytes or any(len(event) > self._max_bytes for event in found):
            raise EventTooLargeError
        return found

    def rest(self) -> bytes:
        """What is left when the stream has ended."""
        return bytes(self._data)


class Event:
    """One event. `data` is its JSON object; None for comments and for the closing mark (`done`).

    `clean` takes out of the data what must not go on; `raw` is the event without it.

    Raises:
        ValueError: it is no UTF-8, or its data are neither an object nor the mark.
    """

    def __init__(self, raw: bytes, clean: Callable[[Any], Any] = lambda value: value) -> None:
        self.raw, self.done = raw, False
        self.data: dict[str, Any] | None = None
        self._lines = _LINE_END.split(raw.decode("utf-8").removeprefix("\ufeff"))
        texts = [line[5:].removeprefix(" ") for line in self._lines if _is_data(line)]
        text = "\n".join(texts).strip()
        if text == _DONE:
            self.done = True
        elif text:
            try:
                found = strict_json(text)
                data = clean(found)
            except RecursionError as error:
                raise ValueError("nested too deep") from error
            if not isinstance(data, dict):
                raise ValueError("the data are no object")
            self.data = data
            if data != found:
                self.raw = self._with(data)

    def with_field(self, name: str, value: object) -> bytes:
        """The event with a key in its data; its other lines stay."""
        return self._with({**(self.data or {}), name: value})

    def _with(self, value: object) -> bytes:
        kept = [line for line in self._lines if line and not _is_data(line)]
        data = json.dumps(value)
        return ("\n".join([*kept, f"data: {data}"]) + "\n\n").encode()


def _is_data(line: str) -> bool:
    return line.startswith("data:") or line == "data"


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """What is said, to whom, and the verdict beside it."""

    text: str
    model: str
    caller: Caller
    verdict: Verdict
    usage: bool = False  # whether a stream is to tell token counts
    created: int = field(default_factory=lambda: int(time.time()))

    @property
    def told(self) -> dict[str, object] | None:
        """What its receiver may know of the verdict."""
        return told(self.verdict, self.caller)

    @property
    def request_id(self) -> str:
        """The name of the request."""
        return self.caller.request_id

    @property
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

    @property
    def chat(self) -> ChatCompletion:
        """As a chat completion."""
        return ChatCompletion(
            model=self.model, verdict=self.verdict, caller=self.caller, usage=self.usage
        )


class Form(ABC):
    """An endpoint: the path below the upstream's address, and the key that holds what is asked."""

    path: ClassVar[str]
    source: ClassVar[str]

    def closes(self, data: Data, usage_wanted: bool) -> bool:
        """Whether this event of a stream carries the verdict once more."""
        choices = data.get("choices")
        if not isinstance(choices, list):
            return False
        if usage_wanted:
            return not choices and bool(data.get("usage"))
        return any(isinstance(each, Mapping) and each.get("finish_reason") for each in choices)

    def ends(self, event: Event) -> bool:
        """Whether a stream is whole with this event."""
        return event.done

    @abstractmethod
    def refused(self, refusal: Refusal) -> dict[str, Any]:
        """An answer in the upstream's place."""

    @abstractmethod
    def refused_events(self, refusal: Refusal) -> list[bytes]:
        """A stream in the upstream's place."""


class ChatForm(Form):
    """Chat completions."""

    path, source = "/chat/completions", "messages"

    def refused(self, refusal: Refusal) -> dict[str, Any]:
        """See `Form`."""
        return refusal.chat.whole(refusal.result)

    def refused_events(self, refusal: Refusal) -> list[bytes]:
        """See `Form`."""
        chat = refusal.chat
        words = chat.chunk({"content": refusal.text})
        return [*map(event, [chat.opening(), words, *chat.closing(refusal.result)]), DONE]


class CompletionForm(Form):
    """Text completions."""

    path, source = "/completions", "prompt"

    def refused(self, refusal: Refusal) -> dict[str, Any]:
        """See `Form`."""
        return {**_text(refusal, refusal.text, _FILTERED), "usage": _NO_TOKENS, FIELD: refusal.told}

    def refused_events(self, refusal: Refusal) -> list[bytes]:
        """See `Form`."""
        chunks = [_text(refusal, refusal.text), _text(refusal, "", _FILTERED)]
        if refusal.usage:
            chunks.append({**chunks[0], "choices": [], "usage": _NO_TOKENS})
        chunks[0] = {**chunks[0], FIELD: refusal.told}
        chunks[-1] = {**chunks[-1], FIELD: refusal.told}
        return [*map(event, chunks), DONE]


class ResponseForm(Form):
    """Responses; a refused one is incomplete because of its content."""

    path, source = "/responses", "input"

    def closes(self, data: Data, usage_wanted: bool) -> bool:
        """See `Form`."""
        return data.get("type") in _LAST

    def ends(self, event: Event) -> bool:
        """See `Form`."""
        return event.done or self.closes(event.data or {}, False)

    def refused(self, refusal: Refusal) -> dict[str, Any]:
        """See `Form`."""
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

    def refused_events(self, refusal: Refusal) -> list[bytes]:
        """See `Form`."""
        whole = self.refused(refusal)
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


CHAT, COMPLETION, RESPONSE = ChatForm(), CompletionForm(), ResponseForm()


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
