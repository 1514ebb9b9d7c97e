"""What comes beside an agent's chat -> words: tools, handoffs, the form of the answer, settings.

Each piece is judged on its own. Pictures there cannot be changed, so they must have one reading.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, fields, is_dataclass
from typing import TYPE_CHECKING, Any

from agents import (
    ApplyPatchTool,
    ComputerTool,
    FunctionTool,
    Handoff,
    HostedMCPTool,
    ImageGenerationTool,
    ShellTool,
)
from openai import Omit
from pydantic import BaseModel

from guardrail.errors import UnsupportedContentError
from guardrail.front.judging import words_of
from guardrail.front.tool_values import read_value
from guardrail.inputs.canonical import canonical_chat
from guardrail.inputs.labels import is_label, is_unspoken, worded
from guardrail.policy.acting import one_reading
from guardrail_agents.items import refuse_unread

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from agents import AgentOutputSchemaBase, ModelSettings

    from guardrail.policy import Policy

# Code and clients of the SDK's own tools, which stay in this process.
_CODE = frozenset(
    {
        "computer",
        "custom_data_extractor",
        "editor",
        "executor",
        "needs_approval",
        "on_approval",
        "on_approval_request",
        "on_invoke_tool",
        "on_safety_check",
    }
)
# What a client does with them stays in this process.
_OF_THE_CLIENT = frozenset({"retry", "timeout"})
_FREE = frozenset({"extra_body", "extra_args"})  # a model may be shown all of it, labels too
_STORED = frozenset({"conversation", "conversation_id", "previous_response_id"})
_CHOICES = ("auto", "required", "none")
_KEYS = frozenset({"api-key", "authorization", "x-api-key"})
_SCHEMES = ("Bearer ", "Basic ")


def settings_words(
    settings: ModelSettings,
    tools: Sequence[Any],
    schema: AgentOutputSchemaBase | None,
    handoffs: Sequence[Any],
    policy: Policy,
) -> Iterator[str | list[dict[str, Any]]]:
    """What else a model is shown, as texts and parts of messages.

    Raises:
        InputError: something that no guard can read.
    """
    for each in (*tools, *handoffs):
        yield words_of(_shown(each))
        if isinstance(each, ImageGenerationTool) and (mask := _mask(each, policy)):
            yield mask
    if schema is not None and not schema.is_plain_text():
        yield words_of({"name": schema.name(), "schema": schema.json_schema()})
    known = {*_CHOICES, *(getattr(each, "name", None) for each in tools)}
    known |= {each.tool_name for each in handoffs}
    for field in fields(settings):
        value = getattr(settings, field.name)
        words: str | list[dict[str, Any]]
        if field.name in _FREE:
            words = _body(field.name, value, policy)
        elif field.name == "tool_choice":
            named = value is None or (isinstance(value, str) and value in known)
            words = "" if named else words_of(_plain(value))
        else:
            words = _setting_words(field.name, value)
        if words:
            yield words


def _setting_words(key: str, value: Any) -> str:
    """What is said in a setting; labels alone say nothing."""
    if value is None or key in _OF_THE_CLIENT:
        return ""
    if key == "extra_headers":
        value = _header_words(value)
    words = words_of(_plain(value))
    return words if words and worded(json.loads(words)) else ""


def _body(key: str, value: Any, policy: Policy) -> list[dict[str, Any]]:
    """What goes into a request's body as it is: its words, pictures of one reading, and no more."""
    _refuse_stored(value, key)
    words = words_of(value)
    return read_value(json.loads(words), one_reading(policy), key).content if words else []


def _refuse_stored(body: Any, what: str) -> None:
    """Refuse what names words that are kept at the provider, at any depth of a request's body."""
    named, waiting = set[str](), [body]
    if isinstance(body, Mapping):
        named |= {key for key in _STORED if body.get(key)}
        prompt = body.get("prompt")
        named |= {"prompt"} if isinstance(prompt, Mapping) and prompt.get("id") else set()
    while waiting:
        match waiting.pop():
            case BaseModel() as model:
                waiting.append(model.model_dump())
            case Mapping() as held:
                refuse_unread(held, what)
                named |= {"item_reference"} if held.get("type") == "item_reference" else set()
                waiting += held.values()
            case list() | tuple() as items:
                waiting += items
    if named:
        raise UnsupportedContentError(
            f"{what} names what is kept at the provider ({', '.join(sorted(named))}), which a "
            "guard cannot read; keep the history in a session of the SDK, and prompts in "
            "instructions"
        )


def _plain(value: Any) -> Any:
    return asdict(value) if is_dataclass(value) and not isinstance(value, type) else value


def _shown(offered: Any) -> Any:
    """What a model is told of a tool or a handoff; code and clients are the SDK's own."""
    if isinstance(offered, Handoff):
        return {
            "name": offered.tool_name,
            "description": offered.tool_description,
            "parameters": offered.input_json_schema,
        }
    if isinstance(offered, FunctionTool):
        told = {
            "name": offered.name,
            "description": offered.description,
            "parameters": offered.params_json_schema,
            "returns": getattr(offered, "output_json_schema", None),
        }
        more = {
            "namespace": getattr(offered, "_tool_namespace", None),
            "about": getattr(offered, "_tool_namespace_description", None),
        }
        return told | {key: words for key, words in more.items() if words}
    if not is_dataclass(offered):
        raise UnsupportedContentError(
            f"a tool is a {type(offered).__name__}, which a guard cannot read"
        )
    held = {each.name: getattr(offered, each.name) for each in fields(offered)}
    told = {
        key: value.model_dump() if isinstance(value, BaseModel) else value  # empty keys are sent
        for key, value in held.items()
        if key not in _CODE and key[0] != "_"
    }
    match offered:
        case HostedMCPTool():
            told["tool_config"] = _server(offered.tool_config)
        case ComputerTool():
            told["environment"] = getattr(offered.computer, "environment", None)
        case ShellTool():
            refuse_unread({"environment": offered.environment}, "a ShellTool")
        case ImageGenerationTool():
            drawn = offered.tool_config.items()
            told["tool_config"] = {k: v for k, v in drawn if k != "input_image_mask"}
        case ApplyPatchTool() if (config := getattr(offered, "tool_config", None)) is not None:
            told["tool_config"] = config  # no field of its own, but sent
    return {"name": getattr(offered, "name", type(offered).__name__)} | told


def _server(config: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a server, without keys and addresses that are no more than that."""
    told = dict(config)
    if is_unspoken("server_url", told.get("server_url"), ("server_url",)):
        del told["server_url"]
    if _is_key(told.get("authorization")):
        del told["authorization"]
    if isinstance(headers := told.get("headers"), Mapping):
        told["headers"] = _header_words(headers)
    return told


def _header_words(headers: Mapping[str, Any]) -> dict[str, Any]:
    """Headers that may hold words; the SDK leaves some out."""
    said = {key: value for key, value in headers.items() if not isinstance(value, Omit)}
    return {key: value for key, value in said.items() if not _is_unspoken_header(key, value)}


def _is_unspoken_header(key: str, value: object) -> bool:
    if not isinstance(value, str) or not is_label(key):
        return False
    return is_label(value) or (key.lower() in _KEYS and _is_key(value))


def _is_key(value: object) -> bool:
    """Whether a text is a key for a door, with or without its scheme."""
    if not isinstance(value, str):
        return False
    bare = next((value.removeprefix(each) for each in _SCHEMES if value.startswith(each)), value)
    return is_unspoken("key", bare, (), ("key",))


def _mask(tool: ImageGenerationTool, policy: Policy) -> list[dict[str, Any]]:
    """The picture that says where to paint, as it goes on."""
    mask: Any = tool.tool_config.get("input_image_mask")
    if not mask:
        return []
    chat = [{"role": "user", "content": [{"type": "input_image", **mask}]}]
    [turn] = canonical_chat(chat, one_reading(policy))
    parts: list[dict[str, Any]] = turn["content"]
    return parts
