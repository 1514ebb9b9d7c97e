"""Questions to the guard go under their sender's name, and end in time."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from guardrail.policy import Limits, Policy
from guardrail.server import ServerSettings
from guardrail.server.asking import ask_options
from guardrail.server.keys import Caller


@pytest.mark.parametrize(("allowed", "settled", "least"), [(5, 9, 5), (9, 5, 5), (None, 5, 5)])
def test_the_shorter_time_counts(allowed, settled, least):
    policy = Policy(limits=Limits(timeout_s=allowed))
    settings = ServerSettings(timeout_s=settled)
    service: Any = SimpleNamespace(guard=SimpleNamespace(policy=policy), settings=settings)
    assert ask_options(service, Caller("r1", "a")) == {
        "client": "a",
        "request_id": "r1",
        "timeout": least,
    }
