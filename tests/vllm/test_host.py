"""The queue before an engine that runs many requests at once, on jobs that only wait."""

from __future__ import annotations

import asyncio
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest

from guardrail.errors import (
    GuardClosedError,
    ModelError,
    QueueFullError,
    RequestCancelledError,
    RequestTimeoutError,
)
from guardrail.policy import Limits
from guardrail.vllm.host import HostWorker
from guardrail.worker.jobs import Caller, Job

if TYPE_CHECKING:
    from collections.abc import Iterator

OWNER = type("Owner", (), {})()
ROOM = 3


@pytest.fixture
def worker() -> Iterator[HostWorker]:
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    made = HostWorker(ROOM, loop)
    yield made
    made.stop()
    made.join(5)
    loop.call_soon_threadsafe(loop.stop)
    thread.join(5)
    loop.close()


class Engine:
    """Answers when it is let go on; notes how many it had at once, and whose turn came when."""

    def __init__(self) -> None:
        self.going = threading.Event()
        self.now = self.most = 0
        self.begun: list[str | None] = []
        self.ended = 0

    async def run(self, jobs: Any) -> None:
        (job,) = jobs
        self.begun.append(job.client)
        self.now += 1
        self.most = max(self.most, self.now)
        try:
            while not self.going.is_set():
                await asyncio.sleep(0.005)
            job.settle(job.client)
        finally:
            self.now -= 1
            self.ended += 1

    def job(self, client: str | None = None, **more: Any) -> Job[Any]:
        deadline = more.pop("deadline", None)
        limits = Limits(**{"queue": 16, **more})
        caller = Caller(client=client, deadline=deadline)
        return Job(run=self.run, owner=OWNER, limits=limits, caller=caller)


def until(true: Any) -> None:
    end = time.monotonic() + 10
    while not true():
        assert time.monotonic() < end
        time.sleep(0.005)


def test_as_many_run_as_there_is_room_and_the_rest_waits_its_turn(worker: HostWorker) -> None:
    engine = Engine()
    jobs = [engine.job(client) for client in ("a", "a", "a", "a", "b", "a")]
    for job in jobs:
        worker.submit(job)
    until(lambda: engine.now == ROOM)
    load = worker.load(Limits())
    assert (load.running, load.waiting) == (ROOM, len(jobs) - ROOM)
    engine.going.set()
    assert [job.result() for job in jobs] == ["a", "a", "a", "a", "b", "a"]
    assert engine.most == ROOM
    assert engine.begun.index("b") < len(jobs) - 1  # it came after four of the other's
    until(lambda: worker.load(Limits()).running == 0)


def test_a_request_that_is_given_up_ends_at_once_and_makes_room(worker: HostWorker) -> None:
    engine = Engine()
    jobs = [engine.job() for _ in range(ROOM + 1)]
    for job in jobs:
        worker.submit(job)
    until(lambda: engine.now == ROOM)
    worker.cancel(jobs[0])
    with pytest.raises(RequestCancelledError):
        jobs[0].result()
    until(lambda: engine.ended == 1 and engine.now == ROOM)  # the one that waited runs
    worker.cancel(jobs[0])  # once more does nothing
    engine.going.set()
    assert [job.result() for job in jobs[1:]] == [None] * ROOM


def test_time_counts_in_the_queue_and_in_the_engine(worker: HostWorker) -> None:
    engine = Engine()
    late = [engine.job(deadline=time.monotonic() + 0.2) for _ in range(ROOM + 2)]
    for job in late:
        worker.submit(job)
    for job in late:
        with pytest.raises(RequestTimeoutError):
            job.future.result(timeout=10)
    until(lambda: engine.now == 0 and worker.load(Limits()).running == 0)


def test_an_error_is_its_own_requests_and_the_queue_goes_on(worker: HostWorker) -> None:
    engine = Engine()

    async def breaks(jobs: Any) -> None:
        raise ModelError("no")

    broken = Job[Any](run=breaks, owner=OWNER, limits=Limits(), caller=Caller())
    worker.submit(broken)
    with pytest.raises(ModelError, match="no"):
        broken.result()
    engine.going.set()
    whole = engine.job("a")
    worker.submit(whole)
    assert whole.result() == "a"


def test_a_full_queue_and_an_owner_that_left_take_nothing(worker: HostWorker) -> None:
    engine = Engine()
    for _ in range(ROOM + 2):
        worker.submit(engine.job(queue=2 + ROOM))
    until(lambda: engine.now == ROOM)
    with pytest.raises(QueueFullError):
        worker.submit(engine.job(queue=2))
    worker.leave(OWNER, timeout=5)
    assert engine.now == 0
    with pytest.raises(GuardClosedError):
        worker.submit(engine.job())
