"""A JSONL file of labelled inputs; every key is read, known as a label, or refused."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from guardrail.errors import DatasetError
from guardrail.evaluation.items import LABELS, EvalItem
from guardrail.requests.placing import picture_files, placed, video_files, words
from guardrail.requests.strict_json import strict_json

if TYPE_CHECKING:
    from collections.abc import Iterator

_KNOWN = "id, category, source, statement and labels such as licence, language, note"
# Say something about an input and are not shown to the model. `question` is what a picture asks,
# in other words; without a text it would be the only words there are.
_ABOUT = frozenset(
    "kind form pair split subcategory language licence license note notes question tags "
    "metadata".split()
)


class _Line(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    label: Literal["harmful", "harmless"]
    text: str | None = None
    image: list[str] = Field(default_factory=list)
    video: list[str] = Field(default_factory=list)
    messages: list[dict[str, Any]] | None = None
    tools: list[dict[str, Any]] = Field(default_factory=list)
    statement: list[str] = Field(default_factory=list)
    id: str = ""
    category: str = ""
    source: str = ""

    @model_validator(mode="before")
    @classmethod
    def _without_labels(cls, row: object) -> object:
        if not isinstance(row, dict):
            raise ValueError("a line is a JSON object")
        if row.get("question") and not (row.get("text") or row.get("messages")):
            raise ValueError("`question` is not shown to the model; what it is asked is `text`")
        return {k: v for k, v in row.items() if k not in _ABOUT and v is not None}

    @field_validator("label", mode="before")
    @classmethod
    def _known_label(cls, value: object) -> object:
        found = LABELS.get(value.lower()) if isinstance(value, str) else None
        if found is None:
            raise ValueError(f"{value!r} is none of {', '.join(LABELS)}")
        return found

    @field_validator("image", "video", "statement", mode="before")
    @classmethod
    def _one_or_several(cls, value: object) -> object:
        return [value] if isinstance(value, str) else value

    @field_validator("id", mode="before")
    @classmethod
    def _numbers_too(cls, value: object) -> object:
        return str(value) if isinstance(value, int) else value

    @model_validator(mode="after")
    def _something_to_ask(self) -> _Line:
        shown = [*self.image, *self.video]
        if self.messages is not None and (self.text is not None or shown):
            raise ValueError("`messages` is a whole chat; leave `text`, `image` and `video` out")
        if self.messages is None and self.text is None and not shown:
            raise ValueError("a line has `text`, `image` or `video`, or `messages`")
        return self

    def chat(self, folder: Path) -> list[dict[str, Any]]:
        """The messages, pictures and videos before the text, with paths taken from `folder`."""
        if self.messages is not None:
            return placed(self.messages, folder)
        content = [{"type": "image", "image": name} for name in self.image]
        content += [{"type": "video", "video": name} for name in self.video]
        if self.text is not None:
            content.append({"type": "text", "text": self.text})
        return placed([{"role": "user", "content": content}], folder)


def line_items(path: Path) -> Iterator[EvalItem]:
    """The inputs of one file, in order.

    Raises:
        DatasetError: a line that is no labelled input, or a file that is not there; the message
            names the line.
    """
    try:
        with path.open(encoding="utf-8-sig") as lines:
            for number, line in enumerate(lines, start=1):
                if line.strip():
                    yield _item(line, path, number)
    except (OSError, UnicodeDecodeError) as error:
        raise DatasetError(f"{path}: cannot be read ({error})") from error


def _item(text: str, path: Path, number: int) -> EvalItem:
    where = f"{path}, line {number}"
    try:
        line = _Line.model_validate(strict_json(text))
    except ValidationError as error:
        raise DatasetError(f"{where}: {_problem(error)}") from error
    except (ValueError, RecursionError) as error:
        raise DatasetError(f"{where}: not JSON ({error})") from error
    chat = line.chat(path.parent)
    pictures, videos = picture_files(chat), video_files(chat)
    for what, files in (("picture", pictures), ("video", videos)):
        for file in files:
            if not Path(file).is_file():
                raise DatasetError(f"{where}: there is no {what} {file}")
    try:
        return EvalItem(
            id=line.id or f"{path.stem}-{number}",
            label=line.label,
            messages=chat,
            text="\n".join([*words(chat), *line.statement]),
            category=line.category,
            source=line.source or path.stem,
            images=tuple(pictures),
            videos=tuple(videos),
            tools=tuple(line.tools),
        )
    except DatasetError as error:
        raise DatasetError(f"{where}: {error}") from error


def _problem(error: ValidationError) -> str:
    first = error.errors()[0]
    name = ".".join(map(str, first["loc"]))
    if first["type"] == "extra_forbidden":
        return (
            f"{name!r} would be lost: a line has `text`, `image` or `video`, or `messages` (and "
            f"`tools`), a `label`, and may have {_KNOWN}"
        )
    said = first["msg"].removeprefix("Value error, ")
    return f"{name}: {said}" if name else said
