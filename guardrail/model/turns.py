"""Any work on a model, in its turn on the one thread that owns it."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, TypeVar

from guardrail.errors import RequestTimeoutError
from guardrail.model.jobs import Job
from guardrail.model.leases import WorkerLease

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import nn

    from guardrail.policy import Limits

T = TypeVar("T")


def run_in_turn(model: nn.Module, work: Callable[[], T], limits: Limits) -> T:
    """What `work` returns, run between the requests of the guards on `model`; blocks until then.

    Its errors are raised here. Work that has begun runs to its end even when nobody waits for it.

    Raises:
        RequestTimeoutError: `limits.timeout_s` is over, in the queue or at work.
    """
    lease = WorkerLease(model)
    deadline = None if limits.timeout_s is None else time.monotonic() + limits.timeout_s

    def run(jobs: Sequence[Any]) -> None:
        for job in jobs:
            job.settle(work())

    job: Job[T] = Job(run=run, owner=lease, limits=limits, deadline=deadline)
    try:
        lease.worker.submit(job, wait=True)
    except BaseException:
        lease.release()
        raise
    # Not before the work has ended: until then the thread must remain the model's only one.
    job.future.add_done_callback(lambda _done: lease.release())
    try:
        left = None if deadline is None else max(deadline - time.monotonic(), 0)
        return job.future.result(timeout=left)
    except TimeoutError:
        if job.future.done():  # the work's own error, or settled at the last moment
            return job.future.result()
        raise RequestTimeoutError("the time was over before the model's turn ended") from None
    finally:
        lease.worker.cancel(job)
