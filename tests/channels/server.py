"""The server: its own model behind the OpenAI API, the proxy, checks and LiteLLM's route.

What the own model is asked is read as it would be shown: a guard judges the prompt that it answers.
"""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import httpx

from guardrail.inputs.messages import to_request
from guardrail.server import create_app
from guardrail.server.proxy import UpstreamSettings, through
from guardrail.types import Action, Result
from tests.channels._bodies import BASES, CHAT, PATHS, Way, words
from tests.channels._chats import CHATS
from tests.channels._openai import classes
from tests.channels._responses import RESPONSE_WAYS
from tests.channels._ruled import Ruled
from tests.channels.contract import Channel, Kind, LibraryClass, Outcome, Refused, Withheld

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from guardrail.policy import Policy
    from guardrail.testing import FakeGuard
    from guardrail.types import Request, Verdict

    Fields = Callable[[str], dict[str, Any]]

OWN, PROXY = "server: own model", "server: proxy"
LITELLM, CHECKS = "/beta/litellm_basic_guardrail_api", "/v1/checks"


class Standing(Ruled):
    """A guard of words in the place of one with a model; `prompts` is what its model answered."""

    supports_tools = True
    closed = False
    artefact = SimpleNamespace(artefact_id="guard-fake")
    trouble = None
    load = SimpleNamespace(waiting=0, running=0, places=1, overdue_s=0.0)

    def __init__(self, guard: FakeGuard, policy: Policy | None = None) -> None:
        super().__init__(guard, policy)
        self.prompts: list[str] = []

    def with_policy(self, policy: Policy, **_options: Any) -> Standing:
        other = Standing(self.guard, policy)
        other.prompts = self.prompts
        return other

    def close(self) -> None:
        """Nothing is held here."""

    async def agenerate(self, value: Any, **options: Any) -> Result:
        request = to_request(value, policy=self.policy, tools=options.get("tools"))
        prompt = shown(request)
        verdict = self.check(prompt)
        if verdict.action is Action.FLAG:
            return _result(self.policy.refusal_message, verdict, "flag", refused=True)
        held = {key: options.get(key) for key in ("json_schema", "tool_choice")}
        self.prompts.append(f"{prompt}\n{held}")
        return _result("fine", verdict, "stop")

    def astream(self, value: Any, **options: Any) -> Stream:
        return Stream(self, value, options)


def _result(text: str, verdict: Verdict, reason: str, *, refused: bool = False) -> Result:
    return Result(
        text=text,
        verdict=verdict,
        finish_reason=reason,
        prompt_tokens=1,
        completion_tokens=1,
        refused_by_guard=refused,
        refusal=text if refused else None,
    )


class Stream:
    """An answer in one piece."""

    def __init__(self, guard: Standing, value: Any, options: dict[str, Any]) -> None:
        self._guard, self._value, self._options = guard, value, options
        self.verdict: Verdict | None = None
        self.result: Result | None = None

    def __aiter__(self) -> Stream:
        return self

    async def __anext__(self) -> str:
        if self.result is not None:
            raise StopAsyncIteration
        self.result = await self._guard.agenerate(self._value, **self._options)
        self.verdict = self.result.verdict
        return self.result.text

    async def aclose(self) -> None:
        pass


def shown(request: Request) -> str:
    """All of a request that some template shows to its model."""
    lines = [json.dumps(tool) for tool in request.tools]
    for message in request.messages:
        parts = [getattr(part, "text", type(part).__name__) for part in message.parts]
        calls = [f"{call.id} {call.name} {call.arguments}" for call in message.tool_calls]
        about = f"{message.role} {message.name} {message.tool_call_id}"
        lines.append("\n".join([about, *parts, *calls]))
    return "\n".join(lines)


class Answer(httpx.AsyncByteStream):
    """A body as a server sends it: read once."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    async def __aiter__(self) -> AsyncIterator[bytes]:
        yield self._data


async def own(guard: FakeGuard, path: str, body: Any, **request: Any) -> str:
    """What the own model was asked of a body: nothing where it was flagged."""
    standing = Standing(guard)
    app = create_app(standing)  # type: ignore[arg-type]
    body = {**body, "model": "guarded"} if body.get("model") == "m" else body
    answer = await asked(app, path, body, **request)
    refuse(answer)
    return repr(standing.prompts)


async def proxied(guard: FakeGuard, path: str, body: Any, **request: Any) -> str:
    """All that the upstream got of a request."""
    got: list[Any] = []

    async def answer(sent: httpx.Request) -> httpx.Response:
        got.append((str(sent.url), dict(sent.headers), json.loads(sent.content)))
        head = {"content-type": "application/json"}
        return httpx.Response(200, headers=head, stream=Answer(b'{"id": "c", "choices": []}'))

    settings = UpstreamSettings(url="http://127.0.0.1:9/v1", retries=0)
    app = create_app(Standing(guard), answerer=through(settings))  # type: ignore[arg-type]
    upstream = app.state.service.answerer._upstream
    upstream._made = httpx.AsyncClient(transport=httpx.MockTransport(answer))
    try:
        refuse(await asked(app, path, body, **request))
    finally:
        await app.state.service.aclose()
    return repr(got)


async def asked(app: Any, path: str, body: Any, **request: Any) -> httpx.Response:
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://server") as client:
        return await client.post(path, json=body, **request)


def refuse(answer: httpx.Response) -> None:
    """Raise for an answer of an error."""
    if answer.status_code >= 400:
        assert 400 <= answer.status_code < 500, answer.text
        raise Refused(answer.text)


def of_way(adapter: str, way: Way) -> Channel:
    """The channel of a planted body."""
    send, outcome = (own, way.own) if adapter == OWN else (proxied, way.relayed)

    async def run(guard: FakeGuard, word: str) -> str:
        return await send(guard, way.path, way.body(word))

    return Channel(
        adapter=adapter,
        kind=way.kind,
        name=f"{way.path} {way.kind}, {way.name}",
        run=run,
        outcome=outcome,
    )


async def _checked(guard: FakeGuard, body: dict[str, Any]) -> str:
    """What a client sends to a model of its own after a check."""
    answer = await asked(create_app(Standing(guard)), CHECKS, body)  # type: ignore[arg-type]
    refuse(answer)
    found = answer.json()
    items = found.get("data", [found])
    for item in items:
        if "error" in item:
            raise Refused(str(item["error"]))
        if item["verdict"]["action"] == "flag":
            raise Withheld
    return repr(body)


def _check(kind: Kind, name: str, body: Fields, outcome: Outcome = "judged") -> Channel:
    async def run(guard: FakeGuard, word: str) -> str:
        return await _checked(guard, body(word))

    return Channel(
        adapter=OWN, kind=kind, name=f"{CHECKS} {kind}, {name}", run=run, outcome=outcome
    )


async def _litellm(guard: FakeGuard, fields: dict[str, Any]) -> str:
    """What LiteLLM sends to its model, of what it told of the call."""
    app = create_app(Standing(guard))  # type: ignore[arg-type]
    answer = await asked(app, LITELLM, {"input_type": "request", **fields})
    refuse(answer)
    if answer.json()["action"] == "BLOCKED":
        raise Withheld
    return repr(fields)


def _lite(kind: Kind, name: str, fields: Fields, outcome: Outcome = "judged") -> Channel:
    async def run(guard: FakeGuard, word: str) -> str:
        return await _litellm(guard, fields(word))

    return Channel(
        adapter=PROXY, kind=kind, name=f"LiteLLM: {kind}, {name}", run=run, outcome=outcome
    )


def _row(**more: Any) -> dict[str, Any]:
    return {"structured_messages": [{"role": "assistant", "content": "hello", **more}]}


def _user(content: Any, **more: Any) -> dict[str, Any]:
    return {"structured_messages": [{"role": "user", "content": content}], **more}


def _call(**more: Any) -> dict[str, Any]:
    return {"id": "c", "type": "function", "function": {"name": "look", "arguments": "{}"}, **more}


def _thought(**block: Any) -> dict[str, Any]:
    return _row(thinking_blocks=[block])


LITE = [
    _lite("user's message", "texts", lambda w: {"texts": [w]}),
    _lite("user's message", "chat", lambda w: _user(w, texts=[w])),
    _lite("user's message", "text like a label of the chat", lambda w: _row(id=w) | {"texts": [w]}),
    _lite(
        "system prompt",
        "chat",
        lambda w: {"structured_messages": [{"role": "system", "content": w}]},
    ),
    _lite("history", "refusal", lambda w: _row(refusal=w)),
    _lite("history", "name", lambda w: _row(name=w)),
    _lite("history", "id", lambda w: _row(id=words(w))),
    _lite("history", "id with the same text", lambda w: _row(id=words(w)) | {"texts": [words(w)]}),
    _lite("history", "cache control", lambda w: _row(cache_control={"type": words(w)}), "refused"),
    _lite("history", "reasoning", lambda w: _row(reasoning_content=w)),
    _lite("history", "thoughts", lambda w: _thought(type="thinking", thinking=w)),
    _lite(
        "history",
        "signature of a thought",
        lambda w: _thought(type="thinking", thinking="a", signature=words(w)),
    ),
    _lite("history", "key of a thought", lambda w: _thought(type="thinking", thinking="a", more=w)),
    _lite(
        "history",
        "cipher of a thought",
        lambda w: _thought(type="redacted_thinking", data=words(w)),
    ),
    _lite(
        "history", "key of a cipher", lambda w: _thought(type="redacted_thinking", data="a", more=w)
    ),
    _lite(
        "history",
        "cipher among parts",
        lambda w: _row(content=[{"type": "redacted_thinking", "data": words(w)}]),
    ),
    _lite(
        "history",
        "signature among parts",
        lambda w: _row(content=[{"type": "thinking", "thinking": "a", "signature": words(w)}]),
    ),
    _lite(
        "history", "reasoning item", lambda w: _row(reasoning_items=[{"summary": [{"text": w}]}])
    ),
    _lite(
        "history",
        "cipher of a reasoning item",
        lambda w: _row(reasoning_items=[{"encrypted_content": words(w)}]),
    ),
    _lite("history", "unknown key", lambda w: _row(provider_specific_fields={"a": w}), "refused"),
    _lite(
        "tool call",
        "arguments",
        lambda w: {"tool_calls": [_call(function={"name": "look", "arguments": w})]},
    ),
    _lite("tool call", "id", lambda w: {"tool_calls": [_call(id=words(w))]}),
    _lite(
        "tool call",
        "id beside a chat that holds the call",
        lambda w: {
            "structured_messages": [
                {"role": "assistant", "content": "look {}"},
                {"role": "assistant", "content": None, "tool_calls": [_call()]},
            ],
            "tool_calls": [_call(id=words(w))],
        },
    ),
    _lite(
        "tool call",
        "name of an argument",
        lambda w: {
            "tool_calls": [_call(function={"name": "look", "arguments": {w: 1}})],
            **_row(tool_calls=[_call()]),
        },
    ),
    _lite("tool call", "index", lambda w: _row(tool_calls=[_call(index=words(w))]), "refused"),
    _lite(
        "tool result",
        "text",
        lambda w: {"structured_messages": [{"role": "tool", "tool_call_id": "c", "content": w}]},
    ),
    _lite(
        "tool result",
        "older form",
        lambda w: {"structured_messages": [{"role": "function", "name": "look", "content": w}]},
    ),
    _lite(
        "tool result",
        "id",
        lambda w: {
            "structured_messages": [{"role": "tool", "tool_call_id": words(w), "content": "a"}]
        },
    ),
    _lite(
        "tool name",
        "tools",
        lambda w: _user("hello", tools=[{"type": "function", "function": {"name": w}}]),
    ),
    _lite(
        "tool description",
        "tools",
        lambda w: _user(
            "hello", tools=[{"type": "function", "function": {"name": "a", "description": w}}]
        ),
    ),
    _lite(
        "tool description",
        "without a chat",
        lambda w: {"tools": [{"type": "function", "function": {"name": "a", "description": w}}]},
    ),
    _lite(
        "tool description",
        "of another kind",
        lambda w: _user("hello", tools=[{"function_declarations": [{"description": w}]}]),
    ),
    _lite(
        "tool namespace",
        "tools",
        lambda w: _user("hello", tools=[{"type": "namespace", "name": w}]),
    ),
    _lite(
        "schema strings",
        "tools",
        lambda w: _user(
            "hello",
            tools=[
                {
                    "type": "function",
                    "function": {"name": "a", "parameters": {"properties": {w: {}}}},
                }
            ],
        ),
    ),
    _lite(
        "resource", "file", lambda w: _user([{"type": "file", "file": {"file_data": w}}]), "refused"
    ),
]
CHECKED = [
    _check("user's message", "input", lambda w: {"input": w}),
    _check("user's message", "parts", lambda w: {"input": [{"type": "text", "text": w}]}),
    _check(
        "user's message", "one of several", lambda w: {"inputs": [{"input": "a"}, {"input": w}]}
    ),
    _check("history", "messages", lambda w: {"messages": [{"role": "assistant", "content": w}]}),
    _check(
        "history", "name", lambda w: {"messages": [{"role": "user", "content": "a", "name": w}]}
    ),
    _check(
        "history", "id", lambda w: {"messages": [{"role": "user", "content": "a", "id": words(w)}]}
    ),
    _check(
        "history",
        "status",
        lambda w: {"messages": [{"role": "user", "content": "a", "status": words(w)}]},
        "refused",
    ),
    _check(
        "tool description",
        "tools",
        lambda w: {
            "input": "a",
            "tools": [{"type": "function", "function": {"name": "a", "description": w}}],
        },
    ),
    _check("settings", "model", lambda w: {"input": "a", "model": w}, "refused"),
    _check("settings", "unknown key", lambda w: {"input": "a", w: w}, "refused"),
]


def _around(adapter: str, what: str, **extra: str) -> Channel:
    """Words around a body, which go no further than this server."""
    send = own if adapter == OWN else proxied

    async def run(guard: FakeGuard, word: str) -> str:
        told = {f"x-{word}": words(word), **{key: words(word) for key in extra}}
        return await send(guard, CHAT, BASES[CHAT], **{what: told})

    return Channel(
        adapter=adapter, kind="settings", name=f"{what} of the request", run=run, outcome="never"
    )


AROUND = [
    channel
    for adapter in (OWN, PROXY)
    for channel in (
        _around(adapter, "headers", cookie="", traceparent="", **{"x-request-id": ""}),
        _around(adapter, "params", model=""),
    )
]
STREAMS = [
    Channel(
        adapter=OWN,
        kind="user's message",
        name=f"{path} stream",
        run=lambda guard, word, path=path, source=source: own(
            guard, path, {"model": "m", source: [{"role": "user", "content": word}], "stream": True}
        ),
    )
    for path, source in zip(PATHS[:2], ("messages", "input"), strict=True)
]
CHANNELS: list[Channel] = [
    *(of_way(adapter, way) for adapter in (OWN, PROXY) for way in (*CHATS, *RESPONSE_WAYS)),
    *CHECKED,
    *LITE,
    *AROUND,
    *STREAMS,
]
CLASSES: list[LibraryClass] = classes()
