"""Transport on its own: only bare prompts are read, no picture and no answer."""

from __future__ import annotations

from typing import TYPE_CHECKING

from guardrail.drift.fitted import Fitted
from guardrail.drift.premises import Reader, fitted_contrast, require_fitted_on, require_shape
from guardrail.drift.transport import find_transport, require_usable, transported
from guardrail.fit.forms import plain
from guardrail.fit.reading import with_residuals
from guardrail.model.fingerprint import fingerprint

if TYPE_CHECKING:
    from pathlib import Path

    from guardrail.artefact import Artefact
    from guardrail.drift.schema import TransportFigures
    from guardrail.fit.collect import Progress
    from guardrail.fit.select import FormResiduals
    from guardrail.model.load import LoadedModel


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
    """
    require_shape(artefact, loaded)
    reader = Reader(fitted_contrast(artefact, data, extend=extend), batch_size, work_dir, progress)
    fitted, old_plain = Fitted.of(artefact), None
    if old_model is not None:
        require_fitted_on(artefact, old_model)
        old_plain = _plain(reader, old_model, fitted.per_kind)
    found = find_transport(fitted, _plain(reader, loaded, fitted.per_kind), old_plain)
    require_usable(found.figures)
    record = {"from": artefact.artefact_id, "how": "transported", **found.figures.model_dump()}
    return transported(artefact, found.map, fingerprint(loaded), record), found.figures


def _plain(reader: Reader, loaded: LoadedModel, per_kind: int | None) -> FormResiduals:
    samples = plain(reader.contrast, per_kind)
    collect = reader.collector(loaded, fingerprint(loaded))
    residuals = collect([sample.request for sample in samples], "contrast prompts")
    return with_residuals(reader.contrast, samples, residuals)
