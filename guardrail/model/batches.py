"""One batch on the model's thread: an error is pinned on the request that causes it."""

from __future__ import annotations

import logging
import traceback
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


def _run(jobs: Sequence[Job[object]]) -> Exception | None:
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
