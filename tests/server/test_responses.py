"""Responses over HTTP: read as the chat that they are, nothing stored, nothing passed over."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import pytest

from guardrail.errors import UnsupportedContentError
from guardrail.policy import Limits, Policy, Thresholds
from guardrail.server.errors import ApiError
from guardrail.server.responses import asked_of
from guardrail.server.schemas import ResponseBody
from guardrail.testing import scripted
from guardrail.types import Action

URL, CHATS = "/v1/responses", "/v1/chat/completions"
BODY = {"model": "guarded", "input": "hello", "max_output_tokens": 4}
FUNCTION = {"name": "look", "parameters": {"type": "object"}}
TOOL = {"type": "function", **FUNCTION}
CALL = '<tool_call>{"name": "look", "arguments": {"at": "me"}}</tool_call>'
FAR = 1e9


def events_of(text: str) -> list[Any]:
    """A stream's events, each under the name that its data have."""
    found = []
    for event in text.strip().split("\n\n"):
        name, data = event.split("\n")
        found.append(json.loads(data.removeprefix("data: ")))
        assert name == f"event: {found[-1]['type']}"
    return found


@pytest.fixture
def ask(guard_of, client_of):
    """Post one body to a guard that takes this action, and give the answer."""

    async def post(action: Action = Action.PASS, *, policy: Any = None, **fields: Any):
        async with client_of(guard_of(action, **(policy or {}))) as client:
            return await client.post(URL, json=BODY | fields)

    return post


async def test_an_answer_is_the_guards_own(guard_of, client_of):
    guard = guard_of()
    expected = guard.generate("hello", max_new_tokens=4)
    async with client_of(guard) as client:
        answer = await client.post(URL, json=BODY)
    told = answer.json()
    assert answer.status_code == 200
    assert told["output"][0]["content"][0]["text"] == expected.text
    assert told["status"] == "incomplete"
    assert told["incomplete_details"] == {"reason": "max_output_tokens"}
    assert told["usage"]["input_tokens"] == expected.prompt_tokens
    assert told["usage"]["output_tokens"] == 4
    assert told["guardrail"]["score"] == pytest.approx(expected.verdict.score)
    assert answer.headers["x-guardrail-action"] == "pass"


async def test_a_stream_says_what_the_whole_answer_says(ask):
    whole = (await ask()).json()
    answer = await ask(stream=True)
    events = events_of(answer.text)
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    assert [event["type"] for event in events][:4] == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
    ]
    said = [e["delta"] for e in events if e["type"] == "response.output_text.delta"]
    assert "".join(said) == whole["output"][0]["content"][0]["text"]
    assert events[0]["guardrail"] == events[-1]["guardrail"] == whole["guardrail"]
    assert events[-1]["type"] == "response.incomplete"
    last = events[-1]["response"]
    assert last["usage"] == whole["usage"]
    assert {event["response"]["id"] for event in events if "response" in event} == {last["id"]}
    items = {e["item_id"] for e in events if "item_id" in e} | {last["output"][0]["id"]}
    assert len(items) == 1


@pytest.mark.parametrize("stream", [True, False])
async def test_a_flagged_request_gets_a_refusal_and_none_of_its_words(ask, stream):
    answer = await ask(Action.FLAG, policy={"refusal_message": "No."}, stream=stream)
    assert answer.status_code == 200
    assert answer.headers["x-guardrail-action"] == "flag"
    assert "output_text" not in answer.text
    told = events_of(answer.text)[-1]["response"] if stream else answer.json()
    assert told["status"] == "completed"
    assert told["output"][0]["content"] == [{"type": "refusal", "refusal": "No."}]
    assert told["guardrail"]["action"] == "flag"
    if stream:
        deltas = [e for e in events_of(answer.text) if e["type"] == "response.refusal.delta"]
        assert "".join(event["delta"] for event in deltas) == "No."


@pytest.mark.parametrize("stream", [True, False])
async def test_a_flagged_request_is_an_error_where_the_policy_raises(ask, stream):
    answer = await ask(Action.FLAG, policy={"on_flag": "raise"}, stream=stream)
    error = answer.json()["error"]
    assert answer.status_code == 400
    assert error["code"] == "content_filter"
    assert error["guardrail"]["action"] == answer.headers["x-guardrail-action"] == "flag"


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize(
    ("action", "policy"),
    [(Action.FLAG, {"on_flag": "annotate"}), (Action.FLAG, {"mode": "shadow"}), (Action.STEER, {})],
)
async def test_what_is_answered_all_the_same_is_text(ask, stream, action, policy):
    answer = await ask(action, policy=policy, stream=stream)
    told = events_of(answer.text)[-1]["response"] if stream else answer.json()
    assert told["output"][0]["content"][0]["type"] == "output_text"
    assert "refusal" not in answer.text
    assert told["guardrail"]["would_be"] == action


@pytest.mark.usefixtures("broken_detector")
@pytest.mark.parametrize("stream", [True, False])
async def test_an_outage_is_no_refusal(ask, stream):
    answer = await ask(stream=stream)
    assert answer.status_code == 503
    assert "broken inside" not in answer.text


@pytest.mark.parametrize("stream", [True, False])
async def test_calls_are_items_behind_the_words(ask, llava, stream):
    with scripted(llava.model, llava.processor, lambda _: "I look." + CALL):
        answer = await ask(tools=[TOOL], max_output_tokens=200, stream=stream)
    told = events_of(answer.text)[-1]["response"] if stream else answer.json()
    message, call = told["output"]
    assert told["status"] == "completed"
    assert message["content"][0]["text"] == "I look."
    assert (call["type"], call["name"]) == ("function_call", "look")
    assert json.loads(call["arguments"]) == {"at": "me"}
    if stream:
        of_call = [e for e in events_of(answer.text) if e.get("output_index") == 1]
        kinds = [event["type"].removeprefix("response.") for event in of_call]
        assert kinds == [
            "output_item.added",
            "function_call_arguments.delta",
            "function_call_arguments.done",
            "output_item.done",
        ]
        assert of_call[0]["item"]["arguments"] == ""
        assert of_call[-1]["item"] == call


def conversation(picture_url: str) -> tuple[list[Any], list[Any]]:
    """One history with a call and a picture in its result, as a response's input and as a chat."""
    call = {"name": "look", "arguments": '{"at": "me"}'}
    items = [
        {"role": "user", "content": [{"type": "input_text", "text": "Who is there?"}]},
        {
            "type": "message",
            "id": "msg_1",
            "role": "assistant",
            "status": "completed",
            "phase": "commentary",
            "content": [
                {
                    "type": "output_text",
                    "text": "I look.",
                    "annotations": [],
                    "logprobs": [{"token": "I", "logprob": -1.0, "bytes": [73]}],
                }
            ],
        },
        {"type": "function_call", "id": "fc_1", "call_id": "c1", "status": "completed", **call},
        {
            "type": "function_call_output",
            "call_id": "c1",
            "output": [
                {"type": "input_text", "text": "see"},
                {"type": "input_image", "image_url": picture_url, "detail": "auto"},
            ],
        },
    ]
    chat = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Who is there?"},
        {
            "role": "assistant",
            "content": "I look.",
            "tool_calls": [{"id": "c1", "type": "function", "function": call}],
        },
        {
            "role": "tool",
            "tool_call_id": "c1",
            "content": [
                {"type": "text", "text": "see"},
                {"type": "image_url", "image_url": {"url": picture_url}},
            ],
        },
    ]
    return items, chat


async def test_a_history_has_the_verdict_and_the_answer_of_the_same_chat(
    guard_of, client_of, picture_url
):
    items, chat = conversation(picture_url)
    asked = {"model": "guarded", "instructions": "Be brief.", "input": items, "tools": [TOOL]}
    same = {"model": "guarded", "messages": chat, "tools": [{"type": "function"} | TOOL_OF_CHAT]}
    async with client_of(guard_of()) as client:
        response = (await client.post(URL, json=asked | {"max_output_tokens": 5})).json()
        completion = (await client.post(CHATS, json=same | {"max_tokens": 5})).json()
    said = completion["choices"][0]["message"]["content"]
    assert response["output"][0]["content"][0]["text"] == said
    assert response["guardrail"] == completion["guardrail"]
    assert response["usage"]["input_tokens"] == completion["usage"]["prompt_tokens"]


TOOL_OF_CHAT = {"function": FUNCTION}


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("place", ["result", "earlier turn"])
async def test_a_picture_in_a_result_or_an_earlier_turn_is_judged(
    guard_of, client_of, picture_url, stream, place
):
    items, _ = conversation(picture_url)
    if place == "earlier turn":
        picture = {"type": "input_image", "image_url": picture_url}
        items = [{"role": "user", "content": [picture]}, {"role": "assistant", "content": "A red."}]
        items.append({"role": "user", "content": "And now?"})
    else:
        assert "input_image" in json.dumps(items)
    guard = guard_of()
    pictures = guard.policy.thresholds | {"image": Thresholds(steer=-FAR, flag=-FAR)}
    with guard.with_policy(guard.policy.model_copy(update={"thresholds": pictures})) as strict:
        async with client_of(strict) as client:
            answer = await client.post(URL, json=BODY | {"input": items, "stream": stream})
    assert answer.headers["x-guardrail-action"] == "flag"
    assert "can't help" in answer.text
    assert "output_text" not in answer.text


async def test_addresses_are_not_fetched(ask):
    picture = {"type": "input_image", "image_url": "http://127.0.0.1:9/x.png"}
    for content in ({"role": "user", "content": [picture]}, output([picture])):
        answer = await ask(input=[content])
        assert answer.status_code == 422
        assert answer.json()["error"]["code"] == "url_not_allowed"


def output(parts: Any) -> dict[str, Any]:
    return {"type": "function_call_output", "call_id": "c", "output": parts}


async def test_a_response_says_what_was_asked_for_and_that_nothing_is_stored(ask):
    given = {
        "instructions": "Be brief.",
        "metadata": {"a": "b"},
        "temperature": 0.5,
        "top_p": 0.9,
        "tools": [TOOL],
        "tool_choice": "none",
        "parallel_tool_calls": False,
        "user": "me",
    }
    told = (await ask(store=True, truncation="disabled", **given)).json()
    assert {name: told[name] for name in given} == given
    assert told["store"] is False
    assert told["previous_response_id"] is None
    assert told["text"] == {"format": {"type": "text"}}


# ---- what the guard is asked


def asked(*, supports_tools: bool = True, **fields: Any) -> Any:
    body = ResponseBody.model_validate({"model": "m", "input": "hello"} | fields)
    policy = Policy(limits=Limits(new_tokens=50))
    guard: Any = SimpleNamespace(policy=policy, supports_tools=supports_tools)
    return asked_of(body, guard, 20)


OTHER = {"type": "function", "name": "go"}
NAMED = {"type": "function", "name": "look"}
SCHEMA = {"type": "json_schema", "name": "n", "schema": {"type": "array"}, "strict": True}
LOGPROBS = ["message.output_text.logprobs"]


@pytest.mark.parametrize(
    ("fields", "option"),
    [
        ({"max_output_tokens": 7}, {"max_new_tokens": 7}),
        ({"temperature": 0}, {"temperature": 0}),
        ({"top_p": 0.5, "top_k": -1, "seed": 3}, {"top_p": 0.5, "top_k": 0, "seed": 3}),
        ({"tools": [TOOL], "tool_choice": "none"}, {}),
        ({"tools": [TOOL]}, {"tools": [TOOL_OF_CHAT | {"type": "function"}]}),
        (
            {"tools": [TOOL, OTHER], "tool_choice": NAMED},
            {
                "tools": [
                    {"type": "function", "function": FUNCTION},
                    {"type": "function", "function": {"name": "go"}},
                ],
                "tool_choice": "look",
            },
        ),
        (
            {
                "tools": [TOOL, OTHER],
                "tool_choice": {"type": "allowed_tools", "mode": "required", "tools": [NAMED]},
            },
            {"tools": [{"type": "function", "function": FUNCTION}], "tool_choice": "required"},
        ),
        ({"text": {"format": {"type": "text"}, "verbosity": "medium"}}, {}),
        ({"text": {"format": {"type": "json_object"}}}, {"json_schema": {"type": "object"}}),
        ({"text": {"format": SCHEMA}}, {"json_schema": {"type": "array"}}),
        ({"include": LOGPROBS}, {"logprobs": 0}),
        ({"include": LOGPROBS, "top_logprobs": 2}, {"logprobs": 2}),
        ({"include": ["reasoning.encrypted_content"], "reasoning": {"effort": "none"}}, {}),
        ({"max_tool_calls": 3, "prompt_cache_key": "x", "context_management": []}, {}),
    ],
)
def test_what_the_model_can_do_is_asked_of_it(fields, option):
    assert asked(**fields).options == {"max_new_tokens": 20} | option


def test_fields_that_are_null_change_nothing():
    nothing = dict.fromkeys(ResponseBody.model_fields.keys() - {"model", "input"})
    assert asked(**nothing).options == asked().options


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("previous_response_id", "resp_1"),
        ("conversation", "conv_1"),
        ("background", True),
        ("truncation", "auto"),
        ("reasoning", {"effort": "high"}),
        ("prompt", {"id": "p"}),
        ("context_management", [{"type": "compaction"}]),
        ("moderation", {"model": "x"}),
        ("max_output_tokens", 51),
        ("tools", [{"type": "web_search"}]),
        ("tools", [{"type": "mcp", "server_label": "x"}]),
        ("tool_choice", {"type": "web_search"}),
        ("tool_choice", {"type": "function", "name": "other"}),
        ("text", {"verbosity": "low"}),
        ("text", {"format": {"type": "grammar"}}),
        ("text", {"format": {"type": "json_schema", "name": "n"}}),
        ("text", {"format": SCHEMA | {"more": 1}}),
        ("text", {"more": 1}),
        ("include", ["other"]),
        ("top_logprobs", 2),
        ("messages", []),
        ("n", 2),
    ],
)
def test_what_would_go_unheard_is_refused_by_name(name, value):
    with pytest.raises(ApiError, match=name) as caught:
        asked(**({"tools": [TOOL]} | {name: value}))
    problem = caught.value.problem
    assert (problem.status, problem.param) == (400, name)


def test_a_tool_of_another_type_is_named():
    with pytest.raises(ApiError, match="'web_search'"):
        asked(tools=[{"type": "web_search"}])


@pytest.mark.parametrize(
    ("items", "words"),
    [
        ([{"type": "reasoning", "id": "r", "summary": []}], "'reasoning'"),
        ([{"type": "item_reference", "id": "x"}], "'item_reference'"),
        ([{"type": "computer_call_output", "output": {}}], "'computer_call_output'"),
        ([{"role": "user", "content": "x", "phase": "bad words"}], "phase"),
    ],
)
def test_items_that_are_not_read_are_refused(items, words):
    with pytest.raises(UnsupportedContentError, match=words):
        asked(input=items)
