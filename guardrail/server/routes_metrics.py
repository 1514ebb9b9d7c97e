"""`GET /metrics` for Prometheus."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response

router = APIRouter()


@router.get("/metrics", response_class=Response)
def metrics(request: Request) -> Response:
    """Counts and times in Prometheus' text form, or in OpenMetrics where `Accept` asks for it."""
    observation = request.app.state.service.observation
    text, media_type = observation.metrics.exposition(request.headers.get("accept"))
    return Response(text, headers={"Content-Type": media_type, "Cache-Control": "no-store"})
