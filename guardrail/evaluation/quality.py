"""What the guard costs harmless inputs: first-token divergence, changed answers, their length."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING

from guardrail.decide.detector import NO_FLOOR
from guardrail.errors import DetectorError
from guardrail.evaluation.inputs import input_digest
from guardrail.evaluation.schema import Quality
from guardrail.evaluation.windows import answered_request
from guardrail.fit.causal import kl_divergence
from guardrail.fit.forms import spread
from guardrail.model.generate import next_token_logits
from guardrail.stats import Rate, Share
from guardrail.types import Action

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from guardrail.decide.detector import Detector
    from guardrail.evaluation.rows import Row
    from guardrail.model.inputs import Encoder
    from guardrail.model.load import LoadedModel
    from guardrail.types import Request

PASSED_MEASURED = 64


class Divergence:
    """KL(plain || guarded) of the first token, by the guard's own detector.

    `known` are scores by the inputs' digests: of a long video the guard knows that of its windows
    before it answers.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        encoder: Encoder,
        detector: Detector,
        known: Mapping[str, float] | None = None,
    ) -> None:
        self._loaded, self._encoder, self._detector = loaded, encoder, detector
        self._known = known or {}

    def __call__(self, requests: Sequence[Request]) -> list[float | Exception]:
        """In nats, for a batch that may be run together: two forward passes."""
        policy = self._detector.policy
        frames = policy.video.answer_frames
        encoded = self._encoder.encode([answered_request(r, frames) for r in requests])
        floors = [
            self._known[input_digest(r, policy)] if r.in_windows else NO_FLOOR for r in requests
        ]
        plain = next_token_logits(self._loaded, encoded)
        guarded = next_token_logits(self._loaded, encoded, self._detector, floors)
        return [
            value if math.isfinite(value) else DetectorError(f"its divergence is {value}")
            for value in kl_divergence(plain, guarded).tolist()
        ]


def packed(value: float) -> bytes:
    """A divergence as JSON."""
    return json.dumps(value).encode()


def unpacked(data: bytes) -> float:
    """A divergence as it was kept; ValueError or TypeError if it was not."""
    value = float(json.loads(data))
    if not math.isfinite(value):
        raise ValueError(f"a divergence of {value}")
    return value


def to_measure(rows: Sequence[Row]) -> list[Row]:
    """The harmless inputs whose divergence is measured: all steered, some of the passed ones."""
    harmless = [row for row in rows if not row.harmful]
    steered = [row for row in harmless if row.action is Action.STEER]
    passed = [row for row in harmless if row.action is Action.PASS]
    return [*steered, *spread(passed, PASSED_MEASURED)]


def quality(rows: Sequence[Row], divergence: Mapping[str, float]) -> Quality | None:
    """The figures over harmless inputs; None when the guard answers none of them.

    Flagged inputs are left out: they have no answer of the model's, and are counted as flagged.

    Args:
        rows: all inputs, with both answers.
        divergence: nats by the item's id, of those in `to_measure`.
    """
    harmless = [row for row in rows if not row.harmful]
    answered = [row for row in harmless if row.action is not Action.FLAG]
    if not answered:
        return None
    steered = [divergence[r.id] for r in answered if r.action is Action.STEER]
    passed = [row for row in answered if row.action is Action.PASS]
    measured = [divergence[row.id] for row in passed if row.id in divergence]
    tokens = [
        sum(len(ids) for ids in side) for side in zip(*map(_token_ids, answered), strict=True)
    ]
    same = [row.id for row in answered if _same(row)]
    return Quality(
        n=len(answered),
        n_steered=len(steered),
        n_flagged=len(harmless) - len(answered),
        kl=max(0.0, sum(steered)) / len(answered),
        kl_steered=max(0.0, sum(steered)) / len(steered) if steered else None,
        kl_passed_max=max(measured) if measured else None,
        n_passed_measured=len(measured),
        exact_match=Share.of(Rate(len(same), len(answered))),
        exact_match_passed=Share.of(Rate.of([_same(row) for row in passed])) if passed else None,
        length_ratio=tokens[1] / max(tokens[0], 1),
    )


def _token_ids(row: Row) -> tuple[tuple[int, ...], tuple[int, ...]]:
    plain, guarded = row.answers
    return plain.token_ids, guarded.token_ids


def _same(row: Row) -> bool:
    plain, guarded = _token_ids(row)
    return plain == guarded
