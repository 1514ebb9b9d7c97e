from __future__ import annotations

import logging

from guardrail.observe import fan_out


def broken(_verdict, _facts):
    raise OSError("no space")


def test_a_sink_that_fails_touches_neither_the_others_nor_the_caller(verdict_of, caplog):
    first, last = [], []
    sink = fan_out(lambda *told: first.append(told), broken, lambda *told: last.append(told))
    verdict, facts = verdict_of(), {"event": "verdict"}
    sink(verdict, facts)
    sink(None, {"event": "outage"})
    assert first == last == [(verdict, facts), (None, {"event": "outage"})]
    assert sink.failures == 2
    assert "no space" in caplog.text


def test_a_sink_that_always_fails_does_not_fill_the_log(caplog):
    sink = fan_out(broken, broken)
    with caplog.at_level(logging.ERROR):
        for _ in range(1000):
            sink(None, {})
    assert sink.failures == 2000
    assert len(caplog.records) == 20  # 1, 2, 4, ... 512 of each


def test_one_sink_is_itself_and_none_is_none():
    assert fan_out(None, broken, None) is broken
    assert fan_out(None) is None
    assert fan_out() is None
