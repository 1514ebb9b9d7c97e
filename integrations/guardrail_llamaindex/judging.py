"""What another LLM is about to read: what is sent to it, and how a guard hears it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Self

from llama_index.core.base.llms.generic_utils import (
    messages_to_prompt as generic_messages_to_prompt,
)
from llama_index.core.base.llms.types import ChatMessage, TextBlock
from llama_index.core.llms.structured_llm import StructuredLLM
from llama_index.core.tools import BaseTool

from guardrail.front.arguments import snapshot
from guardrail.front.chats import with_caution
from guardrail.front.judging import SYSTEM_ROLES, Heard
from guardrail.inputs.canonical import canonical_chat
from guardrail.inputs.labels import is_label, is_unspoken
from guardrail_llamaindex.messages import (
    document_parts,
    picture_block,
    spoken,
    to_messages,
    with_pictures,
    words_of,
)

if TYPE_CHECKING:
    from collections.abc import Container, Iterator, Sequence

    from llama_index.core.base.llms.types import MessageRole
    from llama_index.core.llms.llm import LLM

    from guardrail.front.judging import Chat
    from guardrail.policy import Policy

# Keywords of a call whose values are labels, or lists of them.
_HOW = frozenset(
    "effort model mode reasoning_effort role service_tier stop stop_sequences summary tool_choice"
    " type user".split()
)
# Not for a model: what goes to a provider's web server, and how a call is made. Pictures are parts.
_UNSHOWN = frozenset({"extra_headers", "extra_query", "formatted", "image_documents", "timeout"})
# Choices of a tool that name none.
_CHOICES = frozenset({"any", "auto", "function", "none", "required", "tool"})
# Of an LLM's own, and sent along with every call.
_OWN = (
    "additional_kwargs",
    "built_in_tools",
    "extra_body",
    "instructions",
    "mcp_servers",
    "system_instruction",
)


@dataclass(frozen=True, slots=True)
class LLMCall:
    """What goes to an LLM, its pictures canonical, and the chats in which a guard reads it."""

    sent: Any  # messages, or a prompt
    kwargs: dict[str, Any]
    heard: Heard

    @classmethod
    def of(
        cls, given: list[ChatMessage] | str, kwargs: dict[str, Any], llm: LLM, policy: Policy
    ) -> Self:
        """A chat or a prompt, with the keywords of its call.

        Raises:
            InputError: something in it that a guard cannot read.
        """
        frozen: Any = snapshot((given, kwargs))  # what is judged is what is sent
        given, kwargs = frozen
        chat = _chat(given)
        documents = kwargs.get("image_documents")
        if documents:
            chat.append({"role": "user", "content": document_parts(documents)})
        chat = canonical_chat(chat, policy)
        shown = chat
        if documents:
            kwargs["image_documents"] = [picture_block(part) for part in chat[-1]["content"]]
            shown = chat[:-1]
            if isinstance(given, str):  # one message, the pictures first
                [text] = shown
                chat = [{"role": "user", "content": [*chat[-1]["content"], *text["content"]]}]
        sent = given if isinstance(given, str) else with_pictures(given, shown)
        words = (*_words_of(kwargs), *_own_words(llm), *_written(sent, llm))
        return cls(sent, kwargs, Heard.of(chat, filter(None, words)))

    def cautioned(self, words: str, role: MessageRole) -> Self:
        """The same with words of caution before it; for a chat, in its system message."""
        if isinstance(self.sent, str):
            return replace(self, sent=with_caution(self.sent, words))
        first, *others = self.sent
        if first.role.value not in SYSTEM_ROLES:
            return replace(self, sent=[ChatMessage(content=words, role=role), *self.sent])
        match first.blocks:
            case [TextBlock(text=text), *rest]:
                blocks = [TextBlock(text=f"{words}\n\n{text}"), *rest]
            case blocks:
                blocks = [TextBlock(text=f"{words}\n\n"), *blocks]
        return replace(self, sent=[first.model_copy(update={"blocks": blocks}), *others])


def _chat(given: Sequence[ChatMessage] | str) -> Chat:
    if isinstance(given, str):
        return [{"role": "user", "content": [{"type": "text", "text": given}]}]
    return to_messages(given, others=True)


def _words_of(kwargs: Mapping[str, Any]) -> Iterator[str]:
    """The words in a call's keywords, each tool on its own."""
    offered = kwargs.get("tools")
    names = {_name(tool) for tool in offered} if isinstance(offered, list | tuple) else set()
    for key, value in kwargs.items():
        if key in _UNSHOWN:
            continue
        items = value if isinstance(value, list | tuple) else [value]
        for item in items:
            if key == "tool_choice":
                yield from _chosen(item, _CHOICES | names)
            elif not (key in _HOW and is_unspoken(key, item, _HOW)):
                yield words_of(item)


def _chosen(choice: Any, known: Container[str]) -> Iterator[str]:
    """What a choice of a tool says beside the name of one that is offered."""
    if isinstance(choice, Mapping):
        for key, item in choice.items():
            yield from _chosen(item, known)
            yield from () if is_label(str(key)) else (str(key),)
    elif isinstance(choice, list | tuple):
        for item in choice:
            yield from _chosen(item, known)
    elif not (isinstance(choice, str) and choice in known):
        yield words_of(choice)


def _name(tool: Any) -> Any:
    """A tool's name in any form; what it says elsewhere is judged there."""
    if isinstance(tool, BaseTool):
        return tool.metadata.name
    held = tool.get("function", tool) if isinstance(tool, Mapping) else {}
    return held.get("name") if isinstance(held, Mapping) else None


def _own_words(llm: Any) -> Iterator[str]:
    """What LLMs of LlamaIndex around another one add: a schema, the inner one's system prompt."""
    while isinstance(llm, StructuredLLM):
        yield words_of(llm.output_cls)
        llm = llm.llm
        yield llm.system_prompt or ""
    for name in _OWN:
        if value := getattr(llm, name, None):
            yield words_of(spoken(value, _HOW, []))


def _written(given: list[ChatMessage] | str, llm: Any) -> Iterator[str]:
    """The prompt that an LLM which only completes prompts makes of them by functions of its own."""
    if llm.metadata.is_chat_model:
        return
    if isinstance(given, str):
        made = llm.completion_to_prompt(given)
    elif llm.messages_to_prompt is generic_messages_to_prompt:
        return
    else:
        made = llm.messages_to_prompt(given)
    if made != given:
        yield made
