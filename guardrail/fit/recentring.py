"""What a meaningless picture does to the score of the request beside it, and what is taken back.

A picture *contracts* scores: harmful requests lose more of theirs than harmless ones, so no
constant fits both (MARS, arXiv 2606.31876, takes one off). Estimators that are fitted with requests
of both classes beside pictures learn to look past them. Where the difference of means is read alone
(and where it is steered along), a line of picture scores on text scores is taken back. Either way,
what is left is measured on requests and pictures that nothing was fitted on.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from guardrail.artefact import header as h
from guardrail.decide.linear import UNMOVED
from guardrail.errors import DetectorError
from guardrail.fit.prompts import clip_request, meaningless_clips, spread
from guardrail.types import ImagePart, Request, TextPart

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from guardrail.decide.linear import Recentring
    from guardrail.fit.collect import Collector, Read
    from guardrail.fit.dataset import ContrastSet, Prompt, Split
    from guardrail.fit.prompts import Sample

    Scorer = Callable[[Tensor], Tensor]

CLIPS: dict[Split, int] = {"fit": 4, "select": 4}  # of each class; a clip costs its frames
LEAST_SLOPE = 0.1  # below it a picture leaves nothing of a score that could be taken back
KEPT, KEPT_SLOPE = 0.1, 0.9  # text gaps; what requests are to keep of their scores beside pictures


@dataclass(frozen=True)
class Beside:
    """Requests of both classes alone and beside one kind of meaningless pictures.

    `alone` and `beside` are (n, L, d_model) residuals at the last position of the same requests;
    `splits` and `unsafe` say what each is.
    """

    splits: Sequence[str]
    unsafe: Sequence[bool]
    alone: Tensor
    beside: Tensor

    def of(self, split: str) -> Beside:
        """The requests of one split."""
        rows = [i for i, name in enumerate(self.splits) if name == split]
        unsafe = [self.unsafe[i] for i in rows]
        return Beside([split] * len(rows), unsafe, self.alone[rows], self.beside[rows])


def without_pictures(request: Request) -> Request:
    """The texts of a request."""
    turns = (
        replace(turn, parts=tuple(p for p in turn.parts if not isinstance(p, ImagePart)))
        for turn in request.messages
    )
    return replace(request, messages=tuple(turns))


def read_beside(
    collect: Collector,
    contrast: ContrastSet,
    pictured: Sequence[Sample],
    reads: Sequence[Read],
    *,
    video: bool = False,
) -> dict[str, Beside]:
    """By kind: `image`, `images` (several) and, with `video`, `video`, clips of one window.

    Args:
        collect: of the model.
        contrast: the prompts.
        pictured: prompts of both classes, each beside meaningless pictures.
        reads: what was read of them.
        video: read some of the prompts beside clips, too.
    """
    prompts = [contrast.prompts[sample.index] for sample in pictured]
    texts = [without_pictures(sample.request) for sample in pictured]
    alone = collect(texts, "the same without pictures")
    beside = torch.stack([read.last for read in reads])
    kinds = [sample.request.offset_kind for sample in pictured]

    def compared(rows: list[int], residuals: Tensor) -> Beside:
        splits = [prompts[i].in_split for i in rows]
        return Beside(splits, [prompts[i].label == "unsafe" for i in rows], alone[rows], residuals)

    found = {
        kind: compared(rows, beside[rows])
        for kind in ("image", "images")
        if (rows := [i for i, name in enumerate(kinds) if name == kind])
    }
    if video:
        rows = list(_filmed(prompts))
        clips = meaningless_clips(max(len(rows), 1))
        requests = [
            clip_request(_words(texts[i]), clips[turn % len(clips)]) for turn, i in enumerate(rows)
        ]
        found["video"] = compared(rows, collect(requests, "prompts beside a video"))
    return found


def _filmed(prompts: Sequence[Prompt]) -> Iterator[int]:
    """Places of the prompts that are read beside a clip, as many of each class."""
    for split, count in CLIPS.items():
        for label in ("unsafe", "safe"):
            rows = [i for i, p in enumerate(prompts) if (p.in_split, p.label) == (split, label)]
            yield from spread(rows, count)


def _words(request: Request) -> str:
    (message,) = request.messages
    return "\n".join(part.text for part in message.parts if isinstance(part, TextPart))


def lines(beside: Mapping[str, Beside], scorer: Scorer) -> dict[str, Recentring]:
    """The line of picture scores on text scores, of the fit split, by kind.

    Least squares over both classes. Kinds that are read of few requests have the slope of a single
    picture's, and an intercept of their own.

    Args:
        beside: by kind.
        scorer: (n, L, d_model) -> (n,) scores without any re-centring.
    """
    found: dict[str, Recentring] = {}
    for kind, rows in beside.items():
        fitted = rows.of("fit")
        x, y = scorer(fitted.alone).double(), scorer(fitted.beside).double()
        slope = max(_slope(x, y), LEAST_SLOPE)
        if len(x) < 24 and "image" in found:
            slope = found["image"][1]
        found[kind] = (float((y - slope * x).mean()), slope)
    return found


def _slope(x: Tensor, y: Tensor) -> float:
    """Of y on x, least squares; 1 where x does not vary."""
    apart = x - x.mean()
    square = float(apart.square().sum())
    return float(apart @ (y - y.mean())) / square if square > 0 else 1.0


def measured(
    beside: Mapping[str, Beside],
    scorer: Scorer,
    taken: Mapping[str, Recentring],
    steering: Mapping[str, Recentring],
) -> dict[str, h.Recentring]:
    """What is left beside pictures of the selection split, in text gaps, by kind.

    Args:
        beside: by kind.
        scorer: as in `lines`.
        taken: what is taken back of its scores.
        steering: what is taken back at the steering layer; empty if nothing is steered.

    Raises:
        DetectorError: beside pictures the scores are not finite.
    """
    found = {}
    for kind, rows in beside.items():
        held = rows.of("select")
        b, m = taken.get(kind, UNMOVED)
        x, raw = scorer(held.alone).double(), scorer(held.beside).double()
        y = (raw - b) / m
        if not bool(y.isfinite().all()):
            raise DetectorError(
                f"re-centring, {kind}: beside pictures some requests have no finite score: the "
                "model's residuals overflow. Load it in another dtype"
            )
        unsafe = torch.tensor(held.unsafe, dtype=torch.bool)
        apart = float(x[unsafe].mean() - x[~unsafe].mean())
        found[kind] = h.Recentring(
            score=h.Line(intercept=b, slope=m),
            steering=_line(steering.get(kind)),
            n=len(x),
            safe=float((y - x)[~unsafe].mean()),
            unsafe=float((y - x)[unsafe].mean()),
            slope=_slope(x, y),
            separation=float(raw[unsafe].mean() - raw[~unsafe].mean()) / apart,
        )
    return found


def _line(line: Recentring | None) -> h.Line | None:
    return None if line is None else h.Line(intercept=line[0], slope=line[1])


def lost_scores(rows: Mapping[str, h.Recentring]) -> Iterator[str]:
    """A warning for each kind of picture beside which requests do not keep their scores."""
    for kind, row in rows.items():
        if max(abs(row.safe), abs(row.unsafe)) > KEPT or row.slope < KEPT_SLOPE:
            own = "videos" if kind == "video" else "pictures"
            yield (
                f"re-centring: beside a picture (kind {kind!r}, n = {row.n}) scores of safe "
                f"requests move by {row.safe:+.2f} text gaps, of unsafe ones by {row.unsafe:+.2f}, "
                f"with a slope of {row.slope:.2f}; calibrate on {own} of your own"
            )
