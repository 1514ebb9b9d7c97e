"""Whether the upstream answers, and which models it has: asked now and then, not at every call."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Generic, TypeVar

from guardrail.server.proxy.failures import UpstreamProblem, broken

if TYPE_CHECKING:
    import httpx

    from guardrail.server.proxy.upstream import Upstream

T = TypeVar("T")

_PROBE_S = 3.0
_TROUBLE_KEPT_S = 5.0
_MODELS_KEPT_S = 30.0
_MOST_MODELS = 1_000
_TOLD = ("id", "object", "created", "owned_by")
_JSON = {"Accept": "application/json"}


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


class Reach:
    """What is known of one upstream."""

    def __init__(self, upstream: Upstream) -> None:
        self._upstream = upstream
        self._trouble = Kept(self._probe, _TROUBLE_KEPT_S)
        self._models = Kept(self._list, _MODELS_KEPT_S)

    async def trouble(self) -> str | None:
        """Why the upstream cannot be asked now; an upstream that lists no models is fine."""
        return await self._trouble.get() or None

    async def models(self) -> list[dict[str, object]]:
        """The upstream's models, by name, kind, date and owner alone.

        Raises:
            UpstreamProblem: it does not tell them.
        """
        return await self._models.get()

    async def _probe(self) -> str:
        try:
            response = await self._get(_from_now(_PROBE_S))
            await response.aclose()
        except UpstreamProblem as problem:
            reached = 400 <= problem.status_code < 500
            return "" if reached else problem.detail
        return ""

    async def _list(self) -> list[dict[str, object]]:
        deadline = _from_now(2 * _PROBE_S)
        found = await self._upstream.read_json(await self._get(deadline), deadline=deadline)
        listed = found.get("data")
        if not isinstance(listed, list):
            raise broken("it lists no models")
        return [_told(each) for each in listed[:_MOST_MODELS] if _is_model(each)]

    async def _get(self, deadline: float) -> httpx.Response:
        return await self._upstream.send("GET", "/models", deadline=deadline, headers=_JSON)


def _from_now(seconds: float) -> float:
    return asyncio.get_running_loop().time() + seconds


def _is_model(entry: object) -> bool:
    return isinstance(entry, Mapping) and isinstance(entry.get("id"), str)


def _told(entry: Mapping[str, object]) -> dict[str, object]:
    told = {name: entry.get(name) for name in _TOLD}
    return {name: value for name, value in told.items() if isinstance(value, str | int)}
