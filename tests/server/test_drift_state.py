from __future__ import annotations

import pytest

from guardrail.monitor import Monitor
from guardrail.server.drift_state import DriftState
from guardrail.testing import tiny_artefact
from guardrail.types import Action, Modality


class Stub:
    """As much of a guard as drift is worked out from."""

    def __init__(self, artefact):
        self.artefact, self.monitor = artefact, Monitor(artefact)


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


@pytest.fixture
def guards(llava):
    return [Stub(tiny_artefact(llava.model, llava.processor, seed=seed)) for seed in (0, 1)]


def test_it_is_worked_out_now_and_then(guards):
    guard, clock = guards[0], Clock()
    drift = DriftState(every_s=30, clock=clock)
    assert not drift.of(guard).alarm
    for _ in range(200):
        guard.monitor.add(Modality.TEXT, Action.FLAG, 5.0)
    clock.now = 29.0
    assert not drift.of(guard).alarm
    clock.now = 30.0
    assert drift.of(guard).alarm


def test_another_artefact_is_compared_at_once(guards):
    drift = DriftState(every_s=30, clock=Clock())
    for guard in (*guards, *guards):
        assert drift.of(guard).artefact_id == guard.artefact.artefact_id


def test_a_guard_that_takes_another_ones_place_is_judged_by_its_own_requests(guards):
    before, drift = guards[0], DriftState(every_s=30, clock=Clock())
    for _ in range(200):
        before.monitor.add(Modality.TEXT, Action.FLAG, 5.0)
    assert drift.of(before).alarm
    after = Stub(before.artefact)  # a reload, with nothing but another policy
    assert not drift.of(after).alarm
