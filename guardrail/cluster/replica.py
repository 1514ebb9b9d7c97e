"""One replica: a model, the guard under the artefact it was told of, and the server's app."""

from __future__ import annotations

import asyncio
import logging
from functools import partial
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from fastapi import APIRouter, Request, Response
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import Metric

from guardrail.audit import AuditLog
from guardrail.cluster.settings import UserConfig
from guardrail.errors import ClusterError, ConfigurationError
from guardrail.observe.metrics import PRIVATE
from guardrail.server import create_app
from guardrail.server.app import LocalAnswerer
from guardrail.server.observing import Observation

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Collection, Mapping
    from contextlib import AbstractAsyncContextManager

    from fastapi import FastAPI
    from starlette.types import Receive, Scope, Send

    from guardrail.cluster.settings import Plan
    from guardrail.guard import Guard
    from guardrail.server.service import Service

    Replicas = Mapping[str, list[Metric]]

_log = logging.getLogger(__name__)


class Replica:
    """Answers under the artefact of the last `reconfigure`, or not at all.

    A request stays with the guard it began with, and its verdict names that artefact. Batching is
    the guard's own. Everything belongs to one event loop.
    """

    def __init__(self, plan: Plan, open_guard: Callable[..., Guard], *, name: str) -> None:
        """`open_guard` makes a guard on the replica's model, as `Guard` on one that is loaded."""
        self.name, self._plan, self._open = name, plan, open_guard
        self._audit: AuditLog | None = None
        if plan.settings.audit is not None:  # a file has one writer
            plan.settings.audit.mkdir(parents=True, exist_ok=True)
            self._audit = AuditLog(plan.settings.audit / f"{name}.jsonl")
        self._observation = Observation(
            model=plan.server.model_name,
            audit_log=self._audit,
            engine=plan.settings.engine,
        )
        self._config: UserConfig | None = None
        self._problem: str | None = "there is no artefact yet"
        self._guard: Guard | None = None
        self._app: FastAPI | None = None
        self._life: AbstractAsyncContextManager[object] | None = None
        self._leaving: set[asyncio.Task[None]] = set()

    async def reconfigure(self, user_config: dict[str, Any]) -> None:
        """Answer requests that come from now on under another artefact, on the same loaded model.

        Called by Ray before the first request, and whenever `user_config` changes; meanwhile no
        request is sent here. What raises makes Ray end this replica and try a new one.

        Raises:
            GuardrailError: the artefact cannot be loaded or is another one here.
        """
        try:
            config = UserConfig.model_validate(user_config)
            if config != self._config:  # else Ray only moved the replica to another rank
                await self._exchange(await asyncio.to_thread(self._make, config))
        except Exception as error:  # a border: whatever it is, this replica is not as it should be
            self._problem = _words(error)
            _log.error(
                "not reconfigured; this replica leaves the rotation",
                extra={"why": self._problem, "replica": self.name},
            )
            raise
        self._config, self._problem = config, None

    async def trouble_with(self, user_config: dict[str, Any]) -> str | None:
        """Why this replica could not answer under an artefact; nothing changes here."""
        try:
            guard = await asyncio.to_thread(self._make, UserConfig.model_validate(user_config))
        except Exception as error:  # a border: who wants to roll the artefact out is told
            return f"{self.name}: {_words(error)}"
        await asyncio.to_thread(guard.close)
        return None

    async def check_health(self) -> None:
        """Called by Ray, which replaces a replica that raises here several times in a row.

        Raises:
            ClusterError: requests cannot be answered as they should be.
        """
        trouble = self._problem
        if trouble is None and self._app is not None:
            trouble = await self._app.state.service.trouble()
        if trouble is not None:
            raise ClusterError(trouble)

    async def facts(self) -> dict[str, Any]:
        """This replica's name, the artefact it answers under, and its counts."""
        if self._app is None:
            return {"replica": self.name, "artefact_id": None}
        guard: Guard = self._app.state.service.guard  # the one that counts is made there
        told = {"replica": self.name, "artefact_id": guard.artefact.artefact_id}
        return told | {"monitor": guard.monitor.snapshot().to_dict()}

    async def metrics(self) -> tuple[str, list[Metric]]:
        """This replica's name and metrics, the private ones among them."""
        return self.name, [*self._observation.metrics.registry.collect()]

    async def all_metrics(self) -> dict[str, list[Metric]]:
        """The metrics of all replicas that can be reached, by name."""
        return dict([await self.metrics()])

    async def respond(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The ASGI app; Ray asks for it before the first artefact is known."""
        if scope["type"] == "lifespan":  # that of the app is begun and ended here
            for _ in ("startup", "shutdown"):
                await send({"type": f"{(await receive())['type']}.complete"})
        elif self._app is None:
            raise ClusterError(self._problem or "this replica is starting")
        else:
            await self._app(scope, receive, send)

    async def aclose(self) -> None:
        """End the app and close every guard."""
        await asyncio.gather(*self._leaving, return_exceptions=True)
        if self._life is not None:
            await self._life.__aexit__(None, None, None)
        if self._guard is not None:
            await asyncio.to_thread(self._guard.close)
        self._observation.close()
        if self._audit is not None:
            self._audit.close()

    def _make(self, config: UserConfig) -> Guard:
        """A guard under an artefact, if it is the one that is meant.

        Raises:
            ConfigurationError: there is another artefact in that place on this machine.
            GuardrailError: it cannot be loaded, or does not fit the model.
        """
        from guardrail.artefact import Artefact

        artefact = Artefact.from_pretrained(config.artefact)
        if artefact.artefact_id != config.artefact_id:
            raise ConfigurationError(
                f"{config.artefact} is {artefact.artefact_id} on this machine, asked for is "
                f"{config.artefact_id}; put the same file on all machines"
            )
        return self._open(artefact, policy=self._plan.policy, audit=self._audit)

    async def _exchange(self, guard: Guard) -> None:
        before, self._guard = self._guard, guard
        if self._app is None:
            answerer = partial(_Answerer, all_metrics=self.all_metrics)
            self._app = create_app(
                guard, self._plan.server, answerer=answerer, observation=self._observation
            )
            self._life = self._app.router.lifespan_context(self._app)
            await self._life.__aenter__()
            return
        ended = self._app.state.service.replace(guard)
        going = asyncio.create_task(_close_after(ended, before))  # answers may take minutes
        self._leaving.add(going)
        going.add_done_callback(self._leaving.discard)


async def _close_after(ended: Awaitable[None], guard: Guard | None) -> None:
    await ended
    if guard is not None:
        await asyncio.to_thread(guard.close)


def _words(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"


class _Answerer(LocalAnswerer):
    """Answers as on a single machine, but tells the metrics of all replicas."""

    def __init__(self, service: Service, *, all_metrics: Callable[[], Awaitable[Replicas]]) -> None:
        super().__init__(service)
        self.routers = (metrics_router(all_metrics),)


def metrics_router(all_metrics: Callable[[], Awaitable[Replicas]]) -> APIRouter:
    """`GET /metrics` over those of all replicas; it stands before the app's own route."""
    router = APIRouter()

    @router.get("/metrics", response_class=Response)
    async def metrics(request: Request) -> Response:
        hidden = frozenset() if request.state.caller.sees_scores else PRIVATE
        told, kind = merged(await all_metrics(), hidden=hidden)
        return Response(told, headers={"Content-Type": kind, "Cache-Control": "no-store"})

    return router


def merged(replicas: Replicas, *, hidden: Collection[str] = ()) -> tuple[bytes, str]:
    """The metrics of several replicas, with the replica as a label, as text and its media type."""
    families: dict[str, Metric] = {}
    for replica, metrics in sorted(replicas.items()):
        for found in metrics:
            if found.name in hidden:
                continue
            family = families.setdefault(
                found.name, Metric(found.name, found.documentation, found.type)
            )
            family.samples += [
                sample._replace(labels={**sample.labels, "replica": replica})
                for sample in found.samples
            ]
    registry: Any = SimpleNamespace(collect=families.values)
    encode, media_type = choose_encoder("")
    return encode(registry), media_type
