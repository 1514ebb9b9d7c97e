"""Tools whose arguments and results a guard reads before anybody else does."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

from llama_index.core.base.llms.types import ImageBlock, TextBlock
from llama_index.core.tools import AsyncBaseTool, BaseTool, FunctionTool, ToolOutput
from llama_index.core.workflow import Context
from workflows.runtime.types.results import WaitingForEvent

from guardrail.errors import UnsupportedContentError
from guardrail.front.arguments import snapshot
from guardrail.front.chats import call_chat, error_words, result_chat
from guardrail.front.tools import SIDES, WITHHELD, ToolRules
from guardrail.inputs.canonical import canonical_chat
from guardrail.inputs.threads import read_apart
from guardrail.policy.acting import enforces
from guardrail.types import Action
from guardrail_llamaindex.messages import block_words, blocks_with, to_parts

if TYPE_CHECKING:
    from collections.abc import Collection

    from llama_index.core.tools import ToolMetadata

    from guardrail.audit import Audit
    from guardrail.front.consequences import Checker, OnFlag, Settled
    from guardrail.front.tools import Side
    from guardrail.policy import Policy
    from guardrail.types import Verdict

Messages = list[dict[str, Any]]


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
            refused = run.instead("arguments", guard.check(message))
            if refused is not None:
                return refused
        try:
            output = self._tool(*run.args, **run.kwargs)
        except Exception as error:  # agents show its words to a model
            message = run.failure_message(error)
            if message is None or not (held := run.instead("result", guard.check(message))):
                raise
            return held
        message = run.result_message(output)
        verdict = None if message is None else guard.check(message)
        return run.returned(output, verdict)

    async def acall(self, *args: Any, **kwargs: Any) -> ToolOutput:
        """`call` without blocking the event loop."""
        run, guard = Run(self._tool, self._rules, args, kwargs), self._rules.guard
        if (message := run.call_message()) is not None:
            refused = run.instead("arguments", await guard.acheck(message))
            if refused is not None:
                return refused
        try:
            output = await self._awaited(run)
        except Exception as error:
            message = run.failure_message(error)
            if message is None or not (held := run.instead("result", await guard.acheck(message))):
                raise
            return held
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


@dataclass(slots=True)
class Run:
    """One call: its arguments, copied so that what is checked is what is sent."""

    tool: BaseTool
    rules: ToolRules
    args: Any
    kwargs: Any
    found: dict[str, Any] = field(default_factory=dict)  # verdicts that are not a plain pass
    blocks: list[Any] | None = None  # of the output, with the pictures that were judged

    def __post_init__(self) -> None:
        """Copy what can change."""
        self.args, self.kwargs = snapshot(self.args), snapshot(self.kwargs)

    def call_message(self) -> Messages | None:
        """The call as a model writes it; None when there are no arguments to check."""
        named = self._named()
        if "arguments" not in self.rules.sides or not named:
            return None
        try:
            return call_chat(self._name, named)
        except (TypeError, ValueError, RecursionError) as error:
            raise UnsupportedContentError(
                f"the arguments of {self._name} cannot be written as JSON, so nobody can check "
                f"them: {error}"
            ) from error

    def instead(self, side: Side, verdict: Verdict) -> ToolOutput | None:
        """None when the call may be made or its error raised, else what stands for the output."""
        after = self.rules.settle(verdict)
        self._keep(side, after)
        return self._withheld(side) if after.done == "flag" else None

    def result_message(self, output: ToolOutput) -> Messages | None:
        """The output as a guard reads it; None when there is nothing to check."""
        if "result" not in self.rules.sides:
            return None
        parts = to_parts(output.blocks, f"the output of {self._name}")
        parts += [{"type": "text", "text": f"\n{words}"} for words in block_words(output.blocks)]
        if not parts:
            return None
        chat: Messages = canonical_chat(result_chat(parts), self.rules.guard.policy)
        shown = any(isinstance(block, ImageBlock) for block in output.blocks)
        if shown and enforces(self.rules.guard.policy):
            self.blocks = blocks_with(output.blocks, chat[0]["content"], ("cache",))
        return chat

    def failure_message(self, error: Exception) -> Messages | None:
        """The words of the tool's error, which agents show a model; None for none to check."""
        pauses = isinstance(error, WaitingForEvent)  # a tool's way to wait for an answer
        words = error_words(error)
        return result_chat(words) if words and not pauses and "result" in self.rules.sides else None

    def returned(self, output: ToolOutput, verdict: Verdict | None) -> ToolOutput:
        """What the caller gets: the output itself when nothing was found or rewritten."""
        blocks = output.blocks if self.blocks is None else self.blocks
        if verdict is not None:
            after = self.rules.settle(verdict, lambda words: TextBlock(text=f"{words}\n\n"))
            self._keep("result", after)
            if after.done == "flag":
                return self._withheld("result")
            blocks = blocks if after.cautioned is None else [after.cautioned, *blocks]
        if not self.found and self.blocks is None:
            return output
        told = {**output.raw_input, "guardrail": self.found} if self.found else output.raw_input
        return output.model_copy(update={"blocks": blocks, "raw_input": told})

    @property
    def _name(self) -> str:
        return self.tool.metadata.get_name()

    def _named(self) -> dict[str, Any]:
        """Arguments by name, but for the workflow's context, which is the framework's."""
        known = list(self.tool.metadata.get_parameters_dict().get("properties", ()))
        given = dict(self.kwargs)
        context = getattr(self.tool, "ctx_param_name", None)
        # A model may name an argument so, too; what it writes is never a context.
        if isinstance(given.get(context), Context):
            del given[context]
        if len(self.args) > len(known) or given.keys() & set(known[: len(self.args)]):
            return {"args": list(self.args), **given}
        return {**dict(zip(known, self.args, strict=False)), **given}

    def _keep(self, what: str, after: Settled) -> None:
        if after.done != "pass" or after.verdict.action is Action.FLAG:
            self.found[what] = after.verdict.to_dict(words=False)

    def _withheld(self, side: Side) -> ToolOutput:
        """An error output without a word of what is held back."""
        words = WITHHELD[side]
        return ToolOutput(
            tool_name=self._name,
            content=words,
            raw_input={"guardrail": self.found},
            raw_output=words,
            is_error=True,
        )
