"""Why a model's own template or processor cannot take a chat, in words a caller can act on."""

from __future__ import annotations

import re
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import jinja2
from PIL import Image

from guardrail.errors import UnsupportedContentError
from guardrail.types import ImagePart

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from guardrail.types import Request

# What templates and processors raise about what they are given; anything else is no refusal.
REFUSALS = (jinja2.TemplateError, ArithmeticError, LookupError, TypeError, ValueError)
# How transformers' models say it (5.20 to 5.24: ", tokens: 6, features: 4" follows).
_MISCOUNTED = re.compile(r"features? and \w+ tokens? do not match", re.IGNORECASE)
_HARMLESS = (224, 224)  # pixels: what every image processor takes


def refusal(processor: Any, requests: Sequence[Request], error: Exception) -> Exception:
    """The error to raise in place of `error`, which a template or processor raised.

    A picture that the image processor refuses on its own is named: which one it is, its size, and
    what the processor said.
    """
    if isinstance(error, jinja2.TemplateError):
        return UnsupportedContentError(f"the model's chat template refuses this chat: {error}")
    for where, picture in _pictures(requests):
        said = _said_about(processor, picture)
        if said is not None and _said_about(processor, Image.new("RGB", _HARMLESS)) is None:
            width, height = picture.size
            return UnsupportedContentError(
                f"{where} is {width} x {height} pixels, which the model's image processor refuses: "
                f"{said}; crop, resize or cut it up"
            )
    return UnsupportedContentError(
        "the model's chat template or processor cannot take this chat: "
        f"{type(error).__name__}: {error}"
    )


@contextmanager
def media_as_counted() -> Iterator[None]:
    """Turn a model's complaint that pictures do not fill their places into one of ours.

    Some models that take pictures and take videos cannot take both in one prompt.
    """
    try:
        yield
    except ValueError as error:
        if _MISCOUNTED.search(str(error)) is None:
            raise
        raise UnsupportedContentError(
            f"the model cannot be shown this request's pictures and videos together ({error}); "
            "ask about them one by one"
        ) from error


def _pictures(requests: Sequence[Request]) -> Iterator[tuple[str, Image.Image]]:
    for request in requests:
        for turn, message in enumerate(request.messages):
            pictures = [part.image for part in message.parts if isinstance(part, ImagePart)]
            for number, picture in enumerate(pictures, start=1):
                yield f"messages[{turn}]: picture {number} of {len(pictures)}", picture


def _said_about(processor: Any, picture: Image.Image) -> str | None:
    """What the image processor says against one picture; None when it takes it."""
    try:
        processor.image_processor(images=[picture], return_tensors="pt")
    except REFUSALS as error:
        return str(error) or type(error).__name__
    return None
