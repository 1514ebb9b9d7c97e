"""A guard inside an agent: around its model and around its tools."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, NotRequired

from langchain.agents.middleware import AgentMiddleware, AgentState, hook_config
from langchain.agents.middleware.types import PrivateStateAttr
from langchain_core.callbacks import adispatch_custom_event, dispatch_custom_event
from typing_extensions import override

from guardrail.errors import ConfigurationError
from guardrail.settling import stopped
from guardrail_langchain import replies
from guardrail_langchain.chat_model import ChatGuardedVLM
from guardrail_langchain.messages import to_chat
from guardrail_langchain.rules import cautioned_system, outcome
from guardrail_langchain.runnable import EVENT
from guardrail_langchain.tool_rules import ToolRules, ajudged, judged

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Collection

    from langchain.agents.middleware import ModelRequest, ModelResponse, ToolCallRequest
    from langchain_core.messages import AIMessage
    from langgraph.runtime import Runtime

    from guardrail import Verdict
    from guardrail.settling import Checker, OnFlag
    from guardrail_langchain.rules import Outcome


class GuardrailState(AgentState[Any]):
    """An agent's state with what the guard found before the model's turn."""

    guardrail_caution: NotRequired[Annotated[bool, PrivateStateAttr]]


class GuardrailMiddleware(AgentMiddleware[GuardrailState, Any, Any]):
    """Judges what an agent's model is about to read, and what goes in and out of its tools.

        agent = create_agent(model, tools, middleware=[GuardrailMiddleware(guard)])

    Before each turn of the model the conversation is checked, pictures and tool results in it
    included. A flagged one ends the run: the only new message is the policy's refusal, and the
    model is not called, so nothing of an answer can be streamed. Each tool call's arguments are
    checked before it runs and its result before anybody reads it; flagged ones become an error
    result with the refusal.

    A model that is a `ChatGuardedVLM` judges and steers inside its own prefill, so nothing is
    checked before it: pass it as `model` to say so (if another model answers after all, a fallback
    for instance, it is checked first). Another model cannot be steered; the policy's
    `unsteerable` says what happens instead, and a caution goes into its system prompt.

    Args:
        guard: the guard that checks; left out, that of `model`.
        model: the agent's own model, if it is a `ChatGuardedVLM`.
        check: what is checked: "input" (before the model), "arguments" and "result" of tools.
        on_flag: another `on_flag` than the policy's. Under "annotate" nothing is stopped.

    Raises:
        ConfigurationError: neither a guard nor a guarded model is given, or `check` holds
            something else.
    """

    state_schema = GuardrailState

    def __init__(
        self,
        guard: Checker | None = None,
        *,
        model: ChatGuardedVLM | None = None,
        check: Collection[str] = ("input", "arguments", "result"),
        on_flag: OnFlag | None = None,
    ) -> None:
        super().__init__()
        guard = guard or (None if model is None else model.guard)
        if guard is None:
            raise ConfigurationError("GuardrailMiddleware needs a guard, or a guarded model")
        sides = frozenset(check)
        self._guard, self._on_flag = guard, on_flag
        self._before = "input" in sides and model is None
        self._inside = "input" in sides and model is not None
        self._rules = ToolRules(guard, sides - {"input"}, on_flag)

    # ---- the model

    @override
    @hook_config(can_jump_to=["end"])
    def before_model(self, state: GuardrailState, runtime: Runtime[Any]) -> dict[str, Any] | None:
        """Check the conversation; end the run with the policy's refusal if it is flagged."""
        if not self._before:
            return None
        after = self._settled(self._guard.check(to_chat(state["messages"])))
        _tell(after.verdict)
        return self._update(after)

    @override
    @hook_config(can_jump_to=["end"])
    async def abefore_model(
        self, state: GuardrailState, runtime: Runtime[Any]
    ) -> dict[str, Any] | None:
        """`before_model` for event loops."""
        if not self._before:
            return None
        after = self._settled(await self._guard.acheck(to_chat(state["messages"])))
        await _atell(after.verdict)
        return self._update(after)

    @override
    def wrap_model_call(
        self, request: ModelRequest[Any], handler: Callable[[ModelRequest[Any]], ModelResponse[Any]]
    ) -> ModelResponse[Any] | AIMessage:
        """Let a guarded model steer itself; caution another where the policy says so."""
        if not self._unguarded(request):
            return handler(self._cautioned(request))
        after = self._settled(self._guard.check(to_chat(request.messages)))
        _tell(after.verdict)
        return self._refusal(after) or handler(self._cautioned(request, after.value))

    @override
    async def awrap_model_call(
        self,
        request: ModelRequest[Any],
        handler: Callable[[ModelRequest[Any]], Awaitable[ModelResponse[Any]]],
    ) -> ModelResponse[Any] | AIMessage:
        """`wrap_model_call` for event loops."""
        if not self._unguarded(request):
            return await handler(self._cautioned(request))
        after = self._settled(await self._guard.acheck(to_chat(request.messages)))
        await _atell(after.verdict)
        return self._refusal(after) or await handler(self._cautioned(request, after.value))

    @override
    @hook_config(can_jump_to=["end"])
    def after_model(self, state: GuardrailState, runtime: Runtime[Any]) -> dict[str, Any] | None:
        """End the run when a guarded model has refused inside its own prefill."""
        last: Any = state["messages"][-1]
        refused = getattr(last, "response_metadata", {}).get("refused_by_guard")
        return {"jump_to": "end"} if refused else None

    # ---- its tools

    @override
    def wrap_tool_call(
        self,
        request: ToolCallRequest,
        handler: Callable[[ToolCallRequest], Any],
    ) -> Any:
        """Check a call's arguments, make it, check its result."""
        name, arguments, label = _call_of(request)
        check = self._guard.check
        refused = judged(self._rules.before(name, arguments, label), check)
        if refused is not None:
            return refused
        return judged(self._rules.after(name, handler(request), label), check).value

    @override
    async def awrap_tool_call(
        self,
        request: ToolCallRequest,
        handler: Callable[[ToolCallRequest], Awaitable[Any]],
    ) -> Any:
        """`wrap_tool_call` for event loops."""
        name, arguments, label = _call_of(request)
        check = self._guard.acheck
        refused = await ajudged(self._rules.before(name, arguments, label), check)
        if refused is not None:
            return refused
        output = await handler(request)
        return (await ajudged(self._rules.after(name, output, label), check)).value

    # ---- what a verdict means

    def _settled(self, verdict: Verdict) -> Outcome:
        """The verdict after all; `value` says whether the model is to be cautioned."""
        policy = self._guard.policy
        on_flag = self._on_flag or policy.on_flag
        after = outcome(verdict, policy, on_flag, False, put=_noted)
        if after.stops and on_flag == "raise":
            raise stopped(after.verdict, policy)
        return after

    def _update(self, after: Outcome) -> dict[str, Any]:
        """What changes in the agent's state."""
        answer = self._refusal(after)
        if answer is None:
            return {"guardrail_caution": after.value}
        return {"messages": [answer], "jump_to": "end"}

    def _refusal(self, after: Outcome) -> AIMessage | None:
        text = self._guard.policy.refusal_message
        return replies.refusal(text, after.verdict) if after.stops else None

    def _unguarded(self, request: ModelRequest[Any]) -> bool:
        """Whether another model answers than the guarded one that was to (a fallback, say)."""
        return self._inside and not isinstance(request.model, ChatGuardedVLM)

    def _cautioned(
        self, request: ModelRequest[Any], caution: bool | None = None
    ) -> ModelRequest[Any]:
        if caution is None:
            caution = bool(request.state.get("guardrail_caution"))
        if isinstance(request.model, ChatGuardedVLM) or not caution:
            return request
        words = self._guard.policy.caution_prompt
        return request.override(system_message=cautioned_system(request.system_message, words))


def _noted(value: Any, words: str) -> bool:
    """A caution has a place: the system prompt of the model call that follows."""
    return True


def _call_of(request: ToolCallRequest) -> tuple[str, Any, str | None]:
    call = request.tool_call
    return call["name"], call["args"], call.get("id")


def _tell(verdict: Verdict) -> None:
    dispatch_custom_event(EVENT, verdict.to_dict())


async def _atell(verdict: Verdict) -> None:
    await adispatch_custom_event(EVENT, verdict.to_dict())
