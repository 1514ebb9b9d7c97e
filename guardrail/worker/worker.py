"""The one thread that may touch a model, and the queue in front of it.

All guards on a model share its thread, through leases. Waiting requests of a like kind are answered
together, and clients take turns. Other work on a model runs between them, `run_in_turn`.
"""

from __future__ import annotations

import atexit
import logging
import math
import os
import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal, TypeVar
from weakref import WeakKeyDictionary, WeakSet

from guardrail.errors import (
    GuardClosedError,
    QueueFullError,
    RequestCancelledError,
    RequestTimeoutError,
)
from guardrail.types import Load
from guardrail.worker.jobs import Caller, Job, run_batch, told
from guardrail.worker.waiting import Arrivals, Lanes, Throughput, within_share

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from torch import nn

    from guardrail.policy import Limits

log = logging.getLogger(__name__)

T = TypeVar("T")

_EXIT_WAIT_S = 10.0


class ModelWorker:
    """A queue and its thread; the thread starts with the first job and ends with `stop`."""

    def __init__(self) -> None:
        self.forget()
        self._throughput = Throughput()
        self._stopped = False
        self._departed: WeakSet[object] = WeakSet()

    def forget(self) -> None:
        """Begin with no job and no thread; those that a forked child sees are its parent's."""
        self._changed = threading.Condition()
        self._waiting = Lanes()
        self._running: list[Job[Any]] = []
        self._arrivals = Arrivals()
        self._thread: threading.Thread | None = None

    @contextmanager
    def expecting(self, cancelled: threading.Event) -> Iterator[None]:
        """While a request is read whose job will have this event as its own."""
        with self._changed:
            self._arrivals.comes(cancelled)
        try:
            yield
        finally:
            self.expects_no_more(cancelled)

    def expects_no_more(self, cancelled: threading.Event) -> None:
        """What is left to do for that request takes longer than others should wait for it."""
        with self._changed:
            self._arrivals.came(cancelled)

    def submit(self, job: Job[Any], *, wait: bool = False) -> None:
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
                timeout=job.caller.left_s() if wait else 0,
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
            return self._throughput.drain_s(len(self._waiting) + len(self._running))

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
        self._arrivals.came(job.cancelled)
        if expects_company or busy:
            self._arrivals.met()
        self._ensure_thread()  # first: a job must not be left behind where none can be started
        job.queued_at = time.monotonic()
        self._waiting.push(job)
        self._changed.notify_all()

    def cancel(self, job: Job[Any]) -> None:
        """Give a job up: out of the queue at once, out of a running batch at the next token."""
        self._end(job)
        with self._changed:
            if self._waiting.remove(job):
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
                    self._end(job)
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
                self._end(job)
            self._drop_waiting(GuardClosedError("the guard was closed"))
            self._changed.notify_all()

    def join(self, timeout: float) -> None:
        """Wait for the thread of a stopped worker."""
        if self._thread is not None:
            self._thread.join(timeout)

    def _end(self, job: Job[Any]) -> None:
        """Tell a job, which may be running, that nobody waits for it."""
        job.cancelled.set()

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
                self._throughput.ran(ran, time.monotonic() - started)
            if len(batch) > 1:
                self._arrivals.shared()
            self._changed.notify_all()
        return bool(batch)

    def _next_batch(self) -> list[Job[Any]]:
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

    def _crowded(self, first: Job[Any]) -> bool:
        """Whether more jobs than `first` may be expected soon."""
        return self._arrivals.is_expected(first.limits.batch_wait_s) or len(self._waiting) > 0

    def _gather(self, batch: list[Job[Any]]) -> None:
        """Move waiting jobs of the batch's kind into it, in turn."""
        while len(batch) < batch[0].limits.batch:
            job = self._waiting.companion(batch)
            if job is None:
                return
            batch.append(job)
            self._waiting.take(job)


_WORKERS: WeakKeyDictionary[nn.Module, tuple[ModelWorker, int]] = WeakKeyDictionary()
_LOCK = threading.RLock()  # the garbage collector may release a lease while another is taken


class WorkerLease:
    """A guard's share of its model's worker; the last one to be released stops the thread."""

    def __init__(self, model: nn.Module) -> None:
        with _LOCK:
            worker, users = _WORKERS.get(model) or (ModelWorker(), 0)
            _WORKERS[model] = (worker, users + 1)
        self.worker = worker
        self._model: nn.Module | None = model

    def release(self) -> None:
        """Give the share back; safe to call twice."""
        with _LOCK:
            model, self._model = self._model, None
            if model is None:
                return
            worker, users = _WORKERS[model]
            if users > 1:
                _WORKERS[model] = (worker, users - 1)
                return
            del _WORKERS[model]
        worker.stop()


def run_in_turn(model: nn.Module, work: Callable[[], T], limits: Limits) -> T:
    """What `work` returns, run between the requests of the guards on `model`; blocks until then.

    Its errors are raised here. Work that has begun runs to its end even when nobody waits for it.

    Raises:
        RequestTimeoutError: `limits.timeout_s` is over, in the queue or at work.
    """
    lease = WorkerLease(model)
    deadline = None if limits.timeout_s is None else time.monotonic() + limits.timeout_s

    def run(jobs: Sequence[Job[T]]) -> None:
        for job in jobs:
            job.settle(work())

    job: Job[T] = Job(run=run, owner=lease, limits=limits, caller=Caller(deadline=deadline))
    try:
        lease.worker.submit(job, wait=True)
    except BaseException:
        lease.release()
        raise
    # Not before the work has ended: until then the thread must remain the model's only one.
    job.future.add_done_callback(lambda _done: lease.release())
    try:
        return job.result("the time was over before the model's turn ended")
    finally:
        lease.worker.cancel(job)


@atexit.register
def _end_all() -> None:
    """The interpreter ends: a thread that is inside the model then would abort the process."""
    with _LOCK:
        workers = [worker for worker, _ in _WORKERS.values()]
    for worker in workers:
        worker.stop()
    for worker in workers:
        worker.join(_EXIT_WAIT_S)


def _forked() -> None:
    """A child has the workers without their threads; it must not answer its parent's requests."""
    global _LOCK
    _LOCK = threading.RLock()  # a thread that is not here may have held it
    for worker, _ in _WORKERS.values():
        worker.forget()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forked)
