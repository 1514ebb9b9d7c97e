"""LangChain's generation settings -> a guard's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from langchain_core.tools import BaseTool
from langchain_core.utils.function_calling import convert_to_openai_tool

from guardrail.errors import ConfigurationError

NAMES = (
    "max_new_tokens",
    "temperature",
    "top_p",
    "top_k",
    "repetition_penalty",
    "seed",
    "do_sample",
    "num_beams",
    "timeout",
)
_OTHER_NAMES = {"max_tokens": "max_new_tokens", "max_completion_tokens": "max_new_tokens"}
# Sent along by LangChain itself; they say nothing about the answer.
_IGNORED = frozenset({"tool_choice", "stream", "ls_structured_output_format"})


def guard_options(
    fields: Mapping[str, Any], stop: Sequence[str] | None, call: Mapping[str, Any], model: str
) -> dict[str, Any]:
    """What `Guard.generate` takes, from the model's fields and one call's keywords.

    Raises:
        ConfigurationError: a keyword that means nothing to a guard, or another model's name.
    """
    options = {name: fields[name] for name in NAMES if fields.get(name) is not None}
    given = dict(call)
    if given.pop("model", model) != model:
        raise ConfigurationError(
            f"a guard is tied to its model ({model}); make another ChatGuardedVLM for "
            f"{call['model']!r}"
        )
    for name, value in given.items():
        wanted = _OTHER_NAMES.get(name, name)
        if wanted in NAMES:
            options[wanted] = value
        elif wanted == "tools":
            options["tools"] = offered_tools(value or (), given.get("tool_choice")) or None
        elif wanted not in _IGNORED:
            raise ConfigurationError(
                f"a guard knows no setting {name!r}; known are {', '.join((*NAMES, 'stop'))}"
            )
    stops = fields.get("stop") if stop is None else stop
    if isinstance(stops, str):
        raise ConfigurationError(f"stop must be a list of strings; write [{stops!r}]")
    if stops:
        options["stop"] = tuple(stops)
    return {name: value for name, value in options.items() if value is not None}


def offered_tools(
    tools: Sequence[Any], tool_choice: Any, *, strict: bool | None = None
) -> list[dict[str, Any]]:
    """Tools in the OpenAI function form, as far as `tool_choice` lets the model see them.

    A prompt cannot force a call: `any` offers all tools, a name or `{"function": {"name": ...}}`
    that one alone, `none` no tool.

    Raises:
        ConfigurationError: no tool has the chosen name.
    """
    schemas = [_schema(tool, strict) for tool in tools]
    if tool_choice in (None, False, True, "", "auto", "any", "required"):
        return schemas
    if tool_choice == "none":
        return []
    name = tool_choice
    if isinstance(tool_choice, Mapping):
        name = (tool_choice.get("function") or tool_choice).get("name")
    chosen = [schema for schema in schemas if schema["function"]["name"] == name]
    if not chosen:
        offered = ", ".join(schema["function"]["name"] for schema in schemas)
        raise ConfigurationError(f"tool_choice names {name!r}; the tools are {offered}")
    return chosen


def _schema(tool: Any, strict: bool | None) -> dict[str, Any]:
    schema: dict[str, Any] = convert_to_openai_tool(tool, strict=strict)
    function = schema.get("function")
    if schema.get("type") != "function" or not isinstance(function, Mapping):
        kind = schema.get("type", type(tool).__name__)
        raise ConfigurationError(f"a {kind!r} tool runs on a provider's server, not on this model")
    known = {"name", "description", "parameters", "strict"}
    function = {key: value for key, value in function.items() if key in known}
    if isinstance(tool, BaseTool) and not function.get("description"):
        function.pop("description", None)
    return {"type": "function", "function": function}
