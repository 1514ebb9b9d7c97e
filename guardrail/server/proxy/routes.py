"""The routes that are forwarded. What is not here is not there: nothing goes on unchecked."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fastapi import APIRouter, Request, Response

from guardrail.server.proxy.forms import CHAT, COMPLETION, RESPONSE

if TYPE_CHECKING:
    from guardrail.server.proxy.answerer import ProxyAnswerer

router = APIRouter(prefix="/v1", include_in_schema=False)


@router.post(CHAT.path, response_model=None)
async def chat(request: Request) -> Response:
    """A chat."""
    return await _answerer(request).relay(CHAT, request)


@router.post(COMPLETION.path, response_model=None)
async def completion(request: Request) -> Response:
    """A prompt."""
    return await _answerer(request).relay(COMPLETION, request)


@router.post(RESPONSE.path, response_model=None)
async def response(request: Request) -> Response:
    """The input of a response; answers kept by the upstream cannot be referred to."""
    return await _answerer(request).relay(RESPONSE, request)


def _answerer(request: Request) -> ProxyAnswerer:
    answerer: ProxyAnswerer = request.app.state.service.answerer
    return answerer
