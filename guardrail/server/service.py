"""What all routes of one server share: the guard in force, how it is asked, how long it lives."""

from __future__ import annotations

import asyncio
import math
import time
from contextlib import contextmanager
from dataclasses import InitVar, dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from guardrail import __version__
from guardrail.errors import DetectorError
from guardrail.observe.metrics import State
from guardrail.policy.acting import is_refused_outage, stopped

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence

    from fastapi import APIRouter

    from guardrail.asgi.chats import Content
    from guardrail.guard import Guard
    from guardrail.policy import Policy
    from guardrail.server.keys import ApiKey, Caller
    from guardrail.server.observing import Observation
    from guardrail.server.settings import ServerSettings
    from guardrail.types import Verdict

_TO_END_S = 5.0  # for requests that were told to end


class Answerer(Protocol):
    """Answers chats: with the guarded model itself, or by another server once it was checked."""

    @property
    def chats(self) -> Sequence[APIRouter]:
        """The routes of chats, and of other forms in which a model is asked."""

    @property
    def routers(self) -> Sequence[APIRouter]:
        """Routes that stand before others of the app's."""

    async def models(self) -> list[dict[str, object]]:
        """What `/v1/models` lists, in the OpenAI form."""

    async def trouble(self) -> str | None:
        """Why requests cannot be answered now; None when they can."""

    async def aclose(self) -> None:
        """Let go of connections; the guard is not closed here."""


@dataclass(slots=True)
class Service:
    """The parts of a running server. A request takes `guard` once and stays with it.

    `guard` is made here, of the one given: on the same model, under the rules of a server.
    `note` is what an operator should know although requests are answered.
    """

    guard: Guard
    settings: ServerSettings
    observation: Observation
    answered_by: InitVar[Callable[[Service], Answerer]]
    answerer: Answerer = field(init=False)
    lifecycle: Lifecycle = field(init=False)
    keys: tuple[ApiKey, ...] = field(init=False)
    note: str | None = None

    def __post_init__(self, answered_by: Callable[[Service], Answerer]) -> None:
        """Put the guard in force under the rules of a server."""
        self.lifecycle = Lifecycle(drain_s=self.settings.drain_s)
        self.keys = self.settings.keys
        self._enforce(self.guard)
        self.answerer = answered_by(self)
        self.observation.watch(self.state)

    async def trouble(self) -> str | None:
        """Why requests cannot be answered now; None when they can."""
        return self.guard.trouble or await self.answerer.trouble()

    def ask_options(self, caller: Caller) -> dict[str, Any]:
        """What every question to the guard goes with: for whom it is, and how long it may take."""
        allowed, policy = self.settings.timeout_s, self.guard.policy.limits.timeout_s
        return {
            "client": caller.client,
            "request_id": caller.request_id,
            "timeout": allowed if policy is None else min(allowed, policy),
        }

    def count_asked(self, caller: Caller, value: object) -> None:
        """Count a request that is nearly one that this client asked lately."""
        if self.observation.near_duplicates.seen(caller.client, value):
            self.observation.metrics.near_duplicate(caller.client or "")

    def state(self) -> State:
        """What its metrics tell of this moment."""
        guard, seen = self.guard, self.observation  # one guard, whatever takes its place meanwhile
        load, drift = guard.load, seen.drift.of(guard)
        return State(
            info={
                "version": __version__,
                "artefact_id": guard.artefact.artefact_id,
                "model": self.settings.model_name,
                "mode": guard.policy.mode,
            },
            waiting=load.waiting,
            running=load.running,
            places=load.places,
            thresholds={
                (str(modality), action): getattr(levels, action)
                for modality, levels in guard.thresholds.items()
                for action in ("steer", "flag")
            },
            drift={
                str(row.modality): (row.finding == "alarm", row.psi)
                for row in drift.modalities
                if row.psi is not None
            },
            audit_dropped=seen.audit_dropped,
            sink_failures=seen.sink_failures,
        )

    def replace(self, guard: Guard) -> Awaitable[None]:
        """Put another guard in force now; to wait for is that no request uses the one before it.

        The guard before it is closed then.
        """
        before = self.guard
        self._enforce(guard)
        return self._let_go(before)

    async def _let_go(self, before: Guard) -> None:
        await self.lifecycle.all_ended()
        await asyncio.to_thread(before.close)

    async def aclose(self) -> None:
        """Let go of what was made here."""
        await self.answerer.aclose()
        await asyncio.to_thread(self.guard.close)

    def _enforce(self, guard: Guard) -> None:
        policy = served_policy(guard.policy, self.settings)
        self.guard = guard.with_policy(policy, audit=self.observation)


def served_policy(policy: Policy, settings: ServerSettings) -> Policy:
    """The same rules for strangers: they name no files, and no addresses unless settings say so."""
    hosts = policy.allowed_hosts if settings.fetch_urls else frozenset[str]()
    return policy.model_copy(update={"local_files": False, "allowed_hosts": hosts})


async def checked(guard: Guard, content: Content, options: Mapping[str, Any]) -> Verdict:
    """The verdict on a content, as it may be told; see `require_verdict`."""
    return require_verdict(await content.judged(guard, **options), guard.policy)


def require_verdict(verdict: Verdict | None, policy: Policy) -> Verdict:
    """A verdict that may be told: an outage is no finding of the guard's.

    Raises:
        DetectorError: there is none, or there is none but for a failure, and those are refused.
    """
    if verdict is None:
        raise DetectorError("an answer without a verdict; it is not given out")
    if is_refused_outage(verdict, policy):
        raise stopped(verdict)
    return verdict


class Lifecycle:
    """Counts requests and says when they must end. `drain` may be called by a signal handler.

    Everything else belongs to the event loop.
    """

    def __init__(self, *, drain_s: float) -> None:
        self._drain_s, self._until = drain_s, math.inf
        self._under_way: set[object] = set()
        self._ended = asyncio.Event()  # set and cleared with every request that ends
        self.expired = asyncio.Event()

    @property
    def draining(self) -> bool:
        """Whether new requests are refused."""
        return self._until < math.inf

    @property
    def under_way(self) -> int:
        """How many requests have no complete answer yet."""
        return len(self._under_way)

    @contextmanager
    def request(self) -> Iterator[None]:
        """A request, from its start to the end of its answer."""
        token = object()
        self._under_way.add(token)
        try:
            yield
        finally:
            self._under_way.discard(token)
            self._ended.set()
            self._ended.clear()

    async def all_ended(self) -> None:
        """Wait until the requests that are under way now have ended; later ones do not count."""
        mine = set(self._under_way)
        while mine & self._under_way:
            await self._ended.wait()

    def drain(self) -> None:
        """Take no more requests; those there are have `drain_s` seconds."""
        self._until = min(self._until, time.monotonic() + self._drain_s)

    def end_now(self) -> None:
        """End what is under way."""
        self._until = -math.inf

    def drained(self) -> bool:
        """Whether nothing is left to wait for; ends the requests whose time is over."""
        if not self.draining:
            return False
        now = time.monotonic()
        if now >= self._until:
            self.expired.set()
        return not self._under_way or now >= self._until + _TO_END_S
