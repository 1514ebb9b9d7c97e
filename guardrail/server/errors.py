"""Errors as clients hear them: a status, and a body in the form of the OpenAI API."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING

from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from guardrail.asgi.problems import Problem, problem_of
from guardrail.asgi.wire import event
from guardrail.errors import (
    ConfigurationError,
    GuardrailError,
    GuardrailViolation,
    MissingExtraError,
    QueueFullError,
    RequestTimeoutError,
    UnsupportedModelError,
    UrlNotAllowedError,
)
from guardrail.server.answers import AsciiJSONResponse, headers_of, told

if TYPE_CHECKING:
    from fastapi import FastAPI, Request, Response
    from starlette.types import Receive, Scope, Send

    from guardrail.server.keys import Caller


LATE = Problem(504, "the time of this request was over before its answer was", "timeout")
_NO_ADDRESS = (
    "an address in the request may not be fetched by this server; send the content as a data: URL"
)
_NO_PATH = "there is nothing at this path; chats are at /v1/chat/completions (base_url ends in /v1)"
_NO_KIND = Problem(
    422, "this server reads no content of this kind; send text or pictures", "unsupported_content"
)
_NO_FORM = Problem(
    400,
    "this server cannot hold an answer to a schema or force a call: it runs without the extra "
    "'structured'",
    "unsupported_value",
)
_KINDS = frozenset({"str", "constrained-str"})
_SAID = {  # where pydantic's own words are those of Python
    "dict_type": "must be a JSON object",
    "extra_forbidden": "there is no such field here",
    "model_attributes_type": "must be a JSON object",
}
_CODES = {
    404: "not_found",
    405: "method_not_allowed",
    408: "body_timeout",
    413: "too_large",
    415: "unsupported_media_type",
}


class ApiError(GuardrailError, Exception):
    """A request that the client can mend; `param` names the field, in the OpenAI error form."""

    def __init__(
        self, message: str, *, status: int = 400, param: str | None = None, code: str | None = None
    ) -> None:
        self.problem = Problem(status, message, code, param=param)
        super().__init__(message)


class RefusedError(Exception):
    """A request goes no further; `problem` is what its client hears."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        super().__init__(problem.message)


class AnswerCutError(Exception):
    """An answer that had begun ended before it was complete; the message is one safe word."""


def unknown_model(name: str, served: str) -> ApiError:
    """As the OpenAI API says it, with the name that is served."""
    return ApiError(
        f"the model {name[:80]!r} does not exist here; this server has {served!r}",
        status=404,
        param="model",
        code="model_not_found",
    )


def install(app: FastAPI) -> None:
    """Let an app tell what is wrong with a request as its middleware tells all other errors."""

    async def handler(request: Request, error: Exception) -> Response:
        return tell(request, error)

    for kind in (HTTPException, RequestValidationError):
        app.add_exception_handler(kind, handler)


def tell(request: Request, error: BaseException) -> Response:
    """The answer to a request that ended in an error."""
    refusal = request.app.state.service.guard.policy.refusal_message
    return error_answer(error, refusal=refusal, caller=request.state.caller)


def error_answer(error: BaseException, *, refusal: str, caller: Caller) -> Response:
    """The HTTP answer that an error is told by."""
    problem = told_as(error, refusal)
    verdict = error.verdict if isinstance(error, GuardrailViolation) else None
    headers = {**problem.headers, **headers_of(verdict, caller)}
    body = problem.to_dict(told(verdict, caller))
    return AsciiJSONResponse(body, problem.status, headers=headers)


def busy(message: str) -> Problem:
    """There is no room now, and will be later."""
    wait = {"Retry-After": "1"}
    return Problem(429, f"{message}; try again later", "too_many_requests", wait)


async def refuse(problem: Problem, scope: Scope, receive: Receive, send: Send) -> None:
    """Answer a request by a problem, from a middleware."""
    response = JSONResponse(problem.to_dict(), problem.status, headers=dict(problem.headers))
    await response(scope, receive, send)


def stream_end(problem: Problem) -> bytes:
    """A problem as the last event of a stream, after which no `[DONE]` comes."""
    return event(problem.to_dict())


def told_as(error: BaseException, refusal: str) -> Problem:
    """What a client is told of an error."""
    match error:
        case RequestValidationError():
            where, wrong = _where(error), error.errors()[0]
            said = _SAID.get(wrong["type"]) or wrong["msg"].removeprefix("Value error, ")
            message = f"{where or 'the body'}: {said}"
            return Problem(422, message, "invalid_body", param=where or None)
        case ApiError():
            return error.problem
        case ConfigurationError() | UnsupportedModelError():  # the rest of these is told at start
            return Problem(400, str(error), "invalid_setting")
        case QueueFullError():
            seconds = math.ceil(max(getattr(error, "retry_after_s", 1.0), 1.0))
            wait = {"Retry-After": str(seconds)}
            return Problem(429, "too many requests are waiting", "queue_full", wait)
        case RequestTimeoutError():
            return LATE
        case UrlNotAllowedError():  # its words may tell where names lead to in this network
            return Problem(422, _NO_ADDRESS, "url_not_allowed")
        case MissingExtraError():
            return _NO_FORM if error.extra == "structured" else _NO_KIND
        case HTTPException():
            problem = problem_of(error, refusal=refusal, flag_status=400)
            if error.status_code == 404:  # one of the app itself: it has no such route
                problem = replace(problem, message=_NO_PATH)
            return replace(problem, code=problem.code or _CODES.get(error.status_code))
        case _:
            return problem_of(error, refusal=refusal, flag_status=400)


def _where(error: RequestValidationError) -> str:
    """The path to a field, without the names pydantic has for the kinds of value it may hold."""
    steps = [str(step) for step in error.errors()[0]["loc"] if step != "body"]
    return ".".join(step for step in steps if step not in _KINDS and "[" not in step)[:200]
