"""`POST /beta/litellm_basic_guardrail_api`: a guardrail for LiteLLM's proxy.

Calls are judged before the model. What the model answers is not: this guard reads prompts, and
answers nothing was calibrated on; the answer to such a call is `NONE`.
"""

from __future__ import annotations

import asyncio
from functools import partial
from typing import TYPE_CHECKING, Any

from fastapi import APIRouter, Request, Response

from guardrail.errors import DetectorError
from guardrail.requests.canonical import require_one_reading
from guardrail.requests.patience import read_apart
from guardrail.server.ascii_json import AsciiJSONResponse
from guardrail.server.asking import ask_options, count_asked
from guardrail.server.checking import checked
from guardrail.server.error_schema import ERRORS
from guardrail.server.litellm_calls import cautioned, contents
from guardrail.server.litellm_schema import LiteLLMAnswer, LiteLLMBody
from guardrail.server.strict_body import StrictRoute
from guardrail.server.verdicts import FIELD, headers_of, told
from guardrail.settling import settled

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from guardrail.asgi.chats import Content
    from guardrail.guard import Guard
    from guardrail.policy import Policy
    from guardrail.server.keys import Caller
    from guardrail.settling import Settled

router = APIRouter(prefix="/beta", route_class=StrictRoute, responses=ERRORS)

_SEVERITY = {"pass": 0, "caution": 1, "flag": 2}
_OUTAGE = "This request could not be checked; try again later."


@router.post("/litellm_basic_guardrail_api", response_model=LiteLLMAnswer)
async def litellm_guardrail(body: LiteLLMBody, request: Request) -> Response:
    """Say whether a call of LiteLLM's may go to its model, and how.

    `BLOCKED`: it is flagged, or cannot be judged while the policy fails closed.
    `GUARDRAIL_INTERVENED`: a caution stands before the first text. `NONE`: it goes as it is, so
    pictures that the model's decoder may read otherwise are refused.
    """
    service = request.app.state.service
    guard = service.guard
    judged = contents(body) if body.input_type == "request" else []
    if not judged:
        return AsciiJSONResponse({"action": "NONE", FIELD: None})
    caller = request.state.caller
    asked = ask_options(service, caller)
    for content in judged:
        count_asked(service, caller, content.value)
        await read_apart(partial(require_one_reading, content.value, guard.policy))
    try:
        after = await _strictest(guard, judged, asked, body.texts)
    except DetectorError:
        if guard.policy.fail == "open" or guard.policy.mode == "shadow":
            return AsciiJSONResponse({"action": "NONE", FIELD: None})
        return AsciiJSONResponse({"action": "BLOCKED", "blocked_reason": _OUTAGE, FIELD: None})
    answer = _answer(after, body, guard.policy, caller)
    return AsciiJSONResponse(answer, headers=headers_of(after.verdict, caller))


async def _strictest(
    guard: Guard,
    judged: Sequence[Content],
    asked: Mapping[str, Any],
    texts: Sequence[str] | None,
) -> Settled:
    """What becomes of a call all of whose parts were judged."""
    verdicts = await asyncio.gather(*(checked(guard, content, asked) for content in judged))
    after = [
        settled(
            verdict,
            guard.policy,
            caution=lambda words: bool(cautioned(texts, words)),
            annotates=guard.policy.on_flag == "annotate",
        )
        for verdict in verdicts
    ]
    return max(after, key=lambda each: (_SEVERITY[each.done], each.verdict.score or 0.0))


def _answer(after: Settled, body: LiteLLMBody, policy: Policy, caller: Caller) -> dict[str, Any]:
    verdict: dict[str, Any] = {FIELD: told(after.verdict, caller)}
    match after.done:
        case "flag":
            return {"action": "BLOCKED", "blocked_reason": policy.refusal_message, **verdict}
        case "caution":
            texts = cautioned(body.texts, policy.caution_prompt)
            return {"action": "GUARDRAIL_INTERVENED", "texts": texts, **verdict}
        case _:
            return {"action": "NONE", **verdict}
