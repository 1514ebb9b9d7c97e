from __future__ import annotations

import asyncio
import json

import pytest

from guardrail.asgi.chats import read_chat
from guardrail.errors import UnsupportedContentError
from guardrail.inputs.messages import to_request
from guardrail.policy import Policy

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


def call_item(label):
    return {"type": "function_call", "call_id": label, "name": "find", "arguments": "{}"}


def test_calls_behind_words_or_calls_of_an_assistants_are_one_turn():
    items = [
        {"role": "assistant", "content": "I look.", "phase": "commentary"},
        call_item("a"),
        call_item("b"),
        {"type": "function_call_output", "call_id": "a", "output": "x", "name": "find"},
        {"type": "function_call_output", "call_id": "b", "output": "y"},
        call_item("c"),
    ]
    calls = [
        {"type": "function", "id": label, "function": {"name": "find", "arguments": "{}"}}
        for label in "abc"
    ]
    wanted = [
        {"role": "assistant", "content": "I look.", "tool_calls": calls[:2]},
        {"role": "tool", "content": "x", "tool_call_id": "a", "name": "find"},
        {"role": "tool", "content": "y", "tool_call_id": "b"},
        {"role": "assistant", "content": None, "tool_calls": calls[2:]},
    ]
    assert same(checked({"input": items})[0], wanted)


def test_a_message_with_calls_that_are_no_list_is_refused_as_it_is():
    value, _ = checked({"input": [{"role": "assistant", "content": "x", "tool_calls": 3}]})
    value += checked({"input": [*value, call_item("a")]})[0]
    with pytest.raises(UnsupportedContentError, match="must be a list"):
        to_request(value, policy=Policy())


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
        ({"messages": CHAT, "reasoning_effort": "low, and bad"}, "reasoning_effort holds"),
        ({"messages": CHAT, "Messages": CHAT}, "'Messages'"),
        ({"messages": CHAT, "documents": [{"text": "bad"}]}, "'documents'"),
        ({"messages": CHAT, "instructions": "bad"}, "'instructions'"),
        ({"input": "hello", "previous_response_id": "r"}, "'previous_response_id'"),
        ({"input": "hello", "instructions": ["bad"]}, "instructions must be a str"),
        ({"input": 3}, "input must be"),
        ({"input": ["bad"]}, r"input\[0\] is a str"),
        ({"input": [{"type": "item_reference", "id": "x"}]}, "'item_reference'"),
        ({"input": [{**CHAT[0], "phase": "a bad word"}]}, "a phase"),
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


OTHERS = {
    # of vLLM, of llama.cpp and Ollama, of hosted models: each has a model read something else
    "add_generation_prompt": False,
    "continue_final_message": True,
    "add_special_tokens": True,
    "truncate_prompt_tokens": 5,
    "documents": [],
    "chat_template": "",
    "chat_template_kwargs": {},
    "mm_processor_kwargs": {"do_resize": False},
    "guided_json": {},
    "guided_choice": [],
    "structured_outputs": None,
    "n_keep": 4,
    "cache_prompt": False,
    "num_ctx": 100,
    "options": {"num_ctx": 100},
    "enable_search": False,
    "web_search": True,
    "enable_thinking": 1,
    "suffix": "",
    "beta": None,
}


@pytest.mark.parametrize("key", OTHERS)
def test_a_key_that_is_no_setting_is_refused_whatever_it_holds_unless_it_is_named(key):
    body = {"messages": CHAT, key: OTHERS[key]}
    with pytest.raises(UnsupportedContentError, match=f"'{key}'.* go unchecked"):
        checked(body)
    assert checked(body, unchecked=[key])[0] == CHAT


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("truncation", "auto"),
        ("truncation", {"type": "auto"}),
        ("temperature", "1"),
        ("temperature", True),
        ("top_k", 1.5),
        ("n", [1]),
        ("stream", 1),
        ("stop", [1]),
        ("stop", {"text": "bad"}),
        ("seed", {}),
        ("user", ["bad"]),
        ("metadata", {"a": {"b": "bad"}}),
        ("metadata", "bad"),
        ("logit_bias", {"1": "bad"}),
        ("service_tier", "auto, and bad"),
        ("stream_options", {"include_usage": True, "more": 1}),
        ("stream_options", True),
        ("reasoning", {"effort": "low", "more": "bad"}),
        ("reasoning", "low"),
        ("tool_choice", "call it, and bad"),
        ("tool_choice", {"type": "function", "function": {"name": "f", "description": "bad"}}),
        ("tool_choice", {"type": "function", "function": {"name": "bad words"}}),
        ("tool_choice", {"type": "web_search"}),
        ("function_call", {"name": "f", "arguments": "bad"}),
        ("audio", {"voice": "a bad voice"}),
        ("modalities", ["text", {"more": "bad"}]),
        ("text", {"verbosity": "bad words"}),
        ("text", {"format": {"type": "text"}, "more": "bad"}),
        ("include", ["bad words"]),
        ("model", {"name": "bad"}),
    ],
)
def test_a_setting_of_another_type_is_refused_unless_it_is_named(key, value):
    body = {"messages": CHAT, key: value}
    with pytest.raises(UnsupportedContentError, match=f"{key} holds .* go unchecked"):
        checked(body)
    assert "hello" in str(checked(body, unchecked=[key])[0])


@pytest.mark.parametrize(
    "settings",
    [
        {"temperature": 0, "top_p": 1, "top_k": -1, "min_p": 0.1, "repetition_penalty": 1.1},
        {"logit_bias": {"50256": -100}, "logprobs": True, "top_logprobs": 3, "n": 2},
        {"logprobs": 5, "best_of": 2, "echo": True, "stop": "\n", "max_tokens": None},
        {"stop": ["a", "b"], "stop_token_ids": [1, 2], "ignore_eos": True, "min_tokens": 1},
        {"reasoning": {"effort": "low", "summary": "auto"}, "truncation": "disabled"},
        {"reasoning_effort": "minimal", "verbosity": "low", "service_tier": "auto"},
        {"tool_choice": {"type": "function", "function": {"name": "find-it.2"}}},
        {"tool_choice": {"type": "function", "name": "find"}, "parallel_tool_calls": False},
        {
            "tool_choice": {
                "type": "allowed_tools",
                "mode": "auto",
                "tools": [{"type": "function", "name": "find"}],
            }
        },
        {"function_call": {"name": "find"}},
        {"modalities": ["text", "audio"], "audio": {"voice": "alloy", "format": "pcm16"}},
        {"include": ["message.output_text.logprobs"], "store": False, "background": False},
        {"metadata": {"a": "b", "c": 1}, "user": "ann", "prompt_cache_key": "a-b", "stop": ["\n"]},
        {"stream": True, "stream_options": {"include_usage": True, "include_obfuscation": False}},
        {"prediction": None, "web_search_options": None, "tools": None, "instructions": None},
    ],
)
def test_what_says_how_to_answer_is_no_text_and_goes_on(settings):
    assert checked({"messages": CHAT, **settings}) == (CHAT, {})


def test_words_in_settings_names_and_ids_are_judged_apart_each_once(word_guard):
    settings = {"metadata": {"a b": "c", "d": "e f"}, "user": "ann@example.com", "stop": ["e f"]}
    chat = [{**CHAT[0], "name": "ann", "id": "e f"}]
    content = read_chat({"messages": chat, **settings}, ())
    guard = word_guard()
    assert asyncio.run(content.judged(guard)).action == "pass"
    first, second = guard.requests
    assert same(first, chat)
    assert same(second, "ann\n\ne f\n\na b\n\nann@example.com")


@pytest.mark.parametrize(("said", "user"), [("bad", "a b"), ("hello", "a bad one")])
def test_the_higher_verdict_of_a_chat_and_its_settings_counts(word_guard, said, user):
    content = read_chat({"prompt": said, "user": user}, ())
    assert asyncio.run(content.judged(word_guard())).action == "flag"


def test_a_response_formats_verbosity_is_checked_with_the_rest_of_it():
    value, _ = checked({"messages": CHAT, "response_format": {"type": "text", "verbosity": "bad"}})
    assert "bad" in value[0]["content"]


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
