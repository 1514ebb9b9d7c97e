"""Where the pictures and videos of a chat are, and what it says in words."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from guardrail.requests.formats import PICTURE
from guardrail.requests.sources import names_a_file
from guardrail.requests.video_formats import VIDEO

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from guardrail.requests.medium import Medium

# By a part's type: how its content is told from a name, and the type it has with a path.
_KINDS: Mapping[str, tuple[Medium, str]] = {
    **dict.fromkeys(("image", "image_url", "input_image"), (PICTURE, "image")),
    **dict.fromkeys(("video", "video_url", "input_video"), (VIDEO, "video")),
}
_KEYS = ("image", "video", "url", "path", "image_url", "video_url")


def placed(messages: Sequence[Any], folder: Path) -> list[Any]:
    """The chat with relative picture and video paths taken from `folder`; all else as it is."""
    return [
        {**message, "content": [_placed(part, folder) for part in message["content"]]}
        if isinstance(message, dict) and isinstance(message.get("content"), list)
        else message
        for message in messages
    ]


def picture_files(messages: Sequence[Any]) -> list[str]:
    """The paths of a chat's pictures, in order, as far as they are files."""
    return [name for part in _parts(messages, PICTURE) for name in _names(part)]


def video_files(messages: Sequence[Any]) -> list[str]:
    """The paths of a chat's videos, and of frames that are listed, as far as they are files."""
    return [name for part in _parts(messages, VIDEO) for name in _names(part)]


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
    if not isinstance(part, dict) or (found := _kind(part)) is None:
        return part
    medium, kind = found
    given = [key for key in _KEYS if part.get(key) is not None]
    if len(given) != 1:
        return part  # the reader of requests says what is wrong with it
    match part[given[0]]:
        case str(name) if given == ["path"] or names_a_file(name, medium):
            pass
        case {"url": str(name), **more} if names_a_file(name, medium) and set(more) <= {"detail"}:
            pass
        case list(frames) if medium is VIDEO:
            return {**part, given[0]: [_placed_frame(frame, folder) for frame in frames]}
        case _:
            return part
    # As a `path`, so that no file name is taken for base64 or an address.
    kept = {key: value for key, value in part.items() if key not in _KEYS}
    return {**kept, "type": kind, "path": str(folder / name)}


def _kind(part: Mapping[str, Any]) -> tuple[Medium, str] | None:
    kind = part.get("type")
    return _KINDS.get(kind) if isinstance(kind, str) else None


def _placed_frame(frame: object, folder: Path) -> object:
    return str(folder / frame) if isinstance(frame, str) and names_a_file(frame) else frame


def _parts(messages: Sequence[Any], medium: Medium) -> Iterator[dict[str, Any]]:
    for message in messages:
        content = message.get("content") if isinstance(message, dict) else None
        for part in content if isinstance(content, list) else ():
            if isinstance(part, dict) and (_kind(part) or (None,))[0] is medium:
                yield part


def _names(part: Mapping[str, Any]) -> Iterator[str]:
    if isinstance(name := part.get("path"), str):
        yield name
    if isinstance(frames := part.get("video"), list):
        yield from (frame for frame in frames if isinstance(frame, str) and names_a_file(frame))
