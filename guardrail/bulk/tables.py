"""Rows of tables: which columns are a request, read from Parquet and JSONL files.

Other readers of JSONL infer one schema for the file and end at the first line without it; here each
line stands for itself, and one that cannot be read is a row with an error.
"""

from __future__ import annotations

import os
import re
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Any, BinaryIO

from guardrail.bulk.rows import Item, Loaded, file_digest, plain_key
from guardrail.errors import ConfigurationError, DatasetError, InputError, UnsupportedContentError
from guardrail.extras import require
from guardrail.inputs.messages import Chat
from guardrail.inputs.rows import Row, parsed, placed, read_row
from guardrail.inputs.strict_json import strict_json

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping, Sequence
    from pathlib import Path

    from guardrail.bulk.rows import Wanted

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


_BATCH = 16  # rows decoded together: each may hold pictures
_BUFFER = 1 << 20  # bytes read ahead of each column


class ParquetSource:
    """The rows of Parquet files, in the order given; relative paths are taken from each's folder.

    A row without an id has its number as key, with several files its file's name and number there.
    """

    kind = "parquet"

    def __init__(
        self, paths: Sequence[Path], folder: Path, columns: Columns, *, prompt: str | None
    ) -> None:
        """Look at every file's footer.

        Raises:
            DatasetError: a file that is no Parquet.
            ConfigurationError: the columns are not there, or differ between files.
            MissingExtraError: pyarrow is not installed.
        """
        require("pyarrow")
        self._paths, self._folder, self._prompt = list(paths), folder, prompt
        self.digest = self.now()
        self._counts: list[int] = []
        found: Columns | None = None
        for path in self._paths:
            with _opened(path) as file:
                names, types = file.schema_arrow.names, file.schema_arrow.types
                here = columns.found_in(names, media_by_type(names, types))
                self._counts.append(file.metadata.num_rows)
            if found is not None and here != found:
                raise ConfigurationError(
                    f"{path} has other columns than {self._paths[0]}: name those to read, or "
                    "leave out with --ignore-column what is not in all"
                )
            found = here
        self.columns = found or columns
        self.rows = sum(self._counts)

    def now(self) -> str:
        """Over names, sizes and times of change; `digest` is that of when the files were opened."""
        return file_digest(self._paths, self._folder)

    def items(self, wanted: Wanted) -> Iterator[Item]:
        """The wanted rows, in order; row groups without any are not read."""
        start = 0
        for path, count in zip(self._paths, self._counts, strict=True):
            if wanted.any(start, start + count):
                yield from self._of_file(path, start, wanted)
            start += count

    def _of_file(self, path: Path, start: int, wanted: Wanted) -> Iterator[Item]:
        first = start
        with _opened(path) as file:
            for group in range(file.num_row_groups):
                stop = start + file.metadata.row_group(group).num_rows
                if wanted.any(start, stop):
                    for batch in file.iter_batches(
                        _BATCH, row_groups=[group], columns=self.columns.names()
                    ):
                        for place in range(batch.num_rows):
                            if wanted.row(start + place):
                                key = self._key(path, start + place, first)
                                load = partial(self._load, batch, place, path.parent, key)
                                yield Item(start + place, load)
                        start += batch.num_rows
                start = stop

    def _key(self, path: Path, number: int, first: int) -> str:
        if len(self._paths) == 1:
            return str(number)
        return f"{path.relative_to(self._folder).as_posix()}:{number - first}"

    def _load(self, batch: Any, place: int, folder: Path, key: str) -> Loaded:
        return load_row(batch, place, self.columns, folder, prompt=self._prompt, otherwise=key)


def load_row(
    table: Any, place: int, columns: Columns, folder: Path, *, prompt: str | None, otherwise: str
) -> Loaded:
    """One row of an Arrow table or batch; see `Columns.load`."""
    try:
        (row,) = table.slice(place, 1).to_pylist()
    except ValueError as error:  # text that is no UTF-8, a date that Python has none for
        said = f"a value in this row cannot be read ({type(error).__name__})"
        return Loaded(plain_key(None, otherwise), UnsupportedContentError(said))
    return columns.load(row, folder, prompt=prompt, otherwise=otherwise)


def media_by_type(names: Sequence[str], types: Sequence[Any]) -> dict[str, bool]:
    """What Arrow types tell of columns; see `Columns.found_in`."""
    arrow, known = require("pyarrow.types"), require("pyarrow").DataType
    told: dict[str, bool] = {}
    for name, kind in zip(names, types, strict=True):
        if not isinstance(kind, known):  # a column of Python objects in a Ray dataset
            continue
        one = kind
        while arrow.is_list(one) or arrow.is_large_list(one) or arrow.is_fixed_size_list(one):
            one = one.value_type
        if arrow.is_binary(one) or arrow.is_large_binary(one):
            told[name] = True
        elif arrow.is_struct(one) and one.get_field_index("bytes") >= 0:
            told[name] = True
        elif arrow.is_primitive(kind) or arrow.is_decimal(kind) or arrow.is_null(kind):
            told[name] = False  # numbers, truth values, dates, or nothing at all
    return told


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    parquet, arrow = require("pyarrow.parquet"), require("pyarrow")
    try:
        with (
            arrow.OSFile(os.fsencode(path)) as source,  # a name need not be text
            parquet.ParquetFile(source, buffer_size=_BUFFER, pre_buffer=False) as file,
        ):
            yield file
    except (arrow.ArrowException, OSError) as error:  # a damaged page is an OSError to it
        said = " ".join(str(error).split())
        raise DatasetError(f"{path} cannot be read as Parquet: {said}") from error


_MAX_LINE = 256_000_000  # bytes; a longer line is a row with an error
_LOOKED_AT = 100  # lines, of which one must be readable


class JsonlSource:
    """The lines of a file; relative paths in them are taken from its folder.

    Without columns a line is a `Row`; with columns it is an object, of which those are read that
    `Columns` says.
    `known` is what an earlier run noted: a file that did not change is not counted again.

    Raises:
        DatasetError: none of the first lines is a request: a key is misspelt, say.
    """

    kind = "jsonl"

    def __init__(
        self,
        path: Path,
        columns: Columns,
        *,
        prompt: str | None,
        known: Mapping[str, Any] | None = None,
    ) -> None:
        columns.require_consistent()
        self._path, self._columns, self._prompt = path, columns, prompt
        self.digest = self.now()
        counted = known is not None and known.get("digest") == self.digest
        self.rows = known["rows"] if known is not None and counted else self._count()
        self._require_requests()

    def now(self) -> str:
        """Over size and time of change; `digest` is that of when the file was opened."""
        return file_digest([self._path], self._path.parent)

    def items(self, wanted: Wanted) -> Iterator[Item]:
        """The wanted lines, in order."""
        with self._path.open("rb") as file:
            for number, line in enumerate(_lines(file)):
                if wanted.row(number):
                    yield Item(number, partial(self._load, number, line))

    def _count(self) -> int:
        with self._path.open("rb") as file:
            return sum(1 for _ in _lines(file))

    def _require_requests(self) -> None:
        with self._path.open("rb") as file:
            looked_at = islice(enumerate(_lines(file)), _LOOKED_AT)
            first = [self._load(number, line).value for number, line in looked_at]
        if first and all(isinstance(value, InputError) for value in first):
            raise DatasetError(
                f"none of the first {len(first)} lines of {self._path} is a request; the first: "
                f"{first[0]}. Name the columns to read, such as --text-column"
            )

    def _load(self, number: int, line: bytes | None) -> Loaded:
        key, folder, columns = str(number), self._path.parent, self._columns
        try:
            if line is None:
                raise UnsupportedContentError(f"the line is longer than {_MAX_LINE} bytes")
            row = parsed(line)
            if isinstance(row, dict):
                key = plain_key(row.get(columns.id or "id"), key)
                if columns.given:
                    here = columns.found_in([*columns.names(), *_there(row)], _media(row))
                    return here.load(row, folder, prompt=self._prompt, otherwise=key)
                left_out = {columns.id, *columns.ignored}
                row = {name: value for name, value in row.items() if name not in left_out}
            elif columns.given:
                raise UnsupportedContentError("columns are named, and the line is no object")
            return Loaded(key, self._asked(read_row(row, Row).request(folder)))
        except InputError as error:
            return Loaded(key, error)
        except ConfigurationError as error:  # of this line's keys, so this line's fault
            return Loaded(key, UnsupportedContentError(str(error)))

    def _asked(self, request: Any) -> Any:
        """The request, with the prompt beside pictures and videos that came without words."""
        match request:
            case Chat(messages, tools):
                return Chat(self._asked(messages), tools)
            case [{"role": "user", "content": list(content), **more}] if (
                self._prompt is not None and not more and not any(map(_has_words, content))
            ):
                asked = {"type": "text", "text": self._prompt}
                return [{"role": "user", "content": [*content, asked]}]
        return request


def _there(row: Mapping[str, Any]) -> list[str]:
    """The keys of a line that hold something."""
    return [name for name, value in row.items() if value is not None]


def _media(row: Mapping[str, Any]) -> dict[str, bool]:
    """What the values of a line tell of its keys; see `Columns.found_in`."""
    return {
        name: isinstance(value, dict)
        for name, value in row.items()
        if isinstance(value, int | float) or (isinstance(value, dict) and "bytes" in value)
    }


def _has_words(part: object) -> bool:
    return not (isinstance(part, dict) and part.get("type") in ("image", "video"))


def _lines(file: BinaryIO) -> Iterator[bytes | None]:
    """Lines that are not blank; None for one that is too long to be held."""
    while line := file.readline(_MAX_LINE + 1):
        if len(line) > _MAX_LINE:
            while line and not line.endswith(b"\n"):
                line = file.readline(_MAX_LINE)
            yield None
        elif line.strip():
            yield line
