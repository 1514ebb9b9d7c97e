"""What requests may be asked with, checked: who asks, until when, and how answers are generated."""

from __future__ import annotations

import reprlib
import threading
import time
import uuid
from typing import TYPE_CHECKING, Any, TypedDict

from pydantic import ValidationError

from guardrail.errors import ConfigurationError, LimitExceededError
from guardrail.model.settings import Settings
from guardrail.online.reading import Caller

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from guardrail.policy import Limits
    from guardrail.requests.messages import Tools

_LONGEST_NAME = 256


class AskOptions(TypedDict, total=False):
    """What every way of asking takes.

    `tools` are function schemas in the OpenAI form, which a model reads before the chat; `timeout`
    is in seconds, from asking to answer (None: the policy's). Requests of different `client`s take
    turns; those without one are together one client. `request_id` goes on record instead of a
    made-up id; a list's requests get `-0`, `-1` and so on behind it.
    """

    tools: Tools | None
    timeout: float | None
    client: str | None
    request_id: str | None


ASK = AskOptions.__optional_keys__


class GenerateOptions(AskOptions, total=False):
    """How an answer is generated; see `guardrail.model.settings.Settings`."""

    max_new_tokens: int
    do_sample: bool | None
    temperature: float | None
    top_p: float | None
    top_k: int | None
    repetition_penalty: float | None
    seed: int | None
    stop: Sequence[str]
    num_beams: int


def caller_of(
    options: Mapping[str, Any],
    limits: Limits,
    cancelled: threading.Event | None,
    *,
    wait: bool,
) -> tuple[Tools | None, Caller]:
    """The tools of a request, and who asks.

    Raises:
        ConfigurationError: a timeout that is over before it begins, or an impossible name.
        TypeError: an option that nobody knows.
    """
    if unknown := options.keys() - ASK:
        raise TypeError(f"a guard is not asked with {', '.join(sorted(unknown))}")
    names = {name: options.get(name) for name in ("client", "request_id")}
    for name, given in names.items():
        if given is not None and not (isinstance(given, str) and 0 < len(given) <= _LONGEST_NAME):
            raise ConfigurationError(f"`{name}` is a text of 1 to {_LONGEST_NAME} characters")
    caller = Caller(
        deadline=_deadline(options.get("timeout"), limits),
        cancelled=cancelled or threading.Event(),
        wait=wait,
        client=names["client"],
        request_id=names["request_id"] or uuid.uuid4().hex,
    )
    return options.get("tools"), caller


def numbered(options: AskOptions, number: int) -> AskOptions:
    """The options of one of a list's requests: each has an id of its own."""
    if options.get("request_id") is None:
        return options
    return {**options, "request_id": f"{options['request_id']}-{number}"}


def settings_of(options: Mapping[str, Any], limits: Limits) -> Settings:
    """How an answer is to be generated.

    Raises:
        ConfigurationError: the options contradict each other, or nobody knows one.
        LimitExceededError: the answer may get longer than the policy allows.
    """
    try:
        default = min(Settings.model_fields["max_new_tokens"].default, limits.new_tokens)
        settings = Settings(**({"max_new_tokens": default} | dict(options)))
    except ValidationError as error:
        problems = "; ".join(_problem(found) for found in error.errors())
        raise ConfigurationError(f"these generation settings cannot hold: {problems}") from error
    if settings.max_new_tokens > limits.new_tokens:
        raise LimitExceededError(
            limit="new_tokens",
            allowed=limits.new_tokens,
            found=settings.max_new_tokens,
            what="the answer asked for",
        )
    return settings


def _problem(found: Any) -> str:
    """A validation error in words; what the settings themselves raised says it all."""
    own = found.get("ctx", {}).get("error")
    named = f"{'.'.join(map(str, found['loc']))}={reprlib.repr(found['input'])}"
    return f"{named}: {own or found['msg']}"


def _deadline(timeout: float | None, limits: Limits) -> float | None:
    if timeout is not None and timeout <= 0:
        raise ConfigurationError(f"a timeout must be more than 0 s; got {timeout}")
    seconds = limits.timeout_s if timeout is None else timeout
    return None if seconds is None else time.monotonic() + seconds
