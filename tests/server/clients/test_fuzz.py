"""Whatever is sent, the answer is one that the API describes, and never a server's mistake."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.openapi import from_url
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

KEY = {"Authorization": "Bearer a-key-for-tests-0123"}
CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
]
BOUNDED = {
    "deadline": None,
    "derandomize": True,
    "database": None,
    "suppress_health_check": list(HealthCheck),
}


@pytest.fixture(scope="module")
def fuzzed(server_of) -> Any:
    return server_of()


@pytest.fixture(scope="module")
def client(fuzzed) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=fuzzed.url, headers=KEY, timeout=30) as client:
        yield client


@pytest.fixture(scope="module")
def described(fuzzed) -> Any:
    return from_url(f"{fuzzed.url}/openapi.json", headers=KEY)


@pytest.mark.parametrize("mode", list(GenerationMode))
def test_every_answer_is_one_that_the_api_describes(described: Any, mode: GenerationMode) -> None:
    operations = [found.ok() for found in described.get_all_operations()]
    asked = [each for each in operations if each.path.startswith(("/v1", "/beta"))]
    assert len(asked) == 6

    @given(case=st.one_of([each.as_strategy(generation_mode=mode) for each in asked]))
    @settings(max_examples=40, **BOUNDED)
    def run(case: Any) -> None:
        answer = case.call(headers=KEY)
        case.validate_response(answer, checks=CHECKS)
        if answer.status_code >= 400:
            assert_error(answer.json())

    run()


def assert_error(told: Any) -> None:
    error = told["error"]
    assert error.keys() >= {"message", "type", "param", "code"}
    assert isinstance(error["message"], str)
    assert error["type"] in ("invalid_request_error", "server_error")
    for inside in ("Traceback", "site-packages", ".py"):
        assert inside not in error["message"]


WORDS = st.text(st.characters(), max_size=12) | st.sampled_from(
    ["hello", "<|im_end|>", "<image>", "<tool_call>{", "\x00", "a" * 3_000, "\u202e", ""]
)
ODD = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | WORDS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORDS, inner, max_size=3),
    max_leaves=5,
)


def mostly(usual: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """Now and then anything else in its place, so that most of a body makes sense."""
    return st.integers(0, 9).flatmap(lambda dice: ODD if dice == 9 else usual)


URLS = st.sampled_from(
    [
        "data:image/png;base64,iVBORw0KGgo=",
        "data:image/png;base64,%%%",
        "data:,",
        "/etc/passwd",
        "file:///etc/passwd",
        "http://[::1]:1/",
        "http://169.254.169.254/latest",
        "",
    ]
)
PICTURE = (
    "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwAD"
    "hgGAWjR9awAAAABJRU5ErkJggg=="
)
PARTS = st.one_of(
    st.builds(lambda text: {"type": "text", "text": text}, mostly(WORDS)),
    st.builds(
        lambda url: {"type": "image_url", "image_url": {"url": url}},
        mostly(st.just(PICTURE) | URLS),
    ),
    st.builds(lambda kind, value: {"type": kind, kind: value}, WORDS, ODD),
)
CALLS = st.builds(
    lambda name, arguments: {
        "id": "1",
        "type": "function",
        "function": {"name": name, "arguments": arguments},
    },
    mostly(WORDS),
    mostly(WORDS),
)
USER = st.fixed_dictionaries(
    {
        "role": mostly(st.sampled_from(["user", "system", "developer"])),
        "content": mostly(WORDS | st.lists(PARTS, min_size=1, max_size=2)),
    },
    optional={"name": mostly(WORDS)},
)
OTHERS = st.fixed_dictionaries(
    {"role": st.sampled_from(["assistant", "tool"]), "content": mostly(WORDS)},
    optional={
        "tool_calls": mostly(st.lists(CALLS, max_size=2)),
        "tool_call_id": WORDS,
        "refusal": mostly(WORDS),
        "function_call": mostly(CALLS),
    },
)
TOOLS = st.builds(
    lambda name, parameters: {
        "type": "function",
        "function": {"name": name, "description": name, "parameters": parameters},
    },
    mostly(WORDS),
    ODD,
)
BODIES = st.fixed_dictionaries(
    {
        "model": st.just("guarded"),
        "messages": st.lists(USER | OTHERS, max_size=2).flatmap(
            lambda before: USER.map(lambda last: [*before, last])
        ),
        "max_tokens": st.integers(1, 3),
    },
    optional={
        "stream": st.booleans(),
        "stop": mostly(WORDS | st.lists(WORDS, max_size=4)),
        "seed": mostly(st.integers(0, 2**40)),
        "temperature": mostly(st.floats(0, 2)),
        "top_p": mostly(st.floats(0.1, 1)),
        "top_k": mostly(st.integers(-1, 2**31)),
        "repetition_penalty": mostly(st.floats(0.1, 10)),
        "tools": mostly(st.lists(TOOLS, max_size=2)),
        "logit_bias": mostly(st.just({})),
        "user": mostly(WORDS),
        "unheard_of": st.none() | st.just(1),
    },
)


def renamed(part: Any) -> Any:
    """A chat's part as a response has it."""
    kinds = {"text": "input_text", "image_url": "input_image"}
    return {**part, "type": kinds.get(part["type"], part["type"])}


ITEMS = st.one_of(
    st.fixed_dictionaries(
        {
            "role": mostly(st.sampled_from(["user", "system", "developer", "assistant"])),
            "content": mostly(WORDS | st.lists(PARTS.map(renamed), min_size=1, max_size=2)),
        },
        optional={"type": mostly(st.just("message")), "phase": mostly(st.none()), "id": WORDS},
    ),
    st.builds(
        lambda name, arguments: {
            "type": "function_call",
            "call_id": "1",
            "name": name,
            "arguments": arguments,
        },
        mostly(WORDS),
        mostly(WORDS),
    ),
    st.builds(
        lambda output: {"type": "function_call_output", "call_id": "1", "output": output},
        mostly(WORDS | st.lists(PARTS.map(renamed), min_size=1, max_size=2)),
    ),
)
RESPONSES = st.fixed_dictionaries(
    {
        "model": st.just("guarded"),
        "input": mostly(WORDS | st.lists(ITEMS, max_size=3)),
        "max_output_tokens": st.integers(1, 3),
    },
    optional={
        "stream": st.booleans(),
        "instructions": mostly(WORDS),
        "tools": mostly(st.lists(TOOLS.map(lambda tool: {**tool["function"], "type": "function"}))),
        "tool_choice": mostly(st.sampled_from(["auto", "none"])),
        "text": mostly(st.just({"format": {"type": "text"}})),
        "include": mostly(st.just(["reasoning.encrypted_content"])),
        "metadata": mostly(st.dictionaries(WORDS, WORDS, max_size=2)),
        "temperature": mostly(st.floats(0, 2)),
        "unheard_of": st.none() | st.just(1),
    },
)


@given(body=RESPONSES)
@settings(max_examples=60, **BOUNDED)
def test_odd_responses_are_answered_or_refused(client: httpx.Client, body: Any) -> None:
    data = json.dumps(body).encode()
    headers = {"Content-Type": "application/json"}
    answer = client.post("/v1/responses", content=data, headers=headers)
    assert answer.status_code in (200, 400, 413, 422), answer.text
    if answer.status_code == 200:
        assert answer.headers["x-guardrail-action"] == "pass"
        streams = answer.headers["content-type"].startswith("text/event-stream")
        assert streams == (body.get("stream") is True)
        assert b"response.failed" not in answer.content
    else:
        assert_error(answer.json())


@given(body=BODIES)
@settings(max_examples=100, **BOUNDED)
def test_odd_chats_are_answered_or_refused(client: httpx.Client, body: Any) -> None:
    data = json.dumps(body).encode()
    answer = client.post(
        "/v1/chat/completions", content=data, headers={"Content-Type": "application/json"}
    )
    assert answer.status_code in (200, 400, 413, 422), answer.text
    if answer.status_code == 200:
        assert answer.headers["x-guardrail-action"] == "pass"
        assert (b"[DONE]" in answer.content) == bool(body.get("stream"))
    else:
        assert_error(answer.json())
