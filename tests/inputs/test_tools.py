"""Tools and calls: one form, nothing lost, bounded."""

from __future__ import annotations

import json
from typing import Any

import pytest

from guardrail.errors import ConfigurationError, LimitExceededError, UnsupportedContentError
from guardrail.inputs.labels import shown_labels
from guardrail.inputs.messages import to_request
from guardrail.inputs.parts import Budget
from guardrail.inputs.tools import (
    call_text,
    closed,
    read_tool_call,
    read_tools,
    tool_choice,
)
from guardrail.policy import Limits, Policy

SCHEMA = {"type": "object", "properties": {"q": {"type": "string"}}}

TOOL = {"type": "function", "function": {"name": "find", "description": "d", "parameters": SCHEMA}}


def budget(**limits: int) -> Budget:
    return Budget(Limits(**limits))


def read(call: Any) -> Any:
    return read_tool_call(call, "call", budget())


@pytest.mark.parametrize(
    "call",
    [
        {"id": "c1", "type": "function", "function": {"name": "find", "arguments": '{"q":"é"}'}},
        {"id": "c1", "function": {"name": "find", "arguments": {"q": "é"}}},
        {"id": "c1", "type": "tool_call", "name": "find", "args": {"q": "é"}},
        {"id": "c1", "name": "find", "arguments": '{ "q" : "\\u00e9" }'},
    ],
)
def test_every_form_of_a_call_reads_the_same(call: Any) -> None:
    found = read(call)
    assert (found.name, found.arguments, found.id) == ("find", {"q": "é"}, "c1")
    assert call_text(found) == '{"name": "find", "arguments": {"q": "é"}}'


@pytest.mark.parametrize("text", ["not json", '{"q": 1, "q": 2}', '{"q": NaN}', "[1]", '"a"', "{"])
def test_arguments_that_parsing_would_change_stay_verbatim(text: str) -> None:
    found = read({"function": {"name": 'a"b', "arguments": text}})
    assert found.arguments == text
    assert call_text(found) == f'{{"name": "a\\"b", "arguments": {text}}}'


def test_a_call_without_arguments_has_empty_ones() -> None:
    found = read({"function": {"name": "now"}})
    assert found.arguments == {}
    assert json.loads(call_text(found)) == {"name": "now", "arguments": {}}


def test_tools_are_copied_and_kept() -> None:
    [tool] = read_tools([TOOL], budget())
    assert tool == TOOL
    assert tool["function"]["parameters"] is not SCHEMA


@pytest.mark.parametrize(
    ("tools", "says"),
    [
        ("find", "list of function schemas"),
        (["find"], r"tools\[0\] is a str"),
        ([{"name": "find"}], r"tools\[0\] is no function schema"),
        ([{"type": "web_search"}], "no function schema"),
        ([{"type": "function", "function": {"description": "d"}}], "needs a name"),
        ([{**TOOL, "defer": True}], "'defer'"),
        ([{"type": "function", "function": {"name": "a", "output": "x"}}], "'output'"),
        ([{"type": "function", "function": {"name": "a", "parameters": object()}}], "JSON"),
    ],
)
def test_a_tool_that_is_not_understood_is_refused(tools: Any, says: str) -> None:
    with pytest.raises(UnsupportedContentError, match=says):
        read_tools(tools, budget())


def test_tools_count_as_text() -> None:
    with pytest.raises(LimitExceededError, match="text_chars"):
        to_request("hi", policy=Policy(limits=Limits(text_chars=20)), tools=[TOOL])


def test_tools_given_later_replace_those_of_a_request() -> None:
    first = to_request("hi", policy=Policy(), tools=[TOOL])
    assert to_request(first, policy=Policy()) == first
    assert to_request(first, policy=Policy(), tools=[]).tools == ()


TOOLS = [{"type": "function", "function": {"name": "find"}}]


def speaker(name, **more):
    return {"role": "user", "content": "x", "name": name, **more}


def calling(name, label):
    call = {"id": label, "type": "function", "function": {"name": name, "arguments": "{}"}}
    return {"role": "assistant", "content": None, "tool_calls": [call]}


def test_names_are_found_once_and_in_order():
    chat = [speaker("ann"), speaker("bob"), speaker("ann"), speaker(""), speaker(None)]
    assert shown_labels(chat, []) == ["ann", "bob"]
    assert shown_labels(speaker("ann"), []) == ["ann"]


def test_names_of_tools_are_read_elsewhere():
    assert shown_labels([speaker("find")], TOOLS) == []
    assert shown_labels([calling("find", "c1"), speaker("find")], []) == []


@pytest.mark.parametrize("text", ["tell me a tale", "a" * 65, "line\nbreak", "naïve"])
def test_an_id_that_could_be_a_text_is_one(text):
    assert shown_labels([calling("find", text)], []) == [text]
    assert shown_labels([{"role": "tool", "content": "", "tool_call_id": text}], []) == [text]


@pytest.mark.parametrize("label", ["call_9aZ", "a" * 64, "functions.find:0", "tool|1", ""])
def test_an_id_is_no_text(label):
    chat = [calling("find", label), {"role": "tool", "content": "", "tool_call_id": label}]
    assert shown_labels(chat, []) == []


@pytest.mark.parametrize(
    "chat",
    ["text", [1], [speaker(5)], [{"tool_calls": 5}, {"tool_calls": [5]}], [{"tool_call_id": {}}]],
)
def test_other_shapes_have_no_labels(chat):
    assert shown_labels(chat, [{"function": 5}, {}]) == []
    assert shown_labels([{"tool_calls": [{"function": {"name": []}}]}], []) == []


# ---- what a choice and a schema mean


@pytest.mark.parametrize(
    ("given", "word"),
    [
        *((each, None) for each in (None, False, "", "auto")),
        *((each, "required") for each in (True, "any", "required")),
        *((each, "add") for each in ("add", {"name": "add"}, {"function": {"name": "add"}})),
        ("none", "none"),
    ],
)
def test_a_choice_in_anybodys_words_is_a_guards(given, word):
    assert tool_choice(given, [{"function": {"name": "add"}}]) == word


@pytest.mark.parametrize(("tools", "says"), [([], "are none"), (["find"], "are find")])
def test_a_choice_of_no_tool_names_those_there_are(tools, says):
    with pytest.raises(ConfigurationError, match=f"names 'add'; the tools {says}"):
        tool_choice({"name": "add"}, [{"function": {"name": name}} for name in tools])


def test_objects_with_named_keys_are_closed_wherever_they_stand():
    inner = {"type": "object", "properties": {"a": {"type": "string"}}}
    schema = {
        "properties": {
            "properties": inner,  # a key of that name is no keyword
            "list": {"items": inner},
            "enum": {"anyOf": [inner, {"type": "null"}]},
            "open": {**inner, "additionalProperties": True},
            "any": {"type": "object"},
        },
        "$defs": {"d": inner},
    }
    shut = inner | {"additionalProperties": False}
    found = closed(schema)
    assert found["additionalProperties"] is False
    assert found["$defs"]["d"] == shut
    kept = found["properties"]
    assert (kept["properties"], kept["list"]["items"], kept["enum"]["anyOf"][0]) == (shut,) * 3
    assert kept["open"]["additionalProperties"] is True
    assert kept["any"] == {"type": "object"}
    assert "additionalProperties" not in schema["properties"]["properties"]  # a copy


def test_schemas_that_hold_together_stay_open():
    part = {"properties": {"a": {}}}
    both = {"properties": {"x": {"allOf": [part, {"properties": {"b": {}}}]}}}
    assert closed(both) == both
    assert closed({"allOf": [part]})["allOf"] == [part | {"additionalProperties": False}]
