"""Which frames of a video are judged: so many a second, and those where the picture changes."""

from __future__ import annotations

import math
from collections import deque
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from numpy.typing import NDArray

    from guardrail.policy import VideoSampling
    from guardrail.requests.shots import Shot

# Mean absolute differences of thumbnails, of 255. A line of text that appears on a plain
# background is about 16, noise and camera shake stay below 6.
_CHANGED = 16.0
_SETTLED = 6.0
_TOLERANCE_S = 0.002  # containers round time stamps to 1 ms


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
