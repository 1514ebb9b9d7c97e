"""Questions to the guard go under their sender's name, and end in time."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from guardrail.asgi.chats import Content
from guardrail.errors import DetectorError, UnsupportedContentError
from guardrail.policy import Limits, Policy
from guardrail.server import ServerSettings
from guardrail.server.asking import ask_options, checked
from guardrail.server.keys import Caller
from guardrail.testing import FakeGuard


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


TOOL = {"type": "function", "function": {"name": "look"}}
CHAT = [{"role": "user", "content": "hello"}]


def guard_of(*, supports_tools: bool = True, **policy: Any) -> Any:
    guard: Any = FakeGuard(policy=Policy(**policy))
    guard.supports_tools = supports_tools
    return guard


async def test_tools_go_as_tools_to_a_model_that_reads_them():
    guard = guard_of()
    await checked(guard, Content(CHAT, tools=[TOOL]), {})
    assert guard.seen == [CHAT]


async def test_tools_are_text_for_a_model_that_does_not():
    guard = guard_of(supports_tools=False)
    await checked(guard, Content(CHAT, tools=[TOOL]), {})
    assert "look" in guard.seen[0][0]["content"]


async def test_an_outage_is_an_error_where_the_policy_fails_closed():
    with pytest.raises(DetectorError):
        await checked(guard_of(), Content("outage"), {})
    assert (await checked(guard_of(fail="open"), Content("outage"), {})).score is None
    assert (await checked(guard_of(mode="shadow"), Content("outage"), {})).score is None


async def test_what_breaks_inside_is_an_outage(monkeypatch):
    guard = guard_of()

    async def broken(*_args: Any, **_options: Any) -> Any:
        raise KeyError("inside")

    monkeypatch.setattr(guard, "acheck", broken)
    with pytest.raises(DetectorError):
        await checked(guard, Content("hello"), {})


async def test_what_cannot_be_read_stays_what_it_is():
    with pytest.raises(UnsupportedContentError):
        await checked(guard_of(), Content([{"role": "critic", "content": "x"}]), {})
