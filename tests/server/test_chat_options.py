"""Every field of a chat is honoured, refused by name, or changes nothing."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from pydantic import ValidationError

from guardrail.policy import Limits, Policy
from guardrail.server.api_error import ApiError
from guardrail.server.chat_options import generate_options
from guardrail.server.chat_schema import ChatBody

TOOL = {"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}


def body_of(**fields: Any) -> ChatBody:
    chat = {"model": "m", "messages": [{"role": "user", "content": "hello"}]}
    return ChatBody.model_validate(chat | fields)


def options_of(*, supports_tools: bool = True, new_tokens: int = 50, **fields: Any) -> Any:
    policy = Policy(limits=Limits(new_tokens=new_tokens))
    guard: Any = SimpleNamespace(policy=policy, supports_tools=supports_tools)
    return generate_options(body_of(**fields), guard, default_tokens=20)


@pytest.mark.parametrize(
    ("fields", "option"),
    [
        ({"max_tokens": 7}, {"max_new_tokens": 7}),
        ({"max_tokens": 7, "max_completion_tokens": 9}, {"max_new_tokens": 9}),
        ({"temperature": 0}, {"temperature": 0}),
        ({"temperature": 1e-30}, {"temperature": 0.01}),
        ({"temperature": 1.5, "top_p": 0.5}, {"temperature": 1.5, "top_p": 0.5}),
        ({"top_k": 4}, {"top_k": 4}),
        ({"top_k": -1}, {"top_k": 0}),
        ({"repetition_penalty": 1.2}, {"repetition_penalty": 1.2}),
        ({"seed": -(2**63)}, {"seed": -(2**63)}),
        ({"stop": "a"}, {"stop": ["a"]}),
        ({"stop": ["a", "b"]}, {"stop": ["a", "b"]}),
        ({"tools": [TOOL], "tool_choice": "auto"}, {"tools": [TOOL]}),
    ],
)
def test_what_the_model_can_do_is_asked_of_it(fields, option):
    assert options_of(**fields) == {"max_new_tokens": 20} | option


def test_an_answer_without_a_limit_has_the_servers_within_the_policys():
    assert options_of(new_tokens=50)["max_new_tokens"] == 20
    assert options_of(new_tokens=5)["max_new_tokens"] == 5


@pytest.mark.parametrize("fields", [{"tool_choice": "none"}, {"tools": []}, {"tools": None}])
def test_a_model_that_may_not_call_is_shown_no_tools(fields):
    assert "tools" not in options_of(**({"tools": [TOOL]} | fields))


NEUTRAL: dict[str, Any] = {
    "user": "me",
    "metadata": {"a": "b"},
    "store": True,
    "service_tier": "auto",
    "safety_identifier": "x",
    "prompt_cache_key": "x",
    "n": 1,
    "logprobs": False,
    "frequency_penalty": 0,
    "presence_penalty": 0.0,
    "logit_bias": {},
    "response_format": {"type": "text"},
    "modalities": ["text"],
    "verbosity": "medium",
    "functions": [],
    "stream": False,
    "stream_options": {"include_usage": True, "include_obfuscation": False},
    "unheard_of": None,
}


def test_defaults_that_clients_send_change_nothing():
    assert options_of(**NEUTRAL) == options_of()
    nothing = dict.fromkeys(ChatBody.model_fields.keys() - {"model", "messages"})
    assert options_of(**nothing) == options_of()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("n", 2),
        ("logprobs", True),
        ("top_logprobs", 3),
        ("frequency_penalty", 0.5),
        ("presence_penalty", -1),
        ("logit_bias", {"5": 1}),
        ("response_format", {"type": "json_object"}),
        ("response_format", {"type": "json_schema", "json_schema": {}}),
        ("modalities", ["text", "audio"]),
        ("audio", {"voice": "a", "format": "wav"}),
        ("prediction", {"type": "content", "content": "x"}),
        ("reasoning_effort", "high"),
        ("verbosity", "low"),
        ("moderation", {"model": "x"}),
        ("web_search_options", {}),
        ("functions", [{"name": "f"}]),
        ("function_call", {"name": "f"}),
        ("tool_choice", "required"),
        ("tool_choice", {"type": "function", "function": {"name": "look"}}),
        ("max_tokens", 51),
        ("max_completion_tokens", 51),
        ("num_beams", 4),
        ("guided_json", {}),
        ("ignore_eos", False),
    ],
)
def test_what_would_go_unheard_is_refused_by_name(name, value):
    with pytest.raises(ApiError, match=name) as caught:
        options_of(**{name: value, "tools": [TOOL]})
    assert (caught.value.status, caught.value.param) == (400, name)


def test_tools_for_a_template_that_knows_none_are_refused():
    with pytest.raises(ApiError, match="knows no tools") as caught:
        options_of(tools=[TOOL], supports_tools=False)
    assert caught.value.param == "tools"
    assert "tools" not in options_of(tools=[TOOL], tool_choice="none", supports_tools=False)


@pytest.mark.parametrize(
    "fields",
    [
        {"messages": []},
        {"messages": ["hello"]},
        {"max_tokens": 0},
        {"max_tokens": 1.5},
        {"max_tokens": 10**400},
        {"temperature": 2.1},
        {"temperature": "hot"},
        {"temperature": 10**400},
        {"top_p": 0},
        {"seed": 2**63},
        {"stop": ["a"] * 5},
        {"stop": ""},
        {"stop": [""]},
        {"stream": "yes"},
        {"stream": 1},
        {"stream_options": {"more": 1}},
        {"repetition_penalty": 1e-300},
        {"tools": ["look"]},
    ],
)
def test_values_of_another_kind_are_no_chat(fields):
    with pytest.raises(ValidationError) as caught:
        body_of(**fields)
    assert caught.value.errors()[0]["loc"][0] == next(iter(fields))
