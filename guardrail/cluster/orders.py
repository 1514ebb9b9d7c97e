"""What replicas and their coordinator say to each other; plain values, ready to be sent."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

ANSWER_S = 10.0  # for the coordinator's answer; then a replica asks again
Phase = Literal["serve", "prepare", "pause", "hold", "stop"]


@dataclass(frozen=True, slots=True)
class Pin:
    """An artefact that was agreed on: where it is on every machine, and its id.

    Each agreement has a higher `epoch` than the one before. `configured` is the id in the
    deployment's own settings, which updates leave as they are.
    """

    epoch: int
    source: str
    artefact_id: str
    configured: str = ""


@dataclass(frozen=True, slots=True)
class Order:
    """What a replica is to do, and for how many seconds from its question it may answer clients.

    serve: answer under `agreed`. prepare: get `proposed` ready, and go on. pause: begin no answer,
    and say when none is about to begin. hold: not a member now; ask again. stop: take no more
    requests. `token` names the order in the replica's report.
    """

    token: str
    phase: Phase
    agreed: Pin
    proposed: Pin | None = None
    lease_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Outcome:
    """How an update ended: what is agreed on now, and why it is not what was asked for."""

    agreed: Pin
    problem: str | None = None


class Link(Protocol):
    """How a replica reaches the coordinator; any of it may fail or never return."""

    async def follow(self, replica: str, seen: str | None, facts: dict[str, object]) -> Order:
        """The order in force: at once if it is not the one `seen`, else after a while."""

    async def tell(self, replica: str, token: str, problem: str | None) -> None:
        """Report that an order was carried out, or why it cannot be."""
