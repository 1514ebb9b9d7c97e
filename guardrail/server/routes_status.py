"""`GET /` and `GET /status.json`: a small page for people, and the same for programs."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import HTMLResponse, JSONResponse

from guardrail.server.status import status_of
from guardrail.server.status_page import status_page

_HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; img-src data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}

router = APIRouter()


@router.get("/", response_class=HTMLResponse, include_in_schema=False)
def page(request: Request, refresh: Annotated[int, Query(ge=0, le=3600)] = 30) -> Response:
    """The status for people; it is asked for again every `refresh` seconds, never if 0."""
    return HTMLResponse(status_page(_status(request), refresh=refresh), headers=_HEADERS)


@router.get("/status.json", response_class=JSONResponse)
def status(request: Request) -> Response:
    """Recent verdicts, scores beside the calibration, drift, queue, and what is in force."""
    return JSONResponse(_status(request), headers=_HEADERS)


def _status(request: Request) -> dict[str, Any]:
    return status_of(request.app.state.service, scores=request.state.caller.sees_scores)
