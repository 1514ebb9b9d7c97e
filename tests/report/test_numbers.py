"""Numbers as people read them."""

from __future__ import annotations

import pytest

from guardrail.report import numbers


@pytest.mark.parametrize(
    ("written", "wanted"),
    [
        (numbers.figure(0.93149), "0.931"),
        (numbers.figure(-0.5, 1), "\u22120.5"),
        (numbers.figure(None), "\u2013"),
        (numbers.figure(float("nan")), "\u2013"),
        (numbers.percent(0.125), "12.5\u00a0%"),
        (numbers.percent(None), "\u2013"),
        (numbers.points(0.55), "+55.0"),
        (numbers.points(-0.025), "\u22122.5"),
        (numbers.count(12345), "12\u202f345"),
        (numbers.small(0.000123456), "0.000123"),
        (numbers.small(None), "\u2013"),
        (numbers.duration(0.4212), "0.42 s"),
        (numbers.duration(42.4), "42 s"),
        (numbers.duration(185), "3 min 05 s"),
        (numbers.tied("95 % of 100 %"), "95\u00a0% of 100\u00a0%"),
        (numbers.moment("2025-05-01T12:00:00+02:00"), "1 May 2025, 10:00 UTC"),
        (numbers.moment("2025-05-01T12:00:00"), "1 May 2025, 12:00"),
        (numbers.moment("some day"), "some day"),
    ],
)
def test_a_number_is_written(written, wanted):
    assert written == wanted
