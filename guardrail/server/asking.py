"""How routes ask the guard: for whom, under which name, for how long; and what is counted of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from guardrail.server.keys import Caller
    from guardrail.server.service import Service


def ask_options(service: Service, caller: Caller) -> dict[str, Any]:
    """What every question to the guard goes with."""
    allowed, policy = service.settings.timeout_s, service.guard.policy.limits.timeout_s
    return {
        "client": caller.client,
        "request_id": caller.request_id,
        "timeout": allowed if policy is None else min(allowed, policy),
    }


def count_asked(service: Service, caller: Caller, value: object) -> None:
    """Count a request that is nearly one that this client asked lately."""
    seen = service.observation
    if seen.near_duplicates.seen(caller.client, value):
        seen.metrics.near_duplicate(caller.client or "")
