from __future__ import annotations

import asyncio

from guardrail.cluster.follower import Follower
from guardrail.cluster.orders import Order, Pin
from tests.waiting import auntil


async def test_a_lease_counts_from_the_question(agreement):
    class Slow:
        async def follow(self, replica, seen, facts):
            await asyncio.sleep(0.15)
            return Order("1", "hold", Pin(0, "a", "a"), lease_s=0.2)

        async def tell(self, *told): ...

    follower = Follower(Slow(), "a", object())  # type: ignore[arg-type]
    task = asyncio.create_task(follower.run())
    await auntil(lambda: follower.has_lease)
    task.cancel()
    assert 0.0 < follower._until - follower._clock() <= 0.06


async def test_without_contact_the_lease_runs_out(join):
    replica = await join("a")
    assert replica.answers is not None
    replica.wire.cut = True
    await auntil(lambda: replica.answers is None)
    await auntil(lambda: replica.follower.silent_s > 0.05)


async def test_an_artefact_that_cannot_be_served_is_told(agreement, join):
    replica = await join("a")
    replica.hand.fails = "serve"
    await agreement.update("new", "guard-new", prepare_s=2.0, pause_s=2.0)
    await auntil(lambda: replica.follower.problem is not None)
    assert replica.answers is None
    assert "another one here" in replica.follower.problem


async def test_a_report_that_is_lost_is_told_again(agreement, join, monkeypatch):
    replica = await join("a")
    tell, lost = replica.wire.tell, []

    async def lose_first(*told):
        if not lost:
            lost.append(told)
            raise ConnectionError("lost")
        await tell(*told)

    monkeypatch.setattr(replica.wire, "tell", lose_first)
    outcome = await agreement.update("new.safetensors", "guard-new", prepare_s=2, pause_s=2)
    assert outcome.problem is None
    assert lost
