"""What a client hears when its request does not reach the app: in the app's own error form."""

from __future__ import annotations

import inspect
import logging
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse

from guardrail.asgi.wire import FIELD
from guardrail.errors import (
    ConfigurationError,
    GuardrailViolation,
    InputError,
    LimitExceededError,
    QueueFullError,
    RequestTimeoutError,
)
from guardrail.front.consequences import resolved

if TYPE_CHECKING:
    from collections.abc import Mapping

    from starlette.types import ASGIApp, Receive, Scope, Send

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Problem:
    """An error as HTTP says it."""

    status: int
    message: str
    code: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    param: str | None = None  # the field that it is about

    def to_dict(self, told: Mapping[str, Any] | None = None) -> dict[str, dict[str, Any]]:
        """The error in the form of the OpenAI API, with what is told of a verdict."""
        kind = "invalid_request_error" if self.status < 500 else "server_error"
        error = {"message": self.message, "type": kind, "param": self.param, "code": self.code}
        return {"error": error if told is None else {**error, FIELD: told}}


def problem_of(error: BaseException, *, refusal: str, flag_status: int) -> Problem:
    """How an error is told; what is wrong on this side is logged and told in general terms only."""
    match error:
        case HTTPException():
            return Problem(error.status_code, error.detail, headers=error.headers or {})
        case GuardrailViolation():
            return flagged(refusal, flag_status)
        case LimitExceededError():
            return Problem(413, str(error), "too_large")
        case InputError():
            return Problem(422, str(error), "unsupported_content")
        case ConfigurationError():
            raise error
        case RequestTimeoutError():
            return Problem(504, "the check of this request took too long", "timeout")
        case QueueFullError():
            return _unavailable("too many requests are waiting for their check")
    _log.error("a request could not be checked and was not let through", exc_info=error)
    return _unavailable("requests cannot be checked at the moment")


def flagged(refusal: str, status: int) -> Problem:
    """A request is not answered because of what it holds."""
    return Problem(status, refusal, "content_filter")


def _unavailable(message: str) -> Problem:
    return Problem(503, f"{message}; try again later", "unavailable", {"Retry-After": "1"})


def answer_to(error: BaseException, problem: Problem, owner: Any) -> ASGIApp:
    """An app that answers with a problem as `owner`, a Starlette or FastAPI app, would.

    Its handler for this very error comes first, then that for HTTP errors. Without either, and for
    other apps, the answer has the form of the OpenAI API.
    """
    registered = getattr(owner, "exception_handlers", None)
    handlers = {
        key: handler
        for key, handler in (registered.items() if isinstance(registered, dict) else ())
        if key not in (500, Exception)  # those are for what nobody expected
    }
    told = HTTPException(problem.status, problem.message, headers=dict(problem.headers))
    own = None if isinstance(error, HTTPException) else _handler(error, handlers)
    handler = own or handlers.get(problem.status) or _handler(told, handlers)
    if handler is None:
        return JSONResponse(problem.to_dict(), problem.status, headers=dict(problem.headers))

    async def answer(scope: Scope, receive: Receive, send: Send) -> None:
        # Not raised for Starlette to find the handler: a violation need not be an `Exception`.
        request = Request({**scope, "app": owner}, receive, send)
        subject = error if own else told
        if inspect.iscoroutinefunction(handler):
            response = await handler(request, subject)
        else:
            response = await resolved(await run_in_threadpool(handler, request, subject))
        if response is not None:
            await response(scope, receive, send)

    return answer


def _handler(error: BaseException, handlers: Mapping[Any, Any]) -> Any:
    """The handler that is registered for this kind of error; None where there is none."""
    return next((handlers[kind] for kind in type(error).__mro__ if kind in handlers), None)
