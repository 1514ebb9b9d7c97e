"""What a client hears when its request does not reach the app: in the app's own error form."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NoReturn

from starlette.exceptions import HTTPException
from starlette.middleware.exceptions import ExceptionMiddleware
from starlette.responses import JSONResponse

from guardrail.errors import (
    ConfigurationError,
    GuardrailViolation,
    InputError,
    LimitExceededError,
    QueueFullError,
    RequestTimeoutError,
)

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

    def to_dict(self) -> dict[str, object]:
        """The error in the form of the OpenAI API."""
        kind = "invalid_request_error" if self.status < 500 else "server_error"
        error = {"message": self.message, "type": kind, "param": None, "code": self.code}
        return {"error": error}


def problem_of(error: Exception, *, refusal: str, flag_status: int) -> Problem:
    """How an error is told; what is wrong on this side is logged and told in general terms only."""
    match error:
        case HTTPException():
            return Problem(error.status_code, error.detail, headers=error.headers or {})
        case GuardrailViolation():
            return Problem(flag_status, refusal, "content_filter")
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


def _unavailable(message: str) -> Problem:
    return Problem(503, f"{message}; try again later", "unavailable", {"Retry-After": "1"})


def answer_to(error: Exception, problem: Problem, owner: Any) -> ASGIApp:
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
    raised = HTTPException(problem.status, problem.message, headers=dict(problem.headers))
    if any(kind in handlers for kind in type(error).__mro__):
        raised_instead: Exception = error if not isinstance(error, HTTPException) else raised
    elif HTTPException in handlers or problem.status in handlers:
        raised_instead = raised
    else:
        return JSONResponse(problem.to_dict(), problem.status, headers=dict(problem.headers))

    async def failing(scope: Scope, receive: Receive, send: Send) -> NoReturn:
        raise raised_instead

    answering = ExceptionMiddleware(failing, handlers=handlers)

    async def answer(scope: Scope, receive: Receive, send: Send) -> None:
        await answering({**scope, "app": owner}, receive, send)

    return answer
