"""What clients of vLLM's server hear, against an app that sends what vLLM's does."""

from __future__ import annotations

import asyncio
import json
import random
from contextlib import suppress
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from prometheus_client import REGISTRY

from guardrail.asgi.wire import verdict_headers
from guardrail.errors import DetectorError, GuardrailViolation
from guardrail.policy import Policy
from guardrail.server.errors import error_answer
from guardrail.server.keys import Caller
from guardrail.types import Action, Modality, Verdict
from guardrail.vllm.middleware import GuardMiddleware, _counts, note_verdicts
from guardrail.vllm.options import NAME, Settings

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

CHAT, TEXT, RESPONSES = "/v1/chat/completions", "/v1/completions", "/v1/responses"
REFUSAL = Policy().refusal_message
WORDS = ("zebras ", "cat ", "sat")
FAILED = {"score": None, "reason": "detector_failed"}


@pytest.fixture(scope="module", autouse=True)
def _counts_end_here() -> Iterator[None]:
    """The registry is the process's, and servers of other tests count in it under these names."""
    yield
    counts = _counts()
    REGISTRY.unregister(counts._verdicts)
    REGISTRY.unregister(counts._outages)
    _counts.cache_clear()


def verdict(action: Action, would_be: Action | None = None, **changes: Any) -> Verdict:
    made = {"score": 0.5, "tau_steer": 0.4, "tau_flag": 0.8, "layers": (1,), **changes}
    made |= {"modality": Modality.TEXT, "artefact_id": "guard-0123456789abcdef"}
    return Verdict(action=action, would_be=would_be or action, **made)


VERDICTS = {
    "pass": verdict(Action.PASS),
    "steer": verdict(Action.STEER, strength=2.0),
    "flag": verdict(Action.FLAG),
    "outage": verdict(Action.FLAG, **FAILED),
    "open": verdict(Action.PASS, Action.PASS, **FAILED),
    "shadow": verdict(Action.PASS, Action.FLAG, mode="shadow"),
}
TOLD = {name: one.told(scores=True) for name, one in VERDICTS.items()}
STOPPED = {"flag": "guardrail:flag", "outage": "guardrail:error"}


class Engine:
    """As vLLM's: a prompt is the name of its verdict, and `hold` keeps that back."""

    def __init__(self) -> None:
        self.running: set[str] = set()
        self.hold: dict[str, asyncio.Event] = {}

    async def generate(
        self, prompt: str, sampling_params: Any, request_id: str, **_options: Any
    ) -> AsyncIterator[Any]:
        params = None if prompt == "blind" else {NAME: TOLD[prompt], "other": 1}
        self.running.add(request_id)
        try:
            if prompt in self.hold:
                await self.hold[prompt].wait()
            words = (REFUSAL,) if prompt in STOPPED else WORDS
            for i in range(len(words) * sampling_params.n):
                word, index = divmod(i, sampling_params.n)
                ends = word == len(words) - 1
                out = SimpleNamespace(index=index, text=words[word], finish_reason=None)
                out.finish_reason = "stop" if ends else None
                out.stop_reason = STOPPED.get(prompt) if ends else None
                out.logprobs, out.token_ids = [], [1, 2]
                await asyncio.sleep(0)
                known = {"prompt_token_ids": [5, 6, 7], "prompt_logprobs": [None]}
                yield SimpleNamespace(kv_transfer_params=params, outputs=[out], **known)
        finally:
            self.running.discard(request_id)


class Server:
    """An app as vLLM's is seen from a middleware; `cut` is how many bytes of a stream go at once.

    `edit` changes what is sent, `idle` sends a comment before there is anything.
    """

    def __init__(self, policy: Policy | None = None, *, cut: int | None = None) -> None:
        settings = Settings(artefact="a", artefact_id="guard-1", policy=policy or Policy())
        entry = {NAME: settings.model_dump(mode="json", exclude_defaults=True)}
        config = SimpleNamespace(additional_config=entry)
        self.state = SimpleNamespace(engine_client=Engine(), vllm_config=config)
        self.cut, self.idle = cut, False
        self.edit = lambda data: data
        self.guarded = GuardMiddleware(self)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            await receive()
            await send({"type": "lifespan.startup.complete"})
            return
        asked = json.loads((await receive())["body"] or b"{}")
        if "error" in asked:
            await self._whole({"error": "no"}, send, asked["error"])
        elif asked.get("stream"):
            path = scope["path"]
            events = self._response(asked) if path == RESPONSES else self._events(path, asked)
            await self._streamed(events, send)
        else:
            await self._whole(await self._answer(scope["path"], asked), send)

    def _calls(self, asked: dict[str, Any]) -> list[Any]:
        prompts = asked["prompt"] if isinstance(asked["prompt"], list) else [asked["prompt"]]
        settings = SimpleNamespace(n=asked.get("n", 1))
        ask = self.state.engine_client.generate
        return [ask(prompt, settings, f"same-{i}") for i, prompt in enumerate(prompts)]

    async def _answer(self, path: str, asked: dict[str, Any]) -> Any:
        choices, params = [], None
        for call in self._calls(asked):
            ends = [{"text": ""} for _ in range(asked.get("n", 1))]
            async for out in call:
                params = params or out.kv_transfer_params
                (one,) = out.outputs
                ends[one.index] |= {
                    "text": ends[one.index]["text"] + one.text,
                    "finish_reason": one.finish_reason,
                    "stop_reason": one.stop_reason,
                }
            choices += ends
        for index, choice in enumerate(choices):
            choice["index"] = index
            if path == CHAT:
                content = choice.pop("text")
                choice["message"] = {"role": "assistant", "content": content, "refusal": None}
        if path == RESPONSES:
            texts = [{"type": "output_text", "text": choices[0]["text"]}]
            about = {"object": "response", "status": "completed", "incomplete_details": None}
            return self.edit({**about, "output": texts, "kv_transfer_params": params})
        return self.edit({"id": "same", "choices": choices, "kv_transfer_params": params})

    async def _events(self, path: str, asked: dict[str, Any]) -> AsyncIterator[str]:
        if self.idle:
            yield ": keep-alive\n\n"
        count, begun = asked.get("n", 1), False
        for at, call in enumerate(self._calls(asked)):
            async for out in call:
                if path == CHAT and not begun:
                    for index in range(count):
                        yield self._chunk({"delta": {"role": "assistant", "content": ""}}, index)
                begun = True
                (one,) = out.outputs
                said = {"delta": {"content": one.text}} if path == CHAT else {"text": one.text}
                if one.finish_reason:
                    said |= {"finish_reason": "stop", "stop_reason": one.stop_reason}
                yield self._chunk(said, one.index + at * count)
        if asked.get("usage"):
            yield _event({"id": "same", "choices": [], "usage": {"total_tokens": 3}})
        yield "data: [DONE]\n\n"

    async def _response(self, asked: dict[str, Any]) -> AsyncIterator[str]:
        begin = {"object": "response", "status": "in_progress"}
        yield _event({"type": "response.created", "response": begin}, "response.created")
        async for out in self._calls(asked)[0]:
            said = {"type": "response.output_text.delta", "delta": out.outputs[0].text}
            yield _event(said, said["type"])
        whole = await self._answer(RESPONSES, asked)
        yield _event({"type": "response.completed", "response": whole}, "response.completed")

    def _chunk(self, said: dict[str, Any], index: int) -> str:
        choice = {"index": index, "finish_reason": None, **said}
        return _event(self.edit({"id": "same", "choices": [choice]}))

    async def _streamed(self, events: AsyncIterator[str], send: Any) -> None:
        headers = [(b"content-type", b"text/event-stream; charset=utf-8"), (b"x-own", b"1")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        async for text in events:
            data = text.encode()
            for at in range(0, len(data), self.cut or len(data)):
                piece = data[at : at + (self.cut or len(data))]
                await send({"type": "http.response.body", "body": piece, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _whole(self, answer: Any, send: Any, status: int = 200) -> None:
        body = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
        length = str(len(body)).encode()
        headers = [(b"content-type", b"application/json"), (b"content-length", length)]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body[:5], "more_body": True})
        await send({"type": "http.response.body", "body": body[5:]})


def _event(data: Any, kind: str = "") -> str:
    head = f"event: {kind}\n" if kind else ""
    return f"{head}data: {json.dumps(data, ensure_ascii=False)}\n\n"


class Got:
    """What a client got so far."""

    def __init__(self) -> None:
        self.sent: list[dict[str, Any]] = []

    async def take(self, message: dict[str, Any]) -> None:
        self.sent.append(message)

    @property
    def status(self) -> int:
        return self.sent[0]["status"]

    @property
    def headers(self) -> dict[str, str]:
        return {name.decode(): value.decode() for name, value in self.sent[0]["headers"]}

    @property
    def body(self) -> bytes:
        body = b"".join(one["body"] for one in self.sent[1:])
        if "content-length" in self.headers:
            assert int(self.headers["content-length"]) == len(body)
        assert not self.sent[-1].get("more_body")
        return body

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def events(self) -> list[Any]:
        lines = self.body.decode().splitlines()
        data = [line[6:] for line in lines if line.startswith("data: ")]
        return [one if one == "[DONE]" else json.loads(one) for one in data]

    @property
    def judged(self) -> dict[str, str]:
        found = {k: v for k, v in self.headers.items() if k.startswith("x-guardrail")}
        assert all(name.islower() for name in found)
        return found


def headers_of(name: str) -> dict[str, str]:
    return {key.lower(): value for key, value in verdict_headers(TOLD[name]).items()}


async def ask(
    server: Server,
    path: str,
    *,
    app: Any = None,
    method: str = "POST",
    got: Any = None,
    **body: Any,
) -> Got:
    got = got or Got()
    scope = {"type": "http", "method": method, "path": path, "app": server, "headers": []}

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": json.dumps(body).encode()}

    await (app or server.guarded)(scope, receive, got.take)
    return got


def counted(action: str, reason: str = "score") -> float:
    labels = {"action": action, "would_be": action, "modality": "text", "reason": reason}
    return REGISTRY.get_sample_value("guardrail_verdicts_total", labels) or 0.0


@pytest.mark.parametrize("path", [CHAT, TEXT])
@pytest.mark.parametrize("name", VERDICTS)
async def test_an_answer_has_the_verdict_as_a_field_and_as_headers(path, name):
    got = await ask(Server(), path, prompt=name)
    assert got.json[NAME] == TOLD[name]
    assert got.judged == headers_of(name)
    assert got.json["kv_transfer_params"] == {"other": 1}
    (choice,) = got.json["choices"]
    stopped = name in STOPPED
    said = choice["message"]["content"] if path == CHAT else choice["text"]
    assert said == (REFUSAL if stopped else "".join(WORDS))
    assert choice["finish_reason"] == ("content_filter" if stopped else "stop")
    assert NAME not in choice
    if path == CHAT:
        assert choice["message"]["refusal"] == (REFUSAL if stopped else None)


@pytest.mark.parametrize("cut", [1, 7, None])
@pytest.mark.parametrize("path", [CHAT, TEXT])
@pytest.mark.parametrize("name", VERDICTS)
async def test_a_stream_tells_the_verdict_first_and_where_it_ends(path, name, cut):
    server = Server(cut=cut)
    got = await ask(server, path, prompt=name, stream=True, usage=True)
    plain = await ask(server, path, app=server, prompt=name, stream=True, usage=True)
    assert (got.judged, got.headers["x-own"]) == (headers_of(name), "1")
    *told, usage, done = got.events
    assert (usage, done) == (plain.events[-2], "[DONE]")
    assert told[0][NAME] == told[-1][NAME] == TOLD[name]
    assert not any(NAME in one for one in told[1:-1])
    last = told[-1]["choices"][0]
    if name in STOPPED:
        assert last["finish_reason"] == "content_filter"
        if path == CHAT:
            assert last["delta"] == {"content": REFUSAL, "refusal": REFUSAL}
    else:
        for one in (told[0], told[-1]):
            one.pop(NAME, None)
        assert told == plain.events[:-2]


async def test_events_that_need_no_word_of_the_guards_pass_byte_by_byte():
    server = Server()
    server.edit = lambda data: {**data, "own": "é \u2028"}
    got = await ask(server, TEXT, prompt="pass", stream=True)
    assert (
        got.body.split(b"\n\n")[1]
        == _event(
            {"id": "same", "choices": [{"index": 0, "finish_reason": None, "text": "cat "}]}
            | {"own": "é \u2028"}
        )
        .encode()
        .strip()
    )


async def test_nothing_of_a_stream_is_sent_before_its_verdict():
    server, got = Server(), Got()
    server.idle, server.state.engine_client.hold["flag"] = True, asyncio.Event()
    running = asyncio.create_task(ask(server, CHAT, prompt="flag", stream=True, got=got))
    await asyncio.sleep(0.01)
    assert got.sent == []
    server.state.engine_client.hold["flag"].set()
    await running
    assert got.judged == headers_of("flag")
    assert got.body.startswith(b": keep-alive\n\n")


async def test_a_stream_of_several_prompts_waits_for_all_their_verdicts():
    server, got = Server(), Got()
    server.state.engine_client.hold["flag"] = asyncio.Event()
    asked = ask(server, TEXT, prompt=["pass", "flag"], stream=True, got=got)
    running = asyncio.create_task(asked)
    await asyncio.sleep(0.01)
    assert got.sent == []
    server.state.engine_client.hold["flag"].set()
    await running
    assert got.judged == headers_of("flag")
    chunks = [one for one in got.events if one != "[DONE]"]
    assert chunks[0][NAME] == chunks[-1][NAME] == TOLD["flag"]
    for index, name, count in ((0, "pass", 2), (1, "flag", 1)):
        own = [one["choices"][0] for one in chunks if one["choices"][0]["index"] == index]
        assert [one[NAME] for one in own if NAME in one] == [TOLD[name]] * count
        assert own[-1]["finish_reason"] == ("content_filter" if name == "flag" else "stop")
    assert chunks[2][NAME] == TOLD["flag"]  # the first prompt's answer ends there


@pytest.mark.parametrize("n", [1, 2])
async def test_each_of_several_prompts_has_its_own_verdict(n):
    got = await ask(Server(), TEXT, prompt=["steer", "flag", "pass"], n=n)
    assert (got.json[NAME], got.judged) == (TOLD["flag"], headers_of("flag"))
    wanted = [TOLD[name] for name in ("steer", "flag", "pass") for _ in range(n)]
    assert [choice[NAME] for choice in got.json["choices"]] == wanted
    ends = [choice["finish_reason"] for choice in got.json["choices"]]
    assert ends == ["stop"] * n + ["content_filter"] * n + ["stop"] * n


@pytest.mark.parametrize("name", ["steer", "flag"])
async def test_each_of_several_answers_has_the_verdict(name):
    whole = await ask(Server(), CHAT, prompt=name, n=3)
    assert [choice[NAME] for choice in whole.json["choices"]] == [TOLD[name]] * 3
    stream = await ask(Server(cut=5), CHAT, prompt=name, n=3, stream=True)
    told = [one["choices"][0] for one in stream.events[:-1]]
    for index in range(3):
        own = [one for one in told if one["index"] == index]
        assert own[0][NAME] == own[-1][NAME] == TOLD[name]
        assert own[-1]["finish_reason"] == ("content_filter" if name == "flag" else "stop")
    assert stream.events[0][NAME] == TOLD[name]


async def test_a_search_for_beams_has_the_strictest_verdict_of_its_prompts():
    server = Server()
    beams = {"id": "same", "choices": [{"index": 0, "finish_reason": "length", "text": "a"}]}
    server.edit = lambda _data: json.loads(json.dumps(beams))
    got = await ask(server, TEXT, prompt=["pass", "steer", "pass"])
    assert got.json[NAME] == got.json["choices"][0][NAME] == TOLD["steer"]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("prompt", ["flag", "outage", ["pass", "flag"]])
async def test_a_policy_that_raises_gives_the_error_of_the_server(prompt, stream):
    policy = Policy(on_flag="raise", refusal_message="Not this.")
    got = await ask(Server(policy), TEXT, prompt=prompt, stream=stream)
    flagged = prompt != "outage"
    error = GuardrailViolation(VERDICTS["flag"]) if flagged else DetectorError("failed")
    wanted = error_answer(error, refusal="Not this.", caller=Caller("a", sees_scores=True))
    assert (got.status, got.json) == (wanted.status_code, json.loads(wanted.body))
    assert got.status == (400 if flagged else 503)
    assert got.judged == (headers_of("flag") if flagged else {})
    assert got.headers["content-type"] == "application/json"


async def test_a_policy_that_raises_lets_the_rest_pass():
    for stream in (False, True):
        got = await ask(Server(Policy(on_flag="raise")), CHAT, prompt="steer", stream=stream)
        assert (got.status, got.judged) == (200, headers_of("steer"))


async def test_an_annotated_flag_is_an_answer_as_any():
    server = Server(Policy(on_flag="annotate"))
    server.edit = lambda data: {**data, "choices": [{**data["choices"][0], "stop_reason": 7}]}
    got = await ask(server, CHAT, prompt="flag")
    assert got.json[NAME]["action"] == "flag"
    assert got.json["choices"][0]["finish_reason"] == "stop"


async def test_a_stop_word_of_the_clients_is_no_refusal():
    server = Server()
    server.edit = lambda data: {
        **data,
        "choices": [{**one, "stop_reason": "guardrail:flag"} for one in data["choices"]],
    }
    got = await ask(server, CHAT, prompt="pass")
    assert got.json["choices"][0]["finish_reason"] == "stop"
    assert got.json["choices"][0]["message"]["content"] == "".join(WORDS)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("path", "prompt"),
    [(CHAT, "blind"), (TEXT, "blind"), (RESPONSES, "blind"), (TEXT, ["pass", "blind"])],
)
async def test_an_answer_with_no_verdict_is_not_sent(path, prompt, stream):
    got = await ask(Server(), path, prompt=prompt, stream=stream)
    assert got.status == 503
    assert got.json["error"]["code"] == "unavailable"
    assert got.headers["retry-after"] == "1"
    assert not any(word.strip().encode() in got.body for word in WORDS)


@pytest.mark.parametrize("body", [b'{"choices": [', b"[1]", b'{"a": 1, "a": 2}', b"\xff"])
async def test_an_answer_that_cannot_be_read_is_not_sent(body):
    server = Server()
    server.edit = lambda _data: body
    assert (await ask(server, CHAT, prompt="pass")).status == 503


async def test_a_stream_that_cannot_be_read_ends_with_an_error():
    server, n = Server(), iter(range(9))
    server.edit = lambda data: [data] if next(n) == 2 else data
    got = await ask(server, TEXT, prompt="pass", stream=True)
    assert (got.status, len(got.events)) == (200, 3)
    assert got.events[-1]["error"]["code"] == "unavailable"
    assert WORDS[2].encode() not in got.body


def changing(server: Server, *names: str) -> Server:
    """With other verdicts in a prompt's outputs, one by one."""
    told, real = iter(names), server.state.engine_client.generate

    async def generate(prompt: Any, sampling_params: Any, name: Any) -> AsyncIterator[Any]:
        async for out in real(prompt, sampling_params, name):
            out.kv_transfer_params = {NAME: TOLD[next(told)]}
            yield out

    server.state.engine_client.generate = generate
    return server


async def test_the_strictest_verdict_on_a_prompt_counts():
    server = changing(Server(), "steer", "pass", "pass")
    got = await ask(server, TEXT, prompt="pass")
    assert (got.json[NAME], got.judged) == (TOLD["steer"], headers_of("steer"))


async def test_a_verdict_that_turns_stricter_on_its_way_is_an_error_where_the_policy_raises():
    server = changing(Server(Policy(on_flag="raise")), "pass", "pass", "flag")
    got = await ask(server, TEXT, prompt="pass", stream=True)
    assert got.judged == headers_of("pass")
    assert got.events[-1]["error"][NAME] == TOLD["flag"]
    assert WORDS[2].encode() not in got.body


@pytest.mark.parametrize("status", [400, 404, 500])
async def test_errors_pass_as_they_are(status):
    server = Server()
    got = await ask(server, CHAT, error=status)
    assert got.sent == (await ask(server, CHAT, app=server, error=status)).sent


async def test_a_stream_that_is_an_error_alone_passes_as_it_is():
    server = Server()
    server.edit = lambda _data: {"error": {"message": "no"}}
    got = await ask(server, TEXT, prompt="pass", stream=True)
    plain = await ask(server, TEXT, app=server, prompt="pass", stream=True)
    assert (got.status, got.body, got.judged) == (200, plain.body, {})


async def test_a_refusals_tokens_are_known_to_have_no_probabilities():
    engine = Server().state.engine_client
    note_verdicts(engine)
    for name, known in (("flag", ([None] * 2, [None] * 3)), ("pass", ([], [None]))):
        out = await anext(engine.generate(name, SimpleNamespace(n=1), "a"))
        assert (out.outputs[0].logprobs, out.prompt_logprobs) == known


async def test_a_client_that_left_needs_no_verdict():
    server = Server()
    server.edit = lambda _data: b"null"
    got = await ask(server, CHAT, prompt=[])
    assert (got.status, got.body) == (200, b"null")


@pytest.mark.parametrize(
    ("path", "method"), [("/v1/embeddings", "POST"), (CHAT, "GET"), ("/metrics", "POST")]
)
async def test_other_paths_and_methods_pass_as_they_are(path, method):
    server = Server()
    got = await ask(server, path, method=method, prompt="flag")
    assert got.sent == (await ask(server, path, method=method, app=server, prompt="flag")).sent


async def test_a_path_is_found_below_the_root_of_the_app():
    server, got = Server(), Got()
    scope = {"type": "http", "method": "POST", "path": f"/api{CHAT}", "root_path": "/api"}

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b'{"prompt": "pass"}'}

    await server.guarded({**scope, "app": server, "headers": []}, receive, got.take)
    assert got.judged == headers_of("pass")


async def test_requests_at_once_with_one_name_get_their_own_verdicts():
    server = Server()
    names = random.Random(0).choices(list(VERDICTS), k=60)
    asked = [ask(server, CHAT, prompt=n, stream=i % 2 == 0) for i, n in enumerate(names)]
    for name, got in zip(names, await asyncio.gather(*asked), strict=True):
        told = (got.events[0] if got.body.startswith(b"data") else got.json)[NAME]
        assert (told, got.judged) == (TOLD[name], headers_of(name))


async def test_a_request_that_is_cancelled_is_gone_from_the_engine():
    server = Server()
    server.state.engine_client.hold["pass"] = asyncio.Event()
    running = asyncio.create_task(ask(server, CHAT, prompt="pass", stream=True))
    await asyncio.sleep(0.01)
    assert server.state.engine_client.running == {"same-0"}
    running.cancel()
    with suppress(asyncio.CancelledError):
        await running
    assert server.state.engine_client.running == set()


async def test_outputs_that_nobody_wants_any_more_are_ended_in_the_engine():
    engine = Server().state.engine_client
    note_verdicts(engine)
    outputs = engine.generate("pass", SimpleNamespace(n=1), "a")
    await anext(outputs)
    assert engine.running == {"a"}
    await outputs.aclose()
    assert engine.running == set()


@pytest.mark.parametrize("stream", [False, True])
async def test_verdicts_are_counted_in_the_registry_that_vllm_shows(stream):
    before = {name: counted(name) for name in ("pass", "steer", "flag")}
    outages = REGISTRY.get_sample_value("guardrail_outages_total") or 0.0
    server = Server()
    for prompt in ("pass", ["steer", "flag"], "outage", "pass"):
        await ask(server, TEXT, prompt=prompt, stream=stream, n=2)
    await ask(server, "/v1/messages", prompt="pass")  # whatever the path
    added = {name: counted(name) - n for name, n in before.items()}
    assert added == {"pass": 3, "steer": 1, "flag": 1}
    assert REGISTRY.get_sample_value("guardrail_outages_total") == outages + 1


@pytest.mark.parametrize("name", ["pass", "flag"])
async def test_a_response_has_the_verdict_and_is_incomplete_where_it_was_refused(name):
    whole = await ask(Server(), RESPONSES, prompt=name)
    assert (whole.json[NAME], whole.judged) == (TOLD[name], headers_of(name))
    stream = await ask(Server(cut=3), RESPONSES, prompt=name, stream=True)
    assert stream.judged == headers_of(name)
    first, *_, last = stream.events
    assert first[NAME] == last[NAME] == TOLD[name]
    assert b"event: response.completed\n" in stream.body
    for response in (whole.json, last["response"]):
        ends = (response["status"], response["incomplete_details"])
        filtered = ("incomplete", {"reason": "content_filter"})
        assert ends == (filtered if name == "flag" else ("completed", None))
        assert response["kv_transfer_params"] == {"other": 1}


async def test_a_response_that_is_to_come_needs_no_verdict_yet():
    server = Server()
    server.edit = lambda data: {**data, "status": "queued", "output": []}
    got = await ask(server, RESPONSES, prompt=["blind"])
    assert (got.status, got.json["status"], got.judged) == (200, "queued", {})


async def started(server: Server) -> dict[str, Any]:
    got = Got()

    async def receive() -> dict[str, Any]:
        return {"type": "lifespan.startup"}

    await server.guarded({"type": "lifespan", "app": server}, receive, got.take)
    return got.sent[-1]


async def test_it_starts_where_the_guard_is_inside_and_notes_once():
    server = Server()
    assert (await started(server))["type"] == "lifespan.startup.complete"
    noting = server.state.engine_client.generate
    note_verdicts(server.state.engine_client)
    assert server.state.engine_client.generate is noting


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda state: state.vllm_config.additional_config.clear(), "engine_options"),
        (lambda state: delattr(state, "engine_client"), "has no engine_client"),
        (lambda state: setattr(state, "engine_client", object()), "has no generate"),
        (
            lambda state: setattr(state.engine_client, "generate", lambda request: None),
            "generate takes request",
        ),
    ],
)
async def test_a_server_that_is_none_of_the_guards_does_not_start(change, told):
    server = Server()
    change(server.state)
    found = await started(server)
    assert found["type"] == "lifespan.startup.failed"
    assert told in found["message"]
