"""Everything a fit asks of the model before it decides: residuals, offsets, directions, layers."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from guardrail.fit.directions import (
    Directions,
    LayerScore,
    Offset,
    difference_of_means,
    layer_scores,
    meaningless_images,
    measure_offsets,
    no_offsets,
)
from guardrail.fit.prompts import Sample, drawn, filmed, formed, plain
from guardrail.fit.select import FormResiduals, is_safe, is_unsafe

if TYPE_CHECKING:
    from collections.abc import Sequence

    from guardrail.artefact.header import Rates
    from guardrail.fit.collect import Collector
    from guardrail.fit.dataset import ContrastSet

# How many prompts of each kind a split gives to the two forms beside the plain one. Pictures cost
# most and are needed most where the thresholds of pictures come from.
CARRIED = {"fit": 84, "select": 24, "calibrate": 0}
PICTURED = {"fit": 0, "select": 8, "calibrate": 0}
DRAWN = 34  # of each kind of safe prompts of the calibration split
PICTURES = 8


@dataclass(frozen=True)
class Readings:
    """Residuals by form, offsets by kind, directions of the fit split, layer scores.

    `per_kind` bounded the bare prompts (see `forms.plain`); None means that all were read. `videos`
    safe prompts were read as drawn videos.
    """

    contrast: ContrastSet
    forms: dict[str, FormResiduals]
    offsets: dict[str, Offset]
    directions: Directions
    layers: list[LayerScore]
    per_kind: int | None = None
    videos: int = 0

    @property
    def usable(self) -> list[int]:
        """Layers whose class means differ."""
        return [s.layer for s in self.layers if s.usable]


def read_all(
    collect: Collector,
    contrast: ContrastSet,
    rates: Rates,
    per_kind: int | None,
    *,
    of_these: int | None = None,
    video: bool = False,
    videos: int = 0,
) -> Readings:
    """Ask the model everything: the prompts bare, some in the other forms, and the offsets.

    With `video` that of clips, too, and `videos` safe prompts drawn as such.
    """
    bare = plain(contrast, per_kind, of_these=of_these)
    residuals = collect([s.request for s in bare], "contrast prompts")
    carried = formed(contrast, "carried", limits=CARRIED)
    forms = {
        "plain": with_residuals(contrast, bare, residuals),
        "carried": with_residuals(
            contrast, carried, collect([s.request for s in carried], "prompts with words around")
        ),
    }
    offsets = no_offsets(*residuals.shape[1:])
    if collect.loaded.is_multimodal:
        offsets = measure_offsets(collect, video=video)
        forms["pictured"] = _pictured(collect, contrast, offsets["image"].mean)
        forms["drawn"] = _drawn(collect, contrast, rates, offsets["image"].mean)
        if video and videos:
            forms["filmed"] = _filmed(collect, contrast, videos, offsets["video"].mean)
    base = forms["plain"]
    directions = difference_of_means(base.rows("fit", is_unsafe), base.rows("fit", is_safe))
    scores = layer_scores(
        directions,
        base.rows("select", is_unsafe),
        base.rows("select", is_safe),
        _pair_differences(contrast, base),
    )
    filmed_count = len(forms["filmed"].samples) if "filmed" in forms else 0
    return Readings(contrast, forms, offsets, directions, scores, per_kind, filmed_count)


def _pair_differences(contrast: ContrastSet, base: FormResiduals) -> Tensor | None:
    """Unsafe minus matched safe prompt of the selection split, (pairs, L, d_model), if any."""
    row = {sample.index: place for place, sample in enumerate(base.samples)}
    pairs = [(row[i], row[j]) for i, j in contrast.pairs("select") if i in row and j in row]
    differences = [base.residuals[i] - base.residuals[j] for i, j in pairs]
    return torch.stack(differences) if differences else None


def _pictured(collect: Collector, contrast: ContrastSet, offset: Tensor) -> FormResiduals:
    """Prompts beside a meaningless picture, re-centred."""
    pictures = meaningless_images(PICTURES, seed=1)  # other colours than the offset was read from
    samples = formed(contrast, "pictured", pictures, limits=PICTURED)
    seen = collect([s.request for s in samples], "prompts beside a picture")
    return with_residuals(contrast, samples, seen - offset.float())


def _drawn(
    collect: Collector, contrast: ContrastSet, rates: Rates, offset: Tensor
) -> FormResiduals:
    """Safe prompts as pictures, re-centred; enough of them for the target rates."""
    benign = [contrast.prompts[i].kind for i in contrast.indices("calibrate", labels=("safe",))]
    needed = math.ceil(1 / min(rates.steer, rates.flag))
    limit = DRAWN  # of each kind of benign prompts, however many kinds there are
    while sum(min(n, limit) for n in Counter(benign).values()) < min(needed, len(benign)):
        limit += 1
    samples = drawn(contrast, limit)
    seen = collect([s.request for s in samples], "safe prompts as pictures")
    return with_residuals(contrast, samples, seen - offset.float())


def _filmed(collect: Collector, contrast: ContrastSet, count: int, offset: Tensor) -> FormResiduals:
    """Safe prompts as videos, re-centred."""
    samples = filmed(contrast, count)
    seen = collect([s.request for s in samples], "safe prompts as videos")
    return with_residuals(contrast, samples, seen - offset.float())


def with_residuals(
    contrast: ContrastSet, samples: Sequence[Sample], residuals: Tensor
) -> FormResiduals:
    """Samples with what was read for them, (n, L, d_model), and what each row is."""
    prompts = [contrast.prompts[s.index] for s in samples]
    return FormResiduals(
        samples, residuals, [p.in_split for p in prompts], [p.kind for p in prompts]
    )
