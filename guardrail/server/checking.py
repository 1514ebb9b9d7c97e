"""Verdicts without answers: what all routes that only check have in common."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from guardrail.errors import DetectorError, GuardrailError
from guardrail.policy.acting import is_refused_outage, stopped

if TYPE_CHECKING:
    from collections.abc import Mapping

    from guardrail.asgi.chats import Content
    from guardrail.guard import Guard
    from guardrail.types import Verdict


async def checked(guard: Guard, content: Content, options: Mapping[str, Any]) -> Verdict:
    """The verdict of one request; a flag is no error.

    Tools are judged as the model would read them, or as text if its template knows none.

    Raises:
        DetectorError: nothing was found because the detector failed, and the policy fails closed.
        GuardrailError: the request cannot be read, or there is no room or time for it.
    """
    value, tools = content.asked(with_tools=guard.supports_tools)
    try:
        verdict = await guard.acheck(value, **options, **tools)
    except GuardrailError:
        raise
    except Exception as error:  # a border: whatever breaks inside the guard is an outage
        raise DetectorError("the check failed") from error
    if is_refused_outage(verdict, guard.policy):
        raise stopped(verdict)
    return verdict
