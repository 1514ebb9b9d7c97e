"""The three ways of asking a model that the OpenAI API has: their ends and refusals.

A refusal is the policy's, in the form of an answer, for requests that do not reach the upstream.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from guardrail.asgi.wire import DONE, FIELD, event
from guardrail.server.answers import ChatCompletion, told
from guardrail.server.response_form import ResponseAnswer
from guardrail.server.watching import Spoken
from guardrail.types import Result, Verdict

if TYPE_CHECKING:
    from guardrail.asgi.wire import Event
    from guardrail.server.answers import AnswerForm
    from guardrail.server.keys import Caller


Data = Mapping[str, Any]

_LAST = frozenset({"response.completed", "response.incomplete", "response.failed", "error"})
_NO_TOKENS = {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}
_FILTERED = "content_filter"


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
            refusal=self.text,
        )

    @property
    def chat(self) -> ChatCompletion:
        """As a chat completion."""
        return ChatCompletion(
            model=self.model, verdict=self.verdict, caller=self.caller, usage=self.usage
        )

    @property
    def response(self) -> ResponseAnswer:
        """As a response."""
        return ResponseAnswer(
            model=self.model, verdict=self.verdict, caller=self.caller, refused=True
        )

    def whole(self, form: AnswerForm) -> dict[str, Any]:
        """All at once."""
        return form.whole([self.result])

    def events(self, form: AnswerForm) -> list[bytes]:
        """As a stream."""
        result = self.result
        data = [*form.opening(), *form.words(0, self.text), *form.ending(0, result, [result])]
        return [*(event(datum, datum.get("type")) for datum in data), form.done]


class Form(ABC):
    """An endpoint: the path below the upstream's address, and the key that holds what is asked."""

    path: ClassVar[str]
    source: ClassVar[str]
    done: ClassVar[bytes] = DONE  # what ends a stream

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
    def said(self, whole: Data) -> list[str]:
        """The texts of an answer that is there whole, one for each choice of several."""

    @abstractmethod
    def spoken(self, data: Data) -> list[Spoken]:
        """What an event of a stream says, and of which of its texts."""

    @abstractmethod
    def cut(self, refusal: Refusal, last: Data) -> list[dict[str, Any]]:
        """What ends a stream behind its event `last`, when nothing more of it may be told."""

    @abstractmethod
    def refused(self, refusal: Refusal) -> dict[str, Any]:
        """An answer in the upstream's place."""

    @abstractmethod
    def refused_events(self, refusal: Refusal) -> list[bytes]:
        """A stream in the upstream's place."""


class ChatForm(Form):
    """Chat completions."""

    path, source = "/chat/completions", "messages"

    def said(self, whole: Data) -> list[str]:
        """See `Form`."""
        return [_texts(choice, "message", "content") for choice in _rows(whole, "choices")]

    def spoken(self, data: Data) -> list[Spoken]:
        """See `Form`."""
        found = []
        for choice in _rows(data, "choices"):
            places = (("delta", "content"), ("message", "content"), ("delta", "refusal"))
            text = "".join(_texts(choice, *place) for place in places)
            delta = choice.get("delta")
            calls = isinstance(delta, Mapping) and bool(delta.get("tool_calls"))
            done = calls or bool(choice.get("finish_reason"))
            found.append(Spoken(str(choice.get("index")), text, done=done))
        return found

    def cut(self, refusal: Refusal, last: Data) -> list[dict[str, Any]]:
        """See `Form`."""
        told: dict[str, Any] = {"content": f"\n\n{refusal.text}", "refusal": refusal.text}
        return [_ending(last, delta=told) | {FIELD: refusal.told}]

    def refused(self, refusal: Refusal) -> dict[str, Any]:
        """See `Form`."""
        return refusal.whole(refusal.chat)

    def refused_events(self, refusal: Refusal) -> list[bytes]:
        """See `Form`."""
        return refusal.events(refusal.chat)


class CompletionForm(Form):
    """Text completions."""

    path, source = "/completions", "prompt"

    def said(self, whole: Data) -> list[str]:
        """See `Form`."""
        return [_texts(choice, "text") for choice in _rows(whole, "choices")]

    def spoken(self, data: Data) -> list[Spoken]:
        """See `Form`."""
        return [
            Spoken(str(c.get("index")), _texts(c, "text"), done=bool(c.get("finish_reason")))
            for c in _rows(data, "choices")
        ]

    def cut(self, refusal: Refusal, last: Data) -> list[dict[str, Any]]:
        """See `Form`."""
        return [_ending(last, text=f"\n\n{refusal.text}") | {FIELD: refusal.told}]

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
    """Responses."""

    path, source, done = "/responses", "input", b""

    def said(self, whole: Data) -> list[str]:
        """See `Form`."""
        parts = (p for item in _rows(whole, "output") for p in _rows(item, "content"))
        return [_texts(part, "text") or _texts(part, "refusal") for part in parts]

    def spoken(self, data: Data) -> list[Spoken]:
        """See `Form`; the whole of a text comes once more in each event that closes something."""
        kind = str(data.get("type"))
        done = kind.endswith(".done") or kind in _LAST
        item, place = data.get("output_index"), data.get("content_index")
        if kind.endswith((".output_text.delta", ".refusal.delta")):
            return [Spoken((item, place), _texts(data, "delta"))]
        found = [((item, place), data), ((item, place), data.get("part"))]
        for number, each in [(item, data.get("item")), *enumerate(_rows_in(data, "response"))]:
            found += [((number, i), part) for i, part in enumerate(_rows_in(each))]
        return [
            Spoken(key, text, whole=True, done=done)
            for key, part in found
            if isinstance(part, Mapping)
            if (text := _texts(part, "text") or _texts(part, "refusal"))
        ]

    def cut(self, refusal: Refusal, last: Data) -> list[dict[str, Any]]:
        """See `Form`."""
        answer = refusal.response
        whole = answer.whole([refusal.result])
        whole |= {"status": "incomplete", "incomplete_details": {"reason": _FILTERED}}
        number = last.get("sequence_number")
        event = {"type": "response.incomplete", "response": whole, FIELD: refusal.told}
        return [event | {"sequence_number": number + 1 if isinstance(number, int) else 0}]

    def closes(self, data: Data, usage_wanted: bool) -> bool:
        """See `Form`."""
        return data.get("type") in _LAST

    def ends(self, event: Event) -> bool:
        """See `Form`."""
        return event.done or self.closes(event.data or {}, False)

    def refused(self, refusal: Refusal) -> dict[str, Any]:
        """See `Form`."""
        return refusal.whole(refusal.response)

    def refused_events(self, refusal: Refusal) -> list[bytes]:
        """See `Form`."""
        return refusal.events(refusal.response)


CHAT, COMPLETION, RESPONSE = ChatForm(), CompletionForm(), ResponseForm()


def _rows(data: Data, name: str) -> list[Data]:
    rows = data.get(name)
    return [row for row in rows if isinstance(row, Mapping)] if isinstance(rows, list) else []


def _texts(data: Data, *path: str) -> str:
    """The text at a place of an object; a content's parts joined, nothing where there is none."""
    value: Any = data
    for name in path:
        value = value.get(name) if isinstance(value, Mapping) else None
    if isinstance(value, list):
        return "".join(_texts(part, "text") for part in value if isinstance(part, Mapping))
    return value if isinstance(value, str) else ""


def _rows_in(value: object, name: str = "") -> list[Data]:
    """The parts of an item; with a `name` the items of the response of that name."""
    if not isinstance(value, Mapping):
        return []
    inner = value.get(name) if name else value
    return _rows(inner, "output" if name else "content") if isinstance(inner, Mapping) else []


_HEAD = ("id", "object", "created", "model", "system_fingerprint")


def _ending(last: Data, **words: Any) -> dict[str, Any]:
    """A stream's last chunk, with the names of those before."""
    choice = {"index": 0, **words, "finish_reason": _FILTERED, "logprobs": None}
    return {**{name: last[name] for name in _HEAD if name in last}, "choices": [choice]}


def _text(refusal: Refusal, text: str, finish: str | None = None) -> dict[str, Any]:
    choice = {"index": 0, "text": text, "finish_reason": finish, "logprobs": None}
    return {
        "id": f"cmpl-{refusal.request_id}",
        "object": "text_completion",
        "created": refusal.created,
        "model": refusal.model,
        "choices": [choice],
    }
