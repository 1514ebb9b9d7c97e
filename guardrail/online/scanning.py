"""Long videos, and several: each window is judged as the request would be with it alone.

The caller's thread decodes and keeps up to a batch of windows under way (fewer where their frames
are large), which share the model's batches with everybody's. What is left for the model is one
request of ordinary size: some frames of the whole video, and the highest score so far as the floor
of its own.
"""

from __future__ import annotations

import math
import threading
import time
import uuid
from collections import deque
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol

from guardrail.errors import (
    GuardClosedError,
    GuardrailError,
    RequestCancelledError,
    RequestTimeoutError,
)
from guardrail.online.floors import Floor
from guardrail.online.thinning import Thinner
from guardrail.types import Clip, Request, TextPart, VideoPart, VideoStream, Window

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from guardrail.online.answering import CheckJob
    from guardrail.policy import Policy
    from guardrail.types import Message, Part, Verdict

LATE = "the time was over before the answer was complete"


class Judge(Protocol):
    """What a scan needs of its engine."""

    @property
    def policy(self) -> Policy:
        """The rules in force."""

    def ends_scan(self, score: float | None) -> bool:
        """Whether a request with this score, or an outage, gets no answer, whatever comes yet."""

    def outranks_outage(self, score: float) -> bool:
        """Whether a finite score counts beside an outage in another window."""

    def window_job(self, request: Request, scan: Scan) -> CheckJob:
        """A job for the score of one window."""


@dataclass(frozen=True, slots=True)
class _Asked:
    """A window under way."""

    job: CheckJob
    window: Window
    pixels: int


class _Cancelled(threading.Event):
    """Set by itself, or with another event: a scan ends with its request, not the other way."""

    def __init__(self, whole: threading.Event) -> None:
        super().__init__()
        self._whole = whole

    def is_set(self) -> bool:
        """Whether nobody waits for these windows any more."""
        return super().is_set() or self._whole.is_set()


class Scan:
    """The long videos of one request on their way through the model."""

    def __init__(
        self,
        judge: Judge,
        submit: Callable[[CheckJob], None],
        give_up: Callable[[CheckJob], None],
        *,
        deadline: float | None,
        cancelled: threading.Event,
        client: str | None = None,
        request_id: str | None = None,
    ) -> None:
        self.client, self.request_id = client, request_id or uuid.uuid4().hex
        self._judge, self._submit, self._give_up = judge, submit, give_up
        self.deadline, self.cancelled = deadline, _Cancelled(cancelled)
        self._under_way: deque[_Asked] = deque()
        self._best, self._failed = Floor(), Floor()
        self._judged, self._done, self._outage_told = 0, False, False

    def run(self, request: Request) -> tuple[Request, Floor]:
        """The request that the model is asked, without long videos, and its floor.

        Raises:
            GuardrailError: a window cannot be read or judged; the message names it.
        """
        shown: dict[int, VideoPart] = {}
        try:
            for number, video in enumerate(request.videos):
                if self._done:
                    break
                if isinstance(video, VideoStream):
                    shown[number] = self._through(request, number, video)
                else:  # it has others beside it, among which it may be overlooked
                    self._ask(request, number, video.clip)
            while self._under_way and not self._done:
                self._take()
        finally:
            self.cancelled.set()
            for asked in self._under_way:
                self._give_up(asked.job)
        return showing(request, shown, beside_clips=True), self._floor()

    def first_outage(self) -> bool:
        """Whether this outage is to go on record: a request has one, on the model's thread."""
        told, self._outage_told = self._outage_told, True
        return not told and not self.cancelled.is_set()

    def _through(self, request: Request, number: int, video: VideoStream) -> VideoPart:
        """Ask about each window of a video; the frames that stand for the whole of it."""
        thinner = Thinner(self._judge.policy.video.answer_frames)
        for clip in video.windows:
            thinner.add(clip)
            self._ask(request, number, clip)
            del clip  # while the next one is decoded, this one is the model's alone
            if self._done:
                break
        return VideoPart(thinner.clip())

    def _ask(self, request: Request, number: int, clip: Clip) -> None:
        self._still_wanted()
        pixels = sum(frame.width * frame.height for frame in clip.frames)
        while not self._done and not self._room_for(pixels):
            self._take()
        if self._done:
            return
        window = Window(
            number=self._judged + len(self._under_way),
            of=0,  # known at the end
            start_s=clip.times[0],
            end_s=clip.times[-1],
            frames=len(clip.frames),
            video=number,
        )
        job = self._judge.window_job(showing(request, {number: VideoPart(clip)}), self)
        with _named(window):
            self._submit(job)
        self._under_way.append(_Asked(job, window, pixels))

    def _room_for(self, pixels: int) -> bool:
        """Whether one more window may be under way: they hold no more than pictures might."""
        limits, held = self._judge.policy.limits, sum(asked.pixels for asked in self._under_way)
        few = len(self._under_way) < limits.batch and held + pixels <= limits.total_pixels
        return few or not self._under_way

    def _take(self) -> None:
        """Wait for the oldest window."""
        asked = self._under_way[0]
        with _named(asked.window):
            verdict = self._wait(asked.job)
        self._under_way.popleft()
        self._judged += 1
        if verdict.score is None:
            self._failed = Floor(math.nan, asked.window)
        elif verdict.score > self._best.score:
            self._best = Floor(verdict.score, asked.window)
        self._done = self._judge.ends_scan(verdict.score)

    def _floor(self) -> Floor:
        """The highest score, or the outage; where outages pass, one hides no finding."""
        best = self._best
        counts = best.window is not None and self._judge.outranks_outage(best.score)
        floor = best if self._failed.window is None or counts else self._failed
        if floor.window is None:
            return floor
        window = replace(floor.window, of=self._judged)
        return Floor(floor.score, window, self._judged)

    def _still_wanted(self) -> None:
        if self.cancelled.is_set():
            raise RequestCancelledError("the request was given up while its video was judged")
        if self.deadline is not None and time.monotonic() >= self.deadline:
            raise RequestTimeoutError(LATE)

    def _wait(self, job: CheckJob) -> Verdict:
        left = None if self.deadline is None else max(self.deadline - time.monotonic(), 0)
        try:
            return job.future.result(timeout=left)
        except TimeoutError:
            if job.future.done():  # settled at the last moment, or with such an error of its own
                return job.future.result()
            raise RequestTimeoutError(LATE) from None


@contextmanager
def _named(window: Window) -> Iterator[None]:
    """Say of which window an error is, unless it is about the waiting."""
    when = f"{window.start_s:.1f} to {window.end_s:.1f} s"
    where = f"window {window.number + 1} (video {(window.video or 0) + 1}, {when})"
    try:
        yield
    except (RequestTimeoutError, RequestCancelledError, GuardClosedError):
        raise
    except GuardrailError as error:
        error.args = (f"{where}: {error}", *error.args[1:])
        raise
    except Exception as error:
        error.add_note(where)
        raise


def showing(
    request: Request, videos: Mapping[int, VideoPart], *, beside_clips: bool = False
) -> Request:
    """The request with only these of its videos, by number, and with its short ones if wanted."""
    number = -1

    def shown(part: Part) -> Iterator[Part]:
        nonlocal number
        if not isinstance(part, VideoPart | VideoStream):
            yield part
            return
        number += 1
        if number in videos:
            yield videos[number]
        elif beside_clips and isinstance(part, VideoPart):
            yield part

    def told(message: Message) -> Message:
        parts = tuple(new for part in message.parts for new in shown(part))
        if message.parts and not parts:
            parts = (TextPart(""),)  # some templates look at each turn's first part
        return replace(message, parts=parts)

    return replace(request, messages=tuple(map(told, request.messages)))
