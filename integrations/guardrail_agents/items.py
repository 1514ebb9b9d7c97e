"""What an agent's model is about to read -> the form a guard reads; nothing is dropped.

Input items are those of OpenAI's Responses API, in which the SDK keeps every chat, whichever model
answers. Pictures become canonical, and what goes on has them so.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import TYPE_CHECKING, Any, Self

from agents import FunctionTool, Handoff
from pydantic import BaseModel

from guardrail.errors import UnsupportedContentError
from guardrail.front.arguments import snapshot
from guardrail.front.judging import Heard, words_of
from guardrail.front.tool_values import read_value
from guardrail.inputs.canonical import canonical_chat
from guardrail.inputs.parts import as_mapping, refuse_unknown
from guardrail.policy.acting import enforces

if TYPE_CHECKING:
    from collections.abc import Iterator

    from agents import AgentOutputSchemaBase, ModelSettings

    from guardrail.front.judging import Chat
    from guardrail.policy import Policy

# Of every item: labels, and what says how an item came about.
_ABOUT = frozenset({"type", "id", "status", "phase", "call_id", "caller", "agent", "async"})
# Ciphers that only the provider reads, and marks without words.
_SILENT = frozenset({"compaction", "compaction_trigger"})
_ABOUT_PARTS = frozenset({"annotations", "logprobs", "prompt_cache_breakpoint"})
# Of tools that the provider runs: never shown to a model, and keys in plain text.
_SECRET = frozenset({"authorization", "headers", "server_url"})


@dataclass(frozen=True, slots=True)
class ModelCall:
    """What goes to a model, its pictures canonical, and as a guard hears it."""

    instructions: str | None
    items: str | list[Any]
    heard: Heard

    @classmethod
    def of(
        cls, items: Any, policy: Policy, *, instructions: str | None = None, words: Any = ()
    ) -> Self:
        """Input items, the instructions that go before them, and texts that come beside them.

        Raises:
            InputError: something in it that a guard cannot read.
        """
        sent = canonical_chat(snapshot(items), policy)  # what is judged is what is sent
        if isinstance(sent, str):
            chat: Chat = [{"role": "user", "content": [_text(sent)]}]
        elif isinstance(sent, list):
            chat = []
            names: dict[object, str] = {}
            for i, item in enumerate(sent):
                sent[i] = _add(chat, item, names, policy, f"input[{i}]")
        else:
            raise UnsupportedContentError(
                f"the input is a {type(items).__name__}; send a str or a list of items"
            )
        beside = [instructions] if instructions else []
        return cls(instructions, sent, Heard.of(chat, (*beside, *words)))

    def cautioned(self, words: str) -> Self:
        """The same with words of caution before the instructions."""
        head = self.instructions
        return replace(self, instructions=f"{words}\n\n{head}" if head else words)


def settings_words(
    settings: ModelSettings,
    tools: Sequence[Any],
    schema: AgentOutputSchemaBase | None,
    handoffs: Sequence[Any],
) -> Iterator[str]:
    """What else a model is shown: each tool on its own, handoffs, the form of its answer.

    Raises:
        UnsupportedContentError: something that no guard can read.
    """
    for offered in (*tools, *handoffs):
        yield words_of(_shown(offered))
    if schema is not None and not schema.is_plain_text():
        yield words_of({"name": schema.name(), "schema": schema.json_schema()})
    for given in (settings.extra_body, settings.extra_args):
        if words := words_of(given):
            yield words


def output_parts(output: str | Sequence[Any], policy: Policy) -> list[dict[str, Any]]:
    """What a model is shown of a tool's output, as parts of a message; none for nothing.

    Raises:
        InputError: something in it that a guard cannot read.
    """
    if isinstance(output, str):
        return read_value(output, policy, "the output of a tool").content
    [turn] = canonical_chat([{"role": "tool", "content": list(output)}], policy)
    return _parts(turn["content"], "the output of a tool")


def _add(
    chat: Chat, item: object, names: dict[object, str], policy: Policy, what: str
) -> Mapping[Any, Any]:
    """Put an item's words into the chat; the item as it goes on."""
    named: Mapping[Any, Any] = as_mapping(item, what)
    kind = named.get("type") or ("message" if "role" in named else None)
    match kind:
        case "message":
            refuse_unknown(named, _ABOUT | {"role", "content"}, what)
            content = _parts(named.get("content"), f"{what}.content")
            _say(chat, named.get("role"), content or [_text("")])
        case "function_call":
            refuse_unknown(named, _ABOUT | {"name", "arguments", "namespace"}, what)
            label = named.get("call_id")
            function = {"name": named.get("name"), "arguments": named.get("arguments")}
            names[label] = str(named.get("name"))
            _say(chat, "assistant", [], {"type": "function", "id": label, "function": function})
        case "function_call_output":
            refuse_unknown(named, _ABOUT | {"output", "name"}, what)
            label = named.get("call_id")
            turn = {"role": "tool", "content": _parts(named.get("output"), f"{what}.output")}
            turn["content"] = turn["content"] or ""
            about = {"tool_call_id": label, "name": names.get(label)}
            chat.append({**turn, **{key: text for key, text in about.items() if text}})
        case "reasoning":
            refuse_unknown(named, _ABOUT | {"summary", "content", "encrypted_content"}, what)
            thoughts: list[Any] = [*(named.get("summary") or []), *(named.get("content") or [])]
            if said := [_text(each["text"]) for each in thoughts if each.get("text")]:
                _say(chat, "assistant", said)
        case "item_reference" | None:
            raise UnsupportedContentError(
                f"{what} names something that is not in the request ({kind or 'no type'}), which "
                "a guard cannot read; send the item itself"
            )
        case str() if kind not in _SILENT:
            return _add_other(chat, named, policy, f"{what} ({kind[:80]})")
    return named


def _add_other(chat: Chat, item: Mapping[Any, Any], policy: Policy, what: str) -> Mapping[Any, Any]:
    """An item of a tool that the provider or the SDK runs, read whole, calls and results alike.

    It is judged as something a user says: templates disagree on tools that nobody called.
    """
    rest = {key: value for key, value in item.items() if key not in _ABOUT | {"encrypted_content"}}
    shown = rest.get("output")
    if isinstance(shown, Mapping) and shown.get("file_id"):
        raise UnsupportedContentError(
            f"{what} names a file that is stored elsewhere; send its data"
        )
    reading = read_value(rest, policy, what)
    if content := reading.content:
        _say(chat, "user", content)
    if not enforces(policy) or not isinstance(reading.value, Mapping):
        return item
    return {**item, **reading.value}


def _say(
    chat: Chat, role: object, parts: list[dict[str, Any]], call: Mapping[str, Any] | None = None
) -> None:
    """One more turn; what an assistant thinks, says and then calls is one."""
    last = chat[-1] if chat else {}
    if not (role == last.get("role") == "assistant") or (parts and last.get("tool_calls")):
        last = {"role": role, "content": []}
        chat.append(last)
    last["content"] += parts
    if call is not None:
        last.setdefault("tool_calls", []).append(call)


def _parts(content: object, what: str) -> list[dict[str, Any]]:
    """Content as parts that a guard reads, with the words of citations."""
    if isinstance(content, str):
        return [_text(content)] if content else []
    if not isinstance(content, Sequence):
        raise UnsupportedContentError(f"{what} is a {type(content).__name__}; send text or parts")
    found: list[dict[str, Any]] = []
    for i, part in enumerate(content):
        if isinstance(part, str):
            found.append(_text(part))
            continue
        named = as_mapping(part, f"{what}[{i}]")
        found.append({str(k): v for k, v in named.items() if k not in _ABOUT_PARTS})
        if cited := words_of(named.get("annotations")):
            found.append(_text(f"\n{cited}"))
    return found


def _text(words: str) -> dict[str, Any]:
    return {"type": "text", "text": words}


def _shown(offered: Any) -> Any:
    """What a model is told of a tool or a handoff; code and clients are the SDK's own."""
    if isinstance(offered, Handoff):
        return {
            "name": offered.tool_name,
            "description": offered.tool_description,
            "parameters": offered.input_json_schema,
        }
    if isinstance(offered, FunctionTool):
        return {
            "name": offered.name,
            "description": offered.description,
            "parameters": offered.params_json_schema,
            "returns": getattr(offered, "output_json_schema", None),
        }
    if not is_dataclass(offered):
        raise UnsupportedContentError(
            f"a tool is a {type(offered).__name__}, which a guard cannot read"
        )
    held = {each.name: getattr(offered, each.name) for each in fields(offered)}
    name = getattr(offered, "name", type(offered).__name__)
    return {"name": name} | {key: _legible(value) for key, value in held.items() if key[0] != "_"}


def _legible(value: Any) -> Any:
    """JSON values at any depth, without what else there is."""
    match value:
        case None | bool() | int() | float() | str() | BaseModel():
            return value
        case Mapping():
            return {key: _legible(item) for key, item in value.items() if key not in _SECRET}
        case list() | tuple():
            return [_legible(item) for item in value]
    return None
