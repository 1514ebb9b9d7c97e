"""Tools whose arguments and results a guard reads before anybody else does."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import TYPE_CHECKING, Any

from llama_index.core.tools import AsyncBaseTool, BaseTool, FunctionTool

from guardrail.front.tools import SIDES, ToolRules
from guardrail.inputs.limits import read_apart
from guardrail_llamaindex.runs import Run

if TYPE_CHECKING:
    from collections.abc import Collection

    from llama_index.core.tools import ToolMetadata, ToolOutput

    from guardrail.audit import Audit
    from guardrail.front.consequences import Checker, OnFlag
    from guardrail.front.tools import Side
    from guardrail.policy import Policy


def guard_tool(
    tool: BaseTool,
    *,
    guard: Checker,
    check: Collection[Side] | Side = SIDES,
    policy: Policy | None = None,
    on_flag: OnFlag | None = None,
    audit: Audit | None = None,
) -> AsyncBaseTool:
    """The same tool, with its arguments checked before the call and its output after it.

    A flagged call is not made, a flagged output not handed on: the output is an error that says so,
    as data and not in the tool's voice. See `GuardedTool` for what is read, and what becomes of it.

    Args:
        tool: any tool.
        guard: the guard that checks.
        check: what is checked: "arguments", "result" or both.
        policy: other rules than the guard's.
        on_flag: another `on_flag` than the policy's. What "raise" raises is no `Exception`, so no
            agent makes an output of it: it ends the agent's run.
        audit: gets each verdict with `{"event": "call", "done": "flag", "caution" or "pass"}`.

    Raises:
        ConfigurationError: `check` is empty or names something else.
    """
    rules = ToolRules.of(guard, check, policy=policy, on_flag=on_flag, audit=audit)
    # Agents and LlamaIndex's tool calling treat function tools in ways of their own.
    kind = GuardedFunctionTool if isinstance(tool, FunctionTool) else GuardedTool
    return kind(tool, rules)


class GuardedTool(AsyncBaseTool):
    """A tool behind a guard; made by `guard_tool`. Other attributes are the tool's own.

    Arguments are read as the line of JSON that a model writes, outputs as their text, image and
    video blocks; an output with other blocks, such as calls, is an error. What passes is returned
    as it is, the same object, but for pictures, which go on in the form that was judged. The
    verdict on what does not is in the output's `raw_input["guardrail"]`; an annotated output is a
    copy with the verdict there.

    What would be steered follows the policy's `unsteerable`: it counts as flagged, or passes; a
    caution goes before an output as a text block. Arguments have no place for one, so there they
    count as flagged. Error outputs are checked like others, and the words of an exception like an
    output: flagged, one becomes an error output, else it is raised as without a guard.
    """

    def __init__(self, tool: BaseTool, rules: ToolRules) -> None:
        self._tool, self._rules = tool, rules

    @property
    def metadata(self) -> ToolMetadata:
        """The tool's own."""
        return self._tool.metadata

    def __call__(self, *args: Any, **kwargs: Any) -> ToolOutput:
        """Check, call, check."""
        return self.call(*args, **kwargs)

    def call(self, *args: Any, **kwargs: Any) -> ToolOutput:
        """Check, call, check."""
        run, guard = Run(self._tool, self._rules, args, kwargs), self._rules.guard
        if (message := run.call_message()) is not None:
            refused = run.called(guard.check(message))
            if refused is not None:
                return refused
        try:
            output = self._tool(*run.args, **run.kwargs)
        except Exception as error:  # agents show its words to a model
            message = run.failure_message(error)
            withheld = None if message is None else run.failed(guard.check(message))
            if withheld is None:
                raise
            return withheld
        message = run.result_message(output)
        verdict = None if message is None else guard.check(message)
        return run.returned(output, verdict)

    async def acall(self, *args: Any, **kwargs: Any) -> ToolOutput:
        """`call` without blocking the event loop."""
        run, guard = Run(self._tool, self._rules, args, kwargs), self._rules.guard
        if (message := run.call_message()) is not None:
            refused = run.called(await guard.acheck(message))
            if refused is not None:
                return refused
        try:
            output = await self._awaited(run)
        except Exception as error:
            message = run.failure_message(error)
            withheld = None if message is None else run.failed(await guard.acheck(message))
            if withheld is None:
                raise
            return withheld
        message = await read_apart(partial(run.result_message, output))
        verdict = None if message is None else await guard.acheck(message)
        return run.returned(output, verdict)

    async def _awaited(self, run: Run) -> ToolOutput:
        if isinstance(self._tool, AsyncBaseTool):
            return await self._tool.acall(*run.args, **run.kwargs)
        return await asyncio.to_thread(self._tool, *run.args, **run.kwargs)

    def __getattr__(self, name: str) -> Any:
        """Whatever else the tool has."""
        if name in ("_tool", "_rules") or name.startswith("__"):  # an object not yet made
            raise AttributeError(name)
        return getattr(self._tool, name)


class GuardedFunctionTool(GuardedTool, FunctionTool):
    """A function tool behind a guard: also for whoever asks whether it is a function tool."""

    # FunctionTool hands its bare function over; these hand over the guarded call.
    to_langchain_tool = BaseTool.to_langchain_tool
    to_langchain_structured_tool = BaseTool.to_langchain_structured_tool
