"""`POST /v1/checks`: verdicts alone, for one request or many."""

from __future__ import annotations

import asyncio
import json
import time
import uuid
from typing import TYPE_CHECKING, Any

from fastapi import APIRouter, Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError

from guardrail.asgi.chats import Content
from guardrail.errors import GuardrailViolation
from guardrail.server import problems
from guardrail.server.api_error import ApiError, unknown_model
from guardrail.server.ascii_json import AsciiJSONResponse
from guardrail.server.asking import ask_options, count_asked
from guardrail.server.checking import checked
from guardrail.server.checks_schema import Check, CheckItem, CheckList, ChecksBody
from guardrail.server.error_schema import ERRORS
from guardrail.server.strict_body import StrictRoute
from guardrail.server.verdicts import headers_of, told

if TYPE_CHECKING:
    from collections.abc import Mapping

    from guardrail.server.keys import Caller
    from guardrail.server.service import Service

router = APIRouter(prefix="/v1", route_class=StrictRoute, responses=ERRORS)


@router.post("/checks", response_model=Check | CheckList)
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
    options = ask_options(service, caller)
    if body.inputs is None:
        content = _content(body.alone())
        count_asked(service, caller, content.value)
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
                count_asked(service, caller, content.value)
                named = {**options, "request_id": f"{options['request_id']}-{index}"}
                verdict = await checked(guard, content, named)
            # a border: an error of one is not the others'
            except (Exception, GuardrailViolation) as error:
                refusal = guard.policy.refusal_message
                answer = problems.answer(error, refusal=refusal, caller=caller)
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
