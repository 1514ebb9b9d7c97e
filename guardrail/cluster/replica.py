"""One replica as Ray Serve runs it: a model, its guard, and the server's app behind a gate."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from functools import partial
from typing import TYPE_CHECKING

from ray import serve

from guardrail.cluster.coordinator import RayLink
from guardrail.cluster.follower import Follower
from guardrail.cluster.gate import ReplicaGate
from guardrail.cluster.making import make_guard, open_audit
from guardrail.cluster.metrics import metrics_router
from guardrail.cluster.serving import Serving
from guardrail.errors import ConfigurationError, GuardClosedError
from guardrail.server import create_app
from guardrail.server.chat import LocalAnswerer
from guardrail.server.observing import Observation

if TYPE_CHECKING:
    from fastapi import APIRouter, FastAPI
    from starlette.types import ASGIApp

    from guardrail.cluster.settings import Plan
    from guardrail.guard import Guard
    from guardrail.server.service import Service
    from guardrail.server.settings import ServerSettings

_log = logging.getLogger(__name__)
_LOOK_S = 0.05
_COORDINATOR_S = 5.0


class _ReplicaAnswerer(LocalAnswerer):
    """Answers as on a single machine; some routes stand before the app's own."""

    def __init__(self, service: Service, *, routers: tuple[APIRouter, ...]) -> None:
        super().__init__(service)
        self.routers = routers


@serve.ingress()
class GuardReplica:
    """Answers under the agreed artefact, or not at all. Batching is the guard's own."""

    async def __init__(self, plan: Plan) -> None:  # type: ignore[misc]  # Ray awaits it
        self._name = serve.get_replica_context().replica_id.unique_id
        settings, self._link = plan.settings, RayLink(plan.settings, plan.pin)
        self._lease_s = settings.lease_s
        problem = await self._link.admit()
        if problem is not None:
            raise ConfigurationError(problem)
        self._audit = open_audit(settings, self._name)
        self._gate = ReplicaGate(self._may_begin, wait_s=settings.pause_s + settings.lease_s)
        make = partial(make_guard, plan, self._audit)
        self._observation = Observation(model=plan.server.model_name, audit_log=self._audit)
        self._serving = Serving(self._gate, make, partial(self._app, plan.server))
        self._follower = Follower(self._link, self._name, self._serving, facts=self._facts)
        self._following = asyncio.create_task(self._follower.run())
        await self._first_order()

    async def _first_order(self) -> None:
        """Wait until there is something to answer with.

        Raises:
            ConfigurationError: the agreed artefact or the model cannot be loaded here.
        """
        while self._serving.app is None:
            if self._follower.problem is not None:
                await self._end()
                raise ConfigurationError(self._follower.problem)
            await asyncio.sleep(_LOOK_S)

    def __serve_build_asgi_app__(self) -> ASGIApp:
        """What Ray sends requests to."""
        return self._gate

    async def check_health(self) -> None:
        """Called by Ray, which replaces a replica that raises here several times in a row.

        Raises:
            GuardClosedError: no request can be answered, and that does not end by itself.
        """
        guard, app = self._serving.guard, self._serving.app
        if guard is None or app is None or guard.closed:
            raise GuardClosedError("the guard is closed")
        if self._following.done():
            raise GuardClosedError("the replica follows no orders any more")
        if self._follower.problem is not None:
            raise GuardClosedError(self._follower.problem)
        if self._follower.silent_s > self._lease_s:
            raise GuardClosedError("the coordinator cannot be reached")
        trouble = await app.state.service.trouble()
        if trouble is not None:
            raise GuardClosedError(trouble)

    def _app(self, server: ServerSettings, guard: Guard) -> FastAPI:
        routers = (metrics_router(self._texts),)
        answerer = partial(_ReplicaAnswerer, routers=routers)
        return create_app(guard, server, answerer=answerer, observation=self._observation)

    async def _texts(self) -> dict[str, str]:
        """What all replicas last told of their metrics, and this one tells now."""
        own = {self._name: self._exposition()}
        try:
            async with asyncio.timeout(_COORDINATOR_S):
                told = await self._link.status()
        except Exception as error:  # a border: one replica's figures are better than none
            _log.warning("other replicas' metrics are missing (%s)", type(error).__name__)
            return own
        others = {name: facts.get("metrics") for name, facts in told["replicas"].items()}
        return {name: text for name, text in others.items() if isinstance(text, str)} | own

    def _exposition(self) -> str:
        text, _ = self._observation.metrics.exposition(None)
        return text.decode()

    def _may_begin(self, epoch: int) -> bool:
        return self._follower.may_begin(epoch)

    def _facts(self) -> dict[str, object]:
        app = self._serving.app
        if app is None:
            return {"artefact_id": None}
        guard: Guard = app.state.service.guard  # the one that counts is made there
        return {
            "artefact_id": guard.artefact.artefact_id,
            "monitor": guard.monitor.snapshot().to_dict(),
            "metrics": self._exposition(),
        }

    async def _unfollow(self) -> None:
        self._following.cancel()
        await asyncio.gather(self._following, return_exceptions=True)

    async def _end(self) -> None:
        await self._unfollow()
        await self._serving.aclose()
        self._observation.close()
        if self._audit is not None:
            self._audit.close()

    async def __del__(self) -> None:
        """Called by Ray once, when requests have ended."""
        if not hasattr(self, "_following"):
            return
        self._gate.stop()
        await self._unfollow()
        with contextlib.suppress(Exception):  # it may be gone already; the lease runs out anyway
            async with asyncio.timeout(1):
                await self._link.leave(self._name)
        await self._end()
