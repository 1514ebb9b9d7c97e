"""What of a tool call is judged, and what a verdict leads to; for tools and for middleware."""

from __future__ import annotations

import json
from collections.abc import Generator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, TypeVar, get_args

from langchain_core.messages import BaseMessage, ToolMessage
from langchain_core.tools.base import TOOL_MESSAGE_BLOCK_TYPES
from langgraph.types import Command

from guardrail.errors import ConfigurationError
from guardrail.settling import Checker, OnFlag, stopped
from guardrail.tool_chats import call_chat, result_chat
from guardrail_langchain.messages import content_parts
from guardrail_langchain.replies import metadata
from guardrail_langchain.rules import no_place, outcome

if TYPE_CHECKING:
    from collections.abc import Callable

    from guardrail import Verdict
    from guardrail_langchain.rules import Outcome

Side = Literal["arguments", "result"]
T = TypeVar("T")
Judging = Generator[Any, "Verdict", T]
"""Yields chats, is sent their verdicts, returns what came of them."""


def judged(steps: Judging[T], check: Callable[[Any], Verdict]) -> T:
    """Run the steps with a blocking guard."""
    try:
        chat = next(steps)
        while True:
            chat = steps.send(check(chat))
    except StopIteration as end:
        done: T = end.value
        return done


async def ajudged(steps: Judging[T], acheck: Callable[[Any], Any]) -> T:
    """Run the steps without blocking the event loop."""
    try:
        chat = next(steps)
        while True:
            chat = steps.send(await acheck(chat))
    except StopIteration as end:
        done: T = end.value
        return done


@dataclass(frozen=True, slots=True)
class Judgement:
    """What goes on in place of a tool's output, and whether that is a refusal."""

    value: Any
    refused: bool = False


@dataclass(frozen=True, slots=True)
class ToolRules:
    """A guard, which sides of a call it reads, and what a flag leads to."""

    guard: Checker
    sides: frozenset[str]
    on_flag: OnFlag | None = None

    def __post_init__(self) -> None:
        """Refuse sides that a call does not have."""
        if not self.sides <= set(get_args(Side)):
            raise ConfigurationError(
                f"check={sorted(self.sides)} may hold only 'arguments' and 'result'"
            )

    def before(self, name: str, arguments: Any, call_id: str | None) -> Judging[Any]:
        """None when the call may be made, else what stands for its result."""
        if "arguments" not in self.sides:
            return None
        written = arguments if isinstance(arguments, str) else _plain(arguments)
        after = self._settle((yield call_chat(name, written)), arguments, no_place)
        return self._refusal(name, call_id, after.verdict) if after.stops else None

    def after(self, name: str, output: Any, call_id: str | None) -> Judging[Judgement]:
        """What the model gets to read in place of `output`: itself, cautioned, or a refusal."""
        if "result" not in self.sides:
            return Judgement(output)
        if isinstance(output, ToolMessage):
            return Judgement((yield from self._message(output)))
        if isinstance(output, Command):
            return Judgement((yield from self._command(output)))
        if isinstance(output, list) and output and all(map(_is_output, output)):
            found = []
            for item in output:
                found.append((yield from self.after(name, item, call_id)).value)
            return Judgement(found)
        shown = _shown(output)
        chat = result_chat(content_parts(shown, f"the result of {name}"))
        after = self._settle((yield chat), shown, _before_content)
        if after.stops:
            return Judgement(self._refusal(name, call_id, after.verdict), refused=True)
        return Judgement(output if after.value is shown else after.value)

    def _message(self, message: ToolMessage) -> Judging[ToolMessage]:
        chat = result_chat(content_parts(message.content, f"the result of {message.name}"))
        after = self._settle((yield chat), message.content, _before_content)
        if after.stops:
            refused = self._refusal(message.name or "tool", message.tool_call_id, after.verdict)
            with_id: ToolMessage = refused.model_copy(update={"id": message.id})
            return with_id
        if after.value is message.content:
            return message
        return message.model_copy(update={"content": after.value})

    def _command(self, command: Command[Any]) -> Judging[Command[Any]]:
        """A command whose new messages hold results."""
        update = command.update
        if not isinstance(update, Mapping) or not isinstance(update.get("messages"), list):
            return command
        found: list[Any] = []
        for message in update["messages"]:
            judged_one = message
            if isinstance(message, ToolMessage):
                judged_one = yield from self._message(message)
            found.append(judged_one)
        if all(a is b for a, b in zip(found, update["messages"], strict=True)):
            return command
        return replace(command, update={**update, "messages": found})

    def _settle(
        self, verdict: Verdict, value: Any, put: Callable[[Any, str], Any | None]
    ) -> Outcome:
        policy = self.guard.policy
        on_flag = self.on_flag or policy.on_flag
        after = outcome(verdict, policy, on_flag, value, put=put)
        if after.stops and on_flag == "raise":
            raise stopped(after.verdict, policy)
        return after

    def _refusal(self, name: str, call_id: str | None, verdict: Verdict) -> Any:
        """An error result without a word of what is held back; a str where no call asked."""
        text = self.guard.policy.refusal_message
        if call_id is None:
            return text
        return ToolMessage(
            text,
            name=name,
            tool_call_id=call_id,
            status="error",
            response_metadata=metadata(verdict, "guardrail") | {"refused_by_guard": True},
        )


def _is_output(value: Any) -> bool:
    return isinstance(value, ToolMessage | Command)


def _before_content(content: Any, words: str) -> Any:
    if isinstance(content, str):
        return f"{words}\n\n{content}"
    return [{"type": "text", "text": f"{words}\n\n"}, *content]


def _shown(output: Any) -> Any:
    """A tool's output as LangChain shows it to a model: text, blocks, or anything else as JSON."""
    if isinstance(output, str):
        return output
    if isinstance(output, list | tuple) and output and all(map(_is_block, output)):
        return list(output)
    try:
        return json.dumps(output, ensure_ascii=False)
    except (TypeError, ValueError, RecursionError):
        return str(output)


def _is_block(value: Any) -> bool:
    return isinstance(value, str) or (
        isinstance(value, dict) and value.get("type") in TOOL_MESSAGE_BLOCK_TYPES
    )


def _plain(value: Any) -> Any:
    """Arguments as JSON values; messages and other objects by their text."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain(item) for item in value]
    if isinstance(value, BaseMessage):
        return _plain(value.content)
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if hasattr(value, "model_dump"):
        return _plain(value.model_dump())
    return str(value)
