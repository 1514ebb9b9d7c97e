"""Which columns of a table are a request, and the request that one row of them makes."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
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
    "id": ("id",),
}


@dataclass(frozen=True, kw_only=True)
class Columns:
    """Names of columns. With none but `id` given, those of the usual names are taken.

    `text` holds words; `image` and `video` hold bytes, a path, a data URL, a struct of `bytes` and
    `path` (as Hugging Face datasets write it), or a list of these; `messages` holds a whole chat,
    as a list or as JSON. A null is nothing: a row may have words without a picture.
    """

    text: str | None = None
    image: str | None = None
    video: str | None = None
    messages: str | None = None
    id: str | None = None

    @property
    def given(self) -> bool:
        """Whether any column with content is named."""
        return any((self.text, self.image, self.video, self.messages))

    def names(self) -> list[str]:
        """The columns to read."""
        return [name for name in asdict(self).values() if name is not None]

    def found_in(self, present: Collection[str]) -> Columns:
        """The columns to read of a table that has these.

        Raises:
            ConfigurationError: a named one is missing, none has a usual name, or several could be
                meant.
        """
        if self.messages and (self.text or self.image or self.video):
            raise ConfigurationError(
                "a column of messages holds whole chats; name no text, image or video column "
                "beside it"
            )
        if missing := [name for name in self.names() if name not in present]:
            raise ConfigurationError(
                f"there is no column {missing[0]!r}; there are {_listed(present)}"
            )
        named = self if self.given else self._usual(present)
        if named.id is None and "id" in present:
            named = replace(named, id="id")
        return named

    def _usual(self, present: Collection[str]) -> Columns:
        found = {
            kind: [name for name in names if name in present]
            for kind, names in _USUAL.items()
            if kind != "id"
        }
        content = [name for names in found.values() for name in names]
        if not content:
            raise ConfigurationError(
                f"no column is called {', '.join(n for k, v in _USUAL.items() for n in v[:1])} or "
                f"the like; there are {_listed(present)}. Name the one to read: "
                "--text-column, --image-column, --video-column or --messages-column"
            )
        several = next((names for names in found.values() if len(names) > 1), None)
        if several is None and found["messages"] and len(content) > 1:
            several = content
        if several:
            raise ConfigurationError(
                f"the columns {' and '.join(map(repr, several))} could both be meant; name those "
                "to read: --text-column, --image-column, --video-column or --messages-column"
            )
        return replace(self, **{kind: names[0] for kind, names in found.items() if names})

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


def _listed(names: Collection[str]) -> str:
    shown = [repr(name[:80]) for name in list(names)[:20]]
    return ", ".join(shown) + (", ..." if len(names) > 20 else "")
