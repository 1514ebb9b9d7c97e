from __future__ import annotations

import ctypes
import gc
import threading
import time
import weakref
from concurrent.futures import ThreadPoolExecutor

import pytest
from torch import nn

from guardrail.errors import (
    GuardClosedError,
    ModelError,
    QueueFullError,
    RequestCancelledError,
    RequestTimeoutError,
)
from guardrail.policy import Limits
from guardrail.types import Load
from guardrail.worker.jobs import Caller, Job, run_batch
from guardrail.worker.worker import _WORKERS, ModelWorker, WorkerLease, run_in_turn
from tests.waiting import LONG_S, until

LIMITS = Limits(queue=3, batch=4, batch_wait_s=0.0)
WAIT = LONG_S


@pytest.fixture
def worker():
    worker = ModelWorker()
    yield worker
    worker.stop()


class Gate:
    """A job that holds the thread until it is let go."""

    def __init__(self, worker, **options):
        self.entered, self.open = threading.Event(), threading.Event()
        options = {"owner": None, "limits": LIMITS} | options
        self.job = Job(run=self._run, **options)
        worker.submit(self.job)
        assert self.entered.wait(WAIT)

    def _run(self, jobs):
        self.entered.set()
        assert self.open.wait(WAIT)
        for job in jobs:
            job.settle("gate")


def echo(batches=None, *, poison=None):
    """A runner that records its batches and fails when a poisoned job is in one."""

    def run(jobs):
        if batches is not None:
            batches.append(len(jobs))
        if poison is not None and any(poison(job) for job in jobs):
            raise ValueError("poison")
        for job in jobs:
            job.settle(job.owner)

    return run


def job(run, owner="x", **options):
    return Job(run=run, owner=owner, **({"limits": LIMITS} | options))


def until_in(seconds):
    return Caller(deadline=time.monotonic() + seconds)


def test_waiting_jobs_of_one_kind_share_a_batch_and_others_do_not(worker):
    gate = Gate(worker)
    batches: list[int] = []
    run = echo(batches)
    limits = Limits(queue=9, batch=3, batch_wait_s=0.0)
    jobs = [job(run, n, key=k, limits=limits) for n, k in enumerate("ABAAA")]
    jobs.append(job(run, 5, key=None, limits=limits))
    jobs.append(job(run, 6, key=None, limits=limits))
    for each in jobs:
        worker.submit(each)
    gate.open.set()
    assert [each.future.result(WAIT) for each in jobs] == list(range(7))
    assert batches == [3, 1, 1, 1, 1]


def test_a_job_that_came_while_another_ran_waits_a_moment_for_company(worker):
    gate = Gate(worker)
    batches: list[int] = []
    run = echo(batches)
    limits = Limits(batch=2, batch_wait_s=WAIT)
    first, second = (job(run, n, key="A", limits=limits) for n in (1, 2))
    worker.submit(first)
    gate.open.set()
    until(lambda: not worker._waiting)  # the first one is picked
    worker.submit(second)
    assert second.future.result(WAIT / 2) == 2
    assert batches == [2]


def test_a_lone_caller_does_not_wait_for_company(worker):
    limits = Limits(batch=8, batch_wait_s=WAIT)
    for number in range(3):
        alone = job(echo(), number, key="A", limits=limits)
        worker.submit(alone)
        assert alone.future.result(WAIT / 2) == number


def test_a_job_waits_for_a_request_that_is_being_read_and_not_for_its_own(worker):
    batches: list[int] = []
    limits = Limits(batch=2, batch_wait_s=WAIT)
    alone, first, second = (job(echo(batches), n, key="A", limits=limits) for n in range(3))
    with worker.expecting(alone.cancelled):
        worker.submit(alone)
        assert alone.future.result(WAIT / 2) == 0
    with worker.expecting(first.cancelled), worker.expecting(second.cancelled):
        worker.submit(first)
        until(lambda: not worker._waiting)
        worker.submit(second)
    assert second.future.result(WAIT / 2) == 2
    assert batches == [1, 2]


def test_jobs_out_of_a_list_wait_for_company_from_the_first_one_on(worker):
    batches: list[int] = []
    limits = Limits(batch=2, batch_wait_s=WAIT)
    jobs = [job(echo(batches), n, key="A", limits=limits) for n in (1, 2)]
    for each in jobs:
        worker.submit(each, wait=True)
    assert jobs[1].future.result(WAIT / 2) == 2
    assert batches == [2]


def test_callers_that_ask_again_and_again_at_once_share_batches(worker):
    batches: list[int] = []
    settle = echo(batches)
    limits = Limits(batch=8, batch_wait_s=1.0)

    def run(jobs):
        time.sleep(0.005)
        settle(jobs)

    def ask(_):
        for _ in range(5):
            one = job(run, "x", key="A", limits=limits)
            worker.submit(one)
            one.future.result(WAIT)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(ask, range(8)))
    assert sum(batches) == 40
    assert len(batches) <= 15


def test_an_error_reaches_only_the_job_that_caused_it(worker):
    gate = Gate(worker)
    run = echo(poison=lambda each: each.owner == 1)
    jobs = [job(run, n, key="A") for n in range(3)]
    for each in jobs:
        worker.submit(each)
    gate.open.set()
    assert [jobs[0].future.result(WAIT), jobs[2].future.result(WAIT)] == [0, 2]
    with pytest.raises(ValueError, match="poison"):
        jobs[1].future.result(WAIT)


def test_a_job_whose_answer_has_begun_is_not_run_again(worker):
    gate = Gate(worker)
    runs: list[int] = []

    def run(jobs):
        runs.append(len(jobs))
        jobs[0].begun = True
        if len(jobs) > 1:
            raise ValueError("late")
        jobs[0].settle("fine")

    jobs = [job(run, n, key="A") for n in range(2)]
    for each in jobs:
        worker.submit(each)
    gate.open.set()
    with pytest.raises(ValueError, match="late"):
        jobs[0].future.result(WAIT)
    assert jobs[1].future.result(WAIT) == "fine"
    assert runs == [2, 1]


def test_the_worker_survives_even_an_exit(worker):
    def leave(jobs):
        raise SystemExit(3)

    bad, good = job(leave), job(echo(), "good")
    worker.submit(bad)
    worker.submit(good)
    with pytest.raises(ModelError, match="SystemExit") as caught:
        bad.future.result(WAIT)  # not the exit itself: it would end the caller's thread
    assert isinstance(caught.value.__cause__, SystemExit)
    assert good.future.result(WAIT) == "good"


def test_a_full_queue_says_so_and_waiting_for_a_place_works(worker):
    gate = Gate(worker)
    jobs = [job(echo(), n) for n in range(3)]
    for each in jobs:
        worker.submit(each)
    with pytest.raises(QueueFullError, match="3 requests are waiting, the policy allows 3"):
        worker.submit(job(echo()))
    late = job(echo(), "late", caller=until_in(0.05))
    with pytest.raises(RequestTimeoutError, match="a place"):
        worker.submit(late, wait=True)
    patient = job(echo(), "patient")
    thread = threading.Thread(target=worker.submit, args=(patient,), kwargs={"wait": True})
    thread.start()
    gate.open.set()
    assert patient.future.result(WAIT) == "patient"
    thread.join(WAIT)


def test_requests_that_ended_while_they_waited_do_not_make_the_model_look_fast(worker):
    worker._throughput.ran(1, 40.0)
    gate = Gate(worker)
    given_up = [job(echo(), n) for n in range(3)]
    for each in given_up:
        worker.submit(each)
        each.cancelled.set()
    pace = worker._throughput.drain_s(1)
    gate.open.set()
    for each in given_up:
        with pytest.raises(RequestCancelledError):
            each.future.result(WAIT)
    last = Gate(worker)  # by now the batch of nobody is on the books
    assert worker._throughput.drain_s(1) == pytest.approx(
        pace * 0.75, rel=0.05
    )  # the gate's own part
    last.open.set()


def test_one_client_cannot_take_the_last_places_from_the_others(worker):
    gate = Gate(worker)
    limits = Limits(queue=8, batch=1)
    mine = [job(echo(), n, caller=Caller(client="a"), limits=limits) for n in range(6)]
    for each in mine:
        worker.submit(each)
    with pytest.raises(QueueFullError, match="this client has 6 requests waiting") as caught:
        worker.submit(job(echo(), caller=Caller(client="a"), limits=limits))
    assert (caught.value.whose, caught.value.retry_after_s) == ("client", 1)
    others = [job(echo(), name, caller=Caller(client=name), limits=limits) for name in "bc"]
    for each in others:
        worker.submit(each)
    with pytest.raises(QueueFullError, match="8 requests are waiting") as caught:
        worker.submit(job(echo(), caller=Caller(client="d"), limits=limits))
    assert caught.value.whose == "all"
    gate.open.set()
    assert [each.future.result(WAIT) for each in (*mine, *others)] == [*range(6), "b", "c"]


def test_who_names_no_client_may_use_every_place(worker):
    gate = Gate(worker)
    limits = Limits(queue=8, batch=1)
    for number in range(8):
        worker.submit(job(echo(), number, limits=limits))
    with pytest.raises(QueueFullError, match="8 requests are waiting"):
        worker.submit(job(echo(), limits=limits))
    gate.open.set()


def test_the_single_request_of_a_client_is_in_the_next_batch(worker):
    gate = Gate(worker)
    batches: list[list[object]] = []

    def run(jobs):
        batches.append([each.client for each in jobs])
        for each in jobs:
            each.settle(None)

    limits = Limits(queue=100, batch=4, batch_wait_s=0.0)
    jobs = [job(run, caller=Caller(client="a"), key="A", limits=limits) for _ in range(60)]
    jobs.append(job(run, caller=Caller(client="b"), key="A", limits=limits))
    for each in jobs:
        worker.submit(each)
    gate.open.set()
    for each in jobs:
        each.future.result(WAIT)
    assert batches[0] == ["a", "b", "a", "a"]


def test_a_verdict_goes_before_answers_that_came_earlier(worker):
    gate = Gate(worker)
    order: list[object] = []

    def run(jobs):
        order.extend(each.owner for each in jobs)
        for each in jobs:
            each.settle(None)

    jobs = [job(run, n) for n in range(2)] + [job(run, "verdict", quick=True)]
    for each in jobs:
        worker.submit(each)
    gate.open.set()
    for each in jobs:
        each.future.result(WAIT)
    assert order == ["verdict", 0, 1]


def test_the_load_counts_who_waits_and_who_runs(worker):
    assert worker.load(LIMITS) == Load(waiting=0, running=0, places=3)
    gate = Gate(worker)
    worker.submit(waiting := job(echo()))
    assert worker.load(LIMITS) == Load(waiting=1, running=1, places=3)
    gate.open.set()
    waiting.future.result(WAIT)
    gate.job.future.result(WAIT)
    assert worker.load(LIMITS).waiting == 0


def test_the_load_tells_of_a_model_that_does_not_come_back(worker):
    gate = Gate(worker)
    assert worker.load(LIMITS).overdue_s == 0
    gate.job.caller = Caller(deadline=time.monotonic() - 40)
    assert worker.load(LIMITS).overdue_s >= 40
    gate.open.set()
    gate.job.future.result(WAIT)
    worker.submit(last := job(echo()))
    last.future.result(WAIT)
    assert worker.load(LIMITS).overdue_s == 0


def test_a_job_knows_how_long_it_waited_and_ran(worker):
    gate = Gate(worker)
    seen: list[float] = []

    def run(jobs):
        time.sleep(0.002)
        seen.append(jobs[0].running_s)
        jobs[0].settle(None)

    worker.submit(waiting := job(run))
    time.sleep(0.01)
    gate.open.set()
    waiting.future.result(WAIT)
    assert waiting.queue_s >= 0.01
    assert 0.002 <= seen[0] < WAIT


def kill(thread):
    """Raise SystemExit in a thread, wherever it is."""
    ident = ctypes.c_ulong(thread.ident)
    assert ctypes.pythonapi.PyThreadState_SetAsyncExc(ident, ctypes.py_object(SystemExit)) == 1


def test_requests_that_wait_when_the_thread_is_killed_run_on_another_one(worker, monkeypatch):
    worker.submit(first := job(echo(), "first"))
    assert first.future.result(WAIT) == "first"
    killed, entered = worker._thread, threading.Event()

    def stuck(batch):
        if threading.current_thread() is killed:  # others' workers come here, too
            entered.set()
            until(lambda: False)
        run_batch(batch)

    monkeypatch.setattr("guardrail.worker.worker.run_batch", stuck)
    jobs = [job(echo(), n) for n in range(3)]
    worker.submit(jobs[0])
    assert entered.wait(WAIT)
    for each in jobs[1:]:
        worker.submit(each)
    kill(killed)
    with pytest.raises(ModelError, match="SystemExit"):
        jobs[0].future.result(WAIT)
    assert [each.future.result(WAIT) for each in jobs[1:]] == [1, 2]
    killed.join(WAIT)
    assert worker._thread is not killed


def test_a_thread_that_cannot_do_anything_fails_who_waits_and_a_later_one_starts(
    worker, monkeypatch
):
    def broken():
        raise ZeroDivisionError("fault")

    with monkeypatch.context() as patched:
        patched.setattr(worker, "_next_batch", broken)
        worker.submit(lost := job(echo()))
        with pytest.raises(ZeroDivisionError):
            lost.future.result(WAIT)
    assert worker.load(LIMITS).waiting == 0
    worker.submit(found := job(echo(), "found"))
    assert found.future.result(WAIT) == "found"


def test_an_idle_thread_that_was_killed_is_replaced(worker):
    worker.submit(first := job(echo(), 1))
    first.future.result(WAIT)
    kill(worker._thread)
    for number in range(3):
        worker.submit(each := job(echo(), number))
        try:
            assert each.future.result(WAIT) == number
        except ModelError:  # the kill found it at work
            assert number == 0


def test_a_job_is_refused_where_no_thread_can_be_started(worker, monkeypatch):
    def full(_thread):
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", full)
        with pytest.raises(RuntimeError, match="new thread"):
            worker.submit(job(echo()))
    assert worker.load(LIMITS).waiting == 0


def test_who_waits_leaves_the_rest_of_the_places_to_who_would_be_refused(worker):
    gate = Gate(worker)
    listed = [job(echo(), n) for n in range(2)]
    for each in listed:
        worker.submit(each, wait=True)
    with pytest.raises(RequestTimeoutError, match="a place"):
        worker.submit(job(echo(), caller=until_in(0.02)), wait=True)
    single = job(echo(), "single")
    worker.submit(single)
    gate.open.set()
    assert [each.future.result(WAIT) for each in (*listed, single)] == [0, 1, "single"]


def test_a_cancelled_job_leaves_the_queue_at_once(worker):
    gate = Gate(worker)
    jobs = [job(echo(), n) for n in range(3)]
    for each in jobs:
        worker.submit(each)
    worker.cancel(jobs[1])
    with pytest.raises(RequestCancelledError):
        jobs[1].future.result(WAIT)
    worker.submit(job(echo()))  # its place is free
    gate.open.set()
    assert jobs[2].future.result(WAIT) == 2


def test_a_job_whose_time_is_over_is_not_started(worker):
    gate = Gate(worker)
    batches: list[int] = []
    late = job(echo(batches), caller=until_in(0.01))
    worker.submit(late)
    time.sleep(0.02)
    gate.open.set()
    with pytest.raises(RequestTimeoutError):
        late.future.result(WAIT)
    assert batches == []


def test_leaving_ends_an_owners_jobs_and_nobody_elses(worker):
    mine, other = ModelWorker(), ModelWorker()  # any two objects
    gate = Gate(worker, owner=mine)
    queued, theirs = job(echo(), mine), job(echo(), other)
    worker.submit(queued)
    worker.submit(theirs)
    closer = threading.Thread(target=worker.leave, args=(mine,), kwargs={"timeout": WAIT})
    closer.start()
    with pytest.raises(GuardClosedError):
        queued.future.result(WAIT)
    assert gate.job.cancelled.wait(WAIT)
    assert closer.is_alive()  # it waits until its running job is over
    gate.open.set()
    closer.join(WAIT)
    assert not closer.is_alive()
    assert theirs.future.result(WAIT) is other
    with pytest.raises(GuardClosedError):
        worker.submit(job(echo(), mine))


def test_a_stopped_worker_refuses_jobs_and_ends_its_thread(worker):
    worker.submit(job(echo()))
    thread = worker._thread
    worker.stop()
    thread.join(WAIT)
    assert not thread.is_alive()
    with pytest.raises(GuardClosedError):
        worker.submit(job(echo()))


def test_asking_from_the_models_own_thread_is_an_error_not_a_deadlock(worker):
    def run(jobs):
        worker.submit(job(echo()))

    asking = job(run)
    worker.submit(asking)
    with pytest.raises(RuntimeError, match="callback"):
        asking.future.result(WAIT)


def test_nothing_of_a_job_is_kept_after_it(worker):
    class Owner:
        pass

    owner = Owner()
    first = job(echo(), owner)
    worker.submit(first)
    first.future.result(WAIT)
    second = job(echo(), "next")
    worker.submit(second)
    second.future.result(WAIT)
    gone = weakref.ref(owner)
    del owner, first
    gc.collect()
    assert gone() is None


def test_guards_on_one_model_share_its_worker_until_the_last_has_left():
    model = nn.Linear(1, 1)
    first, second = WorkerLease(model), WorkerLease(model)
    assert first.worker is second.worker
    assert WorkerLease(nn.Linear(1, 1)).worker is not first.worker
    first.worker.submit(job(echo()))
    thread = first.worker._thread
    first.release()
    first.release()
    assert second.worker._thread.is_alive()
    second.release()
    thread.join(WAIT)
    assert not thread.is_alive()
    assert model not in _WORKERS


def test_a_worker_does_not_keep_its_model_alive():
    model = nn.Linear(1, 1)
    gone = weakref.ref(model)
    lease = WorkerLease(model)
    lease.release()
    del model
    gc.collect()
    assert gone() is None


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
