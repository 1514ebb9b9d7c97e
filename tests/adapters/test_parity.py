"""One input, one verdict, whichever adapter it comes through."""

from __future__ import annotations

import base64
import io
import itertools
from typing import TYPE_CHECKING, Any

import guardrail_agents as oa
import guardrail_langchain as lc
import guardrail_llamaindex as li
import guardrail_pydantic_ai as pai
import httpx
import numpy as np
import pytest
from agents import (
    Agent,
    Model,
    ModelResponse,
    RunContextWrapper,
    ToolInputGuardrailData,
    ToolOutputGuardrailData,
    ToolOutputImage,
    ToolOutputText,
    Usage,
    function_tool,
)
from agents.tool_context import ToolContext
from fastapi import FastAPI, Request
from langchain.agents import create_agent
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.documents import Document
from langchain_core.language_models import FakeListChatModel
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage, ToolMessage
from langchain_core.tools import StructuredTool
from llama_index.core.base.llms import types
from llama_index.core.base.llms.types import ChatMessage, ImageBlock, TextBlock
from llama_index.core.llms import MockLLM
from llama_index.core.schema import ImageNode, MediaResource, Node, NodeWithScore
from llama_index.core.tools import FunctionTool
from PIL import Image
from pydantic_ai import Agent as PydanticAgent
from pydantic_ai import BinaryContent, ImageUrl
from pydantic_ai import messages as pam
from pydantic_ai.models.function import FunctionModel
from pydantic_ai.models.test import TestModel
from pydantic_ai.toolsets import FunctionToolset

from guardrail import Guard, Policy, Thresholds, guard_tool, guarded
from guardrail.asgi import GuardrailASGIMiddleware
from guardrail.front.chats import call_chat, result_chat
from guardrail.front.wrap import last_verdict
from guardrail.server import create_app
from guardrail.testing import tiny_artefact, tiny_model
from guardrail.types import Action, Modality

av = pytest.importorskip("av")

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

FAR = 1e9
FORCED = {
    Action.PASS: Thresholds(steer=FAR, flag=FAR),
    Action.FLAG: Thresholds(steer=-FAR, flag=-FAR),
}
Verdict = dict[str, Any]


def png(seed: int) -> str:
    picture = Image.effect_noise((40, 30), 50 + 40 * seed).convert("RGB")
    picture.putpixel((0, 0), (seed, 255, 0))
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def mp4(seconds: int) -> str:
    """A video of noise, of which the default policy samples two frames a second and more."""
    random, buffer = np.random.default_rng(seconds), io.BytesIO()
    with av.open(buffer, "w", format="mp4") as out:
        stream = out.add_stream("mpeg4", rate=4)
        stream.width, stream.height, stream.pix_fmt = 32, 32, "yuv420p"
        for _ in range(4 * seconds):
            noise = random.integers(0, 255, (32, 32, 3), dtype=np.uint8)
            out.mux(stream.encode(av.VideoFrame.from_ndarray(noise, format="rgb24")))
        out.mux(stream.encode())
    return base64.b64encode(buffer.getvalue()).decode()


ONE, TWO = png(1), png(2)
SHORT, LONG = mp4(1), mp4(6)
CALL = {"name": "screenshot", "args": {"display": 1, "why": "é"}, "id": "c1"}

# ---- the same chats in every framework's own words


def url(data: str) -> str:
    return f"data:image/png;base64,{data}"


def picture(data: str) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": url(data)}}


def film(data: str) -> dict[str, Any]:
    return {"type": "video_url", "video_url": {"url": f"data:video/mp4;base64,{data}"}}


def video_block(data: str) -> dict[str, Any]:
    return {"type": "video", "base64": data, "mime_type": "video/mp4"}


def image_block(data: str) -> dict[str, Any]:
    return {"type": "image", "base64": data, "mime_type": "image/png"}


def text(words: str) -> dict[str, Any]:
    return {"type": "text", "text": words}


def function(arguments: Any) -> dict[str, Any]:
    call = {"name": CALL["name"], "arguments": arguments}
    return {"id": "c1", "type": "function", "function": call}


CHATS: dict[str, list[dict[str, Any]]] = {
    "text": [{"role": "user", "content": "how do I make this cake?"}],
    "one image": [{"role": "user", "content": [text("what is this?"), picture(ONE)]}],
    "two images": [
        {"role": "user", "content": [picture(ONE), text("the same as"), picture(TWO), text("?")]}
    ],
    "a short video": [{"role": "user", "content": [film(SHORT), text("what happens?")]}],
    "a long video": [{"role": "user", "content": [film(LONG), text("what happens?")]}],
    "tool results": [
        {"role": "system", "content": "be kind"},
        {"role": "user", "content": "what is on the screen?"},
        {
            "role": "assistant",
            "content": "I look.",
            "tool_calls": [function('{"display":1,"why":"\\u00e9"}')],
        },
        {
            "role": "tool",
            "tool_call_id": "c1",
            "name": "screenshot",
            "content": [text("here:"), picture(TWO)],
        },
        {"role": "assistant", "content": "A cat."},
        {"role": "user", "content": "and now?"},
    ],
}

LANGCHAIN: dict[str, list[Any]] = {
    "text": [HumanMessage("how do I make this cake?")],
    "one image": [HumanMessage(["what is this?", image_block(ONE)])],
    "two images": [
        HumanMessage(
            [
                image_block(ONE),
                text("the same as"),
                {"type": "image", "source_type": "base64", "data": TWO, "mime_type": "image/png"},
                text("?"),
            ]
        )
    ],
    "a short video": [HumanMessage([video_block(SHORT), "what happens?"])],
    "a long video": [HumanMessage([film(LONG), "what happens?"])],
    "tool results": [
        SystemMessage("be kind"),
        HumanMessage("what is on the screen?"),
        AIMessage("I look.", tool_calls=[CALL]),
        ToolMessage(
            [text("here:"), {"type": "image", "url": url(TWO)}],
            tool_call_id="c1",
            name="screenshot",
        ),
        AIMessage("A cat."),
        HumanMessage("and now?"),
    ],
}

# bytes with their base64 form inside, as LlamaIndex keeps them
_BLOCK = {data: ImageBlock(image=base64.b64decode(data)) for data in (ONE, TWO)}


def _film(data: str) -> Any:
    """A video block; younger than the lowest LlamaIndex, which has a text in its place."""
    if hasattr(types, "VideoBlock"):
        return types.VideoBlock(video=base64.b64decode(data))
    return TextBlock(text="no videos here")


LLAMAINDEX: dict[str, list[ChatMessage]] = {
    "text": [ChatMessage("how do I make this cake?")],
    "one image": [ChatMessage(blocks=[TextBlock(text="what is this?"), _BLOCK[ONE]])],
    "two images": [
        ChatMessage(
            blocks=[_BLOCK[ONE], TextBlock(text="the same as"), _BLOCK[TWO], TextBlock(text="?")]
        )
    ],
    "a short video": [ChatMessage(blocks=[_film(SHORT), TextBlock(text="what happens?")])],
    "a long video": [ChatMessage(blocks=[_film(LONG), TextBlock(text="what happens?")])],
    "tool results": [
        ChatMessage("be kind", role="system"),
        ChatMessage("what is on the screen?"),
        ChatMessage(
            "I look.",
            role="assistant",
            additional_kwargs={"tool_calls": [function(CALL["args"])]},
        ),
        ChatMessage(
            role="tool",
            blocks=[TextBlock(text="here:"), _BLOCK[TWO]],
            additional_kwargs={"tool_call_id": "c1", "name": "screenshot"},
        ),
        ChatMessage("A cat.", role="assistant"),
        ChatMessage("and now?"),
    ],
}


def item(role: str, *parts: dict[str, Any]) -> dict[str, Any]:
    """A message of the Responses API."""
    return {"type": "message", "role": role, "content": list(parts)}


def words(text: str, kind: str = "input_text") -> dict[str, Any]:
    return {"type": kind, "text": text}


def shown(data: str) -> dict[str, Any]:
    return {"type": "input_image", "image_url": url(data), "detail": "auto"}


# the Responses API has no videos
AGENTS: dict[str, Any] = {
    "text": "how do I make this cake?",
    "one image": [item("user", words("what is this?"), shown(ONE))],
    "two images": [item("user", shown(ONE), words("the same as"), shown(TWO), words("?"))],
    "tool results": [
        {"role": "system", "content": "be kind"},
        {"role": "user", "content": "what is on the screen?"},
        item("assistant", words("I look.", "output_text")),
        {
            "type": "function_call",
            "call_id": "c1",
            "name": "screenshot",
            "arguments": '{"display":1,"why":"\\u00e9"}',
        },
        {
            "type": "function_call_output",
            "call_id": "c1",
            "output": [words("here:"), shown(TWO)],
        },
        item("assistant", words("A cat.", "output_text")),
        {"role": "user", "content": "and now?"},
    ],
}


def binary(data: str, media_type: str = "image/png") -> BinaryContent:
    return BinaryContent(base64.b64decode(data), media_type=media_type)


def asked(*parts: Any) -> list[Any]:
    """A user's request of Pydantic-AI."""
    return [pam.ModelRequest(parts=[pam.UserPromptPart(parts)])]


PYDANTIC_AI: dict[str, list[Any]] = {
    "text": asked("how do I make this cake?"),
    "one image": asked("what is this?", ImageUrl(url(ONE))),
    "two images": asked(binary(ONE), "the same as", binary(TWO), "?"),
    "a short video": asked(binary(SHORT, "video/mp4"), "what happens?"),
    "a long video": asked(binary(LONG, "video/mp4"), "what happens?"),
    "tool results": [
        pam.ModelRequest(
            parts=[
                pam.SystemPromptPart("be kind"),
                pam.UserPromptPart("what is on the screen?"),
            ]
        ),
        pam.ModelResponse(
            parts=[pam.TextPart("I look."), pam.ToolCallPart("screenshot", CALL["args"], "c1")]
        ),
        pam.ModelRequest(parts=[pam.ToolReturnPart("screenshot", ["here:", binary(TWO)], "c1")]),
        pam.ModelResponse(parts=[pam.TextPart("A cat.")]),
        pam.ModelRequest(parts=[pam.UserPromptPart("and now?")]),
    ],
}

# ---- ways through


async def through_generate(guard: Guard, case: str) -> Verdict:
    return guard.generate(CHATS[case], max_new_tokens=1).verdict.to_dict()


async def through_guarded(guard: Guard, case: str) -> Verdict:
    guarded(lambda messages: None, guard=guard)(CHATS[case])
    return last_verdict().to_dict()


async def through_guarded_coroutine(guard: Guard, case: str) -> Verdict:
    async def ask(messages: Any) -> None: ...

    await guarded(ask, guard=guard)(CHATS[case])
    return last_verdict().to_dict()


async def through_asgi(guard: Guard, case: str) -> Verdict:
    app, told = FastAPI(), []

    @app.exception_handler(400)
    async def refused(request: Request, error: Exception) -> Any:
        from starlette.responses import Response

        told.append(request.state.guardrail_verdict)
        return Response(status_code=400)

    @app.post("/v1/chat/completions")
    async def answer(request: Request) -> None:
        told.append(request.state.guardrail_verdict)

    app.add_middleware(GuardrailASGIMiddleware, guard=guard, routes=["/v1/chat/completions"])
    client = httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test")
    async with client:
        await client.post("/v1/chat/completions", json={"model": "m", "messages": CHATS[case]})
    return told[0].to_dict()


def items(chat: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A chat as the input of a response."""

    def part(held: dict[str, Any]) -> dict[str, Any]:
        kind = {"text": "input_text", "image_url": "input_image", "video_url": "input_video"}
        flat = {key: value["url"] for key, value in held.items() if isinstance(value, dict)}
        return {**held, **flat, "type": kind[held["type"]]}

    found: list[dict[str, Any]] = []
    for message in chat:
        held = message["content"]
        content = held if isinstance(held, str) else [part(each) for each in held]
        if message["role"] == "tool":
            label = {"call_id": message["tool_call_id"], "name": message["name"]}
            found.append({"type": "function_call_output", "output": content, **label})
            continue
        found.append({"role": message["role"], "content": content})
        for call in message.get("tool_calls", ()):
            found.append({"type": "function_call", "call_id": call["id"], **call["function"]})
    return found


async def through_responses(guard: Guard, case: str) -> Verdict:
    client = httpx.AsyncClient(
        transport=httpx.ASGITransport(create_app(guard)), base_url="http://test"
    )
    async with client:
        body = {"model": "guarded", "input": items(CHATS[case]), "max_output_tokens": 1}
        return (await client.post("/v1/responses", json=body)).json()["guardrail"]


async def through_chat_model(guard: Guard, case: str) -> Verdict:
    chat = lc.ChatGuardedVLM(guard=guard, max_tokens=1)
    return chat.invoke(LANGCHAIN[case]).response_metadata["verdict"]


async def through_chat_model_stream(guard: Guard, case: str) -> Verdict:
    chat = lc.ChatGuardedVLM(guard=guard, max_tokens=1)
    chunks = [chunk async for chunk in chat.astream(LANGCHAIN[case])]
    return chunks[-1].response_metadata["verdict"]


class Events(BaseCallbackHandler):
    def __init__(self) -> None:
        self.found: list[Verdict] = []

    def on_custom_event(self, name: str, data: Any, **kwargs: Any) -> None:
        self.found.append(data)


async def through_runnable(guard: Guard, case: str) -> Verdict:
    events = Events()
    step = lc.GuardrailRunnable(guard=guard, on_flag="annotate")
    step.invoke(LANGCHAIN[case], {"callbacks": [events]})
    return events.found[0]


async def through_middleware(guard: Guard, case: str) -> Verdict:
    events = Events()
    model = FakeListChatModel(responses=["x"])
    agent = create_agent(model, middleware=[lc.GuardrailMiddleware(guard)])
    await agent.ainvoke({"messages": LANGCHAIN[case]}, {"callbacks": [events]})
    return events.found[0]


async def through_graph_node(guard: Guard, case: str) -> Verdict:
    events = Events()
    node = lc.guard_node(guard, goto="model", on_flag="annotate")
    await node.ainvoke({"messages": LANGCHAIN[case]}, {"callbacks": [events]})
    return events.found[0]


async def through_guarded_vlm(guard: Guard, case: str) -> Verdict:
    return li.GuardedVLM(guard=guard, max_new_tokens=1).chat(LLAMAINDEX[case]).raw["verdict"]


async def through_guarded_vlm_stream(guard: Guard, case: str) -> Verdict:
    llm = li.GuardedVLM(guard=guard, max_new_tokens=1)
    chunks = [chunk async for chunk in await llm.astream_chat(LLAMAINDEX[case])]
    return chunks[-1].raw["verdict"]


async def through_guarded_llm(guard: Guard, case: str) -> Verdict:
    llm = li.GuardedLLM(llm=MockLLM(max_tokens=1), guard=guard, on_flag="annotate")
    return llm.chat(LLAMAINDEX[case]).additional_kwargs["verdict"]


async def through_guarded_llm_stream(guard: Guard, case: str) -> Verdict:
    llm = li.GuardedLLM(llm=MockLLM(max_tokens=1), guard=guard, on_flag="annotate")
    chunks = [chunk async for chunk in await llm.astream_chat(LLAMAINDEX[case])]
    return chunks[-1].additional_kwargs["verdict"]


async def through_agents_guardrail(guard: Guard, case: str) -> Verdict:
    guardrail = oa.input_guardrail(guard)
    result = await guardrail.run(Agent("a"), AGENTS[case], RunContextWrapper(None))
    return result.output.output_info


class Silent(Model):
    """A model of the Agents SDK that answers nothing."""

    async def get_response(self, *args: Any, **kwargs: Any) -> ModelResponse:
        return ModelResponse(output=[], usage=Usage(), response_id=None)

    async def stream_response(self, *args: Any, **kwargs: Any) -> Any:
        for event in ():
            yield event


def agents_call(guard: Guard, case: str, told: list[Any]) -> tuple[Any, dict[str, Any]]:
    """A guarded model of the SDK, and what a run would ask it."""

    def audit(verdict: Any, about: Any) -> None:
        told.append(verdict.to_dict(words=False))

    model = oa.GuardedModel(Silent(), guard=guard, on_flag="annotate", audit=audit)
    names = ("system_instructions", "output_schema", "previous_response_id", "conversation_id")
    given = {**dict.fromkeys((*names, "prompt", "tracing")), "tools": [], "handoffs": []}
    return model, {**given, "input": AGENTS[case], "model_settings": Agent("a").model_settings}


async def through_agents_model(guard: Guard, case: str) -> Verdict:
    told: list[Any] = []
    model, given = agents_call(guard, case, told)
    await model.get_response(**given)
    return told[0]


async def through_agents_model_stream(guard: Guard, case: str) -> Verdict:
    told: list[Any] = []
    model, given = agents_call(guard, case, told)
    assert [event async for event in model.stream_response(**given)] == []
    return told[0]


async def through_pydantic_ai(guard: Guard, case: str) -> Verdict:
    model = pai.GuardedModel(TestModel(), guard=guard, on_flag="annotate")
    result = await PydanticAgent(model).run(message_history=PYDANTIC_AI[case])
    return result.response.metadata["guardrail"]


async def through_pydantic_ai_stream(guard: Guard, case: str) -> Verdict:
    guardrail = pai.Guardrail(guard, on_flag="annotate")
    agent = PydanticAgent(TestModel(), capabilities=[guardrail])
    async with agent.run_stream(message_history=PYDANTIC_AI[case]) as result:
        await result.get_output()
        return result.response.metadata["guardrail"]


WAYS: list[Callable[[Guard, str], Awaitable[Verdict]]] = [
    through_generate,
    through_guarded,
    through_guarded_coroutine,
    through_asgi,
    through_responses,
    through_chat_model,
    through_chat_model_stream,
    through_runnable,
    through_middleware,
    through_graph_node,
    through_guarded_vlm,
    through_guarded_vlm_stream,
    through_guarded_llm,
    through_guarded_llm_stream,
    through_agents_guardrail,
    through_agents_model,
    through_agents_model_stream,
    through_pydantic_ai,
    through_pydantic_ai_stream,
]
APART = ("guarded_llm", "agents", "pydantic_ai")  # another model answers


def judged(guard: Guard, case: str, way: str) -> Any:
    """The guard's own verdict; where another LLM answers, system prompts are judged apart."""
    if not any(name in way for name in APART):
        return guard.check(CHATS[case])
    apart = [m for m in CHATS[case] if m["role"] == "system"]
    said = guard.check([m for m in CHATS[case] if m not in apart])
    standing = [guard.check([{**message, "role": "user"}]) for message in apart]
    return max((said, *standing), key=lambda verdict: verdict.score)


@pytest.fixture(scope="module")
def guards() -> Iterator[dict[Action, Guard]]:
    model, processor = tiny_model("llava")
    artefact = tiny_artefact(model, processor)
    made = {
        action: Guard(
            (model, processor),
            artefact,
            policy=Policy(thresholds=dict.fromkeys(Modality, forced)),
        )
        for action, forced in FORCED.items()
    }
    yield made
    for guard in made.values():
        guard.close()


@pytest.mark.parametrize("action", list(FORCED))
@pytest.mark.parametrize("case", list(CHATS))
@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__.removeprefix("through_"))
async def test_every_adapter_gives_the_same_verdict(way, case, action, guards):
    llama_index = "guarded_vlm" in way.__name__ or "guarded_llm" in way.__name__
    if "video" in case and llama_index and not hasattr(types, "VideoBlock"):
        pytest.skip("this LlamaIndex has no videos")
    if "agents" in way.__name__ and case not in AGENTS:
        pytest.skip("the Responses API has no videos")
    expected = judged(guards[action], case, way.__name__)
    found = await way(guards[action], case)
    assert found["action"] == expected.action == action
    assert found["score"] == pytest.approx(expected.score, abs=1e-5)
    assert found["modality"] == expected.modality
    assert found["window"] == expected.to_dict()["window"]
    where = expected.to_dict(words=False)["where"]
    assert {**(found["where"] or {}), "words": ""} == {**(where or {}), "words": ""}
    # Frameworks keep and send on what messages say of themselves; the guard's own verdict has all.
    own = way in (through_generate, through_guarded, through_guarded_coroutine, through_asgi)
    assert where is None or ("words" in found["where"]) is own


def test_the_cases_have_scores_of_their_own(guards):
    scores = sorted(guards[Action.PASS].check(chat).score for chat in CHATS.values())
    assert all(b - a > 1e-3 for a, b in itertools.pairwise(scores))


def test_a_long_video_is_judged_in_windows_and_a_short_one_is_not(guards):
    guard = guards[Action.PASS]
    short, long = (guard.check(CHATS[f"a {kind} video"]).window for kind in ("short", "long"))
    assert short is None or short.of == 1
    assert long.of > 1


# ---- what tools and retrievers bring


def test_results_and_nodes_with_a_picture_get_the_verdict_of_a_user_who_shows_it(guards):
    guard = guards[Action.FLAG]
    expected = guard.check(result_chat([text("here"), picture(ONE)])).score
    blocks = [text("here"), picture(ONE)]
    tool = StructuredTool.from_function(lambda: blocks, name="look", description="d")
    call = {"type": "tool_call", "id": "c1", "name": "look", "args": {}}
    message = lc.guard_tool(tool, guard=guard, check=["result"]).invoke(call)

    def look() -> list[Any]:
        return [TextBlock(text="here"), _BLOCK[ONE]]

    other = li.guard_tool(FunctionTool.from_defaults(look), guard=guard, check=["result"])
    node = NodeWithScore(node=ImageNode(text="here", image=ONE), score=1.0)
    marking = li.GuardrailNodePostprocessor(guard=guard, action="mark")
    [marked] = marking.postprocess_nodes([node])
    found = [
        message.response_metadata["verdict"]["score"],
        other.call().raw_input["guardrail"]["result"]["score"],
    ]
    assert found == pytest.approx([expected] * 2, abs=1e-5)
    before_words = guard.check(result_chat([picture(ONE), text("here")])).score
    assert marked.node.metadata["guardrail_score"] == pytest.approx(before_words, abs=1e-5)


@pytest.mark.parametrize("data", [SHORT, LONG], ids=["short", "long"])
def test_results_and_nodes_with_a_video_get_the_verdict_of_a_user_who_shows_it(guards, data):
    guard = guards[Action.FLAG]
    expected = guard.check(result_chat([film(data)])).score
    message = ToolMessage([video_block(data)], tool_call_id="c1", name="record")
    tool = StructuredTool.from_function(lambda: message, name="record", description="d")
    call = {"type": "tool_call", "id": "c1", "name": "record", "args": {}}
    output = lc.guard_tool(tool, guard=guard, check=["result"]).invoke(call)
    assert output.response_metadata["verdict"]["score"] == pytest.approx(expected, abs=1e-5)

    resource = MediaResource(data=base64.b64decode(data), mimetype="video/mp4")
    node = NodeWithScore(node=Node(video_resource=resource), score=1.0)
    marking = li.GuardrailNodePostprocessor(guard=guard, action="mark")
    [marked] = marking.postprocess_nodes([node])
    assert marked.node.metadata["guardrail_score"] == pytest.approx(expected, abs=1e-5)

    if hasattr(types, "VideoBlock"):
        recorder = FunctionTool.from_defaults(lambda: [_film(data)], name="r", description="d")
        other = li.guard_tool(recorder, guard=guard, check=["result"]).call()
        found = other.raw_input["guardrail"]["result"]["score"]
        assert found == pytest.approx(expected, abs=1e-5)


async def test_the_other_doors_read_arguments_and_results_alike(guards):
    guard, told = guards[Action.FLAG], []

    def audit(verdict: Any, about: Any) -> None:
        told.append(verdict.score)

    chats = [
        call_chat("look", {"where": "é"}),
        result_chat([text("here"), picture(ONE)]),
    ]
    options: dict[str, Any] = {"guard": guard, "on_flag": "annotate", "audit": audit}
    tool = oa.guard_tool(function_tool(lambda where: "", name_override="look"), **options)
    context = ToolContext(
        None, tool_name="look", tool_call_id="c1", tool_arguments='{"where":"\\u00e9"}'
    )
    brought = [ToolOutputText(text="here"), ToolOutputImage(image_url=url(ONE))]
    [before], [after] = tool.tool_input_guardrails, tool.tool_output_guardrails
    await before.run(ToolInputGuardrailData(context=context, agent=Agent("a")))
    await after.run(ToolOutputGuardrailData(context=context, agent=Agent("a"), output=brought))

    async def look(where: str) -> Any:
        return ["here", binary(ONE)]

    answers = iter([pam.ToolCallPart("look", {"where": "é"}), pam.TextPart("fine")])
    model = FunctionModel(lambda messages, info: pam.ModelResponse(parts=[next(answers)]))
    tools = pai.guard_toolset(FunctionToolset([look]), **options)
    await PydanticAgent(model, toolsets=[tools]).run("hi")
    expected = [guard.check(chat).score for chat in chats]
    assert told == pytest.approx([*expected, *expected], abs=1e-5)


def test_arguments_get_the_same_verdict_in_both_frameworks(guards):
    guard = guards[Action.FLAG]

    def find(q: str) -> str:
        """Find it."""
        return q

    tool = StructuredTool.from_function(find)
    call = {"type": "tool_call", "id": "c1", "name": "find", "args": {"q": "é"}}
    message = lc.guard_tool(tool, guard=guard).invoke(call)
    output = li.guard_tool(FunctionTool.from_defaults(find), guard=guard).call(q="é")
    one = message.response_metadata["verdict"]["score"]
    two = output.raw_input["guardrail"]["arguments"]["score"]
    assert one == pytest.approx(two, abs=1e-5)


def test_a_tool_outside_of_frameworks_gets_the_same_verdicts(guards):
    guard, found = guards[Action.FLAG], []

    def find(q: str) -> str:
        """Find it."""
        return q

    def audited(verdict: Any, facts: Any) -> None:
        found.append(verdict.score)

    guard_tool(find, guard=guard, audit=audited)("é")
    blocks = [text("here"), {"type": "image", "data": ONE, "mimeType": "image/png"}]
    guard_tool(lambda: blocks, guard=guard, check="result", audit=audited)()
    output = li.guard_tool(FunctionTool.from_defaults(find), guard=guard).call(q="é")
    expected = [
        output.raw_input["guardrail"]["arguments"]["score"],
        guard.check(result_chat([text("here"), picture(ONE)])).score,
    ]
    assert found == pytest.approx(expected, abs=1e-5)


async def test_mcp_and_retrieved_documents_get_the_same_verdicts(guards):
    from guardrail.front.consequences import Reaction
    from guardrail.mcp.judging import McpRules

    guard, found = guards[Action.PASS], []
    rules = McpRules(Reaction(guard, audit=lambda verdict, _: found.append(verdict.score)))
    await rules.call({"name": "find", "arguments": {"q": "é"}})
    blocks = [text("here"), {"type": "image", "data": ONE, "mimeType": "image/png"}]
    await rules.answer("tools/call", {"content": blocks})
    compressor = lc.GuardrailDocumentCompressor(guard=guard)
    document = Document(page_content="here", metadata={"image": url(ONE)})
    [kept] = compressor.compress_documents([document], "q")
    tool = guard_tool(lambda q: q, guard=guard, name="find", check="arguments")
    tool("é")
    shown = guard.check(result_chat([text("here"), picture(ONE)])).score
    assert found == pytest.approx([last_verdict().score, shown], abs=1e-5)
    assert kept.metadata["guardrail_score"] == pytest.approx(shown, abs=1e-5)
