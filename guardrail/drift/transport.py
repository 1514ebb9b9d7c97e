"""Carry an artefact over to the same model in another residual basis.

Directions, means and weights move with the basis; gaps, zeros, offsets and thresholds are inner
products or follow from them, so they stay. The map is found from prompts that both checkpoints
read (see `basis`), and believed only if the carried readout separates prompts it was not found
from as well as the old one did, and scores them as the old one did: stored thresholds stay.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from guardrail.drift.basis import BasisMap, SignedPermutation, mean_features, recovered
from guardrail.drift.fitted import Fitted, require_finite
from guardrail.drift.schema import TransportFigures
from guardrail.errors import ArtefactError
from guardrail.fit.direction import SMALLEST, Directions, difference_of_means
from guardrail.fit.estimators import separation
from guardrail.fit.forms import spread
from guardrail.fit.select import FormResiduals, is_safe, is_unsafe

if TYPE_CHECKING:
    from pydantic import JsonValue

    from guardrail.artefact import Artefact
    from guardrail.artefact.header import Fingerprint

TOLERANCE = 0.05  # unexplained length; bfloat16 leaves about 0.01
AMBIGUOUS = 0.01  # share of the readout and the edit on coordinates of uncertain place
RESTORED = 0.01  # AUROC
SHIFT = 0.05  # text gaps; the noise of bfloat16 does not move means
PAIRED_PROMPTS = 64
_BASED = ("direction", "mu_safe", "mu_unsafe", "readout_weight")


@dataclass(frozen=True)
class Transport:
    """The map and its figures; `figures.reason` is None if it may be used."""

    map: SignedPermutation
    figures: TransportFigures


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
    before, after = (_auroc(one, plain) for one in (fitted, carried))
    then = _auroc_fitted(fitted, plain)
    ambiguous = _ambiguous_share(carried, found)
    figures = TransportFigures(
        coordinates=len(found.map.places),
        moved=found.map.moved,
        flipped=found.map.flipped,
        unexplained=found.unexplained,
        ambiguous=ambiguous,
        auroc_fitted=then,
        auroc_before=before,
        auroc_after=after,
        shift=_shift(fitted, carried, plain),
        source="means" if old_plain is None else "activations",
        reason=None,
    )
    return Transport(found.map, figures.model_copy(update={"reason": _reason(figures)}))


def transported(
    artefact: Artefact, change: SignedPermutation, identity: Fingerprint, record: JsonValue
) -> Artefact:
    """The artefact in the new basis, belonging to the model of that fingerprint."""
    extra = artefact.header.extra | {"drift": record}
    return moved(artefact, change, fingerprint=identity, extra=extra)


def moved(artefact: Artefact, change: SignedPermutation, **header: object) -> Artefact:
    """The artefact with everything that has a basis in the new one."""
    tensors = dict(artefact.tensors)
    tensors |= {name: change.apply(tensors[name]) for name in _BASED}
    return artefact.revised(tensors=tensors, **header)


def require_usable(figures: TransportFigures) -> None:
    """Raise what stands against a transport.

    Raises:
        ArtefactError: the map cannot be used; the message says why.
    """
    if figures.reason is not None:
        raise ArtefactError(f"the artefact cannot be carried over: {figures.reason}")


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


def _auroc(fitted: Fitted, plain: FormResiduals) -> float:
    """Mean over kinds of safe prompts, on the selection split."""
    scores = require_finite(fitted.readout.scores(plain.rows("select")), "plain")
    return separation(scores, plain.kinds_of("select")).mean


def _shift(fitted: Fitted, carried: Fitted, plain: FormResiduals) -> float:
    """How far the mean score of a class moves, in text gaps; the larger of both classes."""
    known = fitted.reference.get("plain", {})
    now = require_finite(carried.readout.scores(plain.residuals), "plain")
    moved = []
    for belongs, mean in ((is_unsafe, "mu_unsafe"), (is_safe, "mu_safe")):
        rows = [i for i, kind in enumerate(plain.kinds) if belongs(kind)]
        held = [i for i in rows if plain.splits[i] != "fit"]
        old = [known.get(plain.samples[i].index) for i in held]
        then = torch.tensor([score for score in old if score is not None], dtype=torch.float64)
        if not held or len(then) < len(held):  # the means are those of the fit split
            held = [i for i in rows if plain.splits[i] == "fit"]
            then = fitted.readout.scores(fitted.artefact.tensors[mean][None])
        moved.append(abs(float(now[held].mean() - then.mean())))
    return max(moved)


def _auroc_fitted(fitted: Fitted, plain: FormResiduals) -> float | None:
    """The same of the old scores of the same prompts, or what the fit recorded."""
    known = fitted.reference.get("plain", {})
    places = [s.index for s in plain.samples_of("select", lambda _kind: True)]
    if all(index in known for index in places):
        scores = torch.tensor([known[index] for index in places], dtype=torch.float64)
        return separation(scores, plain.kinds_of("select")).mean
    match fitted.artefact.header.readout.figures.get("auroc_by_form"):
        case {"plain": dict(kinds)}:
            values = [value for value in kinds.values() if isinstance(value, float)]
            return sum(values) / len(values) if values else None
    return None


def _ambiguous_share(carried: Fitted, found: BasisMap) -> float:
    """Largest share of a read or edited direction's squared length on ambiguous coordinates."""
    vectors = [carried.readout.weight]
    if carried.artefact.header.steering is not None:
        layer = carried.artefact.header.steering.layer
        vectors.append(carried.artefact.tensors["direction"][layer][None])
    squares = torch.cat(vectors).double().square()
    shares = squares[:, found.ambiguous].sum(-1) / squares.sum(-1)
    return float(shares.max())
