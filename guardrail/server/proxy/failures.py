"""An upstream's failures as this server's clients hear them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import httpx
from starlette.exceptions import HTTPException

from guardrail.asgi.problems import Problem

_KEPT = frozenset(range(400, 500)) - {401, 403, 407, 408, 429}
_TEXT_CHARS = 2_000
_LONGEST_WAIT_S = 86_400
_NO_KEY = (502, "the upstream refused this server's key", "upstream_auth")
_TOLD = {
    401: _NO_KEY,
    403: _NO_KEY,
    407: _NO_KEY,
    429: (429, "the upstream takes no more requests at the moment", "upstream_rate_limit"),
    503: (503, "the upstream is not available", "upstream_unavailable"),
}
_REDIRECTED = (502, "the upstream redirects, which is not followed", "upstream_broken")
_FAILED = (502, "the upstream failed", "upstream_failed")


class UpstreamProblem(HTTPException):
    """An answer that did not come. `again`: it is certain that the upstream did not begin it.

    `reason` is for logs: it holds no word of a prompt or an answer.
    """

    def __init__(
        self,
        status: int,
        message: str,
        code: str | None,
        *,
        reason: str,
        error: Mapping[str, object] | None = None,
        retry_after_s: float | None = None,
        again: bool = False,
    ) -> None:
        wait = None if retry_after_s is None else {"Retry-After": str(math.ceil(retry_after_s))}
        super().__init__(status, message, headers=wait)
        told = Problem(status, message, code).to_dict()["error"]
        self.error, self.reason = {**told, **(error or {})}, reason
        self.retry_after_s, self.again = retry_after_s, again

    def to_dict(self) -> dict[str, Any]:
        """The error in the form of the OpenAI API."""
        return {"error": self.error}


def late(what: str = "the upstream took too long") -> UpstreamProblem:
    """The time was over."""
    return UpstreamProblem(504, what, "upstream_timeout", reason="timeout")


def broken(reason: str) -> UpstreamProblem:
    """An answer that cannot be passed on: cut, too large, or of another form."""
    message = f"the upstream's answer cannot be passed on: {reason}"
    return UpstreamProblem(502, message, "upstream_broken", reason=reason)


def of_transport(error: httpx.HTTPError | httpx.InvalidURL) -> UpstreamProblem:
    """A request that got no status. Only a connection that was never made is certain."""
    reason = type(error).__name__  # without the message, which may hold an address
    match error:
        case httpx.PoolTimeout():
            message = "all connections to the upstream are taken"
            return UpstreamProblem(
                503, message, "upstream_busy", reason=reason, retry_after_s=1, again=True
            )
        case httpx.ConnectTimeout():
            problem = late("the upstream could not be reached in time")
            problem.again = True
            return problem
        case httpx.TimeoutException():
            return late()
        case httpx.ConnectError() | httpx.ProxyError():
            message = "the upstream cannot be reached"
            return UpstreamProblem(502, message, "upstream_unreachable", reason=reason, again=True)
    message = "the upstream broke the connection off"
    return UpstreamProblem(502, message, "upstream_broken", reason=reason)


def of_status(
    status: int, headers: Mapping[str, str], body: object, clean: Callable[[str], str]
) -> UpstreamProblem:
    """A status other than 200. `clean` takes secrets out of what the upstream says.

    The upstream's 401 and 403 are about this server's key, never about the client's, and what it
    says then may quote the key: neither is passed on. A 503 or 429 with Retry-After says that
    nothing was begun; without it nobody knows.
    """
    wait, reason = _seconds(headers.get("retry-after")), f"status {status}"
    if status in _KEPT:
        said = _said(body, clean)
        message = str(said.pop("message", f"the upstream refused the request ({status})"))
        return UpstreamProblem(status, message, None, reason=reason, error=said)
    if status in (408, 504):
        return late()
    told = _REDIRECTED if 300 <= status < 400 else _TOLD.get(status, _FAILED)
    kept = wait if status in (429, 503) else None
    return UpstreamProblem(*told, reason=reason, retry_after_s=kept, again=kept is not None)


def _said(body: object, clean: Callable[[str], str]) -> dict[str, object]:
    """The error of the OpenAI form that a body holds, in plain and short texts."""
    error = body.get("error", body) if isinstance(body, Mapping) else None
    if isinstance(error, str):
        error = {"message": error}
    if not isinstance(error, Mapping):
        return {}
    said: dict[str, object] = {}
    for name in ("message", "type", "param", "code"):
        value = error.get(name)
        if isinstance(value, str | int) and not isinstance(value, bool):
            said[name] = clean(str(value))[:_TEXT_CHARS]
    return said


def _seconds(value: str | None) -> float | None:
    """Retry-After as a number of seconds; a date counts as not given."""
    try:
        seconds = float(value or "")
    except ValueError:
        return None
    return seconds if 0 <= seconds <= _LONGEST_WAIT_S else None
