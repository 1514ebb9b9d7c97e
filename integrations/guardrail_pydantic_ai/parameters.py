"""What Pydantic-AI sends beside messages: instructions, tools, the form of the answer, settings."""

from __future__ import annotations

from dataclasses import fields
from typing import TYPE_CHECKING, Any

from pydantic_ai.messages import ModelRequest
from pydantic_ai.profiles import DEFAULT_PROMPTED_OUTPUT_TEMPLATE
from pydantic_core import to_jsonable_python

from guardrail.front.judging import words_of
from guardrail_pydantic_ai.fields import models_in, read_rest, read_settings

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from pydantic_ai.messages import InstructionPart, ModelMessage
    from pydantic_ai.models import Model, ModelRequestParameters
    from pydantic_ai.settings import ModelSettings
    from pydantic_ai.tools import ToolDefinition

    from guardrail.policy import Policy

Piece = str | list[dict[str, Any]]
"""What is judged by itself: a text, or parts of a message."""

# Of tools that the provider runs: with these it reaches them, and its model is not shown them.
_SECRET = frozenset({"authorization_token", "headers", "url"})
_SHOWN = frozenset({"name", "description", "parameters_json_schema", "return_schema"})
# Of tools, how the application calls them, and whose they are.
_UNSHOWN = frozenset({"timeout", "durable", "toolset_id", "capability_id"})
# Names of tools and capabilities, which stand in the tools; where they are not told yet, nowhere.
_NAMES = frozenset(
    "tool_visibility revealed_tool_names introduced_tool_names deferred_capability_ids "
    "instruction_visibility _telemetry_mcp_url_ids _telemetry_mcp_url_toolset_ids "
    "_telemetry_mcp_url_tool_names".split()
)
_READ = frozenset(
    "function_tools native_tools output_tools output_object prompted_output_template "
    "instruction_parts".split()
)


def beside(
    messages: Sequence[ModelMessage],
    settings: ModelSettings | None,
    parameters: ModelRequestParameters,
    model: Model,
    policy: Policy,
) -> Iterator[Piece]:
    """What comes beside the messages of a request, piece by piece.

    Models behind this one add their own settings, and their template for the form of an answer.

    Raises:
        InputError: something in it that a guard cannot read.
    """
    yield from _instructions(messages, parameters, policy)
    for tool in (*parameters.function_tools, *parameters.output_tools):
        yield from _tool(tool, policy)
    for native in parameters.native_tools:
        held = {each.name: getattr(native, each.name) for each in fields(native)}
        plain = to_jsonable_python({k: v for k, v in held.items() if k not in _SECRET})
        yield words_of(plain)
    yield from read_settings(settings, policy)
    yield from _answer(parameters)
    for inner in models_in(model):
        yield from read_settings(inner.settings, policy)
        yield from _template(inner, parameters)
    yield read_rest(parameters, _READ | _NAMES, policy, "the request's parameters")[1]


def spoken_instructions(part: InstructionPart, policy: Policy) -> Iterator[Piece]:
    """Instructions, and a name that is more than one: a model may be told whose they are."""
    yield part.content
    yield read_rest(part, {"content", "name"}, policy, "the instructions")[1]


def _instructions(
    messages: Sequence[ModelMessage], parameters: ModelRequestParameters, policy: Policy
) -> Iterator[Piece]:
    """Those in force, as Pydantic-AI finds them."""
    if parameters.instruction_parts is not None:
        for part in parameters.instruction_parts:
            yield from spoken_instructions(part, policy)
        return
    requests = (each for each in reversed(messages) if isinstance(each, ModelRequest))
    yield from [each.instructions for each in requests if each.instructions][:1]


def _tool(tool: ToolDefinition, policy: Policy) -> Iterator[Piece]:
    yield words_of(
        {
            "name": tool.name,
            "description": tool.description,
            "parameters": tool.parameters_json_schema,
            "returns": getattr(tool, "return_schema", None),
        }
    )
    yield read_rest(tool, _SHOWN | _UNSHOWN, policy, f"the tool {tool.name}")[1]


def _answer(parameters: ModelRequestParameters) -> Iterator[Piece]:
    """The form that the answer is to have."""
    if (form := parameters.output_object) is not None:
        yield words_of(
            {"name": form.name, "description": form.description, "schema": form.json_schema}
        )
    if isinstance(parameters.prompted_output_template, str):
        yield parameters.prompted_output_template


def _template(model: Model, parameters: ModelRequestParameters) -> Iterator[Piece]:
    """A model's own words around the form of an answer, where a request has none."""
    if parameters.output_object is None or parameters.prompted_output_template is not None:
        return
    try:
        template = model.profile.get("prompted_output_template")
    except NotImplementedError:  # a model that chooses among others
        return
    if template and template != DEFAULT_PROMPTED_OUTPUT_TEMPLATE:
        yield template
