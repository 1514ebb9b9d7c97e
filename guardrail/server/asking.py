"""How routes ask the guard: for whom, under which name, and for how long."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from guardrail.server.caller import Caller
    from guardrail.server.service import Service


def ask_options(service: Service, caller: Caller) -> dict[str, Any]:
    """What every question to the guard goes with."""
    allowed, policy = service.settings.timeout_s, service.guard.policy.limits.timeout_s
    return {
        "client": caller.client,
        "request_id": caller.request_id,
        "timeout": allowed if policy is None else min(allowed, policy),
    }
