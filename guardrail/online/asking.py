"""The callers' side of a guard: from a value to a waiting job, and from the job to its answer."""

from __future__ import annotations

import asyncio
import reprlib
import threading
import time
from typing import TYPE_CHECKING, Any, TypedDict, TypeVar

from pydantic import ValidationError

from guardrail.errors import ConfigurationError, LimitExceededError, RequestTimeoutError
from guardrail.model.jobs import Job
from guardrail.model.settings import Settings
from guardrail.online.reading import Begun, Caller, Reading, finished, in_own_thread
from guardrail.online.scanning import LATE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from guardrail.online.answering import AnswerJob, CheckJob, Item
    from guardrail.online.engine import Engine
    from guardrail.online.floors import Floor
    from guardrail.policy import Limits
    from guardrail.requests.messages import Tools
    from guardrail.types import Request

T = TypeVar("T")
J = TypeVar("J", bound=Job[Any])


class AskOptions(TypedDict, total=False):
    """What every way of asking takes.

    `tools` are function schemas in the OpenAI form, which a model reads before the chat; `timeout`
    is in seconds, from asking to answer (None: the policy's).
    """

    tools: Tools | None
    timeout: float | None


class GenerateOptions(AskOptions, total=False):
    """How an answer is generated; see `guardrail.model.settings.Settings`."""

    max_new_tokens: int
    do_sample: bool | None
    temperature: float | None
    top_p: float | None
    top_k: int | None
    repetition_penalty: float | None
    seed: int | None
    stop: Sequence[str]
    num_beams: int


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
        """Queue a request for an answer; its pictures are decoded here, on the caller's thread."""
        engine, limits = self._engine, self._engine.policy.limits
        how = dict(options)
        tools, timeout = how.pop("tools", None), how.pop("timeout", None)
        settings = _settings(how, limits)
        caller = Caller(_deadline(timeout, limits), cancelled or threading.Event(), wait)

        def job(request: Request, floor: Floor) -> AnswerJob:
            return engine.answer_job(request, settings, emit=emit, floor=floor, **caller.of_job)

        return self._reading.begin(value, tools, caller, job)

    def verdict(
        self,
        value: Any,
        *,
        tools: Tools | None = None,
        timeout: float | None = None,
        cancelled: threading.Event | None = None,
        wait: bool = False,
    ) -> Begun[CheckJob]:
        """Queue a request for a verdict."""
        engine, limits = self._engine, self._engine.policy.limits
        caller = Caller(_deadline(timeout, limits), cancelled or threading.Event(), wait)

        def job(request: Request, floor: Floor) -> CheckJob:
            return engine.check_job(request, floor=floor, **caller.of_job)

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
        ask: Callable[[Any], Begun[Job[T]]],
        *,
        return_exceptions: bool,
    ) -> list[T | Exception]:
        """Ask everything, then wait in order; the first error ends all, unless it is wanted."""

        def asked(value: Any) -> Job[T]:
            return finished(ask(value))

        jobs: list[Job[T] | Exception] = []
        try:
            for value in values:
                jobs.append(_caught(asked, value) if return_exceptions else asked(value))
            outcomes: list[T | Exception] = []
            for job in jobs:
                if isinstance(job, Exception):
                    outcomes.append(job)
                elif return_exceptions:
                    outcomes.append(_caught(self.wait, job))
                else:
                    outcomes.append(self.wait(job))
            return outcomes
        except BaseException:
            for job in jobs:
                if not isinstance(job, Exception):
                    self.give_up(job)
            raise

    async def submitted(
        self, ask: Callable[..., Begun[J]], given_up: threading.Event | None = None
    ) -> J:
        """Ask from an event loop; pictures are decoded and videos are judged in other threads."""
        cancelled = given_up or threading.Event()
        try:
            begun = await asyncio.to_thread(ask, cancelled=cancelled)
            return begun if isinstance(begun, Job) else await in_own_thread(begun)
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


def _caught(function: Callable[[Any], T], value: Any) -> T | Exception:
    """The result, or the error that was asked for in its place."""
    try:
        return function(value)
    except Exception as error:  # the caller wants to see it beside the other answers
        return error


def _settings(options: Mapping[str, Any], limits: Limits) -> Settings:
    try:
        default = min(Settings.model_fields["max_new_tokens"].default, limits.new_tokens)
        settings = Settings(**({"max_new_tokens": default} | dict(options)))
    except ValidationError as error:
        problems = "; ".join(_problem(found) for found in error.errors())
        raise ConfigurationError(f"these generation settings cannot hold: {problems}") from error
    if settings.max_new_tokens > limits.new_tokens:
        raise LimitExceededError(
            limit="new_tokens",
            allowed=limits.new_tokens,
            found=settings.max_new_tokens,
            what="the answer asked for",
        )
    return settings


def _problem(found: Any) -> str:
    """A validation error in words; what the settings themselves raised says it all."""
    own = found.get("ctx", {}).get("error")
    named = f"{'.'.join(map(str, found['loc']))}={reprlib.repr(found['input'])}"
    return f"{named}: {own or found['msg']}"


def _deadline(timeout: float | None, limits: Limits) -> float | None:
    if timeout is not None and timeout <= 0:
        raise ConfigurationError(f"a timeout must be more than 0 s; got {timeout}")
    seconds = limits.timeout_s if timeout is None else timeout
    return None if seconds is None else time.monotonic() + seconds


def _left(job: Job[Any]) -> float | None:
    return None if job.deadline is None else max(job.deadline - time.monotonic(), 0)


def _late() -> RequestTimeoutError:
    return RequestTimeoutError(LATE)
