"""`POST /v1/chat/completions` and `GET /v1/models`."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request, Response

from guardrail.server.api_error import unknown_model
from guardrail.server.chat_schema import ChatBody  # noqa: TC001  # FastAPI reads the annotation
from guardrail.server.error_schema import ERRORS
from guardrail.server.strict_body import StrictRoute

router = APIRouter(prefix="/v1", route_class=StrictRoute, responses=ERRORS)

_ANSWER: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "The answer, or the policy's refusal; the verdict is in `guardrail`.",
        "content": {
            "application/json": {
                "schema": {
                    "type": "object",
                    "required": ["id", "object", "created", "model", "choices"],
                    "properties": {
                        "object": {"const": "chat.completion"},
                        "choices": {"type": "array", "items": {"type": "object"}},
                        "usage": {"type": "object"},
                        "guardrail": {"type": "object", "description": "the verdict"},
                    },
                }
            },
            "text/event-stream": {"schema": {"type": "string"}},
        },
    }
}


@router.post("/chat/completions", response_model=None, responses=_ANSWER)
async def chat_completions(body: ChatBody, request: Request) -> Response:
    """Answer a chat under guard: with the answer come its verdict in `guardrail`, and headers."""
    service = request.app.state.service
    answer: Response = await service.answerer.answer(body, request.state.caller, request)
    return answer


@router.get("/models")
async def models(request: Request) -> dict[str, Any]:
    """The models that answer here."""
    return {"object": "list", "data": await request.app.state.service.answerer.models()}


@router.get("/models/{name:path}")
async def model(name: str, request: Request) -> dict[str, Any]:
    """One of the models that answer here."""
    served = await request.app.state.service.answerer.models()
    for each in served:
        if each["id"] == name:
            return dict(each)
    raise unknown_model(name, ", ".join(str(each["id"]) for each in served))
