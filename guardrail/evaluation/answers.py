"""Plain and guarded answers to the same inputs, greedy, as they are kept and as they are asked."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from guardrail.errors import DetectorError, GuardrailViolation
from guardrail.evaluation.windows import answered_request
from guardrail.model.criteria import RowControl
from guardrail.model.decoder import context_length
from guardrail.model.generate import generate_rows
from guardrail.model.inputs import Encoded, Encoder
from guardrail.model.settings import Settings
from guardrail.online.engine import require_room
from guardrail.policy.acting import enforces
from guardrail.types import Action

if TYPE_CHECKING:
    from collections.abc import Sequence

    from guardrail.guard import Guard
    from guardrail.model.load import LoadedModel
    from guardrail.policy import Limits
    from guardrail.types import Request, Result, Verdict

_NO_HURRY_S = 1e6  # an evaluation's requests wait for each other, not for a user


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
        require_room(encoded, self._limits, self.context, new_tokens=self._new_tokens)
        return encoded


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
