"""A long video gone through to its end, window by window, as a guard judges it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from guardrail.decide.detector import NO_FLOOR
from guardrail.errors import DetectorError
from guardrail.evaluation.explanation import WindowScore
from guardrail.evaluation.frames import clips_of
from guardrail.model.decoder import context_length
from guardrail.model.encode import Encoder
from guardrail.model.generate import check_rows
from guardrail.online.answering import verdict_of
from guardrail.online.engine import require_room
from guardrail.online.jobs import Floor
from guardrail.online.video_scan import judged_requests
from guardrail.types import Window
from guardrail.worker.worker import run_in_turn

if TYPE_CHECKING:
    from collections.abc import Sequence

    from guardrail.decide.detector import Detector
    from guardrail.guard import Guard
    from guardrail.model.prefill import Ruling
    from guardrail.types import Request, Verdict


@dataclass(frozen=True, slots=True)
class Scanned:
    """The verdict, every window's score, and the request of the highest one."""

    verdict: Verdict
    windows: tuple[WindowScore, ...]
    highest: Request


def scanned(guard: Guard, detector: Detector, request: Request) -> Scanned:
    """Judge every window in turn with other requests, and the answer frames; nothing is audited.

    Raises:
        DetectorError: a window has no finite score.
        InputError: a window cannot be read.
    """
    rows: list[WindowScore] = []
    last = highest = request
    for last, video in judged_requests(request, guard.policy.video.answer_frames):
        score = _own_score(_ruling(guard, detector, last, NO_FLOOR))
        row = _row(last, video, score)
        if not math.isfinite(score):
            raise DetectorError(
                f"the detector failed at {row.start_s:.1f} to {row.end_s:.1f} s of a video: there "
                "is no score to explain"
            )
        if all(score > before.score for before in rows):
            highest = last
        rows.append(row)
    floor = _floor(rows[:-1])
    verdict = verdict_of(detector, last, _ruling(guard, detector, last, floor.score), floor)
    return Scanned(verdict, tuple(rows), highest)


def _ruling(guard: Guard, detector: Detector, request: Request, floor: float) -> Ruling:
    loaded, policy = guard.loaded, guard.policy

    def judged() -> Ruling:
        encoded = Encoder(loaded).encode([request])
        require_room(encoded, policy.limits, context_length(loaded.model))
        (ruling,) = check_rows(loaded, encoded, detector, policy=policy, floors=[floor])
        return ruling

    return run_in_turn(loaded.model, judged, policy.limits)


def _own_score(ruling: Ruling) -> float:
    decision: Any = ruling.decision
    return math.nan if decision is None else float(decision.scores[ruling.row])


def _row(request: Request, video: int | None, score: float) -> WindowScore:
    clips = clips_of(request)
    start, end = min(clip.times[0] for clip in clips), max(clip.times[-1] for clip in clips)
    return WindowScore(
        video=video, start_s=start, end_s=end, frames=sum(len(c.frames) for c in clips), score=score
    )


def _floor(windows: Sequence[WindowScore]) -> Floor:
    """What the windows leave for the request that is answered."""
    at = max(range(len(windows)), key=lambda number: windows[number].score)
    row = windows[at]
    window = Window(
        number=at,
        of=len(windows),
        start_s=row.start_s,
        end_s=row.end_s,
        frames=row.frames,
        video=row.video or 0,
    )
    return Floor(row.score, window, len(windows))
