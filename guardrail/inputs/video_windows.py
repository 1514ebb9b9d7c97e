"""Which frames of a video are judged, and in which windows.

Frames are sampled so many times a second, and where the picture changes. What fits in one window is
a clip; a longer video is decoded window by window, as it is judged.
"""

from __future__ import annotations

import hashlib
import math
from collections import deque
from contextlib import closing
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING

import numpy as np

from guardrail.errors import VideoDecodeError
from guardrail.inputs.images import check_size
from guardrail.inputs.threads import still_wanted
from guardrail.types import Clip, VideoPart, VideoStream

if TYPE_CHECKING:
    from collections.abc import Generator, Iterable, Iterator

    from numpy.typing import NDArray
    from PIL.Image import Image as PILImage

    from guardrail.inputs.video_files import Shot
    from guardrail.inputs.videos import Footage
    from guardrail.policy import Limits, VideoSampling

# Mean absolute differences of thumbnails, of 255. A line of text that appears on a plain
# background is about 16, noise and camera shake stay below 6.
_CHANGED = 16.0
_SETTLED = 6.0
_TOLERANCE_S = 0.002  # containers round time stamps to 1 ms
Timed = tuple["PILImage", float]


@dataclass(frozen=True, slots=True, eq=False)
class SampledVideo:
    """The windows of one video under one policy; decoded anew each time they are gone through."""

    footage: Footage
    sampling: VideoSampling
    tally: Tally
    number: int  # of the video in its request
    what: str  # how error messages call it

    def __iter__(self) -> Iterator[Clip]:
        """The windows in order, all of `sampling.window` frames where there are so many.

        Raises:
            InputError: the video is damaged, or longer than the policy allows.
        """
        with closing(self.frames()) as frames:
            yield from windows(frames, self.sampling.window)

    @property
    def digest(self) -> str:
        """SHA-256 over the video's content and how it is sampled."""
        content = self.footage.digest(self.tally.limits, self.what)
        return hashlib.sha256(f"{content} {self.sampling.model_dump_json()}".encode()).hexdigest()

    def frames(self) -> Generator[Timed, None, None]:
        """The sampled frames; each is counted before its colours are made."""
        limits = self.tally.limits
        shots = self._within(self.footage.shots(limits, self.what))
        chosen = shots if self.footage.whole else sampled(shots, self.sampling)
        count, held = 0, deque[int](maxlen=self.sampling.window)
        try:
            for count, shot in enumerate(chosen, start=1):
                self.tally.count(self.number, count)
                picture = shot.picture()
                check_size(picture.size, limits, what=self.what)  # turning may enlarge it
                held.append(picture.width * picture.height)
                # No more together in memory than a request's pictures may have.
                limits.check("total_pixels", sum(held), what=f"a window of {self.what}")
                yield picture, shot.time
        finally:
            shots.close()
        if not count:
            raise VideoDecodeError(f"{self.what} has no frame that can be shown")

    def _within(self, shots: Generator[Shot, None, None]) -> Generator[Shot, None, None]:
        start = None
        try:
            for shot in shots:
                still_wanted()
                start = shot.time if start is None else start
                self.tally.limits.check("video_seconds", shot.time - start, what=self.what)
                yield shot
        finally:
            shots.close()


def read_video(video: SampledVideo) -> VideoPart | VideoStream:
    """The video as a clip when its frames fit in one window, else as a stream of windows.

    Raises:
        InputError: it cannot be read, as far as a first window tells.
    """
    with closing(video.frames()) as frames:
        first = list(islice(frames, video.sampling.window))
        if next(frames, None) is not None:
            return VideoStream(video)
    return VideoPart(_clip(first))


def windows(frames: Iterator[Timed], size: int) -> Iterator[Clip]:
    """Clips of `size` frames; the last one is filled up with the frames before it.

    No more than `size` frames are held here.
    """
    held: deque[Timed] = deque(maxlen=size)
    fresh = 0
    for frame in frames:
        held.append(frame)
        del frame
        fresh += 1
        if fresh == size:
            yield _clip(held)
            fresh = 0
    if fresh:
        yield _clip(held)


def sampled(shots: Iterable[Shot], sampling: VideoSampling) -> Iterator[Shot]:
    """The first shot in each 1/fps s, and with `scenes` those that open a scene.

    Whatever stays in the picture for 1/fps s is seen: a shot that stays past a whole tick stands
    for it, also when it began after the one before. Scenes come on top, as long as the last second
    has no more of them than `max_fps - fps`; those that find no room are taken as soon as there is
    some and they still last.
    """
    scenes, last = (_Scenes(sampling) if sampling.scenes else None), -1
    passed: Shot | None = None  # the shot before, unless it was taken
    for shot in shots:
        now = shot.time + _TOLERANCE_S
        slot = math.floor(now * sampling.fps)
        if passed is not None and shot.time - passed.time >= 1 / sampling.fps:
            yield passed
            if scenes is not None:
                scenes.took_late(passed.time)
            # the tick before this shot is served, unless it is this shot's own
            last = slot - 1 if now - slot / sampling.fps <= 2 * _TOLERANCE_S else slot
        on_grid = slot > last
        last = max(last, slot)
        opens_scene = scenes is not None and scenes.opens(shot, taken=on_grid)
        passed = None if on_grid or opens_scene else shot
        if passed is None:
            yield shot
    if passed is not None and passed.lasts >= 1 / sampling.fps:
        yield passed


@dataclass(slots=True)
class Tally:
    """How many frames of each of a request's videos were judged so far.

    Streams are decoded only when they are judged, and maybe more than once: their most counts.
    """

    limits: Limits
    seen: dict[int, int] = field(default_factory=dict)

    def count(self, video: int, frames: int) -> None:
        """Note that a video has so many frames at least.

        Raises:
            LimitExceededError: all videos together have more than the policy allows.
        """
        self.seen[video] = max(frames, self.seen.get(video, 0))
        found = sum(self.seen.values())
        self.limits.check("video_frames", found, what="the request, so far,")


class _Scenes:
    """Tells shots that open a scene.

    A jump from one shot to the next opens one at once. While jump follows jump (flicker, wild
    motion) one is believed when the picture settles, or 1/max_fps s after the last shot that was
    taken; then it counts if it still differs from that one. So neither a single odd frame, nor what
    stays after it, nor every other frame is missed.
    """

    def __init__(self, sampling: VideoSampling) -> None:
        self._room = math.floor(sampling.max_fps - sampling.fps)
        self._pause = 1 / sampling.max_fps
        self._opened: deque[float] = deque()
        self._before: NDArray[np.int16] | None = None
        self._taken: NDArray[np.int16] | None = None
        self._taken_at = 0.0
        self._calm, self._changed = True, False

    def opens(self, shot: Shot, *, taken: bool) -> bool:
        """Whether to take the shot for its scene; `taken`: it is taken anyway."""
        now = shot.thumbnail().astype(np.int16)
        jump = 0.0 if self._before is None else _difference(self._before, now)
        self._before = now
        if jump >= _CHANGED:
            self._changed = True
        elif jump < _SETTLED:
            self._calm = True
        opens = not taken and self._is_new(now, shot.time) and self._has_room(shot.time)
        if opens:
            self._opened.append(shot.time)
        if taken or opens:
            self._taken, self._taken_at = now, shot.time
            self._changed, self._calm = False, jump < _SETTLED
        return opens

    def took_late(self, time: float) -> None:
        """Note that the shot before, of this time, was taken after all: it stayed long enough."""
        self._taken, self._taken_at = self._before, time
        self._changed, self._calm = False, True

    def _is_new(self, now: NDArray[np.int16], time: float) -> bool:
        believed = self._calm or time - self._taken_at >= self._pause
        if not (self._changed and believed) or self._taken is None:
            return False
        self._changed = _difference(self._taken, now) >= _CHANGED  # else it is as it was before
        return self._changed

    def _has_room(self, time: float) -> bool:
        while self._opened and self._opened[0] <= time - 1:
            self._opened.popleft()
        return len(self._opened) < self._room


def _difference(one: NDArray[np.int16], other: NDArray[np.int16]) -> float:
    return float(np.abs(one - other).mean())


def _clip(frames: list[Timed] | deque[Timed]) -> Clip:
    pictures, times = zip(*frames, strict=True)
    return Clip(pictures, times)
