"""Messages of LangChain's with a word in each place that they have, and who must see it."""

from __future__ import annotations

import json
from base64 import b64encode
from typing import TYPE_CHECKING, Any

from langchain_core.messages import (
    AIMessage,
    AIMessageChunk,
    ChatMessage,
    FunctionMessage,
    HumanMessage,
    RemoveMessage,
    SystemMessage,
    ToolMessage,
)
from pydantic import BaseModel

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.channels.contract import Kind

Messages = list[Any]
CALL = {"name": "find", "args": {}, "id": "c1", "type": "tool_call"}
ASKED = AIMessage("", tool_calls=[CALL])


def said(content: Any, **more: Any) -> Messages:
    return [HumanMessage(content, **more)]


def answered(*content: Any, **more: Any) -> Messages:
    return [HumanMessage("hi"), AIMessage(*content, **more), HumanMessage("and?")]


def block(**block: Any) -> Messages:
    """An answer with a block of content."""
    return answered([block, {"type": "text", "text": "so"}])


def text(**more: Any) -> Messages:
    return said([{"type": "text", "text": "hi", **more}])


def resulted(content: Any, **more: Any) -> Messages:
    return [HumanMessage("hi"), ASKED, ToolMessage(content, tool_call_id="c1", **more)]


def called(**more: Any) -> Messages:
    return answered("", tool_calls=[{**CALL, **more}])


def keyword(**more: Any) -> Messages:
    return said("hi", additional_kwargs=more)


def of_answer(**more: Any) -> Messages:
    return answered("so", additional_kwargs=more)


def raw_call(*, beside: dict[str, Any] | None = None, **function: Any) -> Messages:
    """A call as OpenAI writes it, which some classes send on as it is."""
    whole = {"name": "find", "arguments": "{}", **function}
    call = {"id": "c1", "type": "function", "function": whole, **(beside or {})}
    return answered("", tool_calls=[CALL], additional_kwargs={"tool_calls": [call]})


def source(**source: Any) -> Messages:
    return said([{"type": "document", "source": {"type": "text", "data": "hi", **source}}])


def cited(**citation: Any) -> Messages:
    return block(type="text", text="hi", annotations=[{"type": "citation", **citation}])


def changed(message: Any, **changes: Any) -> Messages:
    """A message with fields that were set behind LangChain's validation."""
    return [HumanMessage("hi"), message.model_copy(update=changes), HumanMessage("and?")]


class Noted(BaseModel):
    """Anything of the app's that stands beside a message."""

    note: str


JUDGED: dict[str, tuple[Kind, Callable[[str], Messages]]] = {
    "text": ("user's message", said),
    "a text block": ("user's message", lambda w: said([{"type": "text", "text": w}])),
    "a str among blocks": ("user's message", lambda w: said([w])),
    "a document": (
        "user's message",
        lambda w: said([{"type": "text-plain", "text": w, "mime_type": "text/plain"}]),
    ),
    "a document of Anthropic's": ("user's message", lambda w: source(data=w)),
    "a wrapped block": (
        "user's message",
        lambda w: said([{"type": "non_standard", "value": {"type": "text", "text": w}}]),
    ),
    "a document's title": (
        "metadata",
        lambda w: said([{"type": "text-plain", "text": "hi", "title": w}]),
    ),
    "a document's titles": (
        "metadata",
        lambda w: said([{"type": "text-plain", "text": "hi", "title": [w]}]),
    ),
    "a document's context": (
        "metadata",
        lambda w: said([{"type": "text-plain", "text": "hi", "context": w}]),
    ),
    "a document's id": (
        "metadata",
        lambda w: said([{"type": "text-plain", "text": "hi", "id": f"see {w}"}]),
    ),
    "a document's type of media": (
        "metadata",
        lambda w: said([{"type": "text-plain", "text": "hi", "mime_type": f"see {w}"}]),
    ),
    "beside a document's words": ("metadata", lambda w: source(note=w)),
    "a name": ("metadata", lambda w: said("hi", name=w)),
    "an older name": ("metadata", lambda w: keyword(name=w)),
    "a second name": ("metadata", lambda w: said("hi", name="eve", additional_kwargs={"name": w})),
    "an id": ("metadata", lambda w: said("hi", id=f"see {w}")),
    "an unknown keyword": ("metadata", lambda w: keyword(note=w)),
    "an unknown keyword, deep": ("metadata", lambda w: keyword(note={"deep": [w]})),
    "a key of a keyword": ("metadata", lambda w: keyword(**{f"see {w}": 1})),
    "a key of one word": ("metadata", lambda w: keyword(**{w: 1})),
    "a deep key of one word": ("metadata", lambda w: keyword(note={w: True})),
    "a keyword's model": ("metadata", lambda w: keyword(note=Noted(note=w))),
    "a keyword's set": ("metadata", lambda w: keyword(note={w})),
    "a keyword in the place of a cipher": ("metadata", lambda w: keyword(signature=f"see {w}")),
    "a keyword called data": ("metadata", lambda w: keyword(note={"data": w})),
    "an attribute of the app's": ("metadata", lambda w: said("hi", note=w)),
    "a block's id": ("metadata", lambda w: text(id=f"see {w}")),
    "a wrapped block's id": (
        "metadata",
        lambda w: said(
            [{"type": "non_standard", "id": f"see {w}", "value": {"type": "text", "text": "hi"}}]
        ),
    ),
    "a block's place": ("metadata", lambda w: text(index=f"see {w}")),
    "a block's status": ("metadata", lambda w: text(status=f"see {w}")),
    "a block's extras": ("metadata", lambda w: text(extras={"phase": f"see {w}"})),
    "a cache's hint": (
        "metadata",
        lambda w: text(cache_control={"type": "ephemeral", "note": w}),
    ),
    "an annotation": ("metadata", lambda w: cited(title=w)),
    "an annotation's address": ("metadata", lambda w: cited(url=f"see {w}")),
    "an annotation's extras": ("metadata", lambda w: cited(extras={"file_name": w})),
    "an annotation of a provider's": (
        "metadata",
        lambda w: block(
            type="text",
            text="hi",
            annotations=[{"type": "non_standard_annotation", "value": {"quote": w}}],
        ),
    ),
    "a citation": (
        "metadata",
        lambda w: block(type="text", text="hi", citations=[{"cited_text": w}]),
    ),
    "a role": ("instructions", lambda w: [ChatMessage(w, role="developer"), HumanMessage("hi")]),
    "a system message": ("system prompt", lambda w: [SystemMessage(w), HumanMessage("hi")]),
    "a developer's message as a mapping": (
        "instructions",
        lambda w: [{"role": "developer", "content": w}, HumanMessage("hi")],
    ),
    "an older function's result": (
        "tool result",
        lambda w: [HumanMessage("hi"), FunctionMessage(w, name="find")],
    ),
    "a notification's words": (
        "notification",
        lambda w: said(w, additional_kwargs={"lc_source": "async_subagent"}),
    ),
    "a notification's data": (
        "notification",
        lambda w: keyword(lc_source="async_subagent", lc_data={"task_id": "t_42", "summary": w}),
    ),
    "an answer": ("history", answered),
    "reasoning": ("history", lambda w: block(type="reasoning", reasoning=w)),
    "reasoning's extras": (
        "history",
        lambda w: block(type="reasoning", reasoning="hm", extras={"content": [{"text": w}]}),
    ),
    "reasoning's summary": (
        "history",
        lambda w: block(type="reasoning", summary=[{"type": "summary_text", "text": w}]),
    ),
    "thinking": ("history", lambda w: block(type="thinking", thinking=w, signature="s")),
    "a signature that is none": (
        "history",
        lambda w: block(type="thinking", thinking="hm", signature=f"see {w}"),
    ),
    "older reasoning": ("history", lambda w: of_answer(reasoning_content=w)),
    "a refusal": ("history", lambda w: answered("", additional_kwargs={"refusal": w})),
    "a refusal block": ("history", lambda w: block(type="refusal", refusal=w)),
    "a refusal's extras": (
        "history",
        lambda w: block(type="refusal", refusal="No.", extras={"explanation": w}),
    ),
    "a recording's words": ("history", lambda w: of_answer(audio={"id": "a", "transcript": w})),
    "a recording's id": ("history", lambda w: of_answer(audio={"id": f"see {w}"})),
    "a recording that is words": ("history", lambda w: of_answer(audio=w)),
    "beside a recording": ("history", lambda w: of_answer(audio={"id": "a", "note": w})),
    "what was read of an answer": ("history", lambda w: of_answer(parsed=Noted(note=w))),
    "a call's name": ("tool call", lambda w: called(name=w)),
    "a call's arguments": ("tool call", lambda w: called(args={"q": w})),
    "a call's id": (
        "tool call",
        lambda w: [
            HumanMessage("hi"),
            AIMessage("", tool_calls=[{**CALL, "id": f"see {w}"}]),
            ToolMessage("so", tool_call_id=f"see {w}"),
        ],
    ),
    "beside a call": (
        "tool call",
        lambda w: changed(ASKED, tool_calls=[{**CALL, "extras": {"note": w}}]),
    ),
    "a broken call": (
        "tool call",
        lambda w: answered(
            "", invalid_tool_calls=[{"name": "find", "args": w, "id": "c1", "error": None}]
        ),
    ),
    "what is wrong with a call": (
        "tool call",
        lambda w: answered(
            "", invalid_tool_calls=[{"name": "find", "args": "{", "id": "c1", "error": w}]
        ),
    ),
    "a streamed call": (
        "tool call",
        lambda w: [
            HumanMessage("hi"),
            AIMessageChunk(
                "",
                tool_call_chunks=[
                    {"name": "find", "args": json.dumps({"q": w}), "id": "c1", "index": 0}
                ],
            ),
            HumanMessage("and?"),
        ],
    ),
    "a call's block": (
        "tool call",
        lambda w: block(type="tool_use", id="c", name="f", input={"q": w}),
    ),
    "beside a call's block": (
        "tool call",
        lambda w: block(type="tool_use", id="c", name="f", input={}, note=w),
    ),
    "a call's block, in the other key": (
        "tool call",
        lambda w: block(type="tool_use", id="c", name="f", input={}, args={"q": w}),
    ),
    "the place of a call's block": (
        "tool call",
        lambda w: block(type="tool_call", id="c", name="f", args={}, index=f"see {w}"),
    ),
    "a call's block of the standard, its extras": (
        "tool call",
        lambda w: block(type="tool_call", id="c", name="f", args={}, extras={"toolset_name": w}),
    ),
    "a provider's own record of a call": ("tool call", lambda w: raw_call(arguments=w)),
    "a key that a record of a call has twice": (
        "tool call",
        lambda w: raw_call(arguments=f'{{"q": "{w}", "q": 1}}'),
    ),
    "beside the arguments of a record": ("tool call", lambda w: raw_call(note=w)),
    "beside a record of a call": ("tool call", lambda w: raw_call(beside={"note": w})),
    "a record's second name": ("tool call", lambda w: raw_call(beside={"name": w})),
    "a record's place": ("tool call", lambda w: raw_call(beside={"index": f"see {w}"})),
    "a record that is none": ("tool call", lambda w: of_answer(tool_calls=[{"custom": w}])),
    "a record that is words": ("tool call", lambda w: of_answer(tool_calls=[w])),
    "an older call": (
        "tool call",
        lambda w: of_answer(function_call={"name": "f", "arguments": json.dumps({"q": w})}),
    ),
    "a tool's result": ("tool result", resulted),
    "a tool's result in blocks": (
        "tool result",
        lambda w: resulted([{"type": "text", "text": w}]),
    ),
    "a result's name": ("tool result", lambda w: resulted("so", name=w)),
    "a result's id": ("tool result", lambda w: resulted("so", id=f"see {w}")),
    "a result's keyword": ("tool result", lambda w: resulted("so", additional_kwargs={"n": w})),
    "a message as a mapping": ("user's message", lambda w: [{"role": "user", "content": w}]),
    "beside a message as a mapping": (
        "metadata",
        lambda w: [{"role": "user", "content": "hi", "note": w}],
    ),
    "a message as a pair": ("user's message", lambda w: [("human", w)]),
}
"""Messages that the guard must see, by what is in them."""

URL = "data:image/png;base64,AAAA"
REFUSED: dict[str, tuple[Kind, Callable[[str], Messages]]] = {
    "a recording": (
        "user's message",
        lambda w: said([{"type": "audio", "base64": w, "mime_type": "audio/wav"}]),
    ),
    "a file": (
        "user's message",
        lambda w: said([{"type": "file", "base64": w, "mime_type": "application/pdf"}]),
    ),
    "a file somewhere else": ("user's message", lambda w: said([{"type": "file", "url": w}])),
    "a file of a provider's": (
        "user's message",
        lambda w: said([{"type": "file", "file_id": w}]),
    ),
    "a document in bytes": (
        "user's message",
        lambda w: said(
            [{"type": "text-plain", "text": "hi", "base64": b64encode(w.encode()).decode()}]
        ),
    ),
    "a document somewhere else": (
        "user's message",
        lambda w: said([{"type": "text-plain", "text": "hi", "url": f"https://x.invalid/{w}"}]),
    ),
    "a document of a provider's": (
        "user's message",
        lambda w: said([{"type": "text-plain", "text": "hi", "file_id": w}]),
    ),
    "a document without words": (
        "user's message",
        lambda w: said([{"type": "text-plain", "url": f"https://x.invalid/{w}"}]),
    ),
    "a picture's caption": (
        "metadata",
        lambda w: said([{"type": "image", "url": URL, "caption": w}]),
    ),
    "a search result": (
        "retrieved text",
        lambda w: said([{"type": "search_result", "title": w, "source": "x", "content": []}]),
    ),
    "a block that nobody knows": ("user's message", lambda w: said([{"type": w}])),
    "a call that a server made": (
        "tool call",
        lambda w: block(type="server_tool_call", id="s", name="search", args={"q": w}),
    ),
    "a piece of a call that a server made": (
        "tool call",
        lambda w: block(type="server_tool_call_chunk", id="s", name="search", args=w),
    ),
    "the result of a call that a server made": (
        "tool result",
        lambda w: block(type="server_tool_result", tool_call_id="s", status="success", output=w),
    ),
    "thoughts that were held back": ("history", lambda w: block(type="redacted_thinking", data=w)),
    "bytes in a keyword": ("metadata", lambda w: keyword(note=w.encode())),
    "an object in a keyword": ("metadata", lambda w: keyword(note=object())),
    "a role that is none": ("user's message", lambda w: [ChatMessage("hi", role=w)]),
    "a message that takes another out": ("metadata", lambda w: [RemoveMessage(id=w)]),
}
"""Messages that no guard can read."""

NEVER: dict[str, tuple[Kind, Callable[[str], Messages]]] = {
    "how an answer came about": (
        "metadata",
        lambda w: answered("so", response_metadata={"note": w, "model_name": w}),
    ),
    "a result's artifact": ("metadata", lambda w: resulted("so", artifact={"raw": w})),
}
"""What LangChain keeps beside messages for apps alone."""
