"""A request on its way through the model's thread, and the future its caller waits for."""

from __future__ import annotations

import threading
import time
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from guardrail.errors import RequestCancelledError, RequestTimeoutError

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Sequence

    from guardrail.policy import Limits

T = TypeVar("T")


@dataclass(eq=False, slots=True, kw_only=True)
class Job(Generic[T]):
    """One request on its way through the model's thread.

    `run` answers a batch of jobs with equal `key` and settles each; None runs alone. `begun` says
    that the caller has seen a part of the answer, so the job must not be run a second time.
    """

    run: Callable[[Sequence[Any]], None]
    owner: object
    limits: Limits
    key: Hashable | None = None
    client: str | None = None  # requests of different clients take turns
    quick: bool = False  # a verdict alone, not an answer; see `Lanes`
    deadline: float | None = None  # time.monotonic()
    asked_at: float = field(default_factory=time.monotonic)
    queued_at: float = field(default_factory=time.monotonic)
    started_at: float | None = None
    cancelled: threading.Event = field(default_factory=threading.Event)
    future: Future[T] = field(default_factory=Future)
    begun: bool = False

    @property
    def queue_s(self) -> float:
        """How long it waited for the model, in s; for one that was not begun, until now."""
        until = time.monotonic() if self.started_at is None else self.started_at
        return max(until - self.queued_at, 0.0)

    @property
    def running_s(self) -> float:
        """How long ago its run began, in s; 0 before."""
        return 0.0 if self.started_at is None else time.monotonic() - self.started_at

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
