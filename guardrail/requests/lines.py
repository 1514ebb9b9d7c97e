"""A row of a user's own file -> the request it describes; every key is read, or a label."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from guardrail.errors import UnsupportedContentError
from guardrail.requests.placing import placed

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

# Keys that describe a row and are not read.
_ABOUT = {"id", "label", "category", "kind", "form", "pair", "split", "source", "language", "note"}
_ABOUT |= {"licence", "license", "question", "statement"}


def line_request(row: Any, folder: Path) -> object:
    """The value for a guard that a row describes; relative paths are taken from `folder`.

    A row is a string, a chat (a list of messages), or an object with `messages`, or with `text`,
    `image` and `video` (one path or several).

    Raises:
        UnsupportedContentError: it is none of these, or has a key that would be lost.
    """
    match row:
        case str():
            return row
        case list():
            return placed(row, folder)
        case {"messages": list(messages)}:
            _refuse_others(row, {"messages"})
            return placed(messages, folder)
        case {"image": _} | {"video": _} | {"text": _}:
            _refuse_others(row, {"text", "image", "video"})
    request = _described(row, folder)
    if request is None:
        raise UnsupportedContentError(
            "expected a string, a list of messages, or an object with `messages`, or with `text`, "
            "`image` and `video`"
        )
    return request


def turn(text: str | None, images: Sequence[Path], videos: Sequence[Path] = ()) -> object:
    """A prompt of text, pictures and videos as a value that a guard takes."""
    if not images and not videos:
        return text
    content: list[dict[str, str]] = [{"type": "image", "path": str(path)} for path in images]
    content += [{"type": "video", "path": str(path)} for path in videos]
    if text is not None:
        content.append({"type": "text", "text": text})
    return [{"role": "user", "content": content}]


def _described(row: Any, folder: Path) -> object:
    """The request that `text`, `image` and `video` describe, if they do."""
    if not isinstance(row, dict):
        return None
    images, videos = (_paths(row.get(key, []), folder) for key in ("image", "video"))
    if images is None or videos is None:
        return None
    return turn(_text(row), images, videos)


def _paths(value: object, folder: Path) -> list[Path] | None:
    """One file name or several, in the folder; None of anything else."""
    match value:
        case str(name):
            return [folder / name]
        case list(names) if all(isinstance(name, str) for name in names):
            return [folder / name for name in names]
    return None


def _refuse_others(row: Mapping[str, object], read: set[str]) -> None:
    if others := sorted(set(row) - read - _ABOUT):
        raise UnsupportedContentError(
            f"{', '.join(map(repr, others))} beside {' and '.join(sorted(read))} would "
            "not be read; a line has `messages`, or `text`, `image` and `video`, and labels such "
            "as `id`"
        )


def _text(row: Mapping[str, object]) -> str | None:
    text = row.get("text")
    if text is None or isinstance(text, str):
        return text
    raise UnsupportedContentError(f"`text` is a string, not {type(text).__name__}")
