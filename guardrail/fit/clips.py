"""Clips drawn from nothing: meaningless ones for re-centring, safe prompts as benign videos."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

from PIL import Image

from guardrail.errors import GuardrailError
from guardrail.fit.drawing import HEIGHT, WIDTH, draw_text
from guardrail.model.decoder import context_length
from guardrail.policy import VideoSampling
from guardrail.types import Clip, Message, Request, TextPart, VideoPart

if TYPE_CHECKING:
    from collections.abc import Sequence

    from guardrail.fit.collect import Collector

SAMPLING = VideoSampling()
"""Clips of a fit are sampled as a policy's defaults sample videos."""


# Processors refuse what they do not take in their own ways; a fit must not end there.
_REFUSALS = (GuardrailError, ValueError, TypeError, RuntimeError, LookupError, AttributeError)


def clip_of(frames: Sequence[Image.Image]) -> Clip:
    """Frames shown at the default rate, the first at 0 s."""
    return Clip(tuple(frames), tuple(number / SAMPLING.fps for number in range(len(frames))))


def clip_request(text: str, clip: Clip) -> Request:
    """One user turn: the video, then the text."""
    return Request((Message(role="user", parts=(VideoPart(clip), TextPart(text))),))


def meaningless_clips(count: int, *, seed: int = 0, frames: int = SAMPLING.window) -> list[Clip]:
    """Clips of one random colour a frame: in every other clip it stays, in the others it changes.

    A still clip and a flickering one are the two ends of what movement alone adds.
    """
    rng = random.Random(seed)
    clips = []
    for number in range(count):
        colours = [tuple(rng.randrange(256) for _ in range(3)) for _ in range(frames)]
        if number % 2 == 0:
            colours = colours[:1] * frames
        clips.append(clip_of([Image.new("RGB", (WIDTH, HEIGHT), colour) for colour in colours]))
    return clips


def drawn_clip(text: str, *, seed: int = 0, frames: int = SAMPLING.window) -> Clip:
    """The text as a picture on a random run of a clip's frames, one empty colour on the others."""
    rng = random.Random(seed)
    length = rng.randint(1, frames)
    start = rng.randint(0, frames - length)
    empty = Image.new("RGB", (WIDTH, HEIGHT), tuple(rng.randrange(215, 256) for _ in range(3)))
    written = draw_text(text, seed=seed)
    shown = [written if start <= i < start + length else empty for i in range(frames)]
    return clip_of(shown)


def unfit_for_video(collect: Collector) -> str | None:
    """Why a model cannot be shown a clip of a whole window; None if it can.

    Only the processor is asked, and how many positions the model was built for.
    """
    if not collect.loaded.is_multimodal:
        return "the model takes no pictures"
    try:
        (clip,) = meaningless_clips(1)
        encoded = collect.encoder.encode([clip_request("What is this?", clip)])
    except _REFUSALS as error:
        return f"its processor takes no clip of {SAMPLING.window} frames ({error})"
    context = context_length(collect.loaded.model)
    if context is not None and encoded.prompt_len >= context:
        return (
            f"{SAMPLING.window} frames take {encoded.prompt_len} positions, the model has {context}"
        )
    return None
