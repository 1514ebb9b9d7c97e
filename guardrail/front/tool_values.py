"""What a tool is given and gives back, as a guard reads it; pictures in it become canonical.

A value is walked once. Texts of content blocks and pictures become content parts, in order; all
that is left is read as the line of JSON that a model would be shown, keys included. What cannot be
read is an error that names its type: nothing is left out.
"""

from __future__ import annotations

import copy
import json
import re
from collections.abc import AsyncIterator, Awaitable, Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass
from typing import TYPE_CHECKING, Any

from PIL.Image import Image as PILImage
from pydantic import BaseModel
from pydantic_core import PydanticSerializationError, to_jsonable_python

from guardrail.errors import UnsupportedContentError
from guardrail.front.chats import add_part
from guardrail.inputs.canonical import Encoded, canonical_chat, canonical_picture
from guardrail.inputs.images import upright_picture
from guardrail.inputs.labels import shown_labels
from guardrail.inputs.media import PICTURE, sniffed_format
from guardrail.inputs.parts import MEDIA, MEDIA_KEYS, Budget
from guardrail.inputs.sources import decoded_base64, names_a_file
from guardrail.policy.acting import enforces

if TYPE_CHECKING:
    from collections.abc import Sequence

    from guardrail.policy import Policy

_UNREAD = frozenset({"audio", "input_audio", "file", "input_file", "image_file", "document"})
_UNREAD_KEYS = frozenset(
    {"data", "base64", "audio", "input_audio", "file", "file_data", "file_id", "file_url"}
    | {"image_file", "source"}
)
# Of the Model Context Protocol, in JSON and in Python, and of sources.
_MEDIA_TYPES = ("mimeType", "mime_type", "media_type")
_DATA_URL = re.compile(r"data:([a-z]+)/[\w.+-]+[;,]", re.IGNORECASE)
_TAKEN = object()  # what became a part of its own


@dataclass(frozen=True, slots=True)
class Reading:
    """A value as it goes on, and what is said in it.

    `parts` are texts, pictures and videos; `said` is the rest, as JSON has it.
    """

    value: object
    parts: Sequence[dict[str, Any]]
    said: object

    @property
    def content(self) -> list[dict[str, Any]]:
        """All of it as parts of a message; empty when it holds no word and no picture."""
        parts = list(self.parts)
        if isinstance(self.said, str):
            _add_text(parts, self.said)
        elif _has_words(self.said):
            _add_text(parts, json.dumps(self.said, ensure_ascii=False))
        return parts


def read_value(value: object, policy: Policy, what: str) -> Reading:
    """Read JSON values, pictures, pydantic models, dataclasses, and blocks of content.

    Blocks are mappings or objects with a `type`: those of a chat, and those of the Model Context
    Protocol. In shadow mode the value goes on as it is.

    Args:
        value: what a tool is given, or gives back.
        policy: its limits and its `pictures`.
        what: how error messages call the value.

    Raises:
        UnsupportedContentError: something in it cannot be read; the message names its type.
        InputError: a picture cannot be read, or has two readings under `pictures = "refuse"`.
    """
    walk = _Walk(policy, what)
    try:
        kept, said = walk.value(value)
    except RecursionError as error:
        raise UnsupportedContentError(f"{what} is nested too deep to be checked") from error
    value = kept if enforces(policy) else value
    return Reading(value, walk.parts, None if said is _TAKEN else said)


def cautioned_result(value: Any, words: str) -> Any | None:
    """`value` with words before it, in its own form; None where there is no place for them.

    A text has one, and so has a list of content, where the words become a block like its others.
    """
    if isinstance(value, str):
        return f"{words}\n\n{value}"
    if not isinstance(value, list) or not any(map(_is_content, value)):
        return None
    texts = [item for item in value if isinstance(item, str) or _kind(item) == "text"]
    first = texts[0] if texts else value[0]
    if isinstance(first, str):
        return [words, *value]
    if isinstance(first, Mapping):
        return [{"type": "text", "text": words}, *value]
    return [with_fields(first, {"text": words}), *value] if texts else None


class _Walk:
    """One value's walk; each method gives what goes on, and what is said in words or `_TAKEN`."""

    def __init__(self, policy: Policy, what: str) -> None:
        self._policy, self._what, self._budget = policy, what, Budget(policy.limits)
        self.parts: list[dict[str, Any]] = []

    def value(self, value: Any) -> tuple[Any, Any]:
        match value:
            case None | bool() | int() | float():
                return value, value
            case str():
                return self._string(value)
            case PILImage():
                kept = upright_picture(value, self._policy.limits, self._what)
                self._add_picture(kept)
                return kept, _TAKEN
            case bytes() | bytearray() | memoryview():
                return self._bytes(bytes(value))
            case list() | tuple() | set() | frozenset():
                return self._items(value)
            case Mapping():
                return self._named(value, value)
        if callable(convert := getattr(type(value), "to_image_content", None)):  # MCP's own helper
            return self.value(convert(value))
        named = _fields(value)
        return self._scalar(value) if named is None else self._named(value, named)

    def _string(self, text: str) -> tuple[str, Any]:
        if (url := _DATA_URL.match(text)) is not None:
            match url[1].lower():
                case "image":
                    return self._encoded(text).data_url, _TAKEN
                case "video":
                    self.parts.append({"type": "video", "video": text})
                    return text, _TAKEN
            raise self._unread(f"a data: URL of the type {url[0][5:-1][:80]}")
        if ":" in text or names_a_file(text):
            return text, text
        # It begins as a picture does in base64, and somebody may show it as one.
        data = decoded_base64(text, PICTURE, self._policy.limits, what=self._what)
        return self._encoded(data).base64, _TAKEN

    def _bytes(self, data: bytes) -> tuple[bytes, Any]:
        if sniffed_format(data) is None:
            raise self._unread("bytes that are no picture")
        return self._encoded(data).data, _TAKEN

    def _items(self, value: Any) -> tuple[Any, Any]:
        """A list; the texts between blocks of content are such blocks, too."""
        mixed = any(map(_is_content, value))
        kept, said = [], []
        for item in value:
            new, text = self.value(item)
            if mixed and isinstance(text, str):
                _add_text(self.parts, text)
                text = _TAKEN
            kept.append(new)
            said += [] if text is _TAKEN else [text]
        if all(new is old for new, old in zip(kept, value, strict=True)):
            kept = value
        elif hasattr(value, "_fields"):  # a named tuple
            kept = type(value)(*kept)
        else:
            kept = type(value)(kept)
        return kept, said if said or not mixed else _TAKEN

    def _named(self, value: Any, named: Mapping[Any, Any]) -> tuple[Any, Any]:
        """A mapping, or an object by its attributes."""
        kind = named.get("type")
        changed, rest = self._block(kind, named)
        if len(rest) == len(named):
            if _is_media(kind, named) and value is named:
                return self._part(value)
            if _is_media(kind, named) or _is_unread(kind, named):
                raise self._unread(f"content of the type {kind!r}")
        said: dict[str | float, Any] = {}
        for key, item in rest.items():
            new, text = self.value(item)
            if new is not item:
                changed[key] = new
            text = None if text is _TAKEN else text
            if text is not None or value is named:  # an object's attributes are no words
                name = key if isinstance(key, str | int | float) else str(key)
                if name in said:
                    raise self._unread(f"two keys that are written {name!r}")
                said[name] = text
        taken = len(rest) < len(named) and not said
        return with_fields(value, changed), _TAKEN if taken else said

    def _block(
        self, kind: object, named: Mapping[Any, Any]
    ) -> tuple[dict[Any, Any], dict[Any, Any]]:
        """What of a block becomes a part: what changes there, and what is left to read."""
        if kind == "text" and isinstance(named.get("text"), str):
            _add_text(self.parts, named["text"])
            return {}, _without(named, "text")
        if kind in ("image", "base64") and isinstance(named.get("data"), str):
            return self._inline(named, "data"), _without(named, "data", *_MEDIA_TYPES)
        if "uri" in named and isinstance(named.get("text"), str):  # a resource of words
            _add_text(self.parts, named["text"])
            return {}, {key: item for key, item in named.items() if key != "text"}
        if "uri" in named and isinstance(named.get("blob"), str):
            rest = {key: item for key, item in named.items() if key not in ("blob", *_MEDIA_TYPES)}
            return self._inline(named, "blob"), rest
        return {}, dict(named)

    def _inline(self, named: Mapping[Any, Any], key: str) -> dict[Any, Any]:
        """A picture in base64 and its media type, read; what of them changes."""
        data = decoded_base64(named[key], PICTURE, self._policy.limits, what=self._what)
        if sniffed_format(data) is None:
            raise self._unread(f"content whose {key} is no picture")
        encoded = self._encoded(data)
        media = {name: encoded.media_type for name in _MEDIA_TYPES if named.get(name) is not None}
        return {key: encoded.base64, **media}

    def _part(self, part: Mapping[Any, Any]) -> tuple[Any, Any]:
        """A picture or video in a form of chats, which the guard reads itself."""
        [message] = canonical_chat([{"role": "user", "content": [part]}], self._policy)
        for text in shown_labels(message, ()):
            _add_text(self.parts, text)
        self.parts.append(message["content"][0])
        return message["content"][0], _TAKEN

    def _encoded(self, source: bytes | str) -> Encoded:
        """A picture in the form that goes on; it is a part of its own."""
        encoded = canonical_picture(source, self._policy, what=self._what)
        self._add_picture(encoded.data)
        return encoded

    def _add_picture(self, judged: PILImage | bytes) -> None:
        self._budget.image()
        self.parts.append({"type": "image", "image": judged})

    def _scalar(self, value: Any) -> tuple[Any, Any]:
        """A date, an enum, an address and the like, by its text."""
        if isinstance(value, Iterator | AsyncIterator | Awaitable):
            raise self._unread(f"a {type(value).__name__}")
        try:
            return value, self.value(to_jsonable_python(value))[1]
        except PydanticSerializationError as error:
            raise self._unread(f"a {type(value).__name__}") from error

    def _unread(self, found: str) -> UnsupportedContentError:
        return UnsupportedContentError(
            f"{self._what} holds {found}, which cannot be checked; use texts, JSON values, "
            "pydantic models, pictures, or blocks of content with them"
        )


def _kind(block: Any) -> object:
    return block.get("type") if isinstance(block, Mapping) else getattr(block, "type", None)


def _is_media(kind: object, named: Mapping[Any, Any]) -> bool:
    """Whether a block is a picture or a video, and not only tells of one."""
    return isinstance(kind, str) and kind in MEDIA and not MEDIA_KEYS.isdisjoint(named)


def _is_unread(kind: object, named: Mapping[Any, Any]) -> bool:
    """Whether a block has what is not read: other media, or a picture that is somewhere else."""
    if not isinstance(kind, str):
        return False
    if kind in _UNREAD:
        return not _UNREAD_KEYS.isdisjoint(named)
    named_by_id = named.get("file_id") is not None
    elsewhere = named_by_id or _kind(named.get("source")) not in (None, "base64")
    return kind in MEDIA and elsewhere


def _is_content(item: object) -> bool:
    """Whether a list with this item is one of content, which is shown item by item."""
    if isinstance(item, PILImage | bytes | bytearray | memoryview):
        return True
    return hasattr(type(item), "to_image_content") or isinstance(_kind(item), str)


def _fields(value: object) -> dict[str, Any] | None:
    """What an object holds, by name; None where that is not known."""
    if isinstance(value, BaseModel):
        computed = {name: getattr(value, name) for name in type(value).model_computed_fields}
        declared = {name: getattr(value, name) for name in type(value).model_fields}
        held = {**declared, **computed, **(value.model_extra or {})}
    elif is_dataclass(value) and not isinstance(value, type):
        held = {each.name: getattr(value, each.name) for each in fields(value)}
    elif isinstance(getattr(value, "__dict__", {}).get("type"), str):
        held = dict(vars(value))
    else:
        return None
    return held


def _without(named: Mapping[Any, Any], *taken: str) -> dict[Any, Any]:
    """What a block says beside its text or picture."""
    return {k: v for k, v in named.items() if k not in ("type", *taken) and v is not None}


def with_fields(value: Any, changed: Mapping[Any, Any]) -> Any:
    """A copy of a mapping or an object with other fields; itself where there are none."""
    if not changed:
        return value
    if isinstance(value, Mapping):
        return {**value, **changed}
    if isinstance(value, BaseModel):
        return value.model_copy(update=dict(changed))
    other = copy.copy(value)
    for name, new in changed.items():
        object.__setattr__(other, name, new)  # the copy of a frozen one is still nobody's
    return other


def _has_words(said: object) -> bool:
    if isinstance(said, Mapping):
        return bool(said)
    if isinstance(said, list):
        return any(map(_has_words, said))
    return isinstance(said, str) and bool(said)


def _add_text(parts: list[dict[str, Any]], text: str) -> None:
    if text:
        add_part(parts, {"type": "text", "text": text})
