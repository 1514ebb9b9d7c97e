from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from hypothesis import given, settings
from hypothesis import strategies as st

from guardrail.model.lanes import Lanes


@dataclass(eq=False)
class One:
    quick: bool
    client: str | None = None
    key: str | None = "k"


def batch_of(lanes, limit=2):
    first = lanes.next()
    if first is None:
        return []
    batch = [first]
    lanes.take(first, leads=True)
    while len(batch) < limit and (job := lanes.companion(batch)) is not None:
        batch.append(job)
        lanes.take(job)
    return batch


def filled(*quick):
    lanes = Lanes()
    for each in quick:
        lanes.push(One(each))
    return lanes


def test_a_verdict_waits_for_no_more_than_the_batch_that_runs():
    lanes = filled(*[False] * 10)
    batch_of(lanes)
    lanes.push(verdict := One(quick=True))
    assert batch_of(lanes) == [verdict]


def test_while_both_wait_they_take_turns_and_share_no_batch():
    lanes = filled(*[True] * 4, *[False] * 4)
    order = [{job.quick for job in batch_of(lanes)} for _ in range(4)]
    assert order == [{True}, {False}, {True}, {False}]


def test_a_lane_alone_runs_on():
    lanes = filled(*[False] * 4)
    assert [len(batch_of(lanes)) for _ in range(3)] == [2, 2, 0]


def test_counts_and_removal_cover_both_lanes():
    lanes = filled(True, False)
    jobs = list(lanes)
    assert (len(lanes), lanes.held_by(None), len(jobs)) == (2, 2, 2)
    assert all(lanes.remove(job) for job in jobs)
    assert not lanes.remove(jobs[0])
    assert (len(lanes), lanes.next()) == (0, None)


@given(st.lists(st.tuples(st.booleans(), st.sampled_from("abc"), st.sampled_from("xy"))))
@settings(max_examples=100, deadline=None)
def test_nothing_is_lost_or_runs_twice(given_jobs):
    lanes, ran = Lanes(), Counter()
    jobs = [One(*each) for each in given_jobs]
    for job in jobs:
        lanes.push(job)
    while batch := batch_of(lanes):
        assert len({(job.quick, job.key) for job in batch}) == 1
        ran.update(map(id, batch))
    assert ran == Counter(map(id, jobs))
