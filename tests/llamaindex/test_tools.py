"""Guarded tools: what passes is untouched, what is held back is nowhere."""

# LlamaIndex looks for the workflow's context among real annotations, not strings.
import asyncio
import base64
import io
import json
from typing import Any

import pytest
from guardrail_llamaindex import guard_tool
from llama_index.core.base.llms import types
from llama_index.core.base.llms.types import AudioBlock
from llama_index.core.llms import ImageBlock, TextBlock
from llama_index.core.llms.llm import ToolSelection
from llama_index.core.tools import (
    AsyncBaseTool,
    BaseTool,
    FunctionTool,
    ToolMetadata,
    ToolOutput,
    adapt_to_async_tool,
)
from llama_index.core.tools.calling import (
    acall_tool,
    acall_tool_with_selection,
    call_tool,
    call_tool_with_selection,
)
from llama_index.core.workflow import Context, StartEvent, StopEvent, Workflow, step
from PIL import Image
from pydantic import BaseModel
from workflows.runtime.types import results

from guardrail.errors import (
    ConfigurationError,
    DetectorError,
    GuardrailViolation,
    UnsupportedContentError,
)
from guardrail.front.chats import (
    CALL_WITHHELD,
    RESULT_CAUTION,
    RESULT_WITHHELD,
    call_chat,
    result_chat,
)
from guardrail.policy import Policy, Thresholds
from guardrail.types import Action, Modality

WAYS = ("call", "acall")


def run(tool: Any, way: str, *args: Any, **kwargs: Any) -> ToolOutput:
    if way == "acall":
        return asyncio.run(tool.acall(*args, **kwargs))
    return tool(*args, **kwargs)


def tool_that(says: Any, made: list[Any] | None = None, **about: Any) -> FunctionTool:
    def look(where: str, often: int = 1) -> Any:
        """Look somewhere."""
        if made is not None:
            made.append((where, often))
        return says(where) if callable(says) else says

    return FunctionTool.from_defaults(look, **about)


def arguments_in(guard: Any) -> Any:
    """What the guard was asked about first: a call's arguments."""
    return json.loads(guard.seen[0][0]["content"])["arguments"]


class Plain(BaseTool):
    """A tool of the simplest kind: one input, nothing asynchronous."""

    def __init__(self, says: Any = "a dog") -> None:
        self.says, self.extra = says, "own"

    @property
    def metadata(self) -> ToolMetadata:
        return ToolMetadata(name="plain", description="Plain.", return_direct=True)

    def __call__(self, input: Any) -> ToolOutput:
        return ToolOutput(
            tool_name="plain", content=self.says, raw_input={"input": input}, raw_output=self.says
        )


class Own(AsyncBaseTool):
    """An asynchronous tool whose output is one object, kept."""

    def __init__(self, **output: Any) -> None:
        base = {"tool_name": "own", "content": "a dog", "raw_input": {"q": 1}, "raw_output": object}
        if "blocks" in output:
            base.pop("content")
        self.output = ToolOutput(**{**base, **output})

    @property
    def metadata(self) -> ToolMetadata:
        return ToolMetadata(name="own", description="Own.")

    def call(self, input: Any = None) -> ToolOutput:
        return self.output

    async def acall(self, input: Any = None) -> ToolOutput:
        return self.output


# --- what passes ----------------------------------------------------------------------------------


@pytest.mark.parametrize("way", WAYS)
def test_what_passes_is_the_same_object(word_guard, way):
    tool = Own(is_error=True)
    assert run(guard_tool(tool, guard=word_guard()), way, "here") is tool.output


@pytest.mark.parametrize("way", WAYS)
def test_call_and_output_are_checked_in_the_guards_own_form_for_tools(word_guard, way, png):
    guard = word_guard()
    tool = tool_that([TextBlock(text="a dog"), ImageBlock(image=png())])
    run(guard_tool(tool, guard=guard), way, "here", often=2)
    encoded = base64.b64encode(png()).decode()
    parts = [
        {"type": "text", "text": "a dog"},
        {"type": "image", "base64": encoded, "mime_type": "image/png"},
    ]
    assert guard.seen == [
        call_chat("look", {"where": "here", "often": 2}),
        result_chat(parts),
    ]


@pytest.mark.parametrize(
    ("check", "kinds"),
    [("arguments", [str]), (("result",), [list]), (["result", "arguments"], [str, list])],
)
def test_what_is_checked_can_be_chosen(word_guard, check, kinds):
    guard = word_guard()
    run(guard_tool(tool_that("a dog"), guard=guard, check=check), "call", "here")
    assert [type(chat[0]["content"]) for chat in guard.seen] == kinds


@pytest.mark.parametrize("check", [(), ("output",), "both"])
def test_a_check_of_nothing_or_something_else_is_an_error(word_guard, check):
    with pytest.raises(ConfigurationError, match="arguments, result or both"):
        guard_tool(tool_that("a dog"), guard=word_guard(), check=check)


def test_metadata_is_the_tools_own(word_guard):
    class Where(BaseModel):
        where: str

    tool = tool_that("a dog", name="see", fn_schema=Where, return_direct=True)
    assert guard_tool(tool, guard=word_guard()).metadata is tool.metadata
    plain = guard_tool(Plain(), guard=word_guard())
    assert (plain.metadata.name, plain.metadata.return_direct) == ("plain", True)
    assert plain.extra == "own"
    with pytest.raises(AttributeError):
        _ = plain.missing


def test_function_tools_stay_function_tools_and_others_do_not(word_guard):
    guarded = guard_tool(tool_that("a dog"), guard=word_guard())
    assert isinstance(guarded, FunctionTool)
    assert not isinstance(guard_tool(Plain(), guard=word_guard()), FunctionTool)
    assert adapt_to_async_tool(guarded) is guarded


@pytest.mark.parametrize("way", WAYS)
def test_a_plain_tool_works_both_ways(word_guard, way):
    guard = word_guard()
    output = run(guard_tool(Plain(), guard=guard), way, "here")
    assert (output.content, output.raw_input) == ("a dog", {"input": "here"})
    assert arguments_in(guard) == {"input": "here"}


@pytest.mark.parametrize("way", WAYS)
def test_the_workflows_context_goes_through_unread(word_guard, way):
    def look(ctx: Context, where: str) -> str:
        """Look somewhere."""
        return f"{where}, {id(ctx)}"

    class Flow(Workflow):
        @step
        async def only(self, event: StartEvent) -> StopEvent:
            return StopEvent()

    guard, context = word_guard(), Context(Flow())
    guarded = guard_tool(FunctionTool.from_defaults(look), guard=guard)
    assert (guarded.requires_context, guarded.ctx_param_name) == (True, "ctx")
    assert run(guarded, way, ctx=context, where="here").content == f"here, {id(context)}"
    assert arguments_in(guard) == {"where": "here"}


@pytest.mark.parametrize("way", WAYS)
def test_what_only_bears_the_contexts_name_is_checked(word_guard, way):
    def look(ctx: Context, where: str) -> str:
        """Look somewhere."""
        return f"{where}, {ctx}"

    guard = word_guard()
    guarded = guard_tool(FunctionTool.from_defaults(look), guard=guard, check="arguments")
    assert run(guarded, way, ctx="a bad one", where="here").content == CALL_WITHHELD
    assert arguments_in(guard) == {"ctx": "a bad one", "where": "here"}


@pytest.mark.parametrize("way", WAYS)
def test_partial_parameters_are_the_developers_and_unread(word_guard, way):
    guard = word_guard()
    tool = tool_that("a dog", made := [], partial_params={"often": 7})
    run(guard_tool(tool, guard=guard), way, where="here")
    assert made == [("here", 7)]
    assert arguments_in(guard) == {"where": "here"}


def test_positional_arguments_that_no_schema_names_are_still_checked(word_guard):
    guard = word_guard()
    with pytest.raises(TypeError):
        run(guard_tool(tool_that("a dog"), guard=guard), "call", "a", 1, "c")
    assert arguments_in(guard) == {"args": ["a", 1, "c"]}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("named", [True, False])
def test_arguments_that_change_during_the_check_are_sent_as_checked(word_guard, way, named):
    class Changing(word_guard):
        def check(self, value, **options):
            verdict = super().check(value, **options)
            places.append("bad")
            return verdict

    places = ["here"]
    guarded = guard_tool(tool_that(lambda where: ",".join(where)), guard=Changing())
    given: Any = ((), {"where": places}) if named else ((places,), {})
    assert run(guarded, way, *given[0], **given[1]).content == "here"
    assert "bad" in places


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("words", ["bad words", "odd words"])
def test_the_words_of_an_exception_are_checked_like_an_output(word_guard, way, words):
    def fail(where):
        raise KeyError(words)

    output = run(guard_tool(tool_that(fail), guard=word_guard()), way, where="here")
    assert (output.content, output.is_error) == (RESULT_WITHHELD, True)
    assert words not in repr(output)
    with pytest.raises(KeyError, match=words):
        run(guard_tool(tool_that(fail), guard=word_guard(), check="arguments"), way, where="here")


@pytest.mark.parametrize("way", WAYS)
def test_a_tool_that_waits_for_an_event_pauses_unchecked(word_guard, way):
    waiting = results.AddWaiter(
        waiter_id="bad", waiter_event=None, requirements={}, timeout=None, event_type=StopEvent
    )

    def wait(where):
        raise results.WaitingForEvent(waiting)

    guard = word_guard()
    with pytest.raises(results.WaitingForEvent):
        run(guard_tool(tool_that(wait), guard=guard), way, where="here")
    assert len(guard.seen) == 1


@pytest.mark.parametrize("way", WAYS)
def test_a_picture_goes_on_as_it_was_judged(word_guard, way):
    file, exif = io.BytesIO(), Image.Exif()
    exif[0x0112] = 6  # to be turned
    Image.new("RGB", (20, 10), "red").save(file, "JPEG", exif=exif)
    block = ImageBlock(image=file.getvalue(), detail="low")
    tool, guard = Own(blocks=[TextBlock(text="here"), block]), word_guard()
    output = run(guard_tool(tool, guard=guard, check="result"), way, "here")
    text, shown = output.blocks
    picture = Image.open(shown.resolve_image())
    assert (text.text, shown.detail, picture.format, picture.size) == (
        "here",
        "low",
        "PNG",
        (10, 20),
    )
    assert shown.image.decode() in repr(guard.seen[0])
    assert tool.output.blocks[1] is block
    shadow = word_guard(Policy(mode="shadow"))
    assert run(guard_tool(tool, guard=shadow, check="result"), way, "here") is tool.output


@pytest.mark.parametrize("way", WAYS)
def test_exceptions_of_the_tool_are_its_own(word_guard, way):
    def fail(where):
        raise KeyError(where)

    with pytest.raises(KeyError, match="here"):
        run(guard_tool(tool_that(fail), guard=word_guard()), way, where="here")


def test_arguments_that_json_cannot_hold_are_an_error_and_nothing_is_called(word_guard):
    guarded = guard_tool(tool_that("a dog", made := []), guard=word_guard())
    with pytest.raises(UnsupportedContentError, match="arguments of look cannot be written"):
        guarded(where=object())
    assert made == []


def test_an_empty_output_has_nothing_to_check(word_guard):
    guard = word_guard()
    tool = Own(content="")
    assert run(guard_tool(tool, guard=guard), "call", "a") is tool.output
    assert len(guard.seen) == 1


@pytest.mark.parametrize("way", WAYS)
def test_an_output_that_cannot_be_scored_is_an_error(word_guard, way):
    tool = Own(blocks=[AudioBlock(audio=b"a")])
    with pytest.raises(UnsupportedContentError, match=r"output of own\.blocks\[0\] is a AudioB"):
        run(guard_tool(tool, guard=word_guard()), way, "a")


@pytest.mark.skipif(
    not hasattr(types, "ToolCallBlock"), reason="this LlamaIndex has no tool call blocks"
)
@pytest.mark.parametrize("way", WAYS)
def test_an_output_with_a_call_in_it_is_an_error(word_guard, way):
    block = types.ToolCallBlock(tool_name="look", tool_kwargs={"where": "bad"})
    tool = Own(blocks=[TextBlock(text="a dog"), block])
    with pytest.raises(UnsupportedContentError, match=r"own\.blocks\[1\] is a ToolCallBlock"):
        run(guard_tool(tool, guard=word_guard()), way, "a")


@pytest.mark.parametrize("way", WAYS)
def test_an_output_of_cache_points_alone_has_nothing_to_check(guard_on, way):
    point = types.CachePoint(cache_control=types.CacheControl(type="ephemeral"))
    tool = Own(blocks=[point])
    assert run(guard_tool(tool, guard=guard_on()), way, "a") is tool.output


# --- what is held back ----------------------------------------------------------------------------


@pytest.mark.parametrize("way", WAYS)
def test_a_flagged_call_is_not_made(word_guard, way):
    guarded = guard_tool(tool_that("a dog", made := []), guard=word_guard())
    output = run(guarded, way, where="bad place")
    assert made == []
    assert (output.content, output.is_error, output.tool_name) == (CALL_WITHHELD, True, "look")
    assert output.raw_input["guardrail"]["arguments"]["action"] == "flag"
    assert "bad place" not in repr(output)
    json.dumps(output.raw_input)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("is_error", [False, True])
def test_a_flagged_output_is_nowhere(word_guard, way, is_error):
    tool = Own(content="bad words", raw_output={"a": "bad words"}, is_error=is_error)
    output = run(guard_tool(tool, guard=word_guard()), way, "here")
    assert (output.content, output.is_error) == (RESULT_WITHHELD, True)
    assert output.raw_input["guardrail"]["result"]["action"] == "flag"
    told = repr(output) + output.model_dump_json()
    assert "'window'" in told  # where it was found is told, and not what it says
    assert "bad" not in told
    assert tool.output.content == "bad words"


@pytest.mark.parametrize("way", WAYS)
def test_a_screenshot_with_instructions_in_it_is_caught(word_guard, way, png):
    shot = base64.b64encode(png(3)).decode()
    tool = tool_that(lambda _: [TextBlock(text="The page:"), ImageBlock(image=png(3))])
    output = run(guard_tool(tool, guard=word_guard(flag=shot)), way, where="here")
    assert [block.block_type for block in output.blocks] == ["text"]
    assert output.content == RESULT_WITHHELD
    assert shot not in repr(output)
    assert run(guard_tool(tool, guard=word_guard()), way, where="here").blocks[1].image


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(("where", "says"), [("bad", "a dog"), ("here", "bad")])
def test_flags_raise_where_told_to(word_guard, way, where, says):
    for options in ({"on_flag": "raise"}, {"policy": Policy(on_flag="raise")}):
        guarded = guard_tool(tool_that(says), guard=word_guard(), **options)
        with pytest.raises(GuardrailViolation) as caught:
            run(guarded, way, where=where)
        assert caught.value.verdict.action is Action.FLAG


@pytest.mark.parametrize("way", WAYS)
def test_an_annotated_output_is_a_copy_with_the_verdicts(word_guard, way):
    tool = tool_that("bad", made := [])
    output = run(guard_tool(tool, guard=word_guard(), on_flag="annotate"), way, where="bad")
    assert made == [("bad", 1)]
    assert (output.content, output.raw_output, output.is_error) == ("bad", "bad", False)
    assert output.raw_input["kwargs"] == {"where": "bad"}
    assert {k: v["action"] for k, v in output.raw_input["guardrail"].items()} == {
        "arguments": "flag",
        "result": "flag",
    }


@pytest.mark.parametrize("way", WAYS)
def test_annotating_leaves_the_tools_own_object_alone(word_guard, way):
    tool = Own(content="bad")
    output = run(guard_tool(tool, guard=word_guard(), on_flag="annotate"), way, "here")
    assert output is not tool.output
    assert tool.output.raw_input == {"q": 1}
    assert output.raw_output is tool.output.raw_output


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("where", ["bad", "odd", "outage"])
def test_shadow_mode_changes_nothing(word_guard, way, where):
    tool = Own(content=where)
    policy = Policy(mode="shadow", on_flag="raise")
    assert run(guard_tool(tool, guard=word_guard(policy)), way, where) is tool.output


# --- what would be steered ------------------------------------------------------------------------


@pytest.mark.parametrize("way", WAYS)
def test_a_caution_goes_before_an_output(word_guard, way, png):
    blocks = [TextBlock(text="odd"), ImageBlock(image=png())]
    tool = Own(blocks=blocks)
    output = run(guard_tool(tool, guard=word_guard()), way, "here")
    assert [block.block_type for block in output.blocks] == ["text", "text", "image"]
    assert output.blocks[0].text == f"{RESULT_CAUTION}\n\n"
    assert output.raw_input["guardrail"]["result"]["action"] == "steer"
    assert not output.is_error
    assert tool.output.blocks == blocks


@pytest.mark.parametrize("way", WAYS)
def test_arguments_have_no_place_for_a_caution_and_count_as_flagged(word_guard, way):
    output = run(guard_tool(tool_that("a dog", made := []), guard=word_guard()), way, where="odd")
    assert (output.content, made) == (CALL_WITHHELD, [])


@pytest.mark.parametrize(("where", "says"), [("odd", "a dog"), ("here", "odd")])
def test_the_policy_may_flag_or_pass_it(word_guard, where, says):
    flag, free = (word_guard(Policy(unsteerable=rule)) for rule in ("flag", "pass"))
    withheld = CALL_WITHHELD if where == "odd" else RESULT_WITHHELD
    assert run(guard_tool(tool_that(says), guard=flag), "call", where).content == withheld
    output = run(guard_tool(tool_that(says), guard=free), "call", where)
    assert output.content == says
    assert "guardrail" not in output.raw_input


# --- outages, audit, policies ---------------------------------------------------------------------


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("on_flag", ["refuse", "annotate"])
def test_an_outage_refuses_and_is_never_only_annotated(word_guard, way, on_flag):
    guarded = guard_tool(tool_that("outage"), guard=word_guard(), on_flag=on_flag)
    output = run(guarded, way, where="here")
    assert (output.content, output.is_error) == (RESULT_WITHHELD, True)
    assert output.raw_input["guardrail"]["result"]["reason"] == "detector_failed"


def test_an_outage_raises_an_error_that_is_no_finding(word_guard):
    guarded = guard_tool(tool_that("outage"), guard=word_guard(), on_flag="raise")
    with pytest.raises(DetectorError):
        run(guarded, "call", where="here")


def test_an_outage_passes_where_the_policy_fails_open(word_guard):
    guarded = guard_tool(tool_that("outage"), guard=word_guard(Policy(fail="open")))
    assert run(guarded, "call", where="here").content == "outage"


def test_every_verdict_is_audited_with_what_was_done(word_guard):
    lines = []
    audit = lambda verdict, facts: lines.append((verdict.action.value, facts["done"]))  # noqa: E731
    run(guard_tool(tool_that("odd"), guard=word_guard(), audit=audit), "call", "here")
    run(guard_tool(tool_that("odd"), guard=word_guard(), audit=audit), "call", "bad")
    assert lines == [("pass", "pass"), ("steer", "caution"), ("flag", "flag")]


def test_a_policy_of_its_own_replaces_the_guards(word_guard):
    guarded = guard_tool(tool_that("bad"), guard=word_guard(Policy(mode="shadow")), policy=Policy())
    assert run(guarded, "call", "here").content == RESULT_WITHHELD


# --- through LlamaIndex's own tool calling --------------------------------------------------------


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", ["function", "plain"])
def test_llamaindex_calls_it_once_and_gets_the_refusal(word_guard, way, kind):
    guard = word_guard()
    tool = tool_that("bad") if kind == "function" else Plain("bad")
    guarded = guard_tool(tool, guard=guard)
    arguments = {"where": "here", "often": 1} if kind == "function" else {"input": "here"}
    chosen = ToolSelection(
        tool_id="a", tool_name=guarded.metadata.name or "", tool_kwargs=arguments
    )
    if way == "call":
        output = call_tool_with_selection(chosen, [guarded])
    else:
        output = asyncio.run(acall_tool_with_selection(chosen, [guarded]))
    assert (output.content, output.is_error) == (RESULT_WITHHELD, True)
    assert len(guard.seen) == 2


@pytest.mark.parametrize("way", WAYS)
def test_no_tool_is_tried_again_after_a_flagged_result(word_guard, way):
    calls = []

    class Counting(Plain):
        def __call__(self, input: Any) -> ToolOutput:
            calls.append(input)
            return super().__call__(input)

    guarded = guard_tool(Counting("bad"), guard=word_guard(), on_flag="raise")
    made = {"call": lambda *a: call_tool(*a), "acall": lambda *a: asyncio.run(acall_tool(*a))}
    with pytest.raises(GuardrailViolation):
        made[way](guarded, {"input": "here"})
    assert calls == ["here"]


def test_a_guarded_function_tool_hands_no_bare_function_over(word_guard):
    guarded = guard_tool(tool_that("bad"), guard=word_guard())
    method = type(guarded).to_langchain_tool
    assert method is BaseTool.to_langchain_tool
    assert method is not FunctionTool.to_langchain_tool


# --- with a real guard ----------------------------------------------------------------------------


def test_the_verdicts_are_the_guards_own_for_the_same_messages(guard_on, png):
    lines = []
    guard = guard_on(audit=lambda verdict, _: lines.append(verdict.score))
    tool = tool_that([TextBlock(text="a dog"), ImageBlock(image=png())])
    run(guard_tool(tool, guard=guard), "acall", where="here")
    parts = [{"type": "text", "text": "a dog"}, {"type": "image", "image": png()}]
    wanted = [
        guard.check('{"name": "look", "arguments": {"where": "here"}}').score,
        guard.check([{"role": "user", "content": parts}]).score,
    ]
    assert lines[:2] == pytest.approx(wanted, abs=1e-5)


def test_a_real_guard_tells_a_bad_picture_from_a_good_one(guard_on, png):
    free = guard_on()
    score = [
        free.check([{"role": "user", "content": [{"type": "image", "image": png(i)}]}]).score
        for i in (0, 1)
    ]
    worse = int(score[1] > score[0])
    between = Thresholds(steer=sum(score) / 2, flag=sum(score) / 2)
    guard = guard_on(thresholds={Modality.TEXT: Thresholds(steer=1e9, flag=1e9), "image": between})
    outputs = [
        run(guard_tool(tool_that([ImageBlock(image=png(i))]), guard=guard), "call", "here")
        for i in (0, 1)
    ]
    assert [output.is_error for output in outputs] == [worse == 0, worse == 1]
