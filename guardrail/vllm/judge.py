"""One prompt's verdict, by its tokens and their numbers, where no residual stream is kept.

A detector is linear in the residual stream up to the numbers it keeps of each token and layer: the
readout's projection, the windows' queries and values, the projection on the steering direction. So
an engine takes these products where a layer runs, and the same detector then judges a residual
stream as wide as they are many. Nothing is decided here: thresholds, modes, fail mode and steering
are the detector's and the policy's.
"""

from __future__ import annotations

import logging
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import Tensor

from guardrail.decide.detector import NO_FLOOR, Detector
from guardrail.model.prefill import PrefillDoneError, PromptCall
from guardrail.online.answering import ruled, where_of
from guardrail.types import RowParts, TurnSpan, kind_of
from guardrail.vllm.options import NAME

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from guardrail.artefact import Artefact
    from guardrail.model.prefill import Ruling
    from guardrail.policy import Policy
    from guardrail.types import Verdict
    from guardrail.vllm.prompts import Medium, Template

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TokenNumbers:
    """The products an engine takes, and the detector that reads them.

    `basis` is (k, m, d_model) float32: of layer `layers[i]`'s output h, m numbers <h, basis[i, j]>
    are kept. `detector` judges residuals of width m at these layers; its steering layer is one
    behind them all, which is shown the numbers of `steering_layer`, and moves a row along
    `direction` (d_model,) float32.
    """

    layers: tuple[int, ...]
    basis: Tensor
    detector: Detector
    steering_layer: int | None
    direction: Tensor | None

    @classmethod
    def of(cls, detector: Detector) -> TokenNumbers:
        """The numbers that a detector needs of a token."""
        readout, windows, steering = detector.readout, detector.windows, detector.steering
        steered = set() if steering is None else {steering.layer}
        layers = tuple(sorted({*detector.reads, *steered}))
        heads = 0 if windows is None else windows.query.shape[1]
        basis = torch.zeros(len(layers), 2 + 2 * heads, readout.weight.shape[-1])
        own = torch.eye(basis.shape[1])
        for weight, layer in zip(readout.weight, readout.layers, strict=True):
            basis[layers.index(layer), 0] = weight
        read = replace(readout, weight=own[0].expand(len(readout.layers), -1))
        if windows is not None:
            for i, layer in enumerate(windows.layers):
                both = torch.cat([windows.query[i], windows.value[i]])
                basis[layers.index(layer), 1 : 1 + 2 * heads] = both
            count = len(windows.layers)
            windows = replace(
                windows,
                query=own[1 : 1 + heads].expand(count, -1, -1),
                value=own[1 + heads : 1 + 2 * heads].expand(count, -1, -1),
            )
        if steering is not None:
            basis[layers.index(steering.layer), -1] = steering.direction
            steering = replace(steering, layer=layers[-1] + 1, direction=own[-1])
        made = Detector(
            read,
            steering,
            thresholds=detector.thresholds,
            policy=detector.policy,
            artefact_id=detector.artefact_id,
            windows=windows,
            turns=detector.turns,
        )
        direction = None if detector.steering is None else detector.steering.direction.float()
        return cls(layers, basis, made, detector.steering_layer, direction)

    def judge(self, numbers: Tensor, parts: RowParts, kind: str, floor: float = NO_FLOOR) -> Ruling:
        """What happens to one prompt, by its tokens' numbers (n, k, m) float32 on the CPU.

        It scores at least `floor`. The ruling's `strength` is how far along the direction the row
        is to be moved, in the residual stream's own units.
        """
        detector, length = self.detector, len(numbers)
        call = PromptCall(
            prompt_len=length,
            kinds=(kind,),
            layers=detector.layers,
            detector=detector,
            policy=detector.policy,
            floors=() if floor == NO_FLOOR else (floor,),
            reading=detector.reading([parts], length),
        )
        call.enter(0, length)
        try:
            for i, layer in enumerate(self.layers):
                call.see(layer, numbers[None, :, i])
            if self.steering_layer is not None:
                at = self.layers.index(self.steering_layer)
                call.see(self.layers[-1] + 1, numbers[None, :, at])
        except PrefillDoneError:  # nobody needs the rest
            return call.ruling(0)
        call.settle()
        return call.ruling(0)


@dataclass(frozen=True, slots=True)
class Judged:
    """What becomes of a prompt.

    `stops` says that no token of the model may leave; `amount` is how far along the steering
    direction its last position and the first answer tokens are moved, 0 for not at all. A `check`
    ends with its verdict.
    """

    verdict: Verdict
    stops: bool
    amount: float = 0.0
    check: bool = False


@dataclass(frozen=True, slots=True)
class Asked:
    """What a guard in front of vLLM says of a request.

    `floor` is its least score, with `check` it gets no answer, `kinds` are those of its media.
    """

    floor: float = NO_FLOOR
    check: bool = False
    kinds: tuple[str, ...] | None = None

    def extra(self) -> dict[str, Any]:
        """As a request's extra arguments."""
        return {NAME: asdict(self)}

    @classmethod
    def of(cls, extra: Mapping[str, Any] | None) -> Self:
        """Of a request's extra arguments."""
        given = (extra or {}).get(NAME) or {}
        return cls(**given)


class Judge:
    """Judges prompts of one model under one artefact and policy; holds no request's state."""

    def __init__(self, artefact: Artefact, policy: Policy, template: Template) -> None:
        self.template = template
        self.detector = Detector.from_artefact(artefact, policy)
        self.numbers = TokenNumbers.of(self.detector)

    @property
    def steered_positions(self) -> int:
        """How many positions are edited, from the last one of the prompt on."""
        return 1 + self.detector.steer_tokens

    def __call__(
        self,
        numbers: Tensor,
        ids: Sequence[int],
        media: Sequence[Medium],
        floor: float = NO_FLOOR,
    ) -> Judged:
        """The verdict on a prompt of n tokens with their numbers, (n, k, m) float32.

        It scores at least `floor`, as its videos or its copy in plain letters did.
        """
        kind = kind_of(one.kind for one in media)
        try:
            parts = self.template.parts(ids, media)
            ruling = self.numbers.judge(numbers, parts, kind, floor)
            verdict = ruled(self.detector, ruling, kind)
        except Exception:  # the fail-mode border: the policy says what an outage means
            log.exception("a prompt of %d tokens could not be judged", len(ids))
            return self.outage(media)
        last = parts.turns[-1] if parts.turns else TurnSpan(0, "user", 0, len(ids))
        where = where_of(ruling, verdict.score, last.message, last.role)
        return Judged(replace(verdict, where=where), ruling.stops, ruling.strength)

    def outage(self, media: Sequence[Medium] = ()) -> Judged:
        """What becomes of a prompt of which nothing is known."""
        kind = kind_of(one.kind for one in media)
        known = kind if kind in self.detector.kinds else "image"
        unread = torch.full((1, *self.numbers.basis.shape[:2]), torch.nan)
        ruling = self.numbers.judge(unread, RowParts(1), known)
        return Judged(ruled(self.detector, ruling, known), ruling.stops)
