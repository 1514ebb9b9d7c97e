from __future__ import annotations

import os
import signal

from guardrail.server.starting import starting


def test_signals_before_there_is_a_server(monkeypatch):
    codes = []
    monkeypatch.setattr(os, "_exit", codes.append)
    numbers = (signal.SIGTERM, signal.SIGHUP)
    before = [signal.getsignal(number) for number in numbers]
    with starting() as start:
        assert not start.reload_asked
        signal.raise_signal(signal.SIGHUP)
        assert start.reload_asked
        assert codes == []
        signal.raise_signal(signal.SIGTERM)
        assert codes == [0]
    assert [signal.getsignal(number) for number in numbers] == before
