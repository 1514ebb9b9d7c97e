"""Carry an artefact over to the same model in another residual basis.

Every module of a decoder reads and writes the same residual stream, so the order of its coordinates
is a free choice: permute them in all weights and the model answers as before. With RMSNorm (whose
weights move along) signs are free, too; a LayerNorm, which subtracts the mean of the coordinates,
leaves only permutations. Which of these holds need not be known: the map is recovered from what
both checkpoints make of the same prompts. The basis is shared by all layers, so a coordinate is
known by its values in all of them.

Directions, means and weights move with the basis; gaps, zeros and thresholds are inner
products or follow from them, so they stay. The map is believed only if the carried readout
separates prompts it was not found from as well as the old one did, and scores them as the old one
did: stored thresholds stay.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from guardrail.drift.fitted import (
    Fitted,
    Reader,
    fitted_contrast,
    require_finite,
    require_shape,
)
from guardrail.drift.measure import picture_drifts
from guardrail.drift.schema import TransportFigures
from guardrail.drift.verdict import MOVED
from guardrail.errors import ArtefactError
from guardrail.extras import require, require_extra
from guardrail.fit.directions import SMALLEST, Directions, difference_of_means
from guardrail.fit.prompts import plain, spread
from guardrail.fit.readings import FormResiduals, read_form, read_pictured
from guardrail.fit.select import is_safe, is_unsafe, separation
from guardrail.model.fingerprint import fingerprint, require_fitted_on

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from pydantic import JsonValue

    from guardrail.artefact import Artefact
    from guardrail.artefact.header import Fingerprint
    from guardrail.fit.collect import Collector, Progress
    from guardrail.fit.dataset import ContrastSet
    from guardrail.fit.recentring import Beside
    from guardrail.model.load import LoadedModel

RATIO = 4.0  # squared distance of the next best place to that of the best; below it, ambiguous
FLOOR = 1e-10  # squared relative distance that float32 means leave between equal coordinates
TOLERANCE = 0.05  # unexplained length; bfloat16 leaves about 0.01
AMBIGUOUS = 0.01  # share of the readout and the edit on coordinates of uncertain place
RESTORED = 0.01  # AUROC
SHIFT = 0.05  # text gaps; the noise of bfloat16 does not move means
PAIRED_PROMPTS = 64
_BASED = (
    *("direction", "mu_safe", "mu_unsafe", "readout_weight"),
    *("window_query", "window_value", "answer_query", "answer_value"),
)
_INPUTS = {"tokenizer_digest": "tokenizer or chat template", "processor_digest": "processor"}


@dataclass(frozen=True)
class SignedPermutation:
    """new[..., j] = signs[j] * old[..., places[j]]; `places` (d,) int64, `signs` (d,) float64."""

    places: Tensor
    signs: Tensor

    def apply(self, vectors: Tensor) -> Tensor:
        """(..., d_model) in the old basis -> the same in the new one, in its dtype."""
        moved: Tensor = vectors[..., self.places] * self.signs.to(vectors.dtype)
        return moved

    @property
    def moved(self) -> int:
        """How many coordinates come from another place."""
        return int((self.places != torch.arange(len(self.places))).sum())

    @property
    def flipped(self) -> int:
        """How many change their sign."""
        return int((self.signs < 0).sum())


@dataclass(frozen=True)
class BasisMap:
    """The best map, what it leaves unexplained, and which coordinates it is unsure of, (d,) bool.

    `unexplained` is ||new - map(old)|| / ||new||, at most 1, root mean square over the features.
    """

    map: SignedPermutation
    unexplained: float
    ambiguous: Tensor


@dataclass(frozen=True)
class Transport:
    """The map and its figures; `figures.reason` is None if it may be used."""

    map: SignedPermutation
    figures: TransportFigures


def transport(
    artefact: Artefact,
    loaded: LoadedModel,
    *,
    old_model: LoadedModel | None = None,
    data: str | Path | None = None,
    extend: bool = True,
    batch_size: int = 16,
    work_dir: Path | None = None,
    progress: Progress | None = None,
) -> tuple[Artefact, TransportFigures]:
    """The artefact in the residual basis of `loaded`, and how sure that is.

    The arguments are those of `check_drift`.

    Raises:
        ArtefactError: the two models do not differ by a permutation and signs of the residual
            basis, or the artefact's means do not tell its coordinates apart.
        ArtefactMismatchError, DatasetError: as `check_drift`.
        DetectorError: the readout gives no finite score on the new model.
        MissingExtraError: the extra `fit` is not installed.
    """
    require_shape(artefact, loaded)
    identity = fingerprint(loaded)
    _require_same_inputs(artefact, identity)
    require_extra("fit")
    reader = Reader(fitted_contrast(artefact, data, extend=extend), batch_size, work_dir, progress)
    fitted, old_plain = Fitted.of(artefact), None
    if old_model is not None:
        collect = reader.collector(old_model, require_fitted_on(artefact, old_model))
        old_plain = _plain(collect, reader.contrast, fitted.per_kind)
    collect = reader.collector(loaded, identity)
    new_plain = _plain(collect, reader.contrast, fitted.per_kind)
    found = find_transport(fitted, new_plain, old_plain)
    require_usable(found.figures)
    record = {"from": artefact.artefact_id, "how": "transported", **found.figures.model_dump()}
    made = transported(artefact, found.map, identity, record)
    if loaded.is_multimodal:
        _, beside = read_pictured(
            collect, reader.contrast, fitted.per_kind, video=fitted.reads_videos
        )
        _require_same_pictures(Fitted.of(made), beside)
    return made, found.figures


def _require_same_inputs(artefact: Artefact, identity: Fingerprint) -> None:
    differing = artefact.header.fingerprint.differences(identity)
    if found := [what for name, what in _INPUTS.items() if name in differing]:
        raise ArtefactError(
            f"the artefact cannot be carried over: the {' and the '.join(found)} of the model "
            "changed, too, not the residual basis alone; run `guardrail drift --fix`"
        )


def _require_same_pictures(carried: Fitted, beside: Mapping[str, Beside]) -> None:
    for row in picture_drifts(carried, beside):
        if row.moved > MOVED:
            raise ArtefactError(
                f"the artefact cannot be carried over: beside a picture (kind {row.kind!r}) scores "
                f"move by {row.safe_now:+.2f} (safe) and {row.unsafe_now:+.2f} (unsafe) text gaps, "
                f"{row.safe_fitted:+.2f} and {row.unsafe_fitted:+.2f} at the fit; more than the "
                "basis has changed. Run `guardrail drift --fix`"
            )


def _plain(collect: Collector, contrast: ContrastSet, per_kind: int | None) -> FormResiduals:
    return read_form(collect, contrast, "plain", plain(contrast, per_kind))


def find_transport(
    fitted: Fitted, plain: FormResiduals, old_plain: FormResiduals | None = None
) -> Transport:
    """How to carry an artefact over to the model that `plain` was read from.

    Args:
        fitted: the artefact; its means must be of the same prompts as the fit split of `plain`.
        plain: bare prompts on the new model.
        old_plain: the same samples on the old model, if it is at hand: many single prompts tell
            coordinates apart better than two means do.

    Raises:
        DetectorError: a readout gives no finite score on the new model.
    """
    new = _directions(plain)
    if old_plain is None:
        found = recovered(*_means(fitted, new))
    else:
        found = recovered(*_rows(old_plain, plain))
    carried = Fitted.of(moved(fitted.artefact, found.map), fitted.reference)
    joint = _known(fitted, plain)
    before, after = (_auroc(one, plain, joint=joint) for one in (fitted, carried))
    ambiguous = _ambiguous_share(carried, found)
    figures = TransportFigures(
        coordinates=len(found.map.places),
        moved=found.map.moved,
        flipped=found.map.flipped,
        unexplained=found.unexplained,
        ambiguous=ambiguous,
        auroc_fitted=_auroc_fitted(fitted, plain, joint=joint),
        auroc_before=before,
        auroc_after=after,
        shift=_shift(fitted, carried, plain, joint=joint),
        source="means" if old_plain is None else "activations",
        reason=None,
    )
    return Transport(found.map, figures.model_copy(update={"reason": _reason(figures)}))


def _directions(plain: FormResiduals) -> Directions:
    return difference_of_means(plain.rows("fit", is_unsafe), plain.rows("fit", is_safe))


def _means(fitted: Fitted, new: Directions) -> tuple[Tensor, Tensor]:
    """Features of both models, of the layers that were usable at the fit.

    Where the new model's overflow or do not differ, they are (nearly) zero: no map explains them.
    """
    tensors = fitted.artefact.tensors
    usable = tensors["direction"].any(dim=-1)
    old = Directions(tensors["direction"], tensors["mu_safe"], tensors["mu_unsafe"], usable)
    kept = usable.repeat(2)
    return mean_features(old)[kept], mean_features(new)[kept]


def mean_features(directions: Directions) -> Tensor:
    """Safe means and differences of means of every layer, (2 L, d_model) float64."""
    safe = directions.mu_safe.double()
    return torch.cat([safe, directions.mu_unsafe.double() - safe])


def _rows(old: FormResiduals, new: FormResiduals) -> tuple[Tensor, Tensor]:
    """Features of single prompts of both models, (rows, d_model) float64.

    Each layer's mean, which is large and the same for all, and how prompts differ from it. Rows
    that on the old model (nearly) do not differ, as where only the template's own tokens are seen,
    or overflow, are left out; what overflows on the new one alone is zero, as in `_means`.
    """
    chosen = list(spread(range(len(new.residuals)), PAIRED_PROMPTS))
    before, after = (read.residuals[chosen].double() for read in (old, new))
    finite = torch.isfinite(before).all(-1).all(0)
    rows = [_apart(read.where(read.isfinite().all(-1, True), 0.0)) for read in (before, after)]
    mean, apart = rows[0][:1].norm(dim=-1), rows[0][1:].norm(dim=-1)
    kept = torch.cat([mean > 0, apart > SMALLEST * mean]) & finite
    return rows[0][kept], rows[1][kept]


def _apart(residuals: Tensor) -> Tensor:
    """(n, L, d_model) -> the mean and what each row adds to it, (n + 1, L, d_model)."""
    mean = residuals.mean(0, keepdim=True)
    return torch.cat([mean, residuals - mean])


def _auroc(fitted: Fitted, plain: FormResiduals, *, joint: bool) -> float:
    """Mean over kinds of safe prompts, on the selection split."""
    held = plain.of("select")
    scores = fitted.joint.scores(held) if joint else fitted.readout.scores(held.residuals)
    return separation(require_finite(scores, "plain"), held.kinds).mean


def _known(fitted: Fitted, plain: FormResiduals) -> bool:
    """Whether the fit kept its joint scores of all prompts that it did not fit on."""
    known = fitted.reference.get("plain", {})
    rows = zip(plain.samples, plain.splits, strict=True)
    return all(sample.key in known for sample, split in rows if split != "fit")


def _auroc_fitted(fitted: Fitted, plain: FormResiduals, *, joint: bool) -> float | None:
    """The same of the old scores of the same prompts, or what the fit recorded of its readout."""
    if joint:
        held, known = plain.of("select"), fitted.reference["plain"]
        scores = torch.tensor([known[s.key] for s in held.samples], dtype=torch.float64)
        return separation(scores, held.kinds).mean
    match fitted.artefact.header.readout.figures.get("auroc_by_form"):
        case {"plain": dict(kinds)}:
            values = [value for value in kinds.values() if isinstance(value, float)]
            return sum(values) / len(values) if values else None
    return None


def _shift(fitted: Fitted, carried: Fitted, plain: FormResiduals, *, joint: bool) -> float:
    """How far the mean score of a class moves, in text gaps; the larger of both classes."""
    moved = []
    for belongs, mean in ((is_unsafe, "mu_unsafe"), (is_safe, "mu_safe")):
        if joint:
            known = fitted.reference["plain"]
            held = plain.taken(
                [
                    i
                    for i, (split, kind) in enumerate(zip(plain.splits, plain.kinds, strict=True))
                    if split != "fit" and belongs(kind)
                ]
            )
            now = carried.joint.scores(held)
            then = torch.tensor([known[s.key] for s in held.samples], dtype=torch.float64)
        else:  # the means are those of the fit split, at the last position
            now = carried.readout.scores(plain.rows("fit", belongs))
            then = fitted.readout.scores(fitted.artefact.tensors[mean][None])
        moved.append(abs(float(require_finite(now, "plain").mean() - then.mean())))
    return max(moved)


def _ambiguous_share(carried: Fitted, found: BasisMap) -> float:
    """Largest share of a read or edited direction's squared length on ambiguous coordinates."""
    vectors = [carried.readout.weight]
    if carried.artefact.header.steering is not None:
        layer = carried.artefact.header.steering.layer
        vectors.append(carried.artefact.tensors["direction"][layer][None])
    squares = torch.cat(vectors).double().square()
    shares = squares[:, found.ambiguous].sum(-1) / squares.sum(-1)
    return float(shares.max())


def _reason(figures: TransportFigures) -> str | None:
    if figures.unexplained > TOLERANCE:
        return (
            "the change is not a signed permutation of the residual basis: the best map leaves "
            f"{figures.unexplained:.0%} unexplained, {TOLERANCE:.0%} is allowed; run `guardrail "
            "drift` to see whether the directions still hold, or fit again"
        )
    if not figures.moved and not figures.flipped:
        return (
            "the residual basis has not changed: the best map is the identity; run `guardrail "
            "drift` to see what has"
        )
    if figures.ambiguous > AMBIGUOUS:
        means = figures.source == "means"
        apart = (
            "give --old-model, which tells them apart by single prompts" if means else "fit again"
        )
        return (
            f"the map is not unique: coordinates that carry {figures.ambiguous:.0%} of the "
            f"readout fit several places, {AMBIGUOUS:.0%} is allowed; {apart}"
        )
    if figures.auroc_fitted is not None and figures.auroc_after < figures.auroc_fitted - RESTORED:
        return (
            f"the carried readout reaches an AUROC of {figures.auroc_after:.3f} on held-out "
            f"prompts, the old one had {figures.auroc_fitted:.3f}; run `guardrail drift --fix`"
        )
    if figures.shift > SHIFT:
        return (
            f"the carried readout's mean scores have moved by {figures.shift:.2f} text gaps, "
            f"{SHIFT} is allowed: the old thresholds would not hold; run `guardrail drift --fix`"
        )
    return None


def require_usable(figures: TransportFigures) -> None:
    """Raise what stands against a transport.

    Raises:
        ArtefactError: the map cannot be used; the message says why.
    """
    if figures.reason is not None:
        raise ArtefactError(f"the artefact cannot be carried over: {figures.reason}")


def transported(
    artefact: Artefact, change: SignedPermutation, identity: Fingerprint, record: JsonValue
) -> Artefact:
    """The artefact in the new basis, belonging to the model of that fingerprint."""
    extra = artefact.header.extra | {"drift": record}
    return moved(artefact, change, fingerprint=identity, extra=extra)


def moved(artefact: Artefact, change: SignedPermutation, **header: object) -> Artefact:
    """The artefact with everything that has a basis in the new one."""
    tensors = dict(artefact.tensors)
    tensors |= {name: change.apply(tensors[name]) for name in _BASED if name in tensors}
    return artefact.revised(tensors=tensors, **header)


def recovered(old: Tensor, new: Tensor) -> BasisMap:
    """The signed permutation nearest to carrying `old` into `new`, by linear assignment.

    Coordinates are matched by 2 |<a, b>| / (||a||^2 + ||b||^2), the absolute cosine of their values
    less a penalty for unequal lengths: a basis change keeps lengths. Dead coordinates (zero
    everywhere) match each other. A coordinate is ambiguous when another place is less than twice as
    far from it as its own, so ties and noise are seen.

    Args:
        old: (features, d_model), float; one row per layer and class mean, or layer and prompt.
        new: the same features of the other checkpoint.

    Raises:
        ValueError: the shapes differ, there is no feature, or a value is not finite.
    """
    if old.shape != new.shape or old.dim() != 2 or not len(old):
        raise ValueError(f"features of shape {tuple(old.shape)} and {tuple(new.shape)}")
    if not bool(torch.isfinite(old).all() & torch.isfinite(new).all()):
        raise ValueError("features that are not finite have no map")
    scale = old.double().norm(dim=-1, keepdim=True).clamp_min(1e-30)
    before, after = old.double() / scale, new.double() / scale
    inner = after.T @ before
    lengths = after.square().sum(0)[:, None] + before.square().sum(0)
    likeness = torch.where(lengths > 0, 2 * inner.abs() / lengths.clamp_min(1e-300), 1.0)
    assign = require("scipy.optimize").linear_sum_assignment
    rows, columns = assign(likeness.numpy(), maximize=True)
    places = torch.from_numpy(columns)[torch.from_numpy(rows).argsort()]
    own = torch.arange(len(places))
    signs = torch.where(inner[own, places] < 0, -1.0, 1.0).double()
    found = SignedPermutation(places, signs)
    rest = (after - found.apply(before)).norm(dim=-1)
    share = (rest / after.norm(dim=-1).clamp_min(1e-30)).clamp_max(1.0)
    return BasisMap(found, float(share.square().mean().sqrt()), _ambiguous(likeness, places))


def _ambiguous(likeness: Tensor, places: Tensor) -> Tensor:
    own = likeness[torch.arange(len(places)), places]
    others = likeness.clone()
    others[torch.arange(len(places)), places] = -1.0
    result: Tensor = (1 - others.amax(1)) < RATIO * (1 - own).clamp_min(FLOOR)
    return result
