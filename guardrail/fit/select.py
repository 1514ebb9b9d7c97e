"""Which estimator reads best, over which layers: decided on held-out prompts of every form.

The estimators are linear ones of the same contrast, all put on one scale: 0 safe, 1 unsafe.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import groupby
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from guardrail.decide.linear import UNMOVED, recentred, refusal_scores
from guardrail.errors import NoUsableDirectionError
from guardrail.extras import require
from guardrail.fit.collect import LAST_DEPTH
from guardrail.stats import auroc

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from guardrail.decide.linear import Recentring
    from guardrail.fit.readings import FormResiduals

MINIMUM_AUROC = 0.80
MARGIN = 0.005  # a more elaborate estimator must beat a simpler one by this much
MOST_LAYERS = 8
FIRST_DEPTH = 0.3  # share of the layers before which nothing is read or edited


@dataclass(frozen=True)
class LinearReadout:
    """`weight` (k, d_model), unit rows, with the centroids' projections `zero` and `gap` (k,).

    `recentring` is what is taken back of scores beside pictures, by kind; none where it lacks one.
    """

    estimator: str
    layers: tuple[int, ...]
    weight: Tensor
    zero: Tensor
    gap: Tensor
    recentring: Mapping[str, Recentring] = field(default_factory=dict)

    def scores(self, residuals: Tensor, kinds: Sequence[str] = ()) -> Tensor:
        """All-layer residuals (n, L, d_model) -> (n,) float64; `kinds` re-centres those of it."""
        read = refusal_scores(
            residuals[:, list(self.layers)], weight=self.weight, zero=self.zero, gap=self.gap
        )
        return recentred(read, [self.recentring.get(k, UNMOVED) for k in kinds]) if kinds else read


@dataclass(frozen=True)
class Separation:
    """AUROC of unsafe prompts against each kind of safe prompt, and their plain mean."""

    by_kind: dict[str, float]

    @property
    def mean(self) -> float:
        """Every kind of safe prompt weighs the same, hard ones as much as ordinary ones."""
        return sum(self.by_kind.values()) / len(self.by_kind)


@dataclass(frozen=True)
class Candidate:
    """A readout and its AUROC on the selection split, per form and kind of safe prompt."""

    readout: LinearReadout
    separations: dict[str, Separation] = field(default_factory=dict)

    @property
    def auroc(self) -> float:
        """Mean over forms: a detector must hold in each."""
        return sum(s.mean for s in self.separations.values()) / len(self.separations)

    def to_dict(self) -> dict[str, object]:
        """Plain values for the artefact's header."""
        return {
            "estimator": self.readout.estimator,
            "layers": list(self.readout.layers),
            "auroc": self.auroc,
            "auroc_by_form": {form: s.by_kind for form, s in self.separations.items()},
        }


def compare(forms: dict[str, FormResiduals], layers: Sequence[int]) -> list[Candidate]:
    """Every estimator at every layer, and averages over each estimator's best layers.

    All forms serve the fit, so that the change of form counts as variation within a class. Best
    first.
    """
    unsafe, safe = _fitted_on(forms, is_unsafe), _fitted_on(forms, is_safe)
    found: list[Candidate] = []
    for name in ESTIMATORS:
        made = [readout(name, i, unsafe, safe) for i in layers]
        single = [scored(one, forms) for one in made if one is not None]
        single.sort(key=lambda c: -c.auroc)
        found += single
        for count in range(2, min(MOST_LAYERS, len(single)) + 1):
            found.append(scored(averaged([c.readout for c in single[:count]]), forms))
    return sorted(found, key=lambda c: -c.auroc)


def choose(candidates: Sequence[Candidate]) -> Candidate:
    """The best readout of the plainest estimator that comes within `MARGIN` of the best of all.

    Raises:
        NoUsableDirectionError: none separates the selection split with an AUROC of 0.80.
    """
    best = max((c.auroc for c in candidates), default=0.0)
    if best < MINIMUM_AUROC:
        raise NoUsableDirectionError(
            f"no layer separates unsafe from safe prompts: the best AUROC on held-out prompts is "
            f"{best:.3f}, {MINIMUM_AUROC:.2f} is needed ({len(candidates)} readouts tried). The "
            "model may not be aligned, or the contrast prompts may not suit its language"
        )
    near = {c.readout.estimator for c in candidates if c.auroc >= best - MARGIN}
    plainest = next(name for name in ESTIMATORS if name in near)
    return max(
        (c for c in candidates if c.readout.estimator == plainest),
        key=lambda c: (c.auroc, -len(c.readout.layers)),
    )


def refitted(
    estimator: str, layers: Sequence[int], forms: dict[str, FormResiduals]
) -> Candidate | None:
    """One estimator over given layers, as `compare` would fit it; None if it is degenerate there.

    Raises:
        ValueError: no such estimator.
    """
    if estimator not in ESTIMATORS:
        raise ValueError(f"unknown estimator {estimator!r}; known: {', '.join(ESTIMATORS)}")
    unsafe, safe = _fitted_on(forms, is_unsafe), _fitted_on(forms, is_safe)
    made = [readout(estimator, layer, unsafe, safe) for layer in layers]
    kept = [one for one in made if one is not None]
    return None if len(kept) < len(made) else scored(averaged(kept), forms)


def best_of_each(candidates: Sequence[Candidate]) -> list[Candidate]:
    """The best single-layer and the best averaged readout of each estimator, for the record."""

    def family(c: Candidate) -> tuple[str, bool]:
        return c.readout.estimator, len(c.readout.layers) > 1

    ordered = sorted(candidates, key=lambda c: (family(c), -c.auroc))
    return [next(group) for _, group in groupby(ordered, key=family)]


def readout_layers(layer_count: int, usable: Sequence[int]) -> list[int]:
    """Layers among which a readout is sought: neither the first ones nor the last."""
    low, high = int(FIRST_DEPTH * layer_count), int(LAST_DEPTH * layer_count)
    return [i for i in usable if low <= i < high] or list(usable)


def _fitted_on(forms: dict[str, FormResiduals], keep: Callable[[str], bool]) -> list[Tensor]:
    rows = [form.rows("fit", keep) for form in forms.values()]
    return [part for part in rows if len(part)]


def scored(made: LinearReadout, forms: dict[str, FormResiduals]) -> Candidate:
    """A readout with its AUROC on the selection split, per form and kind of safe prompt."""
    separations = {
        name: separation(made.scores(form.rows("select")), form.kinds_of("select"))
        for name, form in forms.items()
        if form.kinds_of("select")
    }
    return Candidate(made, separations)


def separation(scores: Tensor, kinds: Sequence[str]) -> Separation:
    """How well scores (n,) tell `unsafe` from every other kind."""
    values = scores.tolist()
    unsafe = [s for s, kind in zip(values, kinds, strict=True) if kind == "unsafe"]
    others = sorted({kind for kind in kinds if kind != "unsafe"})
    return Separation(
        {
            kind: auroc(unsafe, [s for s, k in zip(values, kinds, strict=True) if k == kind])
            for kind in others
        }
    )


def is_unsafe(kind: str) -> bool:
    """Whether rows of this kind are unsafe."""
    return kind == "unsafe"


def is_safe(kind: str) -> bool:
    """Whether rows of this kind are safe."""
    return kind != "unsafe"


def readout(
    name: str, layer: int, unsafe: Sequence[Tensor], safe: Sequence[Tensor]
) -> LinearReadout | None:
    """Estimator `name` at one layer; None where it is degenerate.

    Args:
        name: a key of `ESTIMATORS`.
        layer: which layer of the residuals.
        unsafe: residuals of each form of prompts, (n, L, d_model); forms weigh the same, however
            many prompts they have.
        safe: the same forms, (m, L, d_model).
    """
    high, low = ([form[:, layer].double() for form in part] for part in (unsafe, safe))
    weight = ESTIMATORS[name](high, low)
    norm = weight.norm()
    if not bool(torch.isfinite(norm) & (norm > 0)):
        return None
    weight = (weight / norm).float().double()  # as stored
    zero, gap = weight @ _centre(low), weight @ (_centre(high) - _centre(low))
    if not bool(gap > 0):
        return None
    return LinearReadout(name, (layer,), weight[None].float(), zero[None], gap[None])


def averaged(readouts: Sequence[LinearReadout]) -> LinearReadout:
    """The mean score of several layers, ascending."""
    parts = sorted(readouts, key=lambda r: r.layers)
    return LinearReadout(
        parts[0].estimator,
        tuple(layer for part in parts for layer in part.layers),
        torch.cat([part.weight for part in parts]),
        torch.cat([part.zero for part in parts]),
        torch.cat([part.gap for part in parts]),
    )


def mean_difference(unsafe: Sequence[Tensor], safe: Sequence[Tensor]) -> Tensor:
    """Difference of means at one layer, forms of (n, d) and (m, d) float64 -> (d,)."""
    return _centre(unsafe) - _centre(safe)


def shrinkage_lda(unsafe: Sequence[Tensor], safe: Sequence[Tensor]) -> Tensor:
    """Within-class covariance, shrunk (Ledoit and Wolf 2004), solved for the difference of means.

    Forms of (n, d) and (m, d) float64 -> (d,). Classes and forms weigh the same, however many
    prompts they have; how a class moves between forms counts as variation within it. NaN where
    nothing varies.
    """
    pooled = (_covariance(unsafe) + _covariance(safe)) / 2
    solved: Tensor
    solved, singular = torch.linalg.solve_ex(pooled, mean_difference(unsafe, safe))
    return torch.full_like(solved, torch.nan) if singular else solved


MEANS = "difference of means"
ESTIMATORS = {MEANS: mean_difference, "shrinkage LDA": shrinkage_lda}


def _centre(forms: Sequence[Tensor]) -> Tensor:
    return torch.stack([form.mean(0) for form in forms]).mean(0)


def _covariance(forms: Sequence[Tensor]) -> Tensor:
    ledoit_wolf = require("sklearn.covariance").ledoit_wolf
    centre = _centre(forms)
    found = [ledoit_wolf((form - centre).numpy(), assume_centered=True)[0] for form in forms]
    return torch.stack([torch.from_numpy(one) for one in found]).mean(0)
