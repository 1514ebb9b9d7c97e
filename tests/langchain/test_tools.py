"""A guarded tool is the tool, but for what is held back."""

from __future__ import annotations

import base64
import io
import re
from typing import Annotated, Any

import pytest
from guardrail_langchain import guard_tool
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.messages import HumanMessage, ToolMessage
from langchain_core.tools import (
    BaseTool,
    InjectedToolArg,
    InjectedToolCallId,
    StructuredTool,
    Tool,
    ToolException,
    tool,
)
from langgraph.errors import GraphInterrupt
from langgraph.types import Command, Interrupt, Send
from PIL import Image
from pydantic import AliasChoices, BaseModel, Field, model_validator

from guardrail import ConfigurationError, GuardrailViolation, Policy, UnsupportedContentError
from guardrail.front.chats import CALL_WITHHELD, RESULT_CAUTION, RESULT_WITHHELD
from guardrail.testing import FakeGuard


@tool
def echo(text: str) -> str:
    """Say it again."""
    return f"echo {text}"


class Place(BaseModel):
    city: str


def call(name: str, **args: Any) -> dict[str, Any]:
    return {"type": "tool_call", "id": "c1", "name": name, "args": args}


async def both(guarded: BaseTool, request: Any) -> Any:
    """What the sync and the async form give: the same."""
    one, two = guarded.invoke(request), await guarded.ainvoke(request)
    assert one == two
    return one


async def test_what_passes_is_what_the_tool_gives():
    guard = FakeGuard()
    guarded = guard_tool(echo, guard=guard)
    assert await both(guarded, {"text": "hi"}) == "echo hi"
    assert await both(guarded, call("echo", text="hi")) == echo.invoke(call("echo", text="hi"))
    assert guard.seen[:2] == [
        [{"role": "user", "content": '{"name": "echo", "arguments": {"text": "hi"}}'}],
        [{"role": "user", "content": "echo hi"}],
    ]
    assert len(guard.seen) == 8  # two checks a call, in the async form too


def test_the_copy_is_the_tool_in_all_but_its_judgement():
    guarded = guard_tool(echo, guard=FakeGuard())
    assert isinstance(guarded, StructuredTool)
    for name in ("name", "description", "args_schema", "args", "return_direct", "response_format"):
        assert getattr(guarded, name) == getattr(echo, name)
    assert guarded.tool_call_schema.model_json_schema() == echo.tool_call_schema.model_json_schema()
    assert type(echo) is StructuredTool
    assert echo.invoke({"text": "bad"}) == "echo bad"


async def test_a_call_without_arguments_is_not_judged_by_its_name():
    guard = FakeGuard(flag=["lookup"])
    plain = StructuredTool.from_function(lambda: "fine", name="lookup", description="d")
    assert (await both(guard_tool(plain, guard=guard), call("lookup"))).content == "fine"
    assert [chat[0]["content"] for chat in guard.seen] == ["fine", "fine"]


async def test_flagged_arguments_never_reach_the_tool():
    ran = []

    @tool
    def delete(path: str) -> str:
        """Delete it."""
        ran.append(path)
        return "gone"

    guarded = guard_tool(delete, guard=FakeGuard())
    refused = await both(guarded, call("delete", path="bad"))
    assert isinstance(refused, ToolMessage)
    assert (refused.content, refused.status, refused.tool_call_id, refused.name) == (
        CALL_WITHHELD,
        "error",
        "c1",
        "delete",
    )
    assert refused.response_metadata["verdict"]["action"] == "flag"
    assert await both(guarded, {"path": "bad"}) == CALL_WITHHELD
    assert ran == []


async def test_a_flagged_result_is_held_back_with_its_artifact():
    @tool(response_format="content_and_artifact")
    def fetch(url: str) -> tuple[str, dict]:
        """Fetch it."""
        return ("bad words" if url == "b" else "good words"), {"raw": "bad bytes"}

    class Ends(BaseCallbackHandler):
        told: list = []  # noqa: RUF012

        def on_tool_end(self, output, **kwargs):
            self.told.append(output)

    guarded = guard_tool(fetch, guard=FakeGuard())
    held = await both(guarded, call("fetch", url="b"))
    assert (held.content, held.status, held.artifact) == (RESULT_WITHHELD, "error", None)
    assert held.response_metadata["verdict"]["where"]["reading"] == "window"
    assert "bad" not in repr(held)
    guarded.invoke(call("fetch", url="b"), {"callbacks": [Ends()]})
    assert "bad" not in repr(Ends.told)
    passed = await both(guarded, call("fetch", url="a"))
    assert (passed.content, passed.artifact) == ("good words", {"raw": "bad bytes"})


async def test_pictures_in_a_result_are_seen():
    buffer = io.BytesIO()
    Image.new("RGB", (4, 4), "red").save(buffer, "PNG")
    data = base64.b64encode(buffer.getvalue()).decode()
    block = {"type": "image", "base64": data, "mime_type": "image/png"}

    @tool
    def screenshot() -> list:
        """Look."""
        return [{"type": "text", "text": "here"}, block]

    guard = FakeGuard()
    shown = await both(guard_tool(screenshot, guard=guard), call("screenshot"))
    assert shown.content == [{"type": "text", "text": "here"}, block]
    assert guard.seen[1] == [{"role": "user", "content": [{"type": "text", "text": "here"}, block]}]


@pytest.mark.parametrize(
    ("value", "read"),
    [
        ({"a": ["é"]}, '{"a": ["é"]}'),
        ([{"type": "invoice", "n": 1}], '[{"type": "invoice", "n": 1}]'),
        ([], "[]"),
        (None, "null"),
        (7, "7"),
    ],
)
async def test_any_other_result_is_read_as_the_model_will(value, read):
    guard = FakeGuard()
    plain = StructuredTool.from_function(lambda: value, name="f", description="d")
    message = await both(guard_tool(plain, guard=guard), call("f"))
    assert guard.seen[1] == [{"role": "user", "content": read}]
    assert message == plain.invoke(call("f"))


def test_a_result_that_cannot_be_read_is_an_error():
    odd = StructuredTool.from_function(
        lambda: [{"type": "file", "base64": "AAAA", "mime_type": "application/pdf"}],
        name="f",
        description="d",
    )
    with pytest.raises(UnsupportedContentError, match="file"):
        guard_tool(odd, guard=FakeGuard()).invoke(call("f"))


# ---- what a verdict leads to


async def test_a_tool_cannot_be_steered_so_results_are_cautioned_and_arguments_flagged():
    @tool
    def look() -> str:
        """Look."""
        return "odd words"

    assert (await both(guard_tool(look, guard=FakeGuard()), call("look"))).content == (
        f"{RESULT_CAUTION}\n\nodd words"
    )
    flags = guard_tool(look, guard=FakeGuard(policy=Policy(unsteerable="flag")))
    assert (await both(flags, call("look"))).content == RESULT_WITHHELD
    passes = guard_tool(look, guard=FakeGuard(policy=Policy(unsteerable="pass")))
    assert (await both(passes, call("look"))).content == "odd words"
    assert (
        await both(guard_tool(echo, guard=FakeGuard()), call("echo", text="odd"))
    ).content == CALL_WITHHELD


def test_a_flag_raises_annotates_or_is_only_recorded():
    with pytest.raises(GuardrailViolation):
        guard_tool(echo, guard=FakeGuard(), on_flag="raise").invoke({"text": "bad"})
    assert (
        guard_tool(echo, guard=FakeGuard(), on_flag="annotate").invoke({"text": "bad"})
        == "echo bad"
    )
    assert (
        guard_tool(echo, guard=FakeGuard(policy=Policy(mode="shadow"))).invoke({"text": "bad"})
        == "echo bad"
    )


def test_one_side_alone_can_be_checked():
    guard = FakeGuard()
    guard_tool(echo, guard=guard, check=["arguments"]).invoke({"text": "hi"})
    assert len(guard.seen) == 1
    guard_tool(echo, guard=guard, check=["result"]).invoke({"text": "hi"})
    assert guard.seen[1][0]["content"] == "echo hi"
    with pytest.raises(ConfigurationError, match="may hold only arguments, result or both"):
        guard_tool(echo, guard=guard, check=["input"])
    with pytest.raises(ConfigurationError, match="rase"):
        guard_tool(echo, guard=guard, on_flag="rase")
    with pytest.raises(TypeError, match="function"):
        guard_tool(lambda: None, guard=guard)


# ---- all that makes a tool


async def test_injected_arguments_reach_the_tool_and_are_not_what_the_model_wrote():
    @tool
    def who(
        text: str,
        user: Annotated[str, InjectedToolArg],
        call_id: Annotated[str, InjectedToolCallId],
    ) -> str:
        """Who."""
        return f"{text} {user} {call_id}"

    guard = FakeGuard()
    request = call("who", text="hi", user="a secret")
    message = await both(guard_tool(who, guard=guard, check=["arguments"]), request)
    assert message.content == "hi a secret c1"
    assert "secret" not in repr(guard.seen)


async def test_errors_stay_the_tools_own():
    @tool
    def fails(how: str) -> str:
        """Fail."""
        if how == "handled":
            raise ToolException("no luck")
        raise RuntimeError("broken")

    guarded = guard_tool(fails, guard=FakeGuard())
    for error, how in ((ToolException, "handled"), (RuntimeError, "not")):
        with pytest.raises(error):
            guarded.invoke({"how": how})
        with pytest.raises(error):
            await guarded.ainvoke({"how": how})
    fails.handle_tool_error = True
    handled = await both(guard_tool(fails, guard=FakeGuard()), call("fails", how="handled"))
    assert (handled.content, handled.status) == ("no luck", "error")
    fails.handle_validation_error = True
    invalid = await both(guard_tool(fails, guard=FakeGuard()), call("fails"))
    assert invalid.status == "error"


async def test_async_tools_and_tools_of_any_class_are_judged_once():
    async def arun(text: str) -> str:
        return f"async {text}"

    only_async = StructuredTool.from_function(coroutine=arun, name="a", description="d")

    class Own(BaseTool):
        name: str = "own"
        description: str = "d"
        prefix: str = "own"

        def _run(self, text: str, run_manager: Any = None) -> str:
            assert run_manager is not None
            return f"{self.prefix} {text}"

    single = Tool(name="single", description="d", func=lambda text: f"single {text}")
    for plain, said in ((only_async, "async"), (Own(), "own"), (single, "single")):
        guard = FakeGuard()
        guarded = guard_tool(plain, guard=guard)
        assert await guarded.ainvoke("hi" if plain is single else {"text": "hi"}) == f"{said} hi"
        assert len(guard.seen) == 2
        assert await guarded.ainvoke("bad" if plain is single else {"text": "bad"}) == (
            CALL_WITHHELD
        )


async def test_tools_inside_tools_are_judged_too():
    guard = FakeGuard()
    inner = guard_tool(echo, guard=guard, check=["result"])

    @tool
    async def outer(text: str) -> str:
        """Outer."""
        return "outer " + await inner.ainvoke({"text": text})

    found = await guard_tool(outer, guard=guard, check=["result"]).ainvoke({"text": "hi"})
    assert found == "outer echo hi"
    assert [chat[0]["content"] for chat in guard.seen] == ["echo hi", "outer echo hi"]


def command_tool(update: Any, goto: Any = ()) -> BaseTool:
    def move() -> Command:
        return Command(update=update, goto=goto)

    return StructuredTool.from_function(move, name="move", description="d")


def said(content: str) -> ToolMessage:
    return ToolMessage(content, tool_call_id="c1", artifact="bytes", name="move", id="m1")


@pytest.mark.parametrize(
    ("update", "goto"),
    [
        ({"messages": [said("bad words")], "place": 1}, ()),
        ({"messages": [said("fine"), HumanMessage("bad words")]}, ()),
        ([("messages", [said("bad words")])], ()),
        ({"messages": said("bad words")}, ()),
        ({"messages": (said("bad words"),)}, ()),
        ({"messages": [{"role": "tool", "content": "bad words", "tool_call_id": "c1"}]}, ()),
        ({"chat": [said("bad words")]}, ()),
        ({"messages": [said("fine")], "notes": ["bad words"]}, ()),
        ({"messages": [said("fine")]}, [Send("n", {"messages": [HumanMessage("bad words")]})]),
    ],
)
async def test_a_command_with_anything_flagged_in_it_is_held_back_whole(update, goto):
    refused = await both(guard_tool(command_tool(update, goto), guard=FakeGuard()), call("move"))
    assert isinstance(refused, ToolMessage)
    assert (refused.content, refused.status, refused.tool_call_id) == (
        RESULT_WITHHELD,
        "error",
        "c1",
    )
    assert refused.artifact is None


async def test_a_command_that_passes_is_the_same_command():
    plain = command_tool({"messages": [said("fine")], "place": 1}, ["x"])
    command = await both(guard_tool(plain, guard=FakeGuard()), call("move"))
    assert command == plain.invoke(call("move"))
    odd = command_tool([("messages", [said("odd")]), ("place", "y")])
    cautioned = await both(guard_tool(odd, guard=FakeGuard()), call("move"))
    [(_, [message]), place] = cautioned.update
    assert (message.content, message.artifact) == (f"{RESULT_CAUTION}\n\nodd", "bytes")
    assert place == ("place", "y")


class Aliased(BaseModel):
    q: str = Field(validation_alias=AliasChoices("q", "query"))


class Filled(BaseModel):
    q: str = ""

    @model_validator(mode="before")
    @classmethod
    def _fill(cls, value: Any) -> Any:
        return {"q": value.get("more", value.get("q", ""))}


class Rest(BaseTool):
    name: str = "rest"
    description: str = "d"

    def _run(self, text: str, **more: Any) -> str:
        RAN.append(more)
        return text


RAN: list[Any] = []


def of_schema(schema: Any) -> StructuredTool:
    return StructuredTool(name="a", description="d", args_schema=schema, func=RAN.append)


@pytest.mark.parametrize(
    ("plain", "args"),
    [
        (Tool(name="old", description="d", func=RAN.append), {"__arg1": "bad"}),
        (Rest(), {"text": "a", "x": "bad"}),
        (
            StructuredTool(name="a", description="d", args_schema=Aliased, func=RAN.append),
            {"query": "bad"},
        ),
        (
            StructuredTool(name="f", description="d", args_schema=Filled, func=RAN.append),
            {"more": "bad"},
        ),
    ],
    ids=["the older single argument", "a rest of keywords", "an alias", "a validator"],
)
def test_no_key_that_may_reach_the_tool_is_left_unread(plain, args):
    RAN.clear()
    guarded = guard_tool(plain, guard=FakeGuard(), check=["arguments"])
    refused = guarded.invoke({"type": "tool_call", "id": "c1", "name": plain.name, "args": args})
    assert refused.content == CALL_WITHHELD
    assert RAN == []


async def test_the_words_of_a_tools_error_are_read_too():
    @tool
    def fails(words: str) -> str:
        """Fail."""
        raise ToolException(f"no luck: {words[::-1]}")

    guarded = guard_tool(fails, guard=FakeGuard())
    with pytest.raises(ToolException, match=f"^{re.escape(RESULT_WITHHELD)}$") as caught:
        guarded.invoke({"words": "dab"})
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__
    fails.handle_tool_error = True
    handled = await both(guard_tool(fails, guard=FakeGuard()), call("fails", words="dab"))
    assert (handled.content, handled.status) == (RESULT_WITHHELD, "error")
    passed = await both(guard_tool(fails, guard=FakeGuard()), call("fails", words="enif"))
    assert passed.content == "no luck: fine"


async def test_the_words_of_any_error_are_read_as_a_graph_may_show_them():
    @tool
    def fails(words: str) -> str:
        """Fail."""
        raise ValueError(f"no luck: {words[::-1]}")

    @tool
    async def afails(words: str) -> str:
        """Fail."""
        raise ValueError(f"no luck: {words[::-1]}")

    for failing in (fails, afails):
        guarded = guard_tool(failing, guard=FakeGuard())
        with pytest.raises(ToolException, match=f"^{re.escape(RESULT_WITHHELD)}$") as caught:
            await guarded.ainvoke({"words": "dab"})
        assert caught.value.__suppress_context__
        with pytest.raises(ValueError, match="no luck: fine"):
            await guarded.ainvoke({"words": "enif"})


def test_a_tool_may_wait_for_an_answer_whatever_it_asks():
    @tool
    def asks(words: str) -> str:
        """Ask."""
        raise GraphInterrupt([Interrupt(f"is {words[::-1]} right?")])

    guard = FakeGuard()
    with pytest.raises(GraphInterrupt):
        guard_tool(asks, guard=guard).invoke({"words": "dab"})
    assert len(guard.seen) == 1


def test_a_plain_json_schema_hides_no_argument():
    schema = {"type": "object", "properties": {"a": {"type": "string"}}}
    ran = []
    loose = StructuredTool(
        name="loose", description="d", args_schema=schema, func=lambda **kw: ran.append(kw)
    )
    guard = FakeGuard()
    guard_tool(loose, guard=guard, check=["arguments"]).invoke({"a": "x", "b": "y"})
    assert ran == [{"a": "x", "b": "y"}]
    assert '"b": "y"' in guard.seen[0][0]["content"]


async def test_the_verdicts_on_a_tool_are_events_of_its_run():
    events = guard_tool(echo, guard=FakeGuard()).astream_events({"text": "hi"}, version="v2")
    found = [e["data"]["action"] async for e in events if e["event"] == "on_custom_event"]
    assert found == ["pass", "pass"]


def test_arguments_that_are_models_are_read():
    @tool
    def go(place: Place) -> str:
        """Go."""
        return place.city

    guard = FakeGuard()
    assert guard_tool(go, guard=guard).invoke({"place": {"city": "Ulm"}}) == "Ulm"
    assert '{"place": {"city": "Ulm"}}' in guard.seen[0][0]["content"]
