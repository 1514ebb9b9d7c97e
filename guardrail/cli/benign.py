"""A user's own benign traffic: a JSONL file, read line by line."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from guardrail.errors import ConfigurationError, DatasetError, UnsupportedContentError
from guardrail.requests.lines import line_request
from guardrail.requests.placing import picture_files, video_files
from guardrail.requests.strict_json import strict_json

_BENIGN = {"benign", "harmless", "safe"}


def benign_lines(path: Path) -> Iterator[tuple[str, object]]:
    """The requests of a JSONL file, in order, each with its place for errors to name.

    A line is a string, a chat (a list of messages), or an object with `messages`, or with `text`,
    `image` and `video` (one path or several), which are found relative to the file. Labels (id,
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
    """How many requests a JSONL file holds; every line and every file it names is checked.

    Nothing is kept, so the file may be of any size.

    Raises:
        ConfigurationError: a pipe or device, which cannot be read twice.
        DatasetError: a line that is no benign request, or a picture or video that is not there.
    """
    if not path.is_file():
        raise ConfigurationError(f"{path} is no regular file and is read twice; save it first")
    count = 0
    for where, request in benign_lines(path):
        chat = request if isinstance(request, list) else []
        for what, names in (("picture", picture_files(chat)), ("video", video_files(chat))):
            for name in names:
                if not os.path.isfile(name):  # unlike Path.is_file, it bears any string
                    raise DatasetError(f"{where}: there is no {what} file {name[:80]!r}")
        count += 1
    return count


def _benign(line: bytes, *, folder: Path, where: str) -> object:
    try:
        row = strict_json(line.decode("utf-8-sig"))  # a key that stands twice would be lost
    except (ValueError, RecursionError) as error:
        raise DatasetError(f"{where}: not JSON ({error})") from error
    match row:
        case {"label": label} if not (isinstance(label, str) and label in _BENIGN):
            raise DatasetError(
                f"{where}: labelled {label!r}; only benign inputs calibrate thresholds"
            )
    try:
        return line_request(row, folder)
    except UnsupportedContentError as error:
        raise DatasetError(f"{where}: {error}") from error
