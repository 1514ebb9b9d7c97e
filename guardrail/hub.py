"""Files of the Hub: which failures are worth another try, and who tries.

huggingface_hub repeats each request of a download up to five times, with waits of 23 s in all.
Repeating that would multiply both, so the Hub is asked here, with one request a try, whether it is
there at all, and what follows is left to huggingface_hub.
"""

from __future__ import annotations

import logging
import math
import sys
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

T = TypeVar("T")

ATTEMPTS = 4
ANSWER_S = 15.0  # after which a Hub that has not answered is not asked again
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


class HubFile(NamedTuple):
    """A file of a repository on this machine, and whether the Hub was there when it was sought."""

    path: str
    online: bool


def hub_file(
    repo_id: str,
    filename: str,
    *,
    revision: str | None = None,
    token: str | None = None,
    local_files_only: bool = False,
) -> HubFile:
    """A file from the Hub or, in offline mode and where the Hub does not answer, from the cache.

    A Hub that does not answer is asked again only for what is not in the cache.

    Raises:
        ConnectionError: the Hub did not answer, and the file is not in the cache.
        HfHubHTTPError: the Hub refused.
        LocalEntryNotFoundError: it may not be asked, and the file is not in the cache.
        HFValidationError: that can be no repository's name.
    """
    from huggingface_hub import constants, get_hf_file_metadata, hf_hub_download, hf_hub_url
    from huggingface_hub import try_to_load_from_cache as look_up

    def ask() -> None:
        get_hf_file_metadata(hf_hub_url(repo_id, filename, revision=revision), token=token)

    offline = local_files_only or constants.HF_HUB_OFFLINE
    if not offline:
        found = look_up(repo_id, filename, revision=revision)
        cached = found if isinstance(found, str) else None  # it may say that there is none, too
        try:
            if cached is not None:
                ask()
            else:
                with_retries(ask, what=f"asking the Hub for {repo_id}", within=ANSWER_S)
        except Exception as error:  # an outage, in the words of several libraries, or a refusal
            outage = is_transient(error)
            if outage and cached is not None:
                return HubFile(cached, online=False)
            if outage:
                said = " ".join(str(error).split())
                raise ConnectionError(
                    f"{constants.ENDPOINT} did not answer, check the connection: {said}"
                ) from error
            if cached is None:  # else huggingface_hub decides whether the cache may be used
                raise
    path = hf_hub_download(
        repo_id, filename, revision=revision, token=token, local_files_only=offline
    )
    return HubFile(str(path), online=not offline)


def with_retries(call: Callable[[], T], *, what: str, within: float = math.inf) -> T:
    """The result of `call`, tried up to four times, with growing waits, on transient errors.

    None is begun more than `within` s after the first.
    """
    import tenacity

    def warn(state: tenacity.RetryCallState) -> None:
        error = state.outcome.exception() if state.outcome else None
        _log.warning("%s failed (%s), attempt %d", what, error, state.attempt_number)

    retrying = tenacity.Retrying(
        stop=tenacity.stop_after_attempt(ATTEMPTS) | tenacity.stop_after_delay(within),
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
