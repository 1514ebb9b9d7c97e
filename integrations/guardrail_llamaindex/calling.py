"""Tools offered to a model, and the calls in its answer."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, NamedTuple

from llama_index.core.llms.llm import ToolSelection

from guardrail.errors import ConfigurationError
from guardrail.policy.acting import stopped
from guardrail.types import Verdict
from guardrail_llamaindex.messages import to_tools, tool_calls

if TYPE_CHECKING:
    from collections.abc import Mapping

    from llama_index.core.base.llms.types import ChatResponse

# Offered as they are: a chat template cannot make a model call a tool.
_UNFORCED = (None, "auto", "any", "required")


class Offer(NamedTuple):
    """The tools that go with a request."""

    tools: list[Mapping[str, Any]] | None = None
    single_call: bool = False


def offer(options: dict[str, Any]) -> Offer:
    """Take what is said about tools out of a call's keywords.

    `tool_choice` may be None, "auto", "any" or "required" (all tools are offered, none can be
    forced), "none" (no tool is offered), or name a tool, which is then the only one offered.

    Raises:
        ConfigurationError: `tool_choice` names no tool that was given.
    """
    tools = to_tools(options.pop("tools", None) or ())
    choice = options.pop("tool_choice", None)
    single = not options.pop("allow_parallel_tool_calls", True)
    if choice == "none":
        tools = []
    elif choice not in _UNFORCED:
        tools = [tool for tool in tools if _name(tool) == _chosen(choice)]
        if not tools:
            raise ConfigurationError(f"tool_choice={choice!r} names none of the tools given")
    return Offer(tools or None, single)


def selections(response: ChatResponse, *, required: bool) -> list[ToolSelection]:
    """The calls of an answer as LlamaIndex makes them.

    Raises:
        GuardrailViolation, DetectorError: a call is `required`, and the guard refused the request.
        ValueError: a call is `required` and there is none, or its arguments are no JSON object.
    """
    calls = tool_calls(response.message)
    if required and not calls:
        raise_refusal(response.raw)
        raise ValueError("expected a tool call; the model answered with text only")
    return [
        ToolSelection(
            tool_id=call.get("id") or "",
            tool_name=call["function"]["name"],
            tool_kwargs=_arguments(call["function"]["arguments"]),
        )
        for call in calls
    ]


def is_refusal(raw: Any) -> bool:
    """Whether a response's `raw` says that the guard refused the request."""
    return isinstance(raw, dict) and bool(raw.get("refused_by_guard"))


def raise_refusal(raw: Any) -> None:
    """Raise a refusal where it has no place, such as where a call must be.

    Raises:
        GuardrailViolation, DetectorError: a response's `raw` says that the guard refused.
    """
    if is_refusal(raw):
        raise stopped(Verdict.from_dict(raw["verdict"]))


def _arguments(arguments: Any) -> dict[str, Any]:
    read = json.loads(arguments or "{}") if isinstance(arguments, str) else arguments
    if not isinstance(read, dict):
        raise ValueError(f"a tool call's arguments must be an object, not {type(read).__name__}")
    return read


def _chosen(choice: Any) -> object:
    """The name in "name" or {"type": "function", "function": {"name": ...}}."""
    if isinstance(choice, dict):
        return (choice.get("function") or choice).get("name")
    return choice


def _name(tool: Mapping[str, Any]) -> object:
    return (tool.get("function") or {}).get("name")
