"""Another model gets the picture that was judged, in the form in which it was sent."""

from __future__ import annotations

import base64
import copy
import io
from typing import Any

import pytest
from guardrail_langchain import GuardrailMiddleware, GuardrailRunnable, guard_tool
from langchain.agents import create_agent
from langchain_core.language_models import FakeListChatModel
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage, ToolMessage
from langchain_core.prompt_values import ChatPromptValue
from langchain_core.tools import StructuredTool
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.types import Command
from PIL import Image

from guardrail import Policy, UnsupportedContentError
from guardrail.inputs.canonical import require_one_reading
from guardrail.policy import REFUSAL
from guardrail.testing import FakeGuard
from tests.picture_zoo import TWO_WAYS, drawing, saved, translucent

CLEAR = saved(translucent(0), "PNG")  # words that only some decoders show
PLAIN = saved(drawing(), "PNG")
CALL = {"name": "look", "args": {}, "id": "c1", "type": "tool_call"}


def coded(data: bytes) -> str:
    return base64.b64encode(data).decode()


def forms(data: bytes) -> dict[str, dict[str, Any]]:
    text, url = coded(data), f"data:image/png;base64,{coded(data)}"
    source = {"type": "base64", "media_type": "image/png", "data": text}
    return {
        "LangChain's": {"type": "image", "base64": text, "mime_type": "image/png", "id": "b1"},
        "LangChain's with an address": {"type": "image", "url": url},
        "with extras": {"type": "image", "url": url, "extras": {"detail": "low"}},
        "the older form": {
            "type": "image",
            "source_type": "base64",
            "data": text,
            "mime_type": "image/png",
        },
        "the older form with an address": {"type": "image", "source_type": "url", "url": url},
        "OpenAI's": {"type": "image_url", "image_url": {"url": url, "detail": "low"}},
        "OpenAI's short form": {"type": "image_url", "image_url": url},
        "of OpenAI's responses": {"type": "input_image", "image_url": url},
        "Anthropic's": {"type": "image", "source": source, "cache_control": {"type": "ephemeral"}},
        "Anthropic's with an address": {"type": "image", "source": {"type": "url", "url": url}},
        "unknown to LangChain": {"type": "non_standard", "value": {"type": "image", "url": url}},
    }


def picture_in(block: Any) -> bytes:
    """The bytes of the one picture in a block, wherever they stand."""
    if isinstance(block, dict):
        for key in ("base64", "data", "url", "image_url", "source", "value"):
            if key in block:
                return picture_in(block[key])
    return base64.b64decode(block.rpartition(",")[2])


def shape(value: Any) -> Any:
    """A block with every picture left out."""
    if isinstance(value, dict):
        return {key: shape(item) for key, item in value.items()}
    if isinstance(value, list):
        return list(map(shape, value))
    return "..." if isinstance(value, str) and len(value) > 100 else value


class Model(FakeListChatModel):
    responses: list = ["an answer"]  # noqa: RUF012
    seen: list = []  # noqa: RUF012

    def bind_tools(self, tools: Any, **kwargs: Any) -> Any:
        return self

    def _call(self, messages: Any, *args: Any, **kwargs: Any) -> str:
        self.seen.append(messages)
        return super()._call(messages, *args, **kwargs)


def read_alike(data: bytes) -> None:
    """One reading, and it is the guard's."""
    require_one_reading([{"role": "user", "content": [{"type": "image", "image": data}]}], Policy())
    assert Image.open(io.BytesIO(data)).mode == "RGB"


@pytest.mark.parametrize("form", forms(CLEAR))
@pytest.mark.parametrize(
    "wrap",
    [lambda c: HumanMessage(c, id="m"), lambda c: ToolMessage(c, tool_call_id="c1", id="m")],
    ids=["asked", "a tool's"],
)
async def test_a_picture_goes_on_as_it_was_judged_and_keeps_its_form(form, wrap):
    block = forms(CLEAR)[form]
    hi, call = HumanMessage("hi", id="h"), AIMessage("", tool_calls=[CALL], id="a")
    asked = [hi, call, wrap(["see", block])]
    before = copy.deepcopy(asked)
    guard, llm = FakeGuard(), Model(seen=[])
    sent = [GuardrailRunnable(guard=guard).invoke(asked)]
    sent.append(
        (await GuardrailRunnable(guard=guard).ainvoke(ChatPromptValue(messages=asked))).messages
    )
    create_agent(llm, middleware=[GuardrailMiddleware(guard)]).invoke({"messages": asked})
    await create_agent(llm, middleware=[GuardrailMiddleware(guard)]).ainvoke({"messages": asked})
    sent += llm.seen
    for messages in sent[:2]:  # LangChain's models bring them to a form of their own
        assert shape(messages[-1].content) == ["see", shape(form_sent(form, block))]
    for messages, judged in zip(sent, guard.seen, strict=True):
        found = messages[-1].content[1]
        read_alike(picture_in(found))
        assert picture_in(found) == picture_in(judged[-1]["content"][1])
    assert asked == before


def form_sent(form: str, block: dict[str, Any]) -> dict[str, Any]:
    """Addresses of pictures become data, where a form tells one from the other."""
    if form != "Anthropic's with an address":
        return block
    return {"type": "image", "source": forms(CLEAR)["Anthropic's"]["source"]}


@pytest.mark.parametrize("form", forms(PLAIN))
def test_what_is_canonical_stays_the_same_object(form):
    asked = [HumanMessage(["see", forms(PLAIN)[form]])]
    assert GuardrailRunnable(guard=FakeGuard()).invoke(asked) is asked


@pytest.mark.parametrize("kind", TWO_WAYS)
def test_a_picture_with_two_readings_is_refused_where_the_policy_says_so(kind):
    guard = FakeGuard(policy=Policy(pictures="refuse"))
    asked = [HumanMessage([{"type": "image", "base64": coded(TWO_WAYS[kind]())}])]
    with pytest.raises(UnsupportedContentError, match="two ways"):
        GuardrailRunnable(guard=guard).invoke(asked)
    with pytest.raises(UnsupportedContentError, match="two ways"):
        create_agent(Model(seen=[]), middleware=[GuardrailMiddleware(guard)]).invoke(
            {"messages": asked}
        )


@pytest.mark.parametrize(
    "block",
    [
        {**forms(PLAIN)["Anthropic's"], "base64": coded(CLEAR)},
        {**forms(PLAIN)["unknown to LangChain"], "base64": coded(CLEAR)},
    ],
    ids=["beside a source", "beside a value"],
)
def test_a_block_with_a_second_picture_is_refused(block):
    with pytest.raises(UnsupportedContentError, match="base64"):
        GuardrailRunnable(guard=FakeGuard()).invoke([HumanMessage([block])])


async def test_a_system_prompts_pictures_go_on_as_they_were_judged():
    seen: list[Any] = []

    class Model(FakeListChatModel):
        def _call(self, messages: Any, *args: Any, **kwargs: Any) -> str:
            seen.append(messages[0].content[1])
            return super()._call(messages, *args, **kwargs)

    prompt = SystemMessage(["see", forms(CLEAR)["LangChain's"]])
    guard = FakeGuard()
    agent = create_agent(
        Model(responses=["an answer"]),
        system_prompt=prompt,
        middleware=[GuardrailMiddleware(guard)],
    )
    agent.invoke({"messages": ["hi"]})
    await agent.ainvoke({"messages": ["hi"]})
    for block in seen:
        read_alike(picture_in(block))
    assert coded(picture_in(seen[0])) in repr(guard.seen)
    assert len(seen) == 2


def test_an_object_stays_an_object():
    asked = [HumanMessage([{"type": "image", "image": translucent(0)}])]
    [message] = GuardrailRunnable(guard=FakeGuard()).invoke(asked)
    assert message.content[0]["image"].mode == "RGB"
    one = GuardrailRunnable(guard=FakeGuard()).invoke(asked[0])
    assert one.content[0]["image"].mode == "RGB"


def test_a_selected_input_cannot_be_rewritten_and_has_to_have_one_reading():
    step = GuardrailRunnable(guard=FakeGuard(), select=lambda value: value["asked"])
    fine = {"asked": [HumanMessage([forms(PLAIN)["OpenAI's"]])]}
    assert step.invoke(fine) is fine
    with pytest.raises(UnsupportedContentError, match="two ways"):
        step.invoke({"asked": [HumanMessage([forms(CLEAR)["OpenAI's"]])]})


async def test_a_threads_pictures_are_kept_as_they_were_judged():
    """So that no turn has to write them again."""
    agent = create_agent(
        Model(seen=[]), middleware=[GuardrailMiddleware(FakeGuard())], checkpointer=InMemorySaver()
    )
    config = {"configurable": {"thread_id": "1"}}
    asked = HumanMessage(["see", forms(CLEAR)["LangChain's"]], id="q")
    state = await agent.ainvoke({"messages": [asked]}, config)
    kept = agent.get_state(config).values["messages"]
    assert [message.id for message in kept] == ["q", state["messages"][1].id]
    read_alike(picture_in(kept[0].content[1]))


def given_by(output: Any, **options: Any) -> StructuredTool:
    return StructuredTool.from_function(lambda: output, name="look", description="d", **options)


@pytest.mark.parametrize("form", ["LangChain's", "OpenAI's", "LangChain's with an address"])
async def test_pictures_that_a_tool_gives_go_on_as_they_were_judged(form):
    block = forms(CLEAR)[form]
    message = ToolMessage([block], tool_call_id="c1", artifact="raw")
    plain, of_message = given_by(["see", block]), given_by(message)
    pair = given_by((["see", block], "raw"), response_format="content_and_artifact")
    for tool in (plain, of_message, pair):
        for found in (
            guard_tool(tool, guard=FakeGuard()).invoke(CALL),
            await guard_tool(tool, guard=FakeGuard()).ainvoke(CALL),
        ):
            read_alike(picture_in(found.content[-1]))
            assert shape(found.content[-1]) == shape(block)
            assert found.artifact == (None if tool is plain else "raw")
    moving = given_by(Command(update={"messages": [message, HumanMessage([block], id="h")]}))
    for sent in guard_tool(moving, guard=FakeGuard()).invoke(CALL).update["messages"]:
        read_alike(picture_in(sent.content[0]))
    assert message.content == [block]


async def test_a_picture_that_a_model_wrote_is_seen_and_has_to_have_one_reading():
    show = StructuredTool.from_function(lambda picture: "so", name="look", description="d")
    for data in (PLAIN, CLEAR):
        guard = FakeGuard()
        call = {**CALL, "args": {"picture": f"data:image/png;base64,{coded(data)}"}}
        guarded = guard_tool(show, guard=guard)
        if data is PLAIN:
            assert (await guarded.ainvoke(call)).content == "so"
            assert [part["type"] for part in guard.seen[0][0]["content"]] == ["image", "text"]
            continue
        with pytest.raises(UnsupportedContentError, match="two ways"):
            guarded.invoke(call)


async def test_an_agents_tool_results_go_on_as_they_were_judged():
    class Caller(Model):
        def _generate(self, messages: Any, *args: Any, **kwargs: Any) -> Any:
            found = super()._generate(messages, *args, **kwargs)
            if len(self.seen) == 1:
                found.generations[0].message = AIMessage("", tool_calls=[CALL])
            return found

    llm = Caller(seen=[])
    tool = given_by([forms(CLEAR)["LangChain's"]])
    agent = create_agent(llm, [tool], middleware=[GuardrailMiddleware(FakeGuard())])
    state = await agent.ainvoke({"messages": [HumanMessage("look")]})
    assert state["messages"][-1].content != REFUSAL
    read_alike(picture_in(llm.seen[1][-1].content[0]))
