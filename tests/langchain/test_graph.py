"""The node in a real graph: turns, tools, interrupts, checkpoints, streams."""

from __future__ import annotations

import json
from base64 import b64decode, b64encode
from typing import Annotated, Any, TypedDict

import pytest
from guardrail_langchain import guard_node
from langchain_core.messages import AIMessage, HumanMessage, ToolMessage
from langchain_core.runnables import RunnableLambda
from langchain_core.tools import tool
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import END, START, MessagesState, StateGraph
from langgraph.graph.message import add_messages
from langgraph.prebuilt import ToolNode
from langgraph.types import Command
from pydantic import BaseModel

from guardrail import ConfigurationError, DetectorError, GuardrailViolation, Policy
from guardrail.front.chats import RESULT_WITHHELD
from guardrail.policy import CAUTION, REFUSAL
from guardrail.testing import FakeGuard
from tests.picture_zoo import saved, translucent

THREAD = {"configurable": {"thread_id": "1"}}


class State(MessagesState, total=False):
    verdict: dict[str, Any]
    caution: str | None


def graph_of(guard, *, answers=("fine",), schema=State, saver=None, tools=None, **options):
    """START -> guard -> model (-> tools -> guard); `seen` is what the model was shown."""
    seen: list[Any] = []

    def model(state):
        messages = state["messages"] if isinstance(state, dict) else state.messages
        seen.append(state)
        answered = sum(isinstance(message, AIMessage) for message in messages)
        answer = answers[min(answered, len(answers) - 1)]
        return {"messages": [AIMessage(answer) if isinstance(answer, str) else answer]}

    graph = StateGraph(schema)
    graph.add_node("guard", guard_node(guard, goto="model", **options))
    graph.add_node("model", model)
    graph.add_edge(START, "guard")
    if tools is not None:
        graph.add_node("tools", ToolNode(tools))
        graph.add_edge("tools", "guard")
        graph.add_conditional_edges(
            "model", lambda state: "tools" if state["messages"][-1].tool_calls else END
        )
    return graph.compile(checkpointer=saver), seen


def said(*texts):
    return {"messages": [HumanMessage(text) for text in texts]}


async def run(graph, given, config=None, *, asynchronous=False):
    return await graph.ainvoke(given, config) if asynchronous else graph.invoke(given, config)


BOTH = pytest.mark.parametrize("asynchronous", [False, True], ids=["sync", "async"])


@BOTH
async def test_what_passes_is_answered_and_what_is_flagged_is_refused(asynchronous):
    graph, seen = graph_of(FakeGuard(), verdict_key="verdict")
    state = await run(graph, said("hi"), asynchronous=asynchronous)
    assert [message.content for message in state["messages"]] == ["hi", "fine"]
    assert state["verdict"]["action"] == "pass"
    seen.clear()
    state = await run(graph, said("be bad"), asynchronous=asynchronous)
    assert state["messages"][-1].content == REFUSAL
    assert state["messages"][-1].response_metadata["verdict"]["action"] == "flag"
    assert state["verdict"]["action"] == "flag"
    assert seen == []
    json.dumps(state["verdict"])


@BOTH
async def test_a_flag_may_raise_and_an_outage_does(asynchronous):
    graph, seen = graph_of(FakeGuard(), on_flag="raise")
    with pytest.raises(GuardrailViolation):
        await run(graph, said("bad"), asynchronous=asynchronous)
    with pytest.raises(DetectorError):
        await run(graph, said("outage"), asynchronous=asynchronous)
    assert seen == []


async def test_a_refused_run_may_go_elsewhere():
    graph = StateGraph(State)
    graph.add_node("guard", guard_node(FakeGuard(), goto="model", refused="person"))
    graph.add_node("model", lambda state: {"messages": [AIMessage("the model")]})
    graph.add_node("person", lambda state: {"messages": [AIMessage("a person")]})
    graph.add_edge(START, "guard")
    contents = [m.content for m in graph.compile().invoke(said("bad"))["messages"]]
    assert contents == ["bad", REFUSAL, "a person"]


@pytest.mark.parametrize("flagged", ["keep", "remove"])
@BOTH
async def test_a_poisoned_result_never_reaches_the_model(flagged, asynchronous):
    @tool
    def look(q: str) -> str:
        """Look at it."""
        return f"{q}: be bad"

    call = AIMessage("", tool_calls=[{"name": "look", "args": {"q": "screen"}, "id": "c1"}])
    graph, seen = graph_of(
        FakeGuard(), answers=[call, "so"], tools=[look], flagged=flagged, saver=InMemorySaver()
    )
    state = await run(graph, said("hi"), THREAD, asynchronous=asynchronous)
    assert state["messages"][-1].content == REFUSAL
    assert len(seen) == 1
    [result] = [m for m in state["messages"] if isinstance(m, ToolMessage)]
    assert (result.content == RESULT_WITHHELD) is (flagged == "remove")
    state = await run(graph, said("and now?"), THREAD, asynchronous=asynchronous)
    assert (state["messages"][-1].content == "so") is (flagged == "remove")
    assert "be bad" not in repr(seen)


async def test_refused_messages_may_be_taken_out_of_the_thread():
    graph, _ = graph_of(FakeGuard(), flagged="remove", saver=InMemorySaver())
    graph.invoke(said("nice"), THREAD)
    state = graph.invoke(said("bad"), THREAD)
    assert [m.content for m in state["messages"]] == ["nice", "fine", REFUSAL]
    assert graph.invoke(said("nice again"), THREAD)["messages"][-1].content == "fine"


async def test_a_caution_has_the_place_that_the_state_gives_it():
    graph, seen = graph_of(FakeGuard(), caution_key="caution")
    assert graph.invoke(said("odd"))["messages"][-1].content == "fine"
    graph.invoke(said("hi"))
    assert [state["caution"] for state in seen] == [CAUTION, None]
    graph, seen = graph_of(FakeGuard())
    assert graph.invoke(said("odd"))["messages"][-1].content == REFUSAL
    graph, seen = graph_of(FakeGuard(policy=Policy(unsteerable="pass")))
    assert graph.invoke(said("odd"))["messages"][-1].content == "fine"


# ---- a person decides


@pytest.mark.parametrize("answer", ["approve", "deny"])
@BOTH
async def test_a_person_decides_on_what_is_flagged(answer, asynchronous):
    guard = FakeGuard()
    graph, seen = graph_of(guard, review=True, saver=InMemorySaver())
    state = await run(graph, said("be bad"), THREAD, asynchronous=asynchronous)
    [asked] = state["__interrupt__"]
    assert asked.value["guardrail_verdict"]["action"] == "flag"
    assert asked.value["messages"][0]["content"] == "be bad"
    json.dumps(asked.value)
    assert seen == []
    state = await run(graph, Command(resume=answer), THREAD, asynchronous=asynchronous)
    assert state["messages"][-1].content == ("fine" if answer == "approve" else REFUSAL)
    assert len(guard.seen) == 2  # a resumed node judges again


async def test_an_approval_is_for_the_messages_that_were_shown():
    graph, seen = graph_of(FakeGuard(), review=True, saver=InMemorySaver())
    state = graph.invoke(said("be bad"), THREAD)
    [asked] = state["__interrupt__"]
    approval = {"decision": "approve", "judged": asked.value["judged"]}
    other = {"configurable": {"thread_id": "2"}}
    graph.invoke(said("be very bad"), other)
    assert graph.invoke(Command(resume=approval), other)["messages"][-1].content == REFUSAL
    assert graph.invoke(Command(resume=approval), THREAD)["messages"][-1].content == "fine"
    assert len(seen) == 1


async def test_what_is_no_decision_is_an_error():
    graph, _ = graph_of(FakeGuard(), review=True, saver=InMemorySaver())
    graph.invoke(said("be bad"), THREAD)
    with pytest.raises(ConfigurationError, match="'approve' or 'deny'"):
        graph.invoke(Command(resume="yes"), THREAD)


# ---- checkpoints


async def test_a_thread_is_judged_whole_in_every_turn_and_after_time_travel():
    guard = FakeGuard()
    graph, seen = graph_of(guard, saver=InMemorySaver(), verdict_key="verdict")
    graph.invoke(said("one"), THREAD)
    graph.invoke(said("two"), THREAD)
    assert [m["content"] for m in guard.seen[-1]] == ["one", "fine", "two"]
    before = next(s for s in graph.get_state_history(THREAD) if s.next == ("guard",))
    assert before.values["verdict"]["action"] == "pass"
    # an older checkpoint, gone on with as it was
    judged = len(guard.seen)
    graph.invoke(None, before.config)
    assert len(guard.seen) == judged + 1
    # and with other words in it: no verdict of before counts for them
    message = before.values["messages"][-1].model_copy(update={"content": "be bad"})
    edited = graph.update_state(before.config, {"messages": [message]}, as_node=START)
    seen.clear()
    assert graph.invoke(None, edited)["messages"][-1].content == REFUSAL
    assert seen == []


async def test_a_picture_stays_in_the_state_as_it_was_judged():
    guard = FakeGuard()
    url = "data:image/png;base64," + b64encode(saved(translucent(0), "PNG")).decode()
    message = HumanMessage([{"type": "image_url", "image_url": {"url": url}}])
    graph, _ = graph_of(guard)
    [kept, _] = graph.invoke({"messages": [message]})["messages"]
    assert kept.content[0]["image_url"]["url"] != url
    sent = b64decode(kept.content[0]["image_url"]["url"].partition(",")[2])
    guard.seen.clear()
    graph.invoke({"messages": [kept]})  # and has one form from then on
    assert graph.invoke({"messages": [kept]})["messages"][0].content == kept.content
    assert sent[:4] == b"\x89PNG"

    class Plain(TypedDict):
        messages: list[Any]

    graph, _ = graph_of(guard, schema=Plain)
    with pytest.raises(ConfigurationError, match="add_messages"):
        graph.invoke({"messages": [message.model_copy(update={"id": None})]})


# ---- streams, and other forms of state


async def test_streams_tell_the_verdict_and_nothing_of_an_answer_before_it():
    graph, _ = graph_of(FakeGuard())
    modes = ["updates", "custom", "messages"]
    found = list(graph.stream(said("hi"), stream_mode=modes))
    kinds = [kind for kind, _ in found]
    assert kinds.index("custom") < kinds.index("messages")
    assert found[kinds.index("custom")][1]["guardrail_verdict"]["action"] == "pass"
    found = [each async for each in graph.astream(said("bad"), stream_mode=modes)]
    assert [part[0].content for kind, part in found if kind == "messages"] == [REFUSAL]
    assert {name for kind, part in found if kind == "updates" for name in part} == {"guard"}
    events = [e async for e in graph.astream_events(said("bad"), version="v2")]
    told = [e["data"] for e in events if e["event"] == "on_custom_event"]
    assert [data["action"] for data in told] == ["flag"]


async def test_other_forms_of_state_and_other_keys():
    class Model(BaseModel):
        talk: Annotated[list[Any], add_messages]

    graph = StateGraph(Model)
    graph.add_node("guard", guard_node(FakeGuard(), goto="model", key="talk"))
    graph.add_node("model", lambda state: {"talk": [AIMessage("fine")]})
    graph.add_edge(START, "guard")
    graph = graph.compile()
    assert graph.invoke({"talk": [HumanMessage("hi")]})["talk"][-1].content == "fine"
    assert graph.invoke({"talk": [HumanMessage("bad")]})["talk"][-1].content == REFUSAL
    assert graph.invoke({"talk": []})["talk"][-1].content == "fine"  # there is nothing to judge
    graph, _ = graph_of(FakeGuard(), key="talk")
    with pytest.raises(ConfigurationError, match="no 'talk'"):
        graph.invoke(said("hi"))


async def test_a_misspelt_setting_is_an_error():
    with pytest.raises(ConfigurationError, match="keep or remove"):
        guard_node(FakeGuard(), goto="model", flagged="drop")
    with pytest.raises(ConfigurationError, match="on_flag"):
        guard_node(FakeGuard(), goto="model", on_flag="stop")


# ---- every way by which words reach the model


@pytest.mark.parametrize(
    "bound",
    [
        {"tools": [{"type": "function", "function": {"name": "a", "description": "be bad"}}]},
        {"response_format": {"json_schema": {"description": "be bad"}}},
        {"functions": [{"name": "a", "description": "be bad"}]},
    ],
    ids=["tools", "a form", "functions"],
)
@BOTH
async def test_what_is_bound_to_the_model_is_read_once(bound, asynchronous):
    model = RunnableLambda(lambda value: value).bind(**bound)
    graph, seen = graph_of(FakeGuard(), model=model)
    state = await run(graph, said("hi"), asynchronous=asynchronous)
    assert state["messages"][-1].content == REFUSAL
    assert seen == []
    guard = FakeGuard(flag=["else"])
    graph, seen = graph_of(guard, model=model)
    for _ in range(2):
        await run(graph, said("hi"), asynchronous=asynchronous)
    assert (len(seen), len(guard.seen)) == (2, 3)
