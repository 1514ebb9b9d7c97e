"""What clients of `vllm serve` hear of the guard: the class that its `--middleware` names.

vLLM's own server tells a verdict only where an answer is not streamed, and calls a flag a stop. The
engine gives the verdict with a prompt's first output, so its `generate` is wrapped, once: a verdict
goes to the HTTP request in whose context it was asked for. Requests share nothing.
"""

from __future__ import annotations

import inspect
import json
from contextlib import aclosing
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

from prometheus_client import REGISTRY
from starlette.datastructures import Headers, MutableHeaders

from guardrail.asgi.problems import Problem, flagged, problem_of
from guardrail.asgi.wire import FIELD, Event, Splitter, event, verdict_headers
from guardrail.errors import ConfigurationError, DetectorError
from guardrail.inputs.strict_json import strict_json
from guardrail.observe.metrics import Verdicts
from guardrail.policy.acting import stops
from guardrail.types import Action
from guardrail.vllm.options import NAME, STOPS, Settings, require_names

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Iterable, Mapping

    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from guardrail.policy import Policy

Told = dict[str, Any]  # what the engine tells of a verdict

_PATHS = frozenset({"/v1/chat/completions", "/v1/completions", "/v1/responses"})
_BEFORE = ("queued", "in_progress")  # what a response is before there is an answer
_SILENT = frozenset({"error", "response.created", *(f"response.{status}" for status in _BEFORE)})
_LAST = frozenset({"response.completed", "response.incomplete", "response.failed"})
_FILTERED = "content_filter"
_MAX_EVENT = 1 << 26  # bytes; an event may echo a prompt with all its tokens


class GuardMiddleware:
    """Tells clients of chats, completions and responses the verdict beside the answer.

    Nothing of an answer is sent before its verdict is known, not even its headers, and nothing at
    all where there is none: the client hears of an outage. Errors and other paths pass as they are.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._policy: Policy | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass one connection on."""
        if scope["type"] == "lifespan":
            try:
                self._rules(scope)
            except ConfigurationError as error:  # raised, it would be logged, and no more
                await receive()
                await send({"type": "lifespan.startup.failed", "message": str(error)})
                return
        elif scope["type"] == "http" and scope["method"] == "POST" and _path(scope) in _PATHS:
            asked = _Asked(self._rules(scope))
            token = _CALLS.set(asked.calls)
            try:
                await self._app(scope, receive, _Answer(asked, send).take)
            finally:
                _CALLS.reset(token)
            return
        await self._app(scope, receive, send)

    def _rules(self, scope: Scope) -> Policy:
        """The engine's policy; from the first time on each verdict of the engine is noted.

        Raises:
            ConfigurationError: vLLM runs without the guard, or its inner names are others.
        """
        if self._policy is None:
            state = scope["app"].state
            require_names(state, ("engine_client", "vllm_config"))
            policy = Settings.of(state.vllm_config).policy
            note_verdicts(state.engine_client)
            self._policy = policy
        return self._policy


def _path(scope: Scope) -> str:
    path: str = scope["path"]
    return path.removeprefix(scope.get("root_path", ""))


# ---- what comes out of the engine


@dataclass(slots=True)
class _Call:
    """A prompt on its way through the engine, and what is told of it; it gets `answers` answers.

    `blind` says that something came out of the engine with no verdict.
    """

    answers: int
    told: Told | None = None
    blind: bool = False
    waits: bool = True

    def note(self, params: Any) -> None:
        """Take the verdict from an output's parameters; of several the strictest counts."""
        self.waits = False
        told = params.get(NAME) if isinstance(params, dict) else None
        self.told = _strictest(one for one in (self.told, told) if one)
        self.blind |= self.told is None


_CALLS: ContextVar[list[_Call] | None] = ContextVar("guardrail_calls", default=None)


class _Noting:
    """An engine's `generate` that notes verdicts for the request that asks, and counts them."""

    def __init__(self, generate: Callable[..., AsyncGenerator[Any, None]]) -> None:
        self._generate, self._count = generate, _counts()

    def __call__(
        self, prompt: Any, sampling_params: Any, *values: Any, **options: Any
    ) -> AsyncGenerator[Any, None]:
        call = _Call(sampling_params.n)
        calls = _CALLS.get()
        if calls is not None:
            calls.append(call)
        return self._noted(self._generate(prompt, sampling_params, *values, **options), call)

    async def _noted(
        self, outputs: AsyncGenerator[Any, None], call: _Call
    ) -> AsyncGenerator[Any, None]:
        try:
            async with aclosing(outputs):  # a client that left aborts what it asked for
                async for output in outputs:
                    first = call.told is None
                    call.note(output.kv_transfer_params)
                    if first and call.told:
                        self._count(call.told)
                    _complete(output)
                    yield output
        finally:
            call.waits = False


def _complete(output: Any) -> None:
    """Say of each token of a refusal that it has no probability: vLLM's server looks for one."""
    for answer in output.outputs:
        if answer.stop_reason not in STOPS:
            continue
        if answer.logprobs == []:
            answer.logprobs = [None] * len(answer.token_ids)
        if output.prompt_logprobs and output.prompt_token_ids:
            output.prompt_logprobs = [None] * len(output.prompt_token_ids)


@cache
def _counts() -> Verdicts:
    """In the registry that vLLM's /metrics shows, of all its API servers."""
    return Verdicts(REGISTRY)


def note_verdicts(engine: Any) -> None:
    """Wrap an engine's `generate`, unless it is already.

    Raises:
        ConfigurationError: it has none, or one that takes something else than vLLM's.
    """
    require_names(engine, ("generate",))
    if isinstance(engine.generate, _Noting):
        return
    taken = [*inspect.signature(engine.generate).parameters]
    if taken[:2] != ["prompt", "sampling_params"]:
        raise ConfigurationError(
            f"this vLLM's {type(engine).__name__}.generate takes {', '.join(taken)}; the guard "
            "takes verdicts from one that begins with prompt and sampling_params"
        )
    engine.generate = _Noting(engine.generate)


def _strictest(told: Iterable[Told]) -> Told | None:
    def rank(one: Told) -> tuple[int, int]:
        return Action(one["action"]).rank, Action(one["would_be"]).rank

    return max(told, key=rank, default=None)


# ---- what goes to the client


class _RefusedError(Exception):
    """There is no answer; `told` is the verdict that says so, if one does."""

    def __init__(self, problem: Problem, told: Told | None = None) -> None:
        self.problem, self.told = problem, told
        super().__init__(problem.message)


class _Asked:
    """What is known of one HTTP request: its prompts in the engine, and by which rules."""

    def __init__(self, policy: Policy) -> None:
        self.calls: list[_Call] = []
        self._policy = policy
        self._shown: set[int] = set()  # choices that have their verdict

    @property
    def waits(self) -> bool:
        """Whether a prompt has no verdict yet, and may get one."""
        return any(call.waits for call in self.calls)

    def told(self) -> Told:
        """The strictest verdict.

        Raises:
            _RefusedError: there is none, or the policy wants an error in the answer's place.
        """
        told = _strictest(call.told for call in self.calls if call.told)
        if told is None or any(call.blind for call in self.calls):
            raise self.outage("an answer came with no verdict")
        if self._policy.on_flag == "raise" and self._stops(told):
            if told["reason"] != "score":
                raise self.outage("the detector failed, and the policy fails closed")
            raise _RefusedError(flagged(self._policy.refusal_message, 400), told)
        return told

    def outage(self, words: str) -> _RefusedError:
        """That an answer is not given out, though no verdict says so."""
        refusal = self._policy.refusal_message
        return _RefusedError(problem_of(DetectorError(words), refusal=refusal, flag_status=400))

    def mark(self, data: dict[str, Any], told: Told, count: int | None = None) -> bool:
        """Write into an answer, or a part of one, what was done; whether that changed anything.

        `told` is the strictest verdict, `count` how many choices there are, if that is known.
        """
        changed = False
        for choice in data.get("choices") or ():
            own = self._told_of(choice["index"], count) or told
            if choice.get("stop_reason") in STOPS and self._stops(own):
                self._filter(choice)
                changed = True
            if self._several and (_closes(data) or choice["index"] not in self._shown):
                choice[FIELD], changed = own, True
            self._shown.add(choice["index"])
        inner = data.get("response")
        for body in (data, inner) if isinstance(inner, dict) else (data,):
            params = body.get("kv_transfer_params")
            if isinstance(params, dict) and NAME in params:
                others = {name: value for name, value in params.items() if name != NAME}
                body["kv_transfer_params"], changed = others or None, True
            if body.get("object") == "response" and _closes(data) and self._stops(told):
                body |= {"status": "incomplete", "incomplete_details": {"reason": _FILTERED}}
        return changed

    def _filter(self, choice: dict[str, Any]) -> None:
        """Say of a choice that its words are the policy's, whatever a parser made of them."""
        choice |= {"finish_reason": _FILTERED, "logprobs": None}
        message = choice.get("message", choice.get("delta"))
        if isinstance(message, dict):
            message |= dict.fromkeys(("content", "refusal"), self._policy.refusal_message)
            message.pop("reasoning", None)

    def _stops(self, told: Told) -> bool:
        failed = told["reason"] != "score"
        return stops(Action(told["action"]), self._policy.on_flag, outage=failed)

    @property
    def _several(self) -> bool:
        return sum(call.answers for call in self.calls) > 1

    def _told_of(self, index: int, count: int | None) -> Told | None:
        """The verdict on a choice's prompt; prompts are asked in their order.

        A search for beams asks many times for one prompt: no call is a choice's then.
        """
        calls = [call for call in self.calls for _ in range(call.answers)]
        fits = count in (None, len(calls)) and index < len(calls)
        return calls[index].told if fits else None


class _Answer:
    """One answer on its way to the client, held back until each of its prompts has a verdict."""

    def __init__(self, asked: _Asked, send: Send) -> None:
        self._asked, self._send = asked, send
        self._head: Message = {}
        self._passes = self._streams = self._begun = self._ended = self._shown = False
        self._data, self._splitter = bytearray(), Splitter(_MAX_EVENT)
        self._held: list[Event] = []

    async def take(self, message: Message) -> None:
        """Take what the app sends."""
        if message["type"] == "http.response.start":
            self._head, self._passes = message, message["status"] >= 300
            kind = Headers(raw=message.get("headers", [])).get("content-type", "")
            self._streams = kind.startswith("text/event-stream")
        if self._passes:
            await self._send(message)
        elif message["type"] == "http.response.body" and not self._ended:
            data, more = message.get("body", b""), message.get("more_body", False)
            try:
                await (self._stream(data, more) if self._streams else self._whole(data, more))
            except _RefusedError as refused:
                await self._refuse(refused.problem, refused.told)

    async def _whole(self, data: bytes, more: bool) -> None:
        """Take a piece of an answer that is not streamed."""
        self._data += data
        if more:
            return
        try:
            answer = strict_json(self._data.decode())
            empty = answer is None or answer.get("status") in _BEFORE  # nobody there; or to come
        except (ValueError, RecursionError, AttributeError):
            raise self._asked.outage("an answer cannot be read") from None
        body, headers = bytes(self._data), dict[str, str]()
        if not empty:
            told = self._asked.told()
            self._asked.mark(answer, told, len(answer.get("choices") or ()))
            body = json.dumps({**answer, FIELD: told}, separators=(",", ":")).encode()
            headers = verdict_headers(told) | {"Content-Length": str(len(body))}
        await self._begin(headers)
        await self._body(body)

    async def _stream(self, data: bytes, more: bool) -> None:
        """Take a piece of a stream."""
        try:
            raw = self._splitter.feed(data)
            rest = b"" if more else self._splitter.rest()
            self._held += [Event(one) for one in (*raw, rest) if one]
        except ValueError:
            raise self._asked.outage("an event cannot be read") from None
        speaks = any(_speaks(one.data) for one in self._held)
        if more and not self._begun and (self._asked.waits or not speaks):
            return
        told = self._asked.told() if speaks else None
        if not self._begun:
            await self._begin(verdict_headers(told) if told else {})
        written = [self._written(one, told) for one in self._held]
        self._held.clear()
        await self._body(b"".join(written), more)

    def _written(self, one: Event, told: Told | None) -> bytes:
        """An event as the client gets it: the verdict is in the first, and where an answer ends."""
        if one.data is None or told is None:
            return one.raw
        changed = self._asked.mark(one.data, told)
        if _closes(one.data) or not self._shown:
            self._shown = True
            return one.with_field(FIELD, told)
        return one.with_data(one.data) if changed else one.raw

    async def _begin(self, headers: Mapping[str, str], status: int | None = None) -> None:
        found = MutableHeaders(raw=list(self._head.get("headers", ())))
        found.update(headers)
        status = status or self._head["status"]
        self._begun = True
        await self._send({**self._head, "status": status, "headers": found.raw})

    async def _body(self, data: bytes, more: bool = False) -> None:
        self._ended = not more
        if data or not more:
            await self._send({"type": "http.response.body", "body": data, "more_body": more})

    async def _refuse(self, problem: Problem, told: Told | None) -> None:
        """End with an error, an event where a stream has begun; what the app sends yet is lost."""
        error = problem.to_dict(told)
        if self._begun:
            await self._body(event(error))
            return
        body = json.dumps(error).encode()
        about = {"Content-Type": "application/json", "Content-Length": str(len(body))}
        shown = verdict_headers(told) if told else {}
        await self._begin({**problem.headers, **shown, **about}, problem.status)
        await self._body(body)


def _speaks(data: Mapping[str, Any] | None) -> bool:
    """Whether an event holds anything of an answer: all do that are not known to hold nothing."""
    if not data or data.get("choices"):
        return bool(data)
    silent = data.get("error") or data.get("type") in _SILENT
    return not silent and data.get("choices") is None


def _closes(data: Mapping[str, Any]) -> bool:
    """Whether an answer, or one of several, ends with this."""
    ends = any(choice.get("finish_reason") for choice in data.get("choices") or ())
    return ends or data.get("object") == "response" or data.get("type") in _LAST
