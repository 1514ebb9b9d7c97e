"""The server's log on stderr: one line an event, as JSON or as text, without what was asked.

The words of exceptions may quote a request, so of an exception a line holds its type and where it
came from, never its message.
"""

from __future__ import annotations

import json
import logging
import re
import sys
import traceback
from typing import TYPE_CHECKING, Any

import structlog

if TYPE_CHECKING:
    from collections.abc import MutableMapping

    from structlog.typing import Processor

    from guardrail.server.settings import LogFormat, LogLevel

_OWN = ("guardrail", "py.warnings")
_PLAIN = re.compile(r"[\x21\x23-\x3c\x3e-\x7e]+")  # visible ASCII without quotes and "="
_NOT_TOLD = ("color_message", "exc_info", "stack_info", "stack", "message", "asctime")


def configure(*, style: LogFormat = "json", level: LogLevel = "info") -> None:
    """Send the log of this process to stderr; libraries below the server only warn."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(formatter(style))
    logging.basicConfig(handlers=[handler], level=logging.WARNING, force=True)
    logging.captureWarnings(True)
    for name in _OWN:
        logging.getLogger(name).setLevel(level.upper())
    # What uvicorn informs of, its own starting and ending, the server says by itself.
    logging.getLogger("uvicorn").setLevel("WARNING" if level == "info" else level.upper())


def formatter(style: LogFormat) -> logging.Formatter:
    """What makes a line of a log record."""
    shared: list[Processor] = [
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.ExtraAdder(),
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    return structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=shared,
        processors=[_without_words, _json if style == "json" else _text],
    )


def _without_words(
    _logger: object, _method: str, event: MutableMapping[str, Any]
) -> MutableMapping[str, Any]:
    """Put an exception's type and places in the place of the exception."""
    record = event.pop("_record", None)
    event.pop("_from_structlog", None)
    info = getattr(record, "exc_info", None) or event.get("exc_info")
    error = info[1] if isinstance(info, tuple) else None
    if error is not None:
        event["error"] = type(error).__name__
        event["at"] = places(error)
        if event.get("logger") == "asyncio":  # below its first line it writes the error itself
            event["event"] = str(event["event"]).partition("\n")[0]
    for key in _NOT_TOLD:
        event.pop(key, None)
    return {key: value for key, value in event.items() if value is not None}


def places(error: BaseException) -> list[str]:
    """Where an error came from, outermost call first, and what caused it."""
    found = [
        f"{frame.filename}:{frame.lineno} {frame.name}"
        for frame in traceback.extract_tb(error.__traceback__)
    ]
    cause = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    if cause is not None:
        found += [f"because of {type(cause).__name__}", *places(cause)]
    return found


def _json(_logger: object, _method: str, event: MutableMapping[str, Any]) -> str:
    return json.dumps(event, default=_kind)


def _text(_logger: object, _method: str, event: MutableMapping[str, Any]) -> str:
    """`time level event key=value ...`, every character but plain ones escaped."""
    head = [event.pop("timestamp", ""), event.pop("level", ""), _quoted(event.pop("event", ""))]
    return " ".join([*head, *(f"{key}={_quoted(value)}" for key, value in event.items())])


def _quoted(value: object) -> str:
    text = value if isinstance(value, str) else json.dumps(value, default=_kind)
    return text if _PLAIN.fullmatch(text) else json.dumps(text)


def _kind(value: object) -> str:
    return f"<{type(value).__name__}>"
