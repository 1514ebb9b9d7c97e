"""The guard in force is asked under its sender's name and in time, and lives as the server does."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from guardrail.asgi.chats import Content
from guardrail.errors import DetectorError, UnsupportedContentError
from guardrail.policy import Limits, Policy
from guardrail.server import ServerSettings, create_app
from guardrail.server.keys import Caller
from guardrail.server.service import Lifecycle, checked, served_policy
from guardrail.testing import FakeGuard


def test_strangers_name_no_files_and_no_addresses():
    rules = Policy(allowed_hosts={"pictures.example"})
    shut = served_policy(rules, ServerSettings())
    assert (shut.local_files, shut.allowed_hosts) == (False, frozenset())
    opened = served_policy(rules, ServerSettings(fetch_urls=True))
    assert (opened.local_files, opened.allowed_hosts) == (False, {"pictures.example"})
    assert served_policy(rules, ServerSettings()).limits == rules.limits


async def test_the_guard_that_was_given_stays_open_and_the_one_made_here_is_closed(guard_of):
    given = guard_of()
    service = create_app(given).state.service
    assert service.guard.policy.local_files is False
    await service.aclose()
    assert service.guard.closed
    assert not given.closed


async def test_a_server_drains_when_its_last_request_has_ended():
    life = Lifecycle(drain_s=60)
    with life.request():
        assert not life.drained()
        life.drain()
        assert life.draining
        assert not life.drained()
        assert not life.expired.is_set()
    assert life.drained()


async def test_requests_are_told_to_end_when_their_time_is_over():
    life = Lifecycle(drain_s=0)
    with life.request():
        life.drain()
        assert not life.drained()
        assert life.expired.is_set()
    assert life.drained()


async def test_ending_now_waits_for_nothing():
    life = Lifecycle(drain_s=60)
    with life.request():
        life.drain()
        life.end_now()
        assert life.drained()
        assert life.expired.is_set()


async def test_a_second_drain_gives_no_more_time():
    life = Lifecycle(drain_s=0)
    with life.request():
        life.end_now()
        life.drain()
        life.drained()
        assert life.expired.is_set()


async def test_waiting_for_requests_does_not_wait_for_later_ones():
    life = Lifecycle(drain_s=1)
    first, later = life.request(), life.request()
    first.__enter__()
    waiting = asyncio.create_task(life.all_ended())
    await asyncio.sleep(0)
    later.__enter__()
    assert not waiting.done()
    first.__exit__(None, None, None)
    await asyncio.wait_for(waiting, 5)
    assert life.under_way == 1
    later.__exit__(None, None, None)


async def test_an_end_of_another_request_does_not_end_the_wait():
    life = Lifecycle(drain_s=1)
    mine = life.request()
    mine.__enter__()
    waiting = asyncio.create_task(life.all_ended())
    await asyncio.sleep(0)
    with life.request():
        pass
    for _ in range(5):
        await asyncio.sleep(0)
    assert not waiting.done()
    mine.__exit__(None, None, None)
    await asyncio.wait_for(waiting, 5)


@pytest.mark.parametrize(("allowed", "settled", "least"), [(5, 9, 5), (9, 5, 5), (None, 5, 5)])
def test_the_shorter_time_counts(guard_of, allowed, settled, least):
    guard = guard_of(limits=Limits(timeout_s=allowed))
    service = create_app(guard, ServerSettings(timeout_s=settled)).state.service
    assert service.ask_options(Caller("r1", "a")) == {
        "client": "a",
        "request_id": "r1",
        "timeout": least,
    }


TOOL = {"type": "function", "function": {"name": "look"}}
CHAT = [{"role": "user", "content": "hello"}]


def fake(*, supports_tools: bool = True, **policy: Any) -> Any:
    guard: Any = FakeGuard(policy=Policy(**policy))
    guard.supports_tools = supports_tools
    return guard


async def test_tools_go_as_tools_to_a_model_that_reads_them():
    guard = fake()
    await checked(guard, Content(CHAT, tools=[TOOL]), {})
    assert guard.seen == [CHAT]


async def test_tools_are_text_for_a_model_that_does_not():
    guard = fake(supports_tools=False)
    await checked(guard, Content(CHAT, tools=[TOOL]), {})
    assert "look" in guard.seen[0][0]["content"]


async def test_an_outage_is_an_error_where_the_policy_fails_closed():
    with pytest.raises(DetectorError):
        await checked(fake(), Content("outage"), {})
    assert (await checked(fake(fail="open"), Content("outage"), {})).score is None
    assert (await checked(fake(mode="shadow"), Content("outage"), {})).score is None


async def test_what_breaks_inside_is_an_outage(monkeypatch):
    guard = fake()

    async def broken(*_args: Any, **_options: Any) -> Any:
        raise KeyError("inside")

    monkeypatch.setattr(guard, "acheck", broken)
    with pytest.raises(DetectorError):
        await checked(guard, Content("hello"), {})


async def test_what_cannot_be_read_stays_what_it_is():
    with pytest.raises(UnsupportedContentError):
        await checked(fake(), Content([{"role": "critic", "content": "x"}]), {})
