"""A JSONL file: each line that is not blank is a row."""

from __future__ import annotations

from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, BinaryIO

from guardrail.bulk.columns import Columns
from guardrail.bulk.identity import file_digest
from guardrail.bulk.items import Item, Loaded, plain_key
from guardrail.errors import (
    ConfigurationError,
    DatasetError,
    InputError,
    UnsupportedContentError,
)
from guardrail.requests.lines import line_request
from guardrail.requests.strict_json import strict_json

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path
    from typing import Any

    from guardrail.bulk.items import Wanted

_MAX_LINE = 256_000_000  # bytes; a longer line is a row with an error
_LOOKED_AT = 100  # lines, of which one must be readable
_KEYS = Columns(messages="messages", text="text", image="image", video="video")


class JsonlSource:
    """The lines of a file; relative paths in them are taken from its folder.

    Without columns a line is a string, a chat, or an object with `messages`, or with `text`,
    `image` and `video`; with columns it is an object, of which those are read that `Columns` says.
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
        self._digest = self.now()
        counted = known is not None and known.get("digest") == self._digest
        self.rows = known["rows"] if known is not None and counted else self._count()
        self._require_requests()

    def digest(self) -> str:
        """Over size and time of change when the file was opened."""
        return self._digest

    def now(self) -> str:
        """The same of this moment."""
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
            row = _parsed(line)
            if isinstance(row, dict):
                key = plain_key(row.get(columns.id or "id"), key)
                if columns.given:
                    here = columns.found_in([*columns.names(), *_there(row)], _media(row))
                    return here.load(row, folder, prompt=self._prompt, otherwise=key)
                left_out = {columns.id, *columns.ignored}
                row = {name: value for name, value in row.items() if name not in left_out}
            elif columns.given:
                raise UnsupportedContentError("columns are named, and the line is no object")
            request = line_request(row, folder)
            if isinstance(row, dict):  # what passes for a label may be what is asked
                _KEYS.require_read(_there(row), _media(row))
            return Loaded(key, self._asked(request))
        except InputError as error:
            return Loaded(key, error)
        except ConfigurationError as error:  # of this line's keys, so this line's fault
            return Loaded(key, UnsupportedContentError(str(error)))

    def _asked(self, request: object) -> object:
        """The request, with the prompt beside pictures and videos that came without words."""
        match request:
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


def _parsed(line: bytes | None) -> object:
    if line is None:
        raise UnsupportedContentError(f"the line is longer than {_MAX_LINE} bytes")
    try:
        return strict_json(line.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise UnsupportedContentError(f"the line is no UTF-8 text ({error.reason})") from error
    except (ValueError, RecursionError) as error:
        raise UnsupportedContentError(f"the line is not JSON ({error})") from error


def _lines(file: BinaryIO) -> Iterator[bytes | None]:
    """Lines that are not blank; None for one that is too long to be held."""
    while line := file.readline(_MAX_LINE + 1):
        if len(line) > _MAX_LINE:
            while line and not line.endswith(b"\n"):
                line = file.readline(_MAX_LINE)
            yield None
        elif line.strip():
            yield line
