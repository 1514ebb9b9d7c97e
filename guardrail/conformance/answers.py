"""The guard's answers to a batch, traced."""

from __future__ import annotations

from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from guardrail.conformance.subject import TOKENS, rules
from guardrail.conformance.trace import Trace, traced
from guardrail.errors import DetectorError
from guardrail.model.generate import check_rows, generate_rows
from guardrail.model.hooks import PromptHooks, check_layers
from guardrail.model.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Iterator

    from transformers import PreTrainedModel

    from guardrail.conformance.subject import Subject
    from guardrail.decide.detector import Detector
    from guardrail.model.encode import Encoded
    from guardrail.model.generate import RowOutcome
    from guardrail.model.prefill import Ruling


@dataclass(frozen=True, slots=True)
class Answers:
    """What came of a batch, one outcome a row, and what ran for it."""

    rows: list[RowOutcome]
    trace: Trace

    @property
    def tokens(self) -> list[list[int]]:
        """New tokens of each row."""
        return [list(row.token_ids) for row in self.rows]

    @property
    def rulings(self) -> list[Ruling]:
        """What was done to each row."""
        return [row.ruling for row in self.rows if row.ruling is not None]

    @property
    def scores(self) -> list[float]:
        """Each row's score."""
        return [score_of(ruling) for ruling in self.rulings]


def answered(
    subject: Subject,
    encoded: Encoded,
    detector: Detector,
    *,
    tokens: int = TOKENS,
    beams: int = 1,
    hooks: PromptHooks | None = None,
    count: bool = True,
) -> Answers:
    """Answer a batch as a guard does, greedily, through `hooks` or hooks for this call alone.

    Without `count` nothing is traced, so that a compiled pass meets no hooks but the guard's.
    """
    settings = Settings(max_new_tokens=tokens, do_sample=False, num_beams=beams)
    with ExitStack() as stack:
        if hooks is None:
            hooks = stack.enter_context(registered(subject.model, detector))
        trace = stack.enter_context(traced(subject.model)) if count else Trace()
        rows = generate_rows(
            subject.loaded, encoded, detector, settings, policy=detector.policy, hooks=hooks
        )
    return Answers(rows, trace)


@contextmanager
def registered(model: PreTrainedModel, detector: Detector) -> Iterator[PromptHooks]:
    """The hooks that a guard with this detector has on the model."""
    hooks = PromptHooks(model, check_layers(detector, model))
    try:
        yield hooks
    finally:
        hooks.remove()


def checked(subject: Subject, encoded: Encoded, detector: Detector) -> tuple[list[Ruling], Trace]:
    """Judge a batch without answering, traced."""
    with traced(subject.model) as trace:
        rulings = check_rows(subject.loaded, encoded, detector, policy=detector.policy)
    return rulings, trace


def probe(subject: Subject) -> None:
    """Answer one request with one token.

    Raises:
        GuardrailError: a guard cannot work inside this model, whatever is asked of it.
    """
    detector = subject.detector(subject.directions.artefact(subject.layers.read), rules())
    answered(subject, subject.encode(subject.texts[:1]), detector, tokens=1)


def score_of(ruling: Ruling) -> float:
    """The score behind a ruling.

    Raises:
        DetectorError: there is none.
    """
    decision = ruling.decision
    if ruling.failed or decision is None:
        raise DetectorError("the detector failed on a row that has a score")
    scores: list[float] = getattr(decision, "scores").tolist()  # noqa: B009 - of our own detector
    return scores[ruling.row]
