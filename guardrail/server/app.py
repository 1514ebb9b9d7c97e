"""The app: routes on a service, behind its middleware, and the answers of the guarded model."""

from __future__ import annotations

import time
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from fastapi import FastAPI
from starlette.middleware import Middleware

from guardrail import __version__
from guardrail.server import chat, errors, litellm, responses, routes
from guardrail.server.middleware import ExchangeMiddleware
from guardrail.server.observing import Observation
from guardrail.server.service import Service
from guardrail.server.settings import ServerSettings

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from fastapi import APIRouter

    from guardrail.guard import Guard
    from guardrail.server.service import Answerer


class LocalAnswerer:
    """Asks the service's guard for an answer and a verdict in one prefill."""

    chats: tuple[APIRouter, ...] = (chat.router, responses.router)
    routers: tuple[APIRouter, ...] = ()

    def __init__(self, service: Service) -> None:
        self._service, self._created = service, int(time.time())

    async def models(self) -> list[dict[str, object]]:
        """See `Answerer`."""
        name = self._service.settings.model_name
        return [{"id": name, "object": "model", "created": self._created, "owned_by": "local"}]

    async def trouble(self) -> str | None:
        """See `Answerer`."""
        return None  # the guard says it

    async def aclose(self) -> None:
        """Nothing is held here."""


def create_app(
    guard: Guard,
    settings: ServerSettings | None = None,
    *,
    answerer: Callable[[Service], Answerer] = LocalAnswerer,
    observation: Observation | None = None,
) -> FastAPI:
    """An ASGI app around a guard, which stays yours to close; so does an observation of yours.

    What clients send opens no files, and no addresses unless `settings.fetch_urls` is set:
    requests get another guard on the same model where the policy would allow more.
    """
    service = Service(
        guard, settings or ServerSettings(), observation or Observation(), answered_by=answerer
    )

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        try:
            yield
        finally:
            await service.aclose()

    app = FastAPI(
        title="guardrail-vlm",
        version=__version__,
        lifespan=lifespan,
        middleware=[Middleware(ExchangeMiddleware, service=service)],
        docs_url=None,  # they load scripts from elsewhere
        redoc_url=None,
        redirect_slashes=False,  # a redirect would name the host that the client named
    )
    app.state.service = service
    errors.install(app)
    chosen, own = service.answerer, (routes.openai, litellm.router, routes.operations)
    for router in (*chosen.routers, *chosen.chats, *own):
        app.include_router(router)
    return app
