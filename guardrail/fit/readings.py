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
from guardrail.fit.prompts import drawn, filmed, formed, plain
from guardrail.fit.select import is_safe, is_unsafe

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from guardrail.artefact.header import Rates
    from guardrail.fit.collect import Collector
    from guardrail.fit.dataset import ContrastSet
    from guardrail.fit.prompts import Form, Sample

# How many prompts of each kind a split gives to the carried form and to the pictured one. Pictures
# cost most and are needed most where the thresholds of pictures come from.
CARRIED = {"fit": 84, "select": 24, "calibrate": 0}
PICTURED = {"fit": 0, "select": 8, "calibrate": 0}
DRAWN = 34  # of each kind of safe prompts of the calibration split
PICTURES = 8
# What the residuals of a form come re-centred with.
OFFSET_OF: dict[str, str] = {"pictured": "image", "drawn": "image", "filmed": "video"}
_STAGES: dict[Form, str] = {
    "plain": "contrast prompts",
    "carried": "prompts with words around",
    "pictured": "prompts beside a picture",
    "drawn": "safe prompts as pictures",
    "filmed": "safe prompts as videos",
}


@dataclass(frozen=True)
class FormResiduals:
    """Residuals of one form's samples, re-centred: (n, L, d_model), with what each row is."""

    samples: Sequence[Sample]
    residuals: Tensor
    splits: Sequence[str]
    kinds: Sequence[str]

    def rows(self, split: str, keep: Callable[[str], bool] = lambda _kind: True) -> Tensor:
        """Residuals of one split and the kinds kept."""
        mask = [s == split and keep(k) for s, k in zip(self.splits, self.kinds, strict=True)]
        return self.residuals[torch.tensor(mask)]

    def samples_of(self, split: str, keep: Callable[[str], bool]) -> list[Sample]:
        """What was asked in the rows of one split and the kinds kept."""
        triples = zip(self.samples, self.splits, self.kinds, strict=True)
        return [sample for sample, s, kind in triples if s == split and keep(kind)]

    def kinds_of(self, split: str) -> list[str]:
        """Kinds of one split's rows, in the order of `rows`."""
        return [k for s, k in zip(self.splits, self.kinds, strict=True) if s == split]


@dataclass(frozen=True)
class Readings:
    """Residuals by form, offsets by kind, directions of the fit split, layer scores.

    `per_kind` bounded the bare prompts (see `prompts.plain`); None means that all were read.
    `videos` safe prompts were read as drawn videos.
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
    bare = read_form(collect, contrast, "plain", plain(contrast, per_kind, of_these=of_these))
    carried = formed(contrast, "carried", limits=CARRIED)
    forms = {"plain": bare, "carried": read_form(collect, contrast, "carried", carried)}
    offsets = no_offsets(*bare.residuals.shape[1:])
    if collect.loaded.is_multimodal:
        offsets = measure_offsets(collect, video=video)
        for form, samples in samples_shown(contrast, rates, videos if video else 0).items():
            offset = offsets[OFFSET_OF[form]].mean
            forms[form] = read_form(collect, contrast, form, samples, offset)
    directions = difference_of_means(bare.rows("fit", is_unsafe), bare.rows("fit", is_safe))
    scores = layer_scores(
        directions,
        bare.rows("select", is_unsafe),
        bare.rows("select", is_safe),
        _pair_differences(contrast, bare),
    )
    filmed_count = len(forms["filmed"].samples) if "filmed" in forms else 0
    return Readings(contrast, forms, offsets, directions, scores, per_kind, filmed_count)


def samples_shown(contrast: ContrastSet, rates: Rates, videos: int) -> dict[Form, list[Sample]]:
    """The prompts that come with a picture, by form, and `videos` that come as one, if any."""
    pictures = meaningless_images(PICTURES, seed=1)  # other colours than offsets are read from
    found: dict[Form, list[Sample]] = {
        "pictured": formed(contrast, "pictured", pictures, limits=PICTURED),
        "drawn": drawn(contrast, _drawn_of_a_kind(contrast, rates)),
    }
    return found | {"filmed": filmed(contrast, videos)} if videos else found


def read_form(
    collect: Collector,
    contrast: ContrastSet,
    form: Form,
    samples: Sequence[Sample],
    offset: Tensor | None = None,
) -> FormResiduals:
    """The residuals of one form's samples, re-centred by its `offset` (L, d_model)."""
    residuals = collect([sample.request for sample in samples], _STAGES[form])
    if offset is not None:
        residuals = residuals - offset.float()
    return with_residuals(contrast, samples, residuals)


def with_residuals(
    contrast: ContrastSet, samples: Sequence[Sample], residuals: Tensor
) -> FormResiduals:
    """Samples with what was read for them, (n, L, d_model), and what each row is."""
    prompts = [contrast.prompts[s.index] for s in samples]
    return FormResiduals(
        samples, residuals, [p.in_split for p in prompts], [p.kind for p in prompts]
    )


def _drawn_of_a_kind(contrast: ContrastSet, rates: Rates) -> int:
    """How many safe prompts of each kind are drawn, so that all together support the rates."""
    benign = [contrast.prompts[i].kind for i in contrast.indices("calibrate", labels=("safe",))]
    needed = math.ceil(1 / min(rates.steer, rates.flag))
    limit = DRAWN  # however many kinds there are
    while sum(min(n, limit) for n in Counter(benign).values()) < min(needed, len(benign)):
        limit += 1
    return limit


def _pair_differences(contrast: ContrastSet, base: FormResiduals) -> Tensor | None:
    """Unsafe minus matched safe prompt of the selection split, (pairs, L, d_model), if any."""
    row = {sample.index: place for place, sample in enumerate(base.samples)}
    pairs = [(row[i], row[j]) for i, j in contrast.pairs("select") if i in row and j in row]
    differences = [base.residuals[i] - base.residuals[j] for i, j in pairs]
    return torch.stack(differences) if differences else None
