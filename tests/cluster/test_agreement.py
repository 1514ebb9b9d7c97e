from __future__ import annotations

import asyncio

import pytest

from guardrail.cluster.agreement import Agreement
from guardrail.cluster.orders import Pin
from guardrail.cluster.store import KeyedStore, memory_store
from tests.waiting import auntil

LEASE_S = 0.3
OLD, NEW = "guard-old", "guard-new"
ROUNDS = [f"guard-{round_}" for round_ in range(1, 4)]
LIMITS = {"prepare_s": 2.0, "pause_s": 2.0}


async def test_all_replicas_go_over_to_the_new_artefact(agreement, join):
    replicas = [await join(name) for name in "abc"]

    outcome = await agreement.update("new.safetensors", NEW, **LIMITS)

    assert outcome.problem is None
    await auntil(lambda: all(replica.answers == NEW for replica in replicas))
    for replica in replicas:
        assert replica.hand.did == ["serve", "prepare", "pause", "serve"]


async def test_no_old_answer_begins_after_the_first_new_one(agreement, join):
    replicas = [await join(name) for name in "abc"]
    seen: list[str] = []

    async def watch() -> None:
        while True:
            seen.extend(one for replica in replicas if (one := replica.answers) is not None)
            await asyncio.sleep(0)

    watching = asyncio.create_task(watch())
    for name in ROUNDS:
        await agreement.update(f"{name}.safetensors", name, **LIMITS)
        await auntil(lambda name=name: all(replica.answers == name for replica in replicas))
    watching.cancel()

    order = [one for one, before in zip(seen, [None, *seen], strict=False) if one != before]
    assert order == [OLD, *ROUNDS]


@pytest.mark.parametrize("step", ["prepare", "pause"])
async def test_one_that_fails_leaves_all_with_the_old_artefact(agreement, join, step):
    fine, broken = await join("a"), await join("b", fails=step)

    outcome = await agreement.update("new.safetensors", NEW, **LIMITS)

    assert outcome.problem == "b: ValueError: the file is another one here"
    assert outcome.agreed.artefact_id == OLD
    await auntil(lambda: fine.answers == broken.answers == OLD)


@pytest.mark.parametrize("step", ["prepare", "pause"])
async def test_one_that_takes_too_long_leaves_all_with_the_old_artefact(agreement, join, step):
    fine, slow = await join("a"), await join("b", waits=step)

    outcome = await agreement.update("new.safetensors", NEW, prepare_s=0.1, pause_s=0.1)

    assert outcome.problem == f"b was not ready in 0.1 s to {step}"
    await auntil(lambda: fine.answers == slow.answers == OLD)


async def test_one_that_is_cut_off_stops_before_the_others_go_on(agreement, join):
    fine, lost = await join("a"), await join("b")
    lost.wire.cut = True

    outcome = await agreement.update("new.safetensors", NEW, **LIMITS)

    assert outcome.problem is None
    assert lost.answers is None
    await auntil(lambda: fine.answers == NEW)
    lost.wire.cut = False
    await auntil(lambda: lost.answers is not None)
    assert lost.answers == NEW


async def test_one_that_is_cut_off_in_the_pause_takes_the_new_artefact_when_it_is_back(
    agreement, join
):
    fine, lost = await join("a"), await join("b")
    updating = asyncio.create_task(agreement.update("new.safetensors", NEW, **LIMITS))
    await auntil(lambda: "pause" in lost.hand.did)
    lost.wire.cut = True

    assert (await updating).problem is None
    await auntil(lambda: fine.answers == NEW)
    lost.wire.cut = False
    await auntil(lambda: lost.answers == NEW)


async def test_one_that_comes_during_an_update_waits_for_its_end(agreement, join):
    await join("a", waits="pause")
    updating = asyncio.create_task(
        agreement.update("new.safetensors", NEW, prepare_s=2.0, pause_s=0.3)
    )
    await auntil(lambda: agreement.phase == "pause")

    order = await agreement.follow("late", None, {})

    assert (order.phase, order.lease_s) == ("hold", 0.0)
    late = await join("late")
    assert late.answers == OLD  # the update timed out meanwhile
    assert (await updating).problem is not None


async def test_a_second_update_at_once_is_refused(agreement, join):
    await join("a")
    first = asyncio.create_task(agreement.update("new.safetensors", NEW, **LIMITS))
    await asyncio.sleep(0)

    second = await agreement.update("other.safetensors", "guard-other", **LIMITS)

    assert second.problem is not None
    assert (await first).agreed.artefact_id == NEW


async def test_a_new_owner_waits_for_old_leases_and_knows_what_was_agreed_on(join):
    data: dict[str, str] = {}
    first = Agreement(memory_store(data), lease_s=LEASE_S)
    await first.open(Pin(0, "old.safetensors", OLD, OLD))
    await first.update("new.safetensors", NEW, **LIMITS)
    replica = await join("a", of=first)

    second = Agreement(memory_store(data), lease_s=LEASE_S)
    await second.open(Pin(0, "old.safetensors", OLD, OLD))
    outcome = await second.update("third.safetensors", "guard-third", **LIMITS)

    assert (outcome.agreed.epoch, outcome.agreed.artefact_id) == (2, "guard-third")
    assert replica.answers is None  # its coordinator gives no leases any more
    replica.wire.agreement = second
    await auntil(lambda: replica.answers == "guard-third")


async def test_what_an_owner_writes_that_has_lost_the_record_is_read_by_nobody():
    data: dict[str, str] = {}
    lost, owner = memory_store(data), memory_store(data)
    await lost.take("lost")
    await lost.write(Pin(0, "old", OLD))
    await owner.take("owner")
    await lost.write(Pin(1, "new", NEW))

    assert await memory_store(data).take("next") == Pin(0, "old", OLD)


async def test_an_owner_that_wrote_nothing_loses_nothing():
    data: dict[str, str] = {}
    first = memory_store(data)
    await first.take("first")
    await first.write(Pin(3, "old", OLD))
    data["before:second"], data["owner"] = "first", "second"  # it ended right there

    assert await memory_store(data).take("third") == Pin(3, "old", OLD)


async def test_a_take_over_that_failed_half_way_is_done_again():
    data: dict[str, str] = {}
    first = memory_store(data)
    await first.take("first")
    await first.write(Pin(3, "old", OLD))
    away = ["pin:first"]

    def get(key: str) -> str | None:
        if key in away:
            away.remove(key)
            raise ConnectionError("the store is away")
        return data.get(key)

    second = KeyedStore(get, data.__setitem__)
    with pytest.raises(ConnectionError):
        await second.take("second")
    assert await asyncio.wait_for(second.take("second"), 2) == Pin(3, "old", OLD)
    assert await memory_store(data).take("third") == Pin(3, "old", OLD)


async def test_settings_that_are_told_during_an_update_are_written_in_their_turn(
    agreement, join, monkeypatch
):
    await agreement.update("new.safetensors", NEW, **LIMITS)
    await join("a")
    written, write = [], agreement._store.write

    async def slow(pin: Pin) -> None:
        # What is written first takes longest.
        await asyncio.sleep(0.05 if pin.epoch == 1 else 0)
        await write(pin)
        written.append(pin)

    monkeypatch.setattr(agreement._store, "write", slow)
    updating = asyncio.create_task(agreement.update("third", "guard-third", **LIMITS))
    while agreement.phase != "pause":
        await asyncio.sleep(0)
    refused = await agreement.admit("new.safetensors", NEW)
    assert (await updating).agreed == agreement.agreed == written[-1]
    assert refused is not None
    assert "guard-third" in refused


async def test_other_settings_join_only_where_nobody_answers(agreement, join):
    assert await agreement.admit("old.safetensors", OLD) is None
    replica = await join("a")
    assert NEW in (await agreement.admit("new.safetensors", NEW) or "")
    assert replica.answers == OLD

    await agreement.update("new.safetensors", NEW, **LIMITS)
    assert await agreement.admit("old.safetensors", OLD) is None  # as configured before
    assert await agreement.admit("new.safetensors", NEW) is None
    assert await agreement.admit("old.safetensors", OLD) is not None


async def test_other_settings_are_agreed_on_where_nobody_answers(agreement):
    assert await agreement.admit("new.safetensors", NEW) is None
    assert agreement.agreed == Pin(1, "new.safetensors", NEW, NEW)


async def test_a_stop_is_the_last_order(agreement, join):
    replica = await join("a")
    await agreement.stop()
    await auntil(lambda: "stop" in replica.hand.did)

    assert (await agreement.update("new.safetensors", NEW, **LIMITS)).problem is not None
    assert agreement.agreed.artefact_id == OLD


async def test_a_record_that_cannot_be_written_leaves_all_paused(agreement, join, monkeypatch):
    replica = await join("a")

    async def fail(pin: Pin) -> None:
        raise OSError("no space")

    monkeypatch.setattr(agreement._store, "write", fail)
    with pytest.raises(OSError, match="no space"):
        await agreement.update("new.safetensors", NEW, **LIMITS)

    assert replica.answers is None
