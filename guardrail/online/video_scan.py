"""Long videos, and several: each window is judged as the request would be with it alone.

The caller's thread decodes and keeps up to a batch of windows under way (fewer where their frames
are large), which share the model's batches with everybody's. What is left for the model is one
request of ordinary size: some frames of the whole video, and the highest score so far as the floor
of its own.
"""

from __future__ import annotations

import math
import threading
from collections import deque
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple

from guardrail.errors import (
    GuardClosedError,
    GuardrailError,
    InputError,
    RequestCancelledError,
    RequestTimeoutError,
)
from guardrail.online.jobs import Floor
from guardrail.types import Clip, Request, TextPart, VideoPart, VideoStream, Window

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from PIL.Image import Image

    from guardrail.online.core import Core
    from guardrail.online.jobs import CheckJob
    from guardrail.types import Message, Part
    from guardrail.worker.jobs import Caller


class Scan:
    """The long videos of one request on their way through the model."""

    def __init__(self, engine: Core, caller: Caller) -> None:
        self._engine, self._policy = engine, engine.policy
        self._cancelled = _Cancelled(caller.cancelled)
        self._caller = replace(caller, cancelled=self._cancelled)
        self._under_way: deque[_Asked] = deque()
        self._best, self._failed = Floor(), Floor()
        self._judged, self._done, self._outage_told = 0, False, False

    def run(self, request: Request) -> tuple[Request, Floor]:
        """The request that the model is asked, without long videos, and its floor.

        Raises:
            GuardrailError: a window cannot be read or judged; the message names it.
        """
        windows = Windows(request, self._policy.video.answer_frames)
        try:
            for number, clip in windows:
                self._ask(windows.alone(number, clip), number, clip)
                del clip  # while the next one is decoded, this one is the model's alone
                if self._done:
                    break
            while self._under_way and not self._done:
                self._take()
        finally:
            self._cancelled.set()
            for asked in self._under_way:
                self._engine.worker.cancel(asked.job)
        return windows.answered(), self._floor()

    def first_outage(self) -> bool:
        """Whether this outage is to go on record: a request has one, on the model's thread."""
        told, self._outage_told = self._outage_told, True
        return not told and not self._cancelled.is_set()

    def _ask(self, request: Request, number: int, clip: Clip) -> None:
        """Have one window judged, `clip` of video `number`, once there is room for it."""
        self._caller.still_waits("its video was judged")
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
        job = self._engine.check_job(self._caller, first_outage=self.first_outage)
        with _named(window):
            self._engine.submit(job, request, wait=True)
        self._under_way.append(_Asked(job, window, pixels))

    def _room_for(self, pixels: int) -> bool:
        """Whether one more window may be under way: they hold no more than pictures might."""
        limits, held = self._policy.limits, sum(asked.pixels for asked in self._under_way)
        few = len(self._under_way) < limits.batch and held + pixels <= limits.total_pixels
        return few or not self._under_way

    def _take(self) -> None:
        """Wait for the oldest window."""
        asked = self._under_way[0]
        with _named(asked.window):
            verdict = asked.job.result()
        self._under_way.popleft()
        self._judged += 1
        if verdict.score is None:
            self._failed = Floor(math.nan, asked.window)
        elif verdict.score > self._best.score:
            self._best = Floor(verdict.score, asked.window)
        self._done = self._engine.ends_scan(verdict.score)

    def _floor(self) -> Floor:
        """The highest score, or the outage; where outages pass, one hides no finding."""
        best = self._best
        counts = best.window is not None and self._engine.outranks_outage(best.score)
        floor = best if self._failed.window is None or counts else self._failed
        if floor.window is None:
            return floor
        window = replace(floor.window, of=self._judged)
        return Floor(floor.score, window, self._judged)


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


class Judged(NamedTuple):
    """What is judged on the way to a verdict; `video` is whose window it is, None of the last."""

    request: Request
    video: int | None


def judged_requests(request: Request, answer_frames: int) -> Iterator[Judged]:
    """What a guard judges of one request: each window of its videos, last what is answered.

    A request with one short video, or none, is its own last one.
    """
    windows = Windows(request, answer_frames)
    for number, clip in windows:
        yield Judged(windows.alone(number, clip), number)
    yield Judged(windows.answered(), None)


class Windows:
    """The windows of one request's videos in turn, each as `(number of the video, clip)`.

    Without a long video, and with one short video at most, there are none. They are decoded as
    they are asked for; `answered` is what is left for the model once they were gone through, all
    or the first ones.
    """

    def __init__(self, request: Request, answer_frames: int) -> None:
        self._request, self._answer_frames = request, answer_frames
        self._passed: dict[int, Thinner] = {}

    def __iter__(self) -> Iterator[tuple[int, Clip]]:
        """Go through them, once."""
        for number, video in enumerate(self._request.videos):
            if isinstance(video, VideoStream):
                passed = self._passed[number] = Thinner(self._answer_frames)
                for clip in video.windows:
                    passed.add(clip)
                    yield number, clip
                    del clip  # while the next one is decoded, this one is the reader's alone
            elif self._request.in_windows:  # beside others, among which it may be overlooked
                yield number, video.clip

    def alone(self, number: int, clip: Clip) -> Request:
        """The request as it is judged with one window, other videos left out."""
        return showing(self._request, {number: VideoPart(clip)})

    def answered(self) -> Request:
        """The request as the model answers it: a few frames stand for each long video.

        Raises:
            InputError: a video had no frame.
        """
        if not self._request.in_windows:
            return self._request
        shown = {number: VideoPart(passed.clip()) for number, passed in self._passed.items()}
        return showing(self._request, shown, beside_clips=True)


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


class Thinner:
    """Keeps at most `2 * count + 1` frames, every n-th one, with n a power of two.

    Frames of a window that an earlier window had, too, are passed over.
    """

    def __init__(self, count: int) -> None:
        self._count, self._every, self._seen = count, 1, 0
        self._kept: list[tuple[int, Image, float]] = []
        self._last: tuple[int, Image, float] | None = None

    def add(self, clip: Clip) -> None:
        """The next window has come."""
        for frame, time in zip(clip.frames, clip.times, strict=True):
            if self._last is not None and self._had(frame, time, self._last):
                continue
            self._last = (self._seen, frame, time)
            if self._seen % self._every == 0:
                self._kept.append(self._last)
            self._seen += 1
            if len(self._kept) > 2 * self._count:
                self._every *= 2
                self._kept = self._kept[::2]

    @staticmethod
    def _had(frame: Image, time: float, last: tuple[int, Image, float]) -> bool:
        """Whether a frame came before; several may be shown at one time."""
        return time < last[2] or (time == last[2] and frame is last[1])

    def clip(self) -> Clip:
        """`count` frames spread evenly from the first to the last, or all if they are fewer.

        Raises:
            InputError: there was no frame.
        """
        if self._last is None:
            raise InputError("the video has no frame")
        at = {number: (frame, time) for number, frame, time in (*self._kept, self._last)}
        wanted = min(self._count, len(at))
        step = self._last[0] / (wanted - 1) if wanted > 1 else 0.0
        # Frames are kept more densely than they are wanted, so that no two are nearest to the same.
        nearest = {min(at, key=lambda n: abs(n - i * step)) for i in range(wanted)}
        frames, times = zip(*(at[number] for number in sorted(nearest)), strict=True)
        return Clip(frames, times)
