"""Bodies of the OpenAI API with one word planted, by every way that it has for words.

Where a label may stand the word is planted among others: a short text without a blank is one.
`relayed` is what becomes of it where the body goes on as it is, `own` where the guarded model
itself answers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.channels.contract import Kind, Outcome

Body = dict[str, Any]
CHAT, RESPONSES, COMPLETIONS = "/v1/chat/completions", "/v1/responses", "/v1/completions"
PATHS = (CHAT, RESPONSES, COMPLETIONS)
HELLO = {"role": "user", "content": "hello"}
BASES: dict[str, Body] = {
    CHAT: {"model": "m", "messages": [HELLO]},
    RESPONSES: {"model": "m", "input": [HELLO]},
    COMPLETIONS: {"model": "m", "prompt": "hello"},
}
PICTURE = (
    "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAIAAAACCAIAAAD91JpzAAAAEElEQVR4nGNgYGD4D8YQCgAjyAP9"
    "s7SJCAAAAABJRU5ErkJggg=="
)


@dataclass(frozen=True, slots=True)
class Way:
    """One place of a body, and what becomes of a word there."""

    kind: Kind
    name: str
    path: str
    body: Callable[[str], Body]
    relayed: Outcome
    own: Outcome


def words(word: str) -> str:
    """The word among others: no label."""
    return f"say {word} now"


def messages(*rows: Any, path: str = CHAT) -> Body:
    """A body with these messages, or items, behind a harmless one."""
    source = "messages" if path == CHAT else "input"
    return {**BASES[path], source: [HELLO, *rows]}


def tool(**about: Any) -> Body:
    """A tool in the form of chats; `about` is its function's."""
    schema = {"type": "object", "properties": {}}
    return {"type": "function", "function": {"name": "find", "parameters": schema, **about}}


def call(**about: Any) -> Body:
    """A message that calls a tool; `about` is the function's."""
    function = {"name": "find", "arguments": "{}", **about}
    calls = [{"type": "function", "id": "c1", "function": function}]
    return {"role": "assistant", "content": None, "tool_calls": calls}


def schema(word: str) -> Body:
    """A schema with the word where people write: in descriptions, names and choices."""
    return {
        "type": "object",
        "properties": {"a": {"type": "string", "description": word}},
    }


def message_with(**more: Any) -> Body:
    return {**HELLO, **more}


def part_with(**more: Any) -> Body:
    return {"role": "user", "content": [{"type": "text", "text": "hello", **more}]}


def item_of(kind: str, **more: Any) -> Body:
    return messages({"type": kind, **more}, path=RESPONSES)


def called(**more: Any) -> Body:
    about = {"call_id": "c1", "name": "find", "arguments": "{}", **more}
    return item_of("function_call", **about)


def output_with(**more: Any) -> Body:
    answered = {"call_id": "c1", "output": "fine", **more}
    made = {"type": "function_call", "call_id": "c1", "name": "find", "arguments": "{}"}
    return messages(made, {"type": "function_call_output", **answered}, path=RESPONSES)


def body_with(path: str, **more: Any) -> Body:
    return {**BASES[path], **more}


def format_of(inner: Body) -> Body:
    return {"type": "json_schema", "json_schema": {"name": "a", "schema": schema("b"), **inner}}


def text_of(inner: Body) -> Body:
    return {"format": {"type": "json_schema", "name": "a", "schema": schema("b"), **inner}}


def ways(
    path: str, relayed: Outcome, own: Outcome, bodies: dict[Kind, dict[str, Callable[[str], Body]]]
) -> list[Way]:
    return [
        Way(kind, name, path, body, relayed, own)
        for kind, named in bodies.items()
        for name, body in named.items()
    ]
