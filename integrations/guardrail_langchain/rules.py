"""What becomes of an input whose model the guard does not run: pass, caution or stop."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, cast

from langchain_core.messages import SystemMessage
from langchain_core.prompt_values import ChatPromptValue, PromptValue, StringPromptValue

from guardrail.front.chats import with_caution
from guardrail_langchain.messages import to_messages

if TYPE_CHECKING:
    from collections.abc import Callable

    from langchain_core.messages import BaseMessage

    from guardrail import Verdict
    from guardrail.front.consequences import Reaction

    Put = Callable[[Any, str], Any]


@dataclass(frozen=True, slots=True)
class Outcome:
    """A verdict after all; `value` is what goes on, and `stops` that nothing does."""

    verdict: Verdict
    value: Any
    stops: bool


def outcome(reaction: Reaction, value: Any, put: Put, verdict: Verdict) -> Outcome:
    """Settle a verdict; `put(value, words)` is `value` with the policy's words of caution in it.

    It is None where there is no place for them; then what would be cautioned counts as flagged.
    """
    after = reaction.settle(verdict, partial(put, value))
    sent = value if after.cautioned is None else after.cautioned
    return Outcome(after.verdict, sent, after.done == "flag")


def no_place(value: Any, words: str) -> None:
    """For values that take no word of caution."""


def cautioned_input(value: Any, words: str) -> Any | None:
    """A chain's input with words of caution before it; None where there is no place for them."""
    if isinstance(value, StringPromptValue):
        return StringPromptValue(text=cast("str", with_caution(value.text, words)))
    if isinstance(value, PromptValue):
        return ChatPromptValue(messages=cautioned_messages(value.to_messages(), words))
    if isinstance(value, str) or not value:
        return with_caution(value, words)
    return cautioned_messages(to_messages(value), words)


def cautioned_messages(messages: list[BaseMessage], words: str) -> list[Any]:
    """Messages with the words in their system message, which is made if there is none."""
    first = messages[0]
    if isinstance(first, SystemMessage):
        return [cautioned_system(first, words), *messages[1:]]
    return [SystemMessage(words), *messages]


def cautioned_system(message: SystemMessage | None, words: str) -> SystemMessage:
    """A system message that begins with words of caution; the given one stays as it is."""
    if message is None:
        return SystemMessage(words)
    content = message.content
    if isinstance(content, str):
        return message.model_copy(update={"content": f"{words}\n\n{content}"})
    part = {"type": "text", "text": f"{words}\n\n"}
    return message.model_copy(update={"content": [part, *content]})
