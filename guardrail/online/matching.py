"""Whether an artefact belongs to the model it is to guard."""

from __future__ import annotations

import logging
import warnings
from typing import TYPE_CHECKING

from guardrail.artefact import Artefact
from guardrail.errors import ArtefactMismatchError
from guardrail.model.fingerprint import fingerprint

if TYPE_CHECKING:
    from pathlib import Path

    from guardrail.model.load import LoadedModel

log = logging.getLogger("guardrail")


def find_artefact(source: Artefact | str | Path) -> Artefact:
    """An artefact as it is, from a file, or from the hub."""
    if isinstance(source, Artefact):
        return source
    return Artefact.from_pretrained(source)


def mismatch(
    artefact: Artefact, loaded: LoadedModel, *, allowed: bool
) -> dict[str, tuple[str, str]]:
    """What makes the model another than the one the artefact was fitted on, if that is allowed.

    Raises:
        ArtefactMismatchError: it is not allowed, or the numbers of layers or the widths differ.
    """
    fitted, running = artefact.header.fingerprint, fingerprint(loaded)
    for name, (then, now) in fitted.warnings(running).items():
        warnings.warn(f"the artefact was fitted with {name} {then}, this is {now}", stacklevel=4)
    shapes = artefact.shape_differences(loaded.layer_count, loaded.d_model)
    fields = fitted.differences(running) | shapes
    if shapes or (fields and not allowed):
        raise ArtefactMismatchError(fields)
    if fields:
        told = "; ".join(f"{k}: fitted on {a}, running {b}" for k, (a, b) in fields.items())
        log.warning("the artefact was fitted on another model, as allow_mismatch allows: %s", told)
    return fields
