"""A guard as a step: what passes is untouched, what is flagged goes nowhere it should not."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

import pytest
from guardrail_langchain import GuardrailRunnable
from langchain_core.callbacks import AsyncCallbackHandler, BaseCallbackHandler
from langchain_core.language_models import FakeListChatModel
from langchain_core.load import dumps
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import RunnableGenerator, RunnableLambda, RunnableParallel
from langgraph.graph import START, MessagesState, StateGraph

from guardrail import ConfigurationError, GuardrailViolation, UnsupportedContentError
from guardrail.policy import CAUTION, REFUSAL, Limits
from guardrail.types import Action

PROMPT = ChatPromptTemplate.from_messages([("human", "{q}")])


class Model(FakeListChatModel):
    """A model that is not ours, and what it was sent."""

    seen: list

    def _call(self, messages, *args, **kwargs):
        self.seen.append(messages)
        return super()._call(messages, *args, **kwargs)

    def _stream(self, messages, *args, **kwargs):
        self.seen.append(messages)
        yield from super()._stream(messages, *args, **kwargs)


@pytest.fixture
def model():
    return Model(responses=["an answer"], seen=[])


@pytest.fixture
def step_for(guard_for):
    def make(action=Action.PASS, policy=None, **options):
        return GuardrailRunnable(guard=guard_for(action, **(policy or {})), **options)

    return make


async def test_what_passes_reaches_the_next_step_unchanged(step_for, model):
    step = step_for()
    for value in ("hi", [HumanMessage("hi")], PROMPT.invoke({"q": "hi"})):
        assert step.invoke(value) is value
        assert await step.ainvoke(value) is value
        assert list(step.stream(value)) == [value]
    chain = PROMPT | step | model | StrOutputParser()
    assert chain.invoke({"q": "hi"}) == "an answer"
    assert "".join(chain.stream({"q": "hi"})) == "an answer"
    assert "".join([c async for c in chain.astream({"q": "hi"})]) == "an answer"
    assert chain.batch([{"q": "a"}, {"q": "b"}]) == ["an answer"] * 2
    assert await chain.abatch([{"q": "a"}, {"q": "b"}]) == ["an answer"] * 2


@pytest.mark.parametrize("on_flag", ["refuse", "raise"])
async def test_what_is_flagged_raises_before_the_model_is_asked(step_for, model, on_flag):
    chain = PROMPT | step_for(Action.FLAG, policy={"on_flag": on_flag}) | model
    with pytest.raises(GuardrailViolation) as caught:
        chain.invoke({"q": "hi"})
    assert caught.value.verdict.action is Action.FLAG
    with pytest.raises(GuardrailViolation):
        await chain.ainvoke({"q": "hi"})
    with pytest.raises(GuardrailViolation):
        list(chain.stream({"q": "hi"}))
    with pytest.raises(GuardrailViolation):
        [c async for c in chain.astream({"q": "hi"})]
    assert [type(e) for e in chain.batch([{"q": "a"}] * 2, return_exceptions=True)] == [
        GuardrailViolation
    ] * 2
    assert model.seen == []


async def test_a_fallback_answers_what_is_flagged(step_for, model):
    other = RunnableLambda(lambda value: AIMessage(f"instead of {value.to_string()}"))
    step = step_for(Action.FLAG, fallback=other)
    chain = PROMPT | (step | model) | StrOutputParser()
    assert chain.invoke({"q": "hi"}) == "instead of Human: hi"
    assert await chain.ainvoke({"q": "hi"}) == "instead of Human: hi"
    assert "".join(chain.stream({"q": "hi"})) == "instead of Human: hi"
    assert "".join([c async for c in chain.astream({"q": "hi"})]) == "instead of Human: hi"
    assert model.seen == []
    passing = PROMPT | (step_for(fallback=other) | model) | StrOutputParser()
    assert passing.invoke({"q": "hi"}) == "an answer"


def test_a_function_may_be_the_fallback(step_for, model):
    step = step_for(Action.FLAG, fallback=lambda value: f"instead of {value.to_string()}")
    assert (PROMPT | (step | model)).invoke({"q": "hi"}) == "instead of Human: hi"
    assert model.seen == []
    with pytest.raises(TypeError):
        step_for(fallback=7)


async def test_a_refusal_answers_in_the_next_steps_form(step_for, model):
    step = step_for(Action.FLAG, on_flag="refuse")
    answer = (step | model).invoke("hi")
    assert isinstance(answer, AIMessage)
    assert answer.content == REFUSAL
    assert answer.response_metadata["verdict"]["action"] == "flag"
    assert (step | (model | StrOutputParser())).invoke("hi") == REFUSAL
    assert (step | model | StrOutputParser()).invoke("hi") == REFUSAL
    assert [c.content async for c in (step | model).astream("hi")] == [REFUSAL]
    assert step.pipe(model, StrOutputParser(), name="guarded").invoke("hi") == REFUSAL


def test_a_stand_in_without_a_next_step_is_an_error(step_for, model):
    step = step_for(fallback=model)
    with pytest.raises(ConfigurationError, match=r"prompt \| \(guard_step \| model\)") as caught:
        (PROMPT | step | model).invoke({"q": "hi"})
    assert "with_fallbacks" not in str(caught.value)  # which catch no violation


def test_annotated_and_shadowed_inputs_go_on(step_for, model):
    for options in ({"on_flag": "annotate"}, {"policy": {"mode": "shadow"}}):
        assert (step_for(Action.FLAG, **options) | model).invoke("hi").content == "an answer"


def test_a_streamed_input_is_checked_whole(step_for):
    def pieces(chunks):
        for _ in chunks:
            yield from ("how ", "are ", "you")

    made = RunnableParallel(q=RunnableGenerator(pieces), other=RunnableLambda(lambda _: 1))
    step = step_for(key="q")
    seen = []
    check = step.guard.check
    step.guard = SimpleNamespace(
        policy=step.guard.policy, check=lambda chat: (seen.append(chat), check(chat))[1]
    )
    [value] = list((made | step).stream("x"))
    assert value == {"q": "how are you", "other": 1}
    assert seen == [[{"role": "user", "content": "how are you"}]]


# ---- a model that is not ours cannot be steered


def test_what_would_be_steered_is_sent_with_a_caution(step_for, model):
    step = step_for(Action.STEER)
    chain = PROMPT | step | model
    chain.invoke({"q": "hi"})
    assert model.seen[-1] == [SystemMessage(CAUTION), HumanMessage("hi")]
    given = [SystemMessage("be kind"), HumanMessage("hi")]
    (step | model).invoke(given)
    assert model.seen[-1] == [SystemMessage(f"{CAUTION}\n\nbe kind"), HumanMessage("hi")]
    assert given[0].content == "be kind"
    (step | model).invoke("hi")
    assert model.seen[-1] == [HumanMessage(f"{CAUTION}\n\nhi")]
    blocks = [SystemMessage([{"type": "text", "text": "be kind"}]), HumanMessage("hi")]
    assert step.invoke(blocks)[0].text == f"{CAUTION}\n\nbe kind"
    for form in ([("human", "hi")], ["hi"], HumanMessage("hi"), {"role": "user", "content": "hi"}):
        assert step.invoke(form) == [SystemMessage(CAUTION), HumanMessage("hi")]


def test_an_input_that_is_no_chat_is_refused_rather_than_read_by_its_keys(step_for):
    for value in (
        {"question": "bad"},
        {"messages": [HumanMessage("hi")], "question": "bad"},
        {"messages": "bad"},
        {"bad"},
    ):
        with pytest.raises(UnsupportedContentError, match="no prompt and no chat"):
            step_for().invoke(value)


def test_a_stream_of_nothing_stays_one(step_for):
    def nothing(chunks):
        yield from ()

    empty = RunnableGenerator(nothing)
    assert list((empty | step_for()).stream("x")) == []


def test_what_would_be_steered_counts_as_flagged_where_the_policy_says_so(step_for, model):
    with pytest.raises(GuardrailViolation):
        (step_for(Action.STEER, policy={"unsteerable": "flag"}) | model).invoke("hi")
    (step_for(Action.STEER, policy={"unsteerable": "pass"}) | model).invoke("hi")
    assert model.seen == [[HumanMessage("hi")]]


# ---- which part of the input


def test_a_key_or_a_selector_says_what_is_checked(step_for):
    value = {"question": "hi", "context": object()}
    step = step_for(Action.STEER, key="question")
    assert step.invoke(value) == {**value, "question": f"{CAUTION}\n\nhi"}
    with pytest.raises(ConfigurationError, match="'question'"):
        step.invoke({"q": "hi"})
    picked = step_for(select=lambda v: v["question"])
    assert picked.invoke(value) is value
    with pytest.raises(GuardrailViolation):  # such an input has no place for a caution
        step_for(Action.STEER, select=lambda v: v["question"]).invoke(value)
    with pytest.raises(UnsupportedContentError, match="audio"):
        step_for().invoke([HumanMessage([{"type": "audio"}])])


@pytest.mark.parametrize("action", [Action.PASS, Action.FLAG])
async def test_a_graphs_state_of_messages_needs_no_key(step_for, model, action):
    graph = StateGraph(MessagesState)
    graph.add_node("guard", step_for(action))
    graph.add_node("model", lambda state: {"messages": model.invoke(state["messages"])})
    graph.add_edge(START, "guard")
    graph.add_edge("guard", "model")
    app, given = graph.compile(), {"messages": [HumanMessage("hi")]}
    if action is Action.FLAG:
        with pytest.raises(GuardrailViolation):
            await app.ainvoke(given)
        assert model.seen == []
    else:
        assert [m.content for m in app.invoke(given)["messages"]] == ["hi", "an answer"]


# ---- events, names, limits


class Events(BaseCallbackHandler):
    def __init__(self):
        self.verdicts, self.runs = [], []

    def on_custom_event(self, name, data, *, run_id, tags=None, metadata=None, **kwargs):
        self.verdicts.append((name, data["action"], tuple(tags or ()), (metadata or {}).get("m")))

    def on_chain_start(self, serialized, inputs, *, name=None, **kwargs):
        self.runs.append(name)


class AsyncEvents(AsyncCallbackHandler):
    def __init__(self):
        self.verdicts = []

    async def on_custom_event(self, name, data, **kwargs):
        self.verdicts.append(data["action"])


async def test_every_verdict_is_an_event_with_the_runs_tags(step_for, model):
    events, later = Events(), AsyncEvents()
    step = step_for(Action.STEER).with_config(run_name="the guard")
    config = {"callbacks": [events], "tags": ["t"], "metadata": {"m": 1}}
    (step | model).invoke("hi", config)
    list((step | model).stream("hi", config))
    assert events.verdicts == [("guardrail_verdict", "steer", ("t",), 1)] * 2
    assert "the guard" in events.runs
    await (step | model).ainvoke("hi", {"callbacks": [later]})
    [_ async for _ in (step | model).astream("hi", {"callbacks": [later]})]
    assert later.verdicts == ["steer", "steer"]
    names = [
        (e["name"], e["data"]["action"])
        async for e in (step | model).astream_events("hi", version="v2")
        if e["event"] == "on_custom_event"
    ]
    assert names == [("guardrail_verdict", "steer")]


async def test_a_flag_is_an_event_too(step_for, model):
    later = AsyncEvents()
    with pytest.raises(GuardrailViolation):
        await (step_for(Action.FLAG) | model).ainvoke("hi", {"callbacks": [later]})
    assert later.verdicts == ["flag"]


async def test_a_batch_larger_than_the_queue_is_checked(step_for):
    step = step_for(policy={"limits": Limits(queue=4, batch=2)})
    texts = [f"hi {i}" for i in range(20)]
    assert step.batch(texts) == texts
    assert await step.abatch(texts) == texts


async def test_steps_with_different_policies_do_not_mix(step_for, model):
    steps = [step_for(Action.PASS), step_for(Action.FLAG, on_flag="refuse")]
    asked = [steps[i % 2] | model for i in range(20)]
    answers = await asyncio.gather(*(chain.ainvoke("hi") for chain in asked))
    assert [a.content for a in answers] == ["an answer", REFUSAL] * 10


def test_a_chain_can_be_drawn_and_written_down(step_for, model):
    chain = PROMPT | step_for() | model
    assert "GuardrailRunnable" in str(chain.get_graph().to_json())
    text = dumps(chain)
    assert "GuardrailRunnable" in text
    assert "guard=" not in text
