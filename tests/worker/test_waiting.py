"""Whose turn it is, how many places are whose, and what is expected to come."""

from __future__ import annotations

import time
from collections import Counter, deque
from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from guardrail.worker.waiting import Arrivals, FairQueue, Lanes, Throughput, within_share

BATCH = 4


@dataclass(eq=False)
class One:
    client: str | None = None
    key: str | None = "k"
    number: int = 0
    quick: bool = False


def batch_of(queue, limit=BATCH):
    """The next batch, as the worker takes it."""
    first = queue.next()
    if first is None:
        return []
    batch = [first]
    queue.take(first, leads=True)
    while len(batch) < limit and (job := queue.companion(batch)) is not None:
        batch.append(job)
        queue.take(job)
    return batch


def filled(*jobs):
    queue = FairQueue()
    for job in jobs:
        queue.push(job)
    return queue


def test_a_client_with_one_request_is_in_the_next_batch_behind_sixty_of_another():
    single = One("b")
    queue = filled(*(One("a") for _ in range(60)), single)
    assert single in batch_of(queue, 8)


def test_a_request_of_another_kind_leads_the_next_batch_but_one():
    single = One("b", "other kind")
    queue = filled(*(One("a") for _ in range(60)), single)
    assert single not in batch_of(queue)
    assert batch_of(queue) == [single]


def test_places_in_a_batch_go_round_and_each_clients_oldest_goes_first():
    jobs = [One(client, number=n) for client in "aab" for n in range(5)]
    for n, job in enumerate(jobs):
        job.number = n
    batch = batch_of(filled(*jobs), 6)
    assert Counter(job.client for job in batch) == {"a": 3, "b": 3}
    for client in "ab":
        numbers = [job.number for job in batch if job.client == client]
        assert numbers == sorted(numbers)
        assert numbers[0] == min(job.number for job in jobs if job.client == client)


def test_clients_that_were_not_in_the_last_batch_come_before_those_that_were():
    queue = filled(*(One(f"c{n % 20}") for n in range(200)))
    served = [job.client for _ in range(3) for job in batch_of(queue, 8)]
    assert set(served) == {f"c{n}" for n in range(20)}


def test_a_client_that_comes_back_gets_no_turn_before_one_that_waits():
    queue = filled(One("a"), One("b"), One("b"))
    assert [job.client for job in batch_of(queue, 2)] == ["a", "b"]
    queue.push(One("a"))
    assert queue.next().client == "b"


def test_a_job_without_a_kind_goes_alone():
    queue = filled(One("a", None), One("b", None))
    assert [len(batch_of(queue)) for _ in range(3)] == [1, 1, 0]


def test_what_was_removed_is_gone_and_a_second_time_makes_no_difference():
    job = One("a")
    queue = filled(job, One("b"))
    assert queue.held_by("a") == 1
    assert queue.remove(job)
    assert not queue.remove(job)
    assert (queue.held_by("a"), len(queue)) == (0, 1)
    assert job not in list(queue)


events = st.lists(
    st.one_of(
        st.tuples(st.just("push"), st.sampled_from(["a", "b", "c", None]), st.sampled_from("xyz")),
        st.tuples(st.just("batch"), st.integers(1, 5), st.none()),
        st.tuples(st.just("cancel"), st.integers(0, 50), st.none()),
    ),
    max_size=120,
)


@given(events)
@settings(max_examples=150, deadline=None)
def test_nothing_is_lost_nothing_runs_twice_and_batches_are_of_one_kind(steps):
    queue, made, ended = FairQueue(), [], Counter()
    for what, first, second in [*steps, *[("batch", 5, None)] * len(steps)]:
        if what == "push":
            made.append(One(first, second, len(made)))
            queue.push(made[-1])
        elif what == "batch":
            batch = batch_of(queue, first)
            assert len({job.key for job in batch}) <= 1
            assert len(batch) <= first
            ended.update(job.number for job in batch)
        elif made:
            job = made[first % len(made)]
            ended.update([job.number] if queue.remove(job) else [])
    assert len(queue) == 0
    assert ended == Counter(job.number for job in made)


@given(events)
@settings(max_examples=150, deadline=None)
def test_nobody_is_overtaken_by_more_batches_than_there_are_turns_before_it(steps):
    """At most (older ones of its client + 1) x (clients that wait at once) batches."""
    queue = FairQueue()
    since: dict[One, int] = {}
    allowed: dict[One, int] = {}
    most = 1
    batches = 0
    for what, first, second in [*steps, *[("batch", 2, None)] * len(steps)]:
        if what == "push":
            job = One(first, second)
            since[job], allowed[job] = batches, queue.held_by(first) + 1
            queue.push(job)
            most = max(most, len({one.client for one in queue}))
        elif what == "batch":
            batches += 1
            for job in batch_of(queue, first):
                assert batches - since[job] <= allowed[job] * most
    assert len(queue) == 0


@pytest.mark.parametrize("clients", [1, 3])
def test_one_kind_and_one_place_give_each_client_its_requests_in_order(clients):
    waiting = {f"c{n}": deque(One(f"c{n}", number=i) for i in range(4)) for n in range(clients)}
    queue = filled(*(job for jobs in waiting.values() for job in jobs))
    while batch := batch_of(queue, 1):
        assert waiting[batch[0].client].popleft() is batch[0]
    assert not any(waiting.values())


def in_lanes(*quick):
    lanes = Lanes()
    for each in quick:
        lanes.push(One(quick=each))
    return lanes


def test_a_verdict_waits_for_no_more_than_the_batch_that_runs():
    lanes = in_lanes(*[False] * 10)
    batch_of(lanes, 2)
    lanes.push(verdict := One(quick=True))
    assert batch_of(lanes, 2) == [verdict]


def test_while_both_wait_they_take_turns_and_share_no_batch():
    lanes = in_lanes(*[True] * 4, *[False] * 4)
    order = [{job.quick for job in batch_of(lanes, 2)} for _ in range(4)]
    assert order == [{True}, {False}, {True}, {False}]


def test_a_lane_alone_runs_on():
    lanes = in_lanes(*[False] * 4)
    assert [len(batch_of(lanes, 2)) for _ in range(3)] == [2, 2, 0]


def test_counts_and_removal_cover_both_lanes():
    lanes = in_lanes(True, False)
    jobs = list(lanes)
    assert (len(lanes), lanes.held_by(None), len(jobs)) == (2, 2, 2)
    assert all(lanes.remove(job) for job in jobs)
    assert not lanes.remove(jobs[0])
    assert (len(lanes), lanes.next()) == (0, None)


@given(st.lists(st.tuples(st.booleans(), st.sampled_from("abc"), st.sampled_from("xy"))))
@settings(max_examples=100, deadline=None)
def test_in_lanes_nothing_is_lost_or_runs_twice(given_jobs):
    lanes, ran = Lanes(), Counter()
    jobs = [One(client, key, quick=quick) for quick, client, key in given_jobs]
    for job in jobs:
        lanes.push(job)
    while batch := batch_of(lanes, 2):
        assert len({(job.quick, job.key) for job in batch}) == 1
        ran.update(map(id, batch))
    assert ran == Counter(map(id, jobs))


def shared_out(places, *clients):
    """How many each client holds when all of them always want more."""
    held = dict.fromkeys(clients, 0)
    grew = True
    while grew:
        grew = False
        for client in clients:
            if within_share(client, held[client], places - sum(held.values())):
                held[client] += 1
                grew = True
    return list(held.values())


@pytest.mark.parametrize(
    ("places", "clients", "held"),
    [
        (64, ["a"], [48]),
        (64, ["a", "b"], [28, 27]),
        (64, ["a", "b", "c", "d"], [15, 15, 15, 15]),
        (1, ["a"], [1]),
        (64, [None], [64]),
    ],
)
def test_greedy_clients_hold_equal_shares_within_one_and_leave_room(places, clients, held):
    assert shared_out(places, *clients) == held
    if clients != [None] and places > 1:
        assert within_share("new", 0, places - sum(held))


@pytest.fixture
def arrivals():
    return Arrivals()


def test_nobody_is_expected_without_a_sign(arrivals):
    assert not arrivals.is_expected(60)


def test_one_that_met_another_is_a_sign_once(arrivals):
    arrivals.met()
    assert arrivals.is_expected(0)
    assert not arrivals.is_expected(0)


def test_a_shared_batch_is_a_sign_for_a_while(arrivals):
    arrivals.shared()
    assert arrivals.is_expected(60)
    time.sleep(0.002)
    assert not arrivals.is_expected(0.001)


def test_a_request_that_is_being_read_is_a_sign_until_it_has_come(arrivals):
    arrivals.comes("a")
    arrivals.comes("b")
    arrivals.came("a")
    assert arrivals.is_expected(0)
    assert arrivals.is_expected(0)
    arrivals.came("b")
    arrivals.came("b")
    assert not arrivals.is_expected(0)


def test_the_time_to_work_off_a_queue_follows_from_the_latest_batches():
    throughput = Throughput()
    throughput.ran(8, 4.0)
    assert throughput.drain_s(32) == pytest.approx(16)
    for _ in range(40):
        throughput.ran(4, 4.0)
    assert throughput.drain_s(32) == pytest.approx(32, rel=0.01)


def test_the_time_is_never_under_a_second_nor_over_a_minute():
    throughput = Throughput()
    assert throughput.drain_s(10) == 1
    throughput.ran(8, 0.001)
    assert throughput.drain_s(10) == 1
    throughput.ran(8, 1e6)
    assert throughput.drain_s(10) == 60
