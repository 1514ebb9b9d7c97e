"""Messages of a server, written by hand, through the proxy; and what its client got."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import anyio

from guardrail.mcp.judging import VERDICT
from tests.channels.contract import Refused, Withheld
from tests.mcp.conftest import Wire

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from guardrail.testing import FakeGuard

Json = dict[str, Any]
LAST = "notifications/tools/list_changed"


def told(answer: Any) -> str:
    """All of an answer; an error where something is withheld, and why."""
    why = _stopped(answer)
    if why == "flagged":
        raise Withheld(why)
    if why is not None:
        raise Refused(why)
    return repr(answer)


def _stopped(answer: Any) -> str | None:
    if isinstance(answer, Mapping):
        verdict = answer.get(VERDICT)
        if isinstance(verdict, Mapping) and "stopped" in verdict:
            return str(verdict["stopped"])
        return next((why for each in answer.values() if (why := _stopped(each))), None)
    return None


def answers(method: str) -> Callable[[FakeGuard, Json], Awaitable[str]]:
    """A result for a request of this method."""

    async def send(guard: FakeGuard, result: Json) -> str:
        async with Wire(guard) as wire:
            await wire.send(wire.client, id=1, method=method, params={"name": "find"})
            await wire.got(wire.server)
            await wire.send(wire.server, id=1, result=result)
            answer = await wire.got(wire.client)
        return told(answer)

    return send


async def fails(guard: FakeGuard, error: Json) -> str:
    """An error for a request."""
    async with Wire(guard) as wire:
        await wire.send(wire.client, id=1, method="ping")
        await wire.got(wire.server)
        await wire.send(wire.server, id=1, error={"code": -5, **error})
        answer = await wire.got(wire.client)
    return told(answer)


async def notes_message(guard: FakeGuard, message: Json) -> str:
    """A notification with its method, and another one that nobody judges."""
    async with Wire(guard) as wire:
        await wire.send(wire.server, **message)
        await wire.send(wire.server, method=LAST)
        first = await wire.got(wire.client)
        return repr([first] if first["method"] == LAST else [first, await wire.got(wire.client)])


def notes(method: str) -> Callable[[FakeGuard, Json], Awaitable[str]]:
    """The parameters of a notification of this method."""

    async def send(guard: FakeGuard, params: Json) -> str:
        return await notes_message(guard, {"method": method, "params": params})

    return send


async def asks_message(guard: FakeGuard, message: Json) -> str:
    """A request of the server, with its method: what its client got, or why it did not."""
    async with Wire(guard) as wire:
        await wire.send(wire.server, **{"id": "s1", **message})
        got = await _first(wire)
    return told(got)


def asks(method: str) -> Callable[[FakeGuard, Json], Awaitable[str]]:
    """The parameters of a request of the server."""

    async def send(guard: FakeGuard, params: Json) -> str:
        return await asks_message(guard, {"method": method, "params": params})

    return send


async def calls(guard: FakeGuard, params: Json) -> str:
    """A call of a tool: what its server got, or why it did not."""
    async with Wire(guard) as wire:
        await wire.send(wire.client, id=1, method="tools/call", params=params)
        got = await _first(wire)
    return told(got)


async def _first(wire: Wire) -> Any:
    """What either end gets first."""
    found: list[Any] = []

    async def hear(side: Any) -> None:
        found.append(await wire.got(side))
        tasks.cancel_scope.cancel()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(hear, wire.client)
        tasks.start_soon(hear, wire.server)
    return found[0]
