"""The one thread that may touch a model, and the queue in front of it.

All guards on a model share its thread. Waiting requests of a like kind are answered together; an
error in a batch is pinned on the request that causes it by running the others again alone.
"""

from __future__ import annotations

import atexit
import logging
import math
import threading
import time
from collections import deque
from contextlib import suppress
from typing import TYPE_CHECKING, Any, TypeVar
from weakref import WeakKeyDictionary, WeakSet

from guardrail.errors import (
    GuardClosedError,
    QueueFullError,
    RequestCancelledError,
    RequestTimeoutError,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import nn

    from guardrail.model.jobs import Job

log = logging.getLogger(__name__)

T = TypeVar("T")
_EXIT_WAIT_S = 10.0


class ModelWorker:
    """A queue and its thread; the thread starts with the first job and ends with `stop`."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._waiting: deque[Job[object]] = deque()
        self._running: tuple[Job[object], ...] = ()
        self._thread: threading.Thread | None = None
        self._stopped = False
        self._departed: WeakSet[object] = WeakSet()
        # Signs that several callers are about; only then is waiting for company worth its time.
        self._met = False  # a job came while another was unanswered, or out of a list
        self._shared_at = -math.inf  # when the last batch of more than one job ended

    def submit(self, job: Job[T], *, wait: bool = False) -> None:
        """Queue a job; with `wait`, until its deadline if none of the first half of places is free.

        The rest is for those who would be refused while long lists and long videos wait.

        Raises:
            QueueFullError: no place is free.
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
                raise QueueFullError(f"{found}; try again later or raise `limits.queue`")
            busy = any(not other.future.done() for other in self._running)
            self._met = self._met or wait or busy
            self._waiting.append(job)  # type: ignore[arg-type]  # a queue of jobs of any result
            self._ensure_thread()
            self._changed.notify_all()

    def cancel(self, job: Job[T]) -> None:
        """Give a job up: out of the queue at once, out of a running batch at the next token."""
        job.cancelled.set()
        with self._changed:
            with suppress(ValueError):
                self._waiting.remove(job)  # type: ignore[arg-type]
                job.fail(RequestCancelledError("the request was given up"))
            self._changed.notify_all()

    def leave(self, owner: object, *, timeout: float) -> None:
        """Take no more jobs of an owner, end those there are, wait until none of them runs."""
        with self._changed:
            self._departed.add(owner)
            for job in [job for job in self._waiting if job.owner is owner]:
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
            while self._waiting:
                self._waiting.popleft().fail(GuardClosedError("the guard was closed"))
            self._changed.notify_all()

    def join(self, timeout: float) -> None:
        """Wait for the thread of a stopped worker."""
        if self._thread is not None:
            self._thread.join(timeout)

    def _refuses(self, job: Job[Any]) -> bool:
        return self._stopped or job.owner in self._departed

    def _ensure_thread(self) -> None:
        """Start the thread, again if need be: a forked child inherits none."""
        if self._thread is None or not self._thread.is_alive():
            self._thread = threading.Thread(target=self._loop, name="guardrail-model", daemon=True)
            self._thread.start()

    def _loop(self) -> None:
        while self._work():
            pass  # one call per batch, so that nothing of a batch outlives it in a local variable

    def _work(self) -> bool:
        """Run the next batch; false when there will be none."""
        batch = self._next_batch()
        try:
            _run(batch)
        finally:
            with self._changed:
                self._running = ()
                if len(batch) > 1:
                    self._shared_at = time.monotonic()
                self._changed.notify_all()
        return bool(batch)

    def _next_batch(self) -> list[Job[object]]:
        """The oldest job and those that may share its batch; empty when stopped."""
        with self._changed:
            self._changed.wait_for(lambda: self._stopped or len(self._waiting) > 0)
            if not self._waiting:
                return []
            batch = [self._waiting.popleft()]
            self._running = tuple(batch)
            first = batch[0]
            until = time.monotonic() + (first.limits.batch_wait_s if self._crowded(first) else 0)
            while first.key is not None:
                self._gather(batch)
                self._running = tuple(batch)
                self._changed.notify_all()  # places have become free
                left = until - time.monotonic()
                if len(batch) >= first.limits.batch or left <= 0 or self._stopped:
                    break
                self._changed.wait(left)
            return batch

    def _crowded(self, first: Job[object]) -> bool:
        """Whether more jobs than `first` may be expected soon."""
        met, self._met = self._met, False
        recent = time.monotonic() - self._shared_at < first.limits.batch_wait_s
        return met or recent or len(self._waiting) > 0

    def _gather(self, batch: list[Job[object]]) -> None:
        """Move waiting jobs of the batch's kind into it, oldest first."""
        for job in list(self._waiting):
            if len(batch) < batch[0].limits.batch and job.key == batch[0].key:
                self._waiting.remove(job)
                batch.append(job)


def _run(batch: Sequence[Job[object]]) -> None:
    """Run a batch; if it fails, each of its jobs alone."""
    jobs = [job for job in batch if job.start()]
    if not jobs:
        return
    try:
        jobs[0].run(jobs)
    except BaseException as error:  # the border of the thread: it must outlive any request
        left = [job for job in jobs if not job.future.done()]
        if len(jobs) == 1 or not left:
            log.debug("a request failed", exc_info=True)
            for job in left:
                job.fail(error)
            return
        what = type(error).__name__  # its words may quote a request
        log.warning("a batch of %d failed (%s); running its requests alone", len(jobs), what)
        for job in left:
            if job.begun:
                job.fail(error)
            else:
                _run([job])


def _left(deadline: float | None) -> float | None:
    return None if deadline is None else max(deadline - time.monotonic(), 0)


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


@atexit.register
def _end_all() -> None:
    """The interpreter ends: a thread that is inside the model then would abort the process."""
    with _LOCK:
        workers = [worker for worker, _ in _WORKERS.values()]
    for worker in workers:
        worker.stop()
    for worker in workers:
        worker.join(_EXIT_WAIT_S)
