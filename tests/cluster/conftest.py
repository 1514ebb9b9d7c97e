"""An agreement with replicas in one process, and requests to ASGI apps without a server."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any

import pytest

from guardrail.cluster.agreement import Agreement
from guardrail.cluster.follower import Follower
from guardrail.cluster.orders import Pin
from guardrail.cluster.store import memory_store
from tests.waiting import auntil

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

LEASE_S = 0.3
OLD, NEW = "guard-old", "guard-new"


class Hand:
    """What a replica does, on record; `fails` and `waits` are names of steps."""

    def __init__(self, *, fails: str = "", waits: str = "") -> None:
        self.fails, self.waits = fails, waits
        self.ready: str | None = None
        self.open: Pin | None = None
        self.did: list[str] = []

    async def _do(self, step: str) -> None:
        self.did.append(step)
        if step == self.waits:
            await asyncio.Event().wait()
        if step == self.fails:
            raise ValueError("the file is another one here")

    async def prepare(self, pin: Pin) -> None:
        await self._do("prepare")
        self.ready = pin.artefact_id

    async def pause(self) -> None:
        self.open = None
        await self._do("pause")

    async def serve(self, pin: Pin) -> None:
        await self._do("serve")
        self.open = pin

    def stop(self) -> None:
        self.open = None
        self.did.append("stop")


class Wire:
    """The way to an agreement, which can be cut."""

    def __init__(self, agreement: Agreement) -> None:
        self.agreement, self.cut = agreement, False

    async def follow(self, *asked: Any) -> Any:
        return await self._through(self.agreement.follow(*asked))

    async def tell(self, *told: Any) -> None:
        await self._through(self.agreement.tell(*told))

    async def _through(self, call: Any) -> Any:
        if self.cut:
            call.close()
            raise ConnectionError("cut")
        answer = await call
        if self.cut:
            raise ConnectionError("cut")
        return answer


class Replica:
    def __init__(self, name: str, agreement: Agreement, hand: Hand) -> None:
        self.wire, self.hand = Wire(agreement), hand
        self.follower = Follower(self.wire, name, hand, facts=lambda: {"name": name})

    @property
    def answers(self) -> str | None:
        """The artefact under which a request that comes now is answered."""
        pin = self.hand.open
        return pin.artefact_id if pin and self.follower.may_begin(pin.epoch) else None


@pytest.fixture
async def agreement() -> Agreement:
    made = Agreement(memory_store({}), lease_s=LEASE_S)
    await made.open(Pin(0, "old.safetensors", OLD, OLD))
    return made


@pytest.fixture
async def join(agreement: Agreement) -> AsyncIterator[Callable[..., Any]]:
    """`await join("a", fails="prepare")`: a replica that follows orders until the test ends."""
    following: list[asyncio.Task[None]] = []

    async def make(name: str, *, of: Agreement = agreement, **hand: str) -> Replica:
        replica = Replica(name, of, Hand(**hand))
        following.append(asyncio.create_task(replica.follower.run()))
        await auntil(lambda: replica.answers is not None)
        return replica

    yield make
    for task in following:
        task.cancel()
    await asyncio.gather(*following, return_exceptions=True)


class Call:
    """One request to an ASGI app; `send` gives pieces of its body."""

    def __init__(self, app: Any, *, method: str = "POST", path: str = "/", **headers: str) -> None:
        raw = [(k.replace("_", "-").encode(), v.encode()) for k, v in headers.items()]
        self.scope = {"type": "http", "method": method, "path": path, "headers": raw}
        self._body: asyncio.Queue[Any] = asyncio.Queue()
        self.messages: list[Any] = []
        self.task = asyncio.ensure_future(app(self.scope, self._body.get, self._note))

    async def _note(self, message: Any) -> None:
        self.messages.append(message)

    def send(self, body: bytes = b"", *, more: bool = False) -> Call:
        self._body.put_nowait({"type": "http.request", "body": body, "more_body": more})
        return self

    @property
    def status(self) -> int | None:
        return self.messages[0]["status"] if self.messages else None

    @property
    def headers(self) -> dict[bytes, bytes]:
        return {key.lower(): value for key, value in self.messages[0]["headers"]}

    @property
    def body(self) -> bytes:
        return b"".join(message.get("body", b"") for message in self.messages)

    async def end(self) -> Call:
        async with asyncio.timeout(5):
            await self.task
        return self


@pytest.fixture
async def call() -> AsyncIterator[Callable[..., Call]]:
    made: list[Call] = []

    def make(app: Any, **options: Any) -> Call:
        made.append(Call(app, **options))
        return made[-1]

    yield make
    for one in made:
        one.task.cancel()
        with contextlib.suppress(BaseException):
            await one.task
