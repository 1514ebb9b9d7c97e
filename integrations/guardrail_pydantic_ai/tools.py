"""Tools whose arguments and results a guard reads, and an agent's capability that guards it all."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from pydantic_ai import exceptions
from pydantic_ai.capabilities import AbstractCapability
from pydantic_ai.messages import ToolReturn
from pydantic_ai.tools import AgentDepsT
from pydantic_ai.toolsets import AbstractToolset, WrapperToolset

from guardrail.errors import ConfigurationError
from guardrail.front.arguments import snapshot
from guardrail.front.chats import RESULT_CAUTION, call_chat, error_words, result_chat
from guardrail.front.consequences import Reaction
from guardrail.front.judging import Heard, Judge
from guardrail.front.tool_values import read_value
from guardrail.front.tools import SIDES, WITHHELD, ToolRules
from guardrail_pydantic_ai.fields import models_in, read_rest
from guardrail_pydantic_ai.messages import read_content
from guardrail_pydantic_ai.model import GuardedModel

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from pydantic_ai import RunContext
    from pydantic_ai.capabilities.abstract import WrapModelRequestHandler
    from pydantic_ai.messages import ModelResponse
    from pydantic_ai.models import Model, ModelRequestContext
    from pydantic_ai.toolsets.abstract import ToolsetTool

    from guardrail.audit import Audit
    from guardrail.front.consequences import Checker, OnFlag
    from guardrail.front.judging import Chat
    from guardrail.front.tools import Side
    from guardrail.policy import Policy

# Errors whose words Pydantic-AI shows a model; others end the run, or say how it waits.
_SHOWN: tuple[type[Exception], ...] = tuple(
    getattr(exceptions, name) for name in ("ModelRetry", "ToolFailed") if hasattr(exceptions, name)
)


@dataclass
class GuardedToolset(WrapperToolset[AgentDepsT]):
    """A toolset behind a guard; made by `guard_toolset`.

    A flagged call is not made, a flagged result not handed on: the model gets data that says so
    ("[result withheld by a guard]"). Under `on_flag="raise"` the run ends with
    `GuardrailViolation`. Pictures of both go on in the form that was judged. A caution goes before
    a result that is a text or a list; other results, and arguments, have no place for one and count
    as flagged. The words of a `ModelRetry` are judged like a result.
    """

    rules: ToolRules

    async def call_tool(
        self,
        name: str,
        tool_args: dict[str, Any],
        ctx: RunContext[AgentDepsT],
        tool: ToolsetTool[AgentDepsT],
    ) -> Any:
        """Check, call, check."""
        if "arguments" in self.rules.sides:
            read = partial(_call_said, name, tool_args, self._policy)
            withheld, tool_args = await self._ruled(tool_args, read)
            if withheld:
                return WITHHELD["arguments"]
        if "result" not in self.rules.sides:
            return await super().call_tool(name, tool_args, ctx, tool)
        try:
            result = await super().call_tool(name, tool_args, ctx, tool)
        except _SHOWN as error:
            words = error_words(error)
            withheld, _ = await self._ruled(words, lambda: _Said(words, words))
            if withheld:
                return WITHHELD["result"]
            raise
        read = partial(_result_said, result, self._policy, f"the result of {name}")
        withheld, result = await self._ruled(result, read, _cautioned)
        return WITHHELD["result"] if withheld else result

    @property
    def _policy(self) -> Policy:
        return self.rules.guard.policy

    async def _ruled(
        self,
        value: Any,
        read: Callable[[], _Said],
        caution: Callable[[Any, str], Any | None] = lambda value, words: None,
    ) -> tuple[bool, Any]:
        """Whether a value is withheld, and the value as it goes on."""
        judge = Judge(self.rules.reaction)
        said, verdict = await judge.aruled(read)
        if said is None:
            return False, value
        if verdict is None:
            return False, said.value
        # The policy's own words are about requests.
        after = judge.settle(verdict, lambda _words: caution(said.value, RESULT_CAUTION))
        if after.done == "flag":
            self.rules.reaction.stop(after.verdict)
        return after.done == "flag", said.value if after.cautioned is None else after.cautioned


def guard_toolset(
    toolset: AbstractToolset[AgentDepsT],
    *,
    guard: Checker,
    check: Collection[Side] | Side = SIDES,
    on_flag: OnFlag | None = None,
    audit: Audit | None = None,
) -> GuardedToolset[AgentDepsT]:
    """Any toolset (functions, MCP servers), its arguments and results judged; see `GuardedToolset`.

        agent = Agent(model, toolsets=[guard_toolset(MCPToolset(url), guard=guard)])

    Args:
        toolset: any toolset.
        guard: the guard that checks.
        check: what is checked: "arguments", "result" or both.
        on_flag: another `on_flag` than the policy's.
        audit: gets each verdict with `{"event": "call", "done": "flag", "caution" or "pass"}`.

    Raises:
        ConfigurationError: `check` is empty or names something else.
    """
    rules = ToolRules.of(guard, check, on_flag=on_flag, audit=audit)
    return GuardedToolset(toolset, rules)


@dataclass
class Guardrail(AbstractCapability[AgentDepsT]):
    """A guard in front of an agent's model, whichever that is, and around all its tools.

        agent = Agent("openai:gpt-4.1", tools=[search], capabilities=[Guardrail(guard)])

    Every request is judged as by `GuardedModel`, also where a run, a fallback or another capability
    chooses the model, and the tools of all toolsets as by `guard_toolset`. List it last: then it
    sees what other capabilities change. Where one of them has the model sum up a history, that is
    judged, too. Sessions of speech have no place for a verdict, and are refused unless `check`
    names only sides of tools.

    Args:
        guard: the guard that judges.
        check: what is judged: "input" (before the model), "arguments" and "result" of tools.
        on_flag: another `on_flag` than the policy's.
        audit: gets each verdict with `{"event": "call", "done": "flag", "caution" or "pass"}`.

    Raises:
        ConfigurationError: `check` names something else; it is to be loaded later than requests are
            made; in a run, it cannot judge all that its model reads.
    """

    guard: Checker
    check: Collection[str] = ("input", *SIDES)
    on_flag: OnFlag | None = None
    audit: Audit | None = None
    _judge: Judge | None = field(init=False, repr=False)
    _rules: ToolRules = field(init=False, repr=False)

    def __post_init__(self) -> None:
        """Refuse settings that say nothing."""
        reaction = Reaction(self.guard, self.on_flag, self.audit)
        sides = frozenset((self.check,) if isinstance(self.check, str) else self.check)
        self._judge = Judge(reaction) if "input" in sides else None
        self._rules = ToolRules(reaction, sides - {"input"})
        if self.defer_loading:
            raise ConfigurationError("a guard is there from the first request; leave defer_loading")

    @classmethod
    def get_serialization_name(cls) -> str | None:
        """None: a guard holds a loaded model, which no specification names."""
        return None

    async def before_run(self, ctx: RunContext[AgentDepsT]) -> None:
        """Refuse a session of speech: words reach its model as they are said."""
        if self._judge is not None and ctx.realtime:
            raise ConfigurationError(
                "Guardrail cannot judge what a realtime session says to its model; to guard its "
                'tools alone, give check=("arguments", "result")'
            )

    async def wrap_model_request(
        self,
        ctx: RunContext[AgentDepsT],
        *,
        request_context: ModelRequestContext,
        handler: WrapModelRequestHandler,
    ) -> ModelResponse:
        """Have the model guarded already where hooks before a request sum up a history."""
        return await handler(self._ahead(ctx, request_context))

    async def prepare_model_request(
        self, ctx: RunContext[AgentDepsT], request_context: ModelRequestContext
    ) -> ModelRequestContext:
        """The same for each attempt: another capability may have chosen another model for it."""
        return self._ahead(ctx, request_context)

    def get_wrapper_model(self, model: Model) -> Model | None:
        """The model behind the guard, once."""
        judge = self._judge
        return None if judge is None or _is_guarded(model, judge) else self._guarded(judge, model)

    def get_wrapper_toolset(
        self, toolset: AbstractToolset[AgentDepsT]
    ) -> AbstractToolset[AgentDepsT] | None:
        """The agent's tools behind the guard."""
        return GuardedToolset(toolset, self._rules) if self._rules.sides else None

    def _ahead(
        self, ctx: RunContext[AgentDepsT], request: ModelRequestContext
    ) -> ModelRequestContext:
        """A request with its model guarded, if a capability has that model sum up histories."""
        judge = self._judge
        if judge is None or _is_guarded(request.model, judge) or not _sums_up(ctx):
            return request
        if ctx.in_durable_context:
            raise ConfigurationError(
                "Guardrail does not judge what a durable run has its model sum up; give the agent "
                "GuardedModel(model, guard=guard)"
            )
        request.model = self._guarded(judge, request.model)
        return request

    @staticmethod
    def _guarded(judge: Judge, model: Model) -> GuardedModel:
        return GuardedModel.judged_by(judge, model)


def _is_guarded(model: Model, judge: Judge) -> bool:
    """Whether a model is behind this guard already."""
    return any(
        isinstance(each, GuardedModel) and each.is_judged_by(judge) for each in models_in(model)
    )


def _sums_up(ctx: RunContext[Any]) -> bool:
    """Whether a capability of the run may have its model sum up a history."""
    found: list[AbstractCapability[Any]] = []
    if ctx.root_capability is not None:
        ctx.root_capability.apply(found.append)
    own = getattr(AbstractCapability, "compact_history", None)
    return any(
        getattr(type(each), "compact_history", None) is not own
        or type(each).__name__ == "OpenAICompaction"  # of versions that have no such hook
        for each in found
    )


@dataclass(frozen=True, slots=True)
class _Said:
    """A value as it goes on, and what a guard reads of it: a text, parts, or a call."""

    value: Any
    content: str | Chat

    @property
    def heard(self) -> Heard | None:
        return Heard(result_chat(self.content), []) if self.content else None


def _call_said(name: str, arguments: dict[str, Any], policy: Policy) -> _Said:
    """A call as the model wrote it, pictures in it apart; nothing, where it wrote none."""
    if not arguments:
        return _Said(arguments, "")
    given: Any = snapshot(arguments)  # what is judged is what the tool gets
    reading = read_value(given, policy, f"the arguments of {name}")
    said = reading.said if isinstance(reading.said, Mapping) else {}
    [turn] = call_chat(name, said, reading.parts)
    return _Said(reading.value, turn["content"])


def _result_said(result: Any, policy: Policy, what: str) -> _Said:
    """A result as it goes on; what a `ToolReturn` says beside it is a user's message."""
    if not isinstance(result, ToolReturn):
        kept, parts = read_content(snapshot(result), policy, what)
        return _Said(kept, parts)
    value, parts = read_content(snapshot(result.return_value), policy, what)
    content, beside = result.content, list[dict[str, Any]]()
    if content is not None:
        content, beside = read_content(snapshot(content), policy, what)
    _, rest = read_rest(result, {"return_value", "content"}, policy, what)
    kept = replace(result, return_value=value, content=content)
    return _Said(kept, [*parts, *beside, *rest])


def _cautioned(value: Any, words: str) -> Any | None:
    """A result with words before it; None where there is no place for them."""
    if isinstance(value, ToolReturn):
        cautioned = _cautioned(value.return_value, words)
        return None if cautioned is None else replace(value, return_value=cautioned)
    if isinstance(value, str):
        return f"{words}\n\n{value}"
    return [words, *value] if isinstance(value, list) else None
