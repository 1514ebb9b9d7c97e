from __future__ import annotations

import pytest

from guardrail.model.pace import Pace


def test_the_time_to_work_off_a_queue_follows_from_the_latest_batches():
    pace = Pace()
    pace.ran(8, 4.0)
    assert pace.drain_s(32) == pytest.approx(16)
    for _ in range(40):
        pace.ran(4, 4.0)
    assert pace.drain_s(32) == pytest.approx(32, rel=0.01)


def test_the_time_is_never_under_a_second_nor_over_a_minute():
    pace = Pace()
    assert pace.drain_s(10) == 1
    pace.ran(8, 0.001)
    assert pace.drain_s(10) == 1
    pace.ran(8, 1e6)
    assert pace.drain_s(10) == 60
