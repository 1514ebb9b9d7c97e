"""A row in, read when its turn comes, and the row that goes out for it."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from guardrail.errors import (
    GuardClosedError,
    GuardrailError,
    InputError,
    MissingExtraError,
    RequestCancelledError,
)
from guardrail.types import Verdict

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

# What ends the whole run: no other row would fare better.
FATAL = (GuardClosedError, MissingExtraError, RequestCancelledError)
_LONGEST = 500  # characters of an error's message
_CONTROLS = dict.fromkeys((*range(32), *range(127, 160)), "\ufffd")

# Names and Arrow types of what a row out holds, in order, after its number and key.
VERDICT_FIELDS: Mapping[str, str] = {
    "action": "string",
    "would_be": "string",
    "score": "float64",
    "tau_steer": "float64",
    "tau_flag": "float64",
    "modality": "string",
    "mode": "string",
    "reason": "string",
    "folded": "bool",
    "window_start_s": "float64",
    "window_end_s": "float64",
    "where_reading": "string",
    "where_message": "int64",
    "where_role": "string",
    "where_part": "int64",
    "where_start": "int64",
    "where_stop": "int64",
    "artefact_id": "string",
    "error_type": "string",
    "error": "string",
}
ROW_FIELDS: Mapping[str, str] = {"row": "int64", "key": "string", **VERDICT_FIELDS}
OutRow = dict[str, Any]


class Loaded(NamedTuple):
    """A row's key and the value to check, or the error that stands in its place."""

    key: str
    value: Any


@dataclass(frozen=True, slots=True)
class Item:
    """A row: its number in the source, from 0, and how it is read (in a reading thread)."""

    number: int
    load: Callable[[], Loaded]


class Wanted(Protocol):
    """Which rows are still to be scored."""

    def row(self, number: int) -> bool:
        """Whether this one is."""

    def any(self, start: int, stop: int) -> bool:
        """Whether any of the rows from `start` to before `stop` is."""


def plain_key(value: object, otherwise: str) -> str:
    """An id as text that any file can hold; `otherwise` where a row has no usable id."""
    usable = isinstance(value, str | int) and not isinstance(value, bool)
    text = str(value) if usable else otherwise
    return text.encode("utf-8", "backslashreplace").decode()


def out_row(number: int, key: str, outcome: Verdict | BaseException, artefact_id: str) -> OutRow:
    """One row out: `reason` is score, detector_failed, unreadable or failed.

    A row that could not be read or scored has neither action nor score, so no filter for `pass`
    takes it for one. An error that is not ours may quote the request: its type alone is kept.

    Raises:
        GuardrailError: an error that would meet every other row, too.
    """
    row: OutRow = dict.fromkeys(ROW_FIELDS) | {"row": number, "key": key}
    row["artefact_id"] = artefact_id
    if isinstance(outcome, Verdict):
        return row | _of_verdict(outcome)
    if isinstance(outcome, FATAL):
        raise outcome
    ours = isinstance(outcome, GuardrailError)
    return row | {
        "reason": "unreadable" if isinstance(outcome, InputError) else "failed",
        "error_type": type(outcome).__name__,
        "error": _said(outcome) if ours else "an unexpected error; its words are not kept",
    }


def has_failed(row: OutRow) -> bool:
    """Whether the detector, not the row, is to blame for a missing score."""
    return row["reason"] in ("detector_failed", "failed")


def _of_verdict(verdict: Verdict) -> OutRow:
    plain = verdict.to_dict()
    found = {name: plain[name] for name in VERDICT_FIELDS if name in plain}
    if verdict.window is not None:
        found["window_start_s"] = verdict.window.start_s
        found["window_end_s"] = verdict.window.end_s
    if verdict.where is not None:
        where = {f"where_{name}": v for name, v in verdict.where.to_dict(words=False).items()}
        found |= {name: where[name] for name in VERDICT_FIELDS if name in where}
    return found


def _said(error: BaseException) -> str:
    words = " ".join(str(error).split()).translate(_CONTROLS)
    return words.encode("utf-8", "replace").decode()[:_LONGEST]


def file_digest(paths: Sequence[Path], folder: Path) -> str:
    """SHA-256 over files below a folder; their content is not read.

    Raises:
        OSError: a file is not there any more.
    """
    facts = []
    for path in paths:
        found = path.stat()
        facts.append([path.relative_to(folder).as_posix(), found.st_size, found.st_mtime_ns])
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()
