"""One call of a guarded tool: what is checked, and what the verdicts lead to."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from llama_index.core.base.llms.types import TextBlock
from llama_index.core.tools import ToolOutput
from llama_index.core.workflow import Context

from guardrail.arguments import snapshot
from guardrail.errors import UnsupportedContentError
from guardrail.settling import record, settled, stopped
from guardrail.tool_chats import call_chat, result_chat
from guardrail.types import Action
from guardrail_llamaindex.messages import to_parts

if TYPE_CHECKING:
    from collections.abc import Callable

    from llama_index.core.tools import BaseTool

    from guardrail.settling import Audit, Checker, OnFlag, Settled
    from guardrail.types import Verdict

Messages = list[dict[str, Any]]


@dataclass(frozen=True, slots=True)
class Rules:
    """What a guarded tool does about a verdict."""

    guard: Checker
    check: frozenset[str]
    on_flag: OnFlag
    audit: Audit | None

    def settle(self, verdict: Verdict, caution: Callable[[str], bool]) -> Settled:
        """What becomes of a call or an output; raises where the rules say so."""
        policy = self.guard.policy
        annotates = self.on_flag == "annotate"
        after = settled(verdict, policy, caution=caution, annotates=annotates)
        record(self.audit, after.verdict, after.done)
        if after.done == "flag" and self.on_flag == "raise":
            raise stopped(after.verdict, policy)
        return after


@dataclass(slots=True)
class Run:
    """One call: its arguments, copied so that what is checked is what is sent."""

    tool: BaseTool
    rules: Rules
    args: Any
    kwargs: Any
    found: dict[str, Any] = field(default_factory=dict)  # verdicts that are not a plain pass

    def __post_init__(self) -> None:
        """Copy what can change."""
        self.args, self.kwargs = snapshot(self.args), snapshot(self.kwargs)

    def call_message(self) -> Messages | None:
        """The call as a model writes it; None when there are no arguments to check."""
        named = self._named()
        if "arguments" not in self.rules.check or not named:
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
        after = self.rules.settle(verdict, _no_place)
        self._keep("arguments", after)
        return self._refusal() if after.done == "flag" else None

    def result_message(self, output: ToolOutput) -> Messages | None:
        """The output as a guard reads it; None when there is nothing to check."""
        if "result" not in self.rules.check:
            return None
        parts = to_parts(output.blocks, f"the output of {self._name}")
        return result_chat(parts) if parts else None

    def returned(self, output: ToolOutput, verdict: Verdict | None) -> ToolOutput:
        """What the caller gets: the output itself when nothing was found."""
        blocks = output.blocks
        if verdict is not None:
            before: list[TextBlock] = []
            after = self.rules.settle(verdict, lambda words: _put(before, words))
            self._keep("result", after)
            if after.done == "flag":
                return self._refusal()
            blocks = [*before, *output.blocks]
        if not self.found:
            return output
        told = {**output.raw_input, "guardrail": self.found}
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

    def _refusal(self) -> ToolOutput:
        """An error output without a word of what is held back."""
        words = self.rules.guard.policy.refusal_message
        return ToolOutput(
            tool_name=self._name,
            content=words,
            raw_input={"guardrail": self.found},
            raw_output=words,
            is_error=True,
        )


def _no_place(words: str) -> bool:
    """A function reads no caution."""
    return False


def _put(blocks: list[TextBlock], words: str) -> bool:
    blocks.append(TextBlock(text=f"{words}\n\n"))
    return True
