"""A guard inside an agent: around its model and around its tools."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, NotRequired

from langchain.agents.middleware import (
    AgentMiddleware,
    AgentState,
    hook_config,
)
from langchain.agents.middleware.types import OmitFromInput, PrivateStateAttr
from typing_extensions import override

from guardrail.errors import ConfigurationError, GuardrailViolation
from guardrail.front.consequences import Reaction
from guardrail_langchain.events import atell, tell
from guardrail_langchain.judging import ajudged, judged
from guardrail_langchain.tool_rules import ToolRules
from guardrail_langchain.turns import Turns, ended_by, ending, is_ours

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Collection

    from langchain.agents.middleware import ModelRequest, ModelResponse, ToolCallRequest
    from langchain.agents.middleware.types import ModelCallResult
    from langgraph.runtime import Runtime

    from guardrail.front.consequences import Checker, OnFlag
    from guardrail_langchain.chat_model import ChatGuardedVLM


class GuardrailState(AgentState[Any]):
    """An agent's state with what the guard found before the model's turn."""

    guardrail_verdict: NotRequired[Annotated[dict[str, Any], OmitFromInput]]
    guardrail_turn: NotRequired[Annotated[dict[str, Any], PrivateStateAttr]]
    guardrail_hidden: NotRequired[Annotated[list[str], PrivateStateAttr]]


class GuardrailMiddleware(AgentMiddleware[GuardrailState, Any, Any]):
    """Judges what an agent's model is about to read, and what goes in and out of its tools.

        agent = create_agent(model, tools, middleware=[GuardrailMiddleware(guard)])

    Before each turn of the model the conversation is checked, pictures and tool results in it
    included. A flagged one ends the run: the only new message is the policy's refusal, and the
    model is not called, so nothing of an answer can be streamed. When the model is called, so is
    what comes along with the messages: the system prompt, each tool's schema, the form of the
    answer and settings with words, each by itself, as something a user says, and once for as long
    as it stays the same. Put this one last: then it sees all that other middleware adds. Each tool
    call's arguments are checked before it runs and its result before anybody reads it; flagged ones
    become an error result that says that it was withheld. Pictures go on, and stay in the state, in
    the form that was judged.

    Under `on_flag="raise"` a run ends with `GuardrailViolation`. What came in since the model's
    last turn stays in its thread with a mark (`response_metadata["guardrail_flagged"]`), and no
    later turn of the model is shown it. Every verdict is sent as a custom event and in the custom
    stream (`stream_mode="custom"`); the last one on what the model read is `guardrail_verdict` in
    the state.

    A model that is a `ChatGuardedVLM` judges and steers inside its own prefill: pass it as `model`,
    and nothing is checked before it. If another model answers in its place (a fallback, a router),
    that one's messages are checked: before, where this middleware knows of it, else afterwards,
    and then a flagged answer is replaced by the refusal. Another model cannot be steered; the
    policy's `unsteerable` says what happens instead, and a caution goes into its system prompt.

    Args:
        guard: the guard that checks; left out, that of `model`.
        model: the agent's own model, if it is a `ChatGuardedVLM`; its own policy decides.
        check: what is checked: "input" (before the model), "arguments" and "result" of tools.
        on_flag: another `on_flag` than the policy's. Under "annotate" nothing is stopped.
        name: tells several of them in one agent apart.

    Raises:
        ConfigurationError: neither a guard nor a guarded model is given, or a setting means
            nothing.
    """

    state_schema = GuardrailState

    def __init__(
        self,
        guard: Checker | None = None,
        *,
        model: ChatGuardedVLM | None = None,
        check: Collection[str] = ("input", "arguments", "result"),
        on_flag: OnFlag | None = None,
        name: str = "GuardrailMiddleware",
    ) -> None:
        super().__init__()
        guard = guard or (None if model is None else model.guard)
        if guard is None:
            raise ConfigurationError("GuardrailMiddleware needs a guard, or a guarded model")
        sides = frozenset(check)
        self._inside = "input" in sides and model is not None
        reaction = Reaction(guard, on_flag)
        self._turns = Turns(reaction, active="input" in sides)
        self._rules = ToolRules(reaction, sides - {"input"})
        self._name = name

    @property
    @override
    def name(self) -> str:
        return self._name

    # ---- the model

    @override
    @hook_config(can_jump_to=["end"])
    def before_model(self, state: GuardrailState, runtime: Runtime[Any]) -> dict[str, Any] | None:
        """Check the conversation; end the run with the policy's refusal if it is flagged."""
        if self._inside:
            return None
        return judged(self._turns.before(state), self._turns.reaction.guard.check, tell)

    @override
    @hook_config(can_jump_to=["end"])
    async def abefore_model(
        self, state: GuardrailState, runtime: Runtime[Any]
    ) -> dict[str, Any] | None:
        """`before_model` for event loops."""
        if self._inside:
            return None
        return await ajudged(self._turns.before(state), self._turns.reaction.guard.acheck, atell)

    @override
    def wrap_model_call(
        self, request: ModelRequest[Any], handler: Callable[[ModelRequest[Any]], ModelResponse[Any]]
    ) -> ModelCallResult[Any]:
        """Let a guarded model steer itself; check what another reads, and caution it."""
        check = self._turns.reaction.guard.check
        call = judged(self._turns.at_call(request, self._inside), check, tell)
        if call.end is not None:
            return ending(call.end)
        try:
            response = handler(call.request)
        except GuardrailViolation as violation:
            return ending(self._turns.raising(request.state, violation.verdict))
        if not self._inside or call.judged or is_ours(response):
            return response
        kept: ModelCallResult[Any] = judged(self._turns.after(request, response), check, tell)
        return kept

    @override
    async def awrap_model_call(
        self,
        request: ModelRequest[Any],
        handler: Callable[[ModelRequest[Any]], Awaitable[ModelResponse[Any]]],
    ) -> ModelCallResult[Any]:
        """`wrap_model_call` for event loops."""
        check = self._turns.reaction.guard.acheck
        call = await ajudged(self._turns.at_call(request, self._inside), check, atell)
        if call.end is not None:
            return ending(call.end)
        try:
            response = await handler(call.request)
        except GuardrailViolation as violation:
            return ending(self._turns.raising(request.state, violation.verdict))
        if not self._inside or call.judged or is_ours(response):
            return response
        kept: ModelCallResult[Any] = await ajudged(
            self._turns.after(request, response), check, atell
        )
        return kept

    @override
    @hook_config(can_jump_to=["end"])
    def after_model(self, state: GuardrailState, runtime: Runtime[Any]) -> dict[str, Any] | None:
        """Keep a guarded model's verdict; end the run when the guard refused the model's turn."""
        told = getattr(state["messages"][-1], "response_metadata", {})
        if told.get("model_provider") != "guardrail":
            return None
        end = {"jump_to": "end"} if told.get("refused_by_guard") else {}
        return {"guardrail_verdict": told.get("verdict"), **end}

    @override
    def after_agent(self, state: GuardrailState, runtime: Runtime[Any]) -> dict[str, Any] | None:
        """Raise what a run was stopped for, once its messages are marked in the thread."""
        verdict = ended_by(state)
        if verdict is not None:
            raise GuardrailViolation(verdict)
        return None

    # ---- its tools

    @override
    def wrap_tool_call(
        self,
        request: ToolCallRequest,
        handler: Callable[[ToolCallRequest], Any],
    ) -> Any:
        """Check a call's arguments, make it, check its result."""
        name, arguments, label = _call_of(request)
        check = self._rules.reaction.guard.check
        refused = judged(self._rules.before(name, arguments, label), check, tell)
        if refused is not None:
            return refused
        return judged(self._rules.after(name, handler(request), label), check, tell).value

    @override
    async def awrap_tool_call(
        self,
        request: ToolCallRequest,
        handler: Callable[[ToolCallRequest], Awaitable[Any]],
    ) -> Any:
        """`wrap_tool_call` for event loops."""
        name, arguments, label = _call_of(request)
        check = self._rules.reaction.guard.acheck
        refused = await ajudged(self._rules.before(name, arguments, label), check, atell)
        if refused is not None:
            return refused
        output = await handler(request)
        return (await ajudged(self._rules.after(name, output, label), check, atell)).value


def _call_of(request: ToolCallRequest) -> tuple[str, Any, str | None]:
    call = request.tool_call
    return call["name"], call["args"], call.get("id")
