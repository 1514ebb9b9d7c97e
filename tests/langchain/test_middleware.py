"""A guard inside real agents: input, pictures, tool arguments and results, streams."""

from __future__ import annotations

import base64
import io
import json
from typing import Any

import pytest
from guardrail_langchain import GuardrailMiddleware, to_chat
from langchain.agents import create_agent
from langchain.agents.middleware import AgentMiddleware, hook_config
from langchain_core.language_models import GenericFakeChatModel
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage, ToolMessage
from langchain_core.tools import tool
from langgraph.checkpoint.memory import InMemorySaver
from PIL import Image
from pydantic import BaseModel

from guardrail import ConfigurationError, GuardrailViolation, Policy
from guardrail.front.chats import CALL_WITHHELD, RESULT_WITHHELD
from guardrail.policy import CAUTION, REFUSAL
from guardrail.testing import FakeGuard, scripted
from guardrail.types import Action


class Model(GenericFakeChatModel):
    """A foreign model that says its lines in turn, and what it was sent."""

    seen: list
    bound: list

    def bind_tools(self, tools: Any, **kwargs: Any) -> Any:
        self.bound.append(tools)
        return self

    def _generate(self, messages: Any, *args: Any, **kwargs: Any) -> Any:
        self.seen.append(messages)
        return super()._generate(messages, *args, **kwargs)


def model(*lines: Any) -> Model:
    return Model(messages=iter(lines), seen=[], bound=[])


def calling(name: str, **args: Any) -> AIMessage:
    return AIMessage("", tool_calls=[{"name": name, "args": args, "id": "c1", "type": "tool_call"}])


RAN: list[str] = []


@tool
def echo(text: str) -> str:
    """Say it again."""
    RAN.append(text)
    return f"echo {text}"


@tool
def screenshot() -> list:
    """Look at the screen."""
    buffer = io.BytesIO()
    Image.new("RGB", (6, 6), "red").save(buffer, "PNG")
    data = base64.b64encode(buffer.getvalue()).decode()
    return [{"type": "image", "base64": data, "mime_type": "image/png"}]


async def run(agent: Any, text: Any = "hi") -> list[Any]:
    """The messages after a run, the same from the async form (which gets a second agent)."""
    state = await agent.ainvoke({"messages": [HumanMessage(text)]})
    return state["messages"]


# ---- before the model


@pytest.mark.parametrize("asynchronous", [False, True])
async def test_a_flagged_input_ends_the_run_and_only_the_refusal_is_new(asynchronous):
    llm = model("an answer")
    agent = create_agent(llm, [echo], middleware=[GuardrailMiddleware(FakeGuard())])
    question = HumanMessage("a bad thing", id="q")
    given = {"messages": [question]}
    state = await agent.ainvoke(given) if asynchronous else agent.invoke(given)
    assert state["messages"][0] == question
    [answer] = state["messages"][1:]
    assert answer.content == REFUSAL
    assert answer.response_metadata["verdict"]["action"] == "flag"
    assert llm.seen == []


async def test_what_passes_is_answered_and_checked_in_every_turn():
    guard = FakeGuard()
    llm = model(calling("echo", text="hi"), "an answer")
    agent = create_agent(llm, [echo], middleware=[GuardrailMiddleware(guard, check=["input"])])
    messages = await run(agent)
    assert [type(m).__name__ for m in messages] == [
        "HumanMessage",
        "AIMessage",
        "ToolMessage",
        "AIMessage",
    ]
    first, tools, second = guard.seen
    assert [first, second] == [to_chat(messages[:1]), to_chat(messages[:3])]
    assert "Say it again." in tools[0]["content"]


async def test_a_tool_result_that_is_flagged_in_the_chat_ends_the_run():
    @tool
    def fetch() -> str:
        """Fetch."""
        return "bad words"

    llm = model(calling("fetch"), "an answer")
    agent = create_agent(
        llm, [fetch], middleware=[GuardrailMiddleware(FakeGuard(), check=["input"])]
    )
    messages = await run(agent)
    assert messages[-1].content == REFUSAL
    assert len(llm.seen) == 1


async def test_a_flag_raises_annotates_or_is_only_recorded():
    raising = create_agent(
        model("x"), middleware=[GuardrailMiddleware(FakeGuard(policy=Policy(on_flag="raise")))]
    )
    with pytest.raises(GuardrailViolation):
        await run(raising, "bad")
    for middleware in (
        GuardrailMiddleware(FakeGuard(), on_flag="annotate"),
        GuardrailMiddleware(FakeGuard(policy=Policy(mode="shadow"))),
    ):
        agent = create_agent(model("an answer"), middleware=[middleware])
        assert (await run(agent, "bad"))[-1].content == "an answer"


async def test_a_model_that_cannot_be_steered_is_cautioned_in_its_system_prompt():
    for prompt, expected in ((None, CAUTION), ("be kind", f"{CAUTION}\n\nbe kind")):
        llm = model("one", "two")
        saver = InMemorySaver()
        agent = create_agent(
            llm,
            system_prompt=prompt,
            checkpointer=saver,
            middleware=[GuardrailMiddleware(FakeGuard())],
        )
        config = {"configurable": {"thread_id": "1"}}
        state = await agent.ainvoke({"messages": [HumanMessage("odd")]}, config)
        assert llm.seen[0] == [SystemMessage(expected), HumanMessage("odd", id=llm.seen[0][1].id)]
        assert [m.content for m in state["messages"]] == ["odd", "one"]
        assert set(state) == {"messages", "guardrail_verdict"}


async def test_a_caution_does_not_outlast_the_turn_it_is_for():
    llm = model("one", "two")
    agent = create_agent(
        llm, checkpointer=InMemorySaver(), middleware=[GuardrailMiddleware(LastWords())]
    )
    config = {"configurable": {"thread_id": "1"}}
    await agent.ainvoke({"messages": [HumanMessage("odd")]}, config)
    await agent.ainvoke({"messages": [HumanMessage("fine")]}, config)
    assert [isinstance(seen[0], SystemMessage) for seen in llm.seen] == [True, False]


class LastWords(FakeGuard):
    """Reads only the last message."""

    def check(self, chat: Any, **tools: Any) -> Any:
        return super().check(chat[-1:])


# ---- a thread whose run was stopped

THREAD: Any = {"configurable": {"thread_id": "1"}}
RAISING = Policy(on_flag="raise")


def flagged_in(agent: Any) -> list[str]:
    """The contents of the messages that are marked in the thread."""
    messages = agent.get_state(THREAD).values["messages"]
    return [m.content for m in messages if "guardrail_flagged" in m.response_metadata]


async def asked(agent: Any, text: str | None, asynchronous: bool) -> Any:
    given = None if text is None else {"messages": [HumanMessage(text)]}
    if asynchronous:
        return await agent.ainvoke(given, THREAD)
    return agent.invoke(given, THREAD)


@pytest.mark.parametrize("asynchronous", [False, True])
async def test_what_a_run_raised_for_is_marked_in_its_thread_and_shown_to_no_model(asynchronous):
    llm = model("one", "two")
    guarding = GuardrailMiddleware(FakeGuard(policy=RAISING))
    agent = create_agent(llm, middleware=[guarding], checkpointer=InMemorySaver())
    await asked(agent, "fine", asynchronous)
    with pytest.raises(GuardrailViolation) as caught:
        await asked(agent, "a bad thing", asynchronous)
    assert not isinstance(caught.value, Exception)
    assert caught.value.verdict.action is Action.FLAG
    assert flagged_in(agent) == ["a bad thing", REFUSAL]
    with pytest.raises(GuardrailViolation):  # the same run again
        await asked(agent, None, asynchronous)
    state = await asked(agent, "and now?", asynchronous)
    assert [m.content for m in llm.seen[-1]] == ["fine", "one", "and now?"]
    assert state["messages"][-1].content == "two"
    assert flagged_in(agent) == ["a bad thing", REFUSAL]


@pytest.mark.parametrize("asynchronous", [False, True])
async def test_a_result_that_a_run_raised_for_is_withheld_later(asynchronous):
    @tool
    def fetch() -> str:
        """Fetch."""
        return "bad words"

    llm = model(calling("fetch"), "two")
    guarding = GuardrailMiddleware(FakeGuard(policy=RAISING), check=["input"])
    agent = create_agent(llm, [fetch], middleware=[guarding], checkpointer=InMemorySaver())
    with pytest.raises(GuardrailViolation):
        await asked(agent, "look", asynchronous)
    await asked(agent, "and now?", asynchronous)
    assert [m.content for m in llm.seen[-1]] == ["look", "", RESULT_WITHHELD, "and now?"]


@pytest.mark.parametrize("asynchronous", [False, True])
async def test_what_our_model_raised_for_is_marked_too(chat_for, asynchronous):
    chat = chat_for(Action.FLAG, policy={"on_flag": "raise"})
    agent = steering_agent(chat, checkpointer=InMemorySaver())
    with pytest.raises(GuardrailViolation):
        await asked(agent, "hi", asynchronous)
    assert flagged_in(agent) == ["hi", REFUSAL]
    passing = steering_agent(chat_for(Action.PASS), checkpointer=agent.checkpointer)
    state = await asked(passing, "and now?", asynchronous)
    counted = state["messages"][-1].usage_metadata["input_tokens"]
    alone = create_agent(chat_for(Action.PASS)).invoke({"messages": [HumanMessage("and now?")]})
    assert counted == alone["messages"][-1].usage_metadata["input_tokens"]


@pytest.mark.parametrize("asynchronous", [False, True])
async def test_a_flagged_prompt_is_no_fault_of_the_users_message(asynchronous):
    guarding = GuardrailMiddleware(FakeGuard(policy=RAISING))
    agent = create_agent(
        model(), system_prompt="bad", middleware=[guarding], checkpointer=InMemorySaver()
    )
    with pytest.raises(GuardrailViolation):
        await asked(agent, "fine", asynchronous)
    assert flagged_in(agent) == []


async def test_a_run_that_ends_elsewhere_does_not_raise_for_the_one_before_it():
    class Ends(AgentMiddleware):
        """Ends runs that say so."""

        @hook_config(can_jump_to=["end"])
        def before_agent(self, state: Any, runtime: Any) -> Any:
            return {"jump_to": "end"} if state["messages"][-1].content == "stop" else None

    guarding = GuardrailMiddleware(FakeGuard(policy=RAISING))
    agent = create_agent(model(), middleware=[Ends(), guarding], checkpointer=InMemorySaver())
    with pytest.raises(GuardrailViolation):
        await asked(agent, "bad", True)
    state = await asked(agent, "stop", True)
    assert state["messages"][-1].content == "stop"


async def test_a_mark_that_comes_in_with_a_message_hides_nothing_from_the_guard():
    class Reads(AgentMiddleware):
        """Reads a state's messages, as one that sums them up does."""

        def before_model(self, state: Any, runtime: Any) -> Any:
            read.extend(message.content for message in state["messages"])

    read: list[str] = []
    agent = create_agent(model(), middleware=[GuardrailMiddleware(FakeGuard()), Reads()])
    marked = HumanMessage("bad", response_metadata={"guardrail_flagged": {}})
    given = {"messages": [marked, HumanMessage("fine")], "guardrail_hidden": ["a"]}
    marked.id = "a"
    state = await agent.ainvoke(given)
    assert state["messages"][-1].content == REFUSAL
    assert read == []


async def test_the_apps_own_words_are_not_marked_with_the_users():
    guarding = GuardrailMiddleware(FakeGuard(policy=RAISING))
    llm = model("two")
    agent = create_agent(llm, middleware=[guarding], checkpointer=InMemorySaver())
    given = {"messages": [SystemMessage("be kind"), HumanMessage("bad")]}
    with pytest.raises(GuardrailViolation):
        await agent.ainvoke(given, THREAD)
    assert flagged_in(agent) == ["bad", REFUSAL]
    await asked(agent, "and now?", True)
    assert [m.content for m in llm.seen[-1]] == ["be kind", "and now?"]


def test_outside_a_run_a_violation_is_raised_at_once():
    guarding = GuardrailMiddleware(FakeGuard(policy=RAISING))
    with pytest.raises(GuardrailViolation):
        guarding.before_model({"messages": [HumanMessage("bad")]}, None)


# ---- its tools


async def test_flagged_arguments_become_an_error_result_and_the_agent_goes_on():
    RAN.clear()
    llm = model(calling("echo", text="bad"), "sorry")
    agent = create_agent(
        llm, [echo], middleware=[GuardrailMiddleware(FakeGuard(), check=["arguments"])]
    )
    messages = await run(agent)
    result = messages[2]
    assert isinstance(result, ToolMessage)
    assert (result.content, result.status, result.tool_call_id) == (CALL_WITHHELD, "error", "c1")
    assert messages[-1].content == "sorry"
    assert RAN == []


@pytest.mark.parametrize("asynchronous", [False, True])
async def test_a_screenshot_with_instructions_in_it_is_held_back(asynchronous):
    llm = model(calling("screenshot"), "an answer")
    guard = PictureWords()
    agent = create_agent(llm, [screenshot], middleware=[GuardrailMiddleware(guard)])
    given = {"messages": [HumanMessage("look")]}
    state = await agent.ainvoke(given) if asynchronous else agent.invoke(given)
    result = state["messages"][2]
    assert (result.content, result.status) == (RESULT_WITHHELD, "error")
    assert "base64" not in repr(llm.seen)
    assert state["messages"][-1].content == "an answer"


class PictureWords(FakeGuard):
    """Flags any picture."""

    def check(self, chat: Any, **tools: Any) -> Any:
        return super().check(
            [*chat, {"role": "user", "content": "bad"}] if "'image'" in repr(chat) else chat
        )


async def test_what_passes_in_a_tool_stays_the_same_message():
    llm = model(calling("echo", text="fine"), "an answer")
    agent = create_agent(llm, [echo], middleware=[GuardrailMiddleware(FakeGuard())])
    messages = await run(agent)
    assert (messages[2].content, messages[2].status) == ("echo fine", "success")


# ---- a model that is ours


def steering_agent(chat: Any, *tools: Any, **options: Any) -> Any:
    return create_agent(chat, list(tools), middleware=[GuardrailMiddleware(model=chat)], **options)


async def test_our_model_judges_and_steers_in_its_own_prefill_and_only_there(chat_for):
    records = []
    chat = chat_for(Action.STEER)
    chat.guard._engine._audit = lambda verdict, facts: records.append((facts["event"], verdict))
    messages = await run(steering_agent(chat))
    assert messages[-1].response_metadata["verdict"]["action"] == "steer"
    assert messages[-1].response_metadata["verdict"]["strength"] > 0
    assert [event for event, _ in records] == ["verdict", "answer"]


@pytest.mark.parametrize("asynchronous", [False, True])
async def test_a_foreign_model_in_our_models_place_is_checked_first(chat_for, asynchronous):
    class Switch(AgentMiddleware):
        """Lets another model answer, as fallbacks and routers do."""

        def __init__(self, other: Any) -> None:
            super().__init__()
            self.other = other

        def wrap_model_call(self, request: Any, handler: Any) -> Any:
            return handler(request.override(model=self.other))

        async def awrap_model_call(self, request: Any, handler: Any) -> Any:
            return await handler(request.override(model=self.other))

    chat = chat_for(Action.PASS)
    for text, answers in (("bad", REFUSAL), ("odd", "an answer"), ("fine", "an answer")):
        other = model("an answer")
        guarding = GuardrailMiddleware(FakeGuard(), model=chat)
        # listed first, the guard learns only afterwards who has answered
        hidden = create_agent(chat, middleware=[guarding, Switch(model("an answer"))])
        found = await run(hidden, text)
        assert found[-1].content == ("an answer" if text == "fine" else REFUSAL)
        agent = create_agent(chat, middleware=[Switch(other), guarding])
        given = {"messages": [HumanMessage(text)]}
        state = await agent.ainvoke(given) if asynchronous else agent.invoke(given)
        assert state["messages"][-1].content == answers
        assert len(other.seen) == (text != "bad")
        if text == "odd":
            assert other.seen[0][0] == SystemMessage(CAUTION)


@pytest.mark.parametrize("asynchronous", [False, True])
async def test_what_other_middleware_adds_later_is_checked(asynchronous):
    class Before(AgentMiddleware):
        """Adds what it found before the model's turn."""

        def before_model(self, state: Any, runtime: Any) -> Any:
            return {"messages": [HumanMessage("a bad document")]}

    class Around(AgentMiddleware):
        """Adds what it found to the call."""

        def wrap_model_call(self, request: Any, handler: Any) -> Any:
            messages = [*request.messages, HumanMessage("a bad document")]
            return handler(request.override(messages=messages))

        async def awrap_model_call(self, request: Any, handler: Any) -> Any:
            messages = [*request.messages, HumanMessage("a bad document")]
            return await handler(request.override(messages=messages))

    guarding = GuardrailMiddleware(FakeGuard())
    for order in ([guarding, Before()], [Around(), guarding]):
        llm = model("an answer")
        agent = create_agent(llm, middleware=order)
        given = {"messages": [HumanMessage("fine")]}
        state = await agent.ainvoke(given) if asynchronous else agent.invoke(given)
        assert state["messages"][-1].content == REFUSAL
        assert llm.seen == []


def test_hooks_work_outside_a_run_and_two_middlewares_side_by_side():
    one, two = GuardrailMiddleware(FakeGuard()), GuardrailMiddleware(FakeGuard(), name="second")
    update = one.before_model({"messages": [HumanMessage("bad")]}, None)
    assert update["jump_to"] == "end"
    agent = create_agent(model("x"), middleware=[one, two])
    assert agent.invoke({"messages": [HumanMessage("hi")]})["messages"][-1].content == "x"


async def test_a_tool_that_returns_nothing_does_not_break_the_agent(guard_for):
    @tool
    def nothing() -> list:
        """Nothing."""
        return []

    llm = model(calling("nothing"), "an answer")
    agent = create_agent(llm, [nothing], middleware=[GuardrailMiddleware(guard_for())])
    assert (await run(agent))[-1].content == "an answer"


async def test_our_models_refusal_ends_the_run(chat_for):
    class Form(BaseModel):
        """A form."""

        name: str

    chat = chat_for(Action.FLAG)
    messages = await run(steering_agent(chat, echo))
    assert [m.content for m in messages] == ["hi", REFUSAL]
    forced = steering_agent(chat, response_format=Form)
    assert (await run(forced))[-1].content == REFUSAL


async def test_our_model_calls_tools_in_an_agent(chat_for, tiny_parts):
    call = {"name": "echo", "arguments": {"text": "fine"}}

    def script(prompt: str) -> str:
        done = prompt.rstrip().rsplit("<|im_start|>", 2)[-2].startswith("tool")
        return "all done" if done else f"<tool_call>\n{json.dumps(call)}\n</tool_call>"

    chat = chat_for(max_tokens=100)
    with scripted(*tiny_parts[:2], script):
        messages = await run(steering_agent(chat, echo))
    assert [m.content for m in messages] == ["hi", "", "echo fine", "all done"]


# ---- streams


async def everything_streamed(agent: Any) -> str:
    given = {"messages": [HumanMessage("a bad thing")]}
    said: list[Any] = []
    for mode in ("values", "updates", "messages", "custom", "debug", "tasks"):
        said += [chunk async for chunk in agent.astream(given, stream_mode=mode)]
        said += list(agent.stream(given, stream_mode=mode))
    said += [event async for event in agent.astream_events(given, version="v2")]
    return repr(said)


async def test_no_token_of_a_held_back_answer_is_streamed(chat_for, tiny_parts):
    secret = "SECRET"

    def foreign(guard: Any) -> Any:
        llm = model(*[secret] * 20)
        return create_agent(llm, middleware=[GuardrailMiddleware(guard)])

    assert secret in await everything_streamed(foreign(FakeGuard(policy=Policy(mode="shadow"))))
    held = await everything_streamed(foreign(FakeGuard()))
    assert secret not in held
    assert REFUSAL in held
    with scripted(*tiny_parts[:2], lambda _: secret):
        shown = await everything_streamed(steering_agent(chat_for(Action.PASS)))
        held = await everything_streamed(steering_agent(chat_for(Action.FLAG)))
    for trace in (secret, "content='S'"):
        assert trace in shown
        assert trace not in held


async def test_the_verdict_is_a_custom_event():
    agent = create_agent(model("x"), middleware=[GuardrailMiddleware(FakeGuard())])
    events = agent.astream_events({"messages": [HumanMessage("hi")]}, version="v2")
    found = [
        (e["name"], e["data"]["action"]) async for e in events if e["event"] == "on_custom_event"
    ]
    assert found == [("guardrail_verdict", "pass")]


@pytest.mark.parametrize("asynchronous", [False, True])
async def test_every_verdict_is_in_the_custom_stream_and_the_last_one_in_the_state(asynchronous):
    llm = model(calling("echo", text="fine"), "an answer")
    agent = create_agent(llm, [echo], middleware=[GuardrailMiddleware(FakeGuard())])
    given = {"messages": [HumanMessage("hi")], "guardrail_verdict": {"action": "forged"}}
    modes = ["custom", "values"]
    if asynchronous:
        streamed = [pair async for pair in agent.astream(given, stream_mode=modes)]
    else:
        streamed = list(agent.stream(given, stream_mode=modes))
    told = [chunk["guardrail_verdict"] for mode, chunk in streamed if mode == "custom"]
    # the user's message, the tool, the call, its result, the conversation with it
    assert [verdict["action"] for verdict in told] == ["pass"] * 5
    assert streamed[0][1].get("guardrail_verdict") is None
    assert streamed[-1][1]["guardrail_verdict"] == told[-1]


async def test_our_models_verdict_is_in_the_state(chat_for):
    for action in (Action.STEER, Action.FLAG):
        agent = steering_agent(chat_for(action))
        state = await agent.ainvoke({"messages": [HumanMessage("hi")]})
        assert state["guardrail_verdict"]["action"] == action


def test_a_middleware_needs_a_guard_and_known_sides():
    with pytest.raises(ConfigurationError, match="needs a guard"):
        GuardrailMiddleware()
    with pytest.raises(ConfigurationError, match="may hold only"):
        GuardrailMiddleware(FakeGuard(), check=["output"])
    with pytest.raises(ConfigurationError, match="rase"):
        GuardrailMiddleware(FakeGuard(), on_flag="rase")
