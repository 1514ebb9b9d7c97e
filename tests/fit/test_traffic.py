"""A bounded uniform sample of a stream."""

from __future__ import annotations

from collections import Counter

import pytest
from scipy.stats import chisquare

from guardrail.fit.traffic import Reservoir


def test_everything_is_kept_in_order_while_there_is_room() -> None:
    sample = Reservoir(5)
    for value in range(5):
        sample.add(value)
    assert sample.values == (0, 1, 2, 3, 4)
    assert sample.seen == 5


def test_every_value_is_kept_with_the_same_probability() -> None:
    kept: Counter[float] = Counter()
    for seed in range(4000):
        sample = Reservoir(4, seed=seed)
        for value in range(20):
            sample.add(value)
        assert len(set(sample.values)) == 4
        kept.update(sample.values)
    assert chisquare([kept[value] for value in range(20)]).pvalue > 1e-4


def test_the_same_seed_keeps_the_same_sample() -> None:
    one, two, other = Reservoir(3, seed="a"), Reservoir(3, seed="a"), Reservoir(3, seed="b")
    for value in range(1000):
        for sample in (one, two, other):
            sample.add(value)
    assert one.values == two.values != other.values
    assert one.seen == 1000


def test_a_sample_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one"):
        Reservoir(0)
