"""LangChain messages -> the chat that a guard reads, and canonical pictures back into messages.

Nothing is dropped, nothing is decided: content blocks of LangChain and of the providers behind it
become parts, and what stands beside them text. What cannot be read is refused by its type's name.
"""

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
from langchain_core.prompt_values import ChatPromptValue, PromptValue

from guardrail.errors import UnsupportedContentError
from guardrail.front.chats import with_caution
from guardrail.inputs.canonical import canonical_chat
from guardrail.inputs.labels import is_label, shown_labels
from guardrail.inputs.parts import MEDIA_KEYS
from guardrail_langchain.calls import CALL_BLOCKS, Calls
from guardrail_langchain.words import HINTS, WITH_DATA, legible, without

if TYPE_CHECKING:
    from langchain_core.language_models import LanguageModelInput

    from guardrail.policy import Policy

Chat = list[dict[str, Any]]
Part = dict[str, Any]
_READ = frozenset(
    "text input_text output_text image image_url input_image video video_url input_video".split()
)
_PICTURES = frozenset({"image", "image_url", "input_image"})
# Read in their own places: of an answer's `additional_kwargs`, and of all messages' fields.
_OF_ANSWERS = frozenset(
    "audio function_call parsed reasoning reasoning_content refusal tool_calls".split()
)
_FIELDS = frozenset(
    "additional_kwargs artifact chunk_position content example id invalid_tool_calls name"
    " response_metadata role status tool_call_chunks tool_call_id tool_calls type"
    " usage_metadata".split()
)

# What a block says of itself; the guard itself is told the rest.
_ASIDE = HINTS | {"id", "index"}
_SAID_BESIDE = ("annotations", "citations")
# Other places of a document's words; whose a model reads, nobody knows.
_ELSEWHERE = ("base64", "file_id", "url")


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
    name = _name(message)
    return turn | ({"name": name} if name else {})


def _name(message: BaseMessage) -> Any:
    return message.name or message.additional_kwargs.get("name")


def _assistant(message: AIMessage, what: str) -> dict[str, Any]:
    """An answer: its words, and its calls from wherever they stand."""
    asides = _unknown(message)
    calls = Calls()
    for each in (*message.tool_calls, *message.invalid_tool_calls):
        asides += calls.of_message(each)
    blocks = [message.content] if isinstance(message.content, str) else message.content
    parts = [part for text in _beside(message) for part in parts_of(text, what)]
    for i, block in enumerate(blocks):
        if isinstance(block, Mapping) and block.get("type") in CALL_BLOCKS:
            asides += calls.of_block(block)
        elif block != "":
            parts += parts_of(block, f"{what}.content[{i}]")
    more = message.additional_kwargs
    asides += calls.of_records(more.get("tool_calls"))
    said = _said_in(parts)  # an answer that was parsed says the same again
    asides += [text for text in legible(more.get("parsed")) if text not in said]
    turn: dict[str, Any] = {"role": "assistant", "content": _with_texts(_lone_text(parts), asides)}
    if calls.all:
        turn["tool_calls"] = calls.all
    if more.get("function_call"):
        turn["function_call"] = more["function_call"]
    if more.get("refusal"):
        turn["refusal"] = more["refusal"]
    return turn


def _beside(message: AIMessage) -> list[str]:
    """What providers put beside an answer's content: reasoning, and the words of a recording."""
    more = message.additional_kwargs
    audio = more.get("audio")
    found = ["\n".join(legible(more.get(key))) for key in ("reasoning_content", "reasoning")]
    if isinstance(audio, Mapping):
        found += ["\n".join(legible(audio.get("transcript")))]
        audio = without(audio, {"transcript"})
    if not isinstance(audio, bytes):  # a recording itself, which Google's class sends nowhere
        found += legible(audio, WITH_DATA)
    return [text for text in found if text]


def _unknown(message: BaseMessage) -> list[str]:
    """Texts beside a message that nobody here knows; a provider's class may send them on."""
    read = set(_OF_ANSWERS) if isinstance(message, AIMessage) else set()
    more = message.additional_kwargs
    if more.get("name") == _name(message):
        read.add("name")
    own = {name: getattr(message, name) for name in type(message).model_fields}
    held = {**own, **(message.model_extra or {})}
    return [*legible(without(more, read)), *legible(without(held, _FIELDS))]


def _said_in(parts: list[Part]) -> str:
    return "\n".join(str(part.get("text", "")) for part in parts)


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
    if plain is not block:
        return [*parts_of(plain, what), *_texts(without(block, {"type", "value"}))]
    match plain.get("type"):
        case kind if kind in _READ:
            return _direct(plain, what)
        case "refusal":
            words = {"type": "refusal", "refusal": plain.get("refusal")}
            return [words, *_texts(without(_whole(plain), words))]
        case "reasoning" | "thinking":
            return [_text("\n".join(legible(plain)))]
        case "text-plain" if isinstance(plain.get("text"), str):
            if also := [key for key in _ELSEWHERE if _whole(plain).get(key)]:
                raise UnsupportedContentError(f"{what} has text and {also[0]}; send one of them")
            return _document(plain, plain["text"], "text")
        case "document" if (text := _text_source(plain)) is not None:
            source = without(plain["source"], {"data"})
            return [*_document(plain, text, "source"), *_texts(source)]
        case kind:
            return _translated(plain, str(kind)[:80], what)


def _direct(block: Mapping[str, Any], what: str) -> list[Part]:
    """A block in a form the guard knows; a source in Anthropic's form is opened."""
    whole = _whole(block)
    rest = without(whole, _ASIDE)
    aside = {key: item for key, item in whole.items() if key in _ASIDE}
    beside = [text for key in _SAID_BESIDE for text in legible(rest.pop(key, None))]
    source = rest.pop("source", None)
    if isinstance(source, Mapping):
        kind = source.get("type")
        if kind not in ("base64", "url"):
            raise UnsupportedContentError(f"{what} has a source of type {kind!r}; send its bytes")
        if also := sorted(rest.keys() & MEDIA_KEYS):  # whose picture a model reads, nobody knows
            raise UnsupportedContentError(f"{what} has a source and {also[0]}; send one of them")
        held = "data" if kind == "base64" else "url"
        rest |= {"base64" if kind == "base64" else "url": source.get(held)}
        rest.setdefault("mime_type", source.get("media_type"))
        beside += legible(without(source, {held}))
    elif source is not None:
        rest["source"] = source
    said = str(rest.get("text", ""))
    return [rest, *(_text(text) for text in beside if text not in said), *_texts(aside)]


def _document(block: Mapping[str, Any], text: str, key: str) -> list[Part]:
    """A document's text, found under `key`, with what stands before it and beside it."""
    named = {name for name in ("title", "context") if isinstance(block.get(name), str)}
    before = _joined(*(block.get(name) for name in ("title", "context") if name in named), text)
    return [_text(before), *_texts(without(_whole(block), named | {key}))]


def _texts(values: Mapping[str, Any]) -> list[Part]:
    """Texts that stand where a block has labels and hints, and are none."""
    return [_text(text) for text in legible(values)]


def _whole(block: Mapping[str, Any]) -> Part:
    """The block with what LangChain moved into `extras` back in its place."""
    extras = block.get("extras")
    if not isinstance(extras, Mapping):
        return dict(block)
    return {**extras, **without(block, {"extras"})}


def _translated(block: Mapping[str, Any], kind: str, what: str) -> list[Part]:
    """A provider's own block, where LangChain can turn it into one of its standard ones."""
    try:
        found = HumanMessage(content=[dict(block)]).content_blocks
    except (KeyError, TypeError, ValueError):
        found = []
    if len(found) == 1 and (standard := _unwrapped(found[0])) != block:
        if standard.get("type") in _READ:
            known = repr(standard)
            lost = [text for text in legible(block) if text not in known]
            return [*_direct(standard, what), *map(_text, lost)]
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


def _joined(*texts: object) -> str:
    return "\n".join(text for text in texts if isinstance(text, str) and text)


def _text(text: str) -> Part:
    return {"type": "text", "text": text}
