"""Transport on its own: only bare prompts are read, and meaningless pictures; no answer."""

from __future__ import annotations

from typing import TYPE_CHECKING

from guardrail.drift.fitted import Fitted
from guardrail.drift.measure import offset_drifts
from guardrail.drift.premises import Reader, fitted_contrast, require_fitted_on, require_shape
from guardrail.drift.transport import find_transport, require_usable, transported
from guardrail.drift.verdict import MOVED
from guardrail.errors import ArtefactError
from guardrail.fit.forms import plain
from guardrail.fit.reading import with_residuals
from guardrail.fit.recentre import measure_offsets
from guardrail.model.fingerprint import fingerprint

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from guardrail.artefact import Artefact
    from guardrail.artefact.header import Fingerprint
    from guardrail.drift.schema import TransportFigures
    from guardrail.fit.collect import Collector, Progress
    from guardrail.fit.dataset import ContrastSet
    from guardrail.fit.recentre import Offset
    from guardrail.fit.select import FormResiduals
    from guardrail.model.load import LoadedModel

_INPUTS = {"tokenizer_digest": "tokenizer or chat template", "processor_digest": "processor"}


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
    """
    require_shape(artefact, loaded)
    identity = fingerprint(loaded)
    _require_same_inputs(artefact, identity)
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
        offsets = measure_offsets(collect, video=artefact.reads_videos)
        _require_same_offsets(Fitted.of(made), offsets)
    return made, found.figures


def _require_same_inputs(artefact: Artefact, identity: Fingerprint) -> None:
    differing = artefact.header.fingerprint.differences(identity)
    if found := [what for name, what in _INPUTS.items() if name in differing]:
        raise ArtefactError(
            f"the artefact cannot be carried over: the {' and the '.join(found)} of the model "
            "changed, too, not the residual basis alone; run `guardrail drift --fix`"
        )


def _require_same_offsets(carried: Fitted, offsets: Mapping[str, Offset]) -> None:
    for row in offset_drifts(carried, offsets):
        if abs(row.now - row.fitted) > MOVED:
            raise ArtefactError(
                f"the artefact cannot be carried over: a picture (kind {row.kind!r}) adds "
                f"{row.now:.2f} text gaps to the carried readout's score, {row.fitted:.2f} at the "
                "fit; more than the basis has changed. Run `guardrail drift --fix`"
            )


def _plain(collect: Collector, contrast: ContrastSet, per_kind: int | None) -> FormResiduals:
    samples = plain(contrast, per_kind)
    residuals = collect([sample.request for sample in samples], "contrast prompts")
    return with_residuals(contrast, samples, residuals)
