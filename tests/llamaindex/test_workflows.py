"""A violation ends the workflow it is raised in: nothing tries again, nothing waits for ever."""

# LlamaIndex reads the steps' annotations.
import asyncio
from typing import Any

import pytest
from guardrail_llamaindex import GuardedLLM, guard_tool
from guardrail_llamaindex.replies import end_streams
from llama_index.core.agent.workflow import AgentWorkflow, FunctionAgent, ReActAgent
from llama_index.core.memory import ChatMemoryBuffer
from llama_index.core.tools import FunctionTool
from llama_index.core.workflow import StartEvent, StopEvent, Workflow, step
from llama_index.core.workflow.retry_policy import ConstantDelayRetryPolicy
from llama_index_instrumentation import get_dispatcher

from guardrail.errors import GuardrailViolation
from guardrail.testing import FakeGuard

# Of LlamaIndex's own: it looks at every attribute of an agent, and at `is_running` inside a step.
pytestmark = pytest.mark.filterwarnings(
    "ignore:The `__fields:pydantic.PydanticDeprecatedSince20",
    "ignore:Accessing the 'model_:pydantic.PydanticDeprecatedSince211",
    "ignore:is_running called from within a step:DeprecationWarning",
    "ignore:ConstantDelayRetryPolicy is deprecated:DeprecationWarning",
)

SOON = 20  # s, for what would otherwise wait for ever


def asked(agent: Any, words: str) -> Any:
    # The default memory is a database, which is closed when nobody knows.
    return agent.run(user_msg=words, memory=ChatMemoryBuffer.from_defaults())


async def outcome(handler: Any) -> Any:
    """The result of a run whose events are all read first."""
    async with asyncio.timeout(SOON):
        async for _ in handler.stream_events():
            pass
        return await handler


def calling(messages: Any, **_: Any) -> Any:
    """Calls the tool once, then answers with what it was told."""
    last = messages[-1]
    return f"It says: {last.content}" if last.role.value == "tool" else ("look", {"where": "here"})


def reasoned(messages: Any, **_: Any) -> str:
    """The same, in ReAct's words."""
    seen = str(messages[-1].content)
    if seen.startswith("Observation: "):
        return f"Thought: I can answer.\nAnswer: It says: {seen.removeprefix('Observation: ')}"
    return 'Thought: I look.\nAction: look\nAction Input: {"where": "here"}'


def looking(says: str, guarded: Any = None, *, threads: bool = False) -> Any:
    async def look(where: str) -> str:
        """Look somewhere."""
        return says if guarded is None else (await guarded.acomplete(says)).text

    def look_in_a_thread(where: str) -> str:
        """Look somewhere."""
        return guarded.complete(says).text

    if threads:
        return FunctionTool.from_defaults(look_in_a_thread, name="look")
    return FunctionTool.from_defaults(async_fn=look, name="look")


AGENTS = {"function": (FunctionAgent, calling), "react": (ReActAgent, reasoned)}
every_agent = pytest.mark.parametrize("kind", list(AGENTS))
every_team = pytest.mark.parametrize("team", [False, True], ids=["agent", "workflow"])


def agent(other_llm: Any, kind: str, team: bool, tool: Any, **options: Any) -> tuple[Any, Any]:
    """An agent with a guarded LLM, alone or in a workflow, and the LLM inside."""
    agent_class, script = AGENTS[kind]
    inner = other_llm(script=script, functions=kind == "function")
    llm = GuardedLLM(llm=inner, guard=FakeGuard(), **options)
    made = agent_class(tools=[tool], llm=llm)
    return (AgentWorkflow(agents=[made], root_agent=made.name) if team else made), inner


@every_team
@every_agent
async def test_an_agent_with_a_guarded_llm_calls_its_tool_and_answers(other_llm, kind, team):
    runs, inner = agent(other_llm, kind, team, looking("a cat"))
    assert "It says: a cat" in str(await outcome(asked(runs, "what is this")))
    assert len(inner.seen) == 2


@every_team
@every_agent
async def test_a_flagged_question_is_refused_and_no_tool_is_called(other_llm, kind, team):
    runs, inner = agent(other_llm, kind, team, looking("a cat"))
    answer = await outcome(asked(runs, "bad"))
    assert "sorry" in str(answer)
    assert answer.raw["verdict"]["action"] == "flag"
    assert inner.seen == []


@every_team
@every_agent
async def test_a_violation_ends_the_run_and_its_events(other_llm, kind, team):
    runs, inner = agent(other_llm, kind, team, looking("a cat"), on_flag="raise")
    with pytest.raises(GuardrailViolation):
        await outcome(asked(runs, "bad"))
    assert inner.seen == []


@every_team
@every_agent
async def test_a_violation_about_a_tools_output_ends_the_run(other_llm, kind, team):
    tool = guard_tool(looking("bad"), guard=FakeGuard(), on_flag="raise")
    runs, inner = agent(other_llm, kind, team, tool)
    with pytest.raises(GuardrailViolation):
        await outcome(asked(runs, "what is this"))
    assert len(inner.seen) == 1


@pytest.mark.parametrize("threads", [False, True])
@every_agent
async def test_a_violation_inside_a_tool_ends_the_run(other_llm, kind, threads):
    llm = GuardedLLM(llm=other_llm(), guard=FakeGuard(), on_flag="raise")
    runs, inner = agent(other_llm, kind, False, looking("bad", llm, threads=threads))
    with pytest.raises(GuardrailViolation):
        await outcome(asked(runs, "what is this"))
    assert len(inner.seen) == 1


async def test_a_step_that_raises_is_not_tried_again(other_llm):
    inner, tries = other_llm(), []
    llm = GuardedLLM(llm=inner, guard=FakeGuard(), on_flag="raise")

    class Flow(Workflow):
        @step(retry_policy=ConstantDelayRetryPolicy(delay=0, maximum_attempts=3))
        async def only(self, event: StartEvent) -> StopEvent:
            tries.append(event)
            try:
                answer = await llm.acomplete("bad")
            except Exception:  # a fallback, which must not answer
                answer = await inner.acomplete("bad")
            return StopEvent(result=answer.text)

    with pytest.raises(GuardrailViolation):
        await outcome(Flow().run())
    assert (len(tries), inner.seen) == (1, [])


async def test_a_step_may_catch_it_by_name_and_go_on(other_llm):
    llm = GuardedLLM(llm=other_llm(), guard=FakeGuard(), on_flag="raise")

    class Flow(Workflow):
        @step
        async def only(self, event: StartEvent) -> StopEvent:
            try:
                return StopEvent(result=(await llm.acomplete("bad")).text)
            except GuardrailViolation as error:
                return StopEvent(result=error.verdict.action.value)

    assert await outcome(Flow().run()) == "flag"


async def test_a_step_that_is_no_coroutine_ends_the_run_for_whoever_awaits_it(other_llm):
    llm = GuardedLLM(llm=other_llm(), guard=FakeGuard(), on_flag="raise")

    class Flow(Workflow):
        @step
        def only(self, event: StartEvent) -> StopEvent:
            return StopEvent(result=llm.complete("bad").text)

    with pytest.raises(GuardrailViolation):
        async with asyncio.timeout(SOON):
            await Flow().run()


def test_who_looks_at_spans_is_there_once_and_looks_at_no_others():
    end_streams()
    names = {"workflows.workflow": 1, "llama_index.core.chat_engine.types": 1, "root": 0}
    for name, wanted in names.items():
        handlers = [handler.class_name() for handler in get_dispatcher(name).span_handlers]
        assert len([each for each in handlers if each.startswith("Guardrail")]) == wanted
