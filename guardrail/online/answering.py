"""What the caller of a request is told: the verdict, then the answer's text as it grows.

Text comes from tokens as early as it is certain, and never past a stop string. Joined, the chunks
of an answer are its text: streaming and waiting give the same characters.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from guardrail.errors import (
    DetectorError,
    GuardrailViolation,
    RequestCancelledError,
    RequestTimeoutError,
)
from guardrail.model.generate import RowControl, RowOutcome
from guardrail.online.jobs import NOTHING_YET, verdict_facts, who
from guardrail.online.tool_calls import CallReader
from guardrail.online.watching import WatchedAnswer, of_both
from guardrail.policy.acting import stopped
from guardrail.types import Action, Request, Result, ToolCall, Verdict, Where
from guardrail.worker.jobs import LATE

if TYPE_CHECKING:
    from torch import Tensor

    from guardrail.audit import Audit
    from guardrail.decide.detector import Detector
    from guardrail.model.logprobs import Likely, Logprobs
    from guardrail.model.prefill import Ruling
    from guardrail.online.jobs import AnswerJob, Floor

Decode = Callable[[Sequence[int]], str]

_INCOMPLETE = "\ufffd"


class Answering:
    """Turns what happens to one row of the model into what the job's caller gets."""

    def __init__(
        self,
        job: AnswerJob,
        tokenizer: Any,
        detector: Detector,
        record: Audit,
        said: Callable[[Where], Where],
    ) -> None:
        """`said` puts the words of a window into where it is."""
        self._job, self._detector, self._record, self._said_at = job, detector, record, said
        self._stops = False
        tools, grammar = job.request.tools, job.grammar
        self._row = None if grammar is None else grammar.row()
        self._logprobs = None if job.settings.logprobs is None else _logprobs(job, tokenizer)
        self._calls = CallReader(tokenizer, tools) if tools else None
        self._watch = WatchedAnswer(detector, job.tell) if detector.answers is not None else None
        decode = partial(_decoded, tokenizer) if self._calls is None else self._calls.decode
        self._text = AnswerText(
            decode if self._row is None else self._row.decode,
            stops=job.settings.stop,
            emit=job.tell if self._watch is None else self._watch.put,
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
            on_token=self.take,
            on_window=None if self._watch is None else self._watch.hear,
            on_scores=None if self._row is None and self._logprobs is None else self._scored,
            on_end=self.end if settle_early else None,
        )

    def take(self, token: int, likely: Likely | None = None) -> bool:
        """One more token; true when a stop string is complete and the answer with it.

        So is one in a form that nothing can be added to, or one that has left it. `likely` is what
        an engine of its own tells of the token, where logprobs were asked for.
        """
        if self._watch is not None:
            self._watch.taken()
        if self._logprobs is not None:
            self._logprobs.take(token, likely)
        ended = self._row is not None and self._row.take(token)
        if self._row is not None and self._row.error is not None:
            return True
        return self._text.take(token) or ended

    def end(self, outcome: RowOutcome) -> None:
        """The row has ended: settle the job."""
        answer = self._answer
        if answer is not None:
            self._record(answer, {"event": "watched", **who(self._job)})
        result = self._result(outcome, answer)
        if self._row is not None and result is self._row.error:
            outcome = replace(outcome, finish="error")
        if self._job.verdict is not None:
            self._record(self._job.verdict, self._facts(outcome))
        if isinstance(result, Result):
            self._job.settle(result)
        else:
            self._job.fail(result)

    def broke(self, *, alone: bool) -> None:
        """The model failed; a judged answer that is not made again has ended, and on record."""
        job = self._job
        if job.verdict is not None and not job.future.done() and (alone or job.begun):
            facts = {"event": "answer", **self._timings(), "finish_reason": "error"}
            self._record(job.verdict, facts)

    def _scored(self, scores: Tensor) -> Tensor:
        """What the next token is chosen from: (vocab,) -> (vocab,)."""
        if self._logprobs is not None:
            self._logprobs.see(scores)
        return scores if self._row is None else self._row.masked(scores)

    def _rule(self, ruling: Ruling) -> None:
        job = self._job
        verdict = verdict_of(self._detector, job.request, ruling, job.floor, said=self._said_at)
        self.judged(verdict, stops=ruling.stops)

    def judged(self, verdict: Verdict, *, stops: bool) -> None:
        """The prompt has its verdict: on record, and to whoever waits; `stops` says no answer."""
        self._stops = stops
        if self._job.verdict is None:  # else a batch failed later, and this one was on record
            self._job.verdict_s = self._job.running_s
            self._record(verdict, verdict_facts(self._job))
        self._job.verdict = verdict
        self._job.tell(verdict)

    def _result(
        self, outcome: RowOutcome, answer: Verdict | None
    ) -> Result | Exception | GuardrailViolation:
        """What the caller of a finished row gets; `answer` is the verdict on what was said."""
        verdict, policy = self._job.verdict, self._detector.policy
        cut = self._watch is not None and self._watch.cut
        stops = self._stops or cut
        if outcome.finish == "cancelled":
            return RequestCancelledError("the request was given up")
        if outcome.finish == "timeout":
            return RequestTimeoutError(LATE)
        if verdict is None:
            self._record(None, {"event": "outage", **who(self._job)})
            return DetectorError("an answer without a verdict; it is not given out")
        verdict = verdict if answer is None else of_both(verdict, answer)
        if stops and policy.on_flag == "raise":
            return stopped(verdict)
        text, calls = (self._refused(policy.refusal_message), ()) if stops else self._said()
        if self._row is not None and not stops:
            whole = outcome.finish == "stop"
            if (error := self._row.end(text, stopped=whole, calls=len(calls))) is not None:
                return error
        return Result(
            text=text,
            tool_calls=calls,
            verdict=verdict,
            finish_reason=outcome.finish,
            prompt_tokens=outcome.prompt_tokens,
            completion_tokens=len(outcome.token_ids),
            token_ids=() if cut else outcome.token_ids,
            refused_by_guard=stops,
            refusal=policy.refusal_message if stops else None,
            answer=answer,
            logprobs=None if self._logprobs is None or cut else self._logprobs.taken,
            metadata=self._timings(),
        )

    @property
    def _answer(self) -> Verdict | None:
        """The verdict on what the model said, if that was watched."""
        job = self._job
        if self._watch is None or job.verdict is None or self._stops:
            return None
        return self._watch.verdict(job.verdict, len(job.request.messages))

    def _refused(self, message: str) -> str:
        """The policy's words, told; behind what a stream has let out before an answer was cut."""
        left = "" if self._watch is None or not self._job.begun else self._watch.left
        said = f"\n\n{message}" if left else message
        self._job.tell(said)
        return left + said

    def _timings(self) -> dict[str, object]:
        job = self._job
        return {
            "request_id": job.caller.request_id,
            "queue_s": job.queue_s,
            "verdict_s": job.verdict_s,
            "total_s": time.monotonic() - job.caller.asked_at,
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
            if self._row is None or self._row.called:
                held, calls = self._calls.split(held)
            self._text.release(held)
        if self._watch is not None:
            self._watch.end()
        return self._text.text, calls


def _logprobs(job: AnswerJob, tokenizer: Any) -> Logprobs:
    from guardrail.model.logprobs import Logprobs

    return Logprobs(tokenizer, job.settings.logprobs or 0)


def verdict_of(
    detector: Detector,
    request: Request,
    ruling: Ruling,
    floor: Floor = NOTHING_YET,
    *,
    said: Callable[[Where], Where] | None = None,
) -> Verdict:
    """The detector's words, corrected by what was really done; for the rest see `placed`."""
    verdict = ruled(detector, ruling, request.offset_kind)
    last = len(request.messages) - 1
    where = where_of(ruling, verdict.score, last, request.messages[last].role)
    return placed(replace(verdict, where=where), request, floor, said=said)


def placed(
    verdict: Verdict,
    request: Request,
    floor: Floor = NOTHING_YET,
    *,
    said: Callable[[Where], Where] | None = None,
) -> Verdict:
    """A verdict with what of its request the score is from; `floor` is what it was judged by.

    `said` puts the words of a window into where it is. That is None where the score is of another
    prompt than this one.
    """
    held = floor.holds(verdict.score)
    where = None if held else verdict.where
    return replace(
        verdict,
        window=floor.window_of(request, verdict.score),
        folded=floor.folded and held,
        where=where if where is None or said is None else said(where),
    )


def ruled(detector: Detector, ruling: Ruling, kind: str) -> Verdict:
    """The detector's words on a row of an offset kind, corrected by what was really done."""
    decision: Any = ruling.decision
    verdict = detector.verdict(decision, ruling.row, kind, ruling.strength)
    return replace(
        verdict,
        action=ruling.action,
        # A row that no edit can reach is flagged after the thresholds asked for steering.
        would_be=Action.FLAG if ruling.action is Action.FLAG else verdict.would_be,
        reason="detector_failed" if ruling.failed else verdict.reason,
    )


def where_of(ruling: Ruling, score: float | None, last: int, role: str) -> Where | None:
    """Which reading of its prompt a row's score is from; `last` is the last message, `role`'s."""
    if score is None or ruling.failed:
        return None
    found: Any = ruling.found
    if found is not None and found.score == score:
        where: Where = found.where
        return where
    return Where(reading="last", message=last, role=role)


class AnswerText:
    """One answer's text while its tokens arrive; `emit` gets each chunk, never an empty one."""

    def __init__(
        self,
        decode: Decode,
        *,
        stops: Sequence[str] = (),
        emit: Callable[[str], None] | None,
        calls: CallReader | None = None,
    ) -> None:
        self._calls = calls
        self._detokeniser = Detokeniser(decode)
        self._filter = StopFilter(stops)
        self._emit = emit
        self._chunks: list[str] = []

    @property
    def text(self) -> str:
        """Everything let through so far."""
        return "".join(self._chunks)

    def take(self, token: int) -> bool:
        """One more token; true when a stop string is complete and the answer with it."""
        self._out(self._filter.push(self._detokeniser.push(token)))
        return self._filter.matched

    def end(self) -> str:
        """Let the rest through, but for what may be a tool call; the whole text so far."""
        self._out(self._filter.push(self._detokeniser.flush()))
        self._out(self._filter.flush())
        return self.text

    def release(self, chunk: str) -> None:
        """Let text through, or some that was held back."""
        if not chunk:
            return
        self._chunks.append(chunk)
        if self._emit is not None:
            self._emit(chunk)

    def _out(self, chunk: str) -> None:
        self.release(chunk if self._calls is None else self._calls.push(chunk))


class Detokeniser:
    """Token ids to text, holding back a character that is not complete yet."""

    def __init__(self, decode: Decode) -> None:
        self._decode = decode
        self._ids: list[int] = []
        # Tokens in [context, emitted) are out; they stay, since neighbours change how text joins.
        self._context = self._emitted = 0

    def push(self, token: int) -> str:
        """The text that one more token makes certain."""
        self._ids.append(token)
        return self._next(finish=False)

    def flush(self) -> str:
        """What is left at the end, complete or not."""
        return self._next(finish=True)

    def _next(self, *, finish: bool) -> str:
        before = self._decode(self._ids[self._context : self._emitted])
        after = self._decode(self._ids[self._context :])
        if len(after) <= len(before) or (after.endswith(_INCOMPLETE) and not finish):
            return ""
        self._context, self._emitted = self._emitted, len(self._ids)
        return after[len(before) :]


class StopFilter:
    """Lets text through up to the first stop string, holding back what might begin one."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stop for stop in stops if stop)
        self._held = ""
        self.matched = False

    def push(self, text: str) -> str:
        """The part of the text so far that no stop string can claim any more."""
        if self.matched:
            return ""
        self._held += text
        found = [at for stop in self._stops if (at := self._held.find(stop)) >= 0]
        if found:
            self.matched = True
            out, self._held = self._held[: min(found)], ""
            return out
        keep = max((_overlap(self._held, stop) for stop in self._stops), default=0)
        cut = len(self._held) - keep
        out, self._held = self._held[:cut], self._held[cut:]
        return out

    def flush(self) -> str:
        """What was held back for a stop string that did not come."""
        out, self._held = self._held, ""
        return out


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that begins `stop`."""
    sizes = range(min(len(text), len(stop) - 1), 0, -1)
    return next((size for size in sizes if text.endswith(stop[:size])), 0)


def _decoded(tokenizer: Any, ids: Sequence[int]) -> str:
    """Tokens to the text people read."""
    text: Any = tokenizer.decode(
        list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False
    )
    return str(text)
