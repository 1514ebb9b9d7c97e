"""Answers have the OpenAI form, and their verdict."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from typing import Any

import httpx
import pytest

from guardrail.audit import AuditLog, fan_out
from guardrail.policy import Policy
from guardrail.server import ServerSettings, create_app
from guardrail.server.answers import AsciiJSONResponse, ChatCompletion, headers_of, told
from guardrail.server.keys import Caller, keys_from_text
from guardrail.server.observing import Observation
from guardrail.testing import FakeGuard
from guardrail.types import Action, Result, ToolCall, Verdict

VERDICT: Verdict = FakeGuard().check("hello")
RESULT = Result(
    text="Well.", verdict=VERDICT, finish_reason="stop", prompt_tokens=3, completion_tokens=2
)
CALLER = Caller("r", sees_scores=True)
CALLS = (
    ToolCall(name="look", arguments={"at": "é"}, id="call_1"),
    ToolCall(name="go", arguments="not json", id=""),
)


def completion(**options: Any) -> ChatCompletion:
    return ChatCompletion(model="m", verdict=VERDICT, caller=CALLER, **options)


def whole(result: Result, **options: Any) -> Any:
    return completion(**options).whole([result])


def test_a_whole_answer_says_all_there_is_to_say():
    told = whole(RESULT)
    assert told["object"] == "chat.completion"
    assert told["model"] == "m"
    assert told["system_fingerprint"] == VERDICT.artefact_id
    assert told["usage"] == {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}
    assert told["guardrail"] == VERDICT.to_dict(words=False)
    assert told["choices"] == [
        {
            "index": 0,
            "message": {"role": "assistant", "content": "Well.", "refusal": None},
            "finish_reason": "stop",
            "logprobs": None,
        }
    ]


def test_answers_have_ids_of_their_own():
    assert whole(RESULT)["id"] != whole(RESULT)["id"]


def test_a_refusal_of_the_guards_is_content_and_refusal():
    refused = replace(RESULT, finish_reason="flag", refused_by_guard=True, refusal=RESULT.text)
    choice = whole(refused)["choices"][0]
    assert choice["finish_reason"] == "content_filter"
    assert choice["message"]["content"] == choice["message"]["refusal"] == "Well."


def test_calls_are_told_as_text_and_end_the_turn():
    choice = whole(replace(RESULT, text="", tool_calls=CALLS))["choices"][0]
    first, second = choice["message"]["tool_calls"]
    assert choice["finish_reason"] == "tool_calls"
    assert choice["message"]["content"] is None
    assert first["id"] == "call_1"
    assert first["type"] == "function"
    assert json.loads(first["function"]["arguments"]) == {"at": "é"}
    assert second["id"].startswith("call_")
    assert second["function"] == {"name": "go", "arguments": "not json"}


def test_an_answer_that_was_cut_does_not_end_in_calls():
    cut = replace(RESULT, finish_reason="length", tool_calls=CALLS)
    assert whole(cut)["choices"][0]["finish_reason"] == "length"


def test_words_beside_a_call_stay():
    message = whole(replace(RESULT, tool_calls=CALLS))["choices"][0]["message"]
    assert message["content"] == "Well."


def test_without_parallel_calls_the_first_one_is_told():
    told = whole(replace(RESULT, tool_calls=CALLS), parallel_calls=False)
    assert len(told["choices"][0]["message"]["tool_calls"]) == 1


@pytest.mark.parametrize("usage", [True, False])
def test_a_streams_end_says_why_and_has_the_verdict_once(usage):
    chunks = completion(usage=usage).ending(0, RESULT, [RESULT])
    finish = chunks[0]
    assert finish["choices"][0]["finish_reason"] == "stop"
    assert [("guardrail" in chunk) for chunk in chunks] == [False] * (len(chunks) - 1) + [True]
    assert len({chunk["id"] for chunk in chunks}) == 1
    if usage:
        assert finish["usage"] is None
        assert chunks[-1]["choices"] == []
        assert chunks[-1]["usage"]["total_tokens"] == 5
    else:
        assert len(chunks) == 1
        assert "usage" not in finish


def test_a_streams_calls_are_numbered():
    called = replace(RESULT, tool_calls=CALLS)
    *calls, finish = completion().ending(0, called, [called])
    told = [chunk["choices"][0]["delta"]["tool_calls"][0] for chunk in calls]
    assert [(call["index"], call["function"]["name"]) for call in told] == [(0, "look"), (1, "go")]
    assert finish["choices"][0]["finish_reason"] == "tool_calls"


PLAIN, TRUSTED = "sesame-plain-123456", "sesame-trust-123456"
KEYS = keys_from_text(f"web:{PLAIN}\nboard+trusted:{TRUSTED}", source="x")
CHAT = {"model": "guarded", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 2}
ASKED = {
    "a chat": ("POST", "/v1/chat/completions", CHAT),
    "a stream": (
        "POST",
        "/v1/chat/completions",
        CHAT | {"stream": True, "stream_options": {"include_usage": True}},
    ),
    "a check": ("POST", "/v1/checks", {"input": "hello"}),
    "checks": ("POST", "/v1/checks", {"inputs": [{"input": "hello"}, {"input": "bye"}]}),
    "a call of LiteLLM's": (
        "POST",
        "/beta/litellm_basic_guardrail_api",
        {"input_type": "request", "texts": ["hello"]},
    ),
    "the status": ("GET", "/status.json", None),
}
# a number of a verdict, under whatever name; a count of requests tells no score
NUMBERS = re.compile(
    r"score|tau|strength|layer|window\b|\"median\": ?-?\d|\"(steer|flag)\": ?-?\d+\.|"
    r"edges|\"psi\": ?\d",
    re.IGNORECASE,
)


def numbers(answer: httpx.Response) -> list[str]:
    names = " ".join(answer.headers)
    body = answer.text.replace('"scores":false', "").replace('"reason":"score"', "")
    body = body.replace('"reason": "score"', "")
    return [found[0] for found in NUMBERS.finditer(names + body)]


async def asked(app, what, token=None, peer="203.0.113.9"):
    method, path, body = ASKED[what]
    transport = httpx.ASGITransport(app, client=(peer, 1))
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    async with httpx.AsyncClient(transport=transport, base_url="http://s", headers=headers) as http:
        if what == "the status":
            await http.post("/v1/chat/completions", json=CHAT)
        answer = await http.request(method, path, json=body)
    assert answer.status_code in (200, 400), answer.text
    return answer


@pytest.mark.parametrize("what", ASKED)
@pytest.mark.parametrize("policy", [{}, {"on_flag": "raise"}])
@pytest.mark.parametrize("action", Action)
async def test_a_key_that_is_not_trusted_is_told_what_was_done_and_no_score(
    guard_of, what, action, policy
):
    app = create_app(guard_of(action, **policy), ServerSettings(keys=KEYS))
    answer = await asked(app, what, PLAIN)
    assert numbers(answer) == []
    if what != "the status":
        assert f'"{action}"' in answer.text.replace("\\", "") or '"BLOCKED"' in answer.text
    assert numbers(await asked(app, what, TRUSTED)) != []


@pytest.mark.parametrize(
    ("expose", "keys", "token", "peer", "seen"),
    [
        (None, (), None, "127.0.0.1", True),
        (None, (), None, "::1", True),
        (None, (), None, "203.0.113.9", False),
        (None, KEYS, PLAIN, "127.0.0.1", False),
        (None, KEYS, TRUSTED, "203.0.113.9", True),
        (True, (), None, "203.0.113.9", True),
        (True, KEYS, PLAIN, "203.0.113.9", True),
        (False, (), None, "127.0.0.1", False),
        (False, KEYS, TRUSTED, "127.0.0.1", False),
    ],
)
async def test_who_is_told_scores(guard_of, expose, keys, token, peer, seen):
    app = create_app(guard_of(), ServerSettings(keys=keys, expose_scores=expose))
    answer = await asked(app, "a check", token, peer)
    assert ("score" in answer.json()["verdict"]) is seen
    assert ("x-guardrail-score" in answer.headers) is seen


@pytest.mark.parametrize("name", ["X-Forwarded-For", "Forwarded", "Via"])
async def test_what_a_proxy_on_this_machine_passes_on_is_not_asked_by_this_machine(guard_of, name):
    app = create_app(guard_of(), ServerSettings())
    transport = httpx.ASGITransport(app, client=("127.0.0.1", 1))
    async with httpx.AsyncClient(transport=transport, base_url="http://s") as http:
        own = await http.post("/v1/checks", json={"input": "hello"})
        other = await http.post("/v1/checks", json={"input": "hello"}, headers={name: "a"})
    assert numbers(own)
    assert numbers(other) == []


async def test_who_came_by_a_socket_file_is_told_none(guard_of):
    app = create_app(guard_of(), ServerSettings())
    transport = httpx.ASGITransport(app, client=None)
    async with httpx.AsyncClient(transport=transport, base_url="http://s") as client:
        answer = await client.post("/v1/checks", json={"input": "hello"})
    assert "score" not in answer.json()["verdict"]


@pytest.mark.parametrize("open_", [False, True])
async def test_metrics_of_scores_and_clients_are_for_trusted_keys(guard_of, open_):
    settings = ServerSettings(keys=KEYS, open_metrics=open_)
    transport = httpx.ASGITransport(create_app(guard_of(), settings))
    told = {}
    async with httpx.AsyncClient(transport=transport, base_url="http://s") as client:
        for name, token in {"nobody": None, "plain": PLAIN, "trusted": TRUSTED}.items():
            headers = {"Authorization": f"Bearer {token}"} if token else {}
            if token:
                await client.post("/v1/checks", json={"input": "hello"}, headers=headers)
            told[name] = (await client.get("/metrics", headers=headers)).text
    private = re.compile("guardrail_(score|readings|threshold|drift_psi|near_dup)")
    assert not private.search(told["nobody"] + told["plain"])
    assert "guardrail_verdicts_total{" in told["plain"]
    assert ("guardrail_info{" in told["nobody"]) is open_
    for name in ("score_bucket", "readings_total", "threshold", "drift_psi"):
        assert f"guardrail_{name}" in told["trusted"]
    assert "guardrail_drift_alarm" in told["plain"]  # of a hundred requests and more


async def test_the_status_page_says_that_scores_are_not_for_everybody(guard_of):
    app = create_app(guard_of(), ServerSettings(keys=KEYS))
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://s") as client:
        await client.post(
            "/v1/checks", json={"input": "hello"}, headers={"Authorization": f"Bearer {PLAIN}"}
        )
        pages = [(await client.get("/", auth=("x", token))).text for token in (PLAIN, TRUSTED)]
    assert "Scores are shown to trusted keys." in pages[0]
    assert "<svg" not in pages[0]
    assert "<svg" in pages[1]


async def test_the_log_has_the_score_that_a_client_is_not_told(guard_of, caplog):
    caplog.set_level("INFO", "guardrail.access")
    app = create_app(guard_of(), ServerSettings(keys=KEYS))
    await asked(app, "a chat", PLAIN)
    [line] = [r for r in caplog.records if r.name == "guardrail.access"]
    assert isinstance(line.score, float)
    assert line.action == "pass"


def test_the_same_verdict_is_two_things_to_two_callers():
    verdict = FakeGuard(policy=Policy()).check("hello")
    told_little, told_all = Caller("a"), Caller("b", sees_scores=True)
    assert told(verdict, told_all) == verdict.to_dict(words=False)
    little = told(verdict, told_little)
    assert little == {name: verdict.to_dict()[name] for name in little}
    assert not any(isinstance(value, int | float | list) for value in little.values())
    assert "X-Guardrail-Score" not in headers_of(verdict, told_little)
    assert "X-Guardrail-Score" in headers_of(verdict, told_all)
    assert told(None, told_all) is None
    assert json.dumps(little)


def test_where_a_score_is_from_is_told_with_scores_and_without_words():
    chat = [{"role": "user", "content": "hello"}, {"role": "tool", "content": "a bad lock"}]
    verdict = FakeGuard(flag=["bad lock"]).check(chat)
    assert verdict.where.words == "bad lock"
    told_little, told_all = Caller("a"), Caller("b", sees_scores=True)
    assert headers_of(verdict, told_all)["X-Guardrail-Where"] == (
        "window; message=1; role=tool; part=0"
    )
    assert told(verdict, told_all)["where"]["message"] == 1
    assert "X-Guardrail-Where" not in headers_of(verdict, told_little)
    assert "where" not in told(verdict, told_little)
    for caller in (told_little, told_all):
        sent = json.dumps([told(verdict, caller), headers_of(verdict, caller)])
        assert "lock" not in sent
    ended = headers_of(FakeGuard().check("hello"), told_all)
    assert ended["X-Guardrail-Where"] == "last; message=0; role=user"


@pytest.mark.parametrize("what", [what for what in ASKED if what != "the status"])
@pytest.mark.parametrize("policy", [{}, {"on_flag": "raise"}])
async def test_no_word_of_a_flagged_request_is_in_what_is_sent_back_logged_or_counted(
    guard_of, what, policy, caplog, tmp_path
):
    """A real guard's verdict holds the request's words; whoever is told of it hears none."""
    caplog.set_level("DEBUG")
    observation, log = Observation(), AuditLog(tmp_path / "audit.jsonl")
    made = guard_of(Action.FLAG, **policy)
    with log, made.with_policy(made.policy, audit=fan_out(observation, log)) as guard:
        assert guard.check("hello").where.words in "hello"
        app = create_app(guard, ServerSettings(keys=KEYS), observation=observation)
        answer = await asked(app, what, TRUSTED)
    metrics = observation.metrics.exposition(None)[0].decode()
    lines = (tmp_path / "audit.jsonl").read_text()
    assert '"reading": "window"' in lines
    said = [str(answer.headers), answer.text, metrics, lines, caplog.text]
    said += [str(vars(record)) for record in caplog.records]
    said += [guard.monitor.snapshot().model_dump_json()]
    assert not [text for text in said if "hello" in text or "words" in text]


@pytest.mark.parametrize("text", ["é", "half \ud800", "\u2028", "\U0001f600"])
def test_any_text_comes_back_as_it_was(text):
    body = bytes(AsciiJSONResponse({"text": text}).body)
    assert body.isascii()
    assert json.loads(body) == {"text": text}


def test_numbers_that_are_none_are_refused():
    with pytest.raises(ValueError, match="JSON"):
        AsciiJSONResponse({"score": float("nan")})
