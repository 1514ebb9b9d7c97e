"""The inputs as they are looked up: read once, named by a digest of everything in them."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from guardrail.errors import DatasetError, GuardrailError
from guardrail.inputs.messages import request_digest
from guardrail.online.core import require_readable

if TYPE_CHECKING:
    from collections.abc import Sequence

    from guardrail.artefact import Artefact
    from guardrail.evaluation.items import EvalItem
    from guardrail.fit.collect import Progress
    from guardrail.policy import Policy
    from guardrail.types import Modality, Request

# What may be wrong with one input alone. A tokenizer, a processor or a kernel has errors of its
# own beside ours; everything here names the input, nothing is lost.
INPUT_ERRORS = (GuardrailError, RuntimeError, ValueError, IndexError, TypeError)


@dataclass(frozen=True, kw_only=True)
class Input:
    """An item and what batching and the cache ask of it, without its pictures.

    `group` is equal for inputs that may share a batch: pictures and frames in each, and tools. One
    with a long video has a batch to itself.
    """

    item: EvalItem
    digest: str
    kind: str
    modality: Modality
    group: tuple[object, str]

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

    def note(self, item: EvalItem, stage: str, error: BaseException) -> None:
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
    items: Sequence[EvalItem],
    policy: Policy,
    troubles: Troubles,
    progress: Progress,
    artefact: Artefact | None = None,
) -> list[Input]:
    """Every input read and named, one after another, so that few pictures are in memory.

    With an `artefact`, videos that it cannot score are errors of their inputs.

    Raises:
        DatasetError: an input cannot be read, or its pictures and words exceed the limits.
    """
    found = []
    for done, item in enumerate(items, start=1):
        try:
            request = item.request(policy)
            if artefact is not None:
                require_readable(request, artefact)
            digest = input_digest(request, policy)
        except INPUT_ERRORS as error:
            troubles.note(item, "reading", error)
        else:
            found.append(
                Input(
                    item=item,
                    digest=digest,
                    kind=request.offset_kind,
                    modality=request.modality,
                    group=_group(request, digest),
                )
            )
        progress("reading inputs", done, len(items))
    return found


def input_digest(request: Request, policy: Policy) -> str:
    """Over everything in a request, and of a long video over what it is answered from, too."""
    digest = request_digest(request)
    return f"{digest} {policy.video.answer_frames}" if request.in_windows else digest


def _group(request: Request, digest: str) -> tuple[object, str]:
    return digest if request.in_windows else request.shape, json.dumps(request.tools)
