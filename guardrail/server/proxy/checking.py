"""From a request's bytes to a checked body, which alone is sent on."""

from __future__ import annotations

import asyncio
import json
import logging
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

from starlette.exceptions import HTTPException

from guardrail.asgi.chats import read_chat
from guardrail.asgi.content import JSON, media_type
from guardrail.errors import DetectorError, GuardrailError
from guardrail.policy.acting import passes_unchecked
from guardrail.requests.canonical import canonical_chat
from guardrail.requests.patience import read_apart
from guardrail.server.api_error import ApiError
from guardrail.server.proxy.media import refuse_unclear_media
from guardrail.server.strict_body import bounded_json
from guardrail.settling import settled

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from starlette.datastructures import Headers

    from guardrail.asgi.chats import Content
    from guardrail.guard import Guard
    from guardrail.policy import Policy
    from guardrail.server.proxy.forms import Form
    from guardrail.types import Verdict

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Asked:
    """A body as it was parsed, of a known form, with a model's name."""

    form: Form
    body: Mapping[str, Any]

    @property
    def model(self) -> str:
        """The model that the client names."""
        return str(self.body["model"])

    @property
    def streams(self) -> bool:
        """Whether a stream is asked for."""
        return self.body.get("stream") is True

    def sent(self, model: str) -> bytes:
        """The bytes for the upstream: what was parsed, written again, so that both read the same.

        Raises:
            HTTPException: 400, a text of it has no UTF-8 form.
        """
        body = {**self.body, "model": model}
        try:
            return json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode()
        except UnicodeEncodeError:
            raise HTTPException(400, "a text of the body holds half a character") from None


@dataclass(frozen=True, slots=True)
class Checked:
    """What is sent and the verdict on it; None where the policy lets it pass unchecked."""

    asked: Asked
    verdict: Verdict | None
    done: Literal["flag", "caution", "pass"]
    policy: Policy


async def read(data: bytes, headers: Headers, form: Form) -> Asked:
    """The JSON body of a request.

    Raises:
        HTTPException: 415, 413 or 400: it is none, of too many values, or two readers could
            differ on it.
        ApiError: it is of another form.
    """
    media_type(headers, (JSON,))
    body = await asyncio.to_thread(bounded_json, data)
    if not isinstance(body, dict):
        raise ApiError("the body is no JSON object")
    if not isinstance(body.get("model"), str) or not body["model"]:
        raise ApiError("model must be the name of a model", param="model")
    if body.get("stream") is not None and not isinstance(body["stream"], bool):
        raise ApiError("stream must be true or false", param="stream")
    if body.get(form.source) is None:
        raise ApiError(f"the body needs {form.source}", param=form.source)
    return Asked(form, body)


async def check(
    asked: Asked, guard: Guard, unchecked: Collection[str], options: Mapping[str, Any]
) -> Checked:
    """The verdict, and what becomes of the request. `options` are those of `guard.acheck`.

    Raises:
        GuardrailError: it cannot be read or checked, and the policy does not let it pass.
    """
    policy = guard.policy
    try:
        asked = await read_apart(partial(_canonical, asked, policy))
        content = read_chat(asked.body, unchecked)
        verdict = await _verdict(content, guard, options)
    except GuardrailError as error:
        if not passes_unchecked(error, policy):
            raise
        _log.warning("the policy lets a request through unchecked: %s", type(error).__name__)
        return Checked(asked, None, "pass", policy)
    return _settled(asked, content, verdict, policy)


def _canonical(asked: Asked, policy: Policy) -> Asked:
    """The same with pictures that the upstream reads as the guard does."""
    source, said = asked.form.source, asked.body[asked.form.source]
    refuse_unclear_media(said)
    return Asked(asked.form, {**asked.body, source: canonical_chat(said, policy)})


async def _verdict(content: Content, guard: Guard, options: Mapping[str, Any]) -> Verdict:
    value, tools = content.asked(with_tools=getattr(guard, "supports_tools", False))
    try:
        return await guard.acheck(value, **tools, **options)
    except GuardrailError:
        raise
    except Exception as error:  # a border: whatever breaks inside the guard is an outage
        raise DetectorError("the check failed") from error


def _settled(asked: Asked, content: Content, verdict: Verdict, policy: Policy) -> Checked:
    after = settled(verdict, policy, caution=content.cautioned)
    if after.cautioned is not None:
        asked = Asked(asked.form, json.loads(after.cautioned))
    return Checked(asked, after.verdict, after.done, policy)
