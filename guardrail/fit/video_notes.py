"""What an artefact says about the thresholds that videos are held to."""

from __future__ import annotations

from typing import TYPE_CHECKING

from guardrail.types import Modality

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from guardrail.artefact.header import Calibration

TRAFFIC = "benign traffic"
"""The source of a calibration on a user's own requests."""
NOTE = "video: "
"""How the warnings about videos begin."""
_LONG = (
    "the score of a long video is the highest of its windows', so more benign ones than the target "
    "lie beyond; run `guardrail calibrate` on benign videos of your own"
)


def video_notes(
    calibration: Mapping[Modality, Calibration], *, reads_videos: bool
) -> Iterator[str]:
    """A warning where thresholds of videos have no stated rate; none where nothing reads videos."""
    if not reads_videos:
        return
    own = calibration.get(Modality.VIDEO)
    if own is None:
        whose = Modality.IMAGE if Modality.IMAGE in calibration else Modality.TEXT
        yield f"{NOTE}held to the thresholds of {whose} inputs; {_LONG}"
    elif own.source != TRAFFIC:
        yield f"{NOTE}the thresholds are of videos of one window ({own.source}); {_LONG}"
