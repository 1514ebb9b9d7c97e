"""One prompt's verdict, by its tokens and their numbers: what the engine's scheduler asks.

Nothing is decided here: thresholds, modes, fail mode and steering are the detector's and the
policy's.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch

from guardrail.decide.detector import Detector
from guardrail.online.answering import ruled, where_of
from guardrail.types import RowParts, TurnSpan, kind_of
from guardrail.vllm.numbers import TokenNumbers

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from guardrail.artefact import Artefact
    from guardrail.policy import Policy
    from guardrail.types import Verdict
    from guardrail.vllm.prompts import Medium, Template

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Judged:
    """What becomes of a prompt.

    `stops` says that no token of the model may leave; `amount` is how far along the steering
    direction its last position and the first answer tokens are moved, 0 for not at all.
    """

    verdict: Verdict
    stops: bool
    amount: float = 0.0


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

    def __call__(self, numbers: Tensor, ids: Sequence[int], media: Sequence[Medium]) -> Judged:
        """The verdict on a prompt of n tokens with their numbers, (n, k, m) float32."""
        kind = kind_of(one.kind for one in media)
        try:
            parts = self.template.parts(ids, media)
            ruling = self.numbers.judge(numbers, parts, kind)
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
