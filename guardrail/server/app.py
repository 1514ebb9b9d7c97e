"""The app: routes on a service, behind its middleware."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from fastapi import FastAPI
from starlette.middleware import Middleware

from guardrail import __version__
from guardrail.server import errors, litellm, routes
from guardrail.server.chat import LocalAnswerer
from guardrail.server.middleware import ExchangeMiddleware
from guardrail.server.observing import Observation
from guardrail.server.service import Service
from guardrail.server.settings import ServerSettings

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from guardrail.guard import Guard
    from guardrail.server.service import Answerer


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
    for router in (*chosen.routers, chosen.chats, *own):
        app.include_router(router)
    return app
