"""Who is let in, and how many requests may be under way at once."""

from __future__ import annotations

import base64
import binascii
from collections import Counter
from contextlib import contextmanager
from typing import TYPE_CHECKING

from starlette.datastructures import Headers

from guardrail.asgi.problems import Problem
from guardrail.server.errors import RefusedError, busy
from guardrail.server.keys import key_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from starlette.types import Scope

    from guardrail.server.keys import Caller
    from guardrail.server.service import Service

HEALTH = frozenset({"/healthz", "/readyz"})
METRICS = frozenset({"/metrics"})
STATUS = frozenset({"/", "/status.json"})

_PASSED_ON = ("forwarded", "x-forwarded-for", "via")  # so the peer is not who asks

DRAINING = Problem(
    503,
    "the server is ending; ask again, another one may answer",
    "draining",
    {"Retry-After": "1", "Connection": "close"},
)
_AMBIGUOUS = Problem(  # where it ends is one thing to us, and maybe another to what is in front
    400,
    "a body has a Content-Length or a Transfer-Encoding, not both",
    "ambiguous_length",
    {"Connection": "close"},
)
_MISDIRECTED = Problem(
    421, "this server is not known by the name in the Host header", "misdirected"
)


class Access:
    """Who is let in: while the server drains nobody, and with keys only those who have one."""

    def __init__(self, service: Service) -> None:
        self._service, settings = service, service.settings
        self._names = settings.hostnames
        self._open = HEALTH | (METRICS if settings.open_metrics else frozenset())
        self._open |= STATUS if settings.open_status else frozenset()

    def problem(self, scope: Scope, caller: Caller) -> Problem | None:
        """Why a request is not let in, before anything of its body is read; sets who it is from."""
        headers, path = Headers(scope=scope), scope["path"]
        if "content-length" in headers and "transfer-encoding" in headers:
            return _AMBIGUOUS
        if self._names and _hostname(headers.get("host", "")) not in self._names:
            return _MISDIRECTED
        if self._service.lifecycle.draining and path not in HEALTH:
            return DRAINING
        reads = scope["method"] == "GET"  # others bring bodies, and take places for them
        browser = reads and path in STATUS
        keys = self._service.keys
        key = key_of(_token(headers, browser=browser), keys)
        if keys and key is None and not (reads and path in self._open):
            return _unknown(browser=browser)
        caller.client = key.name if key else None
        passed_on = any(name in headers for name in _PASSED_ON)
        peer = "" if passed_on else (scope.get("client") or ("",))[0]
        caller.sees_scores = self._service.settings.shows_scores(keys, key, peer)
        return None


def _token(headers: Headers, *, browser: bool) -> str:
    """The token sent; a browser may send it as the password of any user, LiteLLM as a key."""
    sent, keys = headers.getlist("authorization"), headers.getlist("x-api-key")
    if not sent and len(keys) == 1:
        return keys[0].strip()
    scheme, _, value = sent[0].strip().partition(" ") if len(sent) == 1 else ("", "", "")
    if scheme.lower() == "bearer":
        return value.strip()
    if scheme.lower() == "basic" and browser:
        try:
            return base64.b64decode(value, validate=True).decode("latin-1").partition(":")[2]
        except (binascii.Error, ValueError):
            return ""
    return ""


def _unknown(*, browser: bool) -> Problem:
    scheme = "Basic" if browser else "Bearer"
    return Problem(
        401,
        "no valid API key; send one as Authorization: Bearer KEY",
        "invalid_api_key",
        {"WWW-Authenticate": f'{scheme} realm="guardrail"'},
    )


def _hostname(host: str) -> str:
    """A Host header without its port, in lower case."""
    if host.startswith("["):
        return host.partition("]")[0].removeprefix("[").lower()
    return host.partition(":")[0].lower()


class Places:
    """How many requests may be under way, in sum and by one client.

    A place is for work: somebody who sends half a body shall hold none.
    """

    def __init__(self, service: Service) -> None:
        self._service = service
        self._most = service.settings.max_concurrent
        self._by_client: Counter[str | None] = Counter()

    @contextmanager
    def taken(self, client: str | None) -> Iterator[None]:
        """One place, for the block.

        Raises:
            RefusedError: 429, there is none.
        """
        if self._by_client.total() >= self._most:
            raise RefusedError(busy(f"the server has its {self._most} requests under way"))
        most_each = self._service.settings.per_client(self._service.keys)
        if self._by_client[client] >= most_each:
            raise RefusedError(busy(f"you have your {most_each} requests under way"))
        self._by_client[client] += 1
        try:
            yield
        finally:
            self._by_client[client] -= 1
            self._by_client += Counter()  # forgets who has none
