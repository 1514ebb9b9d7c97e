"""LangChain messages -> the chat that a guard reads, and canonical pictures back into messages.

Nothing is dropped, nothing is decided: content blocks of LangChain and of the providers behind it
become parts, and what stands beside them text. What cannot be read is refused by its type's name.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
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
from langchain_core.prompt_values import ChatPromptValue, PromptValue

from guardrail.errors import UnsupportedContentError
from guardrail.front.chats import with_caution
from guardrail.inputs.canonical import canonical_chat
from guardrail.inputs.labels import is_label, shown_labels
from guardrail.inputs.parts import MEDIA_KEYS

if TYPE_CHECKING:
    from langchain_core.language_models import LanguageModelInput

    from guardrail.policy import Policy

Chat = list[dict[str, Any]]
Part = dict[str, Any]
_READ = frozenset(
    "text input_text output_text image image_url input_image video video_url input_video".split()
)
_PICTURES = frozenset({"image", "image_url", "input_image"})
_CALL_BLOCKS = ("tool_call", "tool_call_chunk", "invalid_tool_call", "tool_use")
_OF_CALLS = frozenset({"type", "id", "index", "name"})

# Of an answer's `additional_kwargs`, read in their own places.
_OF_ANSWERS = frozenset(
    "audio function_call reasoning reasoning_content refusal tool_calls".split()
)
_LABELS = frozenset({"id", "index"})

# How to handle a block, never what is in it.
_HINTS = frozenset({"cache_control", "detail", "item_id", "phase", "signature", "status"})
_SAID_BESIDE = ("annotations", "citations")

# Labels, as far as they look like some: whatever else stands in their place is read.
_LABELLING = _LABELS | _HINTS | {"type", "url", "file_id"}
_CIPHERS = frozenset({"encrypted_content", "data", "signature"})


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


def _labels(messages: list[BaseMessage], chat: Chat, tools: list[Any] | tuple[()]) -> list[str]:
    ids = [each.id for each in messages if each.id and not is_label(each.id)]
    return [*dict.fromkeys([*shown_labels(chat, tools), *ids])]


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
    first = [_text(content)] if isinstance(content, str) else content
    return [*first, *map(_text, texts)]


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


def canonical_messages(messages: Sequence[BaseMessage], policy: Policy) -> list[BaseMessage]:
    """The messages, with canonical pictures; one without a changed picture stays the same object.

    Raises:
        InputError: a picture cannot be read, or has two readings under `pictures = "refuse"`.
    """
    contents = canonical_contents([message.content for message in messages], policy)
    return [
        message if content is message.content else message.model_copy(update={"content": content})
        for message, content in zip(messages, contents, strict=True)
    ]


def canonical_input(value: Any, policy: Policy) -> Any:
    """A prompt or messages in any form LangChain takes; without a changed picture the same object.

    Raises:
        InputError: as for `canonical_messages`.
        UnsupportedContentError: it is no prompt and no chat.
    """
    if isinstance(value, str):
        return value
    messages = to_messages(value)
    sent = canonical_messages(messages, policy)
    if all(new is old for new, old in zip(sent, messages, strict=True)):
        return value
    if isinstance(value, PromptValue):
        return ChatPromptValue(messages=sent)
    return sent[0] if isinstance(value, BaseMessage) else sent


def canonical_contents(contents: Sequence[Any], policy: Policy) -> list[Any]:
    """Contents of messages or tools' outputs, likewise; all their pictures count together."""
    found = {
        (at, i): part
        for at, content in enumerate(contents)
        if isinstance(content, list | tuple)
        for i, block in enumerate(content)
        if isinstance(block, Mapping)
        and (part := picture_of(block, f"messages[{at}].content[{i}]")) is not None
    }
    if not found:
        return list(contents)
    turn = {"role": "user", "content": list(found.values())}
    [canonical] = canonical_chat([turn], policy)
    changed: dict[int, list[Any]] = {}
    for (at, i), old, new in zip(found, found.values(), canonical["content"], strict=True):
        if new != old:
            blocks = changed.setdefault(at, list(contents[at]))
            blocks[i] = _with_picture(blocks[i], old, new)
    return [changed.get(at, content) for at, content in enumerate(contents)]


def picture_of(block: Mapping[str, Any], what: str) -> Part | None:
    """The part with a block's picture; None for blocks without one.

    Raises:
        UnsupportedContentError: a picture in no form that is read.
    """
    try:
        first, *_ = parts_of(block, what)
    except UnsupportedContentError:
        if _unwrapped(block).get("type") in _PICTURES:
            raise
        return None  # for whoever judges it to refuse
    return first if first.get("type") in _PICTURES else None


def _with_picture(
    block: Mapping[str, Any], old: Mapping[str, Any], new: Mapping[str, Any]
) -> dict[str, Any]:
    """A block with the picture of `new` where it had that of `old`, in its own form."""
    if block.get("type") == "non_standard":
        return {**block, "value": _with_picture(block["value"], old, new)}
    media = new.get("mime_type") or new.get("media_type")
    if isinstance(source := block.get("source"), Mapping):
        head, _, data = str(new.get("url", "")).partition(",")
        media = media or head.removeprefix("data:").partition(";")[0] or source.get("media_type")
        data = new.get("base64") or data
        return {**block, "source": {"type": "base64", "media_type": media, "data": data}}
    changed = {key: item for key, item in new.items() if item != old.get(key)}
    if all(block.get(key) == old.get(key) for key in changed):
        return {**block, **changed}
    return {**new, **{key: block[key] for key in ("id", "index") if key in block}}


def parts_of(block: str | Mapping[str, Any], what: str) -> list[Part]:
    """One block as parts; nothing in it is left out.

    Raises:
        UnsupportedContentError: a block that cannot be scored, by its type's name. Keys that the
            guard does not know are refused by the guard itself.
    """
    if isinstance(block, str):
        return [_text(block)]
    plain = _unwrapped(block)
    match plain.get("type"):
        case kind if kind in _READ:
            return _direct(plain, what)
        case "refusal":
            return [_without_labels(plain), *_aside(plain, _LABELS | _HINTS)]
        case "reasoning" | "thinking":
            return [_text("\n".join(_legible(plain)))]
        case "text-plain" if isinstance(plain.get("text"), str):
            return _document(plain, plain["text"], "text")
        case "document" if (text := _text_source(plain)) is not None:
            return _document(plain, text, "source")
        case kind:
            return _translated(plain, str(kind)[:80], what)


def legible(value: Any) -> str:
    """Every text in a value that is not a label or a cipher, a line each."""
    return "\n".join(_legible(value))


def legible_beside(values: Mapping[str, Any]) -> list[str]:
    """Every text in values that a guard does not know; names and the like count as labels."""
    return [text for text in _legible(dict(values)) if not is_label(text)]


def _direct(block: Mapping[str, Any], what: str) -> list[Part]:
    """A block in a form the guard knows; a source in Anthropic's form is opened."""
    rest = _without_labels(block)
    beside = [text for key in _SAID_BESIDE for text in _legible(rest.pop(key, None))]
    source = rest.pop("source", None)
    if isinstance(source, Mapping):
        kind = source.get("type")
        if kind not in ("base64", "url"):
            raise UnsupportedContentError(f"{what} has a source of type {kind!r}; send its bytes")
        if also := sorted(rest.keys() & MEDIA_KEYS):  # whose picture a model reads, nobody knows
            raise UnsupportedContentError(f"{what} has a source and {also[0]}; send one of them")
        rest |= {"base64": source.get("data")} if kind == "base64" else {"url": source.get("url")}
        rest.setdefault("mime_type", source.get("media_type"))
    elif source is not None:
        rest["source"] = source
    said = str(rest.get("text", ""))
    more = [_text(text) for text in beside if text not in said]
    return [rest, *more, *_aside(block, _LABELS | _HINTS)]


def _document(block: Mapping[str, Any], text: str, key: str) -> list[Part]:
    """A document's text, found under `key`, with what stands before it and beside it."""
    named = {"title", "context", key}
    before = _joined(block.get("title"), block.get("context"), text)
    return [_text(before), *_aside(block, set(_whole(block)) - named)]


def _without_labels(block: Mapping[str, Any]) -> Part:
    """The block less its labels and hints."""
    return {key: item for key, item in _whole(block).items() if key not in _LABELS | _HINTS}


def _aside(block: Mapping[str, Any], keys: Collection[str]) -> list[Part]:
    """Texts that stand where a block has labels and hints, and are none."""
    named = {key: item for key, item in _whole(block).items() if key in keys}
    return [_text(text) for text in legible_beside(named)]


def _whole(block: Mapping[str, Any]) -> Part:
    """The block with what LangChain moved into `extras` back in its place."""
    extras = block.get("extras")
    whole = {**(extras if isinstance(extras, Mapping) else {}), **block}
    whole.pop("extras", None)
    return whole


def _translated(block: Mapping[str, Any], kind: str, what: str) -> list[Part]:
    """A provider's own block, where LangChain can turn it into one of its standard ones."""
    try:
        found = HumanMessage(content=[dict(block)]).content_blocks
    except (KeyError, TypeError, ValueError):
        found = []
    if len(found) == 1 and (standard := _unwrapped(found[0])) != block:
        if standard.get("type") in _READ:
            return _direct(standard, what)
        kind = f"{kind} ({standard.get('type')})" if standard.get("type") != kind else kind
    raise UnsupportedContentError(
        f"{what} is a {kind!r} block, which a guard cannot score; convert it to text, pictures "
        "or videos first"
    )


def _unwrapped(block: Mapping[str, Any]) -> Mapping[str, Any]:
    """What LangChain itself did not know, as it was sent."""
    if block.get("type") == "non_standard" and isinstance(block.get("value"), Mapping):
        if others := block.keys() - {"type", "value", "id", "index"}:
            raise UnsupportedContentError(
                f"a non_standard block has the key {min(others)!r} beside its value, which is not "
                "read; put it into the value, or leave it out"
            )
        value: Mapping[str, Any] = block["value"]
        return value
    return block


def _text_source(block: Mapping[str, Any]) -> str | None:
    source = block.get("source")
    if isinstance(source, Mapping) and source.get("type") == "text":
        data = source.get("data")
        return data if isinstance(data, str) else None
    return None


def _legible(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        if value:
            yield value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            if isinstance(key, str) and not is_label(key):
                yield key
            if not (isinstance(item, str) and _is_no_text(key, item)):
                yield from _legible(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _legible(item)


def _is_no_text(key: object, item: str) -> bool:
    return (key in _LABELLING and is_label(item)) or (key in _CIPHERS and len(item.split()) < 2)


def _joined(*texts: object) -> str:
    return "\n".join(text for text in texts if isinstance(text, str) and text)


def _text(text: str) -> Part:
    return {"type": "text", "text": text}
