"""The least that a request scores: what its long videos' windows, or its folded copy, scored."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from guardrail.decide.detector import NO_FLOOR
from guardrail.types import VideoPart, Window

if TYPE_CHECKING:
    from guardrail.types import Request


@dataclass(frozen=True, slots=True)
class Floor:
    """The highest score so far, after `judged` windows; NaN where the detector failed.

    It is that of `window`, or with `folded` that of the request's copy in plain letters.
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
