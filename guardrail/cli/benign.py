"""A user's own benign traffic: a JSONL file, read line by line."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from guardrail.cli.requests import turn
from guardrail.errors import ConfigurationError, DatasetError
from guardrail.requests.placing import picture_files, placed
from guardrail.requests.strict_json import strict_json

_BENIGN = {"benign", "harmless", "safe"}
# Keys of a benign line that describe it and are not read.
_ABOUT = {"id", "label", "category", "kind", "form", "pair", "split", "source", "language", "note"}
_ABOUT |= {"licence", "license", "question", "statement"}


def benign_lines(path: Path) -> Iterator[tuple[str, object]]:
    """The requests of a JSONL file, in order, each with its place for errors to name.

    A line is a string, a chat (a list of messages), or an object with `messages`, or with `text`
    and `image` (one path or several); pictures are found relative to the file. Labels (id,
    category, source, ...) are allowed and not read, except that a `label` must not say that the
    line is something else than benign; any other key is refused, since it would be lost.

    Raises:
        DatasetError: a line that is none of these; the message names it.
    """
    with path.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            if line.strip():
                where = f"{path}, line {number}"
                yield where, _benign(line, folder=path.parent, where=where)


def count_benign(path: Path) -> int:
    """How many requests a JSONL file holds; every line and every picture's path is checked.

    Nothing is kept, so the file may be of any size.

    Raises:
        ConfigurationError: a pipe or device, which cannot be read twice.
        DatasetError: a line that is no benign request, or a picture that is not there.
    """
    if not path.is_file():
        raise ConfigurationError(f"{path} is no regular file and is read twice; save it first")
    count = 0
    for where, request in benign_lines(path):
        for picture in picture_files(request if isinstance(request, list) else []):
            if not os.path.isfile(picture):  # unlike Path.is_file, it bears any string
                raise DatasetError(f"{where}: there is no picture file {picture[:80]!r}")
        count += 1
    return count


def _benign(line: bytes, *, folder: Path, where: str) -> object:
    try:
        row = strict_json(line.decode("utf-8-sig"))  # a key that stands twice would be lost
    except (ValueError, RecursionError) as error:
        raise DatasetError(f"{where}: not JSON ({error})") from error
    match row:
        case str():
            return row
        case list():
            return placed(row, folder)
        case {"label": label} if not (isinstance(label, str) and label in _BENIGN):
            raise DatasetError(
                f"{where}: labelled {label!r}; only benign inputs calibrate thresholds"
            )
        case {"messages": list(messages)}:
            _refuse_others(row, {"messages"}, where)
            return placed(messages, folder)
        case {"image": _} | {"text": _}:
            _refuse_others(row, {"text", "image"}, where)
    request = _described(row, folder, where)
    if request is None:
        raise DatasetError(
            f"{where}: expected a string, a list of messages, or an object with `messages`, or "
            "with `text` and `image`"
        )
    return request


def _described(row: Any, folder: Path, where: str) -> object:
    """The request that `text` and `image` describe, if they do."""
    match row:
        case {"image": str(image)}:
            return turn(_text(row, where), [folder / image])
        case {"image": list(images)} if all(isinstance(image, str) for image in images):
            return turn(_text(row, where), [folder / image for image in images])
        case {"text": str(text)} if "image" not in row:
            return text
    return None


def _refuse_others(row: Mapping[str, object], read: set[str], where: str) -> None:
    if others := sorted(set(row) - read - _ABOUT):
        raise DatasetError(
            f"{where}: {', '.join(map(repr, others))} beside {' and '.join(sorted(read))} would "
            f"not be read; a line has `messages`, or `text` and `image`, and labels such as `id`"
        )


def _text(row: Mapping[str, object], where: str) -> str | None:
    text = row.get("text")
    if text is None or isinstance(text, str):
        return text
    raise DatasetError(f"{where}: `text` is a string, not {type(text).__name__}")
