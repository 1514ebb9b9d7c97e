from __future__ import annotations

import pytest
from guardrail_langchain.settings import guard_options, offered_tools
from langchain_core.tools import tool
from pydantic import BaseModel

from guardrail import ConfigurationError


def options(fields=None, stop=None, **call):
    return guard_options(fields or {}, stop, call, "m")


def test_a_calls_keywords_win_over_the_models_fields():
    fields = {"max_new_tokens": 5, "seed": 1, "top_p": None}
    assert options(fields, max_tokens=9) == {"max_new_tokens": 9, "seed": 1}
    assert options(fields, seed=None) == {"max_new_tokens": 5}


def test_stops_of_a_call_replace_those_of_the_model():
    assert options({"stop": ["a"]}) == {"stop": ("a",)}
    assert options({"stop": ["a"]}, stop=["b"]) == {"stop": ("b",)}
    assert options({"stop": ["a"]}, stop=[]) == {}


def test_an_unknown_keyword_and_another_model_are_refused():
    with pytest.raises(ConfigurationError, match="'frequency_penalty'"):
        options(frequency_penalty=1)
    with pytest.raises(ConfigurationError, match="tied to its model"):
        options(model="other")
    assert options(model="m", tool_choice="any", stream=True) == {}


@tool
def find(q: str) -> str:
    """Find it."""
    return q


class Joke(BaseModel):
    """A joke."""

    setup: str


def add(a: int) -> int:
    """Add."""
    return a


def names(tools, choice=None):
    return [each["function"]["name"] for each in offered_tools(tools, choice)]


def test_tools_of_every_kind_become_function_schemas():
    schema = {"title": "Thing", "description": "d", "type": "object", "properties": {}}
    ready = {"type": "function", "function": {"name": "r", "parameters": {"type": "object"}}}
    anthropic = {"name": "a", "description": "d", "input_schema": {"type": "object"}}
    found = offered_tools([find, Joke, add, schema, ready, anthropic], None)
    assert [each["function"]["name"] for each in found] == [
        "find",
        "Joke",
        "add",
        "Thing",
        "r",
        "a",
    ]
    assert all(set(each) == {"type", "function"} for each in found)


@pytest.mark.parametrize("choice", [None, "auto", "any", "required", True])
def test_all_tools_are_offered_unless_one_is_chosen(choice):
    assert names([find, add], choice) == ["find", "add"]


@pytest.mark.parametrize(
    "choice", ["add", {"type": "function", "function": {"name": "add"}}, {"name": "add"}]
)
def test_a_chosen_tool_is_offered_alone(choice):
    assert names([find, add], choice) == ["add"]


def test_no_tool_is_offered_when_none_is_wanted():
    assert names([find], "none") == []


def test_a_choice_that_is_no_tool_and_a_tool_that_runs_elsewhere_are_refused():
    with pytest.raises(ConfigurationError, match="names 'fly'; the tools are find"):
        names([find], "fly")
    with pytest.raises(ConfigurationError, match="web_search"):
        names([{"type": "web_search"}])
