"""The three ways of asking a model that the OpenAI API has, and what tells their streams' ends."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from guardrail.server.proxy import refusals

if TYPE_CHECKING:
    from guardrail.server.proxy.events import Event
    from guardrail.server.proxy.refusals import Refusal

Data = Mapping[str, Any]


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
    refused=refusals.chat,
    refused_events=refusals.chat_events,
)
COMPLETION = Form(
    path="/completions",
    source="prompt",
    closes=_closes_choices,
    ends=_marked_done,
    refused=refusals.completion,
    refused_events=refusals.completion_events,
)
RESPONSE = Form(
    path="/responses",
    source="input",
    closes=_closes_response,
    ends=_response_ends,
    refused=refusals.response,
    refused_events=refusals.response_events,
)
