"""Labelled inputs of an evaluation, from JSONL files and from folders of files and texts."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import field_validator, model_validator

from guardrail.errors import DatasetError
from guardrail.inputs.messages import to_request
from guardrail.inputs.rows import (
    LABELS,
    PICTURES,
    VIDEOS,
    Row,
    is_note,
    missing_file,
    picture_files,
    read_rows,
    video_files,
    words,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from guardrail.policy import Policy
    from guardrail.types import Request

DEFAULT_PROMPT = "Describe this picture."
VIDEO_PROMPT = "Describe this video."
"""What is asked about a folder's videos where the prompt is left at its default."""


@dataclass(frozen=True, kw_only=True)
class EvalItem:
    """One labelled input; its pictures stay on disk until `request` reads them.

    `messages` is the chat in any form that a guard takes. `text` holds its words wherever they
    stand, in the chat or in a picture: what people read, what the text baseline and the length
    controls see. `images` and `videos` are the files of its pictures and videos, where they are
    files.
    """

    id: str
    label: Literal["harmful", "harmless"]
    messages: Sequence[Mapping[str, Any]]
    text: str
    category: str = ""
    source: str = ""
    images: tuple[str, ...] = ()
    videos: tuple[str, ...] = ()
    tools: tuple[Mapping[str, Any], ...] = ()

    def __post_init__(self) -> None:
        """Refuse what no report could be written with.

        Raises:
            DatasetError: a lone surrogate in a name or in the words.
        """
        files = (*self.images, *self.videos)
        for name in (self.id, self.category, self.source, self.text, *files):
            if not name.isascii() and any("\ud800" <= sign <= "\udfff" for sign in name):
                raise DatasetError(
                    f"input {self.id!a}: {name[:80]!a} holds a lone surrogate, which is "
                    "no text; correct it, or rename the file"
                )

    @property
    def harmful(self) -> bool:
        """Whether it ought to be refused."""
        return self.label == "harmful"

    def request(self, policy: Policy) -> Request:
        """The input as the guard reads it, pictures decoded within the policy's limits.

        Files are read whatever `policy.local_files` says: the data is the evaluator's own.

        Raises:
            InputError: it cannot be read, or is larger than the policy allows.
        """
        reading = policy.model_copy(update={"local_files": True})
        return to_request(self.messages, policy=reading, tools=self.tools or None)


def load_items(paths: Sequence[str | Path], *, prompt: str = DEFAULT_PROMPT) -> list[EvalItem]:
    """The inputs of JSONL files and folders, in order, with unique ids.

    A line of a JSONL file has a `label` (harmful or unsafe; harmless, safe or benign) and `text`,
    `image` and `video` (one path or several, relative to the file), or a whole chat as `messages`
    (with `tools`, if any). `statement` holds words that stand in the picture. `id`, `category` and
    `source` (else the file's name) name the input; other labels (licence, language, note, ...) are
    allowed and not read.

    A folder holds either JSONL files (all are read), or a folder per label, in it pictures, videos
    and `.txt` files, directly or in one further level of folders, which name the category. A `.txt`
    beside a file of the same name is its prompt, else `prompt` is; alone it is a text input.

    Raises:
        DatasetError: a malformed line or folder, a missing file, a key that would be lost, or
            nothing at all; the message names the place.
    """
    items: list[EvalItem] = []
    for path in map(Path, paths):
        if path.is_dir():
            items += _folder_items(path, prompt=prompt)
        elif path.is_file():
            items += _line_items(path)
        else:
            raise DatasetError(f"{path}: there is no such file or folder")
    if not items:
        raise DatasetError(f"there is no input in {', '.join(map(str, paths)) or 'no file'}")
    return _unique(items)


def _unique(items: Sequence[EvalItem]) -> list[EvalItem]:
    """The same inputs; an id that was there before gets a number."""
    taken: set[str] = set()
    counts: dict[str, int] = {}
    named = []
    for item in items:
        name = item.id
        while name in taken:
            counts[item.id] = counts.get(item.id, 1) + 1
            name = f"{item.id}#{counts[item.id]}"
        taken.add(name)
        named.append(item if name == item.id else replace(item, id=name))
    return named


class _LabelledRow(Row):
    """A row that says what ought to become of it."""

    label: Literal["harmful", "harmless"]

    @model_validator(mode="before")
    @classmethod
    def _an_object(cls, row: object) -> object:
        if not isinstance(row, dict):
            raise ValueError("a line is a JSON object, as only one has a `label`")
        return row

    @field_validator("label", mode="before")
    @classmethod
    def _known_label(cls, value: object) -> object:
        found = LABELS.get(value.lower()) if isinstance(value, str) else None
        if found is None:
            raise ValueError(f"{value!r} is none of {', '.join(LABELS)}")
        return found


def _line_items(path: Path) -> Iterator[EvalItem]:
    """The inputs of one file, in order."""
    for number, row in read_rows(path, _LabelledRow):
        chat = row.chat(path.parent)
        try:
            if missing := missing_file(chat):
                raise DatasetError(missing)
            yield EvalItem(
                id=row.id or f"{path.stem}-{number}",
                label=row.label,
                messages=chat,
                text="\n".join([*words(chat), *row.statement]),
                category=row.category,
                source=row.source or path.stem,
                images=tuple(picture_files(chat)),
                videos=tuple(video_files(chat)),
                tools=tuple(row.tools),
            )
        except DatasetError as error:
            raise DatasetError(f"{path}, line {number}: {error}") from error


def _folder_items(folder: Path, *, prompt: str) -> Iterator[EvalItem]:
    """The inputs of a folder, sorted by path; see `load_items` for what it may hold.

    Raises:
        DatasetError: it is neither of the two kinds, both at once, or holds a file nobody reads.
    """
    files = sorted(path for path in folder.glob("*.jsonl") if path.is_file())
    labelled = [path for path in _shown(folder) if path.is_dir() and path.name.lower() in LABELS]
    if files and labelled:
        raise DatasetError(
            f"{folder} holds JSONL files and the folder {labelled[0].name!r}: name the files, or "
            "the folder that only has folders of labels"
        )
    if files:
        for file in files:
            yield from _line_items(file)
        return
    others = [path for path in _shown(folder) if path not in labelled]
    if not labelled or others:
        wrong = f"{others[0].name!r} beside them" if labelled else "neither"
        raise DatasetError(
            f"{folder}: a folder of inputs holds JSONL files, or folders named by their label "
            f"({', '.join(LABELS)}); this one has {wrong}"
        )
    for place in labelled:
        yield from _of_label(place, folder, prompt)


def _of_label(place: Path, folder: Path, prompt: str) -> Iterator[EvalItem]:
    yield from _of_category(place, folder, "", prompt)
    for category in [path for path in _shown(place) if path.is_dir()]:
        deeper = [path for path in _shown(category) if path.is_dir()]
        if deeper:
            raise DatasetError(f"{deeper[0]}: below a label there is one level of categories")
        yield from _of_category(category, folder, category.name, prompt)


def _of_category(place: Path, folder: Path, category: str, prompt: str) -> Iterator[EvalItem]:
    files = [path for path in _shown(place) if path.is_file()]
    shown = [path for path in files if path.suffix.lower() in PICTURES | VIDEOS]
    prompts = {path.stem: path for path in files if path.suffix.lower() == ".txt"}
    unread = [path for path in files if path not in shown and path not in prompts.values()]
    if unread:
        raise DatasetError(
            f"{unread[0]} would be lost: a folder of a label holds pictures "
            f"({', '.join(sorted(PICTURES))}), videos ({', '.join(sorted(VIDEOS))}) and .txt "
            "files"
        )
    beside = {path.stem for path in shown}
    for path in files:
        if path in shown:
            asked = _prompt_for(path, prompt)
            text = _text(prompts[path.stem]) if path.stem in prompts else asked
            yield _item(path, folder, category, text)
        elif path.stem not in beside:
            yield _item(path, folder, category, _text(path))


def _prompt_for(path: Path, prompt: str) -> str:
    is_video = path.suffix.lower() in VIDEOS
    return VIDEO_PROMPT if is_video and prompt == DEFAULT_PROMPT else prompt


def _item(path: Path, folder: Path, category: str, text: str) -> EvalItem:
    name, ending = path.relative_to(folder), path.suffix.lower()
    images = (str(path),) if ending in PICTURES else ()
    videos = (str(path),) if ending in VIDEOS else ()
    content = [{"type": "image", "path": image} for image in images]
    content += [{"type": "video", "path": video} for video in videos]
    return EvalItem(
        id=name.as_posix(),
        label=LABELS[name.parts[0].lower()],
        messages=[{"role": "user", "content": [*content, {"type": "text", "text": text}]}],
        text=text,
        category=category,
        source=folder.absolute().name,
        images=images,
        videos=videos,
    )


def _text(path: Path) -> str:
    try:
        text = path.read_text("utf-8-sig").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise DatasetError(f"{path}: cannot be read ({error})") from error
    if not text:
        raise DatasetError(f"{path} is empty; write a prompt into it or remove it")
    return text


def _shown(folder: Path) -> list[Path]:
    """What a folder holds, sorted, without hidden files and notes about the data."""
    return sorted(
        path for path in folder.iterdir() if not path.name.startswith(".") and not _is_note(path)
    )


def _is_note(path: Path) -> bool:
    """Whether a file is about the data; what is shown or a folder never is, whatever its name."""
    return is_note(path.name) and not path.is_dir()
