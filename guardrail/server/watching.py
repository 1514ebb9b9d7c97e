"""Answers of models that the guard does not run, judged as text that its own model reads.

An answer is judged without the chat that it is to: what reads answers was fitted on half of them
behind another prompt, a check costs one short prefill then, and nobody else's pictures are read
twice. A stream is judged in steps, each with as much of what went before as a window can reach back
into; so it is late by a step and a window, and nothing of a window that is flagged is passed on.
"""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from guardrail.errors import DetectorError
from guardrail.front.chats import UNSAID
from guardrail.front.consequences import settled
from guardrail.policy.acting import passes_unchecked

if TYPE_CHECKING:
    from collections.abc import Hashable, Mapping, Sequence

    from guardrail.front.consequences import Settled
    from guardrail.guard import Guard
    from guardrail.types import Verdict

STEP = 160  # characters of a stream between two checks, about 40 tokens
WINDOW = 160  # characters that a window of 32 tokens is hardly longer than

Piece = tuple["Hashable", str]


async def settled_answers(
    guard: Guard, texts: Sequence[str], options: Mapping[str, Any]
) -> list[Settled | None]:
    """What becomes of each answer; None for one that is blank, or passes without a verdict.

    Raises:
        DetectorError: one could not be judged, and the policy does not let it pass.
        GuardrailError: it cannot be read.
    """
    return list(await asyncio.gather(*(_settled(guard, text, options) for text in texts)))


async def _settled(guard: Guard, text: str, options: Mapping[str, Any]) -> Settled | None:
    if not text.strip():
        return None
    try:
        verdict = await guard.acheck_answer(UNSAID, text, **options)
    except DetectorError as error:
        if passes_unchecked(error, guard.policy):
            return None
        raise
    return settled(verdict, guard.policy, caution=lambda words: None)


@dataclass(slots=True)
class _Text:
    """One answer of a stream: what is said, and how far it is judged and may be passed on."""

    said: str = ""
    judged: int = 0
    safe: int = 0


@dataclass(slots=True)
class WatchedStream:
    """Events of a stream that are held until what they say was judged.

    `verdict` is the last that was made, that of the cut where there is one.
    """

    guard: Guard
    options: Mapping[str, Any]
    verdict: Verdict | None = None
    _held: deque[tuple[bytes, dict[Hashable, int]]] = field(default_factory=deque)
    _texts: dict[Hashable, _Text] = field(default_factory=dict)

    async def take(self, event: bytes, pieces: Sequence[Piece]) -> list[bytes] | None:
        """One more event, with what it says of which answer: those to pass on; None to cut.

        Raises:
            DetectorError, GuardrailError: as `settled_answers`.
        """
        ends = {}
        for key, said in pieces:
            text = self._texts.setdefault(key, _Text())
            text.said += said
            ends[key] = len(text.said)
        self._held.append((event, ends))
        due = [t for t in self._texts.values() if len(t.said) - t.judged >= STEP]
        return await self._judged(due) if due else self._released()

    async def end(self) -> list[bytes] | None:
        """Nothing follows: the rest to pass on, or None."""
        due = [t for t in self._texts.values() if len(t.said) > t.judged]
        found = await self._judged(due)
        if found is None:
            return None
        rest = [event for event, _ in self._held]
        self._held.clear()
        return [*found, *rest]

    async def _judged(self, due: Sequence[_Text]) -> list[bytes] | None:
        lasts = [text.said[max(0, text.judged - WINDOW) :] for text in due]
        for text, after in zip(
            due, await settled_answers(self.guard, lasts, self.options), strict=True
        ):
            text.judged = len(text.said)
            text.safe = max(text.safe, text.judged - WINDOW)
            if after is not None:
                self.verdict = after.verdict
                if after.done == "flag":
                    self._held.clear()
                    return None
        return self._released()

    def _released(self) -> list[bytes]:
        found = []
        while self._held:
            event, ends = self._held[0]
            if any(end > self._texts[key].safe for key, end in ends.items()):
                break
            found.append(event)
            self._held.popleft()
        return found
