"""Rows of LiteLLM's chats as the guard reads them: what other providers' chats have beside text.

A model's earlier reasoning goes back to it, so it is judged as text. What its provider has
encrypted says nothing to anybody else, and is left out.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

Row = Mapping[str, Any]

_REASONING = {"reasoning_content": str, "thinking_blocks": list, "reasoning_items": list}


def readable(row: Row) -> dict[str, Any]:
    """A message in the OpenAI form; what is in no known form stays, for the guard to refuse."""
    thought = {key: row[key] for key, kind in _REASONING.items() if isinstance(row.get(key), kind)}
    read = {key: value for key, value in row.items() if key not in thought}
    if isinstance(read.get("is_error"), bool):
        del read["is_error"]  # how a tool fared; its words are in the content
    if read.get("role") == "function":
        read |= {"role": "tool", "content": row.get("content") or ""}
    content = read.get("content")
    if isinstance(content, list):
        content = [part for each in content for part in _part(each)]
        read["content"] = content or ""
    thoughts = [{"type": "text", "text": text} for text in _thoughts(thought)]
    if thoughts:
        said = [{"type": "text", "text": content}] if isinstance(content, str) else content or []
        read["content"] = [*thoughts, *said]
    return read


def _thoughts(row: Row) -> list[str]:
    """The reasoning in these fields, each text once."""
    found: dict[str, None] = {}
    if row.get("reasoning_content"):
        found[row["reasoning_content"]] = None
    for block in row.get("thinking_blocks", ()):
        for part in _part(block):
            found[_text(part)] = None
    for item in row.get("reasoning_items", ()):
        found[_text(_without(item, "encrypted_content"))] = None
    return list(found)


def _part(part: object) -> list[Any]:
    """A part of a content as the guard reads it; none for what only the provider can read."""
    match part:
        case {"type": "thinking", "thinking": str(text)}:
            return [{"type": "text", "text": text}] if text else []
        case {"type": "redacted_thinking"}:
            return []
        case _:
            return [part]


def _text(value: object) -> str:
    match value:
        case {"type": "text", "text": str(text)}:
            return text
        case _:
            return json.dumps(value, ensure_ascii=False)


def _without(value: object, key: str) -> object:
    return {k: v for k, v in value.items() if k != key} if isinstance(value, Mapping) else value
