"""A tool whose arguments and results are judged."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeVar

from langchain_core.tools import BaseTool, ToolException
from langgraph.errors import GraphBubbleUp

from guardrail.errors import GuardrailError
from guardrail.front.chats import error_words
from guardrail.front.consequences import Reaction
from guardrail_langchain.judging import ajudged, as_exception, as_itself, atell, judged, tell
from guardrail_langchain.tool_rules import ToolRules

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator

    from guardrail.front.consequences import Checker, OnFlag
    from guardrail.front.tools import Side
    from guardrail_langchain.judging import Judging

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
    checked is what the model wrote (not what the app injects), and what the model will read: texts,
    pictures and videos of both, and the words of an exception. A flagged call or result
    becomes a `ToolMessage` with status "error" that says that it was withheld, as data; what was
    held back is in neither its content nor its artifact. `on_flag="raise"` raises
    `GuardrailViolation` instead. Pictures of a result go on in the form that was judged; those in
    arguments must have one reading, and an artifact, which no model reads, is left as it is.

    A tool cannot be steered. Where the policy's `unsteerable` asks for a caution, one about results
    goes before a result; arguments have no place for one and count as flagged.

    Raises:
        TypeError: `tool` is no LangChain tool.
    """
    if not isinstance(tool, BaseTool):
        raise TypeError(f"guard_tool wraps a LangChain tool, not a {type(tool).__name__}")
    rules = ToolRules(Reaction(guard, on_flag), frozenset(check))
    copy = tool.model_copy()
    object.__setattr__(copy, "__class__", _guarded_class(type(tool), rules))
    return copy


def _guarded_class(kind: type[T], rules: ToolRules) -> type[T]:
    """A subclass that judges; signatures stay, since injection and callbacks are found in them."""
    run, arun = kind.run, kind.arun

    @functools.wraps(run)
    def guarded_run(self: T, tool_input: Any, *args: Any, **kwargs: Any) -> Any:
        with as_itself(), _serving(self, tool_input, kwargs):
            return run(self, tool_input, *args, **kwargs)

    @functools.wraps(arun)
    async def guarded_arun(self: T, tool_input: Any, *args: Any, **kwargs: Any) -> Any:
        with as_itself(), _serving(self, tool_input, kwargs):
            return await arun(self, tool_input, *args, **kwargs)

    body: dict[str, Any] = {"run": guarded_run, "arun": guarded_arun}
    body["_run"] = _sync_form(kind._run, rules)
    if kind._arun is not BaseTool._arun:  # else it runs the sync form, which judges already
        body["_arun"] = _async_form(kind._arun, rules)
    return type(kind.__name__, (kind,), {**body, "__module__": kind.__module__})


def _sync_form(inner: Callable[..., Any], rules: ToolRules) -> Callable[..., Any]:
    @functools.wraps(inner)
    @as_exception()  # so that the tool's callbacks are told of it
    def guarded(self: BaseTool, *args: Any, **kwargs: Any) -> Any:
        call = _CALL.get() or _Call({"args": args}, None)
        if call.judged:
            return inner(self, *args, **kwargs)
        check = rules.reaction.guard.check
        refused = judged(rules.before(self.name, call.written, call.call_id), check, tell)
        if refused is not None:
            return _shaped(self, refused)
        try:
            response = inner(self, *args, **kwargs)
        except Exception as error:  # its words become the result, perhaps in a ToolNode
            held = judged(_said(self, rules, error), check, tell)
            if held is not error:
                raise held from None
            raise
        return judged(_after(self, rules, response, call), check, tell)

    return guarded


def _async_form(inner: Callable[..., Any], rules: ToolRules) -> Callable[..., Any]:
    @functools.wraps(inner)
    async def guarded(self: BaseTool, *args: Any, **kwargs: Any) -> Any:
        call = _CALL.get() or _Call({"args": args}, None)
        check = rules.reaction.guard.acheck
        with as_exception():
            refused = await ajudged(
                rules.before(self.name, call.written, call.call_id), check, atell
            )
            if refused is not None:
                return _shaped(self, refused)
            token = _CALL.set(replace(call, judged=True))
            try:
                response = await inner(self, *args, **kwargs)
            except Exception as error:
                held = await ajudged(_said(self, rules, error), check, atell)
                if held is not error:
                    raise held from None
                raise
            finally:
                _CALL.reset(token)
            return await ajudged(_after(self, rules, response, call), check, atell)

    return guarded


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
    # LangChain's own rule for what its callbacks are shown; every other key may reach the tool, by
    # an alias, a validator or `**kwargs`, whether the schema names it or not.
    return tool._filter_injected_args(dict(tool_input))


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


def _said(tool: BaseTool, rules: ToolRules, error: Exception) -> Judging[Exception]:
    """A tool's own error, or one with a refusal where its words may not be read."""
    words = error_words(error)
    if not words or isinstance(error, GraphBubbleUp | GuardrailError):  # how a graph waits
        return error
    judgement = yield from rules.after(tool.name, words, None)
    return error if judgement.value is words else ToolException(judgement.value)


def _shaped(tool: BaseTool, refused: Any) -> Any:
    return (refused, None) if tool.response_format == "content_and_artifact" else refused
