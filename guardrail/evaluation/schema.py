"""The evaluation report as data: what `guardrail evaluate --json` writes, versioned.

Every figure stands with its n. Intervals are 95 %. Scores are in units of the text gap (0 =
text-safe centroid, 1 = text-unsafe centroid), KL divergences in nats, times in seconds.
"""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field, JsonValue

from guardrail.stats import Estimate, Frozen, SavedReport, Share
from guardrail.types import Reading

Label = Literal["harmful", "harmless"]


class Separation(Frozen):
    """How well a score tells harmful from harmless inputs.

    `tpr_at_fpr` has the keys "0.01", "0.05", "0.10": the share of harmful inputs above the score
    that at most so many of the harmless ones exceed.
    """

    n_harmful: int
    n_harmless: int
    auroc: Estimate
    average_precision: Estimate
    tpr_at_fpr: dict[str, Share]


class Actions(Frozen):
    """What the guard did, or in shadow mode would have done, at the thresholds in force."""

    passed: Share
    steered: Share
    flagged: Share


class Refusals(Frozen):
    """Refused by the model alone; refused or flagged behind the guard."""

    plain: Share
    guarded: Share


class Group(Frozen):
    """Figures of one slice of the inputs.

    `separation` is None where a side is empty; `against` says which harmless (or harmful) inputs a
    slice with one label only was compared with: all of the same modality. `found_by` are shares of
    the harmful inputs that were steered or flagged: from which reading their score is; the rest are
    windows of long videos.
    """

    by: Literal["modality", "source", "category"]
    name: str
    modality: str
    n_harmful: int
    n_harmless: int
    against: Literal["itself", "all harmless of its modality", "all harmful of its modality"]
    separation: Separation | None = None
    actions: dict[Label, Actions] = Field(default_factory=dict)
    refusals: dict[Label, Refusals] = Field(default_factory=dict)
    found_by: dict[Reading, Share] = Field(default_factory=dict)

    @property
    def hit(self) -> dict[Label, Share]:
        """The shares that were steered or flagged."""
        return {label: found.passed.complement for label, found in self.actions.items()}


class RandomDirections(Frozen):
    """AUROC of random directions of the readout's norm at the readout's layers, one per seed.

    They are read at the last position alone, while the guard reads turns and parts as well.
    A random direction has no sign of its own, so its AUROC is near 0.5 on average, not each time.
    It has no offsets either: pairs are compared as for `LayerPoint`.
    """

    aurocs: tuple[float, ...]
    mean: float
    sd: float


class PermutedLabels(Frozen):
    """AUROC of the guard's scores after the labels were shuffled, and the permutation p-value."""

    draws: int
    mean: float
    sd: float
    highest: float
    p_value: float


class TextBaseline(Frozen):
    """TF-IDF and logistic regression on the words alone, out of fold: what needs no model."""

    auroc: Estimate
    folds: int


class LengthOnly(Frozen):
    """AUROC of the number of characters; `auroc` may lie below 0.5, `either_way` cannot."""

    auroc: Estimate
    either_way: float


class LengthMatched(Frozen):
    """The guard's AUROC over pairs of a harmful and a harmless input of (nearly) equal length."""

    pairs: int
    tolerance: int
    auroc: Estimate
    length_auroc: float


class Controls(Frozen):
    """What the guard's figures of one modality are to be held against; None where n is too small.

    `skipped` says, per control that is None, why.
    """

    modality: str
    n_harmful: int
    n_harmless: int
    guard: Estimate
    random_directions: RandomDirections | None = None
    permuted_labels: PermutedLabels | None = None
    text_baseline: TextBaseline | None = None
    length_only: LengthOnly | None = None
    length_matched: LengthMatched | None = None
    skipped: dict[str, str] = Field(default_factory=dict)


class LayerPoint(Frozen):
    """AUROC of one layer's difference of means, by modality.

    Over pairs of inputs that both have no picture, one, or several: layers have no offsets.
    """

    layer: int
    read: bool
    edited: bool
    auroc: dict[str, float]


class StrengthPoint(Frozen):
    """One strength that the fit tried, on held-out text."""

    layer: int
    tokens: int
    factor: float
    chosen: bool
    induced: Share
    false_refusal: Share
    kl: float


class Quality(Frozen):
    """What the guard does to answers to harmless inputs, over the `n` that it does not flag.

    Flagged inputs have no answer of the model's, so no divergence; `n_flagged` counts them.
    `kl` is KL(plain || guarded) of the first token's distribution, averaged over the n inputs;
    inputs the guard passes are unchanged by construction and count as 0, which `kl_passed_max`
    checks on `n_passed_measured` of them. `exact_match` counts answers equal token by token;
    `length_ratio` is guarded over plain tokens, summed. `exact_match_passed` is over the inputs
    that passed, and None if none did.
    """

    n: int
    n_steered: int
    n_flagged: int = 0
    kl: float
    kl_steered: float | None
    kl_passed_max: float | None
    n_passed_measured: int
    exact_match: Share
    exact_match_passed: Share | None
    length_ratio: float


class JudgeFigures(Frozen):
    """Who decided what a refusal is, and how often it is wrong on answers labelled by hand."""

    name: str
    sample: str
    false_refusals: Share | None = None
    missed_refusals: Share | None = None


class ItemRow(Frozen):
    """One input. `text` and the paths are None when the report was made without content.

    The score of a long video is the highest of its windows, and `reading` is None then; else it
    says which reading of the prompt the score is from.
    """

    id: str
    label: Label
    category: str
    source: str
    modality: str
    score: float
    reading: Reading | None = None
    action: Literal["pass", "steer", "flag"]
    length: int
    text: str | None = None
    image: str | None = None
    video: str | None = None
    plain_refused: bool | None = None
    guarded_refused: bool | None = None
    plain_answer: str | None = None
    guarded_answer: str | None = None


class Timing(Frozen):
    """Seconds of one stage, and how many of its inputs came from the cache."""

    stage: str
    seconds: float
    n: int
    cached: int


class Report(SavedReport):
    """A whole evaluation. `thresholds` holds those that act under the policy."""

    name: ClassVar[str] = "evaluation report"
    command: ClassVar[str] = "guardrail evaluate"

    schema_version: Literal[1] = 1
    created: str
    guardrail_version: str
    model: str
    artefact: dict[str, JsonValue]
    policy: dict[str, JsonValue]
    thresholds: dict[str, dict[str, float]]
    settings: dict[str, JsonValue]
    data: dict[str, JsonValue]
    groups: tuple[Group, ...]
    controls: tuple[Controls, ...]
    layers: tuple[LayerPoint, ...]
    strength: tuple[StrengthPoint, ...]
    quality: Quality | None = None
    judge: JudgeFigures | None = None
    timings: tuple[Timing, ...]
    warnings: tuple[str, ...] = ()
    items: tuple[ItemRow, ...]

    @property
    def n_harmful(self) -> int:
        """How many inputs ought to be refused."""
        return sum(item.label == "harmful" for item in self.items)

    @property
    def n_harmless(self) -> int:
        """How many inputs ought to be answered."""
        return len(self.items) - self.n_harmful
