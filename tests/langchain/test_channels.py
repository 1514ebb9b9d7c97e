"""By whatever way words reach a model, the guard reads them."""

from __future__ import annotations

from typing import Any

import pytest
from guardrail_langchain import GuardrailMiddleware, GuardrailRunnable, guard_node, guard_tool
from langchain.agents import create_agent
from langchain.agents.middleware import AgentMiddleware, SummarizationMiddleware, dynamic_prompt
from langchain.agents.structured_output import AutoStrategy, ProviderStrategy, ToolStrategy
from langchain_core.language_models import FakeListChatModel
from langchain_core.messages import (
    AIMessage,
    ChatMessage,
    FunctionMessage,
    HumanMessage,
    SystemMessage,
    ToolMessage,
)
from langchain_core.runnables import ConfigurableField, RunnableBranch, RunnableLambda
from langchain_core.tools import StructuredTool
from langgraph.graph import END
from pydantic import BaseModel, Field

from guardrail import GuardrailViolation, Policy
from guardrail.front.chats import RESULT_WITHHELD
from guardrail.policy import CAUTION, REFUSAL
from guardrail.testing import FakeGuard

WORDS = "do a bad thing"
CALL = {"name": "find", "args": {}, "id": "c1", "type": "tool_call"}
ASKED = AIMessage("", tool_calls=[CALL])


class Model(FakeListChatModel):
    """A model that is not guarded, what it was sent and what is bound to it."""

    responses: list = ["an answer"]  # noqa: RUF012
    seen: list = []  # noqa: RUF012

    def bind_tools(self, tools: Any, **kwargs: Any) -> Any:
        return self

    def _call(self, messages: Any, *args: Any, **kwargs: Any) -> str:
        self.seen.append(messages)
        return super()._call(messages, *args, **kwargs)


def model() -> Model:
    return Model(seen=[])


def said(content: Any, **more: Any) -> list[Any]:
    return [HumanMessage(content, **more)]


def answered(*content: Any, **more: Any) -> list[Any]:
    return [HumanMessage("hi"), AIMessage(*content, **more), HumanMessage("and?")]


def resulted(content: Any, **more: Any) -> list[Any]:
    return [HumanMessage("hi"), ASKED, ToolMessage(content, tool_call_id="c1", **more)]


def called(**more: Any) -> list[Any]:
    return answered("", tool_calls=[{**CALL, **more}])


IN_MESSAGES: dict[str, list[Any]] = {
    "text": said(WORDS),
    "a text block": said([{"type": "text", "text": WORDS}]),
    "a str among blocks": said([WORDS]),
    "a name": said("hi", name=WORDS),
    "an older name": said("hi", additional_kwargs={"name": WORDS}),
    "an id": said("hi", id=WORDS),
    "an unknown keyword": said("hi", additional_kwargs={"note": {"deep": [WORDS]}}),
    "a block's id": said([{"type": "text", "text": "hi", "id": WORDS}]),
    "a block's status": said([{"type": "text", "text": "hi", "status": WORDS}]),
    "a block's extras": said([{"type": "text", "text": "hi", "extras": {"phase": WORDS}}]),
    "a cache's hint": said(
        [{"type": "text", "text": "hi", "cache_control": {"type": "x", "note": WORDS}}]
    ),
    "an annotation": answered(
        [{"type": "text", "text": "hi", "annotations": [{"type": "citation", "title": WORDS}]}]
    ),
    "an annotation's address": answered(
        [{"type": "text", "text": "hi", "annotations": [{"type": "citation", "url": WORDS}]}]
    ),
    "a citation": answered([{"type": "text", "text": "hi", "citations": [{"cited_text": WORDS}]}]),
    "a document": said([{"type": "text-plain", "text": WORDS, "mime_type": "text/plain"}]),
    "a document's title": said(
        [{"type": "text-plain", "text": "hi", "mime_type": "text/plain", "title": WORDS}]
    ),
    "a document's id": said(
        [{"type": "text-plain", "text": "hi", "mime_type": "text/plain", "id": WORDS}]
    ),
    "a document of Anthropic's": said(
        [
            {
                "type": "document",
                "source": {"type": "text", "media_type": "text/plain", "data": WORDS},
            }
        ]
    ),
    "a role": [ChatMessage(WORDS, role="developer")],
    "an older function's result": [HumanMessage("hi"), FunctionMessage(WORDS, name="find")],
    "a system message": [SystemMessage(WORDS), HumanMessage("hi")],
    "an answer": answered(WORDS),
    "reasoning": answered([{"type": "reasoning", "reasoning": WORDS}, "so"]),
    "thinking": answered([{"type": "thinking", "thinking": WORDS, "signature": "s"}, "so"]),
    "a signature that is none": answered(
        [{"type": "thinking", "thinking": "hm", "signature": WORDS}, "so"]
    ),
    "older reasoning": answered("so", additional_kwargs={"reasoning_content": WORDS}),
    "a refusal": answered("", additional_kwargs={"refusal": WORDS}),
    "a refusal block": answered([{"type": "refusal", "refusal": WORDS}]),
    "a recording's words": answered("", additional_kwargs={"audio": {"transcript": WORDS}}),
    "a recording's id": answered("so", additional_kwargs={"audio": {"id": WORDS}}),
    "a call's name": called(name=WORDS),
    "a call's arguments": called(args={"q": WORDS}),
    "a call's id": [
        HumanMessage("hi"),
        AIMessage("", tool_calls=[{**CALL, "id": WORDS}]),
        ToolMessage("so", tool_call_id=WORDS),
    ],
    "a broken call": answered(
        "", invalid_tool_calls=[{"name": "find", "args": WORDS, "id": "c1", "error": None}]
    ),
    "a call's block": answered(
        [{"type": "tool_use", "id": "c", "name": "f", "input": {"q": WORDS}}]
    ),
    "beside a call's block": answered(
        [{"type": "tool_use", "id": "c", "name": "f", "input": {}, "note": WORDS}]
    ),
    "a call's block, in the other key": answered(
        [{"type": "tool_use", "id": "c", "name": "f", "input": {}, "args": {"q": WORDS}}]
    ),
    "a provider's own record of a call": answered(
        "",
        tool_calls=[CALL],
        additional_kwargs={
            "tool_calls": [{"id": "c1", "function": {"name": "find", "arguments": WORDS}}]
        },
    ),
    "a key of a keyword": said("hi", additional_kwargs={WORDS: 1}),
    "an older call": answered(
        "", additional_kwargs={"function_call": {"name": "f", "arguments": WORDS}}
    ),
    "a tool's result": resulted(WORDS),
    "a tool's result in blocks": resulted([{"type": "text", "text": WORDS}]),
    "a result's name": resulted("so", name=WORDS),
    "a result's id": resulted("so", id=WORDS),
    "a result's keyword": resulted("so", additional_kwargs={"note": WORDS}),
}


@pytest.mark.parametrize("channel", IN_MESSAGES)
@pytest.mark.parametrize("asynchronous", [False, True])
async def test_words_in_messages_are_read(channel, asynchronous):
    llm = model()
    agent = create_agent(llm, middleware=[GuardrailMiddleware(FakeGuard())])
    given = {"messages": IN_MESSAGES[channel]}
    state = await agent.ainvoke(given) if asynchronous else agent.invoke(given)
    assert state["messages"][-1].content == REFUSAL
    assert llm.seen == []
    with pytest.raises(GuardrailViolation):
        GuardrailRunnable(guard=FakeGuard()).invoke(IN_MESSAGES[channel])
    node = guard_node(FakeGuard(), goto="model")
    assert (await node.ainvoke(given) if asynchronous else node.invoke(given)).goto == END


@pytest.mark.parametrize("channel", IN_MESSAGES)
def test_the_same_messages_pass_without_the_words(channel):
    """So that it is the words that are found."""
    guard = FakeGuard(flag=["another thing"])
    assert GuardrailRunnable(guard=guard).invoke(IN_MESSAGES[channel]) is IN_MESSAGES[channel]
    node = guard_node(guard, goto="model")
    assert node.invoke({"messages": IN_MESSAGES[channel]}).goto == "model"


# ---- what comes along with an agent's messages


class Form(BaseModel):
    """A form."""

    name: str = Field(description=WORDS)


class Documented(BaseModel):
    name: str


Documented.__doc__ = WORDS


def named(**more: Any) -> StructuredTool:
    options = {"name": "find", "description": "Find it.", "func": lambda q: q, **more}
    return StructuredTool.from_function(**options)


@dynamic_prompt
def prompted(request: Any) -> str:
    return WORDS


class Changes(AgentMiddleware):
    """Changes the call of the model."""

    def __init__(self, **changes: Any) -> None:
        super().__init__()
        self.changes = changes

    def wrap_model_call(self, request: Any, handler: Any) -> Any:
        return handler(request.override(**self.changes))

    async def awrap_model_call(self, request: Any, handler: Any) -> Any:
        return await handler(request.override(**self.changes))


def describing(words: str) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": {"q": {"type": "string", "description": words}},
        "required": ["q"],
    }


BESIDE: dict[str, dict[str, Any]] = {
    "the system prompt": {"system_prompt": WORDS},
    "a system message's blocks": {
        "system_prompt": SystemMessage([{"type": "text", "text": WORDS}])
    },
    "a system message's name": {"system_prompt": SystemMessage("be kind", name=WORDS)},
    "a dynamic prompt": {"before": [prompted]},
    "a tool's description": {"tools": [named(description=WORDS)]},
    "a tool's argument": {"tools": [named(args_schema=describing(WORDS), infer_schema=False)]},
    "a tool's extras": {"tools": [named(extras={"note": WORDS})]},
    "a provider's tool": {"tools": [{"type": "web_search", "filters": {"note": WORDS}}]},
    "a middleware's tool": {"before": [Changes(tools=[named(description=WORDS)])]},
    "a form's field": {"response_format": ToolStrategy(Form)},
    "a form's description": {"response_format": ToolStrategy(Documented)},
    "a form of any kind": {"response_format": Form},
    "a form of either": {"response_format": AutoStrategy(Form)},
    "a form of the provider's": {"before": [Changes(response_format=ProviderStrategy(Form))]},
    "a setting": {"before": [Changes(model_settings={"extra_body": {"instructions": WORDS}})]},
    "a choice of tools": {"before": [Changes(tool_choice={"name": WORDS})]},
    "what is bound to the model": {"model": lambda m: m.bind(tools=[{"description": WORDS}])},
}


def agent_of(llm: Any, guarding: Any, options: dict[str, Any]) -> Any:
    options = dict(options)
    made = options.pop("model", lambda m: m)(llm)
    before = options.pop("before", [])
    return create_agent(made, middleware=[*before, guarding], **options)


@pytest.mark.parametrize("channel", BESIDE)
@pytest.mark.parametrize("asynchronous", [False, True])
async def test_words_beside_the_messages_are_read(channel, asynchronous):
    llm = model()
    agent = agent_of(llm, GuardrailMiddleware(FakeGuard()), BESIDE[channel])
    given = {"messages": said("hi")}
    state = await agent.ainvoke(given) if asynchronous else agent.invoke(given)
    assert state["messages"][-1].content == REFUSAL
    assert state["guardrail_verdict"]["action"] == "flag"
    assert llm.seen == []
    raising = GuardrailMiddleware(FakeGuard(policy=Policy(on_flag="raise")))
    with pytest.raises(GuardrailViolation):
        agent_of(llm, raising, BESIDE[channel]).invoke(given)
    assert llm.seen == []


async def test_each_is_judged_once_and_again_when_it_changes():
    prompts = iter(["be kind", "be kind", "be brief", "be brief", "be kind"])

    @dynamic_prompt
    def prompt(request: Any) -> str:
        return next(prompts)

    guard = FakeGuard()
    guarding = GuardrailMiddleware(guard)
    agent = create_agent(model(), [named()], middleware=[prompt, guarding])
    for _ in range(4):
        await agent.ainvoke({"messages": said("hi")})
    agent.invoke({"messages": said("hi")})
    read = [chat[0]["content"] for chat in guard.seen]
    assert [text for text in read if text.startswith("be ")] == ["be kind", "be brief"]
    assert len([text for text in read if "Find it." in text]) == 1
    assert read.count("hi") == 5


async def test_a_long_prompt_is_judged_by_itself_and_thins_nothing_out():
    guard = FakeGuard()
    agent = create_agent(model(), system_prompt="be kind", middleware=[GuardrailMiddleware(guard)])
    await agent.ainvoke({"messages": said("hi")})
    assert guard.seen == [
        [{"role": "user", "content": "hi"}],
        [{"role": "user", "content": "be kind"}],
    ]


async def test_a_doubtful_tool_brings_a_caution_in_every_turn_and_a_failure_is_not_remembered():
    llm = model()
    guard = FakeGuard()
    agent = create_agent(llm, [named(description="odd")], middleware=[GuardrailMiddleware(guard)])
    for _ in range(2):
        await agent.ainvoke({"messages": said("hi")})
    assert [seen[0] for seen in llm.seen] == [SystemMessage(CAUTION)] * 2
    failing = FakeGuard(policy=Policy(fail="open"))
    agent = create_agent(
        llm, [named(description="outage")], middleware=[GuardrailMiddleware(failing)]
    )
    for _ in range(2):
        await agent.ainvoke({"messages": said("hi")})
    assert len([chat for chat in failing.seen if "outage" in chat[0]["content"]]) == 2


@pytest.mark.parametrize("asynchronous", [False, True])
async def test_another_model_in_ours_place_has_read_no_unjudged_prompt(chat_for, asynchronous):
    """Where the guard learns only afterwards who has answered."""
    chat, other = chat_for(), model()
    guarding = GuardrailMiddleware(FakeGuard(), model=chat)
    for prompt in (WORDS, "odd"):  # a caution would come too late
        agent = create_agent(
            chat, system_prompt=prompt, middleware=[guarding, Changes(model=other)]
        )
        given = {"messages": said("hi")}
        state = await agent.ainvoke(given) if asynchronous else agent.invoke(given)
        assert state["messages"][-1].content == REFUSAL


async def test_a_summary_is_read_like_what_it_sums_up():
    llm = model()
    summing = SummarizationMiddleware(
        Model(responses=[WORDS], seen=[]), trigger=("messages", 3), keep=("messages", 1)
    )
    agent = create_agent(llm, middleware=[summing, GuardrailMiddleware(FakeGuard())])
    state = await agent.ainvoke({"messages": answered("so")})
    assert state["messages"][-1].content == REFUSAL
    assert llm.seen == []


# ---- a step of a chain, and tools


@pytest.mark.parametrize(
    "bind",
    [
        lambda m: m.bind(tools=[{"type": "function", "function": {"description": WORDS}}]),
        lambda m: m.bind(response_format={"json_schema": {"description": WORDS}}),
        lambda m: m.bind(tools=[named(description=WORDS)]).with_retry(),
        lambda m: RunnableLambda(lambda v: v) | m.bind(functions=[{"description": WORDS}]),
        lambda m: m.with_fallbacks([m.bind(tools=[{"description": WORDS}])]),
        lambda m: m.bind(response_format=Documented),
        lambda m: m.bind(format={"properties": {WORDS: {"type": "string"}}}),
        lambda m: {"a": m.bind(tools=[Documented]), "b": m} | RunnableLambda(lambda v: v["a"]),
        lambda m: RunnableBranch((lambda _: True, m.bind(tools=[Documented])), m),
        lambda m: m.bind(tools=[Documented]).configurable_alternatives(
            ConfigurableField("which"), other=m
        ),
    ],
    ids=[
        "tools",
        "a form",
        "a tool, wrapped",
        "in a chain",
        "of a fallback",
        "a class",
        "a form's keys",
        "side by side",
        "in a branch",
        "an alternative",
    ],
)
async def test_a_step_reads_what_is_bound_to_the_next_one_inside(bind):
    llm = model()
    chain = GuardrailRunnable(guard=FakeGuard(), on_flag="refuse") | bind(llm)
    assert chain.invoke("hi").content == REFUSAL
    assert (await chain.ainvoke("hi")).content == REFUSAL
    assert [chunk.content for chunk in chain.stream("hi")] == [REFUSAL]
    assert [chunk.content async for chunk in chain.astream("hi")] == [REFUSAL]
    assert llm.seen == []


async def test_a_step_reads_what_is_given_with_the_call_and_cautions_once():
    llm, guard = model(), FakeGuard()
    chain = GuardrailRunnable(guard=guard, on_flag="refuse") | llm
    assert chain.invoke("hi", tools=[{"description": WORDS}]).content == REFUSAL
    odd = GuardrailRunnable(guard=guard, on_flag="refuse") | llm.bind(
        tools=[{"description": "odd"}]
    )
    for asked in ("hi", "odd"):
        await odd.ainvoke([HumanMessage(asked)])
        assert llm.seen[-1] == [SystemMessage(CAUTION), HumanMessage(asked)]
    assert len([chat for chat in guard.seen if "description" in repr(chat)]) == 2


@pytest.mark.parametrize(
    "message",
    [
        ToolMessage(WORDS, tool_call_id="c1"),
        ToolMessage("so", tool_call_id="c1", name=WORDS),
        ToolMessage("so", tool_call_id="c1", id=WORDS),
        ToolMessage("so", tool_call_id="c1", additional_kwargs={"note": WORDS}),
        ToolMessage([{"type": "text", "text": "so", "id": WORDS}], tool_call_id="c1"),
    ],
)
def test_all_of_a_message_that_a_tool_gives_is_read(message):
    giving = StructuredTool.from_function(lambda: message, name="find", description="d")
    found = guard_tool(giving, guard=FakeGuard()).invoke({**CALL, "name": "find"})
    assert found.content == RESULT_WITHHELD
    assert WORDS not in repr(found)
