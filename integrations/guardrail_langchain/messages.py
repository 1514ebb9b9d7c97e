"""LangChain messages -> the chat that a guard reads. Nothing is dropped, nothing is decided."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from langchain_core.messages import (
    AIMessage,
    BaseMessage,
    ChatMessage,
    FunctionMessage,
    HumanMessage,
    SystemMessage,
    ToolMessage,
    convert_to_messages,
)
from langchain_core.messages.tool import default_tool_parser
from langchain_core.prompt_values import PromptValue

from guardrail.errors import UnsupportedContentError
from guardrail.front.chats import with_caution
from guardrail.inputs.folding import is_label, shown_labels
from guardrail_langchain.blocks import legible, legible_beside, parts_of

if TYPE_CHECKING:
    from langchain_core.language_models import LanguageModelInput

Chat = list[dict[str, Any]]
_CALL_BLOCKS = ("tool_call", "tool_call_chunk", "invalid_tool_call", "tool_use")
_OF_CALLS = frozenset({"type", "id", "index", "name"})
# Of an answer's `additional_kwargs`, read in their own places.
_OF_ANSWERS = frozenset(
    "audio function_call reasoning reasoning_content refusal tool_calls".split()
)


def to_chat(value: LanguageModelInput | BaseMessage | Mapping[str, Any]) -> Chat:
    """A prompt, a prompt value or messages in any form LangChain takes, as a guard's chat.

    Blocks may be LangChain's (v1, or the older `source_type` form), OpenAI's or Anthropic's.
    Reasoning, citations and what else stands beside an answer count as text: a later model may read
    it.

    Raises:
        UnsupportedContentError: a message or block that a guard cannot score, by its type's name,
            or a value that is no chat.
    """
    if isinstance(value, str):
        return [{"role": "user", "content": value}]
    return [_turn(message, f"messages[{i}]") for i, message in enumerate(to_messages(value))]


def to_judged_chat(value: Any) -> Chat:
    """`to_chat` for another model, whose template may show what the guard's own does not.

    The names of speakers, and ids that hold more than a label, go before it as text.
    """
    chat = to_chat(value)
    messages = [] if isinstance(value, str) else to_messages(value)
    beside = _labels(messages, chat, ())
    labelled: Any = with_caution(chat, "\n\n".join(beside)) if beside else chat
    return [*labelled]


def result_parts(message: BaseMessage, name: str) -> Any:
    """The content of a message that the tool `name` gave, with the labels that it chose."""
    [turn] = to_chat([message])
    known = {"type": "function", "function": {"name": name}}
    return _with_texts(turn["content"], _labels([message], [turn], [known]))


def _labels(messages: list[BaseMessage], chat: Chat, tools: list[Any] | tuple[()]) -> list[str]:
    ids = [each.id for each in messages if each.id and not is_label(each.id)]
    return [*dict.fromkeys([*shown_labels(chat, tools), *ids])]


def to_messages(value: Any) -> list[BaseMessage]:
    """The same input as LangChain's own messages."""
    if isinstance(value, PromptValue):
        return value.to_messages()
    if isinstance(value, BaseMessage):
        return [value]
    if isinstance(value, Mapping) and ("role" in value or "type" in value):
        return convert_to_messages([dict(value)])
    if not isinstance(value, list | tuple):
        kind = type(value).__name__
        hint = "; say which key holds it (key=...)" if isinstance(value, Mapping) else ""
        raise UnsupportedContentError(f"a {kind} is no prompt and no chat{hint}")
    return convert_to_messages(value)


def content_parts(content: str | Sequence[str | Mapping[str, Any]], what: str) -> Any:
    """The content of a message, or of a tool's output: a str, or parts that a guard reads."""
    if isinstance(content, str):
        return content
    return _lone_text(
        [
            part
            for i, block in enumerate(content)
            for part in parts_of(block, f"{what}.content[{i}]")
        ]
    )


def _turn(message: BaseMessage, what: str) -> dict[str, Any]:
    match message:
        case AIMessage():
            turn = _assistant(message, what)
        case ToolMessage():
            turn = {"role": "tool", "tool_call_id": message.tool_call_id}
        case FunctionMessage():
            turn = {"role": "tool"}
        case HumanMessage():
            turn = {"role": "user"}
        case SystemMessage():
            turn = {"role": "system"}
        case ChatMessage():
            turn = {"role": message.role}
        case _:
            raise UnsupportedContentError(
                f"{what} is a {type(message).__name__}, which no model reads; leave it out"
            )
    if "content" not in turn:
        turn["content"] = _with_texts(content_parts(message.content, what), _unknown(message))
    name = message.name or message.additional_kwargs.get("name")
    return turn | ({"name": name} if name else {})


def _assistant(message: AIMessage, what: str) -> dict[str, Any]:
    """An answer: its words, and its calls from wherever they stand."""
    calls = [_call(call["name"], call["args"], call.get("id")) for call in message.tool_calls]
    calls += [
        _call(call.get("name") or "", call.get("args") or "", call.get("id"))
        for call in message.invalid_tool_calls
    ]
    blocks = [message.content] if isinstance(message.content, str) else message.content
    parts = [part for text in _beside(message) for part in parts_of(text, what)]
    asides = _unknown(message)
    for i, block in enumerate(blocks):
        if not isinstance(block, Mapping) or block.get("type") not in _CALL_BLOCKS:
            parts += parts_of(block, f"{what}.content[{i}]") if block != "" else []
            continue
        read = _OF_CALLS | {_arguments_of(block)}
        asides += legible_beside({key: block[key] for key in block if key not in read})
        call = _called(block)
        if call not in calls:  # the same id with other arguments is another call
            calls.append(call)
    more = message.additional_kwargs
    raw, said = _raw_calls(more.get("tool_calls"))
    calls += [call for call in raw if call not in calls]
    content = _with_texts(_lone_text(parts), [*asides, *said])
    turn: dict[str, Any] = {"role": "assistant", "content": content}
    if calls:
        turn["tool_calls"] = calls
    if more.get("function_call"):
        turn["function_call"] = more["function_call"]
    if more.get("refusal"):
        turn["refusal"] = more["refusal"]
    return turn


def _beside(message: AIMessage) -> list[str]:
    """What providers put beside an answer's content: reasoning, and the words of a recording."""
    more = message.additional_kwargs
    audio = more.get("audio")
    said = [legible(more.get(key)) for key in ("reasoning_content", "reasoning")]
    if isinstance(audio, Mapping):
        rest = {key: item for key, item in audio.items() if key != "transcript"}
        said += [legible(audio.get("transcript")), *legible_beside(rest)]
    return [text for text in said if text]


def _unknown(message: BaseMessage) -> list[str]:
    """Texts in `additional_kwargs` that nobody here knows; a provider's class may send them on."""
    read = {"name"} | (_OF_ANSWERS if isinstance(message, AIMessage) else set())
    more = message.additional_kwargs
    return legible_beside({key: item for key, item in more.items() if key not in read})


def _with_texts(content: Any, texts: list[str]) -> Any:
    """The content of a turn, and texts behind it."""
    if not texts:
        return content
    first = [{"type": "text", "text": content}] if isinstance(content, str) else content
    return [*first, *({"type": "text", "text": text} for text in texts)]


def _lone_text(parts: list[dict[str, Any]]) -> Any:
    """A lone text as a str, which is how it was most likely written; no parts as none."""
    if not parts:
        return ""
    only = parts[0]
    return only["text"] if len(parts) == 1 and set(only) == {"type", "text"} else parts


def _call(name: str, arguments: Mapping[str, Any] | str, label: str | None) -> dict[str, Any]:
    return {
        "type": "function",
        "id": label or None,
        "function": {"name": name, "arguments": arguments},
    }


def _called(block: Mapping[str, Any]) -> dict[str, Any]:
    """The call of a block in LangChain's or in Anthropic's form."""
    arguments = block.get(_arguments_of(block))
    return _call(block.get("name") or "", arguments or {}, block.get("id"))


def _arguments_of(block: Mapping[str, Any]) -> str:
    return "input" if block["type"] == "tool_use" else "args"


def _raw_calls(raw: Any) -> tuple[list[dict[str, Any]], list[str]]:
    """Calls as OpenAI sends them, and what else they say; some providers' classes read these."""
    calls: list[dict[str, Any]] = []
    beside: list[str] = []
    for each in raw or ():
        try:
            valid, broken = default_tool_parser([each])
            found: list[Any] = [*valid, *broken]
        except (AttributeError, KeyError, TypeError):
            found = []
        calls += [_call(call["name"] or "", call["args"], call["id"]) for call in found]
        known = {*_OF_CALLS, "function"} if found else {"type", "index"}
        beside += legible_beside({k: v for k, v in each.items() if k not in known})
    return calls, beside
