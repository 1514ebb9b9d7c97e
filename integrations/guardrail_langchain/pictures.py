"""Pictures of LangChain messages as they are judged, for whoever reads them next."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from langchain_core.messages import BaseMessage
from langchain_core.prompt_values import ChatPromptValue, PromptValue

from guardrail.inputs.canonical import canonical_chat
from guardrail_langchain.blocks import picture_of
from guardrail_langchain.messages import to_messages

if TYPE_CHECKING:
    from guardrail.policy import Policy


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
