"""A verdict on the wire, and the events of streams that it goes with, written and read.

Verdicts come here as what `Verdict.told` gives: who may not hear a score does not get one. Events
are bytes: cut into whole events, looked into, and otherwise left alone.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

from guardrail.inputs.strict_json import strict_json

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

FIELD = "guardrail"
"""The key of an answer under which its verdict stands."""

DONE = b"data: [DONE]\n\n"

# Atomic, so that the two bytes of one line end never count as two line ends.
_BLANK_LINE = re.compile(rb"(?>\r\n|\n|\r)(?>\r\n|\n|\r)")
_LINE_END = re.compile(r"\r\n|\n|\r")
_DONE = "[DONE]"
_NAMED = {
    "Action": "action",
    "Would-Be": "would_be",
    "Modality": "modality",
    "Reason": "reason",
    "Mode": "mode",
    "Artefact": "artefact_id",
}


def verdict_headers(told: Mapping[str, Any]) -> dict[str, str]:
    """The headers of a judged answer; a score of None has none."""
    named = {name: str(told[field]) for name, field in _NAMED.items()}
    if told.get("score") is not None:
        named["Score"] = f"{told['score']:.4f}"
    if told.get("where") is not None:
        named["Where"] = _where(told["where"])
    return {f"X-Guardrail-{name}": value for name, value in named.items()}


def _where(where: Mapping[str, Any]) -> str:
    """A token with parameters (RFC 8941): `window; message=2; role=user; part=0`, from 0 on."""
    part = "" if where["part"] is None else f"; part={where['part']}"
    return f"{where['reading']}; message={where['message']}; role={where['role']}{part}"


def event(data: object, kind: str | None = None) -> bytes:
    """One event of a stream."""
    head = f"event: {kind}\n" if kind else ""
    return f"{head}data: {json.dumps(data)}\n\n".encode()


class EventTooLargeError(ValueError):
    """An event does not end within the bytes that are allowed for one."""


class Splitter:
    """Cuts a stream of bytes into events, each with the blank line that ends it."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._data, self._seen = bytearray(), 0

    def feed(self, chunk: bytes) -> list[bytes]:
        """The events that are whole now.

        Raises:
            EventTooLargeError: what is not whole yet is larger than allowed.
        """
        self._data += chunk
        found, start = [], 0
        where = max(self._seen - 3, 0)  # a blank line may have come in two pieces
        while match := _BLANK_LINE.search(self._data, where):
            found.append(bytes(self._data[start : match.end()]))
            start = where = match.end()
        del self._data[:start]
        self._seen = len(self._data)
        if self._seen > self._max_bytes or any(len(event) > self._max_bytes for event in found):
            raise EventTooLargeError
        return found

    def rest(self) -> bytes:
        """What is left when the stream has ended."""
        return bytes(self._data)


class Event:
    """One event. `data` is its JSON object; None for comments and for the closing mark (`done`).

    `clean` takes out of the data what must not go on; `raw` is the event without it.

    Raises:
        ValueError: it is no UTF-8, or its data are neither an object nor the mark.
    """

    def __init__(self, raw: bytes, clean: Callable[[Any], Any] = lambda value: value) -> None:
        self.raw, self.done = raw, False
        self.data: dict[str, Any] | None = None
        self._lines = _LINE_END.split(raw.decode("utf-8").removeprefix("\ufeff"))
        texts = [line[5:].removeprefix(" ") for line in self._lines if _is_data(line)]
        text = "\n".join(texts).strip()
        if text == _DONE:
            self.done = True
        elif text:
            try:
                found = strict_json(text)
                data = clean(found)
            except RecursionError as error:
                raise ValueError("nested too deep") from error
            if not isinstance(data, dict):
                raise ValueError("the data are no object")
            self.data = data
            if data != found:
                self.raw = self.with_data(data)

    def with_field(self, name: str, value: object) -> bytes:
        """The event with a key in its data; its other lines stay."""
        return self.with_data({**(self.data or {}), name: value})

    def with_data(self, value: object) -> bytes:
        """The event with other data; its other lines stay."""
        kept = [line for line in self._lines if line and not _is_data(line)]
        data = json.dumps(value)
        return ("\n".join([*kept, f"data: {data}"]) + "\n\n").encode()


def _is_data(line: str) -> bool:
    return line.startswith("data:") or line == "data"
