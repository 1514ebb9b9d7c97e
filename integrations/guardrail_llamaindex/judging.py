"""What another LLM is about to read: what is sent to it, and how a guard hears it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Self

from llama_index.core.base.llms.types import ChatMessage, TextBlock
from llama_index.core.llms.structured_llm import StructuredLLM

from guardrail.front.arguments import snapshot
from guardrail.front.chats import with_caution
from guardrail.front.judging import SYSTEM_ROLES, Heard
from guardrail.inputs.canonical import canonical_chat
from guardrail_llamaindex.messages import (
    document_parts,
    picture_block,
    to_messages,
    with_pictures,
    words_of,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from llama_index.core.base.llms.types import MessageRole
    from llama_index.core.llms.llm import LLM

    from guardrail.front.judging import Chat
    from guardrail.policy import Policy

# Keywords of a call that say how to answer, and are for a provider alone.
_HOW = frozenset(
    "allow_parallel_tool_calls extra_headers extra_query formatted model parallel_tool_calls stop "
    "stop_sequences stream_options timeout tool_choice tool_config tool_required user "
    "verbose".split()
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
        return cls(sent, kwargs, Heard.of(chat, (*_words_of(kwargs), *_own_words(llm))))

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
    for key, value in kwargs.items():
        if key in _HOW or key == "image_documents":
            continue
        items = value if isinstance(value, list | tuple) else [value]
        yield from filter(None, map(words_of, items))


def _own_words(llm: Any) -> Iterator[str]:
    """What LLMs of LlamaIndex around another one add: a schema, the inner one's system prompt."""
    while isinstance(llm, StructuredLLM):
        yield words_of(llm.output_cls)
        llm = llm.llm
        if llm.system_prompt:
            yield llm.system_prompt
