"""Text as a plain picture, so that thresholds of pictures need no picture of anybody's."""

from __future__ import annotations

import random
from functools import cache

from PIL import Image, ImageDraw, ImageFont

WIDTH, HEIGHT, MARGIN = 512, 512, 24
SIZES = (44, 40, 36, 32, 28, 24, 20, 16, 12)
LINE = 1.35  # height of a line in font sizes


def draw_text(text: str, *, seed: int = 0) -> Image.Image:
    """The text in the largest size that fits, dark on light in colours drawn from `seed`.

    Uses the font that comes with Pillow; text that does not fit in the smallest size is cut off.
    """
    rng = random.Random(seed)
    ground = tuple(rng.randrange(215, 256) for _ in range(3))
    ink = tuple(rng.randrange(0, 70) for _ in range(3))
    size, lines = _fitted(text)
    image = Image.new("RGB", (WIDTH, HEIGHT), ground)
    pen = ImageDraw.Draw(image)
    for number, line in enumerate(lines):
        pen.text((MARGIN, MARGIN + number * size * LINE), line, fill=ink, font=_font(size))
    return image


@cache
def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)


def _fitted(text: str) -> tuple[int, list[str]]:
    """Font size and lines."""
    lines: list[str] = []
    for size in SIZES:
        lines = _wrapped(text, size)
        if len(lines) * size * LINE <= HEIGHT - 2 * MARGIN:
            return size, lines
    return SIZES[-1], lines


def _wrapped(text: str, size: int) -> list[str]:
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if not lines[-1] or _font(size).getlength(longer) <= WIDTH - 2 * MARGIN:
            lines[-1] = longer
        else:
            lines.append(word)
    return lines
