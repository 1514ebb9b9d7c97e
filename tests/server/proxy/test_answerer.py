"""What passes reaches the upstream as it was checked; what does not, never does."""

from __future__ import annotations

import asyncio
import base64
import json
from io import BytesIO

import httpx
import pytest

from guardrail.errors import GuardClosedError, QueueFullError, RequestTimeoutError
from guardrail.policy import Policy
from guardrail.server import ServerSettings

PATH = "/v1/chat/completions"
ANSWERS = [
    (PATH, "messages", [{"role": "user", "content": "TEXT"}]),
    ("/v1/completions", "prompt", "TEXT"),
    ("/v1/responses", "input", "TEXT"),
    ("/v1/responses", "input", [{"role": "user", "content": "TEXT"}]),
]


def asking(source, value, text, **more):
    said = json.loads(json.dumps(value).replace("TEXT", text))
    return {"model": "big", source: said, **more}


@pytest.fixture
def data_url(picture):
    file = BytesIO()
    picture().save(file, "PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


def with_image(url):
    parts = [
        {"type": "text", "text": "what is this?"},
        {"type": "image_url", "image_url": {"url": url}},
    ]
    return {"model": "big", "messages": [{"role": "user", "content": parts}]}


@pytest.mark.parametrize(("path", "source", "value"), ANSWERS)
async def test_what_passes_arrives_byte_for_byte(proxy_of, upstream, path, source, value):
    body = asking(source, value, "héllo \u2028 \U0001f600", temperature=1.0, top_k=5, store=True)
    sent = json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode()
    answer = await proxy_of().post(path, content=sent, headers={"content-type": "application/json"})
    assert answer.status_code == 200
    [seen] = upstream.seen
    assert seen.body == sent
    assert seen.path == path


async def test_an_answer_comes_with_its_verdict(proxy_of, wire):
    answer = await proxy_of().post(PATH, json=wire.CHAT)
    told = answer.json()
    verdict = told.pop("guardrail")
    assert told == wire.ANSWER
    assert (verdict["action"], verdict["score"]) == ("pass", 0.25)
    assert answer.headers["x-guardrail-action"] == "pass"
    assert answer.headers["x-guardrail-score"] == "0.2500"
    assert answer.headers["x-guardrail-artefact"] == "guard-words"
    assert answer.headers["content-type"] == "application/json"


async def test_pictures_in_the_body_go_on(proxy_of, upstream, data_url):
    answer = await proxy_of().post(PATH, json=with_image(data_url))
    assert answer.headers["x-guardrail-modality"] == "image"
    assert upstream.seen[0].json == with_image(data_url)


@pytest.mark.parametrize("mode", ["plain", "the policy allows the host"])
async def test_an_address_is_never_left_for_the_upstream_to_fetch(proxy_of, upstream, wire, mode):
    policy, settings = Policy(), ServerSettings()
    if mode != "plain":
        policy = Policy(allowed_hosts=frozenset({"127.0.0.1"}))
        settings = ServerSettings(fetch_urls=True)
    proxy = proxy_of(wire.WordGuard(policy), settings)
    answer = await proxy.post(PATH, json=with_image("http://127.0.0.1:9/x.png"))
    assert answer.status_code == 422
    assert upstream.seen == []


@pytest.mark.parametrize("streams", [False, True])
@pytest.mark.parametrize(("path", "source", "value"), ANSWERS)
async def test_what_is_flagged_never_reaches_the_upstream(
    proxy_of, upstream, wire, path, source, value, streams
):
    body = asking(source, value, "bad", stream=streams)
    answer = await proxy_of().post(path, json=body)
    assert answer.status_code == 200
    assert upstream.seen == []
    assert answer.headers["x-guardrail-action"] == "flag"
    assert "can't help" in answer.text
    told = wire.events(answer.content) if streams else [answer.json()]
    assert told[0]["guardrail"]["action"] == "flag"
    if path != "/v1/responses":
        finish = [c["finish_reason"] for e in told[:-1] or told for c in e["choices"]]
        assert finish[-1] == "content_filter"
        assert not streams or told[-1] == "[DONE]"
    else:
        whole = told[-1]["response"] if streams else told[0]
        assert whole["status"] == "completed"
        assert "can't help" in whole["output"][0]["content"][0]["refusal"]


@pytest.mark.parametrize(
    "item",
    [
        {"role": "system", "content": "bad"},
        {"role": "assistant", "content": [{"type": "output_text", "text": "bad"}]},
        {"role": "assistant", "content": [{"type": "refusal", "refusal": "bad"}]},
        {"type": "function_call", "call_id": "c", "name": "find", "arguments": '{"a": "bad"}'},
        {"type": "function_call_output", "call_id": "c", "output": "bad"},
        {
            "type": "function_call_output",
            "call_id": "c",
            "output": [{"type": "input_text", "text": "bad"}],
        },
    ],
)
async def test_every_item_of_a_responses_input_is_judged(proxy_of, upstream, item):
    body = {"model": "big", "input": [item, {"role": "user", "content": "hello"}]}
    answer = await proxy_of().post("/v1/responses", json=body)
    assert answer.headers["x-guardrail-action"] == "flag"
    assert upstream.seen == []


@pytest.mark.parametrize(
    "given",
    [
        {"instructions": "bad"},
        {"text": {"format": {"type": "json_schema", "name": "n", "schema": {"const": "bad"}}}},
        {"tools": [{"type": "function", "name": "f", "description": "bad"}]},
    ],
)
async def test_what_goes_with_a_responses_input_is_judged(proxy_of, upstream, given):
    body = {"model": "big", "input": "hello", **given}
    answer = await proxy_of().post("/v1/responses", json=body)
    assert answer.headers["x-guardrail-action"] == "flag"
    assert upstream.seen == []


async def test_what_an_upstream_stored_was_not_seen_so_it_is_refused_unless_allowed(
    proxy_of, upstream
):
    body = {"model": "big", "input": "hello", "previous_response_id": "resp_1"}
    refused = await proxy_of().post("/v1/responses", json=body)
    assert refused.status_code == 422
    assert "previous_response_id" in refused.json()["error"]["message"]
    assert upstream.seen == []
    allowed = await proxy_of(unchecked={"previous_response_id"}).post("/v1/responses", json=body)
    assert allowed.status_code == 200
    assert upstream.seen[0].json == body


@pytest.mark.parametrize("usage", [False, True])
async def test_a_refusal_looks_as_that_of_a_guarded_model(proxy_of, client_of, guard_of, usage):
    from guardrail.types import Action

    body = {
        "model": "guarded",
        "messages": [{"role": "user", "content": "x"}],
        "stream": True,
        "stream_options": {"include_usage": usage},
    }
    ways = [client_of(guard_of(Action.FLAG)), proxy_of(guard_of(Action.FLAG))]
    told = [(await way.post(PATH, json=body)) for way in ways]
    for way in ways:
        await way.aclose()
    local, proxied = (
        [
            {
                key: bool(value) if key == "usage" else value  # a proxy counts no tokens
                for key, value in json.loads(e[6:]).items()
                if key not in ("id", "created")
            }
            for e in answer.text.split("\n\n")
            if e and "[DONE]" not in e
        ]
        for answer in told
    )
    assert proxied == local
    assert all(answer.text.endswith("[DONE]\n\n") for answer in told)


async def test_a_policy_that_raises_answers_an_error(proxy_of, upstream, wire):
    proxy = proxy_of(wire.WordGuard(Policy(on_flag="raise")))
    answer = await proxy.post(PATH, json=wire.saying("bad", stream=True))
    assert answer.status_code == 400
    assert answer.json()["error"]["code"] == "content_filter"
    assert answer.json()["error"]["guardrail"]["action"] == "flag"
    assert answer.headers["x-guardrail-action"] == "flag"
    assert upstream.seen == []


@pytest.mark.parametrize(
    ("policy", "action"),
    [(Policy(on_flag="annotate"), "flag"), (Policy(mode="shadow"), "pass")],
)
async def test_flagged_requests_go_on_where_the_policy_only_tells(
    proxy_of, upstream, wire, policy, action
):
    answer = await proxy_of(wire.WordGuard(policy)).post(PATH, json=wire.saying("bad"))
    assert answer.json()["choices"] == wire.ANSWER["choices"]
    assert answer.headers["x-guardrail-action"] == action
    assert answer.headers["x-guardrail-would-be"] == "flag"
    assert len(upstream.seen) == 1


@pytest.mark.parametrize(("path", "source", "value"), ANSWERS)
async def test_what_would_be_steered_goes_on_with_a_caution(
    proxy_of, upstream, path, source, value
):
    await proxy_of().post(path, json=asking(source, value, "odd", top_p=0.5))
    [seen] = upstream.seen
    assert Policy().caution_prompt in json.dumps(seen.json)
    assert seen.json["top_p"] == 0.5
    assert "odd" in json.dumps(seen.json[source])


@pytest.mark.parametrize(("unsteerable", "reached"), [("flag", 0), ("pass", 1)])
async def test_what_would_be_steered_is_settled_by_the_policy(
    proxy_of, upstream, wire, unsteerable, reached
):
    proxy = proxy_of(wire.WordGuard(Policy(unsteerable=unsteerable)))
    answer = await proxy.post(PATH, json=wire.saying("odd"))
    assert len(upstream.seen) == reached
    assert answer.headers["x-guardrail-action"] == unsteerable
    assert not reached or upstream.seen[0].json == wire.saying("odd")


@pytest.mark.parametrize("word", ["outage", "crash"])
async def test_an_outage_is_no_answer_where_the_policy_fails_closed(proxy_of, upstream, wire, word):
    proxy = proxy_of()
    answer = await proxy.post(PATH, json=wire.saying(word))
    assert answer.status_code == 503
    assert "retry-after" in answer.headers
    assert word not in answer.text
    assert upstream.seen == []
    assert (await proxy.post(PATH, json=wire.CHAT)).status_code == 200


@pytest.mark.parametrize("word", ["outage", "crash"])
async def test_an_outage_lets_requests_pass_where_the_policy_fails_open(
    proxy_of, upstream, wire, word
):
    answer = await proxy_of(wire.WordGuard(Policy(fail="open"))).post(PATH, json=wire.saying(word))
    assert answer.status_code == 200
    assert upstream.seen[0].json == wire.saying(word)
    verdict = answer.json()["guardrail"]
    assert verdict is None or verdict["reason"] == "detector_failed"


UNREAD = [
    {"chat_template": "{{ 'bad' }}"},
    {"prompt": "bad"},
    {"input": "bad"},
    {"Messages": [{"role": "user", "content": "bad"}]},
    {"documents": [{"text": "bad"}]},
    {"prompt_embeds": "AAAA"},
    {"previous_response_id": "resp_1"},
    {"tools": [{"type": "web_search"}]},
    {"extra": {"a": "bad"}},
    {"reasoning_effort": "low\n\nbad words"},
    {"reasoning": {"effort": "low", "more": ["bad words"]}},
    {"verbosity": "bad words"},
    {"text": {"verbosity": "bad words"}},
    {"truncate_prompt_tokens": 3},
    {"web_search_options": {}},
    {"enable_search": True},
]


@pytest.mark.parametrize("more", UNREAD)
async def test_what_nobody_reads_is_refused(proxy_of, upstream, wire, more):
    answer = await proxy_of().post(PATH, json={**wire.CHAT, **more})
    assert answer.status_code == 422
    assert answer.json()["error"]["message"]
    assert upstream.seen == []


@pytest.mark.parametrize(
    "more",
    [
        {"tools": [{"type": "function", "function": {"name": "f", "description": "bad"}}]},
        {"response_format": {"type": "json_schema", "json_schema": {"description": "bad"}}},
        {"messages": [{"role": "user", "name": "bad", "content": "x"}]},
        {"messages": [{"role": "tool", "tool_call_id": "a bad id", "content": "x"}]},
    ],
)
async def test_tools_schemas_and_names_are_checked_like_messages(proxy_of, upstream, wire, more):
    answer = await proxy_of().post(PATH, json={**wire.CHAT, **more})
    assert answer.headers["x-guardrail-action"] == "flag"
    assert upstream.seen == []


async def test_an_operator_may_name_keys_that_the_model_never_sees(proxy_of, upstream, wire):
    proxy = proxy_of(unchecked={"chat_template_kwargs"})
    body = {**wire.CHAT, "chat_template_kwargs": {"enable_thinking": False}}
    assert (await proxy.post(PATH, json=body)).status_code == 200
    assert upstream.seen[0].json == body


async def test_in_shadow_mode_what_cannot_be_read_goes_on(proxy_of, upstream, wire):
    body = {**wire.CHAT, "extra": {"a": "b"}}
    answer = await proxy_of(wire.WordGuard(Policy(mode="shadow"))).post(PATH, json=body)
    assert answer.json()["guardrail"] is None
    assert upstream.seen[0].json == body


@pytest.mark.parametrize(
    ("content", "kind", "status"),
    [
        (b"{", "application/json", 400),
        (b'{"model": "a", "model": "b", "messages": []}', "application/json", 400),
        (b'{"model": "a", "messages": [], "x": NaN}', "application/json", 400),
        (b"[" * 100_000, "application/json", 400),
        (b"[]", "application/json", 400),
        (b'{"messages": [{"role": "user", "content": "x"}]}', "application/json", 400),
        (b'{"model": "a", "prompt": "x"}', "application/json", 400),
        (b'{"model": "a", "messages": 1, "stream": 1}', "application/json", 400),
        (b"a=b", "application/x-www-form-urlencoded", 415),
        (b"{}", "text/plain", 415),
    ],
)
async def test_a_body_that_readers_may_differ_on_is_refused(
    proxy_of, upstream, content, kind, status
):
    answer = await proxy_of().post(PATH, content=content, headers={"content-type": kind})
    assert answer.status_code == status
    assert answer.json()["error"]["type"] == "invalid_request_error"
    assert upstream.seen == []


@pytest.mark.parametrize(("unchecked", "status"), [((), 422), ({"user"}, 400)])
async def test_half_a_character_is_refused_in_settings_too(
    proxy_of, upstream, wire, unchecked, status
):
    content = json.dumps({**wire.CHAT, "user": "\ud83d"}).encode()
    headers = {"content-type": "application/json"}
    proxy = proxy_of(unchecked=unchecked)
    answer = await proxy.post(PATH, content=content, headers=headers)
    assert answer.status_code == status
    assert upstream.seen == []


@pytest.mark.parametrize(
    "path",
    ["/v1/embeddings", "/v1/images/generations", "/v1/files", "/v1/audio/speech", "/api/chat"],
)
async def test_other_endpoints_are_not_there(proxy_of, upstream, path):
    answer = await proxy_of().post(path, json={"model": "big", "input": "x"})
    assert answer.status_code == 404
    assert answer.json()["error"]["message"]
    assert upstream.seen == []


async def test_models_have_other_names_at_the_upstream(proxy_of, upstream, wire):
    proxy = proxy_of(models={"small": "org/small-3b"})
    answer = await proxy.post(PATH, json={**wire.CHAT, "model": "small"})
    assert answer.status_code == 200
    assert upstream.seen[0].json == {**wire.CHAT, "model": "org/small-3b"}
    unknown = await proxy.post(PATH, json=wire.CHAT)
    assert unknown.status_code == 404
    assert unknown.json()["error"]["code"] == "model_not_found"
    listed = (await proxy.get("/v1/models")).json()["data"]
    assert [each["id"] for each in listed] == ["small"]
    assert len(upstream.seen) == 1


async def test_the_check_knows_who_asks(proxy_of, wire):
    guard = wire.WordGuard()
    proxy = proxy_of(guard, ServerSettings(timeout_s=7))
    answer = await proxy.post(PATH, json=wire.CHAT, headers={"x-request-id": "r-1"})
    assert guard.options == [{"client": None, "request_id": "r-1", "timeout": 7}]
    assert answer.headers["x-request-id"] == "r-1"


async def test_only_known_headers_go_either_way(proxy_of, upstream, wire):
    told = {"set_cookie": "a=b", "server": "x", "x_request_id": "up-1", "x_secret": "s"}
    upstream.says(wire.ANSWER, **told)
    proxy, trace = proxy_of(key="sk-own"), "00-" + "a" * 32 + "-" + "b" * 16 + "-01"
    sent = {
        "authorization": "Bearer sk-client",
        "cookie": "c=d",
        "x-forwarded-for": "1.2.3.4",
        "idempotency-key": "k",
        "connection": "x-mine",
        "x-mine": "1",
        "traceparent": trace,
        "x-request-id": "r-1",
    }
    for _ in range(2):
        answer = await proxy.post(PATH, json=wire.CHAT, headers=sent)
    for seen in upstream.seen:
        assert set(seen.headers) == {
            "host",
            "accept",
            "accept-encoding",
            "authorization",
            "connection",
            "content-length",
            "content-type",
            "traceparent",
            "user-agent",
            "x-request-id",
        }
        assert seen.headers["authorization"] == "Bearer sk-own"
        assert seen.headers["accept-encoding"] == "identity"
        assert seen.headers["traceparent"] == trace
    assert answer.headers["x-upstream-request-id"] == "up-1"
    assert not {"set-cookie", "server", "x-secret"} & set(answer.headers)


async def test_without_an_own_key_none_is_sent(proxy_of, upstream, wire):
    await proxy_of().post(PATH, json=wire.CHAT, headers={"authorization": "Bearer sk-client"})
    assert "authorization" not in upstream.seen[0].headers


async def test_verdicts_are_counted_by_the_guard_in_force(app_of, guard_of, wire):
    guard = guard_of(allowed_hosts=frozenset({"h.example"}))
    app = app_of(guard, ServerSettings(fetch_urls=True))
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://p") as proxy:
        assert (await proxy.post(PATH, json=wire.CHAT)).status_code == 200
    [counted] = app.state.service.guard.monitor.snapshot().modalities.values()
    assert counted.n == 1


async def test_a_body_of_more_values_than_can_be_looked_at_is_not_forwarded(
    proxy_of, upstream, wire
):
    many = {str(number): 1 for number in range(10_001)}
    answer = await proxy_of().post(PATH, json={**wire.CHAT, "logit_bias": many})
    assert answer.status_code == 413
    assert upstream.seen == []


@pytest.mark.parametrize("key", ["user", "tools", "response_format", "messages"])
async def test_deep_bodies_are_refused_or_forwarded_whole(proxy_of, upstream, key):
    proxy = proxy_of()
    for depth in (90, *range(94, 102), 900):
        deep = f'{{"a": {"[" * depth}{"]" * depth}}}'
        inside = {
            "tools": f'[{{"type": "function", "function": {{"name": "f", "parameters": {deep}}}}}]',
            "messages": f'[{{"role": "user", "content": {deep}}}]',
        }.get(key, deep)
        chat = '"messages": [{"role": "user", "content": "x"}], ' if key != "messages" else ""
        content = f'{{"model": "big", {chat}"{key}": {inside}}}'.encode()
        upstream.seen.clear()
        headers = {"content-type": "application/json"}
        answer = await proxy.post(PATH, content=content, headers=headers)
        assert answer.status_code in (200, 400, 422), depth
        assert len(upstream.seen) == (answer.status_code == 200)


def test_its_routes_are_described_with_what_they_need(app_of):
    paths = app_of().openapi()["paths"]
    for path, source in [("chat/completions", "messages"), ("completions", "prompt"),
                         ("responses", "input")]:  # fmt: skip
        body = paths[f"/v1/{path}"]["post"]["requestBody"]["content"]["application/json"]
        assert body["schema"]["required"] == ["model", source]


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (QueueFullError("full"), 429),
        (RequestTimeoutError("late"), 504),
        (GuardClosedError("x"), 503),
    ],
)
async def test_no_time_or_room_for_a_check_lets_nothing_pass(
    proxy_of, upstream, wire, error, status
):
    class Failing(wire.WordGuard):
        def with_policy(self, policy, **_):
            return Failing(policy)

        async def acheck(self, value, **options):
            raise error

    answer = await proxy_of(Failing(Policy(fail="open"))).post(PATH, json=wire.CHAT)
    assert answer.status_code == status
    assert upstream.seen == []


async def test_answers_and_verdicts_of_many_at_once_are_not_mixed_up(proxy_of, upstream, wire):
    async def echo(seen):
        text = json.dumps({**wire.ANSWER, "echo": seen.json["messages"]}).encode()
        await asyncio.sleep(len(upstream.seen) % 3 / 1_000)
        await seen.head(content_type="application/json", content_length=str(len(text)))
        await seen.send(text)

    upstream.script = echo
    proxy = proxy_of(None, ServerSettings(max_concurrent=300), connections=20)
    bodies = [wire.saying(f"{'bad' if i % 3 else 'fine'} {i}") for i in range(150)]
    answers = await asyncio.gather(*(proxy.post(PATH, json=body) for body in bodies))
    for i, (body, answer) in enumerate(zip(bodies, answers, strict=True)):
        assert answer.json()["guardrail"]["action"] == ("flag" if i % 3 else "pass")
        assert answer.json().get("echo") == (None if i % 3 else body["messages"])
    assert len(upstream.seen) == 50


@pytest.mark.parametrize("policy", [{}, {"on_flag": "raise"}, {"on_flag": "annotate"}])
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("said", ["hello", "bad", "odd"])
@pytest.mark.parametrize(("path", "source", "value"), ANSWERS)
async def test_a_client_that_is_not_told_scores_finds_none(
    proxy_of, upstream, wire, path, source, value, said, stream, policy
):
    if stream:
        upstream.streams(*wire.WORDS, *wire.LAST)
    body = asking(source, value, said, stream=stream)
    told = {}
    for shown in (False, True):
        settings = ServerSettings(expose_scores=shown)
        proxy = proxy_of(wire.WordGuard(Policy(**policy)), settings)
        answer = await proxy.post(path, json=body)
        assert "x-guardrail-action" in answer.headers
        told[shown] = str(answer.headers) + answer.text
    for number in ("0.25", "tau_", "strength", "layer", "X-Guardrail-Score"):
        assert number.lower() not in told[False].lower()
    assert "0.25" in told[True]
    assert "would_be" in told[False]


async def test_nearly_the_same_again_is_counted(app_of, wire):
    app = app_of()
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://s") as client:
        for said in ("hello there, how are you?", "hello there, how are you??"):
            await client.post(PATH, json=wire.saying(said))
    counted = app.state.service.observation.metrics.registry.get_sample_value
    assert counted("guardrail_near_duplicates_total", {"client": ""}) == 1
