"""The same request as people send it: alone, with words around it, beside a picture.

A detector fitted on bare requests reads the words around a request as much as the request itself.
So the contrast prompts are read in three forms; the change of form is then variation inside a class
that an estimator can learn to ignore, and the thresholds of pictures come from prompts with one.
The pictures are meaningless (one colour), and only safe prompts are ever drawn as pictures, so no
form needs unsafe pictures.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeVar

from guardrail.fit.clips import clip_request, drawn_clip
from guardrail.fit.collect import text_request
from guardrail.fit.dataset import neutral_prompts
from guardrail.fit.drawing import draw_text

if TYPE_CHECKING:
    from collections.abc import Sequence

    from PIL import Image

    from guardrail.fit.dataset import ContrastSet, Split
    from guardrail.types import Request

T = TypeVar("T")
Form = Literal["plain", "carried", "pictured", "drawn", "filmed"]


@dataclass(frozen=True)
class Sample:
    """One prompt in one form; `index` is its place in the contrast set."""

    index: int
    form: Form
    request: Request


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
        for (split, kind), group in _groups(contrast).items()
        if (split, kind) != ("calibrate", "unsafe")
        for i in spread(spread(group, first[split]), then[split])
    ]


def _limits(per_kind: int | None) -> dict[Split, int | None]:
    return {"fit": per_kind, "select": per_kind and -(-per_kind // 2), "calibrate": None}


def drawn(contrast: ContrastSet, per_kind: int) -> list[Sample]:
    """Safe prompts of the calibration split written into pictures, with neutral prompts beside.

    What a picture's thresholds need: benign pictures that say something. No unsafe prompt is drawn.
    """
    around = neutral_prompts("held out")
    rng = random.Random(1)
    samples = []
    for (split, kind), group in _groups(contrast).items():
        if split == "calibrate" and kind != "unsafe":
            for i in spread(group, per_kind):
                picture = draw_text(contrast.prompts[i].text, seed=i)
                request = text_request(rng.choice(around), images=[picture])
                samples.append(Sample(i, "drawn", request))
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


def _groups(contrast: ContrastSet) -> dict[tuple[Split, str], list[int]]:
    """Places of the prompts of each split and kind."""
    groups: dict[tuple[Split, str], list[int]] = {}
    for i, prompt in enumerate(contrast.prompts):
        groups.setdefault((prompt.in_split, prompt.kind), []).append(i)
    return dict(sorted(groups.items()))


def formed(
    contrast: ContrastSet,
    form: Form,
    pictures: Sequence[Image.Image] = (),
    *,
    limits: dict[str, int],
) -> list[Sample]:
    """Some prompts of each split with a neutral prompt after them, beside a picture if given.

    The neutral prompts of the fit split are others than those of the two splits that judge it.
    About every second text is lower case, as text is that was read from somewhere. `limits` bounds
    the number of each kind in a split; the prompts are spread evenly over the set. Every kind gets
    the same neutral prompts in the same order, so that no class is told by the words around it.
    """
    groups = _groups(contrast)
    samples = []
    for (split, _), group in groups.items():
        around = neutral_prompts("fit" if split == "fit" else "held out")
        for turn, i in enumerate(spread(group, limits[split])):
            text = contrast.prompts[i].text
            lower = (turn + turn // len(around)) % 2
            words = f"{text.lower() if lower else text}\n{around[turn % len(around)]}"
            images = [pictures[turn % len(pictures)]] if pictures else []
            samples.append(Sample(i, form, text_request(words, images=images)))
    return samples


def spread(items: Sequence[T], limit: int | None) -> list[T]:
    """At most `limit` of the items, evenly spaced."""
    if limit is None or len(items) <= limit:
        return list(items)
    return [items[k * len(items) // limit] for k in range(limit)]
