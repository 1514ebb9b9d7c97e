"""A replica's side of the agreement: it keeps a lease and carries orders out."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from typing import TYPE_CHECKING, Protocol

from guardrail.cluster.orders import ANSWER_S

if TYPE_CHECKING:
    from collections.abc import Callable

    from guardrail.cluster.orders import Link, Order, Pin

_log = logging.getLogger(__name__)
_RETRY_S = 0.2


def _awake_or_asleep() -> float:
    """Seconds, those asleep too: a machine that wakes up must not take its lease for valid."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


class Hands(Protocol):
    """What carries orders out; each may be cancelled by the next order."""

    async def prepare(self, pin: Pin) -> None:
        """Get an artefact ready beside the one in force."""

    async def pause(self) -> None:
        """Begin no answer from now on; returns when none is about to begin."""

    async def serve(self, pin: Pin) -> None:
        """Answer under this artefact."""

    def stop(self) -> None:
        """Take no more requests."""


class Follower:
    """Asks for orders until it is cancelled; belongs to one event loop.

    A lease counts from the moment of the question, so it ends here before it ends there. Whatever
    goes wrong on the way only lets it run out.
    """

    def __init__(
        self,
        link: Link,
        name: str,
        hands: Hands,
        *,
        facts: Callable[[], dict[str, object]] = dict,
        clock: Callable[[], float] = _awake_or_asleep,
    ) -> None:
        self._link, self._name, self._hands = link, name, hands
        self._facts, self._clock = facts, clock
        self._until = -math.inf
        self._work: asyncio.Task[None] | None = None
        self.problem: str | None = None
        self._epoch: int | None = None  # of what was agreed on at the last word

    @property
    def has_lease(self) -> bool:
        """Whether clients may be answered."""
        return self._clock() < self._until

    def may_begin(self, epoch: int) -> bool:
        """Whether answers may begin that are given under this agreement."""
        return self.has_lease and self._epoch == epoch

    @property
    def silent_s(self) -> float:
        """For how long there has been no lease, in seconds; 0 with one."""
        return max(0.0, self._clock() - self._until)

    async def run(self) -> None:
        """Follow orders for ever."""
        seen: str | None = None
        try:
            while True:
                asked = self._clock()
                try:
                    async with asyncio.timeout(ANSWER_S):
                        order = await self._link.follow(self._name, seen, self._facts())
                except Exception as error:  # a border: whatever is wrong, the lease runs out
                    _log.warning("the coordinator cannot be reached (%s)", type(error).__name__)
                    await asyncio.sleep(_RETRY_S)
                    continue
                self._epoch = order.agreed.epoch
                if order.lease_s:
                    self._until = asked + order.lease_s
                if order.token != seen:
                    seen = order.token
                    await self._begin(order)
        finally:
            await self._cancel()

    async def _begin(self, order: Order) -> None:
        await self._cancel()
        if order.phase == "stop":
            self._hands.stop()
        elif order.phase != "hold":
            self._work = asyncio.create_task(self._carry_out(order))
            await asyncio.sleep(0)  # a pause holds before anything else is asked

    async def _cancel(self) -> None:
        if self._work is not None:
            self._work.cancel()
            await asyncio.gather(self._work, return_exceptions=True)
            self._work = None

    async def _carry_out(self, order: Order) -> None:
        problem: str | None = None
        try:
            match order.phase:
                case "prepare" if order.proposed is not None:
                    await self._hands.prepare(order.proposed)
                case "pause":
                    await self._hands.pause()
                case "serve":
                    await self._hands.serve(order.agreed)
        except Exception as error:  # a border: the coordinator tells who asked for the update
            _log.exception("an order to %s could not be carried out", order.phase)
            problem = f"{type(error).__name__}: {error}"
        if order.phase == "serve":
            self.problem = problem
        await self._tell(order.token, problem)

    async def _tell(self, token: str, problem: str | None) -> None:
        while True:
            try:
                async with asyncio.timeout(ANSWER_S):
                    await self._link.tell(self._name, token, problem)
                return
            except Exception as error:  # a border, as above
                _log.warning("the coordinator cannot be told (%s)", type(error).__name__)
                await asyncio.sleep(_RETRY_S)
