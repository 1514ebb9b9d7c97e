"""One replica's model, guard and app, and how it goes over to another artefact."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractAsyncContextManager

    from fastapi import FastAPI

    from guardrail.cluster.gate import ReplicaGate
    from guardrail.cluster.orders import Pin
    from guardrail.guard import Guard

    Make = Callable[[Pin, Guard | None], Guard]


@dataclass(frozen=True, slots=True)
class _Ready:
    pin: Pin
    guard: Guard


class Serving:
    """Carries orders out; belongs to one event loop.

    `make(pin, present)` builds a guard in a thread, on the model of the present one if there is
    any, and raises if the artefact is not the one that was agreed on.
    """

    def __init__(self, gate: ReplicaGate, make: Make, app_of: Callable[[Guard], FastAPI]) -> None:
        self._gate, self._make, self._app_of = gate, make, app_of
        self._current: _Ready | None = None
        self._next: _Ready | None = None
        self._app: FastAPI | None = None
        self._life: AbstractAsyncContextManager[object] | None = None
        self._making: asyncio.Future[Guard] | None = None
        self._leaving: set[asyncio.Task[None]] = set()

    @property
    def guard(self) -> Guard | None:
        """The guard in force."""
        return None if self._current is None else self._current.guard

    @property
    def app(self) -> FastAPI | None:
        """The app that answers."""
        return self._app

    async def prepare(self, pin: Pin) -> None:
        """See `Hands`."""
        await self._drop_next()
        self._next = await self._ready(pin)

    async def pause(self) -> None:
        """See `Hands`."""
        await self._gate.pause()

    async def serve(self, pin: Pin) -> None:
        """See `Hands`; what is not the agreed artefact is exchanged before a request gets in."""
        if self._current is not None and self._current.pin.artefact_id == pin.artefact_id:
            self._current = replace(self._current, pin=pin)
        elif self._next is not None and self._next.pin.artefact_id == pin.artefact_id:
            # Not by epoch: what was given up and what was agreed on then have the same one.
            fresh, self._next = replace(self._next, pin=pin), None
            await self._exchange(fresh)
        else:
            await self._exchange(await self._ready(pin))
        if self._app is not None:
            self._gate.open(self._app, pin.epoch)
        await self._drop_next()

    def stop(self) -> None:
        """See `Hands`."""
        self._gate.stop()

    async def aclose(self) -> None:
        """End the app and close every guard."""
        await self._drop_next()
        await asyncio.gather(*self._leaving, return_exceptions=True)
        if self._life is not None:
            await self._life.__aexit__(None, None, None)
        if self._current is not None:
            await asyncio.to_thread(self._current.guard.close)

    async def _ready(self, pin: Pin) -> _Ready:
        while self._making is not None and not self._making.done():
            # One that nobody waits for any more: there may be no room for two models.
            await asyncio.wait([self._making])
        self._making = making = asyncio.ensure_future(
            asyncio.to_thread(self._make, pin, self.guard)
        )
        try:
            return _Ready(pin, await asyncio.shield(making))
        except asyncio.CancelledError:
            making.add_done_callback(_close)  # nobody waits for it any more
            raise

    async def _exchange(self, fresh: _Ready) -> None:
        old, self._current = self._current, fresh
        if self._app is None:
            self._app = self._app_of(fresh.guard)
            self._life = self._app.router.lifespan_context(self._app)
            await self._life.__aenter__()
            return
        going = asyncio.create_task(self._replace(self._app, old, fresh.guard))
        self._leaving.add(going)
        going.add_done_callback(self._leaving.discard)
        await asyncio.sleep(0)  # the new guard is in force; the old one ends with its answers
        if going.done():
            await going

    async def _replace(self, app: FastAPI, old: _Ready | None, guard: Guard) -> None:
        await app.state.service.replace(guard)
        if old is not None:
            await asyncio.to_thread(old.guard.close)

    async def _drop_next(self) -> None:
        unused, self._next = self._next, None
        if unused is not None:
            await asyncio.to_thread(unused.guard.close)


def _close(making: asyncio.Future[Guard]) -> None:
    if not making.cancelled() and making.exception() is None:
        making.result().close()
