"""Where the pictures of a chat are, and what it says in words."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from guardrail.requests.sources import names_a_file

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

_PICTURES = ("image", "image_url", "input_image")
_KEYS = ("image", "url", "path", "image_url")


def placed(messages: Sequence[Any], folder: Path) -> list[Any]:
    """The chat with relative picture paths taken from `folder`; all else as it is."""
    return [
        {**message, "content": [_placed(part, folder) for part in message["content"]]}
        if isinstance(message, dict) and isinstance(message.get("content"), list)
        else message
        for message in messages
    ]


def picture_files(messages: Sequence[Any]) -> list[str]:
    """The paths of a chat's pictures, in order, as far as they are files."""
    return [name for part in _parts(messages) for name in _names(part)]


def words(messages: Sequence[Mapping[str, Any]]) -> list[str]:
    """The texts of a chat, in order."""
    found = []
    for message in messages:
        content = message.get("content")
        for part in [content] if isinstance(content, str) else content or []:
            text = part.get("text") if isinstance(part, dict) else part
            if isinstance(text, str):
                found.append(text)
    return found


def _placed(part: object, folder: Path) -> object:
    if not isinstance(part, dict) or part.get("type") not in _PICTURES:
        return part
    given = [key for key in _KEYS if part.get(key) is not None]
    if len(given) != 1:
        return part  # the reader of requests says what is wrong with it
    match part[given[0]]:
        case str(name) if given == ["path"] or names_a_file(name):
            pass
        case {"url": str(name), **more} if names_a_file(name) and set(more) <= {"detail"}:
            pass
        case _:
            return part
    # As a `path`, so that no file name is taken for base64 or an address.
    kept = {key: value for key, value in part.items() if key not in _KEYS}
    return {**kept, "type": "image", "path": str(folder / name)}


def _parts(messages: Sequence[Any]) -> Iterator[dict[str, Any]]:
    for message in messages:
        content = message.get("content") if isinstance(message, dict) else None
        for part in content if isinstance(content, list) else ():
            if isinstance(part, dict) and part.get("type") in _PICTURES:
                yield part


def _names(part: Mapping[str, Any]) -> Iterator[str]:
    if isinstance(name := part.get("path"), str):
        yield name
