"""What a guard found, told to sinks: an audit trail, one JSON line per verdict, and several as one.

    log = AuditLog("audit.jsonl", max_bytes=50_000_000, backups=4)
    guard = Guard(model, artefact, audit=log)
    guard = Guard(model, artefact, audit=fan_out(log, my_own_sink))

A line holds the time (UTC), the event, the request's id, the verdict and whatever measurements come
with it. It holds neither prompt nor answer nor a digest of them: a digest of a short prompt can be
guessed back. Your own sinks get the verdict itself, and with it the words of `verdict.where`.
"""

from __future__ import annotations

import json
import logging
import math
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from logging.handlers import RotatingFileHandler, WatchedFileHandler
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from guardrail.errors import ConfigurationError
from guardrail.types import Verdict

if TYPE_CHECKING:
    from collections.abc import Collection
    from types import TracebackType

Audit = Callable[[Verdict | None, Mapping[str, object]], None]
"""A sink of what a guard found: the verdict (None: there was no decision), and facts about it."""

_log = logging.getLogger(__name__)
_MODE = 0o600  # who judged whom, and when, is nobody else's business
TEXT_KEYS = frozenset(
    {"answer", "content", "input", "messages", "prompt", "query", "text", "words"}
)


class AuditLog:
    """Writes verdicts to a file or a text stream; safe to share between threads.

    Writing never disturbs the answer: a full disk is logged under `guardrail.audit` and counted in
    `dropped`. A file is appended to; with `max_bytes` it is rotated as the standard library's
    `RotatingFileHandler` does (`audit.jsonl.1`, ...), and without it a file that logrotate moved
    away is followed by a new one. New files are their owner's alone (mode 0600). A line is written
    as a whole or not at all. One process per file: several would cut and rotate each other's.

    `include_text` keeps what callers pass under `prompt`, `messages`, `text`, `answer` and the
    like, and the words of the verdict's `where`; otherwise those are left out at every depth.
    """

    def __init__(
        self,
        target: str | Path | TextIO,
        *,
        include_text: bool = False,
        max_bytes: int = 0,
        backups: int = 5,
    ) -> None:
        self.include_text = include_text
        if max_bytes and not isinstance(target, str | Path):
            raise ConfigurationError("max_bytes rotates files; a stream cannot be rotated")
        if max_bytes and backups < 1:  # the standard library would let the file grow for ever
            raise ConfigurationError(f"max_bytes needs at least one of `backups`; got {backups}")
        self._sink = (
            _open(Path(target), max_bytes, backups)
            if isinstance(target, str | Path)
            else _StreamSink(target)
        )

    @property
    def dropped(self) -> int:
        """How many lines could not be written."""
        return self._sink.dropped

    def __call__(self, verdict: Verdict | None, extra: Mapping[str, object]) -> None:
        """Write one line; the form in which a guard calls its `audit`."""
        facts: Any = plain(extra, leave_out=() if self.include_text else TEXT_KEYS)
        line = {
            "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
            "event": extra.get("event", "verdict"),
            "request_id": extra.get("request_id"),
            **({} if verdict is None else verdict.to_dict(words=self.include_text)),
        }
        # What we know ourselves wins over what came along under the same name.
        known: Any = plain(line)
        text = json.dumps({**known, **facts, **known})
        self._sink.handle(logging.makeLogRecord({"msg": "%s", "args": (text,)}))

    def write(
        self,
        verdict: Verdict | None,
        *,
        request_id: str | None = None,
        event: str = "verdict",
        **extra: object,
    ) -> None:
        """Write one line from keywords, for example `latency_s=0.12`."""
        self(verdict, {**extra, "event": event, "request_id": request_id})

    def close(self) -> None:
        """Close the file; a stream stays the caller's."""
        self._sink.close()

    def __enter__(self) -> AuditLog:
        """Return the log itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close the log."""
        self.close()


def fan_out(*sinks: Audit | None) -> Audit | None:
    """Several sinks as one; None among them are left out, and None is all that is left of none."""
    given = tuple(sink for sink in sinks if sink is not None)
    return FanOut(given) if len(given) > 1 else given[0] if given else None


class FanOut:
    """Hands every record to each of its sinks; one that fails touches neither others nor answers.

    Called on the model's thread, as any `audit` is: sinks must be quick and safe between threads.
    """

    def __init__(self, sinks: tuple[Audit, ...]) -> None:
        self.sinks = sinks
        self._failures = [0] * len(sinks)

    @property
    def failures(self) -> int:
        """How often a sink failed; what was to be recorded there is lost."""
        return sum(self._failures)

    def __call__(self, verdict: Verdict | None, facts: Mapping[str, object]) -> None:
        """Hand a record on."""
        for place, sink in enumerate(self.sinks):
            try:
                sink(verdict, facts)
            except Exception:  # a border: sinks are anybody's code
                self._failed(place)

    def _failed(self, place: int) -> None:
        count = self._failures[place] = self._failures[place] + 1
        if count.bit_count() == 1:  # 1, 2, 4, ...: the log must not fill with it
            name = type(self.sinks[place]).__name__
            _log.exception("the sink %s failed, %d times so far", name, count)


def plain(value: object, *, leave_out: Collection[str] = ()) -> object:
    """The same facts as values JSON has: infinities and NaN become strings, objects type names.

    What stands under a key of `leave_out`, in whatever case, is left out at every depth.
    """
    if isinstance(value, bool | int | str) or value is None:
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if isinstance(value, Mapping):
        told = {str(key): item for key, item in value.items()}
        return {
            key: plain(item, leave_out=leave_out)
            for key, item in told.items()
            if key.lower() not in leave_out
        }
    if isinstance(value, Sequence | frozenset | set) and not isinstance(value, bytes | bytearray):
        return [plain(item, leave_out=leave_out) for item in value]
    # The words of an unknown object may quote the request: its type is all that is told.
    return f"<{type(value).__name__}>"


class LineFile:
    """Appends to a file without a buffer, in the form that `logging.StreamHandler` writes to.

    A new file is readable by its owner alone; the mode of one that is there stays.
    """

    def __init__(self, path: str | Path) -> None:
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | getattr(os, "O_CLOEXEC", 0)
        self._fd = os.open(path, flags, _MODE)

    def write(self, text: str) -> int:
        """Append a text as a whole.

        Raises:
            OSError: it could not be written, and nothing of it is in the file.
        """
        data = text.encode()
        rest = memoryview(data)
        try:
            while rest:
                rest = rest[os.write(self._fd, rest) :]
        except OSError:
            if (written := len(data) - len(rest)) > 0:
                with suppress(OSError):  # a device or pipe cannot be cut
                    os.ftruncate(self._fd, self.tell() - written)
            raise
        return len(text)

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Go somewhere; writing happens at the end all the same."""
        return os.lseek(self._fd, offset, whence)

    def tell(self) -> int:
        """The place in bytes; after a write, the file's size."""
        return os.lseek(self._fd, 0, os.SEEK_CUR)

    def fileno(self) -> int:
        """The file's descriptor."""
        return self._fd

    def flush(self) -> None:
        """Nothing waits here."""

    def close(self) -> None:
        """Close the file; safe to call twice."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)


class _CountsDropped(logging.Handler):
    """A handler that counts the records it could not write and never raises."""

    dropped = 0

    def handleError(self, record: logging.LogRecord) -> None:
        """Called inside the handler's lock and its `except`; the traceback names the cause."""
        self.dropped += 1
        if self.dropped.bit_count() == 1:  # 1, 2, 4, ...: a full disk must not fill another
            _log.error("an audit line was not written; %d lost so far", self.dropped, exc_info=True)


class _RotatingSink(_CountsDropped, RotatingFileHandler):
    def _open(self) -> Any:
        return LineFile(self.baseFilename)


class _WatchedSink(_CountsDropped, WatchedFileHandler):
    """Goes on in a new file when another program has moved the old one away."""

    def _open(self) -> Any:
        return LineFile(self.baseFilename)

    def emit(self, record: logging.LogRecord) -> None:
        try:
            super().emit(record)
        except Exception:  # a new file that cannot be opened
            self.handleError(record)


class _StreamSink(_CountsDropped, logging.StreamHandler[TextIO]):
    pass


def _open(path: Path, max_bytes: int, backups: int) -> _RotatingSink | _WatchedSink:
    try:
        if max_bytes:
            return _RotatingSink(path, maxBytes=max_bytes, backupCount=backups, encoding="utf-8")
        return _WatchedSink(path, encoding="utf-8")
    except OSError as error:
        raise ConfigurationError(
            f"cannot open the audit log {path}: {error.strerror}; "
            "make its folder and allow this user to write there"
        ) from error
