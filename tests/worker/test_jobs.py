"""One job and one batch, without the worker's thread."""

from __future__ import annotations

import gc
import threading
import weakref

import pytest

from guardrail.errors import RequestCancelledError, RequestTimeoutError
from guardrail.policy import Limits
from guardrail.worker.jobs import Caller, Job, run_batch


def test_a_caller_waits_until_the_time_is_over_or_it_gives_up():
    given_up = threading.Event()
    Caller(cancelled=given_up).still_waits()
    with pytest.raises(RequestTimeoutError):
        Caller(deadline=0.0, cancelled=given_up).still_waits()
    given_up.set()
    with pytest.raises(RequestCancelledError):
        Caller(cancelled=given_up).still_waits()


def test_what_a_failed_batch_held_is_free_before_its_requests_run_alone():
    class Cache:
        pass

    held: list[weakref.ref[Cache]] = []
    alive: list[int] = []

    def run(jobs):
        alive.append(sum(cache() is not None for cache in held))
        try:
            work(jobs)
        except MemoryError as error:
            raise RuntimeError("out of memory") from error

    def work(jobs):
        cache = Cache()
        held.append(weakref.ref(cache))
        if len(jobs) > 1 or jobs[0].owner == "large":
            raise MemoryError
        jobs[0].settle(jobs[0].owner)

    jobs = [Job(run=run, owner=owner, limits=Limits()) for owner in ("small", "large", "other")]
    gc.disable()  # memory of an accelerator does not wait for the collector
    try:
        run_batch(jobs)
    finally:
        gc.enable()
    assert alive == [0, 0, 0, 0]
    assert [jobs[0].future.result(0), jobs[2].future.result(0)] == ["small", "other"]
    with pytest.raises(RuntimeError, match="out of memory"):
        jobs[1].future.result(0)
