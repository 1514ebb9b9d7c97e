"""Answers of models that the guard does not run, judged as text that its own model reads.

An answer is judged without the chat that it is to: what reads answers was fitted on half of them
behind another prompt, a check costs one short prefill then, and nobody else's pictures are read
twice. A stream is judged in steps, each with as much of what went before as a window can reach back
into; so it is late by a step and a window, and nothing of a window that is flagged is passed on.
(A window of 32 tokens that are longer than eight characters may have begun before.)
"""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Generic, NamedTuple, TypeVar

from guardrail.front.consequences import settled
from guardrail.front.judging import answer_verdict

if TYPE_CHECKING:
    from collections.abc import Hashable, Mapping, Sequence
    from typing import Any

    from guardrail.front.consequences import Settled
    from guardrail.guard import Guard
    from guardrail.types import Verdict

STEP = 160  # characters of a stream between two checks, about 40 tokens
WINDOW = 256  # characters that a window of 32 tokens is hardly longer than
LONGEST = 4000  # characters that are judged in one prefill

E = TypeVar("E")


class Spoken(NamedTuple):
    """What an event says of the text `key`: more of it, or the `whole` of what it has said so far.

    `done` says that nothing may follow.
    """

    key: Hashable
    text: str
    whole: bool = False
    done: bool = False


async def settled_answers(
    guard: Guard, texts: Sequence[str], options: Mapping[str, Any]
) -> list[Settled | None]:
    """What becomes of each answer; None for one that is blank, or passes without a verdict.

    Raises:
        GuardrailError: one could not be judged, and the policy does not let it pass.
    """
    return list(await asyncio.gather(*(_settled(guard, text, options) for text in texts)))


async def _settled(guard: Guard, text: str, options: Mapping[str, Any]) -> Settled | None:
    """The strictest of an answer's stretches, which reach into each other by a window."""
    check, found = partial(guard.acheck_answer, **options), None
    for start in range(0, max(1, len(text) - WINDOW), LONGEST - WINDOW):
        verdict = await answer_verdict(check, text[start : start + LONGEST], guard.policy)
        if verdict is None:
            continue
        after = settled(verdict, guard.policy, caution=lambda words: None)
        found = after if found is None or _rank(after.verdict) > _rank(found.verdict) else found
        if after.done == "flag":
            return after
    return found


def _rank(verdict: Verdict) -> tuple[int, float]:
    return verdict.would_be.rank, verdict.score or 0.0


@dataclass(slots=True)
class _Text:
    """One text of a stream: what is said, and how far it is judged and may be passed on."""

    said: str = ""
    judged: int = 0
    safe: int = 0
    done: bool = False

    def hear(self, spoken: Spoken) -> None:
        more = spoken.text
        if spoken.whole and more.startswith(self.said):
            more = more[len(self.said) :]
        self.said += more
        self.done = spoken.done or (self.done and not more)

    @property
    def due(self) -> bool:
        """Whether it is to be judged now."""
        new = len(self.said) - self.judged
        return new >= STEP or (self.done and (new > 0 or self.safe < len(self.said)))


@dataclass(slots=True)
class WatchedStream(Generic[E]):
    """Events of a stream that are held until what they say was judged.

    `verdict` is the strictest that was made, that of the cut where there is one.
    """

    guard: Guard
    options: Mapping[str, Any]
    verdict: Verdict | None = None
    _held: deque[tuple[E, dict[Hashable, int]]] = field(default_factory=deque)
    _texts: dict[Hashable, _Text] = field(default_factory=dict)

    async def take(self, event: E, spoken: Sequence[Spoken]) -> list[E] | None:
        """One more event, with what it says: those to pass on; None to cut.

        Raises:
            GuardrailError: as `settled_answers`.
        """
        ends = {}
        for each in spoken:
            text = self._texts.setdefault(each.key, _Text())
            text.hear(each)
            ends[each.key] = len(text.said)
        self._held.append((event, ends))
        return await self._judged()

    async def end(self) -> list[E] | None:
        """Nothing follows: the rest to pass on, or None."""
        for text in self._texts.values():
            text.done = True
        found = await self._judged()
        if found is None:
            return None
        rest = [event for event, _ in self._held]
        self._held.clear()
        return [*found, *rest]

    async def _judged(self) -> list[E] | None:
        due = [text for text in self._texts.values() if text.due]
        if not due:
            return self._released()
        new = [text for text in due if len(text.said) > text.judged]
        lasts = [text.said[max(0, text.judged - WINDOW) :] for text in new]
        for after in await settled_answers(self.guard, lasts, self.options):
            if after is None:
                continue
            if after.done == "flag":
                self.verdict = after.verdict
                self._held.clear()
                return None
            if self.verdict is None or _rank(after.verdict) > _rank(self.verdict):
                self.verdict = after.verdict
        for text in due:
            text.judged = len(text.said)
            text.safe = text.judged if text.done else max(text.safe, text.judged - WINDOW)
        return self._released()

    def _released(self) -> list[E]:
        found = []
        while self._held:
            event, ends = self._held[0]
            if any(end > self._texts[key].safe for key, end in ends.items()):
                break
            found.append(event)
            self._held.popleft()
        return found
