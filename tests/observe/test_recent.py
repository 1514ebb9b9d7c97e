from __future__ import annotations

import sys
import threading

import pytest

from guardrail.observe.recent import SLOT_S, SLOTS, Recent
from guardrail.types import Action, Modality

JUDGED = {"event": "verdict"}


class Clock:
    def __init__(self):
        self.now = 1e6

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def recent(clock):
    return Recent(clock)


def test_a_verdict_is_counted_by_what_was_done_and_what_was_asked_for(recent, verdict_of):
    recent(verdict_of(action=Action.PASS, would_be=Action.FLAG, modality=Modality.IMAGE), JUDGED)
    found = recent.since_start()
    assert (found.n, found.outages) == (1, 0)
    assert found.actions == {Action.PASS: 1, Action.STEER: 0, Action.FLAG: 0}
    assert found.would_be[Action.FLAG] == 1
    assert found.modalities == {Modality.TEXT: 0, Modality.IMAGE: 1, Modality.VIDEO: 0}


def test_outages_count_with_a_decision_and_without_one(recent, outage_of):
    recent(outage_of(), JUDGED)
    recent(None, {"event": "outage"})
    found = recent.since_start()
    assert (found.n, found.outages) == (2, 2)
    assert found.actions[Action.FLAG] == 1


def test_an_answer_is_no_second_verdict(recent, verdict_of):
    recent(verdict_of(), JUDGED)
    recent(verdict_of(), {"event": "answer"})
    assert recent.since_start().n == 1


def test_a_window_forgets_what_is_older(recent, clock, verdict_of):
    recent(verdict_of(), JUDGED)
    clock.now += 300 - SLOT_S
    assert recent.last(300).n == 1
    clock.now += SLOT_S
    assert recent.last(300).n == 0
    assert recent.last(3600).n == 1
    clock.now += 3600
    assert recent.last(3600).n == 0
    assert recent.since_start().n == 1


def test_a_slot_is_not_counted_again_an_hour_later(recent, clock, verdict_of):
    recent(verdict_of(), JUDGED)
    clock.now += SLOTS * SLOT_S  # the same place in the ring
    recent(verdict_of(), JUDGED)
    assert recent.last(3600).n == 1
    assert recent.since_start().n == 2


def test_memory_does_not_grow(recent, clock, verdict_of):
    for _ in range(3 * SLOTS):
        recent(verdict_of(), JUDGED)
        clock.now += SLOT_S
    assert len(recent._slots) == SLOTS
    assert all(sys.getsizeof(slot) < 2_000 for _, slot in recent._slots)


def test_threads_lose_no_count(recent, verdict_of):
    verdict = verdict_of()
    threads = [
        threading.Thread(target=lambda: [recent(verdict, JUDGED) for _ in range(500)])
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert recent.since_start().n == recent.last(60).n == 2000
