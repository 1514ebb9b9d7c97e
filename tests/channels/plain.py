"""Plain callables behind `guarded`, and tools behind `guard_tool`."""

from __future__ import annotations

import functools
import io
from collections import deque
from enum import Enum
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from PIL import Image
from pydantic import Field

from guardrail import guarded
from guardrail.errors import ConfigurationError
from guardrail.types import Message, TextPart, ToolCall
from guardrail.types import Request as Asked
from tests.channels._bodies import words
from tests.channels._tools import TOOLS, Answer, Settings
from tests.channels.contract import Channel, Kind, LibraryClass, Outcome, Refused

if TYPE_CHECKING:
    from collections.abc import Callable

    from guardrail.testing import FakeGuard

ADAPTER = "callables"
FINE = [{"role": "user", "content": "fine"}]
JOINED = ("history", "prompt", "image", "system", "tools", "response_format")


def ask(messages: Any, temperature: float = 0.5, *, model: str = "m", **options: Any) -> None:
    """What a client's method is like."""


def describe(
    prompt: Any,
    image: Any = None,
    system: Any = None,
    history: Any = (),
    tools: Any = None,
    response_format: Any = None,
) -> None:
    """What takes all by name."""


def own(messages: Any, tone: Any = None, *more: Any) -> None:
    """What has parameters of its own."""


def _call(
    kind: Kind,
    name: str,
    kwargs: Callable[[str], dict[str, Any]],
    outcome: Outcome = "judged",
    *,
    fn: Any = ask,
    wanted: Any = None,
    args: Callable[[str], tuple[Any, ...]] = lambda word: (),
) -> Channel:
    """A call of a guarded function; `run` gives what the function got."""

    async def run(guard: FakeGuard, word: str) -> str:
        got: list[Any] = []
        inner = functools.wraps(fn)(lambda *a, **k: got.append((a, shown(k), shown(a))))
        call = guarded(inner, guard=guard, messages=wanted, on_flag="raise")
        try:
            call(*args(word), **kwargs(word))
        except ConfigurationError as error:
            raise Refused(str(error)) from error
        return repr(got)

    return Channel(adapter=ADAPTER, kind=kind, name=f"{kind}, {name}", run=run, outcome=outcome)


def shown(value: Any) -> Any:
    """Of a class its schema, which is what a client sends of it."""
    values = value.values() if isinstance(value, dict) else value
    classes = [each for each in values if isinstance(each, type)]
    return [value, *(each.model_json_schema() for each in classes)]


def _beside(
    kind: Kind, name: str, value: Callable[[str], Any], outcome: Outcome = "refused"
) -> Channel:
    """A keyword that is no setting."""
    return _call(kind, name, lambda w: {"messages": FINE, "topic": value(w)}, outcome)


def _setting(name: str, given: Callable[[str], dict[str, Any]], kind: Kind = "settings") -> Channel:
    return _call(kind, name, lambda w: {"messages": FINE, **given(w)})


def _said(**row: Any) -> dict[str, Any]:
    return {"messages": [*FINE, {"role": "user", "content": "fine", **row}]}


def _calling(**call: Any) -> dict[str, Any]:
    made = {"type": "function", "id": "c", "function": {"name": "find", "arguments": "{}"}, **call}
    return {"messages": [*FINE, {"role": "assistant", "content": None, "tool_calls": [made]}]}


def _tool(**about: Any) -> list[dict[str, Any]]:
    return [{"type": "function", "function": {"name": "a", **about}}]


def _request(message: Message) -> dict[str, Any]:
    return {"messages": Asked((message,))}


CALLS = [
    _call("user's message", "messages", lambda w: _said(content=w)),
    _call("user's message", "prompt", lambda w: {"prompt": w}, fn=describe, wanted="prompt"),
    _call("user's message", "positional", lambda w: {}, args=lambda w: (w,)),
    _call("user's message", "part", lambda w: _said(content=[{"type": "text", "text": w}])),
    _call("user's message", "joined", lambda w: {"prompt": w}, fn=describe, wanted=JOINED),
    _call(
        "system prompt",
        "message",
        lambda w: {"messages": [{"role": "system", "content": w}, *FINE]},
    ),
    _call(
        "system prompt",
        "joined",
        lambda w: {"prompt": "a", "system": w},
        fn=describe,
        wanted=JOINED,
    ),
    _call("instructions", "beside", lambda w: {"messages": FINE, "instructions": w}, "refused"),
    _call(
        "history",
        "joined",
        lambda w: {"prompt": "a", "history": _said(content=w)["messages"]},
        fn=describe,
        wanted=JOINED,
    ),
    _call("history", "assistant's words", lambda w: _said(role="assistant", content=w)),
    _call("history", "refusal", lambda w: _said(role="assistant", refusal=w)),
    _call("history", "speaker's name", lambda w: _said(name=w)),
    _call(
        "history",
        "name in a joined history",
        lambda w: {"prompt": "a", "history": _said(name=w)["messages"]},
        fn=describe,
        wanted=JOINED,
    ),
    _call(
        "history",
        "name in what a callable chose",
        lambda w: _said(name=w),
        wanted=lambda bound: bound.arguments["messages"],
    ),
    _call("history", "name in one message", lambda w: {"messages": _said(name=w)["messages"][1]}),
    _call("history", "name in a tuple", lambda w: {"messages": tuple(_said(name=w)["messages"])}),
    _call(
        "history",
        "name in a request",
        lambda w: _request(Message(role="user", parts=(TextPart("a"),), name=w)),
    ),
    _call("history", "id", lambda w: _said(id=words(w))),
    _call("history", "status", lambda w: _said(status=words(w)), "refused"),
    _call("history", "cache control", lambda w: _said(cache_control={"type": words(w)}), "refused"),
    _call(
        "history",
        "id of a part",
        lambda w: _said(content=[{"type": "text", "text": "a", "id": words(w)}]),
    ),
    _call("history", "key that holds nothing", lambda w: _said(**{words(w): ""}), "refused"),
    _call("tool call", "name", lambda w: _calling(function={"name": w, "arguments": "{}"})),
    _call(
        "tool call", "arguments", lambda w: _calling(function={"name": "a", "arguments": {"a": w}})
    ),
    _call("tool call", "id", lambda w: _calling(id=words(w))),
    _call("tool call", "index", lambda w: _calling(index=words(w)), "refused"),
    _call(
        "tool call",
        "id in a request",
        lambda w: _request(
            Message(
                role="assistant",
                parts=(),
                tool_calls=(ToolCall(name="a", arguments={}, id=words(w)),),
            )
        ),
    ),
    _call("tool result", "text", lambda w: _said(role="tool", tool_call_id="c", content=w)),
    _call("tool result", "id", lambda w: _said(role="tool", tool_call_id=words(w))),
    _call(
        "tool name",
        "joined",
        lambda w: {"prompt": "a", "tools": _tool(name=w)},
        fn=describe,
        wanted=JOINED,
    ),
    _call(
        "tool description",
        "joined",
        lambda w: {"prompt": "a", "tools": _tool(description=w)},
        fn=describe,
        wanted=JOINED,
    ),
    _call(
        "tool description",
        "beside",
        lambda w: {"messages": FINE, "tools": _tool(description=w)},
        "refused",
    ),
    _call(
        "tool description",
        "older functions",
        lambda w: {"messages": FINE, "functions": [{"name": w}]},
        "refused",
    ),
    _call(
        "schema strings",
        "joined",
        lambda w: {"prompt": "a", "tools": _tool(parameters={"properties": {w: {}}})},
        fn=describe,
        wanted=JOINED,
    ),
    _call(
        "form of the answer",
        "class",
        lambda w: {
            "prompt": "a",
            "response_format": type(
                "B",
                (Answer,),
                {"__annotations__": {"b": str}, "b": Field(description=w), "__module__": __name__},
            ),
        },
        fn=describe,
        wanted=JOINED,
    ),
    _call(
        "form of the answer",
        "schema",
        lambda w: {"prompt": "a", "response_format": {"title": w}},
        fn=describe,
        wanted=JOINED,
    ),
    _call(
        "form of the answer",
        "beside",
        lambda w: {"messages": FINE, "response_format": {"a": w}},
        "refused",
    ),
    _call(
        "form of the answer",
        "text",
        lambda w: {"messages": FINE, "text": {"format": {"a": w}}},
        "refused",
    ),
    _call("retrieved text", "documents", lambda w: {"messages": FINE, "documents": [w]}, "refused"),
    _call("retrieved text", "context", lambda w: {"messages": FINE, "context": w}, "refused"),
    _call(
        "retrieved text",
        "earlier answer",
        lambda w: {"messages": FINE, "previous_response_id": w},
        "refused",
    ),
    _call(
        "prompt template",
        "chosen inside",
        lambda w: {"messages": {"template": {"text": w}}},
        wanted="messages.template.text",
    ),
    _call("prompt template", "beside", lambda w: {"messages": FINE, "chat_template": w}, "refused"),
    _setting("metadata", lambda w: {"metadata": {"a": words(w)}}, "metadata"),
    _setting("name in metadata", lambda w: {"metadata": {words(w): 1}}, "metadata"),
    _setting("deep metadata", lambda w: {"metadata": {"a": [{"b": words(w)}]}}, "metadata"),
    _setting("user", lambda w: {"user": words(w)}, "metadata"),
    _setting("safety identifier", lambda w: {"safety_identifier": words(w)}, "metadata"),
    _setting("cache key", lambda w: {"prompt_cache_key": words(w)}, "metadata"),
    _setting("stop", lambda w: {"stop": [words(w)]}),
    _setting(
        "chosen tool",
        lambda w: {"tool_choice": {"function": {"name": "a", "description": words(w)}}},
    ),
    _setting("bias", lambda w: {"logit_bias": {words(w): 1}}),
    _setting("model", lambda w: {"model": words(w)}),
    _setting("tier", lambda w: {"service_tier": words(w)}),
    _setting("settings as an object", lambda w: {"metadata": Settings(words(w))}),
    _setting("settings as a model", lambda w: {"metadata": Answer(text=words(w))}),
    _setting("query", lambda w: {"extra_query": {"system": words(w)}}),
    _setting("header", lambda w: {"extra_headers": {"x-system": words(w)}}),
    _call(
        "settings", "effort", lambda w: {"messages": FINE, "reasoning_effort": words(w)}, "refused"
    ),
    _call(
        "settings",
        "nested effort",
        lambda w: {"messages": FINE, "reasoning": {"a": words(w)}},
        "refused",
    ),
    _call(
        "settings",
        "name of an effort",
        lambda w: {"messages": FINE, "reasoning": {words(w): True}},
        "refused",
    ),
    _call(
        "settings",
        "body beside the body",
        lambda w: {"messages": FINE, "extra_body": {w: 1}},
        "refused",
    ),
    _call(
        "settings",
        "prediction",
        lambda w: {"messages": FINE, "prediction": {"content": w}},
        "refused",
    ),
    _call(
        "settings",
        "parameter of its own",
        lambda w: {"messages": FINE, "tone": w},
        "refused",
        fn=own,
    ),
    _call(
        "settings",
        "further positional words",
        lambda w: {},
        "refused",
        fn=own,
        args=lambda w: (FINE, None, w),
    ),
    _call("picture", "encoded", lambda w: {"messages": FINE, "shot": w.encode()}, "refused"),
    _call(
        "picture",
        "decoded",
        lambda w: {"messages": FINE, "shot": Image.new("RGB", (2, 2))},
        "refused",
    ),
    _call(
        "picture",
        "in metadata",
        lambda w: {"messages": FINE, "metadata": {"a": w.encode()}},
        "refused",
    ),
    _beside("settings", "keyword", lambda w: w),
    _beside("settings", "deep inside", lambda w: [[(w,)]]),
    _beside("settings", "object", Settings),
    _beside("settings", "pydantic model", lambda w: Answer(text=w)),
    _beside("settings", "namespace", lambda w: SimpleNamespace(a=w)),
    _beside("settings", "deque", lambda w: deque([w])),
    _beside("settings", "values of a mapping", lambda w: {"a": w}.values()),
    _beside("settings", "iterator", lambda w: iter([w])),
    _beside("settings", "memory view", lambda w: memoryview(w.encode())),
    _beside("settings", "enum", lambda w: Enum("Tone", {"A": w}).A),
    _beside("resource", "path", lambda w: Path(w)),
    _beside("resource", "file", lambda w: io.BytesIO(w.encode())),
]


CHANNELS: list[Channel] = [*CALLS, *TOOLS]
CLASSES: list[LibraryClass] = []
