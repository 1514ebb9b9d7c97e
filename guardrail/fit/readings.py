"""Everything a fit asks of the model before it decides: residuals of prompts in many forms."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from guardrail.fit.directions import (
    Directions,
    LayerScore,
    difference_of_means,
    layer_scores,
)
from guardrail.fit.forms import FORMS, PLAN, readable, samples
from guardrail.fit.prompts import drawn, filmed, plain
from guardrail.fit.recentring import Beside, read_beside
from guardrail.fit.select import is_safe, is_unsafe

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from guardrail.artefact.header import Rates
    from guardrail.fit.collect import Collector, Read
    from guardrail.fit.dataset import ContrastSet, Split
    from guardrail.fit.forms import Form
    from guardrail.fit.prompts import Sample

DRAWN = 34  # of each kind of safe prompts of the calibration split
STAGES = {
    "plain": "contrast prompts",
    "worded": "prompts with words around",
    "pictured": "prompts beside a picture",
    "drawn": "safe prompts as pictures",
    "filmed": "safe prompts as videos",
}
"""The groups in which prompts are read and count, and what a progress bar calls them.

`worded` are the forms of text but the bare one, together."""


@dataclass(frozen=True)
class FormResiduals:
    """What was read of one group's samples, with what each of them is."""

    samples: Sequence[Sample]
    reads: Sequence[Read]
    splits: Sequence[str]
    kinds: Sequence[str]

    @cached_property
    def residuals(self) -> Tensor:
        """(n, L, d_model) float32, at the end of the turn in which the prompt stands."""
        rows = zip(self.samples, self.reads, strict=True)
        return torch.stack([_end(sample, read) for sample, read in rows])

    @property
    def media(self) -> list[str]:
        """What pictures each request holds, as `Request.offset_kind`."""
        return [sample.request.offset_kind for sample in self.samples]

    def of(self, split: str, keep: Callable[[str], bool] = lambda _kind: True) -> FormResiduals:
        """The rows of one split and the kinds kept."""
        pairs = enumerate(zip(self.splits, self.kinds, strict=True))
        return self.taken([i for i, (s, kind) in pairs if s == split and keep(kind)])

    def taken(self, rows: Sequence[int]) -> FormResiduals:
        """These rows, in this order."""
        return FormResiduals(
            [self.samples[i] for i in rows],
            [self.reads[i] for i in rows],
            [self.splits[i] for i in rows],
            [self.kinds[i] for i in rows],
        )

    def rows(self, split: str, keep: Callable[[str], bool] = lambda _kind: True) -> Tensor:
        """Residuals of one split and the kinds kept."""
        mask = [s == split and keep(k) for s, k in zip(self.splits, self.kinds, strict=True)]
        return self.residuals[torch.tensor(mask)]

    def samples_of(self, split: str, keep: Callable[[str], bool]) -> list[Sample]:
        """What was asked in the rows of one split and the kinds kept."""
        return list(self.of(split, keep).samples)

    def kinds_of(self, split: str) -> list[str]:
        """Kinds of one split's rows, in the order of `rows`."""
        return [k for s, k in zip(self.splits, self.kinds, strict=True) if s == split]


def _end(sample: Sample, read: Read) -> Tensor:
    """The residual at the end of a prompt's own turn; of an earlier turn that is its header."""
    earlier = sample.message + 1 < len(sample.request.messages)
    return read.headers[-1] if earlier and len(read.headers) else read.last


@dataclass(frozen=True)
class Readings:
    """Residuals by group, requests beside pictures, directions of the fit split, layer scores.

    `per_kind` bounded the bare prompts (see `prompts.plain`); None means that all were read.
    `videos` safe prompts were read as drawn videos. `token_layers` are those of the tokens,
    `whole_layers` those that run at every position.
    """

    contrast: ContrastSet
    forms: dict[str, FormResiduals]
    beside: dict[str, Beside]
    directions: Directions
    layers: list[LayerScore]
    token_layers: tuple[int, ...]
    whole_layers: tuple[int, ...]
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
    """Ask the model everything: the prompts bare, some in the other forms, and beside pictures.

    With `video` also beside clips, and `videos` safe prompts drawn as such.
    """
    read = text_samples(collect, contrast, per_kind, of_these=of_these)
    if collect.loaded.is_multimodal:
        read["drawn"] = drawn(contrast, _drawn_of_a_kind(contrast, rates))
        if video and videos:
            read["filmed"] = filmed(contrast, videos)
    found = {name: read_form(collect, contrast, name, some) for name, some in read.items()}
    beside: dict[str, Beside] = {}
    if collect.loaded.is_multimodal:
        found["pictured"], beside = read_pictured(collect, contrast, per_kind, video=video)
    bare = found["plain"]
    directions = difference_of_means(bare.rows("fit", is_unsafe), bare.rows("fit", is_safe))
    scores = layer_scores(
        directions,
        bare.rows("select", is_unsafe),
        bare.rows("select", is_safe),
        _pair_differences(contrast, bare),
    )
    return Readings(
        contrast,
        found,
        beside,
        directions,
        scores,
        collect.token_layers,
        collect.whole_layers,
        per_kind,
        len(read.get("filmed", ())),
    )


def text_samples(
    collect: Collector, contrast: ContrastSet, per_kind: int | None, *, of_these: int | None = None
) -> dict[str, list[Sample]]:
    """What is read without any picture: the prompts bare, and some in the other forms of text."""
    forms = [form for form in readable(collect.encoder) if form.name != FORMS[0].name]
    worded = [form for form in forms if not form.pictures]
    return {
        "plain": plain(contrast, per_kind, of_these=of_these),
        "worded": [s for form in worded for s in samples(contrast, form, limits(form, per_kind))],
    }


def limits(form: Form, per_kind: int | None) -> dict[Split, int | None]:
    """What `PLAN` gives a form, in proportion to `per_kind` of the 64 bare prompts of a kind.

    What thresholds are set on stays as it is: their rates need so many.
    """
    whole = PLAN["bare"]["fit"]
    share = 1.0 if per_kind is None or whole is None else min(1.0, per_kind / whole)
    return {
        split: count if count is None or split == "calibrate" else math.ceil(count * share)
        for split, count in PLAN[form.name].items()
    }


def read_pictured(
    collect: Collector, contrast: ContrastSet, per_kind: int | None, *, video: bool
) -> tuple[FormResiduals, dict[str, Beside]]:
    """Prompts of both classes beside meaningless pictures, and with `video` some beside clips."""
    (form,) = (form for form in FORMS if form.pictures)
    some = samples(contrast, form, limits(form, per_kind))
    found = read_form(collect, contrast, form.name, some)
    compared = [i for i, split in enumerate(found.splits) if split != "calibrate"]
    shown = found.taken(compared)  # thresholds need no comparison
    return found, read_beside(collect, contrast, shown.samples, shown.reads, video=video)


def read_form(
    collect: Collector, contrast: ContrastSet, name: str, some: Sequence[Sample]
) -> FormResiduals:
    """What is read of a group of samples."""
    reads = collect.read([sample.request for sample in some], STAGES[name])
    prompts = [contrast.prompts[s.index] for s in some]
    return FormResiduals(some, reads, [p.in_split for p in prompts], [p.kind for p in prompts])


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
