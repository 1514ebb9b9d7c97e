"""What a guard flags is answered by nobody else, whatever stands around it in LangChain."""

from __future__ import annotations

import asyncio
import operator
from typing import Annotated, Any, TypedDict

import pytest
from guardrail_langchain import GuardrailMiddleware, GuardrailRunnable, guard_tool
from langchain.agents import create_agent
from langchain.agents.middleware import (
    ModelFallbackMiddleware,
    ModelRetryMiddleware,
    ToolRetryMiddleware,
)
from langchain.agents.structured_output import ToolStrategy
from langchain_core.caches import InMemoryCache
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.language_models import FakeListChatModel
from langchain_core.messages import AIMessage, HumanMessage
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import RouterRunnable, RunnableBranch, RunnableLambda
from langchain_core.tools import tool
from langgraph.graph import END, START, StateGraph
from langgraph.prebuilt import ToolNode
from pydantic import BaseModel

from guardrail import GuardrailViolation, Policy
from guardrail.testing import FakeGuard
from guardrail.types import Action

PROMPT = ChatPromptTemplate.from_messages([("human", "{q}")])
RAISING = Policy(on_flag="raise")


class Other(FakeListChatModel):
    """A model that is not guarded, and what it was sent."""

    responses: list = ["from another"]  # noqa: RUF012
    seen: list

    def bind_tools(self, tools: Any, **kwargs: Any) -> Any:
        return self

    def _call(self, messages: Any, *args: Any, **kwargs: Any) -> str:
        self.seen.append(messages)
        return super()._call(messages, *args, **kwargs)

    def _stream(self, messages: Any, *args: Any, **kwargs: Any) -> Any:
        self.seen.append(messages)
        yield from super()._stream(messages, *args, **kwargs)

    async def _astream(self, messages: Any, *args: Any, **kwargs: Any) -> Any:
        self.seen.append(messages)
        async for chunk in super()._astream(messages, *args, **kwargs):
            yield chunk


@pytest.fixture
def other() -> Other:
    return Other(seen=[])


async def drained(stream: Any) -> list[Any]:
    return [chunk async for chunk in stream]


WAYS = {
    "invoke": lambda chain, value: chain.invoke(value),
    "stream": lambda chain, value: list(chain.stream(value)),
    "batch": lambda chain, value: chain.batch([value, value]),
    "batch_as_completed": lambda chain, value: list(chain.batch_as_completed([value, value])),
    "ainvoke": lambda chain, value: chain.ainvoke(value),
    "astream": lambda chain, value: drained(chain.astream(value)),
    "astream_events": lambda chain, value: drained(chain.astream_events(value, version="v2")),
    "abatch": lambda chain, value: chain.abatch([value, value]),
    "abatch_as_completed": lambda chain, value: drained(chain.abatch_as_completed([value, value])),
}


async def asked(way: str, chain: Any, value: Any) -> Any:
    found = WAYS[way](chain, value)
    if way.startswith("a"):
        return await asyncio.wait_for(found, 60)  # a hang is a failure, too
    return found


def steps(other: Other, guard: Any) -> dict[str, Any]:
    """Chains around a step that flags "bad"; `other` answers wherever something is caught."""
    step = GuardrailRunnable(guard=guard)
    model = FakeListChatModel(responses=["an answer"])
    fine = RunnableLambda(lambda value: value)
    return {
        "with_fallbacks": (step | model).with_fallbacks([other]),
        "a step with_fallbacks": step.with_fallbacks([fine]) | other,
        "a longer chain with_fallbacks": (fine | step | model | StrOutputParser()).with_fallbacks(
            [other]
        ),
        "fallbacks of fallbacks": (step | model).with_fallbacks([other]).with_fallbacks([other]),
        "with_retry and fallbacks": (step | model).with_retry().with_fallbacks([other]),
        "a branch": RunnableBranch(
            (lambda _: True, step | model), RunnableLambda(lambda _: None)
        ).with_fallbacks([other]),
        "a router": (
            RunnableLambda(lambda value: {"key": "a", "input": value})
            | RouterRunnable({"a": step | model})
        ).with_fallbacks([other]),
        "in parallel": (
            RunnableLambda(lambda value: value) | {"a": step, "b": fine}
        ).with_fallbacks([other]),
        "a map": (RunnableLambda(lambda value: [value]) | (step | model).map()).with_fallbacks(
            [other]
        ),
        "a function": RunnableLambda(lambda value: (step | model).invoke(value)).with_fallbacks(
            [other]
        ),
    }


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", steps(Other(seen=[]), FakeGuard()))
async def test_no_fallback_or_retry_answers_what_is_flagged(way, kind, other):
    guard = FakeGuard(policy=RAISING)
    with pytest.raises(GuardrailViolation):
        await asked(way, steps(other, guard)[kind], "a bad thing")
    assert other.seen == []


# A batch of LangChain's inside another hands a violation on as a value, to its next step: a limit.
@pytest.mark.parametrize("way", [way for way in WAYS if way not in ("batch", "abatch")])
async def test_no_fallback_answers_what_a_retried_step_has_flagged(way, other):
    step = GuardrailRunnable(guard=FakeGuard(policy=RAISING))
    chain = (step.with_retry() | FakeListChatModel(responses=["x"])).with_fallbacks([other])
    with pytest.raises(GuardrailViolation):
        await asked(way, chain, "a bad thing")
    assert other.seen == []


@pytest.mark.parametrize("way", WAYS)
async def test_an_exception_key_hands_no_violation_on(way, other):
    step = GuardrailRunnable(guard=FakeGuard(policy=RAISING), key="q")
    chain = (step | RunnableLambda(lambda value: value)).with_fallbacks(
        [RunnableLambda(lambda value: value["error"])], exception_key="error"
    )
    value = {"q": "bad"}
    with pytest.raises(GuardrailViolation):
        await asked(way, chain, value)
    assert value == {"q": "bad"}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("cached", [False, True])
async def test_no_fallback_answers_what_our_model_has_flagged(way, cached, chat_for, other):
    chat = chat_for(
        Action.FLAG, policy={"on_flag": "raise"}, cache=InMemoryCache() if cached else None
    )
    for chain in (
        chat.with_fallbacks([other]),
        (PROMPT | chat | StrOutputParser()).with_fallbacks([other]),
        chat.with_retry().with_fallbacks([other]),
    ):
        with pytest.raises(GuardrailViolation):
            await asked(way, chain, {"q": "hi"} if hasattr(chain.runnable, "first") else "hi")
    assert other.seen == []


async def test_who_names_the_violation_gets_it(other):
    chain = (GuardrailRunnable(guard=FakeGuard()) | RunnableLambda(lambda _: "")).with_fallbacks(
        [other], exceptions_to_handle=(GuardrailViolation,)
    )
    assert chain.invoke("bad").content == "from another"
    assert (await chain.ainvoke("bad")).content == "from another"


async def test_violations_of_a_batch_stand_in_their_places(chat_for):
    def kinds(found: Any) -> list[str]:
        return [type(each).__name__ for each in found]

    step = GuardrailRunnable(guard=FakeGuard())
    texts, expected = ["fine", "bad", "fine"], ["str", "GuardrailViolation", "str"]
    assert kinds(step.batch(texts, return_exceptions=True)) == expected
    assert kinds(await step.abatch(texts, return_exceptions=True)) == expected
    assert kinds(dict(sorted(step.batch_as_completed(texts, return_exceptions=True))).values()) == (
        expected
    )
    found = await drained(step.abatch_as_completed(texts, return_exceptions=True))
    assert kinds(dict(sorted(found)).values()) == expected
    assert not any(
        isinstance(each, Exception) for each in step.batch(["bad"], return_exceptions=True)
    )
    chat = chat_for(Action.FLAG, policy={"on_flag": "raise"}).with_config(tags=["t"])
    assert kinds(chat.batch(["a", "b"], return_exceptions=True)) == ["GuardrailViolation"] * 2
    assert (
        kinds(await chat.abatch(["a", "b"], return_exceptions=True)) == ["GuardrailViolation"] * 2
    )


async def test_in_a_chain_a_violation_is_that_of_the_whole_batch(other):
    """LangChain's chains hand on whatever is no `Exception`: nothing of such a batch goes on."""
    chain = GuardrailRunnable(guard=FakeGuard()) | other
    found = chain.batch(["fine", "bad"], return_exceptions=True)
    found += await chain.abatch(["fine", "bad"], return_exceptions=True)
    assert [type(each) for each in found] == [GuardrailViolation] * 4
    assert other.seen == []
    single = await asyncio.gather(
        *(chain.ainvoke(text) for text in ("fine", "bad")), return_exceptions=True
    )
    assert [type(each).__name__ for each in single] == ["AIMessage", "GuardrailViolation"]


class Errors(BaseCallbackHandler):
    def __init__(self) -> None:
        self.told: list[Any] = []

    def on_llm_error(self, error: BaseException, **kwargs: Any) -> None:
        self.told.append(error)

    def on_tool_error(self, error: BaseException, **kwargs: Any) -> None:
        self.told.append(error)


@tool
def echo(text: str) -> str:
    """Say it again."""
    return text


async def test_callbacks_hear_of_a_violation_and_callers_get_no_exception(chat_for):
    chat = chat_for(Action.FLAG, policy={"on_flag": "raise"})
    guarded = guard_tool(echo, guard=FakeGuard(policy=RAISING))
    watcher = Errors()
    config = {"callbacks": [watcher]}
    for ask in (
        lambda: chat.ainvoke("hi", config),
        lambda: asyncio.to_thread(chat.invoke, "hi", config),
        lambda: guarded.ainvoke({"text": "bad"}, config),
        lambda: asyncio.to_thread(guarded.invoke, {"text": "bad"}, config),
        lambda: chat.agenerate([[HumanMessage("a")], [HumanMessage("b")]], callbacks=[watcher]),
    ):
        watcher.told.clear()
        with pytest.raises(GuardrailViolation) as caught:
            await ask()
        assert not isinstance(caught.value, Exception)
        assert watcher.told
        assert all(isinstance(error, GuardrailViolation) for error in watcher.told)


# ---- agents and graphs


class Form(BaseModel):
    """A form."""

    name: str


def calling(name: str, **args: Any) -> AIMessage:
    return AIMessage("", tool_calls=[{"name": name, "args": args, "id": "c1", "type": "tool_call"}])


async def of_agent(way: str, agent: Any, text: str) -> Any:
    given = {"messages": [HumanMessage(text)]}
    return await asked(way, agent, given)


AGENT_WAYS = ["invoke", "stream", "ainvoke", "astream", "astream_events", "batch", "abatch"]


@pytest.mark.parametrize("way", AGENT_WAYS)
@pytest.mark.parametrize("first", [False, True])
async def test_no_middleware_has_another_model_answer_what_is_flagged(way, first, chat_for, other):
    chat = chat_for(Action.FLAG, policy={"on_flag": "raise"})
    retry = ModelRetryMiddleware(max_retries=2, initial_delay=0, on_failure="continue")
    for guarding in (
        GuardrailMiddleware(FakeGuard(policy=RAISING)),
        GuardrailMiddleware(model=chat),
    ):
        for more in (ModelFallbackMiddleware(other), retry):
            order = [guarding, more] if first else [more, guarding]
            agent = create_agent(chat, middleware=order)
            with pytest.raises(GuardrailViolation):
                await of_agent(way, agent, "bad")
    # and where the guard is in the model alone
    with pytest.raises(GuardrailViolation):
        await of_agent(way, create_agent(chat, middleware=[ModelFallbackMiddleware(other)]), "bad")
    assert other.seen == []


@pytest.mark.parametrize("way", AGENT_WAYS)
async def test_no_retry_of_tools_or_forms_goes_round_a_violation(way, chat_for):
    class Caller(Other):
        def _generate(self, messages: Any, *args: Any, **kwargs: Any) -> Any:
            found = super()._generate(messages, *args, **kwargs)
            found.generations[0].message = calling("echo", text="bad")
            return found

        def _should_stream(self, **kwargs: Any) -> bool:
            return False

    caller = Caller(seen=[])
    retry = ToolRetryMiddleware(max_retries=2, initial_delay=0, on_failure="continue")
    guarding = GuardrailMiddleware(FakeGuard(policy=RAISING), check=["arguments", "result"])
    guarded = guard_tool(echo, guard=FakeGuard(policy=RAISING))
    for tools, order in (
        ([echo], [guarding, retry]),
        ([echo], [retry, guarding]),
        ([guarded], [retry]),
    ):
        caller.seen.clear()
        with pytest.raises(GuardrailViolation):
            await of_agent(way, create_agent(caller, tools, middleware=order), "hi")
        assert len(caller.seen) == (2 if "batch" in way else 1)
    chat = chat_for(Action.FLAG, policy={"on_flag": "raise"})
    forced = create_agent(chat, response_format=ToolStrategy(Form, handle_errors=True))
    with pytest.raises(GuardrailViolation):
        await of_agent(way, forced, "hi")


class State(TypedDict):
    text: str
    done: Annotated[list, operator.add]


@pytest.mark.parametrize("way", AGENT_WAYS)
@pytest.mark.parametrize("parallel", [False, True])
async def test_a_violation_in_a_graphs_node_ends_the_run_and_reaches_the_caller(way, parallel):
    step = GuardrailRunnable(guard=FakeGuard(policy=RAISING))

    def check(state: State) -> Any:
        return {"done": [step.invoke(state["text"])]}

    async def acheck(state: State) -> Any:
        return {"done": [await step.ainvoke(state["text"])]}

    async def aside(state: State) -> Any:
        return {"done": ["aside"]}

    graph = StateGraph(State)
    graph.add_node("check", RunnableLambda(check, acheck))
    graph.add_edge(START, "check")
    graph.add_edge("check", END)
    if parallel:
        graph.add_node("aside", RunnableLambda(lambda state: {"done": ["aside"]}, aside))
        graph.add_edge(START, "aside")
    with pytest.raises(GuardrailViolation):
        await asked(way, graph.compile(), {"text": "bad", "done": []})


@pytest.mark.parametrize("way", AGENT_WAYS)
async def test_a_tool_nodes_error_handling_makes_no_result_of_a_violation(way):
    guarded = guard_tool(echo, guard=FakeGuard(policy=RAISING))
    node = ToolNode([guarded], handle_tool_errors=True)

    class Messages(TypedDict):
        messages: list

    graph = StateGraph(Messages)
    graph.add_node("tools", node)
    graph.add_edge(START, "tools")
    calls = [
        {"name": "echo", "args": {"text": text}, "id": text, "type": "tool_call"}
        for text in ("fine", "bad")
    ]
    with pytest.raises(GuardrailViolation):
        await asked(way, graph.compile(), {"messages": [AIMessage("", tool_calls=calls)]})
