"""One call of a guarded tool: what is checked, and what the verdicts lead to."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from llama_index.core.base.llms.types import ImageBlock, TextBlock
from llama_index.core.tools import ToolOutput
from llama_index.core.workflow import Context
from workflows.runtime.types.results import WaitingForEvent

from guardrail.errors import UnsupportedContentError
from guardrail.front.arguments import snapshot
from guardrail.front.chats import call_chat, error_words, result_chat
from guardrail.front.tools import WITHHELD
from guardrail.inputs.canonical import canonical_chat
from guardrail.policy.acting import enforces
from guardrail.types import Action
from guardrail_llamaindex.messages import to_parts
from guardrail_llamaindex.pictures import blocks_with

if TYPE_CHECKING:
    from llama_index.core.tools import BaseTool

    from guardrail.front.consequences import Settled
    from guardrail.front.tools import Side, ToolRules
    from guardrail.types import Verdict

Messages = list[dict[str, Any]]


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

    def called(self, verdict: Verdict) -> ToolOutput | None:
        """None when the call may be made, else what stands for its output."""
        after = self.rules.settle(verdict)
        self._keep("arguments", after)
        return self._withheld("arguments") if after.done == "flag" else None

    def result_message(self, output: ToolOutput) -> Messages | None:
        """The output as a guard reads it; None when there is nothing to check."""
        if "result" not in self.rules.sides:
            return None
        parts = to_parts(output.blocks, f"the output of {self._name}")
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

    def failed(self, verdict: Verdict) -> ToolOutput | None:
        """None when the error may be raised, else what stands for it."""
        after = self.rules.settle(verdict)
        self._keep("result", after)
        return self._withheld("result") if after.done == "flag" else None

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
            self.found[what] = after.verdict.to_dict()

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
