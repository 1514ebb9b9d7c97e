"""Replicas, clients and coordinators on a network that loses and delays, in simulated time.

The agreement, the followers, the gates and the exchange of artefacts are the real ones; only
threads, models and the store's own disk are not.
"""

from __future__ import annotations

import asyncio
import random
import selectors
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from guardrail.cluster.agreement import Agreement
from guardrail.cluster.follower import Follower
from guardrail.cluster.gate import ReplicaGate
from guardrail.cluster.orders import Pin
from guardrail.cluster.serving import Serving
from guardrail.cluster.store import KeyedStore

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Coroutine

LEASE_S = 2.0


class _NoWaiting(selectors.DefaultSelector):
    """Time passes at once; nobody outside ever sends anything."""

    now = 0.0

    def select(self, timeout: float | None = None) -> Any:
        self.now += timeout or 0.0
        return super().select(0)


def run_simulated(main: Coroutine[Any, Any, None]) -> None:
    """Run a coroutine in a loop whose clock jumps from one event to the next."""
    selector = _NoWaiting()
    loop = asyncio.SelectorEventLoop(selector)
    loop.time = lambda: selector.now  # type: ignore[method-assign]
    with asyncio.Runner(loop_factory=lambda: loop) as runner:
        runner.run(main)


class Store(KeyedStore):
    """A record without threads whose every step takes its time."""

    def __init__(self, world: World) -> None:
        super().__init__(world.data.get, world.data.__setitem__)
        self._world = world

    async def owner(self) -> str | None:
        await self._world.pass_time()
        found = self._get("owner")
        await self._world.pass_time()
        return found


class Wire:
    """A replica's way to whoever is in charge; messages are late, lost, or done and unanswered."""

    def __init__(self, world: World) -> None:
        self._world, self.cut = world, False

    async def follow(self, *asked: Any) -> Any:
        return await self._through("follow", asked)

    async def tell(self, *told: Any) -> None:
        await self._through("tell", told)

    async def _through(self, method: str, values: Any) -> Any:
        world, chance = self._world, self._world.chance
        await world.pass_time()
        if self.cut or chance.random() < world.trouble:
            raise ConnectionError("lost on the way there")
        # One in charge before may still answer: the replica has not heard of the next one.
        known = world.coordinators[-2:] if chance.random() < 7 * world.trouble else None
        answer = await getattr((known or world.coordinators[-1:])[0], method)(*values)
        await world.pass_time()
        if self.cut or chance.random() < world.trouble:
            raise ConnectionError("lost on the way back")
        return answer


class Guard:
    def __init__(self, pin: Pin) -> None:
        self.artefact_id = pin.artefact_id

    def close(self) -> None: ...


class App:
    """Answers after a while under the guard that was in force when the request came."""

    def __init__(self, world: World, guard: Guard) -> None:
        self._world, self._guard = world, guard
        self.state = SimpleNamespace(service=self)
        self.router = SimpleNamespace(lifespan_context=self._life)

    @asynccontextmanager
    async def _life(self, _app: object) -> AsyncIterator[None]:
        await self._world.pass_time()
        yield

    async def replace(self, guard: Guard) -> None:
        self._guard = guard
        await self._world.pass_time(3.0)  # for those who still ask the old one

    async def __call__(self, _scope: Any, _receive: Any, send: Any) -> None:
        guard = self._guard
        chance = self._world.chance
        most_s = 15.0 if chance.random() < 0.01 else chance.choice([0.0, 0.1, 4.0])
        await self._world.pass_time(most_s)
        headers = [(b"artefact", guard.artefact_id.encode())]
        await send({"type": "http.response.start", "status": 200, "headers": headers})


class Replica:
    """As `GuardReplica` is made of its parts; its clock is not quite right."""

    def __init__(self, world: World, name: str) -> None:
        rate, off = world.chance.uniform(0.92, 1.08), world.chance.uniform(-1e6, 1e6)
        self.wire = Wire(world)
        self.gate = ReplicaGate(lambda epoch: self.follower.may_begin(epoch), wait_s=3.0)
        self.serving: Any = Serving(
            self.gate,
            lambda pin, _present: Guard(pin),  # type: ignore[arg-type,return-value]
            lambda guard: App(world, guard),  # type: ignore[arg-type,return-value]
        )
        loop = asyncio.get_running_loop()
        self.follower = Follower(
            self.wire, name, self.serving, clock=lambda: loop.time() * rate + off
        )
        self.following = asyncio.create_task(self.follower.run())

    async def kill(self) -> None:
        """End it as a process ends: what it was told and what it promised stay with the others."""
        self.wire.cut = True
        self.following.cancel()
        await asyncio.gather(self.following, return_exceptions=True)
        await self.serving.aclose()


class World:
    """Everything, and the ids of artefacts in the order in which answers began."""

    def __init__(self, seed: int, *, lease_s: float = LEASE_S) -> None:
        self.chance, self._lease_s = random.Random(seed), lease_s
        self.data: dict[str, str] = {}
        self.coordinators: list[Agreement] = []
        self.replicas: list[Replica] = []
        self.begun: list[str] = []
        self.agreed = 0
        self.trouble = 0.03  # the share of messages that are lost
        self._tasks: set[asyncio.Task[None]] = set()

    async def pass_time(self, most_s: float = 0.05) -> None:
        await asyncio.sleep(self.chance.random() * most_s)

    async def take_over(self) -> None:
        made = Agreement(Store(self), lease_s=self._lease_s, clock=asyncio.get_running_loop().time)
        await made.open(Pin(0, "", "0", "0"))
        self.coordinators.append(made)

    def begin(self, work: Coroutine[Any, Any, Any]) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def ask(self, replica: Replica) -> None:
        """One request; what is sent to the client is what counts."""

        async def receive() -> dict[str, object]:
            return {"type": "http.request", "body": b"", "more_body": False}

        async def send(message: Any) -> None:
            if message["type"] == "http.response.start" and message["status"] == 200:
                self.begun.append(dict(message["headers"])[b"artefact"].decode())

        scope = {"type": "http", "method": "POST", "path": "/", "headers": []}
        await replica.gate(scope, receive, send)

    async def calm_down(self) -> None:
        """Nothing goes wrong from now on; returns when all that was under way has ended."""
        self.trouble = 0.0
        for replica in self.replicas:
            replica.wire.cut = False
        while self._tasks:
            await asyncio.wait(self._tasks)

    async def answer_of(self, replica: Replica) -> str | None:
        """The artefact that one request is answered under now; None: it is refused."""
        before = len(self.begun)
        await self.ask(replica)
        return self.begun[-1] if len(self.begun) > before else None

    async def update(self, number: int) -> None:
        limits = {
            "prepare_s": self.chance.choice([0.2, 6.0]),
            "pause_s": self.chance.choice([6.0, 20.0]),
        }
        outcome = await self.coordinators[-1].update("", str(number), **limits)
        self.agreed += outcome.problem is None

    async def end(self) -> None:
        going = list(self._tasks)
        for task in going:
            task.cancel()
        await asyncio.gather(*going, return_exceptions=True)
        for replica in self.replicas:
            await replica.kill()
