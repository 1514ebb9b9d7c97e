from __future__ import annotations

import json

import pytest

from guardrail.asgi.chats import read_chat
from guardrail.errors import UnsupportedContentError
from guardrail.policy import Policy
from guardrail.requests.messages import to_request

CHAT = [{"role": "user", "content": "hello"}]
TOOL = {"type": "function", "function": {"name": "find", "parameters": {"type": "object"}}}
SETTINGS = {
    "model": "m",
    "stream": True,
    "stream_options": {"include_usage": True},
    "temperature": 0.5,
    "max_tokens": 5,
    "stop": ["\n"],
    "user": "ann",
    "metadata": {"trace": "x"},
    "tool_choice": "auto",
    "seed": None,
}


def checked(body, *, with_tools=True, unchecked=()):
    return read_chat(body, unchecked).asked(with_tools=with_tools)


def same(left, right):
    policy = Policy()
    return to_request(left, policy=policy) == to_request(right, policy=policy)


@pytest.mark.parametrize(
    ("body", "wanted"),
    [
        ({"messages": CHAT}, CHAT),
        ({"prompt": "hello"}, "hello"),
        ({"input": "hello"}, "hello"),
        ({"input": "hello", "messages": None, "prompt": None}, "hello"),
        (
            {"input": "hello", "instructions": "Be brief."},
            [{"role": "system", "content": "Be brief."}, *CHAT],
        ),
        (
            {"input": [{"type": "message", "role": "user", "content": "hello"}]},
            CHAT,
        ),
    ],
)
def test_the_usual_forms_are_read_whatever_the_settings(body, wanted):
    value, options = checked({**body, **SETTINGS})
    assert same(value, wanted)
    assert options == {}


def test_calls_and_their_results_in_a_responses_input_become_messages():
    items = [
        {"role": "user", "content": [{"type": "input_text", "text": "hello"}]},
        {"type": "function_call", "call_id": "c", "name": "find", "arguments": "{}", "id": "i"},
        {"type": "function_call_output", "call_id": "c", "output": "found"},
    ]
    call = {"type": "function", "id": "c", "function": {"name": "find", "arguments": "{}"}}
    wanted = [
        *CHAT,
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "content": "found", "tool_call_id": "c"},
    ]
    assert same(checked({"input": items})[0], wanted)


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ([], "a list, no JSON object"),
        ("hello", "a str, no JSON object"),
        ({}, "exactly one of .* it has none"),
        ({"model": "m"}, "it has none"),
        ({"messages": CHAT, "prompt": "bad"}, "messages and prompt"),
        ({"messages": CHAT, "system": "bad"}, "'system'.* go unchecked"),
        ({"messages": CHAT, "web_search_options": {}}, "'web_search_options'.* go unchecked"),
        ({"messages": CHAT, "enable_search": True}, "'enable_search'.* go unchecked"),
        ({"messages": CHAT, "reasoning_effort": "low, and bad"}, "reasoning_effort holds a text"),
        ({"messages": CHAT, "Messages": CHAT}, "'Messages'"),
        ({"messages": CHAT, "documents": [{"text": "bad"}]}, "'documents'"),
        ({"messages": CHAT, "instructions": "bad"}, "'instructions'"),
        ({"input": "hello", "previous_response_id": "r"}, "'previous_response_id'"),
        ({"input": "hello", "instructions": ["bad"]}, "instructions must be a str"),
        ({"input": 3}, "input must be"),
        ({"input": ["bad"]}, r"input\[0\] is a str"),
        ({"input": [{"type": "item_reference", "id": "x"}]}, "'item_reference'"),
        ({"input": [{"type": "reasoning", "summary": []}]}, "'reasoning'"),
        (
            {
                "input": [
                    {"type": "function_call_output", "call_id": "c", "output": "x", "more": "bad"}
                ]
            },
            "'more'",
        ),
        ({"prompt": ["a", "b"]}, "one prompt per request"),
        ({"messages": CHAT, "tools": {"name": "find"}}, "tools must be a list"),
        ({"messages": CHAT, "tools": [{"type": "web_search"}]}, "'web_search'"),
    ],
)
def test_what_would_go_unchecked_is_refused(body, words):
    with pytest.raises(UnsupportedContentError, match=words):
        checked(body)


def test_keys_without_text_are_settings_and_others_can_be_named_as_unchecked():
    body = {"messages": CHAT, "beta": True, "depth": 3, "empty": "", "trace": "x"}
    assert checked(body, unchecked=["trace"])[0] == CHAT
    with pytest.raises(UnsupportedContentError, match="'trace'"):
        checked(body)


@pytest.mark.parametrize(
    "given",
    [
        {"tools": [TOOL]},
        {"tools": [{"type": "function", **TOOL["function"]}]},
        {"functions": [TOOL["function"]]},
    ],
    ids=["chat", "response", "functions"],
)
def test_tools_of_every_form_go_to_a_guard_that_reads_them(given):
    assert checked({"messages": CHAT, **given}) == (CHAT, {"tools": [TOOL]})


@pytest.mark.parametrize("source", [{"messages": CHAT}, {"input": "hello"}, {"prompt": "hello"}])
def test_tools_are_text_for_a_guard_whose_model_knows_none(source):
    value, options = checked({**source, "tools": [TOOL]}, with_tools=False)
    assert options == {}
    assert json.dumps([TOOL]) in str(value)
    assert "hello" in str(value)


@pytest.mark.parametrize(
    "given",
    [
        {"response_format": {"type": "json_schema", "json_schema": {"description": "bad"}}},
        {"text": {"format": {"type": "json_schema", "schema": {"title": "bad"}}}},
        {"text": "bad"},
    ],
)
def test_a_schema_of_the_answer_is_checked_as_text(given):
    value, _ = checked({"messages": CHAT, **given})
    assert value[0]["role"] == "system"
    assert "bad" in value[0]["content"]
    assert value[1:] == CHAT


@pytest.mark.parametrize(
    "given",
    [
        {"response_format": {"type": "json_object"}},
        {"response_format": None},
        {"text": {"format": {"type": "text"}, "verbosity": "low"}},
        {"text": {"verbosity": "low"}},
    ],
)
def test_a_format_without_a_schema_adds_no_text(given):
    assert checked({"messages": CHAT, **given})[0] == CHAT


@pytest.mark.parametrize(
    ("body", "wanted"),
    [
        ({"messages": CHAT}, {"messages": [{"role": "system", "content": "Careful."}, *CHAT]}),
        ({"prompt": "hello"}, {"prompt": "Careful.\n\nhello"}),
        ({"input": "hello"}, {"input": "hello", "instructions": "Careful."}),
        (
            {"input": "hello", "instructions": "Be brief."},
            {"input": "hello", "instructions": "Careful.\n\nBe brief."},
        ),
    ],
)
def test_a_caution_is_put_where_the_form_has_its_place(body, wanted):
    body |= {"model": "m", "temperature": 0.1}
    assert json.loads(read_chat(body, ()).cautioned("Careful.")) == {**body, **wanted}
