"""One request while it is judged and answered: what its caller hears, and when."""

from __future__ import annotations

import time
import uuid
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from guardrail.errors import (
    DetectorError,
    GuardrailViolation,
    RequestCancelledError,
    RequestTimeoutError,
)
from guardrail.model.criteria import RowControl, RowOutcome
from guardrail.model.jobs import Job
from guardrail.online.floors import Floor
from guardrail.online.text import AnswerText
from guardrail.policy.acting import stopped
from guardrail.types import Request, Result, ToolCall, Verdict

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from guardrail.model.rulings import Ruling
    from guardrail.model.settings import Settings
    from guardrail.online.scanning import Scan
    from guardrail.online.tool_calls import CallReader
    from guardrail.policy import Policy

Item = Verdict | str


@dataclass(eq=False, slots=True, kw_only=True)
class AnswerJob(Job[Result]):
    """A request for an answer; `emit` gets the verdict, then the chunks."""

    request: Request
    settings: Settings
    floor: Floor = field(default_factory=Floor)
    emit: Callable[[Item], None] | None = None
    request_id: str = field(default_factory=lambda: uuid.uuid4().hex)
    verdict: Verdict | None = None
    verdict_s: float = 0.0

    def tell(self, item: Item) -> None:
        """Pass a part of the answer on."""
        if self.emit is not None:
            self.begun = self.begun or isinstance(item, str)
            self.emit(item)


@dataclass(eq=False, slots=True, kw_only=True)
class CheckJob(Job[Verdict]):
    """A request for a verdict alone; `scan` when it is a window of another request's video.

    `folded` is its copy in plain letters, where that is judged, too, and differs.
    """

    request: Request
    folded: Request | None = None
    floor: Floor = field(default_factory=Floor)
    scan: Scan | None = None
    request_id: str = field(default_factory=lambda: uuid.uuid4().hex)


def who(job: AnswerJob | CheckJob) -> dict[str, object]:
    """Whose request it is, as it goes on record; without a client's name where there is none."""
    named = {} if job.client is None else {"client": job.client}
    return {"request_id": job.request_id, **named}


def verdict_facts(job: AnswerJob | CheckJob) -> dict[str, object]:
    """What goes on record beside a verdict that has just been made."""
    return {
        "event": "verdict",
        **who(job),
        "queue_s": job.queue_s,
        "verdict_s": job.running_s,
    }


class Judge(Protocol):
    """What an answer needs of its engine."""

    @property
    def policy(self) -> Policy:
        """The rules in force."""

    def decode(self, ids: Sequence[int]) -> str:
        """Tokens to the text people read."""

    def call_reader(self, request: Request) -> CallReader | None:
        """What reads tool calls in the answer to a request that offers tools."""

    def verdict(self, job: AnswerJob, ruling: Ruling) -> Verdict:
        """What people are told of a ruling."""

    def record(self, verdict: Verdict | None, facts: Mapping[str, object]) -> None:
        """Write to the audit trail."""


class Answering:
    """Turns what happens to one row of the model into what the job's caller gets."""

    def __init__(self, job: AnswerJob, judge: Judge) -> None:
        self._job, self._judge, self._policy = job, judge, judge.policy
        self._calls = judge.call_reader(job.request)
        self._text = AnswerText(
            judge.decode if self._calls is None else self._calls.decode,
            stops=job.settings.stop,
            emit=job.tell,
            calls=self._calls,
        )

    def control(self, room: int | None, *, settle_early: bool) -> RowControl:
        """What the model's thread asks and tells while the row grows, to at most `room` tokens."""
        wanted = self._job.settings.max_new_tokens
        return RowControl(
            cancelled=self._job.cancelled,
            deadline=self._job.deadline,
            max_tokens=wanted if room is None else min(wanted, room),
            on_ruling=self._rule,
            on_token=self._text.take,
            on_end=self.end if settle_early else None,
        )

    def end(self, outcome: RowOutcome) -> None:
        """The row has ended: settle the job."""
        if self._job.verdict is not None:
            self._judge.record(self._job.verdict, self._facts(outcome))
        result = self._result(outcome)
        if isinstance(result, Result):
            self._job.settle(result)
        else:
            self._job.fail(result)

    def broke(self, *, alone: bool) -> None:
        """The model failed; a judged answer that is not made again has ended, and on record."""
        job = self._job
        if job.verdict is not None and not job.future.done() and (alone or job.begun):
            facts = {"event": "answer", **self._timings(), "finish_reason": "error"}
            self._judge.record(job.verdict, facts)

    def _rule(self, ruling: Ruling) -> None:
        verdict = self._judge.verdict(self._job, ruling)
        if self._job.verdict is None:  # else a batch failed later, and this one was on record
            self._job.verdict_s = self._job.running_s
            self._judge.record(verdict, verdict_facts(self._job))
        self._job.verdict = verdict
        self._job.tell(verdict)

    def _result(self, outcome: RowOutcome) -> Result | Exception | GuardrailViolation:
        """What the caller of a finished row gets."""
        verdict, ruling = self._job.verdict, outcome.ruling
        if outcome.finish == "cancelled":
            return RequestCancelledError("the request was given up")
        if outcome.finish == "timeout":
            return RequestTimeoutError("the time was over before the answer was complete")
        if verdict is None or ruling is None:
            self._judge.record(None, {"event": "outage", **who(self._job)})
            return DetectorError("an answer without a verdict; it is not given out")
        if ruling.stops and self._policy.on_flag == "raise":
            return stopped(verdict)
        if ruling.stops:
            self._job.tell(self._policy.refusal_message)
        text, calls = (self._policy.refusal_message, ()) if ruling.stops else self._said()
        return Result(
            text=text,
            tool_calls=calls,
            verdict=verdict,
            finish_reason=outcome.finish,
            prompt_tokens=outcome.prompt_tokens,
            completion_tokens=len(outcome.token_ids),
            token_ids=outcome.token_ids,
            refused_by_guard=ruling.stops,
            metadata=self._timings(),
        )

    def _timings(self) -> dict[str, object]:
        job = self._job
        return {
            "request_id": job.request_id,
            "queue_s": job.queue_s,
            "verdict_s": job.verdict_s,
            "total_s": time.monotonic() - job.asked_at,
        }

    def _facts(self, outcome: RowOutcome) -> dict[str, object]:
        """What goes on record when a judged answer has ended, however it ended."""
        return {
            "event": "answer",
            **self._timings(),
            "finish_reason": outcome.finish,
            "prompt_tokens": outcome.prompt_tokens,
            "completion_tokens": len(outcome.token_ids),
        }

    def _said(self) -> tuple[str, tuple[ToolCall, ...]]:
        """The whole answer; what was held back as a call and is none goes out now."""
        calls: tuple[ToolCall, ...] = ()
        self._text.end()
        if self._calls is not None and (held := self._calls.rest()):
            rest, calls = self._calls.split(held)
            self._text.release(rest)
        return self._text.text, calls
