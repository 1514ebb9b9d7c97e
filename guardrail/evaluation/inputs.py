"""The inputs as they are looked up: read once, named by a digest of everything in them."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from guardrail.errors import DatasetError, GuardrailError
from guardrail.requests.digest import request_digest

if TYPE_CHECKING:
    from collections.abc import Sequence

    from guardrail.evaluation.items import EvalItem
    from guardrail.fit.collect import Progress
    from guardrail.policy import Policy
    from guardrail.types import Modality

# What may be wrong with one input alone. A tokenizer, a processor or a kernel has errors of its
# own beside ours; everything here names the input, nothing is lost.
INPUT_ERRORS = (GuardrailError, RuntimeError, ValueError, IndexError, TypeError)


@dataclass(frozen=True, kw_only=True)
class Input:
    """An item and what batching and the cache ask of it, without its pictures.

    `group` is equal for inputs that may share a batch: pictures in each, and tools.
    """

    item: EvalItem
    digest: str
    kind: str
    modality: Modality
    group: tuple[int, str]

    @property
    def length(self) -> int:
        """Characters of its words, those in pictures included."""
        return len(self.item.text)


@dataclass
class Troubles:
    """Inputs that could not be measured: an error each, or counted if they may be skipped.

    `found` has the stage and the error's words, which may quote the input; `kinds` has its class.
    """

    skip: bool = False
    found: dict[str, str] = field(default_factory=dict)
    kinds: dict[str, str] = field(default_factory=dict)

    def note(self, item: EvalItem, stage: str, error: Exception) -> None:
        """Leave an input out, or stop.

        Raises:
            DatasetError: inputs may not be skipped.
        """
        said = " ".join(str(error).split()).encode("utf-8", "replace").decode()
        reason = said if isinstance(error, GuardrailError) else f"{type(error).__name__}: {said}"
        if not self.skip:
            raise DatasetError(
                f"input {item.id!r} ({stage}): {reason}; correct or remove it, or skip inputs "
                "with errors"
            ) from error
        self.found[item.id] = f"{stage}: {reason}"
        self.kinds[item.id] = f"{stage}: {type(error).__name__}"


def read_inputs(
    items: Sequence[EvalItem], policy: Policy, troubles: Troubles, progress: Progress
) -> list[Input]:
    """Every input read and named, one after another, so that few pictures are in memory.

    Raises:
        DatasetError: an input cannot be read, or its pictures and words exceed the limits.
    """
    found = []
    for done, item in enumerate(items, start=1):
        try:
            request = item.request(policy)
        except INPUT_ERRORS as error:
            troubles.note(item, "reading", error)
        else:
            found.append(
                Input(
                    item=item,
                    digest=request_digest(request),
                    kind=request.offset_kind,
                    modality=request.modality,
                    group=(len(request.images), json.dumps(request.tools)),
                )
            )
        progress("reading inputs", done, len(items))
    return found
