"""What of a LiteLLM call is judged: the chat, and whatever of the call is not in it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from guardrail.asgi.chats import Content
from guardrail.server.litellm_rows import readable

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from guardrail.server.litellm_schema import LiteLLMBody


def contents(body: LiteLLMBody) -> list[Content]:
    """What is judged, one by one; none for a call without content.

    Texts, pictures and tool calls that do not stand in the chat are judged like a prompt of their
    own: LiteLLM may send part of a chat only, and calls that are no chats have none.
    """
    sent, found = body.structured_messages or [], []
    functions, others = _sorted(body.tools or [])
    chat = [readable(row) for row in sent]
    seen = set(_strings(chat))
    parts = [*_texts(body, seen), *_pictures(body, seen)]
    if chat:
        found.append(Content(chat, tools=functions, beside=others))
    elif functions or others:
        parts[:0] = [_text(json.dumps(tool, ensure_ascii=False)) for tool in body.tools or []]
    if parts:
        found.append(Content([{"role": "user", "content": parts}]))
    return found


def cautioned(texts: Sequence[str] | None, words: str) -> list[str] | None:
    """The call's texts with the policy's words before the first; None: there is no place for them.

    LiteLLM puts each text back where it was, so there must be as many as came.
    """
    if not texts:
        return None
    return [f"{words}\n\n{texts[0]}", *texts[1:]]


def _texts(body: LiteLLMBody, seen: set[str]) -> list[dict[str, Any]]:
    lines = [text for text in body.texts or () if text not in seen]
    for call in body.tool_calls or ():
        if not set(_strings(call.get("function", call))) <= seen:
            lines.append(json.dumps(call, ensure_ascii=False))
    return [_text("\n".join(lines))] if lines else []


def _pictures(body: LiteLLMBody, seen: set[str]) -> list[dict[str, Any]]:
    unseen = (source for source in body.images or () if source not in seen)
    return [{"type": "image_url", "image_url": {"url": source}} for source in unseen]


def _text(text: str) -> dict[str, Any]:
    return {"type": "text", "text": text}


def _sorted(tools: Iterable[dict[str, Any]]) -> tuple[list[dict[str, Any]], list[str]]:
    """Functions in the OpenAI form, and as text what else there is: many templates show it all."""
    functions, others = [], []
    for tool in tools:
        usual = tool.keys() == {"type", "function"} and tool["type"] == "function"
        if usual and isinstance(tool["function"], dict):
            functions.append(tool)
        else:
            others.append(json.dumps(tool, ensure_ascii=False))
    return functions, others


def _strings(value: object) -> Iterable[str]:
    """Every string inside of JSON."""
    waiting = [value]
    while waiting:
        match waiting.pop():
            case str(text):
                yield text
            case list(items):
                waiting += items
            case dict(items):
                waiting += items.values()
