"""What the model's thread is asked of one request, and what goes on record about it."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

from guardrail.decide.detector import NO_FLOOR
from guardrail.types import Request, Result, Verdict, VideoPart, Window
from guardrail.worker.jobs import Job

if TYPE_CHECKING:
    from collections.abc import Callable

    from guardrail.model.constrained import Grammar
    from guardrail.model.settings import Settings

T = TypeVar("T")

Item = Verdict | str


@dataclass(frozen=True, slots=True)
class Floor:
    """The least that a request scores: what its videos' windows, or its folded copy, scored.

    It is the highest score so far, after `judged` windows, that of `window`, or with `folded` that
    of the copy in plain letters; NaN where the detector failed.
    """

    score: float = NO_FLOOR
    window: Window | None = None
    judged: int = 0
    folded: bool = False

    def raised(self, score: float | None) -> Floor:
        """The floor under the request itself, once its folded copy has a score (None: an outage).

        That copy was judged by this floor: it scores as much, where it decides nothing.
        """
        if self.holds(score):
            return self
        return Floor(math.nan if score is None else score, judged=self.judged, folded=True)

    def window_of(self, request: Request, score: float | None) -> Window | None:
        """Which window a verdict with this score rests on; None for requests without a video.

        The clips that the model is shown with the request are one more window, the last.
        """
        if self.window is not None and self.holds(score):
            return self.window
        clips = [video.clip for video in request.videos if isinstance(video, VideoPart)]
        if not clips:
            return None
        return Window(
            number=self.judged,
            of=self.judged + 1,
            start_s=min(clip.times[0] for clip in clips),
            end_s=max(clip.times[-1] for clip in clips),
            frames=sum(len(clip.frames) for clip in clips),
            video=0 if len(clips) == 1 else None,
        )

    def holds(self, score: float | None) -> bool:
        """Whether a score is the floor itself and not the request's own."""
        return math.isnan(self.score) if score is None else score <= self.score


NOTHING_YET = Floor()


@dataclass(eq=False, slots=True, kw_only=True)
class RequestJob(Job[T]):
    """A job about one request, which is known once its media are read and before it is queued.

    `folded` is the request's copy in plain letters, where that is judged, too, and differs.
    """

    request: Request = field(init=False, repr=False)
    floor: Floor = NOTHING_YET
    folded: Request | None = None


@dataclass(eq=False, slots=True, kw_only=True)
class AnswerJob(RequestJob[Result]):
    """A job for an answer; `emit` gets the verdict, then the chunks.

    `grammar` is there, once the request is read, where the answer has a form that it must be in.
    """

    settings: Settings
    grammar: Grammar | None = None
    emit: Callable[[Item], None] | None = None
    verdict: Verdict | None = None
    verdict_s: float = 0.0

    def tell(self, item: Item) -> None:
        """Pass a part of the answer on."""
        if self.emit is not None:
            self.begun = self.begun or isinstance(item, str)
            self.emit(item)


@dataclass(eq=False, slots=True, kw_only=True)
class CheckJob(RequestJob[Verdict]):
    """A job for a verdict alone.

    With an `answer` it is of that alone, which somebody else's model gave to the request.
    `first_outage` is there when the request is a window of another one's video, which goes on
    record as a whole: whether an outage of this window is to go on record.
    """

    answer: str | None = None
    first_outage: Callable[[], bool] | None = None


def who(job: RequestJob[Any]) -> dict[str, object]:
    """Whose request it is, as it goes on record; without a client's name where there is none."""
    named = {} if job.client is None else {"client": job.client}
    return {"request_id": job.caller.request_id, **named}


def verdict_facts(job: RequestJob[Any]) -> dict[str, object]:
    """What goes on record beside a verdict that has just been made."""
    return {
        "event": "verdict",
        **who(job),
        "queue_s": job.queue_s,
        "verdict_s": job.running_s,
    }
