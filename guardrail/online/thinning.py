"""A few frames that stand for a whole video, picked while it passes by."""

from __future__ import annotations

from typing import TYPE_CHECKING

from guardrail.errors import InputError
from guardrail.types import Clip

if TYPE_CHECKING:
    from PIL.Image import Image


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
