"""The same request as people send it: alone, with words around it, beside a picture.

A detector fitted on bare requests reads the words around a request as much as the request itself.
So the contrast prompts are read in three forms; the change of form is then variation inside a class
that an estimator can learn to ignore, and the thresholds of pictures come from prompts with one.
The pictures are meaningless (one colour), so no form needs unsafe pictures.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from guardrail.fit.collect import text_request
from guardrail.fit.dataset import neutral_prompts

if TYPE_CHECKING:
    from collections.abc import Sequence

    from PIL import Image

    from guardrail.fit.dataset import ContrastSet, Split
    from guardrail.types import Request

Form = Literal["plain", "carried", "pictured"]


@dataclass(frozen=True)
class Sample:
    """One prompt in one form; `index` is its place in the contrast set."""

    index: int
    form: Form
    request: Request


def plain(contrast: ContrastSet) -> list[Sample]:
    """The prompts as they stand; no decision needs the unsafe ones of the calibration split."""
    return [
        Sample(i, "plain", text_request(p.text))
        for i, p in enumerate(contrast.prompts)
        if p.label == "safe" or p.split != "calibrate"
    ]


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
    the number of each kind in a split; the prompts are spread evenly over the set. What goes with
    a prompt is drawn at random, the same at every call.
    """
    rng = random.Random(0)
    groups: dict[tuple[Split, str], list[int]] = {}
    for i, prompt in enumerate(contrast.prompts):
        groups.setdefault((prompt.in_split, prompt.kind), []).append(i)
    chosen = [i for (split, _), g in sorted(groups.items()) for i in spread(g, limits[split])]
    samples = []
    for i in chosen:
        prompt = contrast.prompts[i]
        around = neutral_prompts("fit" if prompt.split == "fit" else "held out")
        text = rng.choice((prompt.text, prompt.text.lower()))
        words = f"{text}\n{rng.choice(around)}"
        images = [rng.choice(pictures)] if pictures else []
        samples.append(Sample(i, form, text_request(words, images=images)))
    return samples


def spread(items: Sequence[int], limit: int) -> list[int]:
    """At most `limit` of the items, evenly spaced."""
    if len(items) <= limit:
        return list(items)
    return [items[k * len(items) // limit] for k in range(limit)]
