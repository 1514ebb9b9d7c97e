"""Whether videos are sampled as they were when an artefact's figures of them were measured."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from guardrail.policy import VideoSampling
from guardrail.types import Modality

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pydantic import JsonValue

    from guardrail.artefact.artefact import Artefact
    from guardrail.policy import Policy

WINDOW = "video_window"
"""Where `header.data` tells of how many frames the clips were that re-centring was measured on."""
SAMPLING = "sampling"
"""Where `header.extra`'s facts of a calibration tell how its videos were sampled."""
_USUAL = VideoSampling().window  # of artefacts that do not tell


def sampling_record(policy: Policy) -> dict[str, JsonValue]:
    """What a calibration on videos is to remember of how they were sampled."""
    return {SAMPLING: policy.video.model_dump(mode="json")}


def sampling_notes(artefact: Artefact, policy: Policy) -> Iterator[str]:
    """What the policy's sampling of videos does to thresholds that were set under another one.

    Thresholds that the policy fixes itself are its own business.
    """
    if not artefact.reads_videos or Modality.VIDEO in policy.thresholds:
        return
    now = policy.video.model_dump(mode="json")
    then = _calibrated(artefact)
    if then is not None:
        changed = [f"{k} {v} ({then[k]} then)" for k, v in now.items() if then.get(k, v) != v]
        if changed:
            yield (
                "the thresholds of videos were set on ones that were sampled otherwise: "
                f"{', '.join(changed)}; their rates hold here once `guardrail calibrate` has set "
                "them on videos sampled like these"
            )
        return
    frames = artefact.header.data.get(WINDOW, _USUAL)
    if frames != policy.video.window:
        yield (
            f"videos are judged in windows of {policy.video.window} frames, and what a video adds "
            f"to the score was measured with {frames}; thresholds hold here once `guardrail "
            "calibrate` has set them on benign videos in such windows"
        )


def _calibrated(artefact: Artefact) -> dict[str, Any] | None:
    """How the videos were sampled that set the thresholds; None if none did, or nothing is told."""
    if Modality.VIDEO not in artefact.header.calibration:
        return None
    match artefact.header.extra.get("calibration"):
        case {Modality.VIDEO.value: {"sampling": dict(sampling)}}:
            return sampling
    return None
