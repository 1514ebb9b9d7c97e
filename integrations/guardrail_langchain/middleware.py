"""A guard inside an agent: around its model's turns and around its tools."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, NotRequired
from uuid import uuid4

from langchain.agents.middleware import (
    AgentMiddleware,
    AgentState,
    ExtendedModelResponse,
    ModelRequest,
    ModelResponse,
    hook_config,
)
from langchain.agents.middleware.types import OmitFromInput, PrivateStateAttr
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, SystemMessage, ToolMessage
from langgraph.types import Command
from typing_extensions import override

from guardrail.errors import ConfigurationError, GuardrailViolation
from guardrail.front.chats import RESULT_WITHHELD
from guardrail.front.consequences import Reaction
from guardrail.policy.acting import is_refused_outage
from guardrail.types import Verdict
from guardrail_langchain import replies
from guardrail_langchain.beside import Beside, beside_messages, digest, noted
from guardrail_langchain.chat_model import ChatGuardedVLM
from guardrail_langchain.judging import (
    ajudged,
    atell,
    cautioned_system,
    judged,
    no_place,
    outcome,
    tell,
)
from guardrail_langchain.messages import canonical_messages, to_judged_chat
from guardrail_langchain.tool_rules import ToolRules

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence

    from langchain.agents.middleware import ToolCallRequest
    from langchain.agents.middleware.types import ModelCallResult
    from langgraph.runtime import Runtime

    from guardrail.front.consequences import Checker, OnFlag
    from guardrail.policy import Policy
    from guardrail_langchain.judging import Judging

# In the metadata of messages that a run was stopped for: they stay in its thread, for people. What
# is hidden is told by ids in the private state, since metadata may come in with a message.
_MARK = "guardrail_flagged"
Update = dict[str, Any]


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
        self, request: ToolCallRequest, handler: Callable[[ToolCallRequest], Any]
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
        self, request: ToolCallRequest, handler: Callable[[ToolCallRequest], Awaitable[Any]]
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


@dataclass(frozen=True, slots=True)
class AtCall:
    """A model call that goes on, and whether it was judged; `end` is what ends the run instead."""

    request: ModelRequest[Any]
    judged: bool = False
    end: Update | None = None


@dataclass(frozen=True, slots=True)
class Turns:
    """A guard and what a flag leads to; `active` says whether input is checked at all."""

    reaction: Reaction
    active: bool
    beside: Beside = field(default_factory=Beside)

    def before(self, state: Mapping[str, Any]) -> Judging[Update | None]:
        """What changes in the agent's state before the model is called."""
        messages = _shown(state["messages"], state)
        if not self.active or not messages:
            return None
        sent = canonical_messages(messages, self._policy)
        chat = to_judged_chat(sent)
        after = yield chat, partial(outcome, self.reaction, False, noted)
        if after.stops:
            return self._stopped(state, after.verdict) | {"jump_to": "end"}
        turn = {"judged": digest(chat), "caution": after.value}
        # What the state keeps is what was judged.
        changed = [new for new, old in zip(sent, messages, strict=True) if new is not old]
        told = {"guardrail_turn": turn, "guardrail_verdict": after.verdict.to_dict(words=False)}
        return told | ({"messages": changed} if changed else {})

    def at_call(self, request: ModelRequest[Any], inside: bool) -> Judging[AtCall]:
        """What becomes of a model's call; `inside`: a guarded model judges it in its prefill."""
        ours = isinstance(request.model, ChatGuardedVLM)
        state: Mapping[str, Any] = request.state
        messages: Any = _shown(request.messages, state)
        if not self.active or (inside and ours):
            return AtCall(request.override(messages=messages))
        sent: Any = canonical_messages(messages, self._policy)
        chat, turn = to_judged_chat(sent), state.get("guardrail_turn") or {}
        caution = bool(turn.get("caution"))
        # Other middleware may have changed what is sent since it was judged.
        if inside or turn.get("judged") != digest(chat):
            after = yield chat, partial(outcome, self.reaction, False, noted)
            if after.stops:
                return AtCall(request, True, self._stopped(state, after.verdict))
            caution = bool(after.value)
        request = request.override(messages=sent)
        if ours:
            return AtCall(request, True)
        if request.system_message is not None:
            system: Any = canonical_messages([request.system_message], self._policy)
            request = request.override(system_message=system[0])
        found = yield from self.beside.judge(beside_messages(request), self.reaction)
        if found is not None and found.stops:
            return AtCall(request, True, self._refused(found.verdict))
        if not caution and found is None:
            return AtCall(request, True)
        words = self._policy.caution_prompt
        system = cautioned_system(request.system_message, words)
        return AtCall(request.override(system_message=system), True)

    def after(self, request: ModelRequest[Any], response: Any) -> Judging[Any]:
        """The response of a model that answered in the guarded one's place, if it may be kept.

        It has read everything already; what would be cautioned counts as flagged.
        """
        chat = to_judged_chat(_shown(request.messages, request.state))
        after = yield chat, partial(outcome, self.reaction, False, no_place)
        if not after.stops:
            chats = beside_messages(request)
            found = yield from self.beside.judge(chats, self.reaction, put=no_place)
            after = found or after
        if not after.stops:
            return response
        return ending(self._refused(after.verdict))

    def raising(self, state: Mapping[str, Any], verdict: Verdict) -> Update:
        """What marks a run's newest messages as those that it ended for, and has its end raise.

        A thread keeps what a run began with: an error now would leave it there like any other.

        Raises:
            GuardrailViolation: now, where nothing can be marked: outside a run messages lack ids.
        """
        came = [each for each in newest(state["messages"]) if each.id]
        if not self.active or not came:
            raise GuardrailViolation(verdict)
        told = verdict.to_dict(words=False)
        answer = replies.refusal(self._policy.refusal_message, verdict)
        answer.id = str(uuid4())
        marked = [
            each.model_copy(update={"response_metadata": {**each.response_metadata, _MARK: told}})
            for each in (*came, answer)
        ]
        turn = {"raised": told, "last": came[-1].id}
        hidden = [*(state.get("guardrail_hidden") or ()), *(each.id for each in marked)]
        return {
            "messages": marked,
            "guardrail_turn": turn,
            "guardrail_hidden": hidden,
            "guardrail_verdict": told,
        }

    def _stopped(self, state: Mapping[str, Any], verdict: Verdict) -> Update:
        """What ends a run whose messages are flagged: a refusal, and perhaps an error behind it."""
        if self.reaction.on_flag == "raise" and not is_refused_outage(verdict, self._policy):
            return self.raising(state, verdict)
        return self._refused(verdict)

    def _refused(self, verdict: Verdict) -> Update:
        self.reaction.stop(verdict)
        answer = replies.refusal(self._policy.refusal_message, verdict)
        return {"messages": [answer], "guardrail_verdict": verdict.to_dict(words=False)}

    @property
    def _policy(self) -> Policy:
        return self.reaction.guard.policy


def ending(end: Update) -> ExtendedModelResponse[Any]:
    """A model's response that ends its run."""
    *marked, answer = end["messages"]
    return ExtendedModelResponse(
        ModelResponse(result=[answer]), Command(update={**end, "messages": marked})
    )


def ended_by(state: Mapping[str, Any]) -> Verdict | None:
    """The verdict that a run ends with as an error, if `Turns.raising` ended it."""
    turn = state.get("guardrail_turn") or {}
    if "raised" not in turn:
        return None
    ids = [each.id for each in state["messages"]]
    later = state["messages"][ids.index(turn["last"]) + 1 :] if turn["last"] in ids else []
    # A later run of the thread that was never judged leaves the turn of the one before it.
    over = any(isinstance(each, HumanMessage) for each in later)
    return None if over else Verdict.from_dict(turn["raised"])


def is_ours(response: Any) -> bool:
    """Whether every answer in a model's response was judged in a guarded prefill."""
    response = getattr(response, "model_response", response)
    messages = [response] if isinstance(response, AIMessage) else response.result
    answers = [message for message in messages if isinstance(message, AIMessage)]
    return bool(answers) and all(
        message.response_metadata.get("model_provider") == "guardrail" for message in answers
    )


def newest(messages: Sequence[BaseMessage]) -> list[BaseMessage]:
    """What came in since the model's last turn, less the app's own words; at least the last one."""
    since = next((i for i, m in enumerate(reversed(messages)) if isinstance(m, AIMessage)), None)
    came = messages[len(messages) - since :] if since is not None else messages
    return [each for each in came if not isinstance(each, SystemMessage)] or list(messages[-1:])


def _shown(messages: Sequence[BaseMessage], state: Mapping[str, Any]) -> list[Any]:
    """Messages without those that a run was stopped for; a call keeps some result."""
    hidden = {*(state.get("guardrail_hidden") or ())}
    shown = []
    for message in messages:
        if message.id not in hidden:
            shown.append(message)
        elif isinstance(message, ToolMessage):
            held = {"content": RESULT_WITHHELD, "artifact": None, "status": "error"}
            shown.append(message.model_copy(update=held))
    return shown
