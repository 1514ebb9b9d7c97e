"""Which failures of a download are worth another try."""

from __future__ import annotations

import logging
import sys
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

T = TypeVar("T")

ATTEMPTS = 4
_log = logging.getLogger(__name__)


def is_transient(error: BaseException) -> bool:
    """Whether trying again may help: connection errors, timeouts, HTTP 429 and 5xx.

    Libraries wrap such errors in errors of their own, so the causes are read too. A missing or
    gated repository and a damaged file stay as they are however often one asks.
    """
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    client = _http_client(HfHubHTTPError)
    for cause in _chain(error):
        if isinstance(cause, OfflineModeIsEnabled):
            return False
        if isinstance(cause, HfHubHTTPError | client.HTTPStatusError):
            status = int(cause.response.status_code)
            return status == 429 or status >= 500
        if isinstance(cause, client.TransportError | ConnectionError | TimeoutError):
            return True
    return False


def with_retries(call: Callable[[], T], *, what: str) -> T:
    """The result of `call`, tried up to four times, with growing waits, on transient errors."""
    import tenacity

    def warn(state: tenacity.RetryCallState) -> None:
        error = state.outcome.exception() if state.outcome else None
        _log.warning("%s failed (%s), attempt %d", what, error, state.attempt_number)

    retrying = tenacity.Retrying(
        stop=tenacity.stop_after_attempt(ATTEMPTS),
        wait=tenacity.wait_exponential(multiplier=0.5, max=8) + tenacity.wait_random(0, 1),
        retry=tenacity.retry_if_exception(is_transient),
        before_sleep=warn,
        reraise=True,
    )
    return retrying(call)


def _http_client(error: type[BaseException]) -> Any:
    """The HTTP package behind huggingface_hub: httpx in its release 1, httpx2 in release 2."""
    return sys.modules[error.__bases__[0].__module__.partition(".")[0]]


def _chain(error: BaseException) -> Iterator[BaseException]:
    seen: set[int] = set()
    current: BaseException | None = error
    while current is not None and id(current) not in seen:
        yield current
        seen.add(id(current))
        current = current.__cause__ or current.__context__
