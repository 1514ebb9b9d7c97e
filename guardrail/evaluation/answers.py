"""Plain and guarded answers to the same inputs, and what the guard costs the harmless ones."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from guardrail.decide.detector import NO_FLOOR
from guardrail.errors import DetectorError, GuardrailViolation
from guardrail.evaluation.inputs import input_digest
from guardrail.evaluation.schema import ItemRow, Quality
from guardrail.evaluation.scores import answered_request
from guardrail.fit.effects import kl_divergence
from guardrail.fit.prompts import spread
from guardrail.model.decoder import context_length
from guardrail.model.encode import Encoder
from guardrail.model.generate import RowControl, generate_rows, next_token_logits
from guardrail.model.settings import Settings
from guardrail.online.engine import require_room
from guardrail.policy.acting import enforces
from guardrail.stats import Rate, Share
from guardrail.types import Action

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from guardrail.decide.detector import Detector
    from guardrail.evaluation.inputs import Input
    from guardrail.evaluation.scores import ItemScores
    from guardrail.guard import Guard
    from guardrail.model.encode import Encoded
    from guardrail.model.load import LoadedModel
    from guardrail.policy import Limits
    from guardrail.types import Request, Result, Verdict

_NO_HURRY_S = 1e6  # an evaluation's requests wait for each other, not for a user
PASSED_MEASURED = 64


@dataclass(frozen=True, kw_only=True)
class Answer:
    """An answer; `token_ids` include the end-of-turn token."""

    text: str
    token_ids: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class GuardedAnswer(Answer):
    """An answer behind the guard.

    `action` is what the guard did, in shadow mode what the thresholds ask for; `flagged` says that
    it was flagged in fact.
    """

    action: Action
    flagged: bool
    score: float


class PlainAnswers:
    """The model alone."""

    def __init__(self, guard: Guard, new_tokens: int) -> None:
        self._loaded = guard.loaded
        self._encoder = BoundedEncoder(guard.loaded, guard.policy.limits, new_tokens=1)
        self._settings = Settings(max_new_tokens=new_tokens, do_sample=False)
        self._answer_frames = guard.policy.video.answer_frames

    def __call__(self, requests: Sequence[Request]) -> list[Answer]:
        """Answers to a batch that may be run together; of a long video the same frames are seen."""
        encoded = self._encoder.encode(
            [answered_request(request, self._answer_frames) for request in requests]
        )
        context = self._encoder.context
        rows = [
            RowControl(max_tokens=None if context is None else context - length)
            for length in encoded.lengths
        ]
        outcomes = generate_rows(self._loaded, encoded, None, self._settings, rows)
        return [
            Answer(text=self._decoded(row.token_ids), token_ids=row.token_ids) for row in outcomes
        ]

    def _decoded(self, ids: Sequence[int]) -> str:
        text: Any = self._loaded.tokenizer.decode(
            list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        return str(text)


class GuardedAnswers:
    """The same through the guard itself: its queue, its batches, its verdicts."""

    def __init__(self, guard: Guard, new_tokens: int) -> None:
        self._guard, self._new_tokens = guard, new_tokens

    def __call__(self, requests: Sequence[Request]) -> list[GuardedAnswer | BaseException]:
        """Answers, or the error in an answer's place."""
        results = self._guard.batch(
            requests,
            return_exceptions=True,
            max_new_tokens=self._new_tokens,
            do_sample=False,
            timeout=_NO_HURRY_S,
        )
        return [self._read(result) for result in results]

    def _read(self, result: Result | BaseException) -> GuardedAnswer | BaseException:
        if isinstance(result, GuardrailViolation):
            return self._answer(result.verdict, "", ())
        if isinstance(result, BaseException):
            return result
        return self._answer(result.verdict, result.text, result.token_ids)

    def _answer(
        self, verdict: Verdict, text: str, token_ids: tuple[int, ...]
    ) -> GuardedAnswer | Exception:
        if verdict.score is None or verdict.reason != "score":
            return DetectorError("the detector failed on this input")
        return GuardedAnswer(
            text=text,
            token_ids=token_ids,
            action=verdict.action if enforces(verdict) else verdict.would_be,
            flagged=verdict.action is Action.FLAG,
            score=verdict.score,
        )


class BoundedEncoder(Encoder):
    """An encoder that refuses prompts beyond the policy's limit and the model's positions."""

    def __init__(self, loaded: LoadedModel, limits: Limits, *, new_tokens: int = 0) -> None:
        super().__init__(loaded)
        self.context = context_length(loaded.model)
        self._limits, self._new_tokens = limits, new_tokens

    def encode(self, requests: Sequence[Request]) -> Encoded:
        """As `Encoder.encode`.

        Raises:
            LimitExceededError: a prompt is too long.
        """
        encoded = super().encode(requests)
        videos, more = "video" in encoded.kinds, self._new_tokens
        require_room(encoded.lengths, self._limits, self.context, videos=videos, new_tokens=more)
        return encoded


def packed(answer: Answer) -> bytes:
    """An answer as JSON."""
    return json.dumps(asdict(answer)).encode()


def plain_from(data: bytes) -> Answer:
    """A plain answer as it was kept; ValueError, KeyError or TypeError if it was not."""
    return Answer(**_fields(data))


def guarded_from(data: bytes) -> GuardedAnswer:
    """A guarded answer as it was kept; ValueError, KeyError or TypeError if it was not."""
    fields = _fields(data)
    return GuardedAnswer(**(fields | {"action": Action(fields["action"])}))


def _fields(data: bytes) -> dict[str, Any]:
    fields: dict[str, Any] = json.loads(data)
    return fields | {"token_ids": tuple(fields["token_ids"])}


@dataclass(frozen=True, kw_only=True)
class Row:
    """An input, its scores, and its answers if there are any.

    `guarded_refused` counts what the guard flagged in fact beside what was refused.
    """

    input: Input
    scores: ItemScores
    plain: Answer | None = None
    guarded: GuardedAnswer | None = None
    shadow: bool = False
    plain_refused: bool | None = None
    guarded_refused: bool | None = None

    @property
    def id(self) -> str:
        """The item's own."""
        return self.input.item.id

    @property
    def harmful(self) -> bool:
        """Whether it ought to be refused."""
        return self.input.item.harmful

    @property
    def modality(self) -> str:
        """`text`, `image` or `video`."""
        return self.input.modality.value

    @property
    def score(self) -> float:
        """In units of the text gap."""
        return self.scores.score

    @property
    def action(self) -> Action:
        """Of the guard itself where it answered and acted, else from the residuals.

        A guard in shadow mode looks for no edit, so its word knows nothing of those out of reach.
        """
        if self.guarded is None or self.shadow:
            return self.scores.action
        return self.guarded.action

    @property
    def answers(self) -> tuple[Answer, GuardedAnswer]:
        """Both answers.

        Raises:
            ValueError: there are none.
        """
        if self.plain is None or self.guarded is None:
            raise ValueError(f"input {self.id!r} was not answered")
        return self.plain, self.guarded

    def reported(self, *, content: bool) -> ItemRow:
        """The row of the report; `content` keeps prompt, picture path and answers in it."""
        item = self.input.item

        def shown(value: str | None) -> str | None:
            return value if content else None

        return ItemRow(
            id=item.id,
            label=item.label,
            category=item.category,
            source=item.source,
            modality=self.modality,
            score=self.score,
            reading=self.scores.reading,
            action=self.action.value,
            length=self.input.length,
            text=shown(item.text),
            image=shown(item.images[0] if item.images else None),
            video=shown(item.videos[0] if item.videos else None),
            plain_refused=self.plain_refused,
            guarded_refused=self.guarded_refused,
            plain_answer=shown(self.plain.text if self.plain else None),
            guarded_answer=shown(self.guarded.text if self.guarded else None),
        )


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


def to_measure(rows: Sequence[Row]) -> list[Row]:
    """The harmless inputs whose divergence is measured: all steered, some of the passed ones."""
    harmless = [row for row in rows if not row.harmful]
    steered = [row for row in harmless if row.action is Action.STEER]
    passed = [row for row in harmless if row.action is Action.PASS]
    return [*steered, *spread(passed, PASSED_MEASURED)]


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


def divergence_from(data: bytes) -> float:
    """A divergence as it was kept; ValueError or TypeError if it was not."""
    value = float(json.loads(data))
    if not math.isfinite(value):
        raise ValueError(f"a divergence of {value}")
    return value
