from __future__ import annotations

import asyncio

from guardrail.policy import Policy
from guardrail.server import ServerSettings, create_app
from guardrail.server.service import Lifecycle, served_policy


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
