"""The one process that keeps the agreement, as a Ray actor, and how to reach it."""

from __future__ import annotations

import asyncio
import logging
import os
from typing import TYPE_CHECKING, Any

import ray

from guardrail.cluster.agreement import Agreement
from guardrail.cluster.store import ray_store

if TYPE_CHECKING:
    from guardrail.cluster.orders import Order, Outcome, Pin
    from guardrail.cluster.settings import ClusterSettings

NAMESPACE = "guardrail"
_MANY = 10_000  # questions of replicas that wait for their answer at once
_log = logging.getLogger(__name__)


class Coordinator:
    """The agreement in a process of its own.

    Ray starts it again wherever it ends; what was agreed on is in the store. Until it is back
    replicas live on their leases, and then refuse requests.
    """

    def __init__(self, name: str, first: Pin, lease_s: float) -> None:
        self._first, self._opening = first, asyncio.Lock()
        self._agreement = Agreement(ray_store(name), lease_s=lease_s)
        self._opened = False

    async def admit(self, source: str, artefact_id: str) -> str | None:
        """See `Agreement.admit`."""
        return await (await self._open()).admit(source, artefact_id)

    async def follow(self, replica: str, seen: str | None, facts: dict[str, object]) -> Order:
        """See `Link.follow`."""
        return await (await self._open()).follow(replica, seen, facts)

    async def tell(self, replica: str, token: str, problem: str | None) -> None:
        """See `Link.tell`."""
        await (await self._open()).tell(replica, token, problem)

    async def leave(self, replica: str) -> None:
        """See `Agreement.leave`."""
        await (await self._open()).leave(replica)

    async def stop(self) -> None:
        """See `Agreement.stop`."""
        await (await self._open()).stop()

    async def update(
        self, source: str, artefact_id: str, *, prepare_s: float, pause_s: float
    ) -> Outcome:
        """See `Agreement.update`; it goes on when the caller has gone."""
        agreement = await self._open()
        going = asyncio.ensure_future(
            agreement.update(source, artefact_id, prepare_s=prepare_s, pause_s=pause_s)
        )
        try:
            return await asyncio.shield(going)
        except asyncio.CancelledError:
            raise
        except Exception:
            # What is on record is not known: a new process reads it before anybody hears of it.
            _log.exception("the agreement could not be put on record; starting again")
            os._exit(1)

    async def status(self) -> dict[str, Any]:
        """What is agreed on, and what each replica last said."""
        agreement = await self._open()
        pin = agreement.agreed
        agreed = {"epoch": pin.epoch, "source": pin.source, "artefact_id": pin.artefact_id}
        return {**agreed, "phase": agreement.phase, "replicas": agreement.members()}

    async def _open(self) -> Agreement:
        async with self._opening:
            if not self._opened:
                await self._agreement.open(self._first)
                self._opened = True
        return self._agreement


class RayLink:
    """The way from a replica to the coordinator, which it starts where there is none."""

    def __init__(self, settings: ClusterSettings, first: Pin) -> None:
        self._settings, self._first = settings, first
        self._actor: Any = None

    async def admit(self) -> str | None:
        """See `Agreement.admit`."""
        first = self._first
        answer: str | None = await self._asked("admit", first.source, first.artefact_id)
        return answer

    async def follow(self, replica: str, seen: str | None, facts: dict[str, object]) -> Order:
        """See `Link.follow`."""
        order: Order = await self._asked("follow", replica, seen, facts)
        return order

    async def tell(self, replica: str, token: str, problem: str | None) -> None:
        """See `Link.tell`."""
        await self._asked("tell", replica, token, problem)

    async def leave(self, replica: str) -> None:
        """See `Agreement.leave`."""
        await self._asked("leave", replica)

    async def status(self) -> dict[str, Any]:
        """See `Coordinator.status`."""
        told: dict[str, Any] = await self._asked("status")
        return told

    async def _asked(self, method: str, *values: object) -> Any:
        try:
            if self._actor is None:
                # It waits for Ray's control store, which may be away.
                self._actor = await asyncio.to_thread(coordinator, self._settings, self._first)
            return await getattr(self._actor, method).remote(*values)
        except ray.exceptions.RayActorError:
            self._actor = None  # another one may be there by now
            raise


def coordinator(settings: ClusterSettings, first: Pin) -> Any:
    """The deployment's coordinator, started if need be; it outlives who started it."""
    options: dict[str, Any] = {
        "name": actor_name(settings.name),
        "namespace": NAMESPACE,
        "lifetime": "detached",
        "get_if_exists": True,
        "max_restarts": -1,
        "max_concurrency": _MANY,
        "num_cpus": 0,
    }
    actor: Any = ray.remote(Coordinator).options(**options)
    return actor.remote(settings.name, first, settings.lease_s)


def actor_name(name: str) -> str:
    """What Ray knows a deployment's coordinator by."""
    return f"{name}-coordinator"
