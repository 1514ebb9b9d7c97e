"""The one thread that may touch a model, and the queue in front of it.

All guards on a model share its thread. Waiting requests of a like kind are answered together, and
clients take turns.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal, TypeVar
from weakref import WeakSet

from guardrail.errors import (
    GuardClosedError,
    QueueFullError,
    RequestCancelledError,
    RequestTimeoutError,
)
from guardrail.model.batches import run_batch, told
from guardrail.model.company import Company
from guardrail.model.lanes import Lanes
from guardrail.model.pace import Pace
from guardrail.model.shares import within_share
from guardrail.types import Load

if TYPE_CHECKING:
    from collections.abc import Iterator

    from guardrail.model.jobs import Job
    from guardrail.policy import Limits

log = logging.getLogger(__name__)

T = TypeVar("T")


class ModelWorker:
    """A queue and its thread; the thread starts with the first job and ends with `stop`."""

    def __init__(self) -> None:
        self.forget()
        self._pace = Pace()
        self._stopped = False
        self._departed: WeakSet[object] = WeakSet()

    def forget(self) -> None:
        """Begin with no job and no thread; those that a forked child sees are its parent's."""
        self._changed = threading.Condition()
        self._waiting: Lanes[Job[object]] = Lanes()
        self._running: list[Job[object]] = []
        self._company = Company()
        self._thread: threading.Thread | None = None

    @contextmanager
    def expecting(self, cancelled: threading.Event) -> Iterator[None]:
        """While a request is read whose job will have this event as its own."""
        with self._changed:
            self._company.comes(cancelled)
        try:
            yield
        finally:
            with self._changed:
                self._company.came(cancelled)

    def submit(self, job: Job[T], *, wait: bool = False) -> None:
        """Queue a job; with `wait`, until its deadline if none of the first half of places is free.

        The rest is for those who would be refused while long lists and long videos wait. A named
        client may have up to three jobs waiting for each place that is still free: alone it may
        fill three quarters of them, and there is always room for another one's first.

        Raises:
            QueueFullError: no place is free, or none for this client.
            RequestTimeoutError: with `wait`, no place became free in time.
            GuardClosedError: the job's owner has left.
            RuntimeError: called on the model's own thread, which would wait for itself.
        """
        if threading.current_thread() is self._thread:
            raise RuntimeError("a guard's callback must not ask a guard on the same model")
        places = (job.limits.queue + 1) // 2 if wait else job.limits.queue
        with self._changed:
            free = self._changed.wait_for(
                lambda: self._refuses(job) or len(self._waiting) < places,
                timeout=_left(job.deadline) if wait else 0,
            )
            if self._refuses(job):
                raise GuardClosedError("the guard was closed")
            if not free and wait:
                raise RequestTimeoutError("the time was over before the queue had a place")
            if not free:
                found = f"{len(self._waiting)} requests are waiting, the policy allows {places}"
                raise self._full(f"{found}; try again later or raise `limits.queue`")
            if not wait:
                self._require_share(job)
            self._queue(job, expects_company=wait)

    def load(self, limits: Limits) -> Load:
        """How many jobs wait and run."""
        with self._changed:
            running = sum(not job.future.done() for job in self._running)
            return Load(len(self._waiting), running, limits.queue, self._overdue_s())

    def drain_s(self) -> float:
        """When the jobs that wait now should be done, in s, within 1 to 60."""
        with self._changed:
            return self._pace.drain_s(len(self._waiting) + len(self._running))

    def _overdue_s(self) -> float:
        ends = [math.inf if job.deadline is None else job.deadline for job in self._running]
        return max(time.monotonic() - max(ends, default=math.inf), 0.0)

    def _require_share(self, job: Job[Any]) -> None:
        held, free = self._waiting.held_by(job.client), job.limits.queue - len(self._waiting)
        if not within_share(job.client, held, free):
            raise self._full(
                f"this client has {held} requests waiting, and the {free} free places are kept "
                "for others; ask for less at once or raise `limits.queue`",
                whose="client",
            )

    def _full(self, words: str, whose: Literal["all", "client"] = "all") -> QueueFullError:
        return QueueFullError(words, retry_after_s=self.drain_s(), whose=whose)

    def _queue(self, job: Job[Any], *, expects_company: bool) -> None:
        busy = any(not other.future.done() for other in self._running)
        self._company.came(job.cancelled)
        if expects_company or busy:
            self._company.met()
        self._ensure_thread()  # first: a job must not be left behind where none can be started
        job.queued_at = time.monotonic()
        self._waiting.push(job)
        self._changed.notify_all()

    def cancel(self, job: Job[T]) -> None:
        """Give a job up: out of the queue at once, out of a running batch at the next token."""
        job.cancelled.set()
        with self._changed:
            if self._waiting.remove(job):  # type: ignore[arg-type]  # of any result
                job.fail(RequestCancelledError("the request was given up"))
            self._changed.notify_all()

    def leave(self, owner: object, *, timeout: float) -> None:
        """Take no more jobs of an owner, end those there are, wait until none of them runs."""
        with self._changed:
            self._departed.add(owner)
            for job in self._waiting:
                if job.owner is owner:
                    self._waiting.remove(job)
                    job.fail(GuardClosedError("the guard was closed while the request waited"))
            for job in self._running:
                if job.owner is owner:
                    job.cancelled.set()
            self._changed.notify_all()
            if threading.current_thread() is not self._thread:
                self._changed.wait_for(
                    lambda: all(job.owner is not owner for job in self._running), timeout
                )

    def stop(self) -> None:
        """No more jobs; those there are end, and the thread after the next token."""
        with self._changed:
            self._stopped = True
            for job in self._running:
                job.cancelled.set()
            self._drop_waiting(GuardClosedError("the guard was closed"))
            self._changed.notify_all()

    def join(self, timeout: float) -> None:
        """Wait for the thread of a stopped worker."""
        if self._thread is not None:
            self._thread.join(timeout)

    def _refuses(self, job: Job[Any]) -> bool:
        return self._stopped or job.owner in self._departed

    def _ensure_thread(self) -> None:
        """Start the thread, again if need be."""
        if self._thread is None or not self._thread.is_alive():
            self._thread = threading.Thread(target=self._loop, name="guardrail-model", daemon=True)
            self._thread.start()

    def _drop_waiting(self, error: Exception) -> None:
        for job in self._waiting:
            self._waiting.remove(job)
            job.fail(error)

    def _loop(self) -> None:
        batches = 0
        try:
            while self._work():  # a call each, so that nothing of a batch outlives it in a variable
                batches += 1
        except BaseException as error:  # killed from outside, or a fault of ours
            what = type(error).__name__  # its words may quote a request
            log.error("the model's thread ended (%s); requests that wait get another one", what)
            self._bury(told(error), again=batches > 0)

    def _bury(self, error: Exception, *, again: bool) -> None:
        """The thread has ended before its time: nobody may wait for it for ever."""
        with self._changed:
            running, self._running = self._running, []
            self._thread = None
            for job in running:
                job.fail(error)
            if len(self._waiting) > 0:
                try:
                    if not again:  # it did nothing, and so will the next one
                        raise error
                    self._ensure_thread()
                except Exception as why:
                    self._drop_waiting(why)
            self._changed.notify_all()

    def _work(self) -> bool:
        """Run the next batch; false when there will be none."""
        batch = self._next_batch()
        started = time.monotonic()
        run_batch(batch)
        with self._changed:
            self._running = []
            ran = sum(job.started_at is not None for job in batch)
            if ran:  # what nobody waited for any more says nothing about the model
                self._pace.ran(ran, time.monotonic() - started)
            if len(batch) > 1:
                self._company.shared()
            self._changed.notify_all()
        return bool(batch)

    def _next_batch(self) -> list[Job[object]]:
        """The job whose turn it is and those that may share its batch; empty when stopped."""
        with self._changed:
            self._changed.wait_for(lambda: self._stopped or len(self._waiting) > 0)
            first = self._waiting.next()
            if first is None:
                return []
            # In `_running` before it leaves the queue: wherever the thread ends, it is in one.
            batch = self._running = [first]
            self._waiting.take(first, leads=True)
            until = time.monotonic() + (first.limits.batch_wait_s if self._crowded(first) else 0)
            while first.key is not None:
                self._gather(batch)
                self._changed.notify_all()  # places have become free
                left = until - time.monotonic()
                if len(batch) >= first.limits.batch or left <= 0 or self._stopped:
                    break
                self._changed.wait(left)
            return batch

    def _crowded(self, first: Job[object]) -> bool:
        """Whether more jobs than `first` may be expected soon."""
        return self._company.is_expected(first.limits.batch_wait_s) or len(self._waiting) > 0

    def _gather(self, batch: list[Job[object]]) -> None:
        """Move waiting jobs of the batch's kind into it, in turn."""
        while len(batch) < batch[0].limits.batch:
            job = self._waiting.companion(batch)
            if job is None:
                return
            batch.append(job)
            self._waiting.take(job)


def _left(deadline: float | None) -> float | None:
    return None if deadline is None else max(deadline - time.monotonic(), 0)
