"""The routes of the app beside those of chats: models, checks, health, metrics, the status page."""

from __future__ import annotations

import asyncio
import json
import time
import uuid
from typing import TYPE_CHECKING, Annotated, Any

from fastapi import APIRouter, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse
from pydantic import ValidationError

from guardrail.asgi.chats import Content
from guardrail.errors import GuardrailViolation
from guardrail.server.answers import AsciiJSONResponse, headers_of, told
from guardrail.server.bodies import StrictRoute
from guardrail.server.errors import ApiError, error_answer, unknown_model
from guardrail.server.schemas import (
    ERRORS,
    Check,
    CheckItem,
    CheckList,
    ChecksBody,
)
from guardrail.server.service import checked
from guardrail.server.status import status_of, status_page

if TYPE_CHECKING:
    from collections.abc import Mapping

    from guardrail.server.keys import Caller
    from guardrail.server.service import Service

openai = APIRouter(prefix="/v1", route_class=StrictRoute, responses=ERRORS)
operations = APIRouter()

_STATUS_HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; img-src data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


@openai.get("/models")
async def models(request: Request) -> dict[str, Any]:
    """The models that answer here."""
    return {"object": "list", "data": await request.app.state.service.answerer.models()}


@openai.get("/models/{name:path}")
async def model(name: str, request: Request) -> dict[str, Any]:
    """One of the models that answer here."""
    served = await request.app.state.service.answerer.models()
    for each in served:
        if each["id"] == name:
            return dict(each)
    raise unknown_model(name, ", ".join(str(each["id"]) for each in served))


@openai.post("/checks", response_model=Check | CheckList)
async def checks(body: ChecksBody, request: Request) -> Response:
    """Judge a request, or each of several, and answer nothing else. A flag is no error.

    One request: its verdict, in headers too, or an error status. Several: status 200, and each has
    its verdict or its error in its own place.
    """
    service = request.app.state.service
    guard, settings = service.guard, service.settings
    if body.model not in (None, settings.model_name):
        raise unknown_model(str(body.model), settings.model_name)
    head = {
        "id": f"check-{uuid.uuid4().hex}",
        "created": int(time.time()),
        "model": settings.model_name,
    }
    caller = request.state.caller
    options = service.ask_options(caller)
    if body.inputs is None:
        content = _content(body)
        service.count_asked(caller, content.value)
        verdict = await checked(guard, content, options)
        answer = {**head, "object": "check", "verdict": told(verdict, caller)}
        return AsciiJSONResponse(answer, headers=headers_of(verdict, caller))
    if len(body.inputs) > settings.max_checks:
        raise ApiError(
            f"{len(body.inputs)} inputs; one request may bring {settings.max_checks}",
            status=413,
            param="inputs",
            code="too_large",
        )
    found = await _all(service, body.inputs, options, caller)
    return AsciiJSONResponse({**head, "object": "list", "data": found})


def _content(item: CheckItem) -> Content:
    return Content(item.value(), tools=item.tools or ())


async def _all(
    service: Service, inputs: list[dict[str, Any]], options: Mapping[str, Any], caller: Caller
) -> list[dict[str, Any]]:
    """Each input's verdict or error; no more of them wait at once than run together."""
    guard = service.guard
    room = asyncio.Semaphore(guard.policy.limits.batch)

    async def judged(index: int, item: dict[str, Any]) -> dict[str, Any]:
        head = {"index": index, "object": "check"}
        async with room:
            try:
                content = _content(_item(item))
                service.count_asked(caller, content.value)
                named = {**options, "request_id": f"{options['request_id']}-{index}"}
                verdict = await checked(guard, content, named)
            # a border: an error of one is not the others'
            except (Exception, GuardrailViolation) as error:
                refusal = guard.policy.refusal_message
                answer = error_answer(error, refusal=refusal, caller=caller)
                return {**head, "status": answer.status_code, **json.loads(bytes(answer.body))}
        return {**head, "status": 200, "verdict": told(verdict, caller)}

    async with asyncio.TaskGroup() as tasks:
        jobs = [tasks.create_task(judged(i, item)) for i, item in enumerate(inputs)]
    return [job.result() for job in jobs]


def _item(value: dict[str, Any]) -> CheckItem:
    try:
        return CheckItem.model_validate(value)
    except ValidationError as error:
        raise RequestValidationError(error.errors()) from error


@operations.get("/healthz")
async def alive() -> dict[str, str]:
    """The process answers; it says nothing about the model."""
    return {"status": "ok"}


@operations.get("/readyz", response_model=None)
async def ready(request: Request) -> JSONResponse:
    """Whether chats are answered now; `status` says why not, `note` what an operator should see."""
    service = request.app.state.service
    trouble = "draining" if service.lifecycle.draining else await service.trouble()
    told = {"status": trouble or "ok", "artefact": service.guard.artefact.artefact_id}
    if service.note is not None:
        told["note"] = service.note
    return JSONResponse(told, 503 if trouble else 200)


@operations.get("/metrics", response_class=Response)
def metrics(request: Request) -> Response:
    """Counts and times in Prometheus' text form, or in OpenMetrics where `Accept` asks for it.

    What is counted of scores and of clients is told to those who are told scores.
    """
    metrics = request.app.state.service.observation.metrics
    private = request.state.caller.sees_scores
    text, media_type = metrics.exposition(request.headers.get("accept"), private=private)
    return Response(text, headers={"Content-Type": media_type, "Cache-Control": "no-store"})


@operations.get("/", response_class=HTMLResponse, include_in_schema=False)
def page(request: Request, refresh: Annotated[int, Query(ge=0, le=3600)] = 30) -> Response:
    """The status for people; it is asked for again every `refresh` seconds, never if 0."""
    return HTMLResponse(status_page(_status(request), refresh=refresh), headers=_STATUS_HEADERS)


@operations.get("/status.json", response_class=JSONResponse)
def status(request: Request) -> Response:
    """Recent verdicts, scores beside the calibration, drift, queue, and what is in force."""
    return JSONResponse(_status(request), headers=_STATUS_HEADERS)


def _status(request: Request) -> dict[str, Any]:
    return status_of(request.app.state.service, scores=request.state.caller.sees_scores)
