"""Which columns of a table are a request, and the request that one row of them makes."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from guardrail.bulk.items import Loaded, plain_key
from guardrail.errors import ConfigurationError, InputError, UnsupportedContentError
from guardrail.requests.placing import placed
from guardrail.requests.strict_json import strict_json

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping
    from pathlib import Path

_USUAL = {
    "messages": ("messages",),
    "text": ("text", "prompt"),
    "image": ("image", "images"),
    "video": ("video", "videos"),
}
# What a column of a request is called, as the last word of its name and without a plural's s.
_INPUT = {"audio", "caption", "chat", "clip", "content", "context", "conversation", "dialog"}
_INPUT |= {"dialogue", "frame", "history", "image", "img", "input", "instruction", "message"}
_INPUT |= {"photo", "picture", "prompt", "query", "question", "request", "screenshot", "system"}
_INPUT |= {"text", "turn", "utterance", "video"}
_FORM = {"b64", "base64", "bytes", "file", "path", "uri", "url"}  # said behind it
_OPTIONS = "--text-column, --image-column, --video-column or --messages-column"
_LEFT_OUT = "--ignore-column, or `Columns(ignored=...)`"


@dataclass(frozen=True, kw_only=True)
class Columns:
    """Names of columns; where a kind has none given, that of the usual name is taken.

    `text` holds words; `image` and `video` hold bytes, a path, a data URL, a struct of `bytes` and
    `path` (as Hugging Face datasets write it), or a list of these; `messages` holds a whole chat,
    as a list or as JSON. A null is nothing: a row may have words without a picture.

    A column that looks like part of a request and would not be read is an error, unless it is among
    the `ignored`.
    """

    text: str | None = None
    image: str | None = None
    video: str | None = None
    messages: str | None = None
    id: str | None = None
    ignored: tuple[str, ...] = ()

    @property
    def given(self) -> bool:
        """Whether any column with content is named."""
        return any((self.text, self.image, self.video, self.messages))

    def names(self) -> list[str]:
        """The columns to read."""
        named = (self.text, self.image, self.video, self.messages, self.id)
        return [name for name in named if name is not None]

    def found_in(
        self, present: Collection[str], media: Mapping[str, bool] | None = None
    ) -> Columns:
        """The columns to read of a table that has these.

        `media` says of a column, where its type tells, whether it holds pictures or the like (True)
        or nothing of a request at all (False: numbers, dates); of the others the name tells.

        Raises:
            ConfigurationError: a named one is missing, none has a usual name, several could be
                meant, or one that looks like part of a request would not be read.
        """
        self.require_consistent()
        if missing := [name for name in self.names() if name not in present]:
            raise ConfigurationError(
                f"there is no column {missing[0]!r}; there are {_listed(present)}"
            )
        found = self._with_usual(present)
        if not found.given:
            raise ConfigurationError(
                f"no column is called {', '.join(names[0] for names in _USUAL.values())} or "
                f"the like; there are {_listed(present)}. Name the one to read: {_OPTIONS}"
            )
        found.require_read(present, media)
        return found

    def require_consistent(self) -> None:
        """Refuse names that contradict each other.

        Raises:
            ConfigurationError: naming them.
        """
        if self.messages and (self.text or self.image or self.video):
            raise ConfigurationError(
                "a column of messages holds whole chats; name no text, image or video column "
                "beside it"
            )
        if both := sorted(set(self.names()) & set(self.ignored)):
            raise ConfigurationError(f"the column {both[0]!r} cannot be both read and ignored")

    def require_read(
        self, present: Collection[str], media: Mapping[str, bool] | None = None
    ) -> None:
        """Refuse to leave a part of a request unread.

        Raises:
            ConfigurationError: naming the columns that look like one.
        """
        passed = {*self.names(), *self.ignored}
        known = media or {}
        lost = [n for n in present if n not in passed and known.get(n, looks_like_input(n))]
        if lost:
            raise ConfigurationError(
                f"{_listed(lost)} would not be read, and may be part of the requests: name what to "
                f"read ({_OPTIONS}), and what to leave out on purpose ({_LEFT_OUT})"
            )

    def _with_usual(self, present: Collection[str]) -> Columns:
        """These, and for each kind without a name the column of the usual name."""
        taken = {*self.names(), *self.ignored}
        usual = {
            kind: [name for name in names if name in present and name not in taken]
            for kind, names in _USUAL.items()
            if getattr(self, kind) is None
        }
        if self.messages is not None:
            usual = {}  # whole chats have no words or pictures beside them
        elif self.given:
            usual.pop("messages", None)
        several = next((names for names in usual.values() if len(names) > 1), None)
        if several is None and usual.get("messages"):
            content = [name for names in usual.values() for name in names]
            several = content if len(content) > 1 else None
        if several:
            raise ConfigurationError(
                f"the columns {' and '.join(map(repr, several))} could both be meant; name the one "
                f"to read ({_OPTIONS}), and leave out the other on purpose ({_LEFT_OUT})"
            )
        chosen: dict[str, Any] = {kind: names[0] for kind, names in usual.items() if names}
        found = replace(self, **chosen)
        if found.id is None and "id" in present and "id" not in self.ignored:
            found = replace(found, id="id")
        return found

    def load(
        self, row: Mapping[str, Any], folder: Path, *, prompt: str | None, otherwise: str
    ) -> Loaded:
        """A row's key and request, or what is wrong with it; `otherwise` is the key without id."""
        key = plain_key(row.get(self.id) if self.id else None, otherwise)
        try:
            return Loaded(key, self._request(row, folder, prompt))
        except InputError as error:
            return Loaded(key, error)

    def _request(self, row: Mapping[str, Any], folder: Path, prompt: str | None) -> object:
        if self.messages is not None:
            return _chat(row.get(self.messages), folder)
        content: list[dict[str, Any]] = []
        for kind, name in (("image", self.image), ("video", self.video)):
            content += [_part(kind, cell) for cell in _cells(row.get(name) if name else None)]
        text = row.get(self.text) if self.text else None
        if not isinstance(text, str | None):
            raise UnsupportedContentError(
                f"the column {self.text!r} holds a {type(text).__name__}, not text"
            )
        if not content:
            if text is None:
                raise UnsupportedContentError(f"{_listed(self.names())}: nothing in this row")
            return text
        if (asked := prompt if text is None else text) is not None:
            content.append({"type": "text", "text": asked})
        return placed([{"role": "user", "content": content}], folder)


def _chat(value: object, folder: Path) -> object:
    if isinstance(value, str):
        try:
            value = strict_json(value)
        except (ValueError, RecursionError) as error:
            raise UnsupportedContentError(f"the messages are not JSON ({error})") from error
    if not isinstance(value, list):
        raise UnsupportedContentError(
            f"the messages are a {type(value).__name__}, not a list or JSON of a list"
        )
    return placed(value, folder)


def _cells(cell: object) -> list[object]:
    if cell is None:
        return []
    return cell if isinstance(cell, list) else [cell]


def _part(kind: str, cell: object) -> dict[str, Any]:
    """A content part of one picture or video; a cell that is none is refused by its type."""
    match cell:
        case bytes() | str():
            return {"type": kind, kind: cell}
        case {"bytes": bytes(data)}:
            return {"type": kind, kind: data}
        case {"path": str(path)}:
            return {"type": kind, "path": path}
    if kind == "image" and hasattr(cell, "__array_interface__"):
        return {"type": kind, kind: _from_pixels(cell)}
    raise UnsupportedContentError(
        f"a cell of type {type(cell).__name__} is no {kind}; bytes, a path, a data URL, or a "
        "struct of `bytes` and `path` is one"
    )


def _from_pixels(pixels: Any) -> object:
    """A picture of an array (height, width) or (height, width, channels) of 8 bits."""
    from PIL import Image

    try:
        return Image.fromarray(pixels)
    except (TypeError, ValueError) as error:
        raise UnsupportedContentError(f"an array that is no picture of 8 bits: {error}") from error


def looks_like_input(name: str) -> bool:
    """Whether a column is called as parts of requests are: `Question`, `image_2`, `videoPath`."""
    apart = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name)
    words = [word for word in re.split(r"[\W_\d]+", apart.lower()) if word]
    while len(words) > 1 and words[-1] in _FORM:
        words.pop()
    return bool(words) and (words[-1] in _INPUT or words[-1].removesuffix("s") in _INPUT)


def _listed(names: Collection[str]) -> str:
    shown = [repr(name[:80]) for name in list(names)[:20]]
    return ", ".join(shown) + (", ..." if len(names) > 20 else "")
