"""Which artefact all replicas answer under, and how they go over to another one.

No answer under the old artefact begins after the first one under the new artefact: the new one is
agreed on when every replica has paused, or has been silent until its lease was over. A replica
answers only while it has a lease, so one that is cut off counts as paused.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from guardrail.cluster.orders import ANSWER_S, Order, Outcome, Phase, Pin

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from guardrail.cluster.store import Store

_MARGIN = 1.2  # clocks of two machines do not run at quite the same pace
_KEPT_S = ANSWER_S / 2  # a question at most, however long the lease of who asks


@dataclass(slots=True)
class _Member:
    expires: float
    done: str | None = None
    problem: str | None = None
    facts: dict[str, object] = field(default_factory=dict)


class Agreement:
    """Orders for replicas, and updates; all methods belong to one event loop.

    `lease_s` is how long a replica may answer after its last word from here. A new owner of the
    store waits that long before an update, so that leases from before have ended or are known.
    """

    def __init__(
        self, store: Store, *, lease_s: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._store, self._lease_s, self._clock = store, lease_s, clock
        self._name = uuid.uuid4().hex
        self._members: dict[str, _Member] = {}
        self._changed = asyncio.Condition()
        self._updating = asyncio.Lock()
        self._phase: Phase = "serve"
        self._orders = 0
        self._agreed: Pin | None = None
        self._proposed: Pin | None = None
        self._started = clock()

    async def open(self, first: Pin) -> None:
        """Take the store over; `first` is agreed on where nothing is yet."""
        self._agreed = await self._store.take(self._name)
        if self._agreed is None:
            await self._store.write(first)
            self._agreed = first
        self._started = self._clock()

    @property
    def agreed(self) -> Pin:
        """What is agreed on."""
        if self._agreed is None:
            raise RuntimeError("the agreement was not opened")
        return self._agreed

    @property
    def phase(self) -> Phase:
        """What replicas are told to do."""
        return self._phase

    @property
    def _stopped(self) -> bool:
        return self._phase == "stop"

    def members(self) -> dict[str, dict[str, object]]:
        """What each replica that has a lease last said of itself."""
        now = self._clock()
        return {n: m.facts for n, m in self._members.items() if m.expires > now}

    async def follow(self, replica: str, seen: str | None, facts: dict[str, object]) -> Order:
        """See `Link`; a replica that is no member becomes one when no update is under way.

        Raises:
            RuntimeError: another coordinator has taken over.
        """
        member = self._members.get(replica)
        if member is not None:
            member.facts = facts
        async with self._changed:
            try:
                async with asyncio.timeout(min(self._lease_s / 4, _KEPT_S)):
                    while seen == self._token(replica):
                        await self._changed.wait()
            except TimeoutError:
                pass
        # Two that both think they are in charge must not grant leases: the store knows one owner.
        if await self._store.owner() != self._name:
            raise RuntimeError("another coordinator has taken over")
        return self._granted(replica, facts)

    async def tell(self, replica: str, token: str, problem: str | None) -> None:
        """See `Link`."""
        member = self._members.get(replica)
        if member is not None and token == self._token(replica):
            async with self._changed:
                member.done, member.problem = token, problem
                self._changed.notify_all()

    async def admit(self, source: str, artefact_id: str) -> str | None:
        """Why a replica with these settings may not join: the others have another artefact.

        Where there are no others it joins, and what its settings name is agreed on. The end of an
        update is waited for.
        """
        if artefact_id == self.agreed.configured:
            return None
        async with self._updating:  # what is written by two at once may stay in either order
            if artefact_id == self.agreed.artefact_id:
                self._agreed = replace(self.agreed, configured=artefact_id)
                await self._store.write(self.agreed)
                return None
        if not self._updating.locked() and not self.members():
            await self.update(source, artefact_id, prepare_s=0.0, pause_s=0.0)
            if self.agreed.artefact_id == artefact_id:
                return await self.admit(source, artefact_id)
        return (
            f"the settings name {artefact_id}, but the replicas here agree on "
            f"{self.agreed.artefact_id}; run `guardrail cluster update` for another artefact"
        )

    async def leave(self, replica: str) -> None:
        """Forget a replica that answers nobody any more."""
        async with self._changed:
            self._members.pop(replica, None)
            self._changed.notify_all()

    async def stop(self) -> None:
        """Tell replicas to take no more requests, for good."""
        async with self._changed:
            self._order("stop")

    async def update(
        self, source: str, artefact_id: str, *, prepare_s: float, pause_s: float
    ) -> Outcome:
        """Bring all replicas to another artefact, or leave all with the present one.

        `prepare_s` is for loading it, `pause_s` for answers that are about to begin.
        """
        if self._updating.locked() or self._stopped:
            return Outcome(self.agreed, "another update or a stop is under way; try again later")
        async with self._updating:
            if artefact_id == self.agreed.artefact_id:
                return Outcome(self.agreed)
            await asyncio.sleep(self._started + self._lease_s * _MARGIN - self._clock())
            proposed = Pin(self.agreed.epoch + 1, source, artefact_id, self.agreed.configured)
            problem: str | None = None
            steps: tuple[tuple[Phase, float], ...] = (("prepare", prepare_s), ("pause", pause_s))
            for phase, limit_s in steps:
                async with self._changed:
                    self._order(phase, proposed)
                problem = problem or await self._all_done(limit_s)
                if problem:
                    break
            return await self._settled(proposed, problem)

    async def _settled(self, proposed: Pin, problem: str | None) -> Outcome:
        """Agree on the new artefact, put that on record, and only then tell anybody."""
        if problem is None and self._stopped:
            problem = "the replicas are stopping"
        if problem is None:
            # If this fails nobody knows what is on record: all stay paused until a new owner reads.
            await self._store.write(proposed)
            self._agreed = proposed
        async with self._changed:
            self._order("serve")
        return Outcome(self.agreed, problem)

    async def _all_done(self, limit_s: float) -> str | None:
        """Wait for every member to carry out the order; the first problem there is."""
        end = self._clock() + limit_s
        async for waiting in self._unfinished():
            now = self._clock()
            if now >= end:
                return f"{waiting[0]} was not ready in {limit_s:g} s to {self._phase}"
            expiry = min(self._members[name].expires for name in waiting)
            await self._change(within_s=max(min(end, expiry) - now, 0.001))
        for name, member in self._members.items():
            if member.problem is not None and member.done == self._token(name):
                return f"{name}: {member.problem}"
        return None

    async def _unfinished(self) -> AsyncIterator[list[str]]:
        """The members to wait for, until there are none or one has a problem."""
        while not self._stopped:
            now = self._clock()
            self._members = {n: m for n, m in self._members.items() if m.expires > now}
            finished = {n for n, m in self._members.items() if m.done == self._token(n)}
            if any(self._members[name].problem for name in finished):
                return
            waiting = [name for name in self._members if name not in finished]
            if not waiting:
                return
            yield waiting

    async def _change(self, *, within_s: float) -> None:
        async with self._changed:
            try:
                await asyncio.wait_for(self._changed.wait(), within_s)
            except TimeoutError:
                pass

    def _granted(self, replica: str, facts: dict[str, object]) -> Order:
        """The order in force, with a lease for members; outside updates anybody becomes one."""
        if replica not in self._members:
            if self._phase in ("prepare", "pause"):
                return Order(self._token(replica), "hold", self.agreed)
            self._members[replica] = _Member(0.0, facts=facts)
        self._members[replica].expires = self._clock() + self._lease_s * _MARGIN
        return Order(
            self._token(replica), self._phase, self.agreed, self._proposed, lease_s=self._lease_s
        )

    def _order(self, phase: Phase, proposed: Pin | None = None) -> None:
        """Give another order; the lock of `_changed` is held. A stop is the last one."""
        if not self._stopped:
            self._phase, self._proposed = phase, proposed
            self._orders += 1
            self._changed.notify_all()

    def _token(self, replica: str) -> str:
        """The order's name, which for one that is no member is that of holding still."""
        held = self._phase in ("prepare", "pause") and replica not in self._members
        return f"{self._name}:{'hold' if held else self._orders}"
