"""The same request as people send it: alone, with words around it, beside or in a picture or video.

A detector fitted on bare requests reads the words around a request as much as the request itself.
So the contrast prompts are read in several forms; the change of form is then variation inside a
class that an estimator can learn to ignore, and the thresholds of pictures and videos come from
prompts with one. All are drawn here: pictures and clips are meaningless (one colour) or hold text,
and only safe prompts are ever drawn, so no form needs anybody's pictures, or unsafe ones.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, TypeVar

from PIL import Image, ImageDraw, ImageFont

from guardrail.errors import GuardrailError
from guardrail.fit.collect import text_request
from guardrail.fit.dataset import neutral_prompts
from guardrail.model.decoder import context_length
from guardrail.policy import VideoSampling
from guardrail.types import Clip, Message, Request, TextPart, VideoPart

if TYPE_CHECKING:
    from collections.abc import Sequence

    from guardrail.fit.collect import Collector
    from guardrail.fit.dataset import ContrastSet, Split

WIDTH, HEIGHT, MARGIN = 512, 512, 24
SIZES = (44, 40, 36, 32, 28, 24, 20, 16, 12)
SIDE = 336  # pixels of a meaningless picture; processors resize it anyway
LINE = 1.35  # height of a line in font sizes
SAMPLING = VideoSampling()
"""Clips of a fit are sampled as a policy's defaults sample videos."""
# Processors refuse what they do not take in their own ways; a fit must not end there.
_REFUSALS = (GuardrailError, ValueError, TypeError, RuntimeError, LookupError, AttributeError)
T = TypeVar("T")


@dataclass(frozen=True)
class Sample:
    """One prompt in one form; `index` is its place in the contrast set.

    `message` is the turn of the request in which the prompt stands.
    """

    index: int
    form: str
    request: Request
    message: int = 0

    @property
    def key(self) -> str:
        """What names the sample among all that are read of a set."""
        return f"{self.index} {self.form}"


def plain(
    contrast: ContrastSet, per_kind: int | None = None, *, of_these: int | None = None
) -> list[Sample]:
    """The prompts as they stand, at most `per_kind` of a kind in the fit split, half in the next.

    All benign prompts of the calibration split are kept, as thresholds need them; its unsafe ones
    are left out, as no decision does. `of_these` bounds in the same way how many of those are
    taken: fewer, and none but what was read with `per_kind` alone.
    """
    first, then = _limits(per_kind), _limits(of_these)
    return [
        Sample(i, "plain", text_request(contrast.prompts[i].text))
        for (split, kind), group in grouped(contrast).items()
        if (split, kind) != ("calibrate", "unsafe")
        for i in spread(spread(group, first[split]), then[split])
    ]


def _limits(per_kind: int | None) -> dict[Split, int | None]:
    return {"fit": per_kind, "select": per_kind and -(-per_kind // 2), "calibrate": None}


def meaningless_images(count: int, *, seed: int = 0) -> list[Image.Image]:
    """Pictures of one random colour each."""
    rng = random.Random(seed)
    colours = [(rng.randrange(256), rng.randrange(256), rng.randrange(256)) for _ in range(count)]
    return [Image.new("RGB", (SIDE, SIDE), colour) for colour in colours]


def drawn(contrast: ContrastSet, per_kind: int) -> list[Sample]:
    """Safe prompts of the calibration split written into pictures, with neutral prompts beside.

    What a picture's thresholds need: benign pictures that say something.
    """
    safe = (
        group
        for (split, kind), group in grouped(contrast).items()
        if split == "calibrate" and kind != "unsafe"
    )
    return _drawn(contrast, [i for group in safe for i in spread(group, per_kind)])


def drawn_unsafe(contrast: ContrastSet, split: Split, count: int) -> list[Sample]:
    """Unsafe prompts of a split written into pictures, likewise: what steering is tried on."""
    return _drawn(contrast, spread(contrast.indices(split, labels=("unsafe",)), count))


def _drawn(contrast: ContrastSet, places: Sequence[int]) -> list[Sample]:
    around = neutral_prompts("held out")
    rng = random.Random(1)
    samples = []
    for i in places:
        picture = draw_text(contrast.prompts[i].text, seed=i)
        samples.append(Sample(i, "drawn", text_request(rng.choice(around), images=[picture])))
    return samples


def filmed(contrast: ContrastSet, count: int) -> list[Sample]:
    """`count` safe prompts of the calibration split, each written on some frames of a clip.

    Benign videos of one window, with neutral prompts beside. Fewer if there are fewer prompts.
    """
    around = neutral_prompts("held out")
    rng = random.Random(2)
    samples = []
    for i in spread(contrast.indices("calibrate", labels=("safe",)), count):
        clip = drawn_clip(contrast.prompts[i].text, seed=i)
        samples.append(Sample(i, "filmed", clip_request(rng.choice(around), clip)))
    return samples


def grouped(contrast: ContrastSet) -> dict[tuple[Split, str], list[int]]:
    """Places of the prompts of each split and kind."""
    groups: dict[tuple[Split, str], list[int]] = {}
    for i, prompt in enumerate(contrast.prompts):
        groups.setdefault((prompt.in_split, prompt.kind), []).append(i)
    return dict(sorted(groups.items()))


def spread(items: Sequence[T], limit: int | None) -> list[T]:
    """At most `limit` of the items, evenly spaced."""
    if limit is None or len(items) <= limit:
        return list(items)
    return [items[k * len(items) // limit] for k in range(limit)]


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


def clip_request(text: str, clip: Clip) -> Request:
    """One user turn: the video, then the text."""
    return Request((Message(role="user", parts=(VideoPart(clip), TextPart(text))),))


def clip_of(frames: Sequence[Image.Image]) -> Clip:
    """Frames shown at the default rate, the first at 0 s."""
    return Clip(tuple(frames), tuple(number / SAMPLING.fps for number in range(len(frames))))


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
