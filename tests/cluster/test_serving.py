from __future__ import annotations

import asyncio
import contextlib
import threading
from dataclasses import replace
from types import SimpleNamespace

import pytest

from guardrail.cluster.gate import ReplicaGate
from guardrail.cluster.orders import Pin
from guardrail.cluster.serving import Serving
from guardrail.guard import Guard
from guardrail.server import create_app
from guardrail.testing import tiny_artefact
from tests.waiting import auntil

A, B, C = Pin(0, "a", "guard-a"), Pin(1, "b", "guard-b"), Pin(2, "a", "guard-a")


class Maker:
    """Real guards on one model, of the artefacts that pins name; `hold` keeps the next one back."""

    def __init__(self, llava) -> None:
        self._model = (llava.model, llava.processor)
        self.artefacts = {n: tiny_artefact(*self._model, seed=i) for i, n in enumerate("abc")}
        self.made: list[Guard] = []
        self.hold = threading.Event()
        self.hold.set()

    def __call__(self, pin: Pin, present: Guard | None) -> Guard:
        self.hold.wait(5)
        model = self._model if present is None else present.loaded
        self.made.append(Guard(model, self.artefacts[pin.source]))
        return self.made[-1]

    @property
    def open(self) -> int:
        return sum(not guard.closed for guard in self.made)


@pytest.fixture
def maker(llava) -> Maker:
    return Maker(llava)


@pytest.fixture
async def serving(maker):
    made = Serving(ReplicaGate(lambda _epoch: True, wait_s=1), maker, create_app)
    yield made
    await made.aclose()
    assert maker.open == 0


def epoch_of(serving: Serving) -> int:
    return serving._current.pin.epoch


def in_force(serving: Serving) -> str:
    return serving.app.state.service.guard.artefact.artefact_id


async def test_what_was_prepared_takes_over_on_the_same_model(serving, maker):
    await serving.serve(A)
    await serving.prepare(B)
    assert epoch_of(serving) == 0
    await serving.pause()
    await serving.serve(B)
    assert (epoch_of(serving), in_force(serving)) == (1, maker.artefacts["b"].artefact_id)
    assert maker.made[1].loaded is maker.made[0].loaded
    await auntil(lambda: maker.made[0].closed)
    assert len(maker.made) == 2


async def test_what_was_not_agreed_on_is_closed(serving, maker):
    await serving.serve(A)
    await serving.prepare(B)
    await serving.pause()
    await serving.serve(A)
    assert in_force(serving) == maker.artefacts["a"].artefact_id
    assert maker.made[1].closed


async def test_what_was_given_up_is_not_taken_for_what_was_agreed_on_next(serving, maker):
    await serving.serve(A)
    await serving.prepare(B)
    await serving.serve(Pin(B.epoch, "c", "guard-c"))  # nothing was heard of the end of B
    assert in_force(serving) == maker.artefacts["c"].artefact_id
    assert maker.made[1].closed


async def test_what_was_prepared_for_an_earlier_try_is_used_in_the_epoch_agreed_on(serving, maker):
    await serving.serve(A)
    await serving.prepare(B)
    await serving.serve(replace(B, epoch=3))
    assert (epoch_of(serving), len(maker.made)) == (3, 2)


class Slow:
    """An app of one answer that begins when `go` is set."""

    def __init__(self) -> None:
        self.go, self.came = asyncio.Event(), asyncio.Event()
        self.state = SimpleNamespace(service=self)
        self.router = SimpleNamespace(lifespan_context=lambda _app: contextlib.nullcontext())

    async def replace(self, guard: Guard) -> None: ...

    async def __call__(self, scope, receive, send) -> None:
        self.came.set()
        await self.go.wait()
        await send({"type": "http.response.start", "status": 200, "headers": []})


async def test_no_answer_of_before_begins_while_the_artefact_is_exchanged(maker, call):
    agreed, app = [0], Slow()
    gate = ReplicaGate(lambda epoch: epoch == agreed[0], wait_s=1)
    serving = Serving(gate, maker, lambda _guard: app)
    await serving.serve(A)
    await serving.prepare(B)
    late = call(gate).send()
    await app.came.wait()
    agreed[0] = 1  # it was silent for long, and hears that the others went over
    app.go.set()
    await serving.serve(B)
    assert (await late.end()).status == 503
    await serving.aclose()


async def test_one_that_missed_an_update_loads_the_artefact_before_it_answers(serving, maker):
    await serving.serve(A)
    await serving.serve(B)
    assert (epoch_of(serving), in_force(serving)) == (1, maker.artefacts["b"].artefact_id)


async def test_the_same_artefact_in_a_later_epoch_is_not_loaded_again(serving, maker):
    await serving.serve(A)
    await serving.serve(C)
    assert epoch_of(serving) == 2
    assert len(maker.made) == 1


async def test_a_guard_that_nobody_waits_for_any_more_is_closed(serving, maker):
    await serving.serve(A)
    maker.hold.clear()
    preparing = asyncio.create_task(serving.prepare(B))
    await asyncio.sleep(0.01)
    preparing.cancel()
    await asyncio.gather(preparing, return_exceptions=True)
    maker.hold.set()
    await auntil(lambda: len(maker.made) == 2 and maker.open == 1)


async def test_one_guard_is_made_after_the_other(serving, maker):
    await serving.serve(A)
    maker.hold.clear()
    given_up = asyncio.create_task(serving.prepare(B))
    await asyncio.sleep(0.01)
    given_up.cancel()
    again = asyncio.create_task(serving.prepare(B))
    await asyncio.sleep(0.05)
    assert len(maker.made) == 1
    maker.hold.set()
    await again
    assert maker.open == 2  # the one in force, and the one that is ready
