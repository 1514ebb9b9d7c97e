"""What a model was asked before, in one SQLite file: by content, input by input.

Keys name everything a value depends on, so nothing is ever out of date; a changed model, input or
setting has another key. Each batch is one transaction: an interrupted run resumes, and a second
process may use the same file.
"""

from __future__ import annotations

import hashlib
import json
import logging
import sqlite3
from typing import TYPE_CHECKING, Self

from guardrail.artefact.file import move
from guardrail.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

log = logging.getLogger(__name__)
FILENAME = "evaluation.sqlite"
_WAIT_S = 60.0  # for another process to finish its batch
_AT_ONCE = 500  # keys in one query; SQLite allows 999 at least
_TABLE = "CREATE TABLE IF NOT EXISTS entries (key TEXT PRIMARY KEY, digest BLOB, value BLOB)"


class Cache:
    """Bytes by key; without a folder nothing is kept."""

    def __init__(self, work_dir: Path | None = None) -> None:
        """Open, or make, the file in `work_dir`.

        Raises:
            ConfigurationError: the folder cannot be used.
        """
        self._path = None if work_dir is None else work_dir / FILENAME
        self._file: sqlite3.Connection | None = None
        if self._path is None:
            return
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self._opened(self._path)
        except (OSError, sqlite3.Error) as error:
            raise ConfigurationError(
                f"{self._path} cannot be used ({error}); choose another work folder"
            ) from error

    def _opened(self, path: Path) -> sqlite3.Connection:
        try:
            return _connected(path)
        except sqlite3.OperationalError:  # locked, or no place to write: the file is whole
            raise
        except sqlite3.DatabaseError as error:
            aside = path.with_name(f"{path.name}.damaged")
            log.warning("%s is damaged (%s); it is now %s, all is read again", path, error, aside)
            move(path, aside)
            return _connected(path)

    def get(self, keys: Sequence[str]) -> dict[str, bytes]:
        """The values that are there and whole; a damaged one is gone after a warning."""
        found: dict[str, bytes] = {}
        if self._file is None:
            return found
        for start in range(0, len(keys), _AT_ONCE):
            part = keys[start : start + _AT_ONCE]
            marks = ",".join("?" * len(part))
            query = f"SELECT key, digest, value FROM entries WHERE key IN ({marks})"
            try:
                rows = self._file.execute(query, part).fetchall()
            except sqlite3.DatabaseError as error:
                log.warning("%s cannot be read (%s); its inputs are read again", self._path, error)
                continue
            for key, digest, value in rows:
                if isinstance(value, bytes) and digest == _digest(value):
                    found[key.decode()] = value
                else:
                    log.warning("an entry of %s is damaged; its input is read again", self._path)
        return found

    def put(self, values: Mapping[str, bytes]) -> None:
        """Keep values, all or none of them.

        Raises:
            ConfigurationError: they cannot be written.
        """
        if self._file is None:
            return
        rows = [(key, _digest(value), value) for key, value in values.items()]
        try:
            with self._file:
                self._file.executemany("INSERT OR REPLACE INTO entries VALUES (?, ?, ?)", rows)
        except sqlite3.Error as error:
            raise ConfigurationError(
                f"{self._path} cannot be written ({error}); make room, remove the file if it is "
                "damaged, or work without a work folder"
            ) from error

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()

    def __enter__(self) -> Self:
        """Return the cache itself."""
        return self

    def __exit__(self, *_error: object) -> None:
        """Close the file."""
        self.close()


def _connected(path: Path) -> sqlite3.Connection:
    file = sqlite3.connect(path, timeout=_WAIT_S)
    file.text_factory = bytes  # a damaged value may have become text that is none
    try:
        with file:
            file.execute(_TABLE)
        file.execute("SELECT key, digest, value FROM entries LIMIT 1").fetchone()
    except BaseException:
        file.close()
        raise
    return file


def _digest(value: bytes) -> bytes:
    return hashlib.blake2b(value, digest_size=16).digest()


def judgement_key(judge: str, prompt: str, answer: str) -> str:
    """Of what a judge said about an answer."""
    return key_of("judged", judge, prompt, answer)


def key_of(*parts: str) -> str:
    """One key for all that a value depends on."""
    return hashlib.sha256(as_json(parts).encode("utf-8", "surrogatepass")).hexdigest()


def as_json(value: object) -> str:
    """The same text for equal values, whatever the order of their keys."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"))
