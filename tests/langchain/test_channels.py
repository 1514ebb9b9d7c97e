"""By whatever way words reach a model, the guard reads them: what tests/channels does not cover."""

from __future__ import annotations

import json
import typing
from base64 import b64encode
from typing import Any

import pytest
from guardrail_langchain import GuardrailMiddleware, GuardrailRunnable, guard_node
from guardrail_langchain.messages import to_judged_chat
from langchain.agents import create_agent
from langchain.agents.middleware import dynamic_prompt
from langchain_core.language_models import FakeListChatModel
from langchain_core.messages import AnyMessage, HumanMessage, SystemMessage, content
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import RunnableSequence
from langgraph.graph import END

from guardrail import GuardrailViolation, Policy
from guardrail.errors import InputError
from guardrail.policy import CAUTION, REFUSAL
from guardrail.testing import FakeGuard
from tests.channels._langchain_classes import BLOCKS, CLASSES, MESSAGES
from tests.channels._langchain_messages import JUDGED, NEVER, answered, said
from tests.channels.contract import OTHER, WORD, fields_of
from tests.channels.langchain import BESIDE, BOUND, Changes, Recorder, tool
from tests.picture_zoo import drawing, saved, translucent

WORDS = "do a bad thing"


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


# ---- messages, in the other ways to a model


@pytest.mark.parametrize("channel", JUDGED)
def test_words_in_messages_are_read_in_every_way(channel):
    _, make = JUDGED[channel]
    llm = model()
    agent = create_agent(llm, middleware=[GuardrailMiddleware(FakeGuard([WORD]))])
    assert agent.invoke({"messages": make(WORD)})["messages"][-1].content == REFUSAL
    assert llm.seen == []
    with pytest.raises(GuardrailViolation):
        GuardrailRunnable(guard=FakeGuard([WORD])).invoke(make(WORD))


@pytest.mark.parametrize("asynchronous", [False, True])
@pytest.mark.parametrize(
    "channel", [each for each in JUDGED if "mapping" not in each and "pair" not in each]
)
async def test_a_node_reads_them_too(channel, asynchronous):
    messages = JUDGED[channel][1](WORD)
    for guard, goto in ((FakeGuard([WORD]), END), (FakeGuard([OTHER]), "model")):
        node = guard_node(guard, goto="model")
        given = {"messages": messages}
        after = await node.ainvoke(given) if asynchronous else node.invoke(given)
        assert after.goto == goto
    assert GuardrailRunnable(guard=FakeGuard([OTHER])).invoke(messages) is messages


@pytest.mark.parametrize("name", NEVER)
def test_what_is_for_apps_alone_is_in_no_request_of_openais_class(name):
    openai = pytest.importorskip("langchain_openai", exc_type=ImportError)
    _, make = NEVER[name]
    for responses in (False, True):
        llm = openai.ChatOpenAI(model="gpt-x", api_key="x", use_responses_api=responses)
        assert WORD not in json.dumps(llm._get_request_payload(make(WORD)))


# ---- what the library's classes can hold


def test_every_kind_of_block_and_of_message_is_known():
    kinds = {each.kind for each in BLOCKS}
    assert {*_members(content.ContentBlock)} == kinds
    assert content.KNOWN_BLOCK_TYPES == {_type_of(kind) for kind in kinds}
    assert {*_members(AnyMessage)} <= {each.kind for each in MESSAGES}
    assert {*_members(content.Annotation)} <= {each.kind for each in CLASSES}


def test_every_private_attribute_is_known():
    found = {name for each in CLASSES for name in getattr(each.kind, "__private_attributes__", {})}
    assert found <= {"_tool_call_schema_memo"}  # made of `args_schema`


def _members(union: Any) -> list[Any]:
    """The classes of a union, in whatever it is wrapped."""
    args = typing.get_args(union)
    if typing.get_origin(union) is typing.Annotated:
        args = (each for each in typing.get_args(args[0]))
        return [typing.get_args(each)[0] if typing.get_args(each) else each for each in args]
    return [inner for each in args for inner in (_members(each) or [each])]


def _type_of(kind: Any) -> str:
    hint = typing.get_type_hints(kind)["type"]
    return str(typing.get_args(hint)[0])


PLANTED = f"see {WORD}"
VALUES: dict[str, Any] = {
    "annotations": [{"type": "citation", "title": PLANTED}],
    "args": {"q": PLANTED},
    "extras": {"note": PLANTED},
    "value": {"type": "text", "text": "hi", "annotations": [{"title": PLANTED}]},
    "output": {"q": PLANTED},
}
WHOLE: dict[str, Any] = {
    "text": "hi",
    "text-plain": "hi",
    "reasoning": "hm",
    "refusal": "No.",
    "non_standard": {"type": "text", "text": "hi"},
}


@pytest.mark.parametrize(
    ("kind", "field"),
    [
        (_type_of(each.kind), field)
        for each in BLOCKS
        for field in sorted(fields_of(each.kind) - {"type"})
    ],
)
def test_every_field_of_a_block_is_read_or_refused(kind, field):
    base = {"type": kind}
    if kind in WHOLE:
        key = {"text-plain": "text", "non_standard": "value"}.get(kind, kind)
        base[key] = WHOLE[kind]
    messages = answered([{**base, field: VALUES.get(field, PLANTED)}])
    guard = FakeGuard([WORD])
    try:
        guard.check(to_judged_chat(messages))
    except InputError:
        return
    assert PLANTED in repr(guard.seen)


# ---- what comes along with an agent's messages


@pytest.mark.parametrize("channel", BESIDE)
def test_words_beside_the_messages_are_read_where_a_refusal_answers(channel):
    options = BESIDE[channel][1](WORD)
    llm = options.pop("llm", None) or Recorder()
    bound = options.pop("model", lambda m: m)(llm)
    before = [*options.pop("before", []), GuardrailMiddleware(FakeGuard([WORD]))]
    state = create_agent(bound, middleware=before, **options).invoke({"messages": said("hi")})
    assert state["messages"][-1].content == REFUSAL
    assert state["guardrail_verdict"]["action"] == "flag"
    assert llm.sent == []


async def test_each_is_judged_once_and_again_when_it_changes():
    prompts = iter(["be kind", "be kind", "be brief", "be brief", "be kind"])

    @dynamic_prompt
    def prompt(request: Any) -> str:
        return next(prompts)

    guard = FakeGuard()
    guarding = GuardrailMiddleware(guard)
    agent = create_agent(model(), [tool()], middleware=[prompt, guarding])
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
    agent = create_agent(llm, [tool(description="odd")], middleware=[GuardrailMiddleware(guard)])
    for _ in range(2):
        await agent.ainvoke({"messages": said("hi")})
    assert [seen[0] for seen in llm.seen] == [SystemMessage(CAUTION)] * 2
    failing = FakeGuard(policy=Policy(fail="open"))
    agent = create_agent(
        llm, [tool(description="outage")], middleware=[GuardrailMiddleware(failing)]
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


# ---- a step of a chain


@pytest.mark.parametrize("name", BOUND)
async def test_a_step_reads_what_is_bound_to_the_next_one_inside(name):
    llm = Recorder()
    step = GuardrailRunnable(guard=FakeGuard([WORD]), on_flag="refuse")
    chain = step | BOUND[name][1](WORD)(llm)
    assert chain.invoke("hi").content == REFUSAL
    assert (await chain.ainvoke("hi")).content == REFUSAL
    assert [chunk.content for chunk in chain.stream("hi")] == [REFUSAL]
    assert [chunk.content async for chunk in chain.astream("hi")] == [REFUSAL]
    assert llm.sent == []


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


def test_a_picture_in_a_template_is_judged_as_one_and_must_have_one_reading():
    """Nobody puts another in its place."""
    for picture, error in (
        (saved(drawing(), "PNG"), None),
        (saved(translucent(0), "PNG"), InputError),
    ):
        url = f"data:image/png;base64,{b64encode(picture).decode()}"
        block = {"type": "image_url", "image_url": {"url": url}}
        template = ChatPromptTemplate.from_messages([("human", [block, "{q}"])])
        step = GuardrailRunnable(guard=(guard := FakeGuard()), on_flag="refuse", key="q")
        chain = step | RunnableSequence(template, llm := Recorder())
        if error is not None:
            with pytest.raises(error, match="two ways"):
                chain.invoke({"q": "hi"})
            assert llm.sent == []
        else:
            chain.invoke({"q": "hi"})
            assert [{"role": "user", "content": [block]}] in guard.seen
