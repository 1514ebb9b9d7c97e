"""A user's own benign traffic: a JSONL file, read line by line."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from guardrail.errors import ConfigurationError, DatasetError
from guardrail.inputs.rows import LABELS, Row, missing_file, read_rows
from guardrail.requests.messages import Chat


def benign_lines(path: Path) -> Iterator[tuple[str, object]]:
    """The requests of a JSONL file, in order, each with its place for errors to name.

    Lines are rows as `guardrail.inputs.rows` reads them; a `label` must not say that the line is
    something else than benign.

    Raises:
        DatasetError: a line that is none of these; the message names it.
    """
    for number, row in read_rows(path, Row):
        where = f"{path}, line {number}"
        label = row.label
        is_benign = isinstance(label, str) and LABELS.get(label.lower()) == "harmless"
        if label is not None and not is_benign:
            raise DatasetError(
                f"{where}: labelled {label!r}; only benign inputs calibrate thresholds"
            )
        yield where, row.request(path.parent)


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
        chat = request.messages if isinstance(request, Chat) else request
        if isinstance(chat, list) and (missing := missing_file(chat)):
            raise DatasetError(f"{where}: {missing}")
        count += 1
    return count
