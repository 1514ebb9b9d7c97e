"""Tools and tool calls: what a model may call, what it called, bounded and in one form."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from guardrail.errors import ConfigurationError, UnsupportedContentError
from guardrail.inputs.parts import as_mapping, refuse_unknown
from guardrail.inputs.strict_json import strict_json
from guardrail.types import ToolCall

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from guardrail.inputs.parts import Budget

_ABOUT_TOOLS = {"name", "description", "parameters", "strict"}
# Keywords of JSON schemas that hold schemas: by name, in a list, or one.
_NAMED = {"$defs", "definitions", "properties", "patternProperties"}
_LISTED = {"allOf", "anyOf", "oneOf", "prefixItems"}
_SINGLE = {"additionalProperties", "items"}
_OPEN = {"additionalProperties", "patternProperties", "allOf", "anyOf", "oneOf", "$ref"}


def read_tools(tools: Sequence[object], budget: Budget) -> tuple[Mapping[str, Any], ...]:
    """Tools in the OpenAI function form, copied, counted as text and checked as plain JSON.

    Raises:
        UnsupportedContentError: another form, or values that JSON does not have.
    """
    if not isinstance(tools, list | tuple):
        raise UnsupportedContentError(
            f"tools must be a list of function schemas, not a {type(tools).__name__}"
        )
    return tuple(_read_tool(tool, f"tools[{i}]", budget) for i, tool in enumerate(tools))


def read_tool_call(call: object, what: str, budget: Budget) -> ToolCall:
    """One call; arguments that are JSON text are parsed, and kept verbatim if that would lose any.

    Accepted: `{"function": {"name", "arguments"}}` (OpenAI, Hugging Face), `{"name", "arguments"}`
    (the older `function_call`) and `{"name", "args"}` (LangChain).
    """
    call = as_mapping(call, what)
    if call.get("type") not in (None, "function", "tool_call"):
        raise UnsupportedContentError(
            f"{what} has the type {str(call['type'])[:80]!r}; accepted: function, tool_call"
        )
    if "function" in call:
        refuse_unknown(call, {"type", "id", "index", "function"}, what)
        body, about = as_mapping(call["function"], f"{what}.function"), set[str]()
    else:
        body, about = call, {"type", "id", "index"}
    arguments = "args" if body.get("args") is not None else "arguments"
    refuse_unknown(body, {"name", arguments} | about, what)
    name, value, label = body.get("name"), body.get(arguments), call.get("id")
    if not isinstance(name, str):
        raise UnsupportedContentError(f"{what}: name must be a str, not {type(name).__name__}")
    text = value if isinstance(value, str) else budget.json(value or {}, f"{what}.{arguments}")
    read = ToolCall(
        name=name,
        arguments=_parsed(text),
        id="" if label is None else budget.text(label, f"{what}.id"),
    )
    budget.text(call_text(read), what)
    return read


def recheck_call(call: ToolCall, what: str, budget: Budget) -> None:
    """Count a call that was read before."""
    budget.text(call.id, f"{what}.id")
    budget.text(call_text(call), what)


def call_text(call: ToolCall) -> str:
    """The call as one line of JSON, for templates that know no calls."""
    value = call.arguments
    if not isinstance(value, str):
        value = json.dumps(value, ensure_ascii=False)
    return f'{{"name": {json.dumps(call.name, ensure_ascii=False)}, "arguments": {value}}}'


def tool_choice(given: object, tools: Sequence[Mapping[str, Any]]) -> str | None:
    """A framework's choice of a tool in a guard's words: None, `none`, `required` or a name.

    `any` and True are `required`; a name may stand in a mapping, as OpenAI has it, or in its
    `function`.

    Raises:
        ConfigurationError: no tool has the chosen name.
    """
    if given in (None, False, "", "auto"):
        return None
    if given in (True, "any", "required"):
        return "required"
    if given == "none":
        return "none"
    name = given
    if isinstance(given, Mapping):
        name = (given.get("function") or given).get("name")
    names = [str(tool["function"]["name"]) for tool in tools]
    if name not in names:
        raise ConfigurationError(
            f"tool_choice names {name!r}; the tools are {', '.join(names) or 'none'}"
        )
    return str(name)


def closed(schema: Mapping[str, Any]) -> dict[str, Any]:
    """A JSON schema whose objects have no keys but those it names, unless it says otherwise.

    That is what classes and functions mean by one. Where several schemas hold at once (`allOf`),
    none of them knows the others' keys, and all stays as it is.
    """
    return dict(schema) if _joins(schema) else _closed(schema)


def _closed(schema: Mapping[str, Any]) -> dict[str, Any]:
    made = {keyword: _below(keyword, value, _closed) for keyword, value in schema.items()}
    if "properties" in made and not _OPEN & made.keys():
        made["additionalProperties"] = False
    return made


def _joins(schema: Mapping[str, Any]) -> bool:
    found = len(schema.get("allOf") or ()) > 1
    below: list[bool] = []
    for keyword, value in schema.items():
        _below(keyword, value, lambda one: below.append(_joins(one)))
    return found or any(below)


def _below(keyword: str, value: Any, change: Callable[[Mapping[str, Any]], Any]) -> Any:
    """What a keyword of a schema holds, with the schemas in it changed."""
    if keyword in _NAMED and isinstance(value, Mapping):
        return {
            name: change(one) if isinstance(one, Mapping) else one for name, one in value.items()
        }
    if keyword in _LISTED and isinstance(value, list):
        return [change(one) if isinstance(one, Mapping) else one for one in value]
    return change(value) if keyword in _SINGLE and isinstance(value, Mapping) else value


def _read_tool(value: object, what: str, budget: Budget) -> Mapping[str, Any]:
    tool = as_mapping(value, what)
    if tool.get("type") != "function" or not isinstance(tool.get("function"), Mapping):
        raise UnsupportedContentError(
            f'{what} is no function schema; write {{"type": "function", "function": '
            '{"name": ..., "description": ..., "parameters": {...}}}'
        )
    refuse_unknown(tool, {"type", "function"}, what)
    function = as_mapping(tool["function"], f"{what}.function")
    refuse_unknown(function, _ABOUT_TOOLS, f"{what}.function")
    if not isinstance(function.get("name"), str) or not function["name"]:
        raise UnsupportedContentError(f"{what}.function needs a name")
    text = budget.json({"type": "function", "function": dict(function)}, what)
    copied: dict[str, Any] = json.loads(budget.text(text, what))
    return copied


def _parsed(text: str) -> Mapping[str, Any] | str:
    """The object that `text` writes down, or `text` where parsing would change what it says."""
    try:
        value = strict_json(text)
    except (ValueError, RecursionError):
        return text
    return value if isinstance(value, dict) else text
