"""Structured output: valid by the model's own tokens, whatever its weights say."""

from __future__ import annotations

import json
from enum import StrEnum
from typing import Annotated, Any, Literal, TypedDict

import jsonschema
import pytest
from guardrail_langchain.structured import json_schema, of_response_format
from langchain.agents import create_agent
from langchain.agents.structured_output import ProviderStrategy, ToolStrategy
from langchain_core.exceptions import OutputParserException
from langchain_core.tools import tool
from pydantic import BaseModel, Field
from pydantic.v1 import BaseModel as OldModel

from guardrail.errors import ConfigurationError, GuardrailViolation
from guardrail.testing import scripted
from guardrail.types import Action


class Colour(StrEnum):
    RED = "red"
    BLUE = "blue"


class Paw(BaseModel):
    """A paw."""

    side: Literal["left", "right"]


class Cat(BaseModel):
    """A cat."""

    name: Literal["Tom", "Mia"]
    age: int = Field(ge=0, le=30)
    colour: Colour
    paw: Paw | None


class CatDict(TypedDict):
    """A cat."""

    name: Annotated[Literal["Tom", "Mia"], ..., "its name"]
    old: Annotated[bool, ..., "whether it is old"]


class OldCat(OldModel):
    """A cat."""

    name: Literal["Tom", "Mia"]


DICT = {"type": "object", "properties": {"n": {"enum": [1, 22]}}, "required": ["n"]}
TITLED = DICT | {"title": "Number", "description": "d", "additionalProperties": False}
TOOL = {"type": "function", "function": {"name": "Number", "parameters": TITLED}}


@tool
def find(q: Literal["a", "bb"]) -> str:
    """Find it."""
    return q


@pytest.mark.parametrize(
    ("schema", "method", "action"),
    [
        (Cat, "json_schema", Action.STEER),
        (CatDict, "json_schema", Action.PASS),
        (OldCat, "json_schema", Action.PASS),
        (TITLED, "json_schema", Action.STEER),
        (TOOL, "json_schema", Action.PASS),
        (Cat, "function_calling", Action.PASS),
        (CatDict, "function_calling", Action.STEER),
        (TITLED, "function_calling", Action.PASS),
    ],
)
async def test_random_weights_fill_in_every_kind_of_form(chat_for, schema, method, action):
    chat = chat_for(action, max_tokens=300).with_structured_output(schema, method=method)
    found = [await chat.ainvoke("a cat?"), [*chat.stream("a cat?")][-1]]
    for value in found:
        if isinstance(schema, type) and issubclass(schema, BaseModel | OldModel):
            assert isinstance(value, schema)
        else:
            jsonschema.validate(value, json_schema(schema))
            assert value
    assert found[0] == found[1]


def test_an_answer_that_is_cut_off_is_none(chat_for):
    for method in ("json_schema", "function_calling", "json_mode"):
        short = chat_for(max_tokens=8)
        with pytest.raises(OutputParserException, match="cut off"):
            short.with_structured_output(Cat, method=method).invoke("hi")
        with pytest.raises(OutputParserException, match="cut off"):
            list(short.with_structured_output(TITLED, method=method).stream("hi"))
        told = short.with_structured_output(Cat, method=method, include_raw=True).invoke("hi")
        assert told["parsed"] is None
        assert "cut off" in str(told["parsing_error"])
        assert told["raw"].response_metadata["finish_reason"] == "length"


def test_a_dictionary_is_streamed_as_it_grows(chat_for):
    parts = [*chat_for(max_tokens=80).with_structured_output(CatDict).stream("hi")]
    assert len(parts) > 2
    assert parts[-1].keys() == {"name", "old"}


def test_what_is_raw_and_what_was_read_stand_side_by_side(chat_for):
    chat = chat_for(max_tokens=200)
    found = chat.with_structured_output(Cat, include_raw=True).invoke("hi")
    assert found["parsed"] == Cat.model_validate_json(found["raw"].content)
    assert found["parsing_error"] is None
    assert found["raw"].response_metadata["verdict"]["action"] == "pass"


def test_json_mode_is_any_object_and_read_as_what_was_asked_for(chat_for, tiny_parts):
    model, processor, _ = tiny_parts
    chat = chat_for(max_tokens=200)
    with scripted(model, processor, lambda _: '{"n": [1, "x"]}'):
        assert chat.with_structured_output(None, method="json_mode").invoke("hi") == {"n": [1, "x"]}
        with pytest.raises(OutputParserException):
            chat.with_structured_output(Cat, method="json_mode").invoke("hi")


def test_methods_and_schemas_that_are_none_are_refused(chat_for):
    chat = chat_for()
    with pytest.raises(ConfigurationError, match="none of json_schema, function_calling"):
        chat.with_structured_output(Cat, method="guess")
    with pytest.raises(ConfigurationError, match="knows no tools"):
        chat.with_structured_output(Cat, tools=[find])
    with pytest.raises(ConfigurationError, match="needs a schema"):
        chat.with_structured_output(None)
    with pytest.raises(ConfigurationError, match="no form"):
        chat.with_structured_output(3)
    with pytest.raises(ConfigurationError, match="uniqueItems"):
        chat.with_structured_output({"type": "array", "uniqueItems": True}).invoke("hi")
    with pytest.raises(ConfigurationError, match="leave `stop` out"):
        chat_for(stop=["x"]).with_structured_output(Cat).invoke("hi")


def test_classes_leave_no_key_open_and_dictionaries_only_without_strict():
    assert json_schema(Cat)["additionalProperties"] is False
    assert json_schema(Cat)["$defs"]["Paw"]["additionalProperties"] is False
    assert json_schema(DICT) == DICT
    assert json_schema(DICT, strict=True) == DICT | {"additionalProperties": False}
    assert json_schema(CatDict)["additionalProperties"] is False


def whole_of(parts: Any) -> Any:
    first, *rest = parts
    return sum(rest, start=first)


@pytest.mark.parametrize(("choice", "action"), [("any", Action.STEER), ("find", Action.PASS)])
def test_a_call_that_must_come_comes(chat_for, choice, action):
    chat = chat_for(action, max_tokens=200).bind_tools([find], tool_choice=choice)
    for answer in (chat.invoke("hi"), whole_of(chat.stream("hi"))):
        (call,) = answer.tool_calls
        assert call["name"] == "find"
        assert call["args"]["q"] in ("a", "bb")


@pytest.mark.parametrize("strategy", [ProviderStrategy, ToolStrategy])
def test_an_agent_ends_with_its_form(chat_for, tiny_parts, strategy):
    model, processor, _ = tiny_parts
    form = json.dumps({"name": "Mia", "age": 3, "colour": "red", "paw": None})

    def said(prompt: str) -> str:
        if "found it" not in prompt:
            return '<tool_call>\n{"name": "look", "arguments": {"q": "a"}}\n</tool_call>'
        if strategy is ProviderStrategy:
            return form
        return f'<tool_call>\n{{"name": "Cat", "arguments": {form}}}\n</tool_call>'

    @tool
    def look(q: Literal["a"]) -> str:
        """Look."""
        return "found it"

    agent = create_agent(chat_for(max_tokens=300), [look], response_format=strategy(Cat))
    with scripted(model, processor, said):
        state = agent.invoke({"messages": [("user", "which cat?")]})
    assert state["structured_response"] == Cat(name="Mia", age=3, colour="red", paw=None)


def test_an_agent_with_a_form_raises_what_is_flagged(chat_for):
    chat = chat_for(Action.FLAG, policy={"on_flag": "raise"})
    agent = create_agent(chat, [find], response_format=ProviderStrategy(Cat))
    with pytest.raises(GuardrailViolation):
        agent.invoke({"messages": [("user", "which cat?")]})


@pytest.mark.parametrize(
    ("given", "schema"),
    [
        (None, None),
        ({"type": "text"}, None),
        ({"type": "json_object"}, {"type": "object"}),
        ({"type": "json_schema", "json_schema": {"name": "x", "schema": DICT}}, DICT),
    ],
)
def test_openais_response_formats_are_schemas(given, schema):
    assert of_response_format(given) == schema


def test_other_response_formats_are_refused():
    with pytest.raises(ConfigurationError, match="grammar"):
        of_response_format({"type": "grammar"})
