"""The border where errors that nobody expected become an answer, and their words stay inside."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from starlette.requests import ClientDisconnect, Request

from guardrail.asgi.answers import Problem
from guardrail.errors import GuardrailError
from guardrail.server.problems import AnswerCutError, refuse, tell

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

_log = logging.getLogger(__name__)
_BROKEN = Problem(500, "the server failed at this request", "internal_error")


class Border:
    """Answers 500 for an unexpected error, or cuts an answer that has begun.

    The package's own errors are told here, too: Starlette's handlers are for an `Exception`, which
    that of a flagged request need not be.

    The HTTP server would log the error's words, which may quote the request, so it hears of
    another error in its place.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        begun = False

        async def told(message: Message) -> None:
            nonlocal begun
            begun = True
            await send(message)

        try:
            await self._app(scope, receive, told)
        except ClientDisconnect:
            _log.debug("a client left before its answer")
        except AnswerCutError:
            raise
        except (Exception, GuardrailError) as error:  # the border
            if isinstance(error, GuardrailError) and not begun:
                await tell(Request(scope), error)(scope, receive, send)
                return
            _log.error("a request failed", exc_info=error)
            if scope["type"] != "http" or begun:
                raise AnswerCutError(type(error).__name__) from None
            await refuse(_BROKEN, scope, receive, send)
