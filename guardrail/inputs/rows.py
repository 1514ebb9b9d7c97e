"""A row of a user's own file -> the request it describes; every key is read, a label, or refused.

`evaluate`, `calibrate` and `score` read rows here, so that a row means the same to all three.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from guardrail.errors import DatasetError, UnsupportedContentError
from guardrail.inputs.media import PICTURE, VIDEO
from guardrail.inputs.messages import Chat
from guardrail.inputs.parts import MEDIA, medium_of
from guardrail.inputs.sources import names_a_file
from guardrail.inputs.strict_json import strict_json

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from guardrail.inputs.media import Medium

PICTURES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff"})
VIDEOS = frozenset(
    {".mp4", ".m4v", ".mkv", ".webm", ".mov", ".avi", ".mpg", ".mpeg", ".ts", ".ogv"}
)
_NOTES = frozenset({"readme", "license", "licence"})
LABELS: dict[str, Literal["harmful", "harmless"]] = {
    "harmful": "harmful",
    "unsafe": "harmful",
    "harmless": "harmless",
    "safe": "harmless",
    "benign": "harmless",
}
# Say something about a row and are not shown to the model. `question` is what a picture asks, in
# other words; without a text it would be the only words there are.
_ABOUT = frozenset(
    "kind form pair split subcategory language licence license note notes question tags "
    "metadata".split()
)
_KNOWN = "id, label, category, source, statement and labels such as licence, language, note, tags"
_KEYS = ("image", "video", "url", "path", "image_url", "video_url")
AnyRow = TypeVar("AnyRow", bound="Row")


def _one_or_several(value: object) -> object:
    return [value] if isinstance(value, str) else value


def _number_or_text(value: object) -> object:
    return str(value) if isinstance(value, int | float) and not isinstance(value, bool) else value


Texts = Annotated[list[str], BeforeValidator(_one_or_several)]
Name = Annotated[str, BeforeValidator(_number_or_text)]


class Row(BaseModel):
    """A request as people write it down, and what they say about it.

    It is `messages`, a whole chat, or `text`, `image` and `video` (one path or several, relative to
    the file); `tools` are what the model is offered. A string is a row with that text, a list one
    with these messages. `statement` are words that stand in a picture. A null is nothing.
    """

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    text: str | None = None
    image: Texts = Field(default_factory=list)
    video: Texts = Field(default_factory=list)
    messages: list[dict[str, Any]] | None = None
    tools: list[dict[str, Any]] = Field(default_factory=list)
    statement: Texts = Field(default_factory=list)
    id: Name = ""
    category: Name = ""
    source: Name = ""
    label: Any = None

    @model_validator(mode="before")
    @classmethod
    def _plain(cls, row: object) -> object:
        match row:
            case str():
                return {"text": row}
            case list():
                return {"messages": row}
            case dict():
                if row.get("question") and not (row.get("text") or row.get("messages")):
                    raise ValueError("`question` is not shown to the model; ask it as `text`")
                return {k: v for k, v in row.items() if k not in _ABOUT and v is not None}
        raise ValueError("a row is a string, a list of messages or an object")

    @model_validator(mode="after")
    def _something_to_ask(self) -> Row:
        shown = [*self.image, *self.video]
        if self.messages is not None and (self.text is not None or shown):
            raise ValueError("`messages` is a whole chat; leave `text`, `image` and `video` out")
        if self.messages is None and self.text is None and not shown:
            raise ValueError("a row has `text`, `image` or `video`, or `messages`")
        return self

    def chat(self, folder: Path) -> list[Any]:
        """The messages, pictures and videos before the text, with paths taken from `folder`."""
        if self.messages is not None:
            return placed(self.messages, folder)
        content = [{"type": "image", "image": name} for name in self.image]
        content += [{"type": "video", "video": name} for name in self.video]
        if self.text is not None:
            content.append({"type": "text", "text": self.text})
        return placed([{"role": "user", "content": content}], folder)

    def request(self, folder: Path) -> str | list[Any] | Chat:
        """The value for a guard: the text alone, or the messages, with their tools if any."""
        alone = self.messages is None and not (self.image or self.video)
        asked = self.text if alone and self.text is not None else self.chat(folder)
        return Chat(asked, tuple(self.tools)) if self.tools else asked


def turn(text: str | None, images: Sequence[Path], videos: Sequence[Path] = ()) -> object:
    """A prompt of text, pictures and videos as a value that a guard takes."""
    if not images and not videos:
        return text
    content: list[dict[str, str]] = [{"type": "image", "path": str(path)} for path in images]
    content += [{"type": "video", "path": str(path)} for path in videos]
    if text is not None:
        content.append({"type": "text", "text": text})
    return [{"role": "user", "content": content}]


def read_rows(path: Path, kind: type[AnyRow]) -> Iterator[tuple[int, AnyRow]]:
    """The rows of a JSONL file and their lines' numbers, one after another; blank ones are none.

    Raises:
        DatasetError: a line that is no row, or a file that cannot be read; it names the line.
    """
    try:
        with path.open("rb") as lines:
            for number, line in enumerate(lines, start=1):
                if line.strip():
                    try:
                        row = read_row(parsed(line), kind)
                    except UnsupportedContentError as error:
                        raise DatasetError(f"{path}, line {number}: {error}") from error
                    yield number, row
    except OSError as error:
        raise DatasetError(f"{path}: cannot be read ({error})") from error


def read_row(value: object, kind: type[AnyRow]) -> AnyRow:
    """The row that a JSON value is.

    Raises:
        UnsupportedContentError: it is none, or has a key that would be lost.
    """
    try:
        return kind.model_validate(value)
    except ValidationError as error:
        raise UnsupportedContentError(_problem(error)) from error


def parsed(line: bytes) -> Any:
    """The JSON value of a line in UTF-8.

    Raises:
        UnsupportedContentError: it is none, or one that readers could take differently.
    """
    try:
        return strict_json(line.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise UnsupportedContentError(f"not JSON ({error})") from error


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


def missing_file(messages: Sequence[Any]) -> str | None:
    """What a chat shows and is not there, in words; None if all is."""
    for what, names in (("picture", picture_files(messages)), ("video", video_files(messages))):
        for name in names:
            if not os.path.isfile(name):  # unlike Path.is_file, it bears any string
                return f"there is no {what} file {name[:80]!r}"
    return None


def is_note(name: str) -> bool:
    """Whether a file's name says that it is about the data; what is shown never is."""
    stem, dot, ending = name.lower().rpartition(".")
    if dot + ending in PICTURES | VIDEOS:
        return False
    return (stem or ending) in _NOTES or name.lower() == "thumbs.db"


def _problem(error: ValidationError) -> str:
    found = error.errors(include_url=False)
    if lost := [str(each["loc"][0]) for each in found if each["type"] == "extra_forbidden"]:
        return (
            f"{', '.join(map(repr, lost))} would be lost: a row has `text`, `image` or `video`, or "
            f"`messages`, it may have `tools`, and {_KNOWN}"
        )
    said = found[0]["msg"].removeprefix("Value error, ")
    name = ".".join(map(str, found[0]["loc"]))
    return f"`{name}`: {said}" if name else said


def _placed(part: object, folder: Path) -> object:
    if not isinstance(part, dict) or (medium := medium_of(part)) is None:
        return part
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
    plainest = next(kind for kind, (held, _) in MEDIA.items() if held is medium)
    return {**kept, "type": plainest, "path": str(folder / name)}


def _placed_frame(frame: object, folder: Path) -> object:
    return str(folder / frame) if isinstance(frame, str) and names_a_file(frame) else frame


def _parts(messages: Sequence[Any], medium: Medium) -> Iterator[dict[str, Any]]:
    for message in messages:
        content = message.get("content") if isinstance(message, dict) else None
        for part in content if isinstance(content, list) else ():
            if isinstance(part, dict) and medium_of(part) is medium:
                yield part


def _names(part: Mapping[str, Any]) -> Iterator[str]:
    if isinstance(name := part.get("path"), str):
        yield name
    if isinstance(frames := part.get("video"), list):
        yield from (frame for frame in frames if isinstance(frame, str) and names_a_file(frame))
