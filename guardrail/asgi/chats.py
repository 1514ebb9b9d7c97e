"""JSON bodies in the forms of the OpenAI API: chats, responses and completions."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from guardrail.asgi.chat_settings import FORMATS, setting_words
from guardrail.errors import DetectorError, GuardrailError, UnsupportedContentError
from guardrail.front.chats import said_apart, with_caution
from guardrail.front.consequences import highest
from guardrail.inputs.canonical import require_one_reading
from guardrail.inputs.labels import shown_labels
from guardrail.inputs.parts import as_mapping, refuse_unknown
from guardrail.inputs.threads import read_apart

if TYPE_CHECKING:
    from guardrail.front.consequences import Checker
    from guardrail.policy import Policy
    from guardrail.types import Verdict

_SOURCES = ("messages", "input", "prompt")
_TOOLS = frozenset({"tools", "functions"})
_FREE_FORMATS: tuple[object, ...] = (
    None,
    {},
    {"type": "text"},
    {"type": "json_object"},
    {"format": {"type": "text"}},
    {"format": {"type": "json_object"}},
)
_CALL = frozenset({"type", "id", "status", "call_id"})
_PHASES = (None, "commentary", "final_answer")  # what an earlier answer was; no words

Body = Mapping[str, Any]
Tool = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Content:
    """What is checked: `value`, the tools that come with it, and texts that go before it.

    Words `apart` are no part of the chat (they stand in settings, in an address): they have a check
    of their own, as something a user says, and so have names and ids that are more than labels.
    `cautioned` makes the body with words of caution in it; None: there is no place for them.
    """

    value: Any
    tools: Sequence[Mapping[str, object]] = ()
    beside: Sequence[str] = ()
    apart: Sequence[str] = ()
    cautioned: Callable[[str], bytes | None] = lambda words: None

    def asked(self, *, with_tools: bool) -> tuple[Any, dict[str, Any]]:
        """What the guard is asked; tools are text for a guard whose model knows none."""
        value, beside = self.value, list(self.beside)
        if self.tools and not with_tools:
            beside.append(json.dumps(self.tools, ensure_ascii=False))
        if beside:
            value = with_caution(value, "\n\n".join(beside))
            if value is None:
                raise UnsupportedContentError(
                    "tools and response formats need a list of messages to go with"
                )
        return value, {"tools": self.tools} if self.tools and with_tools else {}

    async def judged(
        self, guard: Checker, *, one_reading: Policy | None = None, **options: Any
    ) -> Verdict:
        """The verdict, the highest where something is judged apart; a flag is no error.

        Tools are judged as the model would read them, or as text if its template knows none.

        Args:
            guard: who judges.
            one_reading: the rules under which pictures must be the same to all decoders.
            options: those of the guard's `acheck`.

        Raises:
            GuardrailError: it cannot be read or judged, or there is no room or time for it.
        """
        value, tools = self.asked(with_tools=getattr(guard, "supports_tools", False))
        try:
            if one_reading is not None:
                await read_apart(partial(require_one_reading, value, one_reading))
            verdicts = [await guard.acheck(value, **tools, **options)]
            if words := [*shown_labels(self.value, self.tools), *self.apart]:
                verdicts.append(await guard.acheck(said_apart(words), **options))
            return highest(verdicts, guard.policy)
        except GuardrailError:
            raise
        except Exception as error:  # a border: whatever breaks inside the guard is an outage
            raise DetectorError("the check failed") from error


def read_chat(body: object, unchecked: Collection[str]) -> Content:
    """The messages, input or prompt of a request to a model.

    Raises:
        UnsupportedContentError: none or several of them, or other keys than settings.
    """
    if not isinstance(body, Mapping):
        raise UnsupportedContentError(f"the body is a {type(body).__name__}, no JSON object")
    sources = [key for key in _SOURCES if body.get(key) is not None]
    if len(sources) != 1:
        raise UnsupportedContentError(
            f"the body needs exactly one of {', '.join(_SOURCES)}; it has "
            f"{' and '.join(sources) or 'none'}"
        )
    source = sources[0]
    read_here = {source, *_TOOLS, *(["instructions"] if source == "input" else ())}
    words = setting_words(body, read_here | {*unchecked})
    value, tools = _READ[source](body), _tools(body)
    beside = [text for key in FORMATS if (text := format_text(key, body.get(key)))]
    # A response's items have ids of their own, which are not in the chat that they make.
    apart = shown_labels(body[source], tools) if source == "input" else []

    def cautioned(words: str) -> bytes | None:
        if source == "input":
            head = body.get("instructions")
            changed: dict[str, object] = {"instructions": f"{words}\n\n{head}" if head else words}
        else:
            changed = {source: with_caution(body[source], words)}
        return None if None in changed.values() else json.dumps({**body, **changed}).encode()

    return Content(value, tools, beside, [*apart, *words], cautioned)


def _prompt(body: Body) -> str:
    prompt = body["prompt"]
    if not isinstance(prompt, str):
        raise UnsupportedContentError("prompt must be a str; send one prompt per request")
    return prompt


def input_chat(value: object, instructions: object = None) -> Any:
    """The `input` and `instructions` of a response as a chat, or as the prompt that it is.

    Calls that follow each other, or words of an assistant's, are one turn, as they are in a chat.

    Raises:
        UnsupportedContentError: another type, or an item that is not read.
    """
    chat: Any = value
    if isinstance(value, list):
        chat = []
        for i, item in enumerate(value):
            message = _item(item, f"input[{i}]")
            before = chat[-1] if chat and item.get("type") == "function_call" else {}
            calls = before.get("tool_calls") or []
            if before.get("role") == "assistant" and isinstance(calls, list):
                chat[-1] = {**before, "tool_calls": [*calls, *message["tool_calls"]]}
            else:
                chat.append(message)
    elif not isinstance(value, str):
        raise UnsupportedContentError("input must be a str or a list of items")
    if not instructions:
        return chat
    if not isinstance(instructions, str):
        raise UnsupportedContentError("instructions must be a str")
    messages = [{"role": "user", "content": chat}] if isinstance(chat, str) else chat
    return with_caution(messages, instructions) or messages


def function_tools(given: object, what: str = "tools", *, bare: bool = False) -> list[Tool]:
    """Tools of chats or responses in the form of chats; `bare` ones are the older functions.

    Raises:
        UnsupportedContentError: tools of another type, of which nobody knows what a model is shown.
    """
    tools = given or []
    if not isinstance(tools, list):
        raise UnsupportedContentError(f"{what} must be a list")
    return [_tool(tool, f"{what}[{i}]", bare=bare) for i, tool in enumerate(tools)]


def _item(item: object, what: str) -> dict[str, Any]:
    """An item of a response's input as a message; the calls of functions have a form of their own.

    Items that name something outside the body (a file, an earlier answer) are refused.
    """
    match as_mapping(item, what):
        case {"type": "function_call", "name": name, "call_id": label, "arguments": arguments}:
            refuse_unknown(as_mapping(item, what), _CALL | {"name", "arguments"}, what)
            function = {"name": name, "arguments": arguments}
            call = {"type": "function", "id": label, "function": function}
            return {"role": "assistant", "content": None, "tool_calls": [call]}
        case {"type": "function_call_output", "output": output, "call_id": label, **more}:
            refuse_unknown(as_mapping(item, what), _CALL | {"output", "name"}, what)
            named = {} if more.get("name") is None else {"name": more["name"]}
            return {"role": "tool", "content": output, "tool_call_id": label, **named}
        case {"role": _} as message:
            if message.get("phase") not in _PHASES:
                raise UnsupportedContentError(f"{what} has a phase that is none of {_PHASES[1:]}")
            return {str(key): held for key, held in message.items() if key != "phase"}
        case other:
            raise UnsupportedContentError(
                f"{what} has the type {str(other.get('type'))[:80]!r}; accepted: message, "
                "function_call, function_call_output; leave others out"
            )


def _tools(body: Body) -> list[Tool]:
    """The tools in one form: those of chats, of responses and the older functions."""
    functions = function_tools(body.get("functions"), "functions", bare=True)
    return [*functions, *function_tools(body.get("tools"))]


def _tool(value: object, what: str, *, bare: bool) -> Tool:
    tool = {str(key): item for key, item in as_mapping(value, what).items()}
    kind = "function" if bare else tool.get("type")
    if kind != "function":
        raise UnsupportedContentError(
            f"{what} has the type {str(kind)[:80]!r}; what such a tool shows to the model cannot "
            "be checked: accepted are functions"
        )
    if "function" in tool:
        return tool
    tool.pop("type", None)
    return {"type": "function", "function": tool}


def format_text(key: str, value: object) -> str:
    """What of a response format a model is shown, as text; `key` is where the format stands."""
    if key == "text" and isinstance(value, Mapping):
        value = {key: item for key, item in value.items() if key != "verbosity"}
    return "" if value in _FREE_FORMATS else json.dumps(value, ensure_ascii=False)


_READ: Mapping[str, Callable[[Body], Any]] = {
    "messages": lambda body: body["messages"],
    "input": lambda body: input_chat(body["input"], body.get("instructions")),
    "prompt": _prompt,
}
