"""Guardrails in the SDK's own forms, and an agent that has them all."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from agents import (
    Agent,
    FunctionTool,
    GuardrailFunctionOutput,
    Handoff,
    InputGuardrail,
    ItemHelpers,
    OutputGuardrail,
    ToolGuardrailFunctionOutput,
    ToolInputGuardrail,
    ToolOutputGuardrail,
)
from openai.types.responses import ResponseFunctionToolCall
from pydantic_core import to_jsonable_python

from guardrail.errors import ConfigurationError
from guardrail.front.chats import RESULT_CAUTION, call_chat, result_chat
from guardrail.front.consequences import Reaction, record, settled
from guardrail.front.judging import Heard, Judge, answer_verdict
from guardrail.front.tool_values import cautioned_result, read_value
from guardrail.front.tools import SIDES, WITHHELD, ToolRules
from guardrail.inputs.strict_json import strict_json
from guardrail.policy.acting import one_reading
from guardrail_agents.items import ModelCall, output_parts
from guardrail_agents.model import GuardedModel

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from agents import (
        ModelProvider,
        RunContextWrapper,
        ToolInputGuardrailData,
        ToolOutputGuardrailData,
    )

    from guardrail.audit import Audit
    from guardrail.front.consequences import AnswerChecker, Checker, OnFlag, Settled
    from guardrail.front.judging import Chat
    from guardrail.front.tools import Side
    from guardrail.policy import Policy

NAME = "guardrail"


def input_guardrail(
    guard: Checker,
    *,
    on_flag: OnFlag | None = None,
    audit: Audit | None = None,
    name: str = NAME,
) -> InputGuardrail[Any]:
    """A guardrail that reads a run's input before the model does.

        agent = Agent("helper", input_guardrails=[input_guardrail(guard)])

    It does not run beside the model: the model is asked once it is done. A flagged input trips the
    tripwire, unless `on_flag` is "annotate"; the verdict is in `output_info` either way. The SDK
    shows a guardrail a run's input (with the session's history), and nothing of what comes later;
    `guarded_agent` and `GuardedModel` see it all. A guardrail changes nothing, so what would be
    cautioned counts as flagged, and pictures must have one reading.
    """
    judge = Judge(Reaction(guard, on_flag, audit))
    return _input_guardrail(judge, name, alone=True)


def output_guardrail(
    guard: AnswerChecker,
    *,
    on_flag: OnFlag | None = None,
    audit: Audit | None = None,
    name: str = NAME,
) -> OutputGuardrail[Any]:
    """A guardrail that reads an agent's final output.

    A policy that has answers watched has it judged as one. Without that it is read as text that
    somebody says, whose scores are calibrated on users: look at the verdicts on your own traffic
    first (`Policy(mode="shadow")`). In a stream the output is out before it is judged.
    """
    judge = Judge(Reaction(guard, on_flag, audit))

    async def check(
        context: RunContextWrapper[Any], agent: Agent[Any], output: Any
    ) -> GuardrailFunctionOutput:
        if guard.policy.watch == "answer":
            verdict = await answer_verdict(guard.acheck_answer, _output_text(output), guard.policy)
        else:
            _, verdict = await judge.aruled(lambda: _Said(_output_chat(output)))
        return _tripped(None if verdict is None else judge.settle(verdict))

    return OutputGuardrail(check, name)


def tool_guardrails(
    guard: Checker,
    *,
    check: Collection[Side] | Side = SIDES,
    on_flag: OnFlag | None = None,
    audit: Audit | None = None,
    name: str = NAME,
) -> tuple[list[ToolInputGuardrail[Any]], list[ToolOutputGuardrail[Any]]]:
    """Guardrails on a tool's arguments before it runs and on its output before the model reads it.

        before, after = tool_guardrails(guard)
        server = MCPServerStdio(params, tool_input_guardrails=before, tool_output_guardrails=after)

    A flagged call is not made, a flagged output not handed on: the model gets data that says so
    ("[result withheld by a guard]"). Under `on_flag="raise"` the SDK ends the run with its
    tripwire's exception. A caution goes before an output that is text; other outputs, and
    arguments, have no place for one and count as flagged. Pictures must have one reading.

    Raises:
        ConfigurationError: `check` names no side of a call.
    """
    return _tool_guardrails(ToolRules.of(guard, check, on_flag=on_flag, audit=audit), name, True)


def guard_tool(
    tool: FunctionTool,
    *,
    guard: Checker,
    check: Collection[Side] | Side = SIDES,
    on_flag: OnFlag | None = None,
    audit: Audit | None = None,
) -> FunctionTool:
    """A copy of a function tool with `tool_guardrails` behind its own guardrails.

    Raises:
        ConfigurationError: it is no function tool, or `check` names no side of a call.
    """
    rules = ToolRules.of(guard, check, on_flag=on_flag, audit=audit)
    return _guarded_tool(tool, *_tool_guardrails(rules, NAME, True))


def guarded_agent(
    agent: Agent[Any],
    *,
    guard: Checker,
    check: Collection[str] = ("input", *SIDES),
    on_flag: OnFlag | None = None,
    audit: Audit | None = None,
    provider: ModelProvider | None = None,
) -> Agent[Any]:
    """A copy of an agent whose model reads nothing that is not judged.

        agent = guarded_agent(Agent("helper", tools=[search]), guard=guard)
        result = await Runner.run(agent, "...")

    It has an `input_guardrail`, so that a flagged input ends the run with the SDK's own tripwire; a
    `GuardedModel`, which judges in every turn what the guardrail is not shown; and
    `tool_guardrails` on its function tools. The agents that it hands off to are copied, too. The
    first turn's input is judged once. An agent that is used as a tool is guarded by itself.

    Args:
        agent: any agent; it stays as it is.
        guard: the guard that judges.
        check: what is judged: "input", "arguments" and "result" of tools.
        on_flag: another `on_flag` than the policy's.
        audit: gets each verdict with `{"event": "call", "done": "flag", "caution" or "pass"}`.
        provider: who knows models by their names; by default the SDK's own. A model or a provider
            in a run's `RunConfig` is not guarded: a model there takes the place of the agent's.

    Raises:
        ConfigurationError: `check` names something else.
    """
    sides = frozenset((check,) if isinstance(check, str) else check)
    rules = ToolRules(Reaction(guard, on_flag, audit), sides - {"input"})
    return _Arming(rules, "input" in sides, provider, {}).agent(agent)


@dataclass(frozen=True, slots=True)
class _Arming:
    """How one agent, and those that it hands off to, are armed."""

    rules: ToolRules
    inputs: bool
    provider: ModelProvider | None
    done: dict[int, tuple[Agent[Any], Agent[Any]]]  # by id; agents may hand off in circles

    def agent(self, agent: Agent[Any]) -> Agent[Any]:
        if (known := self.done.get(id(agent))) is not None:
            return known[1]
        armed = copy.copy(agent)
        self.done[id(agent)] = (agent, armed)
        before, after = _tool_guardrails(self.rules, NAME, False)
        armed.tools = [
            _guarded_tool(tool, before, after) if isinstance(tool, FunctionTool) else tool
            for tool in agent.tools
        ]
        armed.handoffs = [self._handoff(each) for each in agent.handoffs]
        if self.inputs:
            reaction = self.rules.reaction
            model = GuardedModel(
                agent.model,
                guard=reaction.guard,
                on_flag=reaction.other,
                audit=reaction.audit,
                provider=self.provider,
            )
            armed.model = model
            first = _input_guardrail(model.judge, NAME, alone=False)
            armed.input_guardrails = [*agent.input_guardrails, first]
        return armed

    def _handoff(self, target: Agent[Any] | Handoff[Any, Any]) -> Agent[Any] | Handoff[Any, Any]:
        if isinstance(target, Agent):
            return self.agent(target)
        invoke = target.on_invoke_handoff

        async def armed(context: RunContextWrapper[Any], arguments: str) -> Any:
            return self.agent(await invoke(context, arguments))

        other = copy.copy(target)
        other.on_invoke_handoff = armed
        return other


@dataclass(frozen=True, slots=True)
class _Said:
    """One chat that is judged alone."""

    chat: Chat

    @property
    def heard(self) -> Heard | None:
        return Heard(self.chat, []) if self.chat else None


def _input_guardrail(judge: Judge, name: str, *, alone: bool) -> InputGuardrail[Any]:
    """`alone`: no `GuardedModel` of the same judge comes behind it, which can caution."""

    async def check(
        context: RunContextWrapper[Any], agent: Agent[Any], items: Any
    ) -> GuardrailFunctionOutput:
        policy = judge.guard.policy
        rules = one_reading(policy) if alone else policy
        call, verdict = await judge.aruled(partial(ModelCall.of, items, rules))
        if call is None or verdict is None:
            return _tripped(None)
        if alone:
            return _tripped(judge.settle(verdict))
        reaction = judge.reaction
        after = settled(verdict, policy, caution=lambda words: True, on_flag=reaction.on_flag)
        if after.done == "flag":
            record(reaction.audit, after.verdict, after.done)
        else:
            judge.remember(call.heard, verdict)  # the model's own turn tells of it
        return _tripped(after)

    return InputGuardrail(check, name, run_in_parallel=False)


def _tripped(after: Settled | None) -> GuardrailFunctionOutput:
    if after is None:
        return GuardrailFunctionOutput(None, False)
    return GuardrailFunctionOutput(after.verdict.to_dict(words=False), after.done == "flag")


def _tool_guardrails(
    rules: ToolRules, name: str, alone: bool
) -> tuple[list[ToolInputGuardrail[Any]], list[ToolOutputGuardrail[Any]]]:
    """`alone`: no `GuardedModel` comes behind them, which makes pictures canonical."""
    judge = Judge(rules.reaction)

    async def before(data: ToolInputGuardrailData) -> ToolGuardrailFunctionOutput:
        name, arguments = data.context.tool_name, data.context.tool_arguments
        # The tool gets the arguments as they are.
        read = partial(_call_said, name, arguments, one_reading(rules.guard.policy))
        return await _ruled(judge, read, "arguments")

    async def after(data: ToolOutputGuardrailData) -> ToolGuardrailFunctionOutput:
        shown, policy = _shown_output(data), rules.guard.policy
        read = partial(_output_said, shown, one_reading(policy) if alone else policy)
        caution = partial(cautioned_result, shown) if isinstance(shown, str) else _no_place
        return await _ruled(judge, read, "result", caution)

    # One that checks nothing would still be listed among a run's results.
    inputs = [ToolInputGuardrail[Any](before, name)] if "arguments" in rules.sides else []
    outputs = [ToolOutputGuardrail[Any](after, name)] if "result" in rules.sides else []
    return inputs, outputs


def _no_place(words: str) -> None:
    """For what takes no word of caution."""


async def _ruled(
    judge: Judge,
    read: Callable[[], _Said],
    side: Side,
    caution: Callable[[str], str | None] = _no_place,
) -> ToolGuardrailFunctionOutput:
    _, verdict = await judge.aruled(read)
    if verdict is None:
        return ToolGuardrailFunctionOutput.allow()
    # The policy's own words are about requests.
    after = judge.settle(verdict, lambda _words: caution(RESULT_CAUTION))
    told = after.verdict.to_dict(words=False)
    if after.done == "caution":
        return ToolGuardrailFunctionOutput.reject_content(after.cautioned, told)
    if after.done == "pass":
        return ToolGuardrailFunctionOutput.allow(told)
    if judge.reaction.on_flag == "raise":
        return ToolGuardrailFunctionOutput.raise_exception(told)
    return ToolGuardrailFunctionOutput.reject_content(WITHHELD[side], told)


def _call_said(name: str, arguments: str, policy: Policy) -> _Said:
    """A call as the model wrote it, pictures in it apart; nothing, where it wrote none."""
    if arguments.strip() in ("", "{}"):
        return _Said([])
    try:
        written = strict_json(arguments)
    except (ValueError, RecursionError):
        return _Said(call_chat(name, arguments))
    if not isinstance(written, Mapping):
        return _Said(call_chat(name, arguments))
    reading = read_value(written, policy, f"the arguments of {name}")
    said = reading.said if isinstance(reading.said, Mapping) else {}
    return _Said(call_chat(name, said, reading.parts))


def _output_said(shown: str | list[Any], policy: Policy) -> _Said:
    parts = output_parts(shown, policy)
    return _Said(result_chat(parts) if parts else [])


def _shown_output(data: ToolOutputGuardrailData) -> str | list[Any]:
    """A tool's output as the SDK will put it into the model's input."""
    context = data.context
    call = ResponseFunctionToolCall(
        type="function_call",
        call_id=context.tool_call_id,
        name=context.tool_name,
        arguments=context.tool_arguments,
    )
    shown: Any = ItemHelpers.tool_call_output_item(call, data.output)["output"]
    return shown if isinstance(shown, str) else list(shown)


def _guarded_tool(
    tool: FunctionTool,
    before: list[ToolInputGuardrail[Any]],
    after: list[ToolOutputGuardrail[Any]],
) -> FunctionTool:
    if not isinstance(tool, FunctionTool):
        raise ConfigurationError(f"guard_tool wraps a function tool, not a {type(tool).__name__}")
    copied = copy.copy(tool)
    copied.tool_input_guardrails = [*(tool.tool_input_guardrails or ()), *before]
    copied.tool_output_guardrails = [*(tool.tool_output_guardrails or ()), *after]
    return copied


def _output_chat(output: Any) -> Chat:
    text = _output_text(output)
    return result_chat(text) if text else []


def _output_text(output: Any) -> str:
    """A final output: text, or the JSON of an object."""
    if isinstance(output, str):
        return output
    return json.dumps(to_jsonable_python(output), ensure_ascii=False)
