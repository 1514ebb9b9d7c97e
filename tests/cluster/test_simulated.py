from __future__ import annotations

import asyncio
import itertools

import pytest

from tests.cluster.simulated import LEASE_S, Replica, World, run_simulated

STEPS = 400
PREPARE_S = PAUSE_S = 8.0
SPARE_S = 0.5  # for the record's steps


async def live(world: World) -> None:
    """Some minutes in which everything happens that may."""
    await stir(world)
    await world.end()


async def stir(world: World) -> None:
    await world.take_over()
    names, numbers = itertools.count(), itertools.count(1)
    for _ in range(STEPS):
        await world.pass_time(0.6)
        match world.chance.random():
            case x if x < 0.05 and len(world.replicas) < 5:
                world.replicas.append(Replica(world, str(next(names))))
            case x if x < 0.13:
                world.begin(world.update(next(numbers)))
            case x if x < 0.15:
                world.begin(world.take_over())
            case x if x < 0.17 and world.replicas:
                gone = world.replicas.pop(world.chance.randrange(len(world.replicas)))
                world.begin(gone.kill())
            case x if x < 0.25 and world.replicas:
                wire = world.chance.choice(world.replicas).wire
                wire.cut = not wire.cut and world.chance.random() < 0.6
            case _ if world.replicas:
                for replica in world.replicas:
                    world.begin(world.ask(replica))


@pytest.fixture
def simulate(monkeypatch):
    """`simulate(world, main)`; what would be done in threads takes a while."""

    def run(world, main, *, threads_s=3.0):
        async def slowly(function, *values):
            await world.pass_time(threads_s)
            return function(*values)

        monkeypatch.setattr(asyncio, "to_thread", slowly)
        run_simulated(main)

    return run


@pytest.mark.parametrize("seed", range(40))
def test_no_answer_under_an_older_artefact_begins_after_one_under_a_newer(seed, simulate):
    world = World(seed)
    simulate(world, live(world))

    ids = [int(name) for name in world.begun]
    assert ids == sorted(ids)
    assert len(ids) > 20


async def lose_one(world: World) -> None:
    """One in charge comes that never heard of a replica, whose lease is still in force."""
    world.trouble = 0.0
    await world.take_over()
    world.replicas += [Replica(world, "lost"), Replica(world, "kept")]
    await asyncio.sleep(5 * LEASE_S)
    await world.take_over()
    world.replicas[0].wire.cut = True
    limits = {"prepare_s": PREPARE_S, "pause_s": 2 * PAUSE_S}
    world.begin(world.coordinators[-1].update("", "1", **limits))
    for _ in range(300):
        await world.pass_time(0.2)
        for replica in world.replicas:
            world.begin(world.ask(replica))
    await world.end()


def test_leases_given_before_a_take_over_are_waited_for(simulate):
    for seed in range(10):
        world = World(seed)
        simulate(world, lose_one(world), threads_s=0.3)
        assert world.begun == sorted(world.begun)
        assert set(world.begun) == {"0", "1"}


def test_updates_do_come_about_in_the_simulation(simulate):
    """Otherwise the test above would prove nothing."""
    worlds = [World(seed) for seed in range(8)]
    for world in worlds:
        simulate(world, live(world))
    assert sum(world.agreed for world in worlds) > 16
    assert sum(len(set(world.begun)) for world in worlds) > 24


async def stay(world: World) -> None:
    await world.take_over()
    world.replicas.append(Replica(world, "only"))
    for _ in range(20):
        await asyncio.sleep(30)
        assert world.replicas[0].follower.has_lease
    await world.end()


def test_a_lease_longer_than_the_wait_for_an_answer_is_renewed(simulate):
    world = World(0, lease_s=60.0)
    simulate(world, stay(world))


async def recover(world: World) -> None:
    """After the trouble all ends in its time, and all answer under what is agreed on."""
    await stir(world)
    now = asyncio.get_running_loop().time
    start = now()
    async with asyncio.timeout(60):
        await world.calm_down()  # updates, take-overs, and requests held at a pause
    world.replicas.append(Replica(world, "late"))
    await all_answer(world)
    start = now()
    [killed, *world.replicas] = world.replicas
    world.begin(killed.kill())  # at the same time
    outcome = await world.coordinators[-1].update("", "9999", prepare_s=PREPARE_S, pause_s=PAUSE_S)
    assert now() - start < PREPARE_S + PAUSE_S + 2 * SPARE_S
    assert outcome.problem is None
    await all_answer(world)
    assert world.begun[-1] == "9999"
    await world.end()


async def all_answer(world: World) -> None:
    """In a few leases; a replica may have to load what it missed behind what it gave up."""
    await asyncio.sleep(6 * LEASE_S)
    agreed = world.coordinators[-1].agreed.artefact_id
    assert [await world.answer_of(one) for one in world.replicas] == [agreed] * len(world.replicas)


@pytest.mark.parametrize("seed", range(20))
def test_after_trouble_an_update_ends_in_its_time_and_all_replicas_answer(seed, simulate):
    world = World(seed)
    simulate(world, recover(world))
