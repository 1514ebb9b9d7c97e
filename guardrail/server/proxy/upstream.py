"""The connection to the upstream: bounded in time and size, and tried again only where safe."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Awaitable, Callable, Mapping
from contextlib import contextmanager
from http.cookiejar import CookieJar, DefaultCookiePolicy
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import httpx
from tenacity import (
    AsyncRetrying,
    retry_if_exception,
    stop_after_attempt,
    stop_before_delay,
    wait_random_exponential,
)

from guardrail import __version__
from guardrail.errors import ConfigurationError
from guardrail.inputs.strict_json import strict_json
from guardrail.server.proxy.failures import UpstreamProblem, broken, late, of_status, of_transport

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Iterator
    from pathlib import Path

    from tenacity import RetryCallState

    from guardrail.server.settings import UpstreamSettings


_ERROR_BYTES = 65_536
_HIDDEN = "***"
_SHORTEST_SECRET = 8  # local servers are given keys such as "ollama" or "EMPTY"
# Shorter than servers keep idle connections: a request must not meet one that is just being closed.
_IDLE_S = 2.0
_MOST_MODELS = 1_000
_OF_MODELS = ("id", "object", "created", "owned_by")
_PROBE_S = 3.0
_UNSURE = frozenset({502, 503, 504})
_backoff = wait_random_exponential(multiplier=0.1, max=2)

T = TypeVar("T")


class Upstream:
    """Sends requests with this server's own key, over one pool of connections.

    The pool is made in the running loop by the first request, and is to be closed there.

    Raises:
        ConfigurationError: the authorities to trust cannot be read.
    """

    def __init__(self, settings: UpstreamSettings) -> None:
        self.settings = settings
        self._made: httpx.AsyncClient | None = None
        self._key = settings.key.get_secret_value() if settings.key else ""
        self._trusted = _authorities(settings.ca_file)

    def clean(self, text: str) -> str:
        """A text of the upstream's without this server's key."""
        return text.replace(self._key, _HIDDEN) if self._key else text

    def clean_bytes(self, data: bytes) -> bytes:
        """Bytes without this server's key; one as short as a word is in answers by chance."""
        if len(self._key) < _SHORTEST_SECRET:
            return data
        return data.replace(self._key.encode(), _HIDDEN.encode())

    def clean_value(self, value: Any) -> Any:
        """A parsed answer without this server's key: JSON has several ways to write one text."""
        if len(self._key) < _SHORTEST_SECRET:
            return value
        match value:
            case str():
                return self.clean(value)
            case list():
                return [self.clean_value(each) for each in value]
            case dict():
                return {self.clean(key): self.clean_value(each) for key, each in value.items()}
        return value

    async def send(
        self,
        method: str,
        path: str,
        *,
        deadline: float,
        headers: Mapping[str, str],
        content: bytes | None = None,
    ) -> httpx.Response:
        """An answer of status 200, whose body is still to be read and which is to be closed.

        `deadline` is a time of the running loop. A POST is sent again only where it is certain that
        the upstream did not begin it: no connection was made, or a 429 or 503 names a Retry-After.

        Raises:
            UpstreamProblem: no such answer came.
        """
        settings, left = self.settings, deadline - asyncio.get_running_loop().time()
        retrying = AsyncRetrying(
            retry=retry_if_exception(self._worth_it(idempotent=method == "GET")),
            stop=stop_after_attempt(settings.retries + 1) | stop_before_delay(max(left, 0)),
            wait=_pause,
            reraise=True,
        )
        try:
            async with asyncio.timeout_at(deadline):
                return await retrying(self._once, method, path, headers, content)
        except TimeoutError:
            raise late() from None

    async def read_json(self, response: httpx.Response, *, deadline: float) -> dict[str, Any]:
        """The JSON object of an answer, without this server's key; the answer is closed then.

        Raises:
            UpstreamProblem: there is none, or it is too large, or it did not come whole in time.
        """
        try:
            if media_type(response) != "application/json":
                raise broken("it is no JSON")
            async with asyncio.timeout_at(deadline):
                data = b"".join([chunk async for chunk in self.chunks(response)])
                found = await asyncio.to_thread(_parsed, data, self.clean_value)
        except TimeoutError:
            raise late() from None
        finally:
            await response.aclose()
        if not isinstance(found, dict):
            raise broken("it is no JSON object that can be read")
        return found

    async def chunks(
        self, response: httpx.Response, max_bytes: int | None = None
    ) -> AsyncGenerator[bytes, None]:
        """An answer's body as it comes; the settings say how large it may be, or `max_bytes`.

        Raises:
            UpstreamProblem: it was cut, is too slow, or larger than allowed.
        """
        size, most = 0, max_bytes or self.settings.max_answer_bytes
        with _transport_errors():
            async for chunk in response.aiter_raw():
                size += len(chunk)
                if size > most:
                    raise broken("it is too large")
                yield chunk

    async def trouble(self) -> str:
        """Why the upstream cannot be asked now, or ""; one that lists no models is fine."""
        try:
            response = await self._list_models(_from_now(_PROBE_S))
            await response.aclose()
        except UpstreamProblem as problem:
            reached = 400 <= problem.status_code < 500
            return "" if reached else problem.detail
        return ""

    async def models(self) -> list[dict[str, object]]:
        """The upstream's models, by name, kind, date and owner alone.

        Raises:
            UpstreamProblem: it does not tell them.
        """
        deadline = _from_now(2 * _PROBE_S)
        found = await self.read_json(await self._list_models(deadline), deadline=deadline)
        listed = found.get("data")
        if not isinstance(listed, list):
            raise broken("it lists no models")
        return [_told(each) for each in listed[:_MOST_MODELS] if _is_model(each)]

    async def aclose(self) -> None:
        """Close all connections."""
        made, self._made = self._made, None
        if made is not None:
            await made.aclose()

    async def _list_models(self, deadline: float) -> httpx.Response:
        headers = {"Accept": "application/json"}
        return await self.send("GET", "/models", deadline=deadline, headers=headers)

    async def _once(
        self, method: str, path: str, headers: Mapping[str, str], content: bytes | None
    ) -> httpx.Response:
        client = self._client()
        with _transport_errors():
            request = client.build_request(
                method, self.settings.url + path, headers=dict(headers), content=content
            )
            response = await client.send(request, stream=True)
        try:
            if response.status_code != 200:
                said = await self._error_of(response)
                raise of_status(response.status_code, response.headers, said, self.clean)
            if response.headers.get("content-encoding", "identity") != "identity":
                raise broken("it is compressed, which was not asked for")
        except BaseException:
            await response.aclose()
            raise
        return response

    async def _error_of(self, response: httpx.Response) -> object:
        """What the upstream says about an error, if it is JSON, short and came whole."""
        try:
            chunks = [chunk async for chunk in self.chunks(response, _ERROR_BYTES)]
        except UpstreamProblem:
            return None
        return _parsed(b"".join(chunks))

    def _worth_it(self, *, idempotent: bool) -> Callable[[BaseException], bool]:
        longest = self.settings.retry_wait_s

        def worth_it(error: BaseException) -> bool:
            if not isinstance(error, UpstreamProblem):
                return False
            soon = (error.retry_after_s or 0) <= longest
            return soon and (error.again or (idempotent and error.status_code in _UNSURE))

        return worth_it

    def _client(self) -> httpx.AsyncClient:
        if self._made is None:
            settings = self.settings
            fixed = {
                "User-Agent": f"guardrail-vlm/{__version__}",
                "Accept-Encoding": "identity",
            }
            if self._key:
                fixed["Authorization"] = f"Bearer {self._key}"
            none_kept = CookieJar(DefaultCookiePolicy(allowed_domains=[]))
            self._made = httpx.AsyncClient(
                headers=fixed,
                cookies=none_kept,
                verify=self._trusted,
                follow_redirects=False,
                trust_env=settings.trust_env,
                limits=httpx.Limits(max_connections=settings.connections, keepalive_expiry=_IDLE_S),
                timeout=httpx.Timeout(
                    settings.read_timeout_s,
                    connect=settings.connect_timeout_s,
                    pool=settings.pool_timeout_s,
                ),
            )
        return self._made


def _authorities(file: Path | None) -> ssl.SSLContext | bool:
    """What the upstream's certificate must be signed by; True: the usual authorities."""
    if file is None:
        return True
    try:
        return ssl.create_default_context(cafile=file)
    except OSError as error:  # ssl's own errors among them
        raise ConfigurationError(f"{file} holds no certificates that can be read") from error


def media_type(response: httpx.Response) -> str:
    """The media type of an answer, without its parameters."""
    given: str = response.headers.get("content-type", "")
    return given.partition(";")[0].strip().lower()


def _parsed(data: bytes, clean: Callable[[Any], Any] = lambda value: value) -> object:
    try:
        return clean(strict_json(data.decode()))
    except (ValueError, RecursionError):
        return None


@contextmanager
def _transport_errors() -> Iterator[None]:
    try:
        yield
    except httpx.HTTPError as error:
        raise of_transport(error) from None


def _pause(state: RetryCallState) -> float:
    """Seconds to the next attempt: what the upstream asks for, and some more by chance."""
    error = state.outcome.exception() if state.outcome else None
    asked = error.retry_after_s if isinstance(error, UpstreamProblem) else None
    return (asked or 0) + _backoff(state)


class Kept(Generic[T]):
    """A value that is asked for again when it is `seconds` old; callers at once share one ask."""

    def __init__(self, ask: Callable[[], Awaitable[T]], seconds: float) -> None:
        self._ask, self._seconds = ask, seconds
        self._lock, self._until = asyncio.Lock(), float("-inf")
        self._value: T | None = None

    async def get(self) -> T:
        """The value; what asking raises is raised, and not kept."""
        clock = asyncio.get_running_loop().time
        async with self._lock:
            if self._value is None or clock() >= self._until:
                self._value = await self._ask()
                self._until = clock() + self._seconds
            return self._value


def _from_now(seconds: float) -> float:
    return asyncio.get_running_loop().time() + seconds


def _is_model(entry: object) -> bool:
    return isinstance(entry, Mapping) and isinstance(entry.get("id"), str)


def _told(entry: Mapping[str, object]) -> dict[str, object]:
    told = {name: entry.get(name) for name in _OF_MODELS}
    return {name: value for name, value in told.items() if isinstance(value, str | int)}
