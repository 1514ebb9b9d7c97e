"""Every way by which words reach a model in this adapter: a word planted there is seen."""

from __future__ import annotations

import asyncio
import base64
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pytest
from guardrail_llamaindex import GuardedLLM, GuardedVLM, GuardrailNodePostprocessor, guard_tool
from llama_index.core import VectorStoreIndex
from llama_index.core.agent.workflow import (
    AgentWorkflow,
    FunctionAgent,
    ReActAgent,
    react_agent,
)
from llama_index.core.base.llms import types
from llama_index.core.base.llms.types import ChatMessage, ImageBlock, TextBlock
from llama_index.core.chat_engine import ContextChatEngine, SimpleChatEngine
from llama_index.core.embeddings import MockEmbedding
from llama_index.core.memory import ChatMemoryBuffer
from llama_index.core.prompts import PromptTemplate
from llama_index.core.schema import ImageDocument, ImageNode, NodeWithScore, TextNode
from llama_index.core.tools import FunctionTool, ToolMetadata
from pydantic import BaseModel, Field, create_model

from guardrail.errors import GuardrailViolation, ModelError
from guardrail.testing import FakeGuard, scripted
from guardrail.types import Action

if TYPE_CHECKING:
    from collections.abc import Callable

# Of LlamaIndex's own: it looks at every attribute of an agent, and at `is_running` inside a step.
pytestmark = [
    pytest.mark.usefixtures("closed_loop"),
    pytest.mark.filterwarnings(
        "ignore:The `__fields:pydantic.PydanticDeprecatedSince20",
        "ignore:Accessing the 'model_:pydantic.PydanticDeprecatedSince211",
        "ignore:is_running called from within a step:DeprecationWarning",
    ),
]

WORD = "zqxword"


class Answer(BaseModel):
    """An answer."""

    text: str


def look(where: str) -> str:
    """Look somewhere."""
    return where


def tool(**about: Any) -> FunctionTool:
    return FunctionTool(look, ToolMetadata(**{"name": "look", "description": "Look."} | about))


def chat(*messages: ChatMessage, **kwargs: Any) -> Callable[[Any], Any]:
    return lambda llm: llm.chat([*messages], **kwargs)


def with_tools(made: FunctionTool) -> Callable[[Any], Any]:
    return lambda llm: llm.chat_with_tools([made], user_msg="hi")


def structured(output_cls: Any, words: str = "hi", **kwargs: Any) -> Callable[[Any], Any]:
    return lambda llm: llm.structured_predict(output_cls, PromptTemplate(words), **kwargs)


def agent(kind: Any, *, team: bool = False, user: str = "hi", **options: Any) -> Any:
    options.setdefault("tools", [tool()])

    def run(llm: Any) -> Any:
        made = kind(llm=llm, **options)
        runs = AgentWorkflow(agents=[made], root_agent=made.name) if team else made

        async def ask() -> Any:
            async with asyncio.timeout(20):
                return await runs.run(user_msg=user, memory=ChatMemoryBuffer.from_defaults())

        return asyncio.run(ask())

    return run


def engine(node: TextNode) -> Callable[[Any], Any]:
    def run(llm: Any) -> Any:
        index = VectorStoreIndex([node], embed_model=MockEmbedding(embed_dim=2))
        return index.as_query_engine(llm=llm).query("hi")

    return run


def context(node: TextNode) -> Callable[[Any], Any]:
    def run(llm: Any) -> Any:
        index = VectorStoreIndex([node], embed_model=MockEmbedding(embed_dim=2))
        memory = ChatMemoryBuffer.from_defaults()
        made = ContextChatEngine.from_defaults(index.as_retriever(), llm=llm, memory=memory)
        return made.chat("hi")

    return run


def memory(*history: ChatMessage, **options: Any) -> Callable[[Any], Any]:
    def run(llm: Any) -> Any:
        kept = ChatMemoryBuffer.from_defaults(chat_history=list(history))
        return SimpleChatEngine.from_defaults(llm=llm, memory=kept, **options).chat("hi")

    return run


def call(arguments: str) -> dict[str, Any]:
    function = {"name": "look", "arguments": arguments}
    return {"id": "c1", "type": "function", "function": function}


USER = ChatMessage("hi")
CALLED = ChatMessage(
    "", role="assistant", additional_kwargs={"tool_calls": [call('{"where": "x"}')]}
)
DESCRIBED = create_model("Described", text=(str, Field(description=WORD)))
LONG_ID = {"id": f"see {WORD}"}
WITH_ID = create_model("WithId", id=(str, Field(description=WORD)))
NAMED = create_model(WORD, text=(str, ...))


@dataclass
class Channel:
    """How the word gets to a model, and which of the two LLMs reads that."""

    ask: Callable[[Any], Any]
    # Whether the guard's own model reads it, too, or refuses it; None: it is not shown there.
    own: bool | None = True
    script: Any = None
    more: dict[str, Any] = field(default_factory=dict)


CHANNELS: dict[str, Channel] = {
    "a user's message": Channel(chat(ChatMessage(WORD))),
    "a system message": Channel(chat(ChatMessage(WORD, role="system"), USER)),
    "a developer's message": Channel(chat(ChatMessage(WORD, role="developer"), USER)),
    "an earlier answer": Channel(chat(USER, ChatMessage(WORD, role="assistant"), USER)),
    "a second text block": Channel(
        chat(ChatMessage(blocks=[TextBlock(text="hi"), TextBlock(text=WORD)]))
    ),
    "the arguments of an earlier call": Channel(
        chat(
            USER,
            ChatMessage(
                "",
                role="assistant",
                additional_kwargs={"tool_calls": [call(f'{{"where": "{WORD}"}}')]},
            ),
            ChatMessage("here", role="tool", additional_kwargs={"tool_call_id": "c1"}),
        )
    ),
    "a tool's result": Channel(
        chat(USER, CALLED, ChatMessage(WORD, role="tool", additional_kwargs={"tool_call_id": "c1"}))
    ),
    "additional keywords of a message": Channel(
        chat(ChatMessage("hi", additional_kwargs={"documents": [{"text": WORD}]})), own=False
    ),
    "words in the place of a signature": Channel(
        chat(ChatMessage("hi", additional_kwargs={"signature": f"do {WORD}"})), own=False
    ),
    "a message's name": Channel(chat(ChatMessage("hi", additional_kwargs={"name": WORD}))),
    "an id that is none": Channel(
        chat(
            USER,
            CALLED,
            ChatMessage("here", role="tool", additional_kwargs={"tool_call_id": f"do {WORD}"}),
        ),
        own=None,
    ),
    "a prompt": Channel(lambda llm: llm.complete(WORD)),
    "a prompt template": Channel(lambda llm: llm.predict(PromptTemplate(WORD + " {q}"), q="hi")),
    "what fills a prompt template": Channel(
        lambda llm: llm.predict(PromptTemplate("hi {q}"), q=WORD)
    ),
    "the system prompt of the LLM": Channel(
        lambda llm: llm.predict(PromptTemplate("hi")), more={"system_prompt": WORD}
    ),
    "a tool's name": Channel(with_tools(tool(name=WORD))),
    "a tool's description": Channel(with_tools(tool(description=WORD))),
    "a tool's schema": Channel(with_tools(tool(fn_schema=DESCRIBED))),
    "a tool's parameter that is called like a label": Channel(with_tools(tool(fn_schema=WITH_ID))),
    "an object's attribute that is called like a label": Channel(structured(WITH_ID)),
    "tools given with a chat": Channel(
        chat(USER, tools=[{"type": "function", "function": {"name": "a", "description": WORD}}])
    ),
    "a speaker's name": Channel(
        chat(ChatMessage("hi", additional_kwargs={"name": WORD})), own=None
    ),
    "the id of a call": Channel(
        chat(
            USER,
            ChatMessage(
                "", role="assistant", additional_kwargs={"tool_calls": [call("{}") | LONG_ID]}
            ),
            ChatMessage("here", role="tool", additional_kwargs={"tool_call_id": LONG_ID["id"]}),
        ),
        own=None,
    ),
    "a key among additional keywords": Channel(
        chat(ChatMessage("hi", additional_kwargs={f"see {WORD}": 1})), own=False
    ),
    "another keyword of a call": Channel(
        chat(USER, response_format={"schema": {"title": WORD}}), own=False
    ),
    "the prompt of an object": Channel(structured(Answer, WORD)),
    "an object's description": Channel(structured(DESCRIBED)),
    "an object's name": Channel(structured(NAMED)),
    "a structured LLM's messages": Channel(
        lambda llm: llm.as_structured_llm(Answer).chat([ChatMessage(WORD)])
    ),
    "a structured LLM's object": Channel(
        lambda llm: llm.as_structured_llm(DESCRIBED).chat([ChatMessage("hi")])
    ),
    "a chat engine's memory": Channel(memory(ChatMessage(WORD))),
    "a chat engine's system prompt": Channel(memory(system_prompt=WORD)),
    "a retrieved node": Channel(engine(TextNode(text=WORD))),
    "a node's metadata": Channel(engine(TextNode(text="a cat", metadata={"title": WORD}))),
    "a node in a chat engine's context": Channel(context(TextNode(text=WORD))),
    "a function agent's user": Channel(agent(FunctionAgent, user=WORD)),
    "a function agent's system prompt": Channel(agent(FunctionAgent, system_prompt=WORD)),
    "a function agent's tool": Channel(agent(FunctionAgent, tools=[tool(description=WORD)])),
    "a ReAct agent's tool": Channel(agent(ReActAgent, tools=[tool(description=WORD)])),
    "a workflow's agent": Channel(agent(FunctionAgent, team=True, system_prompt=WORD)),
    "what a tool answers an agent": Channel(
        agent(FunctionAgent, tools=[FunctionTool.from_defaults(lambda where: WORD, name="look")]),
        script="calls",
    ),
}
if hasattr(react_agent, "CONTEXT_REACT_CHAT_SYSTEM_HEADER"):  # others have no system prompt
    CHANNELS["a ReAct agent's system prompt"] = Channel(agent(ReActAgent, system_prompt=WORD))
if hasattr(types, "ThinkingBlock"):
    CHANNELS["an earlier thought"] = Channel(
        chat(USER, ChatMessage(role="assistant", blocks=[types.ThinkingBlock(content=WORD)]), USER),
        own=False,
    )
if hasattr(types, "ToolCallBlock"):
    block = types.ToolCallBlock(tool_name="look", tool_kwargs={"where": WORD}, tool_call_id="c1")
    CHANNELS["a call in a block of its own"] = Channel(
        chat(
            USER,
            ChatMessage(role="assistant", blocks=[block]),
            ChatMessage("here", role="tool", additional_kwargs={"tool_call_id": "c1"}),
        )
    )
every_channel = pytest.mark.parametrize("name", list(CHANNELS))


def calling(messages: Any, **_: Any) -> Any:
    return "fine" if messages[-1].role.value == "tool" else ("look", {"where": "here"})


@every_channel
@pytest.mark.parametrize("functions", [True, False], ids=["functions", "text"])
def test_another_llm_gets_no_planted_word(other_llm, name, functions):
    channel = CHANNELS[name]
    needs = "function" in name or "agent" in name or "tool" in name
    if needs and not functions and "ReAct" not in name:
        pytest.skip("it calls functions")
    script = calling if channel.script == "calls" else None
    inner = other_llm(functions=functions, script=script)
    guard = FakeGuard([WORD])
    llm = GuardedLLM(llm=inner, guard=guard, on_flag="raise", **channel.more)
    with pytest.raises(GuardrailViolation):
        channel.ask(llm)
    assert WORD in repr(guard.seen)
    assert WORD not in inner.said()


@pytest.mark.parametrize("name", [name for name, channel in CHANNELS.items() if channel.own])
def test_the_guards_own_model_reads_the_word_in_the_prefill_that_is_scored(guard_on, llava, name):
    channel, prompts = CHANNELS[name], []

    def script(prompt: str) -> str:
        prompts.append(prompt)
        if channel.script == "calls" and "<|im_start|>tool" not in prompt:
            return '<tool_call>\n{"name": "look", "arguments": {"where": "x"}}\n</tool_call>'
        return "fine"

    llm = GuardedVLM(guard=guard_on(), **channel.more)
    with scripted(llava.model, llava.processor, script):
        try:
            channel.ask(llm)
        except (ValueError, ModelError):
            assert "object" in name or "structured" in name  # "fine" is none
    assert WORD in prompts[-1]


@pytest.mark.parametrize(
    "name", [name for name, channel in CHANNELS.items() if channel.own is False]
)
def test_what_the_guards_own_model_would_not_be_shown_is_an_error(guard_on, name):
    llm = GuardedVLM(guard=guard_on(Action.PASS))
    with pytest.raises(ValueError, match=r"cannot score|is not read|no setting"):
        CHANNELS[name].ask(llm)


# --- pictures -------------------------------------------------------------------------------------

PICTURES: dict[str, Callable[[Any, bytes], Any]] = {
    "an image block": lambda llm, data: llm.chat([ChatMessage(blocks=[ImageBlock(image=data)])]),
    "an image block in a system message": lambda llm, data: llm.chat(
        [ChatMessage(role="system", blocks=[ImageBlock(image=data)]), USER]
    ),
    "an image document of a prompt": lambda llm, data: llm.complete(
        "hi", image_documents=[ImageDocument(image=base64.b64encode(data).decode())]
    ),
    "images in additional keywords": lambda llm, data: llm.chat(
        [
            ChatMessage(
                "hi",
                additional_kwargs={
                    "images": [ImageDocument(image=base64.b64encode(data).decode())]
                },
            )
        ]
    ),
}


@pytest.mark.parametrize("name", list(PICTURES))
def test_another_llm_gets_no_planted_picture(other_llm, word_guard, png, name):
    inner, shown = other_llm(), base64.b64encode(png()).decode()
    llm = GuardedLLM(llm=inner, guard=word_guard(flag=shown), on_flag="raise")
    with pytest.raises(GuardrailViolation):
        PICTURES[name](llm, png())
    assert inner.seen == []


# --- before an LLM --------------------------------------------------------------------------------

BEFORE: dict[str, Callable[[Any], Any]] = {
    "a node's text": lambda guard: GuardrailNodePostprocessor(
        guard=guard, action="raise"
    ).postprocess_nodes([NodeWithScore(node=TextNode(text=WORD))]),
    "a node's metadata": lambda guard: GuardrailNodePostprocessor(
        guard=guard, action="raise"
    ).postprocess_nodes([NodeWithScore(node=TextNode(text="a cat", metadata={"title": WORD}))]),
    "an image node's text": lambda guard: GuardrailNodePostprocessor(
        guard=guard, action="raise"
    ).postprocess_nodes([NodeWithScore(node=ImageNode(text=WORD))]),
    "a tool's arguments": lambda guard: guard_tool(tool(), guard=guard, on_flag="raise")(
        where=WORD
    ),
    "a tool's output": lambda guard: guard_tool(
        FunctionTool.from_defaults(lambda where: WORD, name="look"), guard=guard, on_flag="raise"
    )(where="here"),
}


@pytest.mark.parametrize("name", list(BEFORE))
def test_a_planted_word_is_seen_before_any_llm(name):
    guard = FakeGuard([WORD])
    with pytest.raises(GuardrailViolation):
        BEFORE[name](guard)
    assert WORD in repr(guard.seen)
