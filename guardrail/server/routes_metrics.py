"""`GET /metrics` for Prometheus."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response

router = APIRouter()


@router.get("/metrics", response_class=Response)
def metrics(request: Request) -> Response:
    """Counts and times in Prometheus' text form, or in OpenMetrics where `Accept` asks for it.

    What is counted of scores and of clients is told to those who are told scores.
    """
    metrics = request.app.state.service.observation.metrics
    private = request.state.caller.sees_scores
    text, media_type = metrics.exposition(request.headers.get("accept"), private=private)
    return Response(text, headers={"Content-Type": media_type, "Cache-Control": "no-store"})
