"""Tools and calls: one form, nothing lost, bounded."""

from __future__ import annotations

import json
from typing import Any

import pytest

from guardrail.errors import LimitExceededError, UnsupportedContentError
from guardrail.policy import Limits, Policy
from guardrail.requests.budget import Budget
from guardrail.requests.messages import to_request
from guardrail.requests.tools import call_text, read_tool_call, read_tools

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
