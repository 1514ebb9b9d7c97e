"""What of a tool call is judged, and what a verdict leads to; for tools and for middleware.

A result may be a `Command`, whose messages and other texts are found wherever they stand in it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, cast

from langchain_core.messages import BaseMessage, ToolMessage, convert_to_messages
from langchain_core.tools.base import TOOL_MESSAGE_BLOCK_TYPES
from langgraph.types import Command, Send

import guardrail.front.tools
from guardrail.front.chats import RESULT_CAUTION, call_chat, result_chat
from guardrail.front.tool_values import read_value
from guardrail.front.tools import WITHHELD, Side
from guardrail.inputs.labels import is_label
from guardrail.policy.acting import one_reading
from guardrail_langchain.judging import no_place, outcome
from guardrail_langchain.messages import (
    canonical_contents,
    canonical_messages,
    content_parts,
    result_parts,
    to_judged_chat,
)
from guardrail_langchain.replies import metadata
from guardrail_langchain.words import IN_MESSAGES, held_by

if TYPE_CHECKING:
    from collections.abc import Callable

    from guardrail import Verdict
    from guardrail.policy import Policy
    from guardrail_langchain.judging import Judging


@dataclass(frozen=True, slots=True)
class Judgement:
    """What goes on in place of a tool's output, and whether that is a refusal."""

    value: Any
    refused: bool = False


class ToolRules(guardrail.front.tools.ToolRules):
    """What the rules of a tool mean in LangChain's messages and commands."""

    __slots__ = ()

    def before(self, name: str, arguments: Any, call_id: str | None) -> Judging[Any]:
        """None when the call may be made, else what stands for its result."""
        if "arguments" not in self.sides:
            return None
        written = arguments if isinstance(arguments, str) else _plain(arguments)
        if not written:  # the model wrote nothing but a name, which is the app's
            return None
        # The tool gets them as they are, so an encoded picture among them has one reading.
        rules = one_reading(self._policy)
        read = read_value(written, rules, f"the arguments of {name}")
        chat: Any = call_chat(name, cast("Any", read.said), read.parts)
        after = yield chat, partial(outcome, self.reaction, arguments, no_place)
        return self._withheld("arguments", name, call_id, after.verdict) if after.stops else None

    def after(self, name: str, output: Any, call_id: str | None) -> Judging[Judgement]:
        """What the model gets to read in place of `output`: itself, cautioned, or a refusal."""
        if "result" not in self.sides:
            return Judgement(output)
        if isinstance(output, ToolMessage):
            return (yield from self._message(name, output))
        if isinstance(output, Command):
            return (yield from self._command(name, output, call_id))
        if isinstance(output, list) and output and all(map(_is_output, output)):
            found = []
            for item in output:
                found.append((yield from self.after(name, item, call_id)).value)
            return Judgement(found)
        shown = _shown(output)
        [sent] = canonical_contents([shown], self._policy)
        chat = result_chat(content_parts(sent, f"the result of {name}"))
        after = yield chat, partial(outcome, self.reaction, sent, _cautioned_result)
        if after.stops:
            return Judgement(self._withheld("result", name, call_id, after.verdict), True)
        return Judgement(output if after.value is shown else after.value)

    def _message(self, name: str, message: ToolMessage) -> Judging[Judgement]:
        [sent] = canonical_messages([message], self._policy)
        chat = result_chat(result_parts(sent, name))
        after = yield chat, partial(outcome, self.reaction, sent.content, _cautioned_result)
        if after.stops:
            held = self._withheld("result", name, message.tool_call_id, after.verdict)
            kept = message.id if is_label(message.id or "") else None
            return Judgement(held.model_copy(update={"id": kept}), refused=True)
        if after.value is sent.content:
            return Judgement(sent)
        return Judgement(sent.model_copy(update={"content": after.value}))

    def _command(self, name: str, command: Command[Any], call_id: str | None) -> Judging[Judgement]:
        """A command, all of it: one flagged message or text holds the whole command back."""
        found: dict[int, Any] = {}
        for message in command_messages(command):
            if isinstance(message, ToolMessage):
                judgement = yield from self._message(name, message)
                if judgement.refused:
                    return judgement
                found[id(message)] = judgement.value
                continue
            [sent] = canonical_messages([message], self._policy)
            found[id(message)] = sent
            refused = yield from self._other(name, to_judged_chat([sent]), call_id)
            if refused is not None:
                return Judgement(refused, refused=True)
        words = "\n".join(command_texts(command))
        if words:
            refused = yield from self._other(name, result_chat(words), call_id)
            if refused is not None:
                return Judgement(refused, refused=True)
        return Judgement(with_messages(command, found))

    def _other(self, name: str, chat: Any, call_id: str | None) -> Judging[Any]:
        """What takes no caution: None when it passes, else a refusal."""
        after = yield chat, partial(outcome, self.reaction, chat, no_place)
        if not after.stops:
            return None
        return self._withheld("result", name, call_id, after.verdict)

    @property
    def _policy(self) -> Policy:
        return self.reaction.guard.policy

    def _withheld(self, side: Side, name: str, call_id: str | None, verdict: Verdict) -> Any:
        """An error result without a word of what is held back; a str where no call asked.

        Raises:
            GuardrailViolation, DetectorError: under `on_flag="raise"`.
        """
        self.reaction.stop(verdict)
        if call_id is None:
            return WITHHELD[side]
        return ToolMessage(
            WITHHELD[side],
            name=name,
            tool_call_id=call_id,
            status="error",
            response_metadata=metadata(verdict, "guardrail") | {"refused_by_guard": True},
        )


def _is_output(value: Any) -> bool:
    return isinstance(value, ToolMessage | Command)


def _cautioned_result(content: Any, _: str) -> Any:
    """A result behind words that are about results; the policy's are about what a user asks."""
    if isinstance(content, str):
        return f"{RESULT_CAUTION}\n\n{content}"
    return [{"type": "text", "text": f"{RESULT_CAUTION}\n\n"}, *content]


def _shown(output: Any) -> Any:
    """A tool's output as LangChain shows it to a model: text, blocks, or anything else as JSON."""
    if isinstance(output, str):
        return output
    if isinstance(output, list) and output and all(map(_is_block, output)):
        return output
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


def command_messages(command: Command[Any]) -> list[BaseMessage]:
    """Every message in the update and in what is sent to other nodes, wherever it stands."""
    return [leaf for leaf in _leaves(command) if isinstance(leaf, BaseMessage)]


def command_texts(command: Command[Any]) -> list[str]:
    """Every other text there; names of channels and nodes, and of attributes, are the app's own."""
    return [leaf for leaf in _leaves(command) if isinstance(leaf, str) and leaf]


def with_messages(command: Command[Any], found: Mapping[int, BaseMessage]) -> Command[Any]:
    """The command with messages replaced, by the `id()` of the old one; itself if none is new."""
    if all(id(message) == old for old, message in found.items()):
        return command
    return replace(command, update=_mapped(command.update, lambda leaf: found.get(id(leaf), leaf)))


def _leaves(command: Command[Any]) -> Iterator[Any]:
    yield from _of_channels(command.update)
    places = command.goto if isinstance(command.goto, list | tuple) else [command.goto]
    for place in places:
        if isinstance(place, Send):
            yield from _of_channels(place.arg)
    yield from _of_channels(command.resume)


def _of_channels(state: Any) -> Iterator[Any]:
    """What stands in a state, whose keys are the graph's own."""
    if isinstance(state, Mapping) and not _is_message(state):
        for item in state.values():
            yield from _inside(item)
    else:
        yield from _inside(state)


def _inside(value: Any) -> Iterator[Any]:
    if isinstance(value, BaseMessage | str):
        yield value
    elif isinstance(value, Mapping):
        if _is_message(value):
            yield from convert_to_messages([dict(value)])
            return
        yield from (key for key in value if isinstance(key, str) and IN_MESSAGES.says(key))
        for item in value.values():
            yield from _inside(item)
    elif isinstance(value, list | tuple | set | frozenset):
        for item in value:
            yield from _inside(item)
    elif (held := held_by(value)) is not None:
        for item in held.values():
            yield from _inside(item)


def _is_message(value: Mapping[Any, Any]) -> bool:
    return "role" in value and "content" in value


def _mapped(value: Any, leaf: Callable[[Any], Any]) -> Any:
    if isinstance(value, Mapping):
        return {key: _mapped(item, leaf) for key, item in value.items()}
    if isinstance(value, list):
        return [_mapped(item, leaf) for item in value]
    if type(value) is tuple:
        return tuple(_mapped(item, leaf) for item in value)
    return leaf(value)
