from __future__ import annotations

import asyncio
import itertools

import pytest

from tests.cluster.simulated import Replica, World, run_simulated

STEPS = 400


async def live(world: World) -> None:
    """Some minutes in which everything happens that may."""
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
            case x if x < 0.25 and world.replicas:
                wire = world.chance.choice(world.replicas).wire
                wire.cut = not wire.cut and world.chance.random() < 0.6
            case _ if world.replicas:
                for replica in world.replicas:
                    world.begin(world.ask(replica))
    await world.end()


@pytest.mark.parametrize("seed", range(40))
def test_no_answer_under_an_older_artefact_begins_after_one_under_a_newer(seed, monkeypatch):
    world = World(seed)

    async def slowly(function, *values):
        await world.pass_time(3.0)
        return function(*values)

    monkeypatch.setattr(asyncio, "to_thread", slowly)
    run_simulated(live(world))

    ids = [int(name) for name in world.begun]
    assert ids == sorted(ids)
    assert len(ids) > 20


def test_updates_do_come_about_in_the_simulation(monkeypatch):
    """Otherwise the test above would prove nothing."""
    worlds = [World(seed) for seed in range(8)]
    for world in worlds:

        async def slowly(function, *values, world=world):
            await world.pass_time(3.0)
            return function(*values)

        monkeypatch.setattr(asyncio, "to_thread", slowly)
        run_simulated(live(world))
    assert sum(world.agreed for world in worlds) > 16
    assert sum(len(set(world.begun)) for world in worlds) > 24
