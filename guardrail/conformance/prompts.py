"""The requests that are asked: texts of unequal length, noise as pictures, noise as a video."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from guardrail.types import Clip, ImagePart, Message, Request, TextPart, VideoPart

if TYPE_CHECKING:
    from guardrail.types import Part

TEXTS = (
    "Tell me about the red cat.",
    "Hello",
    "Write a short letter to a friend, please, and say in it what you can see out of the window.",
    "How do I make bread? What do I need?",
)


def text_requests() -> list[Request]:
    """Four requests of unequal length."""
    return [_request(TextPart(text)) for text in TEXTS]


def picture_request(count: int, text: str = TEXTS[0], *, seed: int = 0) -> Request:
    """A request with `count` pictures of unequal shape before its words."""
    sizes = ((56, 40), (40, 72), (64, 64))
    pictures = [ImagePart(noise(seed + i, *sizes[i % len(sizes)])) for i in range(count)]
    return _request(*pictures, TextPart(text))


def video_request(*, seed: int = 0) -> Request:
    """A request with a video of four frames before its words."""
    frames = tuple(noise(seed + i, 56, 56) for i in range(4))
    clip = Clip(frames=frames, times=(0.0, 0.5, 1.0, 1.5))
    return _request(VideoPart(clip), TextPart(TEXTS[0]))


def as_pictures(request: Request) -> Request:
    """The same request with the frames of its videos as pictures, in their place."""
    parts: list[Part] = []
    for part in request.messages[0].parts:
        if isinstance(part, VideoPart):
            parts.extend(ImagePart(frame) for frame in part.clip.frames)
        else:
            parts.append(part)
    return _request(*parts)


def noise(seed: int, width: int, height: int) -> Image.Image:
    """An RGB picture, the same for the same seed."""
    generator = np.random.default_rng(seed)
    return Image.fromarray(generator.integers(0, 256, (height, width, 3), dtype=np.uint8))


def _request(*parts: Part) -> Request:
    return Request((Message(role="user", parts=parts),))
