"""Calls in a model's answer: found in its text, and kept out of what people read.

A tokenizer with a `response_template` says itself how its model writes calls. Without one, the
forms of the common templates are known: `<tool_call>{...}</tool_call>` (Hermes, Qwen, SmolLM),
`[TOOL_CALLS] [{...}]` (Mistral) and a bare object, after `<|python_tag|>` or alone (Llama). A call
that cannot be read stays in the text.
"""

from __future__ import annotations

import json
import logging
import re
import uuid
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from guardrail.errors import ConfigurationError, UnsupportedContentError, UnsupportedModelError
from guardrail.types import Message, Request, TextPart, ToolCall

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from guardrail.model.constrained import CallForm
    from guardrail.model.encode import Encoder

log = logging.getLogger("guardrail")

MARKERS = ("<tool_call>", "[TOOL_CALLS]", "<|python_tag|>")

# Around a call that a template writes: from its mark on, and to the end of the mark or the list.
_BEFORE = re.compile(rf"(?:{'|'.join(map(re.escape, MARKERS))})\s*\[?\s*\Z")
_AFTER = re.compile(r"\s*(?:</tool_call>|\])")
_PROBE = "look_it_up"

_CLOSED = re.compile(r"<tool_call>(.*?)(?:</tool_call>|\Z)", re.DOTALL)


class CallReader:
    """Reads one answer of a model that was offered tools, token by token.

    `push` lets text through up to where a call may begin; `rest` is what was held back, for
    `split`.
    """

    def __init__(self, tokenizer: Any, tools: Sequence[Mapping[str, Any]]) -> None:
        self._tokenizer, self._tools = tokenizer, tools
        templated = getattr(tokenizer, "response_template", None) is not None
        marks = () if templated else (*MARKERS, "</tool_call>")
        pairs = dict(zip(tokenizer.all_special_ids, tokenizer.all_special_tokens, strict=True))
        added = tokenizer.added_tokens_decoder.items()
        pairs |= {token: str(text) for token, text in added if text.special}
        unread = {token for token, text in pairs.items() if text not in marks}
        self._unread = {tokenizer.eos_token_id, tokenizer.pad_token_id} if templated else unread
        self._held, self._begun, self._calling = "", False, templated

    def decode(self, ids: Sequence[int]) -> str:
        """Tokens to text with the marks of calls in it, which some models make special tokens."""
        text: Any = self._tokenizer.decode(
            [token for token in ids if token not in self._unread],
            skip_special_tokens=False,
            clean_up_tokenization_spaces=False,
        )
        return str(text)

    def push(self, text: str) -> str:
        """The part of the text so far that no call can claim any more."""
        self._held += text
        if not self._begun and self._held.strip():
            self._begun = True
            self._calling = self._calling or self._held.lstrip()[0] in "{["
        if self._calling or not self._begun:
            return ""
        found = [at for marker in MARKERS if (at := self._held.find(marker)) >= 0]
        self._calling = bool(found)
        cut = min(found) if found else len(self._held) - _tail(self._held)
        cut = len(self._held[:cut].rstrip())  # white space belongs to what follows it
        out, self._held = self._held[:cut], self._held[cut:]
        return out

    def rest(self) -> str:
        """What was held back."""
        out, self._held = self._held, ""
        return out

    def split(self, held: str) -> tuple[str, tuple[ToolCall, ...]]:
        """What people read of a text, and the calls in it."""
        return split_calls(held, self._tools, self._tokenizer)


def callable_tools(
    choice: str | None, tools: Sequence[Mapping[str, Any]]
) -> tuple[Mapping[str, Any], ...]:
    """Those of a request's tools that its answer may call, by its `tool_choice`.

    Raises:
        ConfigurationError: a call is to be forced, and there is no such tool.
    """
    if choice in (None, "auto", "none"):
        return tuple(tools)
    if not tools:
        raise ConfigurationError(
            f"tool_choice={choice!r} forces a call, and the request has no tools; pass `tools`"
        )
    if choice == "required":
        return tuple(tools)
    chosen = tuple(tool for tool in tools if tool["function"]["name"] == choice)
    if not chosen:
        names = ", ".join(str(tool["function"]["name"]) for tool in tools)
        raise ConfigurationError(
            f"tool_choice={choice!r} names no tool of the request, which has {names}; `auto`, "
            "`none` and `required` name none"
        )
    return chosen


def call_form(encoder: Encoder, tokenizer: Any, tools: Sequence[Mapping[str, Any]]) -> CallForm:
    """How a model writes a call: as its chat template shows one that was made earlier.

    Where the template shows none that can be read, it is a bare object.

    Raises:
        UnsupportedModelError: no form is known that this model's calls are read in.
    """
    from guardrail.model.constrained import CallForm

    for form in (_shown_form(encoder, tokenizer, tools), CallForm()):
        sample = json.dumps({"name": _PROBE, form.key: {}})
        probe = {"function": {"name": _PROBE}}
        if split_calls(f"{form.before}{sample}{form.after}", [probe], tokenizer)[1]:
            return form
    raise UnsupportedModelError(
        "this model's calls are read by a template of its own, in a form that no answer can be "
        "held to; ask with tool_choice='auto', or without tools"
    )


def _shown_form(encoder: Encoder, tokenizer: Any, tools: Sequence[Mapping[str, Any]]) -> CallForm:
    """The form of a call in a chat, as the model's template writes it."""
    from guardrail.model.constrained import CallForm

    call = ToolCall(name=_PROBE, arguments={"x": 1}, id="a1b2c3d4e")  # as Mistral's must be
    made = Message(role="assistant", parts=(), tool_calls=(call,))
    asked = Message(role="user", parts=(TextPart("?"),))
    try:
        prompt = encoder.prompt(Request(messages=(asked, made), tools=tuple(tools)))
    except UnsupportedContentError:  # a template that has no place for this chat
        return CallForm()
    text: Any = tokenizer.decode(prompt.ids, skip_special_tokens=False)
    at = text.rfind("{", 0, max(text.rfind(f'"{_PROBE}"'), 0))
    try:
        written, end = json.JSONDecoder().raw_decode(text, at)
    except ValueError:
        return CallForm()
    key = "parameters" if "parameters" in written else "arguments"
    before, after = _BEFORE.search(text[:at]), _AFTER.match(text[end:])
    opened, closed = (before[0] if before else ""), (after[0] if after else "")
    if not opened:
        return CallForm(key=key)
    return CallForm(opened, closed, key, marks=(*MARKERS, "</tool_call>"))


def _tail(text: str) -> int:
    """Length of the longest end of `text` that may begin a marker."""
    return max(
        (n for marker in MARKERS for n in range(1, len(marker)) if text.endswith(marker[:n])),
        default=0,
    )


def split_calls(
    text: str, tools: Sequence[Mapping[str, Any]], tokenizer: Any = None
) -> tuple[str, tuple[ToolCall, ...]]:
    """What people read of an answer, and the calls in it; all of it is text if none can be read."""
    if getattr(tokenizer, "response_template", None) is not None:
        return _by_template(text, tools, tokenizer)
    names = {str(tool["function"]["name"]) for tool in tools}
    if "<tool_call>" in text:
        return _marked(text)
    for marker in MARKERS[1:]:
        before, found, after = text.partition(marker)
        if found and (calls := _objects(after)):
            return before.rstrip(), calls
    calls = _objects(text)
    if calls and all(call.name in names for call in calls):
        return "", calls
    return text, ()


def _by_template(
    text: str, tools: Sequence[Mapping[str, Any]], tokenizer: Any
) -> tuple[str, tuple[ToolCall, ...]]:
    """As the tokenizer's own template reads it."""
    try:
        message = tokenizer.parse_response(text, prefix="", tools=[dict(tool) for tool in tools])
        calls = tuple(_call(call.get("function", call)) for call in message.get("tool_calls") or ())
    except Exception:  # the template is the model's, and may meet anything: its text is not lost
        log.warning("the tokenizer's response template cannot read this answer; it stays text")
        return text, ()
    read = tuple(call for call in calls if call is not None)
    return (str(message.get("content") or ""), read) if read else (text, ())


def _marked(text: str) -> tuple[str, tuple[ToolCall, ...]]:
    calls: list[ToolCall] = []
    rest: list[str] = []
    end = 0
    for block in _CLOSED.finditer(text):
        read = _objects(block[1])
        if read:
            rest.append(text[end : block.start()])
            calls += read
            end = block.end()
    rest.append(text[end:])
    return "".join(rest).rstrip() if calls else text, tuple(calls)


def _objects(text: str) -> tuple[ToolCall, ...]:
    """Calls written as one JSON object, several after each other, or a list of them."""
    found = []
    try:
        for value in _values(text):
            for item in value if isinstance(value, list) else [value]:
                call = _call(item)
                if call is None:
                    return ()
                found.append(call)
    except (ValueError, RecursionError):
        return ()
    return tuple(found)


def _values(text: str) -> Iterator[Any]:
    decoder, at = json.JSONDecoder(), 0
    text = text.strip()
    while at < len(text):
        value, at = decoder.raw_decode(text, at)
        yield value
        while at < len(text) and text[at] in " \t\r\n;,":
            at += 1


def _call(value: object) -> ToolCall | None:
    if not isinstance(value, Mapping) or not isinstance(value.get("name"), str):
        return None
    arguments = value.get("arguments", value.get("parameters", {}))
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments)
        except ValueError:
            return None
    if not isinstance(arguments, dict) or not _is_json(arguments):
        return None
    label = value.get("id")
    name = str(value["name"])
    return ToolCall(
        name=name,
        arguments=arguments,
        id=label if isinstance(label, str) and label else f"call_{uuid.uuid4().hex[:24]}",
    )


def _is_json(value: object) -> bool:
    try:
        json.dumps(value, allow_nan=False)
    except ValueError:
        return False
    return True
