"""The callers' side of a guard: from a value to a waiting job, and from the job to its answer."""

from __future__ import annotations

import asyncio
import threading
import time
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from guardrail.errors import GuardrailViolation, RequestTimeoutError
from guardrail.model.jobs import Job
from guardrail.online.options import ASK, caller_of, numbered, settings_of
from guardrail.online.reading import Begun, Reading, finished
from guardrail.online.scanning import LATE
from guardrail.requests.folding import folded
from guardrail.requests.patience import in_own_thread

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from guardrail.online.answering import AnswerJob, CheckJob, Item
    from guardrail.online.engine import Engine
    from guardrail.online.floors import Floor
    from guardrail.online.options import AskOptions
    from guardrail.types import Request

T = TypeVar("T")
J = TypeVar("J", bound=Job[Any])


class Asking:
    """Submits requests to an engine and waits for them, in threads and in event loops."""

    def __init__(self, engine: Engine) -> None:
        self._engine, self._reading = engine, Reading(engine)

    def answer(
        self,
        value: Any,
        options: Mapping[str, Any],
        *,
        emit: Callable[[Item], None] | None = None,
        cancelled: threading.Event | None = None,
        wait: bool = False,
    ) -> Begun[AnswerJob]:
        """Queue a request for an answer."""
        engine, limits = self._engine, self._engine.policy.limits
        how = dict(options)
        ask = {name: how.pop(name) for name in ASK & how.keys()}
        tools, caller = caller_of(ask, limits, cancelled, wait=wait)
        settings = settings_of(how, limits)

        def job(request: Request, floor: Floor) -> AnswerJob:
            return engine.answer_job(request, settings, emit=emit, floor=floor, **caller.of_job)

        return self._reading.begin(value, tools, caller, job)

    def verdict(
        self,
        value: Any,
        options: AskOptions,
        *,
        cancelled: threading.Event | None = None,
        wait: bool = False,
    ) -> Begun[CheckJob]:
        """Queue a request for a verdict."""
        engine = self._engine
        tools, caller = caller_of(options, engine.policy.limits, cancelled, wait=wait)

        def job(request: Request, floor: Floor) -> CheckJob:
            copy = folded(request) if engine.policy.fold_text else None
            return engine.check_job(request, folded=copy, floor=floor, **caller.of_job)

        return self._reading.begin(value, tools, caller, job)

    def give_up(self, job: Job[Any]) -> None:
        """Nobody waits for this job any more."""
        self._engine.worker.cancel(job)

    def wait(self, begun: Begun[Job[T]]) -> T:
        """Block until a job is settled, its time is over, or the wait is interrupted."""
        job = finished(begun)
        try:
            return job.future.result(timeout=_left(job))
        except TimeoutError:
            if job.future.done():  # settled at the last moment, or with such an error of its own
                return job.future.result()
            self.give_up(job)
            raise _late() from None
        except BaseException:  # Ctrl-C among them; a settled job does not mind
            self.give_up(job)
            raise

    def wait_all(
        self,
        values: Iterable[Any],
        ask: Callable[..., Begun[Job[T]]],
        options: AskOptions,
        *,
        return_exceptions: bool,
    ) -> list[T | BaseException]:
        """Ask everything, then wait in order; the first error ends all, unless it is wanted."""

        def asked(item: tuple[int, Any]) -> Job[T]:
            number, value = item
            return finished(ask(value, numbered(options, number), wait=True))

        jobs: list[Job[T] | BaseException] = []
        try:
            for item in enumerate(values):
                jobs.append(_caught(asked, item) if return_exceptions else asked(item))
            outcomes: list[T | BaseException] = []
            for job in jobs:
                if isinstance(job, BaseException):
                    outcomes.append(job)
                elif return_exceptions:
                    outcomes.append(_caught(self.wait, job))
                else:
                    outcomes.append(self.wait(job))
            return outcomes
        except BaseException:
            for job in jobs:
                if not isinstance(job, BaseException):
                    self.give_up(job)
            raise

    async def submitted(
        self, ask: Callable[..., Begun[J]], given_up: threading.Event | None = None
    ) -> J:
        """Ask from an event loop; media are read, and long videos judged, in threads of their own.

        So whoever waits there keeps none of the loop's few threads from text.
        """
        cancelled = given_up or threading.Event()
        try:
            with self._engine.worker.expecting(cancelled):
                await asyncio.sleep(0)  # others that ask just now are expected, too
                begun = await asyncio.to_thread(ask, cancelled=cancelled)
                if not isinstance(begun, Job):
                    begun = await in_own_thread(begun)
            if isinstance(begun, Job):
                return begun
            return await in_own_thread(partial(finished, begun))
        except asyncio.CancelledError:
            cancelled.set()  # the thread may still queue the job; it will be dropped there
            raise

    async def wait_async(self, ask: Callable[..., Begun[Job[T]]]) -> T:
        """Ask and wait in an event loop."""
        job = await self.submitted(ask)
        try:
            async with asyncio.timeout(_left(job)):
                return await asyncio.wrap_future(job.future)
        except TimeoutError:
            if job.future.done() and not job.future.cancelled():
                return job.future.result()
            self.give_up(job)
            raise _late() from None
        except BaseException:  # a cancelled task among them
            self.give_up(job)
            raise


def _caught(function: Callable[[Any], T], value: Any) -> T | BaseException:
    """The result, or the error that was asked for in its place."""
    try:
        return function(value)
    except (
        Exception,
        GuardrailViolation,
    ) as error:  # the caller wants to see it beside the other answers
        return error


def _left(job: Job[Any]) -> float | None:
    return None if job.deadline is None else max(job.deadline - time.monotonic(), 0)


def _late() -> RequestTimeoutError:
    return RequestTimeoutError(LATE)
