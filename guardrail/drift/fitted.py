"""An artefact in the terms of a fit, and what must hold before it and a model can be compared."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from guardrail.decide.detector import Detector, Steering
from guardrail.errors import ArtefactMismatchError, DatasetError, DetectorError
from guardrail.fit.collect import Collector, Progress
from guardrail.fit.dataset import ContrastSet, load_contrast
from guardrail.fit.joint import JointReadout
from guardrail.fit.outcome import Scores, from_header
from guardrail.fit.select import LinearReadout
from guardrail.fit.steering import RAMP
from guardrail.policy import Policy, Thresholds
from guardrail.types import Modality

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from guardrail.artefact import Artefact
    from guardrail.artefact.header import Fingerprint
    from guardrail.fit.readings import FormResiduals, Readings
    from guardrail.model.load import LoadedModel


# An edit without its gate needs no calibration.
_ANY_THRESHOLDS = Policy(thresholds=dict.fromkeys(Modality, Thresholds(steer=0.0, flag=0.0)))


@dataclass(frozen=True)
class Fitted:
    """What an artefact says. `reference`: old scores by form and place in the contrast set."""

    artefact: Artefact
    joint: JointReadout
    reference: Scores
    _scored: dict[int, tuple[FormResiduals, Tensor]] = field(
        default_factory=dict, repr=False, compare=False
    )

    @classmethod
    def of(cls, artefact: Artefact, reference: Scores | None = None) -> Fitted:
        """Read an artefact; `reference` stands in for scores that an older one does not hold."""
        tensors, header = artefact.tensors, artefact.header
        readout = LinearReadout(
            header.readout.estimator,
            tuple(header.readout.layers),
            tensors["readout_weight"],
            tensors["readout_zero"].double(),
            tensors["readout_gap"].double(),
            {kind: (r.score.intercept, r.score.slope) for kind, r in header.recentring.items()},
        )
        windows = Detector.from_artefact(artefact, _ANY_THRESHOLDS).windows
        joint = JointReadout(readout, windows, header.readout.turns)
        stored = from_header(header.extra.get("reference"))
        return cls(artefact, joint, stored if reference is None else reference)

    @property
    def readout(self) -> LinearReadout:
        """What is read at the ends of turns."""
        return self.joint.readout

    @property
    def per_kind(self) -> int | None:
        """How many bare prompts of a kind the fit read; None if all."""
        found = self.artefact.header.data.get("per_kind")
        return found if isinstance(found, int) else None

    @property
    def reads_videos(self) -> bool:
        """Whether it was fitted with videos."""
        return self.artefact.reads_videos

    @property
    def videos(self) -> int:
        """How many safe prompts the fit read as drawn videos."""
        found = self.artefact.header.data.get("videos", 0)
        return found if isinstance(found, int) else 0

    def scores(self, readings: Readings, form: str) -> Tensor:
        """Scores as the artefact would give them on the model that was read, (n,) float64.

        Every figure of a check is of the same ones, so they are kept.

        Raises:
            DetectorError: some are not finite.
        """
        rows = readings.forms[form]
        if id(rows) not in self._scored:  # the rows are kept, too: no others take their id
            self._scored[id(rows)] = rows, self.joint.scores(rows)
        return require_finite(self._scored[id(rows)][1], form)

    def paired_scores(
        self, readings: Readings, form: str, belongs: Callable[[str], bool], *splits: str
    ) -> tuple[list[float], list[float] | None]:
        """New scores of the rows of these splits whose kind belongs; old ones if all are known."""
        rows, known = readings.forms[form], self.reference.get(form, {})
        now = self.scores(readings, form).tolist()
        pairs = enumerate(zip(rows.splits, rows.kinds, strict=True))
        places = [i for i, (split, kind) in pairs if split in splits and belongs(kind)]
        indices = [rows.samples[i].key for i in places]
        paired = all(index in known for index in indices)
        return [now[i] for i in places], [known[i] for i in indices] if paired else None

    def edit(self) -> Steering | None:
        """The edit at the strength at which a fit tests causality, or None if there is no edit."""
        steering = Detector.from_artefact(self.artefact, _ANY_THRESHOLDS).steering
        stored = self.artefact.header.steering
        if steering is None or stored is None:
            return None
        factor = stored.figures.get("factor")
        if not isinstance(factor, int | float) or factor <= 0:
            return replace(steering, tokens=0)
        reach = steering.region_max / factor
        return replace(steering, gain=reach / RAMP, a_max=reach, region_max=reach, tokens=0)


def require_finite(found: Tensor, what: str) -> Tensor:
    """Figures of the old readout on the new model, if they are numbers.

    Raises:
        DetectorError: some are not finite.
    """
    if not bool(torch.isfinite(found).all()):
        raise DetectorError(
            f"the artefact's readout has no finite score for some prompts ({what}): the "
            "model's residuals overflow. Load it in another dtype"
        )
    return found


@dataclass(frozen=True)
class Reader:
    """How models are read: which prompts, in which batches, kept where."""

    contrast: ContrastSet
    batch_size: int = 16
    work_dir: Path | None = None
    progress: Progress | None = None

    def collector(self, loaded: LoadedModel, identity: Fingerprint) -> Collector:
        """A collector for one model; its kept residuals are that model's alone."""
        return Collector(
            loaded,
            batch_size=self.batch_size,
            work_dir=self.work_dir,
            key=identity.model_dump_json(),
            progress=self.progress,
        )


def require_shape(artefact: Artefact, loaded: LoadedModel) -> None:
    """Refuse a model in which the artefact's vectors have no place.

    Raises:
        ArtefactMismatchError: the numbers of layers or the widths differ.
    """
    if differing := artefact.shape_differences(loaded.layer_count, loaded.d_model):
        raise ArtefactMismatchError(differing)


def fitted_contrast(artefact: Artefact, data: str | Path | None, *, extend: bool) -> ContrastSet:
    """The prompts an artefact was fitted on.

    Raises:
        DatasetError: they are others, or the artefact does not say which they were.
    """
    contrast, wanted = load_contrast(data, extend=extend), artefact.header.data.get("digest")
    if wanted != contrast.digest:
        known = f"on the set {str(wanted)[:12]}" if wanted else "on a set it does not name"
        raise DatasetError(
            f"{artefact.artefact_id} was fitted {known}, these prompts are {contrast.digest[:12]}; "
            "pass the prompts of the fit (--data FILE, and --replace-data if they were used "
            "alone), or fit again"
        )
    return contrast
