"""The callers' side of a guard: from a value to a waiting job, and from the job to its answer."""

from __future__ import annotations

import asyncio
import threading
import time
from typing import TYPE_CHECKING, Any, TypedDict, TypeVar

from pydantic import ValidationError

from guardrail.errors import ConfigurationError, LimitExceededError, RequestTimeoutError
from guardrail.model.settings import Settings
from guardrail.requests.messages import Tools, to_request

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from guardrail.model.jobs import Job
    from guardrail.online.answering import AnswerJob, CheckJob, Item
    from guardrail.online.engine import Engine
    from guardrail.policy import Limits

T = TypeVar("T")
J = TypeVar("J")


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
        self._engine = engine

    def answer(
        self,
        value: Any,
        options: Mapping[str, Any],
        *,
        emit: Callable[[Item], None] | None = None,
        cancelled: threading.Event | None = None,
        wait: bool = False,
    ) -> AnswerJob:
        """Queue a request for an answer; its pictures are decoded here, on the caller's thread."""
        policy = self._engine.policy
        how = dict(options)
        tools, timeout = how.pop("tools", None), how.pop("timeout", None)
        settings = _settings(how, policy.limits)
        deadline = _deadline(timeout, policy.limits)
        job = self._engine.answer_job(
            to_request(value, policy=policy, tools=tools),
            settings,
            emit=emit,
            deadline=deadline,
            cancelled=cancelled or threading.Event(),
        )
        self._engine.worker.submit(job, wait=wait)
        return job

    def verdict(
        self,
        value: Any,
        *,
        tools: Tools | None = None,
        timeout: float | None = None,
        cancelled: threading.Event | None = None,
        wait: bool = False,
    ) -> CheckJob:
        """Queue a request for a verdict."""
        policy = self._engine.policy
        deadline = _deadline(timeout, policy.limits)
        job = self._engine.check_job(
            to_request(value, policy=policy, tools=tools),
            deadline=deadline,
            cancelled=cancelled or threading.Event(),
        )
        self._engine.worker.submit(job, wait=wait)
        return job

    def give_up(self, job: Job[Any]) -> None:
        """Nobody waits for this job any more."""
        self._engine.worker.cancel(job)

    def wait(self, job: Job[T]) -> T:
        """Block until a job is settled, its time is over, or the wait is interrupted."""
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
        ask: Callable[[Any], Job[T]],
        *,
        return_exceptions: bool,
    ) -> list[T | Exception]:
        """Ask everything, then wait in order; the first error ends all, unless it is wanted."""
        jobs: list[Job[T] | Exception] = []
        try:
            for value in values:
                jobs.append(_caught(ask, value) if return_exceptions else ask(value))
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

    async def submitted(self, ask: Callable[..., J]) -> J:
        """Ask from an event loop; pictures are decoded in another thread."""
        cancelled = threading.Event()
        try:
            return await asyncio.to_thread(ask, cancelled=cancelled)
        except asyncio.CancelledError:
            cancelled.set()  # the thread may still queue the job; it will be dropped there
            raise

    async def wait_async(self, ask: Callable[..., Job[T]]) -> T:
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
        problems = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
        raise ConfigurationError(f"these generation settings cannot hold: {problems}") from error
    if settings.max_new_tokens > limits.new_tokens:
        raise LimitExceededError(
            limit="new_tokens",
            allowed=limits.new_tokens,
            found=settings.max_new_tokens,
            what="the answer asked for",
        )
    return settings


def _deadline(timeout: float | None, limits: Limits) -> float | None:
    if timeout is not None and timeout <= 0:
        raise ConfigurationError(f"a timeout must be more than 0 s; got {timeout}")
    seconds = limits.timeout_s if timeout is None else timeout
    return None if seconds is None else time.monotonic() + seconds


def _left(job: Job[Any]) -> float | None:
    return None if job.deadline is None else max(job.deadline - time.monotonic(), 0)


def _late() -> RequestTimeoutError:
    return RequestTimeoutError("the time was over before the answer was complete")
