"""The drift report as data: what `guardrail drift --json` writes, versioned.

"Fitted" is the model that the artefact was fitted on, "now" the model it is held against. Scores
are in units of the text gap (0 = text-safe centroid, 1 = text-unsafe centroid), KL divergences in
nats. Intervals are 95 %.
"""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field, JsonValue

from guardrail.stats import Estimate, Frozen, SavedReport, Share

Label = Literal["unsafe", "safe"]
Verdict = Literal["keep", "recalibrate", "refit"]
Repair = Literal["fingerprint", "recalibrated", "transported", "refitted"]


class FieldChange(Frozen):
    """A field of the fingerprint that differs; `decides`: it makes another model."""

    field: str
    fitted: str
    running: str
    decides: bool


class LayerDrift(Frozen):
    """Old and new difference of means at one layer; `cosine` is None where either is unusable."""

    layer: int
    read: bool
    edited: bool
    cosine: float | None
    gap_fitted: float
    gap_now: float


class FormSeparation(Frozen):
    """AUROC of unsafe against all safe prompts of the selection split, in one form.

    `fitted`: the old scores on the fitted model. `old`: those on this model. `same`: the estimator
    and layers at the ends of turns fitted anew. `best`: the readout there that a new fit would
    choose. Windows are in the first two alone, as none are trained for a check.
    """

    form: str
    n_unsafe: int
    n_safe: int
    fitted: Estimate | None
    old: Estimate
    same: Estimate | None
    best: Estimate


class Separation(Frozen):
    """The figure a fit chooses by: AUROC averaged over kinds of safe prompts, then over forms.

    `lost` is best - old, `dropped` fitted - old, on the same prompts. `n` counts prompts.
    `recorded` is what the artefact says of its own fit, known even where old scores are not.
    """

    n: int
    recorded: float | None
    fitted: Estimate | None
    old: Estimate
    same: Estimate | None
    best: Estimate
    best_estimator: str
    best_layers: tuple[int, ...]
    lost: Estimate
    dropped: Estimate | None


class RateDrift(Frozen):
    """Share of held-out prompts above an old threshold.

    `fitted` is the share of the same prompts on the fitted model and `p_value` McNemar's, exact;
    both are None when the artefact does not hold those scores. `target` is what the threshold was
    set for, None for unsafe prompts and for thresholds that come from other inputs.
    """

    modality: str
    label: Label
    action: Literal["steer", "flag"]
    threshold: float
    target: float | None
    now: Share
    fitted: Share | None
    p_value: float | None


class ScoreShift(Frozen):
    """Mean scores of one form and label outside the fit split; `shift` is paired by prompt."""

    form: str
    label: Label
    n: int
    mean_now: float
    mean_fitted: float | None
    shift: Estimate | None


class PictureDrift(Frozen):
    """How far meaningless pictures of a kind move the old readout's re-centred scores, by class."""

    kind: str
    safe_fitted: float
    unsafe_fitted: float
    safe_now: float
    unsafe_now: float

    @property
    def moved(self) -> float:
        """The larger change of the two, in text gaps."""
        return max(abs(self.safe_now - self.safe_fitted), abs(self.unsafe_now - self.unsafe_fitted))


class SteeringDrift(Frozen):
    """What the old edit does to safe prompts without a gate, at the strength causality is tested.

    Shift of the log-odds of a refusal's first token and KL(plain || edited), means over `n`
    prompts. `fitted` figures are the artefact's, `fresh` ones of this model's own direction at the
    same layer; None where not known.
    """

    layer: int
    n: int
    shift_fitted: float | None
    shift_now: float | None
    shift_fresh: float | None
    kl_fitted: float | None
    kl_now: float | None
    kl_fresh: float | None


class Scores(Frozen):
    """Scores of one form and label outside the fit split, in the same order; None: not known."""

    form: str
    label: Label
    now: tuple[float, ...]
    fitted: tuple[float, ...] | None


class Figures(Frozen):
    """Everything that is measured; the verdict depends on nothing else.

    `centroids_now` are the scores of this model's centroids of the fit split (0 and 1 at the fit).
    """

    separation: Separation
    forms: tuple[FormSeparation, ...]
    layers: tuple[LayerDrift, ...]
    rates: tuple[RateDrift, ...]
    shifts: tuple[ScoreShift, ...]
    centroids_now: tuple[float, float]
    pictures: tuple[PictureDrift, ...]
    steering: SteeringDrift | None


class TransportFigures(Frozen):
    """The signed permutation that comes nearest to carrying the old means into the new ones.

    `unexplained` is the residual's length relative to the means', root mean square over layers;
    `ambiguous` the share of the readout and the edit on coordinates that another place would fit
    nearly as well. AUROCs are of bare prompts, averaged over kinds of safe ones. `shift` is how far
    the carried readout's mean score of a class has moved, the larger of both: of held-out bare
    prompts, or of the means where old scores are not known. `reason` says why the map cannot be
    used; None if it can.
    """

    coordinates: int
    moved: int
    flipped: int
    unexplained: float
    ambiguous: float
    auroc_fitted: float | None
    auroc_before: float
    auroc_after: float
    shift: float
    source: Literal["means", "activations"]
    reason: str | None


class Repaired(Frozen):
    """The artefact that was made, how, and where it was written (None: not written)."""

    artefact_id: str
    how: Repair
    path: str | None = None


class DriftReport(SavedReport):
    """A whole comparison of an artefact with a model.

    `figures` is None where nothing was measured, because nothing has changed.
    """

    name: ClassVar[str] = "drift report"
    command: ClassVar[str] = "guardrail drift --out"

    schema_version: Literal[2] = 2
    created: str
    guardrail_version: str
    model: str
    artefact_id: str
    verdict: Verdict
    reasons: tuple[str, ...]
    warnings: tuple[str, ...] = ()
    fingerprint: tuple[FieldChange, ...]
    data: dict[str, JsonValue] = Field(default_factory=dict)
    readout: dict[str, JsonValue] = Field(default_factory=dict)
    figures: Figures | None
    transport: TransportFigures | None = None
    repaired: Repaired | None = None
    scores: tuple[Scores, ...] = ()
