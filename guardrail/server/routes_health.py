"""Whether the server lives, and whether it can answer."""

from __future__ import annotations

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse

router = APIRouter()


@router.get("/healthz")
async def alive() -> dict[str, str]:
    """The process answers; it says nothing about the model."""
    return {"status": "ok"}


@router.get("/readyz", response_model=None)
async def ready(request: Request) -> JSONResponse:
    """Whether chats are answered now; `status` says why not, `note` what an operator should see."""
    service = request.app.state.service
    trouble = "draining" if service.lifecycle.draining else await service.trouble()
    told = {"status": trouble or "ok", "artefact": service.guard.artefact.artefact_id}
    if service.note is not None:
        told["note"] = service.note
    return JSONResponse(told, 503 if trouble else 200)
