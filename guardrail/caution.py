"""Words put before what is sent to a model: as a system message, in the value's own form."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from guardrail.types import Message, Request, TextPart


def with_caution(value: object, words: str) -> object | None:
    """`value` with `words` as a system message before it, in `value`'s own form.

    A string gets the words and a blank line in front; a chat's first system message is extended,
    or one is inserted. None for a form that has no place for words (a bare picture).
    """
    if isinstance(value, str):
        return f"{words}\n\n{value}"
    if isinstance(value, Request):
        return _cautioned_request(value, words)
    if isinstance(value, Sequence) and value and isinstance(value[0], Mapping):
        chat = _cautioned_chat(value, words)
        return tuple(chat) if isinstance(value, tuple) else chat
    return None


def _cautioned_chat(chat: Sequence[Mapping[str, object]], words: str) -> list[object]:
    first, content = chat[0], chat[0].get("content")
    if first.get("role") == "system" and isinstance(content, str):
        return [{**first, "content": f"{words}\n\n{content}"}, *chat[1:]]
    if first.get("role") == "system" and isinstance(content, Sequence):
        part = {"type": "text", "text": f"{words}\n\n"}
        return [{**first, "content": [part, *content]}, *chat[1:]]
    return [{"role": "system", "content": words}, *chat]


def _cautioned_request(request: Request, words: str) -> Request:
    first = request.messages[0]
    if first.role != "system":
        system = Message(role="system", parts=(TextPart(words),))
        return replace(request, messages=(system, *request.messages))
    match first.parts:
        case (TextPart(text), *rest):
            parts = (TextPart(f"{words}\n\n{text}"), *rest)
        case _:
            parts = (TextPart(f"{words}\n\n"), *first.parts)
    return replace(request, messages=(replace(first, parts=parts), *request.messages[1:]))
