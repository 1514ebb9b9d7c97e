"""Work between the requests of a model's guards."""

from __future__ import annotations

import threading

import pytest
from torch import nn

from guardrail.errors import RequestTimeoutError
from guardrail.model.leases import WorkerLease
from guardrail.model.turns import run_in_turn
from guardrail.policy import Limits
from tests.waiting import LONG_S, until


def test_work_runs_on_the_models_thread_and_its_result_comes_back():
    model = nn.Linear(1, 1)
    with_lease = WorkerLease(model)
    try:
        names = [
            run_in_turn(model, lambda: threading.current_thread().name, Limits()) for _ in range(2)
        ]
    finally:
        with_lease.release()
    assert names == ["guardrail-model"] * 2


@pytest.mark.parametrize("error", [ValueError("no"), TimeoutError("of its own")])
def test_an_error_of_the_work_is_raised_here(error):
    def fail() -> None:
        raise error

    with pytest.raises(type(error), match=str(error)):
        run_in_turn(nn.Linear(1, 1), fail, Limits())


def test_waiting_ends_with_the_time_and_the_thread_stays_the_only_one():
    model, free, done = nn.Linear(1, 1), threading.Event(), threading.Event()

    def slow() -> None:
        free.wait(LONG_S)
        done.set()

    with pytest.raises(RequestTimeoutError, match="the time was over"):
        run_in_turn(model, slow, Limits(timeout_s=0.05))
    later = WorkerLease(model)  # of a new guard, while the work still runs
    try:
        free.set()
        order = run_in_turn(model, done.is_set, Limits())
    finally:
        later.release()
    assert order  # it ran after the slow work, not beside it


def test_work_in_the_queue_is_dropped_when_the_time_is_over():
    model, free = nn.Linear(1, 1), threading.Event()
    ran: list[int] = []
    first = threading.Thread(target=run_in_turn, args=(model, lambda: free.wait(LONG_S), Limits()))
    lease = WorkerLease(model)
    first.start()
    until(lambda: lease.worker._running)
    with pytest.raises(RequestTimeoutError):
        run_in_turn(model, lambda: ran.append(1), Limits(timeout_s=0.02))
    assert not lease.worker._waiting  # its place is free at once, not when its turn comes
    free.set()
    first.join(LONG_S)
    run_in_turn(model, lambda: ran.append(2), Limits())
    lease.release()
    assert ran == [2]
