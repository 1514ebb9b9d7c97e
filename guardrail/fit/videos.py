"""Whether a fit reads videos."""

from __future__ import annotations

from typing import TYPE_CHECKING

from guardrail.errors import ConfigurationError
from guardrail.fit.calibrate import needed_scores
from guardrail.fit.clips import unfit_for_video

if TYPE_CHECKING:
    from guardrail.artefact.header import Rates
    from guardrail.fit.collect import Collector


def unfit_for_fit(
    collect: Collector, rates: Rates, *, video: bool | None, videos: int
) -> str | None:
    """Why a fit reads no video, None if it does.

    Args:
        collect: of the model to fit.
        rates: the target rates.
        video: whether it is to; None if it can.
        videos: how many drawn videos are to calibrate the thresholds.

    Raises:
        ConfigurationError: what is asked for contradicts itself, or cannot be done.
    """
    if videos and video is False:
        raise ConfigurationError(f"{videos} videos cannot be read with video=False (--no-video)")
    needed = needed_scores(min(rates.steer, rates.flag))
    if videos < 0 or 0 < videos < needed:
        raise ConfigurationError(
            f"{videos} drawn videos cannot support a target of {min(rates.steer, rates.flag):g}: "
            f"ask for at least {needed}, or for 0"
        )
    unfit = "it was fitted without them" if video is False else unfit_for_video(collect)
    if unfit is not None and (video or videos):
        raise ConfigurationError(f"videos cannot be read: {unfit}; fit without them")
    return unfit
