"""What a meaningless picture or video adds to the residual stream, per modality."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from PIL import Image
from torch import Tensor

from guardrail.fit.clips import clip_request, meaningless_clips
from guardrail.fit.collect import Collector, text_request
from guardrail.fit.dataset import neutral_prompts

if TYPE_CHECKING:
    from collections.abc import Sequence

    from guardrail.types import Request

PROMPTS = 8
COLOURS = 4
# Two pictures take twice the time of one, clips as many times as they have frames, and their
# colours add little.
FEW_PROMPTS = 2
SIDE = 336  # pixels; processors resize it anyway


@dataclass(frozen=True)
class Offset:
    """`mean` (L, d_model): average shift; `colours`, `prompts`: how much it moves with either.

    `colours` is (c, L, d_model), the shift of each colour averaged over prompts; `prompts`
    (p, L, d_model) the shift of each prompt averaged over colours.
    """

    mean: Tensor
    colours: Tensor
    prompts: Tensor

    def along(self, weight: Tensor, layers: Sequence[int]) -> Tensor:
        """<b, w> at each readout layer: (k, d_model) -> (k,) float64."""
        projected: Tensor = (self.mean[list(layers)].double() * weight.double()).sum(-1)
        return projected

    def spread(self, weight: Tensor, layers: Sequence[int], gap: Tensor) -> dict[str, float]:
        """Size and standard deviations of the offset's score, in units of the text gap."""

        def score(shift: Tensor) -> Tensor:
            chosen = shift[..., list(layers), :].double()
            projected: Tensor = ((chosen * weight.double()).sum(-1) / gap).mean(-1)
            return projected

        def spread(shifts: Tensor) -> float:
            return float(score(shifts).std()) if len(shifts) > 1 else 0.0

        return {
            "size": float(score(self.mean)),
            "spread_colours": spread(self.colours),
            "spread_prompts": spread(self.prompts),
            "n_colours": float(len(self.colours)),
            "n_prompts": float(len(self.prompts)),
        }


def meaningless_images(count: int, *, seed: int = 0) -> list[Image.Image]:
    """Pictures of one random colour each."""
    rng = random.Random(seed)
    colours = [(rng.randrange(256), rng.randrange(256), rng.randrange(256)) for _ in range(count)]
    return [Image.new("RGB", (SIDE, SIDE), colour) for colour in colours]


def measure_offsets(
    collect: Collector,
    *,
    prompts: Sequence[str] = (),
    colours: int = COLOURS,
    video: bool = False,
) -> dict[str, Offset]:
    """B = mean h(neutral prompt, meaningless picture) - mean h(same prompt alone), per kind.

    The re-centring of MARS (arXiv 2606.31876). Kinds: `image`, one picture, every colour with every
    prompt; `images`, two pictures, each colour followed by the next; with `video`, `video`, clips
    of a whole window, `colours` of them.
    """
    prompts = prompts or neutral_prompts("fit")[:PROMPTS]
    pictures = meaningless_images(colours)
    alone = collect([text_request(prompt) for prompt in prompts], "neutral prompts").double()

    def shown(kind: str, number: int, prompt: str) -> Request:
        if kind == "video":
            return clip_request(prompt, clips[number])
        pair = [pictures[number], pictures[(number + 1) % colours]]
        return text_request(prompt, images=pair[: 1 if kind == "image" else 2])

    clips = meaningless_clips(colours) if video else []
    offsets = {}
    for kind in ("image", "images", "video") if video else ("image", "images"):
        used = prompts if kind == "image" else prompts[:FEW_PROMPTS]
        requests = [shown(kind, number, prompt) for number in range(colours) for prompt in used]
        read = collect(requests, f"re-centring, {kind}").double()
        shift = read.reshape(colours, len(used), *read.shape[1:]) - alone[: len(used)]
        offsets[kind] = Offset(shift.mean((0, 1)), shift.mean(1), shift.mean(0))
    return offsets


def no_offsets(layers: int, d_model: int) -> dict[str, Offset]:
    """Of a model that takes no pictures."""
    nothing = Offset(
        torch.zeros(layers, d_model),
        torch.zeros(0, layers, d_model),
        torch.zeros(0, layers, d_model),
    )
    return {"image": nothing, "images": nothing}
