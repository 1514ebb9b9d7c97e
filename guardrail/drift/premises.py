"""What must hold before an artefact and a model can be compared, and how models are read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from guardrail.errors import ArtefactMismatchError, DatasetError
from guardrail.fit.collect import Collector, Progress
from guardrail.fit.dataset import ContrastSet, load_contrast
from guardrail.model.fingerprint import fingerprint

if TYPE_CHECKING:
    from pathlib import Path

    from guardrail.artefact import Artefact
    from guardrail.artefact.header import Fingerprint
    from guardrail.model.load import LoadedModel


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


def require_fitted_on(artefact: Artefact, loaded: LoadedModel) -> Fingerprint:
    """The fingerprint of an old model, which must be the artefact's.

    Raises:
        ArtefactMismatchError: the fingerprints differ.
    """
    identity = fingerprint(loaded)
    if differing := artefact.header.fingerprint.differences(identity):
        raise ArtefactMismatchError(differing)
    return identity


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
