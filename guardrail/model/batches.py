"""One batch on the model's thread: an error is pinned on the request that causes it."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from guardrail.errors import ModelError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from guardrail.model.jobs import Job

log = logging.getLogger(__name__)


def run_batch(batch: Sequence[Job[object]]) -> None:
    """Run a batch; if it fails, each of its jobs alone, but for those whose answer has begun."""
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
                job.fail(told(error))
            return
        what = type(error).__name__  # its words may quote a request
        log.warning("a batch of %d failed (%s); running its requests alone", len(jobs), what)
        for job in left:
            if job.begun:
                job.fail(told(error))
            else:
                run_batch([job])


def told(error: BaseException) -> Exception:
    """The error as a caller gets it: an exit asked for in here must not end the caller's thread."""
    if isinstance(error, Exception):
        return error
    what = f"the model's thread was told to end ({type(error).__name__}) by code that it runs"
    crash = ModelError(f"{what}; ask again, and look for hooks or callbacks that exit")
    crash.__cause__ = error
    return crash
