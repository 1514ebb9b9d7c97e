"""A video's sampled frames in windows: what fits in one, and what is decoded as it is judged."""

from __future__ import annotations

import hashlib
from collections import deque
from contextlib import closing
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING

from guardrail.errors import LimitExceededError, VideoDecodeError
from guardrail.requests.formats import check_size
from guardrail.requests.patience import still_wanted
from guardrail.requests.video_sampling import sampled
from guardrail.types import Clip, VideoPart, VideoStream

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator

    from PIL.Image import Image as PILImage

    from guardrail.policy import Limits, VideoSampling
    from guardrail.requests.shots import Shot
    from guardrail.requests.video_footage import Footage

Timed = tuple["PILImage", float]


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
        found, allowed = sum(self.seen.values()), self.limits.video_frames
        if found > allowed:
            raise LimitExceededError(
                limit="video_frames", allowed=allowed, found=found, what="the request, so far,"
            )


@dataclass(frozen=True, slots=True, eq=False)
class SampledVideo:
    """The windows of one video under one policy; decoded anew each time they are gone through."""

    footage: Footage
    sampling: VideoSampling
    limits: Limits
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
        content = self.footage.digest(self.limits, self.what)
        return hashlib.sha256(f"{content} {self.sampling.model_dump_json()}".encode()).hexdigest()

    def frames(self) -> Generator[Timed, None, None]:
        """The sampled frames; each is counted before its colours are made."""
        shots = self._within(self.footage.shots(self.limits, self.what))
        chosen = shots if self.footage.whole else sampled(shots, self.sampling)
        count, held = 0, deque[int](maxlen=self.sampling.window)
        try:
            for count, shot in enumerate(chosen, start=1):
                self.tally.count(self.number, count)
                picture = shot.picture()
                check_size(picture.size, self.limits, what=self.what)  # turning may enlarge it
                held.append(picture.width * picture.height)
                self._check_window(sum(held))
                yield picture, shot.time
        finally:
            shots.close()
        if not count:
            raise VideoDecodeError(f"{self.what} has no frame that can be shown")

    def _check_window(self, pixels: int) -> None:
        """Refuse more pixels together in memory than a request's pictures may have."""
        if pixels > (allowed := self.limits.total_pixels):
            what = f"a window of {self.what}"
            raise LimitExceededError(limit="total_pixels", allowed=allowed, found=pixels, what=what)

    def _within(self, shots: Generator[Shot, None, None]) -> Generator[Shot, None, None]:
        allowed, start = self.limits.video_seconds, None
        try:
            for shot in shots:
                still_wanted()
                start = shot.time if start is None else start
                if shot.time - start > allowed:
                    found = round(shot.time - start, 1)
                    raise LimitExceededError(
                        limit="video_seconds", allowed=allowed, found=found, what=self.what
                    )
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


def _clip(frames: list[Timed] | deque[Timed]) -> Clip:
    pictures, times = zip(*frames, strict=True)
    return Clip(pictures, times)
