"""From what happened inside the model to what people are told: verdicts, and prompts too long."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from guardrail.errors import LimitExceededError, UnsupportedContentError
from guardrail.online.floors import Floor
from guardrail.types import Action, Verdict

if TYPE_CHECKING:
    from guardrail.artefact import Artefact
    from guardrail.decide.detector import Detector
    from guardrail.model.inputs import Encoded
    from guardrail.model.rulings import Ruling
    from guardrail.policy import Limits
    from guardrail.types import Request

NO_WINDOWS = Floor()


def verdict_of(
    detector: Detector, request: Request, ruling: Ruling, floor: Floor = NO_WINDOWS
) -> Verdict:
    """The detector's words, corrected by what was really done; `floor` is what it was judged by."""
    verdict = _verdict(detector, request, ruling)
    folded = floor.folded and floor.holds(verdict.score)
    return replace(verdict, window=floor.window_of(request, verdict.score), folded=folded)


def _verdict(detector: Detector, request: Request, ruling: Ruling) -> Verdict:
    decision: Any = ruling.decision
    verdict = detector.verdict(decision, ruling.row, request.offset_kind, ruling.strength)
    # A row that no edit can reach is flagged after the thresholds asked for steering.
    would_be = Action.FLAG if ruling.action is Action.FLAG else verdict.would_be
    reason = "detector_failed" if ruling.failed else verdict.reason
    return replace(verdict, action=ruling.action, would_be=would_be, reason=reason)


def require_readable(request: Request, artefact: Artefact) -> None:
    """Refuse a video that the artefact has no offset for.

    Raises:
        UnsupportedContentError: saying what to do.
    """
    if request.videos and not artefact.reads_videos:
        raise UnsupportedContentError(
            f"{artefact.artefact_id} was fitted without video, so there is no score for one; fit "
            "again (`guardrail fit`) with this release"
        )


def require_room(
    encoded: Encoded, limits: Limits, context: int | None, *, new_tokens: int = 0
) -> None:
    """Refuse a batch with a prompt too long for the policy, or for a model of `context` positions.

    Raises:
        LimitExceededError: naming the longest prompt.
    """
    allowed, what = limits.prompt_tokens, "the prompt"
    if context is not None and context - new_tokens < allowed:
        allowed = context - new_tokens
        what = f"the prompt (for a model of {context} positions)"
    longest = max(encoded.lengths)
    if longest > allowed and "video" in encoded.kinds:
        smaller = "smaller `video.window` and `video.answer_frames`, or frames of fewer pixels"
        what += f", with a video in it ({smaller} help),"
    if longest > allowed:
        raise LimitExceededError(limit="prompt_tokens", allowed=allowed, found=longest, what=what)
