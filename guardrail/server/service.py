"""What all routes of one server share: the guard in force, and how chats are answered."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from guardrail.server.lifecycle import Lifecycle

if TYPE_CHECKING:
    from collections.abc import Awaitable

    from fastapi import Request, Response

    from guardrail.guard import Guard
    from guardrail.policy import Policy
    from guardrail.server.chat_schema import ChatBody
    from guardrail.server.keys import ApiKey, Caller
    from guardrail.server.observing import Observation
    from guardrail.server.settings import ServerSettings

_HUNG_S = 30.0  # one step of a slow model may take that long


class Answerer(Protocol):
    """Answers chats: with the guarded model itself, or by another server once it was checked."""

    async def answer(self, body: ChatBody, caller: Caller, request: Request) -> Response:
        """The HTTP answer to one chat completion, streamed if the body says so.

        Raises:
            GuardrailError: nothing was sent yet; the app's handlers tell the client.
        """

    async def models(self) -> list[dict[str, object]]:
        """What `/v1/models` lists, in the OpenAI form."""

    async def trouble(self) -> str | None:
        """Why requests cannot be answered now; None when they can."""

    async def aclose(self) -> None:
        """Let go of connections; the guard is not closed here."""


@dataclass(slots=True)
class Service:
    """The parts of a running server. A request takes `guard` once and stays with it.

    `note` is what an operator should know although requests are answered.
    """

    guard: Guard
    settings: ServerSettings
    answerer: Answerer
    observation: Observation
    lifecycle: Lifecycle = field(init=False)
    keys: tuple[ApiKey, ...] = field(init=False)
    note: str | None = None
    _own: Guard | None = None  # the guard in force, if it was made here

    def __post_init__(self) -> None:
        """Put the guard in force under the rules of a server."""
        self.lifecycle = Lifecycle(drain_s=self.settings.drain_s)
        self.keys = self.settings.keys
        self._enforce(self.guard)

    async def trouble(self) -> str | None:
        """Why requests cannot be answered now; None when they can."""
        if self.guard.load.overdue_s > _HUNG_S:
            return "the model does not come back from a request; start the server again"
        return await self.answerer.trouble()

    def replace(self, guard: Guard) -> Awaitable[None]:
        """Put another guard in force now; to wait for is that no request uses the one before it.

        The guard before it is closed then, but only as far as it was made here.
        """
        before = self._own
        self._enforce(guard)
        return self._let_go(before)

    async def _let_go(self, before: Guard | None) -> None:
        await self.lifecycle.all_ended()
        if before is not None:
            await asyncio.to_thread(before.close)

    async def aclose(self) -> None:
        """Let go of what was made here."""
        await self.answerer.aclose()
        if self._own is not None:
            await asyncio.to_thread(self._own.close)

    def _enforce(self, guard: Guard) -> None:
        policy = served_policy(guard.policy, self.settings)
        self.guard = self._own = guard.with_policy(policy, audit=self.observation)


def served_policy(policy: Policy, settings: ServerSettings) -> Policy:
    """The same rules for strangers: they name no files, and no addresses unless settings say so."""
    hosts = policy.allowed_hosts if settings.fetch_urls else frozenset[str]()
    return policy.model_copy(update={"local_files": False, "allowed_hosts": hosts})
