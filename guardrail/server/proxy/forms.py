"""The three ways of asking a model that the OpenAI API has: their events, ends and refusals.

Events are bytes: cut into whole events, looked into, and otherwise left alone. A refusal is the
policy's, in the form of an answer, for requests that do not reach the upstream.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from guardrail.inputs.strict_json import strict_json
from guardrail.server.answers import DONE, FIELD, event, form_of, told
from guardrail.types import Result, Verdict

if TYPE_CHECKING:
    from guardrail.server.keys import Caller


Data = Mapping[str, Any]

# Atomic, so that the two bytes of one line end never count as two line ends.
_BLANK_LINE = re.compile(rb"(?>\r\n|\n|\r)(?>\r\n|\n|\r)")
_LINE_END = re.compile(r"\r\n|\n|\r")
_DONE = "[DONE]"


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


def _refused_chat(refusal: Refusal) -> dict[str, Any]:
    """A chat completion."""
    form = form_of(refusal.verdict, refusal.model, refusal.caller, parallel_calls=None)
    return form.whole(refusal.result())


def _refused_chat_events(refusal: Refusal, usage: bool) -> list[bytes]:
    """A chat completion's stream."""
    form = form_of(refusal.verdict, refusal.model, refusal.caller, parallel_calls=None)
    opening = form.chunk({"role": "assistant", "content": ""}, usage=usage)
    chunks = [
        opening | {FIELD: refusal.told},
        form.chunk({"content": refusal.text}, usage=usage),
        *form.last_chunks(refusal.result(), usage=usage),
    ]
    return [*map(event, chunks), DONE]


def _refused_completion(refusal: Refusal) -> dict[str, Any]:
    """A text completion."""
    return {**_text(refusal, refusal.text, _FILTERED), "usage": _NO_TOKENS, FIELD: refusal.told}


def _refused_completion_events(refusal: Refusal, usage: bool) -> list[bytes]:
    """A text completion's stream."""
    chunks = [_text(refusal, refusal.text), _text(refusal, "", _FILTERED)]
    if usage:
        chunks.append({**chunks[0], "choices": [], "usage": _NO_TOKENS})
    chunks[0] = {**chunks[0], FIELD: refusal.told}
    chunks[-1] = {**chunks[-1], FIELD: refusal.told}
    return [*map(event, chunks), DONE]


def _refused_response(refusal: Refusal) -> dict[str, Any]:
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


def _refused_response_events(refusal: Refusal, usage: bool) -> list[bytes]:
    """A response's stream."""
    whole = _refused_response(refusal)
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Form:
    """An endpoint: the path below the upstream's address, and the key that holds what is asked.

    `closes` says which event of a stream carries the verdict once more; `ends` whether the stream
    is whole with this event. `refused` and `refused_events` answer in the upstream's place.
    """

    path: str
    source: str
    closes: Callable[[Data, bool], bool]
    ends: Callable[[Event], bool]
    refused: Callable[[Refusal], dict[str, Any]]
    refused_events: Callable[[Refusal, bool], list[bytes]]


def wants_usage(body: Data) -> bool:
    """Whether a stream's usage is asked for."""
    options = body.get("stream_options")
    return isinstance(options, Mapping) and options.get("include_usage") is True


def _closes_choices(data: Data, usage_wanted: bool) -> bool:
    choices = data.get("choices")
    if not isinstance(choices, list):
        return False
    if usage_wanted:
        return not choices and bool(data.get("usage"))
    return any(isinstance(each, Mapping) and each.get("finish_reason") for each in choices)


def _marked_done(event: Event) -> bool:
    return event.done


_LAST = frozenset({"response.completed", "response.incomplete", "response.failed", "error"})


def _closes_response(data: Data, usage_wanted: bool) -> bool:
    return data.get("type") in _LAST


def _response_ends(event: Event) -> bool:
    return event.done or _closes_response(event.data or {}, False)


CHAT = Form(
    path="/chat/completions",
    source="messages",
    closes=_closes_choices,
    ends=_marked_done,
    refused=_refused_chat,
    refused_events=_refused_chat_events,
)
COMPLETION = Form(
    path="/completions",
    source="prompt",
    closes=_closes_choices,
    ends=_marked_done,
    refused=_refused_completion,
    refused_events=_refused_completion_events,
)
RESPONSE = Form(
    path="/responses",
    source="input",
    closes=_closes_response,
    ends=_response_ends,
    refused=_refused_response,
    refused_events=_refused_response_events,
)
