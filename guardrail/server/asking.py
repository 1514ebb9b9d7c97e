"""How routes ask the guard: for whom, for how long, and what is no verdict of its own."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from guardrail.errors import DetectorError, GuardrailError
from guardrail.policy.acting import is_refused_outage, stopped

if TYPE_CHECKING:
    from collections.abc import Mapping

    from guardrail.asgi.chats import Content
    from guardrail.guard import Guard
    from guardrail.policy import Policy
    from guardrail.server.keys import Caller
    from guardrail.server.service import Service
    from guardrail.types import Verdict


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


async def judged(guard: Guard, content: Content, options: Mapping[str, Any]) -> Verdict:
    """The verdict of one request; a flag is no error.

    Tools are judged as the model would read them, or as text if its template knows none.

    Raises:
        GuardrailError: the request cannot be read or judged, or there is no room or time for it.
    """
    value, tools = content.asked(with_tools=getattr(guard, "supports_tools", False))
    try:
        return await guard.acheck(value, **options, **tools)
    except GuardrailError:
        raise
    except Exception as error:  # a border: whatever breaks inside the guard is an outage
        raise DetectorError("the check failed") from error


async def checked(guard: Guard, content: Content, options: Mapping[str, Any]) -> Verdict:
    """As `judged`, and told to the client: see `found`."""
    return found(await judged(guard, content, options), guard.policy)


def found(verdict: Verdict | None, policy: Policy) -> Verdict:
    """A verdict that may be told: an outage is no finding of the guard's.

    Raises:
        DetectorError: there is none, or there is none but for a failure, and those are refused.
    """
    if verdict is None:
        raise DetectorError("an answer without a verdict; it is not given out")
    if is_refused_outage(verdict, policy):
        raise stopped(verdict)
    return verdict
