"""The app: routes on a service behind its middlewares, and what happens at the end."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from fastapi import FastAPI
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware

from guardrail import __version__
from guardrail.server import (
    problems,
    routes_chat,
    routes_checks,
    routes_health,
    routes_litellm,
    routes_metrics,
    routes_status,
)
from guardrail.server.admission import Admission
from guardrail.server.border import Border
from guardrail.server.bounded import Bounded
from guardrail.server.gate import Gate
from guardrail.server.local import LocalAnswerer
from guardrail.server.naming import Named
from guardrail.server.observing import Observation
from guardrail.server.service import Service
from guardrail.server.settings import ServerSettings

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from guardrail.guard import Guard
    from guardrail.server.service import Answerer

_EXPOSED = (
    *(f"X-Guardrail-{name}" for name in ("Action", "Would-Be", "Score", "Modality", "Reason")),
    "X-Guardrail-Mode",
    "X-Guardrail-Artefact",
    "X-Request-ID",
)


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
    seen = observation or Observation()
    service = Service(
        guard,
        settings or ServerSettings(),
        answerer=None,  # type: ignore[arg-type]
        observation=seen,
    )
    service.answerer = answerer(service)
    seen.watch(service)

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
        middleware=seen.around(_middlewares(service), outside_of=Bounded),
        docs_url=None,  # they load scripts from elsewhere
        redoc_url=None,
        redirect_slashes=False,  # a redirect would name the host that the client named
    )
    app.state.service = service
    problems.install(app)
    for router in getattr(service.answerer, "routers", ()):  # before those they stand in for
        app.include_router(router)
    for routes in (
        routes_chat,
        routes_checks,
        routes_litellm,
        routes_health,
        routes_metrics,
        routes_status,
    ):
        app.include_router(routes.router)
    return app


def _middlewares(service: Service) -> list[Middleware]:
    """From the outside to the inside."""
    origins = list(service.settings.cors_origins)
    cors = Middleware(
        CORSMiddleware,
        allow_origins=origins,
        allow_methods=["GET", "POST"],
        allow_headers=["Authorization", "Content-Type", "X-Request-ID"],
        expose_headers=_EXPOSED,
    )
    return [
        Middleware(Named),
        *([cors] if origins else []),
        Middleware(Border),
        Middleware(Gate, service=service),
        Middleware(Bounded, service=service),
        Middleware(Admission, service=service),
    ]
