"""From a request's bytes to a checked body, which alone is sent on."""

from __future__ import annotations

import asyncio
import json
import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal
from weakref import WeakKeyDictionary

from starlette.exceptions import HTTPException

from guardrail.asgi.chats import read_chat
from guardrail.asgi.content import JSON, media_type, parsed_json
from guardrail.errors import DetectorError, GuardrailError
from guardrail.server.api_error import ApiError
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
_DEEP = "the body is nested too deep"
_OPENS_NOTHING = {"local_files": False, "allowed_hosts": frozenset[str]()}


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
            HTTPException: 400, a text of it has no UTF-8 form, or it is nested too deep.
        """
        body = {**self.body, "model": model}
        try:
            return json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode()
        except UnicodeEncodeError:
            raise HTTPException(400, "a text of the body holds half a character") from None
        except RecursionError:
            raise HTTPException(400, _DEEP) from None


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
        HTTPException: 415 or 400, it is none, or two readers could differ on it.
        ApiError: it is of another form.
    """
    if media_type(headers) != JSON:
        raise HTTPException(415, "send the request as application/json")
    body = await asyncio.to_thread(parsed_json, data)
    if not isinstance(body, dict):
        raise ApiError("the body is no JSON object")
    if not isinstance(body.get("model"), str) or not body["model"]:
        raise ApiError("model must be the name of a model", param="model")
    if body.get("stream") is not None and not isinstance(body["stream"], bool):
        raise ApiError("stream must be true or false", param="stream")
    if body.get(form.source) is None:
        raise ApiError(f"the body needs {form.source}", param=form.source)
    return Asked(form, body)


class Checks:
    """Checks what goes to an upstream. Addresses and files that a client names are never opened.

    The upstream would fetch an address by itself, and perhaps get another picture than the guard.
    """

    def __init__(self, unchecked: Collection[str]) -> None:
        self._unchecked = unchecked
        # by the guard in force: it may be exchanged while requests are under way
        self._strict: WeakKeyDictionary[Guard, Guard] = WeakKeyDictionary()

    async def check(self, asked: Asked, guard: Guard, **options: Any) -> Checked:
        """The verdict, and what becomes of the request.

        Raises:
            GuardrailError: it cannot be read or checked, and the policy does not let it pass.
        HTTPException: 400, it is nested too deep.
        """
        checker = self._opening_nothing(guard)
        policy = checker.policy
        try:
            content = read_chat(asked.body, self._unchecked)
            verdict = await _verdict(content, checker, options)
        except RecursionError:  # reading takes more room than parsing did
            raise HTTPException(400, _DEEP) from None
        except GuardrailError as error:
            if not _lets_pass(error, policy):
                raise
            _log.warning("the policy lets a request through unchecked: %s", type(error).__name__)
            return Checked(asked, None, "pass", policy)
        return _settled(asked, content, verdict, policy)

    def close(self) -> None:
        """Close the guards that were made here."""
        for made in [*self._strict.values()]:
            made.close()
        self._strict.clear()

    def _opening_nothing(self, guard: Guard) -> Guard:
        policy = guard.policy.model_copy(update=_OPENS_NOTHING)
        if policy == guard.policy:
            return guard
        made = self._strict.get(guard)
        if made is None:
            made = self._strict[guard] = guard.with_policy(policy)
        return made


async def _verdict(content: Content, guard: Guard, options: Mapping[str, Any]) -> Verdict:
    value, tools = content.asked(with_tools=getattr(guard, "supports_tools", False))
    try:
        return await guard.acheck(value, **tools, **options)
    except GuardrailError:
        raise
    except Exception as error:  # a border: whatever breaks inside the guard is an outage
        raise DetectorError("the check failed") from error


def _settled(asked: Asked, content: Content, verdict: Verdict, policy: Policy) -> Checked:
    cautioned: list[Mapping[str, Any]] = []

    def put(words: str) -> bool:
        data = content.cautioned(words)
        if data is not None:
            cautioned.append(json.loads(data))
        return data is not None

    after = settled(verdict, policy, caution=put, annotates=policy.on_flag == "annotate")
    sent = Asked(asked.form, cautioned[0]) if cautioned else asked
    return Checked(sent, after.verdict, after.done, policy)


def _lets_pass(error: GuardrailError, policy: Policy) -> bool:
    outage = isinstance(error, DetectorError) and policy.fail == "open"
    return outage or policy.mode == "shadow"
