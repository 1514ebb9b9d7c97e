"""Text from tokens, as early as it is certain, and never past a stop string.

Joined, the chunks of an answer are its text: streaming and waiting give the same characters.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from guardrail.online.tool_calls import CallReader

Decode = Callable[[Sequence[int]], str]

_INCOMPLETE = "\ufffd"


class Detokeniser:
    """Token ids to text, holding back a character that is not complete yet."""

    def __init__(self, decode: Decode) -> None:
        self._decode = decode
        self._ids: list[int] = []
        # Tokens in [context, emitted) are out; they stay, since neighbours change how text joins.
        self._context = self._emitted = 0

    def push(self, token: int) -> str:
        """The text that one more token makes certain."""
        self._ids.append(token)
        return self._next(finish=False)

    def flush(self) -> str:
        """What is left at the end, complete or not."""
        return self._next(finish=True)

    def _next(self, *, finish: bool) -> str:
        before = self._decode(self._ids[self._context : self._emitted])
        after = self._decode(self._ids[self._context :])
        if len(after) <= len(before) or (after.endswith(_INCOMPLETE) and not finish):
            return ""
        self._context, self._emitted = self._emitted, len(self._ids)
        return after[len(before) :]


class StopFilter:
    """Lets text through up to the first stop string, holding back what might begin one."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stop for stop in stops if stop)
        self._held = ""
        self.matched = False

    def push(self, text: str) -> str:
        """The part of the text so far that no stop string can claim any more."""
        if self.matched:
            return ""
        self._held += text
        found = [at for stop in self._stops if (at := self._held.find(stop)) >= 0]
        if found:
            self.matched = True
            out, self._held = self._held[: min(found)], ""
            return out
        keep = max((_overlap(self._held, stop) for stop in self._stops), default=0)
        cut = len(self._held) - keep
        out, self._held = self._held[:cut], self._held[cut:]
        return out

    def flush(self) -> str:
        """What was held back for a stop string that did not come."""
        out, self._held = self._held, ""
        return out


class AnswerText:
    """One answer's text while its tokens arrive; `emit` gets each chunk, never an empty one."""

    def __init__(
        self,
        decode: Decode,
        *,
        stops: Sequence[str] = (),
        emit: Callable[[str], None] | None,
        calls: CallReader | None = None,
    ) -> None:
        self._calls = calls
        self._detokeniser = Detokeniser(decode)
        self._filter = StopFilter(stops)
        self._emit = emit
        self._chunks: list[str] = []

    @property
    def text(self) -> str:
        """Everything let through so far."""
        return "".join(self._chunks)

    def take(self, token: int) -> bool:
        """One more token; true when a stop string is complete and the answer with it."""
        self._out(self._filter.push(self._detokeniser.push(token)))
        return self._filter.matched

    def end(self) -> str:
        """Let the rest through, but for what may be a tool call; the whole text so far."""
        self._out(self._filter.push(self._detokeniser.flush()))
        self._out(self._filter.flush())
        return self.text

    def release(self, chunk: str) -> None:
        """Let text through that was held back."""
        self._through(chunk)

    def _out(self, chunk: str) -> None:
        self._through(chunk if self._calls is None else self._calls.push(chunk))

    def _through(self, chunk: str) -> None:
        if not chunk:
            return
        self._chunks.append(chunk)
        if self._emit is not None:
            self._emit(chunk)


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that begins `stop`."""
    sizes = range(min(len(text), len(stop) - 1), 0, -1)
    return next((size for size in sizes if text.endswith(stop[:size])), 0)
