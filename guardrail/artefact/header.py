"""The JSON half of an artefact: what was fitted, on what, and how well it did."""

from __future__ import annotations

import hashlib
import json
import math
from typing import TYPE_CHECKING, Self

from pydantic import Field, JsonValue, ValidationError, model_validator

from guardrail.policy import Thresholds
from guardrail.stats import Frozen, Rate
from guardrail.types import Modality

if TYPE_CHECKING:
    from collections.abc import Iterable

FORMAT_VERSION = 2


class Fingerprint(Frozen):
    """Which model an artefact belongs to.

    The digests are hex; `guardrail.model.fingerprint` says what each covers. `dtype` and `revision`
    are recorded but do not decide: the same weights in another precision, or from another commit,
    are the same model.
    """

    architecture: str
    config_digest: str
    weights_digest: str
    tokenizer_digest: str
    processor_digest: str
    code_digest: str | None = None
    revision: str | None = None
    dtype: str
    quantisation: str | None = None
    trust_remote_code: bool = False

    def differences(self, other: Fingerprint) -> dict[str, tuple[str, str]]:
        """The fields that make `other` another model, as (mine, other's)."""
        soft = {"revision", "dtype", "trust_remote_code"}
        return self._compare(other, [n for n in Fingerprint.model_fields if n not in soft])

    def warnings(self, other: Fingerprint) -> dict[str, tuple[str, str]]:
        """What differs but does not make another model; a revision only if both are known."""
        known = self.revision is not None and other.revision is not None
        return self._compare(other, ["dtype", "revision"] if known else ["dtype"])

    def _compare(self, other: Fingerprint, names: Iterable[str]) -> dict[str, tuple[str, str]]:
        pairs = {name: (getattr(self, name), getattr(other, name)) for name in names}
        return {name: (str(a), str(b)) for name, (a, b) in pairs.items() if a != b}


class Readout(Frozen):
    """How the score is read: the estimator, its layers (ascending) and its validation figures.

    `turns` says whether earlier answer headers are read, too; some models run their last layers at
    the last position alone.
    """

    estimator: str
    layers: tuple[int, ...] = Field(min_length=1)
    turns: bool = True
    figures: dict[str, JsonValue] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _ascending(self) -> Self:
        if list(self.layers) != sorted(set(self.layers)):
            raise ValueError(f"readout layers must ascend without repeats; got {self.layers}")
        return self


class Steering(Frozen):
    """How a request is steered, from the steering threshold on.

    `induced_refusal` is of held-out unsafe prompts, all of them steered; `false_refusal` and `kl`
    are means over all benign prompts of the calibration split, steered only where the gate opens.
    """

    layer: int = Field(ge=0)
    gain: float = Field(ge=0)
    a_max: float = Field(ge=0)
    region_max: float
    steer_tokens: int = Field(default=0, ge=0)
    kl: float | None = None
    induced_refusal: Rate | None = None
    false_refusal: Rate | None = None
    figures: dict[str, JsonValue] = Field(default_factory=dict)


class LayerRow(Frozen):
    """What layer selection saw at one layer; None where a figure was not measured."""

    layer: int = Field(ge=0)
    usable: bool
    norm: float | None = None
    consistency: float | None = None
    separability: float | None = None
    margin: float | None = None
    score: float | None = None
    causal: float | None = None
    figures: dict[str, JsonValue] = Field(default_factory=dict)


class Line(Frozen):
    """A score s of a text becomes `intercept` + `slope` s beside a meaningless picture."""

    intercept: float
    slope: float = Field(gt=0)


class Recentring(Frozen):
    """What one kind of meaningless picture does to scores of requests of both classes.

    `score` and `steering` are what is taken back of the readout's score and of the one at the
    steering layer (none, if nothing is steered). What is left is measured on `n` other requests,
    beside other pictures: mean shifts of `safe` and `unsafe` ones and the `slope` on their text
    scores. `separation` is the distance of the two classes' means beside pictures, over that of the
    same requests alone, before anything is taken back.
    """

    score: Line
    steering: Line | None = None
    n: int = Field(ge=0)
    safe: float
    unsafe: float
    slope: float
    separation: float

    @classmethod
    def unmeasured(cls, line: Line, *, steering: bool) -> Self:
        """The line taken back of both scores (of the first alone without `steering`), on trust."""
        return cls(
            score=line,
            steering=line if steering else None,
            n=0,
            safe=0.0,
            unsafe=0.0,
            slope=1.0,
            separation=1.0,
        )


class Windows(Frozen):
    """How windows of a prompt's parts are read: see `guardrail.decide.windows`.

    With `alone` the ends of turns count only where a message is too short for a window.
    """

    layers: tuple[int, ...] = Field(min_length=1)
    heads: int = Field(gt=0)
    width: int = Field(gt=0)
    first: int = Field(gt=0)
    zero: float
    gap: float = Field(gt=0)
    alone: bool = False
    figures: dict[str, JsonValue] = Field(default_factory=dict)


class Answers(Frozen):
    """How answers are read while they are said, by windows over their own tokens.

    `scores` are the highest windows of benign answers of up to `tokens` tokens, sorted; at most
    `target` of such answers exceed `threshold`.
    """

    windows: Windows
    scores: tuple[float, ...]
    target: float = Field(gt=0, lt=1)
    threshold: float
    source: str
    tokens: int = Field(gt=0)

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if list(self.scores) != sorted(self.scores):
            raise ValueError("calibration scores must be sorted")
        if not math.isfinite(self.threshold):
            raise ValueError("a stored threshold must be finite")
        return self


class Rates(Frozen):
    """Target shares of benign inputs."""

    steer: float = Field(default=0.05, gt=0, lt=1)
    flag: float = Field(default=0.01, gt=0, lt=1)


class Calibration(Frozen):
    """Benign scores of one modality (kept sorted) and the thresholds they gave."""

    scores: tuple[float, ...]
    targets: Rates = Rates()
    thresholds: Thresholds
    source: str
    n: int = Field(ge=0)
    intervals: dict[str, tuple[float, float]] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if list(self.scores) != sorted(self.scores):
            raise ValueError("calibration scores must be sorted")
        if self.n != len(self.scores):
            raise ValueError(f"n is {self.n} but there are {len(self.scores)} scores")
        if not all(abs(t) < float("inf") for t in (self.thresholds.steer, self.thresholds.flag)):
            raise ValueError("stored thresholds must be finite")
        return self


class Header(Frozen):
    """Everything about an artefact but its tensors.

    Leave `artefact_id` and `created` empty when making one: `Artefact` fills them in.
    """

    format_version: int = FORMAT_VERSION
    artefact_id: str = ""
    created: str = ""
    fingerprint: Fingerprint
    readout: Readout
    steering: Steering | None = None
    layers: tuple[LayerRow, ...] = ()
    windows: Windows | None = None
    answers: Answers | None = None
    recentring: dict[str, Recentring] = Field(default_factory=dict)
    calibration: dict[Modality, Calibration] = Field(default_factory=dict)
    refusal_prefixes: tuple[str, ...] = ()
    data: dict[str, JsonValue] = Field(default_factory=dict)
    packages: dict[str, str] = Field(default_factory=dict)
    extra: dict[str, JsonValue] = Field(default_factory=dict)
    parent: str | None = None
    warnings: tuple[str, ...] = ()

    def canonical(self, *, identity: bool = True) -> bytes:
        """The header as sorted JSON; without `identity`, id and time of making are left out."""
        exclude = set() if identity else {"artefact_id", "created"}
        if self.answers is None:  # as artefacts were written before there was such a field
            exclude.add("answers")
        values = self.model_dump(mode="json", exclude=exclude)
        return json.dumps(values, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def identity(header: Header, tensor_digest: str) -> str:
    """The artefact's name: the same content gives the same name, whenever it was made."""
    digest = hashlib.sha256(header.canonical(identity=False) + tensor_digest.encode()).hexdigest()
    return f"guard-{digest[:16]}"


def first_problem(error: ValidationError, where: str) -> str:
    """The first thing that is wrong with a header, in words."""
    first = error.errors()[0]
    field = ".".join(map(str, first["loc"])) or "as a whole"
    return (
        f"the header of {where} does not hold: {field}: {first['msg']} "
        f"({error.error_count()} problems in all)"
    )
