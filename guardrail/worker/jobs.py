"""A request on its way through the model's thread: its caller, its future, and its batch."""

from __future__ import annotations

import logging
import threading
import time
import traceback
import uuid
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from guardrail.errors import ModelError, RequestCancelledError, RequestTimeoutError

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Sequence

    from guardrail.policy import Limits

log = logging.getLogger(__name__)

T = TypeVar("T")

LATE = "the time was over before the answer was complete"


@dataclass(frozen=True, slots=True, kw_only=True)
class Caller:
    """Who waits for a job, and until when; in a list of requests (`wait`) for a place, too.

    Jobs of different `client`s take turns. `deadline` and `asked_at` are of `time.monotonic()`.
    """

    client: str | None = None
    request_id: str = field(default_factory=lambda: uuid.uuid4().hex)
    asked_at: float = field(default_factory=time.monotonic)
    deadline: float | None = None
    cancelled: threading.Event = field(default_factory=threading.Event)
    wait: bool = False

    def left_s(self) -> float | None:
        """How much time is left, in s; None: all there is."""
        return None if self.deadline is None else max(self.deadline - time.monotonic(), 0)

    def still_waits(self, doing: str = "it was read") -> None:
        """Do nothing while the caller waits.

        Raises:
            RequestCancelledError: the caller gave up.
            RequestTimeoutError: the time is over.
        """
        if self.cancelled.is_set():
            raise RequestCancelledError(f"the request was given up while {doing}")
        if self.deadline is not None and time.monotonic() >= self.deadline:
            raise RequestTimeoutError(LATE)


@dataclass(eq=False, slots=True, kw_only=True)
class Job(Generic[T]):
    """One request on its way through the model's thread.

    `run` answers a batch of jobs with equal `key` and settles each; None runs alone. `begun` says
    that the caller has seen a part of the answer, so the job must not be run a second time.
    """

    run: Callable[[Sequence[Any]], Any]
    owner: object
    limits: Limits
    caller: Caller = field(default_factory=Caller)
    key: Hashable | None = None
    quick: bool = False  # a verdict alone, not an answer; see `Lanes`
    queued_at: float = field(default_factory=time.monotonic)
    started_at: float | None = None
    future: Future[T] = field(default_factory=Future)
    begun: bool = False

    @property
    def client(self) -> str | None:
        """Whose it is."""
        return self.caller.client

    @property
    def deadline(self) -> float | None:
        """Until when it is waited for, of `time.monotonic()`."""
        return self.caller.deadline

    @property
    def cancelled(self) -> threading.Event:
        """Set once nobody waits for it any more."""
        return self.caller.cancelled

    @property
    def queue_s(self) -> float:
        """How long it waited for the model, in s; for one that was not begun, until now."""
        until = time.monotonic() if self.started_at is None else self.started_at
        return max(until - self.queued_at, 0.0)

    @property
    def running_s(self) -> float:
        """How long ago its run began, in s; 0 before."""
        return 0.0 if self.started_at is None else time.monotonic() - self.started_at

    def result(self, late: str = LATE) -> T:
        """Wait for what it is settled with.

        Raises:
            RequestTimeoutError: the caller's time is over.
        """
        try:
            return self.future.result(timeout=self.caller.left_s())
        except TimeoutError:
            if self.future.done():  # settled at the last moment, or with such an error of its own
                return self.future.result()
            raise RequestTimeoutError(late) from None

    def settle(self, value: T) -> None:
        """Hand the result to whoever waits; nobody does after a cancelled wait."""
        with suppress(InvalidStateError):
            self.future.set_result(value)

    def fail(self, error: BaseException) -> None:
        """Hand an error to whoever waits."""
        with suppress(InvalidStateError):
            self.future.set_exception(error)

    def start(self) -> bool:
        """Whether somebody still wants the answer."""
        if self.cancelled.is_set():
            self.fail(RequestCancelledError("the request was given up before its turn came"))
        elif self.deadline is not None and time.monotonic() >= self.deadline:
            self.fail(RequestTimeoutError("the time was over before the request's turn came"))
        if self.future.done():
            return False
        self.started_at = time.monotonic()
        return True


def run_batch(batch: Sequence[Job[Any]]) -> None:
    """Run a batch; if it fails, each of its jobs alone, but for those whose answer has begun.

    So an error is pinned on the request that causes it.
    """
    jobs = [job for job in batch if job.start()]
    if not jobs:
        return
    error = _run(jobs)
    left = [job for job in jobs if not job.future.done()]
    if error is None or not left:
        return
    if len(jobs) == 1:
        jobs[0].fail(error)
        return
    what = type(error).__name__  # its words may quote a request
    log.warning("a batch of %d failed (%s); running its requests alone", len(jobs), what)
    for job in left:
        if job.begun:
            job.fail(error)
        else:
            run_batch([job])


def _run(jobs: Sequence[Job[Any]]) -> Exception | None:
    """Run jobs together; what went wrong, if anything."""
    try:
        jobs[0].run(jobs)
    except BaseException as error:  # the border of the thread: it must outlive any request
        log.debug("a batch of %d failed", len(jobs), exc_info=True)
        _let_go(error)
        return told(error)
    return None


def _let_go(error: BaseException | None) -> None:
    """Free what an error's frames hold: a batch's caches fill the memory that the next one needs.

    Its requests run alone right after it, and its callers may keep the error for long.
    """
    seen = set[int]()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        traceback.clear_frames(error.__traceback__)
        error = error.__cause__ or error.__context__


def told(error: BaseException) -> Exception:
    """The error as a caller gets it: an exit asked for in here must not end the caller's thread."""
    if isinstance(error, Exception):
        return error
    what = f"the model's thread was told to end ({type(error).__name__}) by code that it runs"
    crash = ModelError(f"{what}; ask again, and look for hooks or callbacks that exit")
    crash.__cause__ = error
    return crash
