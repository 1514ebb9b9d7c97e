"""Tools behind `guard_tool`, with a word planted in what they get and give."""

from __future__ import annotations

import base64
import io
import traceback
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from PIL import Image
from pydantic import BaseModel

from guardrail import guard_tool
from tests.channels._bodies import words
from tests.channels.contract import Channel, Kind, Outcome, Withheld

if TYPE_CHECKING:
    from collections.abc import Callable

    from guardrail.testing import FakeGuard

ADAPTER = "callables"


class Answer(BaseModel):
    """A model in an argument or a result."""

    text: str = "fine"


@dataclass
class Settings:
    """A dataclass in one."""

    system: str


def _ran(
    kind: Kind,
    name: str,
    result: Callable[[str], Any] = lambda word: "fine",
    outcome: Outcome = "judged",
    *,
    args: Callable[[str], tuple[Any, ...]] = lambda word: ("fine",),
    kwargs: Callable[[str], dict[str, Any]] = lambda word: {},
    **options: Any,
) -> Channel:
    """A call of a guarded tool; `run` gives what the tool got, and what its model is shown."""

    async def run(guard: FakeGuard, word: str) -> str:
        got: list[Any] = []

        def tool(query: Any, *more: Any, **named: Any) -> Any:
            got.append((query, more, named))
            made = result(word)
            if isinstance(made, Exception):
                raise made
            return made

        guarding = guard_tool(tool, guard=guard, **{"name": "find", **options})
        try:
            shown = guarding(*args(word), **kwargs(word))
        except Exception as error:  # what a framework would show
            if type(error) not in (RuntimeError, ExceptionGroup, KeyError):
                raise
            shown = "\n".join([repr(error), *traceback.format_exception(error)])
        if isinstance(shown, str) and shown.startswith("["):
            raise Withheld
        return repr(got) + repr(shown)

    return Channel(
        adapter=ADAPTER, kind=kind, name=f"tool: {kind}, {name}", run=run, outcome=outcome
    )


def _noted(word: str) -> Exception:
    error = RuntimeError("no")
    error.add_note(word)
    return error


def _caused(word: str) -> Exception:
    error = RuntimeError("no")
    error.__cause__ = KeyError(word)
    return error


PNG = {"type": "image", "mimeType": "image/png"}


def _picture() -> str:
    file = io.BytesIO()
    Image.new("RGB", (2, 2)).save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


TOOLS = [
    _ran("tool call", "argument", args=lambda w: (w,)),
    _ran("tool call", "deep argument", args=lambda w: ({"a": [(w,)]},)),
    _ran("tool call", "key of an argument", args=lambda w: ({w: 1},)),
    _ran("tool call", "model", args=lambda w: (Answer(text=w),)),
    _ran("tool call", "further arguments", args=lambda w: ("a", w)),
    _ran("tool call", "keyword", kwargs=lambda w: {"more": w}),
    _ran("tool call", "name of a keyword", kwargs=lambda w: {w: 1}),
    _ran("tool call", "unread object", args=lambda w: (iter([w]),), outcome="refused"),
    _ran("tool call", "bytes", args=lambda w: (w.encode(),), outcome="refused"),
    _ran("tool result", "text", lambda w: w),
    _ran("tool result", "deep", lambda w: {"a": [w]}),
    _ran("tool result", "key", lambda w: {w: None}),
    _ran("tool result", "model", lambda w: Answer(text=w)),
    _ran("tool result", "dataclass", Settings),
    _ran("tool result", "block", lambda w: [{"type": "text", "text": w}]),
    _ran(
        "tool result",
        "beside a block",
        lambda w: [{"type": "text", "text": "a", "annotations": {"b": w}}],
    ),
    _ran("tool result", "type of a block", lambda w: [{"type": w, "text": "a"}]),
    _ran("tool result", "beside a picture", lambda w: [{**PNG, "data": _picture(), "note": w}]),
    _ran(
        "tool result",
        "media type of a picture",
        lambda w: [{**PNG, "data": _picture(), "mimeType": w}],
        "never",
    ),
    _ran(
        "tool result",
        "detail of a picture of chats",
        lambda w: [
            {
                "type": "image_url",
                "image_url": {"url": f"data:image/png;base64,{_picture()}", "detail": words(w)},
            }
        ],
        "refused",
    ),
    _ran(
        "tool result",
        "id of a picture of chats",
        lambda w: [
            {
                "type": "image_url",
                "image_url": f"data:image/png;base64,{_picture()}",
                "id": words(w),
            }
        ],
    ),
    _ran("tool result", "unread bytes", lambda w: w.encode(), "refused"),
    _ran(
        "resource", "text", lambda w: [{"type": "resource", "resource": {"uri": "a:b", "text": w}}]
    ),
    _ran(
        "resource",
        "address",
        lambda w: [{"type": "resource", "resource": {"uri": f"a:{w}", "text": "a"}}],
    ),
    _ran(
        "resource",
        "type beside a picture",
        lambda w: [{"uri": "a:b", "blob": _picture(), "type": words(w)}],
    ),
    _ran("resource", "file", lambda w: [{"type": "file", "file": {"file_data": w}}], "refused"),
    _ran("tool result", "error", RuntimeError),
    _ran("tool result", "further words of an error", lambda w: RuntimeError("a", w)),
    _ran("tool result", "error's note", _noted),
    _ran("tool result", "error's cause", _caused),
    _ran("tool result", "errors in a group", lambda w: ExceptionGroup("a", [RuntimeError(w)])),
    _ran("tool result", "note in a group", lambda w: ExceptionGroup("a", [_noted(w)])),
]


def _named() -> Channel:
    async def run(guard: FakeGuard, word: str) -> str:
        guarding = guard_tool(lambda query: "fine", guard=guard, name=word)
        shown = guarding("fine")
        if shown.startswith("["):
            raise Withheld
        return word

    return Channel(adapter=ADAPTER, kind="tool name", name="tool: name", run=run)


TOOLS.append(_named())
