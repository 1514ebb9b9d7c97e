"""A tool whose arguments and results are judged."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeVar

from langchain_core.tools import BaseTool

from guardrail_langchain.tool_rules import ToolRules, ajudged, judged

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

    from guardrail.settling import Checker, OnFlag
    from guardrail_langchain.tool_rules import Judging, Side

T = TypeVar("T", bound="BaseTool")


@dataclass(frozen=True, slots=True)
class _Call:
    """What `_run` is not told of the call it serves; each call has a context of its own."""

    written: Any
    call_id: str | None
    judged: bool = False  # an async form may end in the sync one


_CALL: ContextVar[_Call | None] = ContextVar("guardrail_tool_call", default=None)


def guard_tool(
    tool: T,
    *,
    guard: Checker,
    check: Collection[Side] = ("arguments", "result"),
    on_flag: OnFlag | None = None,
) -> T:
    """A copy of `tool` that checks its arguments before it runs and its result afterwards.

        screenshot = guard_tool(screenshot, guard=guard)

    Name, description, schema, injected arguments, artifacts, callbacks, error handling and both
    the sync and the async form stay the tool's own; the tool itself is not changed. What is
    checked is what the model wrote (not what the app injects), and what the model will read:
    texts and pictures of the result. A flagged call or result becomes a `ToolMessage` with status
    "error" and the policy's refusal; what was held back is in neither its content nor its
    artifact. `on_flag="raise"` raises `GuardrailViolation` instead.

    A tool cannot be steered. Where the policy's `unsteerable` asks for a caution, it goes before a
    result; arguments have no place for one and count as flagged.

    Raises:
        TypeError: `tool` is no LangChain tool.
    """
    if not isinstance(tool, BaseTool):
        raise TypeError(f"guard_tool wraps a LangChain tool, not a {type(tool).__name__}")
    rules = ToolRules(guard, frozenset(check), on_flag)
    copy = tool.model_copy()
    object.__setattr__(copy, "__class__", _guarded_class(type(tool), rules))
    return copy


def _guarded_class(kind: type[T], rules: ToolRules) -> type[T]:
    """A subclass that judges; signatures stay, since injection and callbacks are found in them."""
    run, arun, inner, ainner = kind.run, kind.arun, kind._run, kind._arun

    @functools.wraps(run)
    def guarded_run(self: T, tool_input: Any, *args: Any, **kwargs: Any) -> Any:
        with _serving(self, tool_input, kwargs):
            return run(self, tool_input, *args, **kwargs)

    @functools.wraps(arun)
    async def guarded_arun(self: T, tool_input: Any, *args: Any, **kwargs: Any) -> Any:
        with _serving(self, tool_input, kwargs):
            return await arun(self, tool_input, *args, **kwargs)

    @functools.wraps(inner)
    def guarded(self: T, *args: Any, **kwargs: Any) -> Any:
        call = _CALL.get() or _Call({"args": args}, None)
        if call.judged:
            return inner(self, *args, **kwargs)
        check = rules.guard.check
        refused = judged(rules.before(self.name, call.written, call.call_id), check)
        if refused is not None:
            return _shaped(self, refused)
        return judged(_after(self, rules, inner(self, *args, **kwargs), call), check)

    @functools.wraps(ainner)
    async def aguarded(self: T, *args: Any, **kwargs: Any) -> Any:
        call = _CALL.get() or _Call({"args": args}, None)
        check = rules.guard.acheck
        refused = await ajudged(rules.before(self.name, call.written, call.call_id), check)
        if refused is not None:
            return _shaped(self, refused)
        token = _CALL.set(replace(call, judged=True))
        try:
            response = await ainner(self, *args, **kwargs)
        finally:
            _CALL.reset(token)
        return await ajudged(_after(self, rules, response, call), check)

    body: dict[str, Any] = {"run": guarded_run, "arun": guarded_arun, "_run": guarded}
    if kind._arun is not BaseTool._arun:  # else it runs the sync form, which judges already
        body["_arun"] = aguarded
    return type(kind.__name__, (kind,), {**body, "__module__": kind.__module__})


@contextmanager
def _serving(tool: BaseTool, tool_input: Any, options: Mapping[str, Any]) -> Iterator[None]:
    token = _CALL.set(_Call(_written(tool, tool_input), options.get("tool_call_id")))
    try:
        yield
    finally:
        _CALL.reset(token)


def _written(tool: BaseTool, tool_input: Any) -> Any:
    """What the model wrote of a tool's input, without what the app injects."""
    if not isinstance(tool_input, Mapping):
        return tool_input
    named, schema = set(tool.args), tool.args_schema
    # Keys beyond a plain JSON schema reach the tool too; what the app injects is no plain value.
    open_ended = isinstance(schema, dict) or (
        getattr(schema, "model_config", {}).get("extra") == "allow"
    )
    return {
        key: value
        for key, value in tool_input.items()
        if key in named or (open_ended and _is_plain(value))
    }


def _is_plain(value: Any) -> bool:
    try:
        json.dumps(value)
    except (TypeError, ValueError, RecursionError):
        return False
    return True


def _after(tool: BaseTool, rules: ToolRules, response: Any, call: _Call) -> Judging[Any]:
    """The response, judged; a held-back one takes its artifact with it."""
    pair = isinstance(response, tuple) and len(response) == 2
    if tool.response_format != "content_and_artifact":
        return (yield from rules.after(tool.name, response, call.call_id)).value
    if not pair:  # the tool broke its word, and will be told so
        return response
    content, artifact = response
    judgement = yield from rules.after(tool.name, content, call.call_id)
    return judgement.value, None if judgement.refused else artifact


def _shaped(tool: BaseTool, refused: Any) -> Any:
    return (refused, None) if tool.response_format == "content_and_artifact" else refused
