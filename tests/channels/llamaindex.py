"""Every way by which words reach a model through the adapter for LlamaIndex."""

from __future__ import annotations

import asyncio
import io
from base64 import b64encode
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from guardrail_llamaindex import GuardedLLM, GuardrailNodePostprocessor, guard_tool
from llama_index.core import VectorStoreIndex
from llama_index.core.agent.workflow import AgentWorkflow, FunctionAgent, ReActAgent, react_agent
from llama_index.core.base.llms import types
from llama_index.core.base.llms.types import ChatMessage, ImageBlock, TextBlock
from llama_index.core.chat_engine import ContextChatEngine, SimpleChatEngine
from llama_index.core.embeddings import MockEmbedding
from llama_index.core.memory import ChatMemoryBuffer, Memory, StaticMemoryBlock
from llama_index.core.output_parsers import PydanticOutputParser
from llama_index.core.prompts import ChatPromptTemplate, PromptTemplate
from llama_index.core.schema import (
    ImageDocument,
    ImageNode,
    IndexNode,
    MediaResource,
    MetadataMode,
    Node,
    NodeRelationship,
    NodeWithScore,
    RelatedNodeInfo,
    TextNode,
)
from llama_index.core.tools import BaseTool, FunctionTool, ToolMetadata, ToolOutput
from PIL import Image
from pydantic import BaseModel, Field, create_model

from tests.channels._llamaindex_classes import CLASSES as CLASSES
from tests.channels._llamaindex_llm import OtherLLM, in_a_thread
from tests.channels.contract import Channel, Kind, Outcome, Withheld

if TYPE_CHECKING:
    from collections.abc import Callable

ADAPTER = "LlamaIndex"
Ask = Any
"""Something that an app does with an LLM."""


class Answer(BaseModel):
    """An answer."""

    text: str


def look(where: str) -> str:
    """Look somewhere."""
    return where


def tool(**about: Any) -> FunctionTool:
    return FunctionTool(look, ToolMetadata(**{"name": "look", "description": "Look."} | about))


def chat(*messages: ChatMessage, **kwargs: Any) -> Ask:
    return lambda llm: llm.chat([*messages], **kwargs)


def with_tools(made: FunctionTool, **kwargs: Any) -> Ask:
    return lambda llm: llm.chat_with_tools([made], user_msg="hi", **kwargs)


def structured(output_cls: Any, words: str = "hi", **kwargs: Any) -> Ask:
    return lambda llm: llm.structured_predict(output_cls, PromptTemplate(words), **kwargs)


def agent(kind: Any, *others: Any, user: str = "hi", **options: Any) -> Ask:
    options.setdefault("tools", [tool()])
    team = {name: options.pop(name) for name in [*options] if name in TEAM}

    def run(llm: Any) -> Any:
        made = kind(llm=llm, **options)
        rest = [FunctionAgent(llm=llm, tools=[tool()], **each) for each in others]
        runs: Any = made
        if team:
            team.pop("team", None)
            runs = AgentWorkflow(agents=[made, *rest], root_agent=made.name, **team)

        async def ask() -> Any:
            async with asyncio.timeout(20):
                return await runs.run(user_msg=user, memory=ChatMemoryBuffer.from_defaults())

        return asyncio.run(ask())

    return run


TEAM = ("team", "initial_state", "state_prompt", "handoff_prompt")


def engine(node: TextNode, **options: Any) -> Ask:
    def run(llm: Any) -> Any:
        index = VectorStoreIndex([node], embed_model=MockEmbedding(embed_dim=2))
        return index.as_query_engine(llm=llm, **options).query("hi")

    return run


def parted(word: str) -> TextNode:
    """A node whose metadata are parted by a word; the first releases of 0.14 spell it otherwise."""
    named = dict.fromkeys(("metadata_separator", "metadata_seperator"), word)
    return TextNode(text="a", metadata={"t": 1, "u": 2}, **named)


def context(node: TextNode) -> Ask:
    def run(llm: Any) -> Any:
        index = VectorStoreIndex([node], embed_model=MockEmbedding(embed_dim=2))
        memory = ChatMemoryBuffer.from_defaults()
        made = ContextChatEngine.from_defaults(index.as_retriever(), llm=llm, memory=memory)
        return made.chat("hi")

    return run


def memory(*history: ChatMessage, **options: Any) -> Ask:
    def run(llm: Any) -> Any:
        kept = ChatMemoryBuffer.from_defaults(chat_history=list(history))
        return SimpleChatEngine.from_defaults(llm=llm, memory=kept, **options).chat("hi")

    return run


def blocks_of_memory(*blocks: Any) -> Ask:
    def run(llm: Any) -> Any:
        kept = Memory.from_defaults(session_id="s", memory_blocks=[*blocks])
        messages = kept.get(input="hi")
        asyncio.get_event_loop().run_until_complete(kept.sql_store._async_engine.dispose())
        return llm.chat(messages)

    return run


def call(arguments: str, **function: Any) -> dict[str, Any]:
    whole = {"name": "look", "arguments": arguments, **function}
    return {"id": "c1", "type": "function", "function": whole}


USER = ChatMessage("hi")
CALLED = ChatMessage(
    "", role="assistant", additional_kwargs={"tool_calls": [call('{"where": "x"}')]}
)


def answered(*blocks: Any, **keywords: Any) -> Ask:
    """An earlier answer, and the result of what it called."""
    said = ChatMessage(role="assistant", blocks=[*blocks], additional_kwargs=keywords)
    result = ChatMessage("here", role="tool", additional_kwargs={"tool_call_id": "c1"})
    return chat(USER, said, result)


def resulted(*content: Any, **keywords: Any) -> Ask:
    keywords.setdefault("tool_call_id", "c1")
    return chat(USER, CALLED, ChatMessage(*content, role="tool", additional_kwargs=keywords))


def keyword(**keywords: Any) -> Ask:
    return chat(ChatMessage("hi", additional_kwargs=keywords))


def changed(**keywords: Any) -> Ask:
    """Keywords that were set behind LlamaIndex's back, which looks at them once."""
    message = ChatMessage("hi")
    message.additional_kwargs = keywords
    return chat(message)


def block(*blocks: Any) -> Ask:
    return chat(ChatMessage(blocks=[TextBlock(text="hi"), *blocks]))


def described(word: str) -> Any:
    return create_model("Described", text=(str, Field(description=word)))


def documented(word: str) -> Any:
    made = create_model("Documented", text=(str, ...))
    made.__doc__ = word
    return made


def with_id(word: str) -> Any:
    return create_model("WithId", id=(str, Field(description=word)))


def named(word: str) -> Any:
    return create_model(word, text=(str, ...))


def png() -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (8, 6), "red").save(file, "PNG")
    return file.getvalue()


def film() -> bytes:
    frames = [Image.new("RGB", (8, 6), colour) for colour in ("red", "blue", "green")]
    file = io.BytesIO()
    frames[0].save(file, "GIF", save_all=True, append_images=frames[1:], duration=500)
    return file.getvalue()


def calling(messages: Any, **_: Any) -> Any:
    return "fine" if messages[-1].role.value == "tool" else ("look", {"where": "here"})


@dataclass(frozen=True)
class Way:
    """How a word gets to an LLM: what an app does, and which LLMs read it there."""

    kind: Kind
    ask: Callable[[str], Ask]
    # Whether the guard's own model reads it, too, or refuses it; None: it is not shown there.
    own: bool | None = True
    script: Any = None
    more: Callable[[str], dict[str, Any]] = field(default=lambda word: {})
    functions: bool = True
    inner: Callable[[str], dict[str, Any]] = field(default=lambda word: {})
    wrap: Callable[[Any, str], Any] = field(default=lambda llm, word: llm)
    outcome: Outcome = "judged"


WAYS: dict[str, Way] = {
    "a user's message": Way("user's message", lambda w: chat(ChatMessage(w))),
    "a system message": Way("system prompt", lambda w: chat(ChatMessage(w, role="system"), USER)),
    "a developer's message": Way(
        "instructions", lambda w: chat(ChatMessage(w, role="developer"), USER)
    ),
    "an earlier answer": Way("history", lambda w: answered(TextBlock(text=w))),
    "a second text block": Way("user's message", lambda w: block(TextBlock(text=w))),
    "the arguments of an earlier call": Way(
        "tool call", lambda w: answered(tool_calls=[call(f'{{"where": "{w}"}}')])
    ),
    "the name of an earlier call": Way(
        "tool call", lambda w: answered(tool_calls=[call("{}", name=w)])
    ),
    "an older call": Way(
        "tool call",
        lambda w: answered(function_call={"name": "look", "arguments": f'{{"a": "{w}"}}'}),
    ),
    "a refusal": Way("history", lambda w: answered(refusal=w)),
    "a tool's result": Way("tool result", resulted),
    "additional keywords of a message": Way(
        "metadata", lambda w: keyword(documents=[{"text": w}]), own=False
    ),
    "words in the place of a signature": Way(
        "metadata", lambda w: keyword(signature=f"do {w}"), own=False
    ),
    "a message's name": Way("metadata", lambda w: keyword(name=w)),
    "an id that is none": Way(
        "metadata", lambda w: resulted("here", tool_call_id=f"do {w}"), own=None
    ),
    "the id of a call": Way(
        "tool call",
        lambda w: chat(
            USER,
            ChatMessage(
                role="assistant",
                additional_kwargs={"tool_calls": [call("{}") | {"id": f"see {w}"}]},
            ),
            ChatMessage("here", role="tool", additional_kwargs={"tool_call_id": f"see {w}"}),
        ),
        own=None,
    ),
    "the place of a call": Way(
        "tool call",
        lambda w: answered(tool_calls=[call("{}") | {"index": f"see {w}"}]),
        own=False,
        outcome="refused",
    ),
    "a key among additional keywords": Way(
        "metadata", lambda w: keyword(**{f"see {w}": 1}), own=False
    ),
    "a key of one word": Way("metadata", lambda w: keyword(**{w: 1}), own=False),
    "a key with nothing": Way("metadata", lambda w: keyword(**{f"see {w}": 0}), own=None),
    "a deep key of one word": Way("metadata", lambda w: keyword(note={w: [True]}), own=False),
    "a cache's hint": Way(
        "metadata", lambda w: keyword(cache_control={"type": "ephemeral", "note": w}), own=None
    ),
    "words in the place of a cache's hint": Way(
        "metadata", lambda w: keyword(cache_control={"type": f"see {w}"}), own=None
    ),
    "words in the place of a session": Way(
        "metadata", lambda w: keyword(session_id=f"see {w}"), own=None
    ),
    "pictures that came in later": Way(
        "metadata",
        lambda w: changed(images=[ImageDocument(text=w, image=b64encode(png()).decode())]),
        own=None,
        outcome="refused",
    ),
    "a cache point": Way(
        "metadata",
        lambda w: block(
            types.CachePoint(cache_control=types.CacheControl(type="ephemeral", ttl=f"see {w}"))
        ),
        own=None,
    ),
    "the detail of a picture": Way(
        "metadata", lambda w: block(ImageBlock(image=png(), detail=f"see {w}")), own=None
    ),
    "a prompt": Way("user's message", lambda w: lambda llm: llm.complete(w)),
    "a prompt template": Way(
        "prompt template",
        lambda w: lambda llm: llm.predict(PromptTemplate(w + " {q}"), q="hi"),
    ),
    "a template of messages": Way(
        "prompt template",
        lambda w: (
            lambda llm: llm.predict(
                ChatPromptTemplate([ChatMessage(w, role="system"), ChatMessage("{q}")]), q="hi"
            )
        ),
    ),
    "what fills a prompt template": Way(
        "prompt template", lambda w: lambda llm: llm.predict(PromptTemplate("hi {q}"), q=w)
    ),
    "a prompt's output parser": Way(
        "form of the answer",
        lambda w: (
            lambda llm: llm.predict(
                PromptTemplate("hi", output_parser=PydanticOutputParser(described(w)))
            )
        ),
    ),
    "the system prompt of the LLM": Way(
        "system prompt",
        lambda w: lambda llm: llm.predict(PromptTemplate("hi")),
        more=lambda w: {"system_prompt": w},
    ),
    "the system prompt of the LLM inside": Way(
        "system prompt",
        lambda w: lambda llm: llm.predict(PromptTemplate("hi")),
        own=None,
        inner=lambda w: {"system_prompt": w},
    ),
    "the wrapper of a prompt": Way(
        "prompt template",
        lambda w: lambda llm: llm.predict(PromptTemplate("hi")),
        own=None,
        functions=False,
        inner=lambda w: {
            "chats": False,
            "query_wrapper_prompt": PromptTemplate(w + " {query_str}"),
        },
    ),
    "what an LLM makes of a prompt": Way(
        "prompt template",
        lambda w: lambda llm: llm.complete("hi"),
        own=None,
        functions=False,
        inner=lambda w: {"chats": False, "completion_to_prompt": lambda prompt: f"{w} {prompt}"},
    ),
    "what an LLM makes of messages": Way(
        "prompt template",
        lambda w: chat(USER),
        own=None,
        functions=False,
        inner=lambda w: {"chats": False, "messages_to_prompt": lambda messages: f"{w} {messages}"},
    ),
    "a setting of the LLM inside": Way(
        "settings",
        lambda w: chat(USER),
        own=None,
        inner=lambda w: {"additional_kwargs": {"instructions": w}},
    ),
    "a tool's name": Way("tool name", lambda w: with_tools(tool(name=w))),
    "a tool's description": Way("tool description", lambda w: with_tools(tool(description=w))),
    "a tool's schema": Way("schema strings", lambda w: with_tools(tool(fn_schema=described(w)))),
    "what a tool's schema says of itself": Way(
        "schema strings", lambda w: chat(USER, tools=[tool(fn_schema=documented(w))]), own=None
    ),
    "a tool's parameter that is called like a label": Way(
        "schema strings", lambda w: with_tools(tool(fn_schema=with_id(w)))
    ),
    "a tool's parameter": Way(
        "schema strings",
        lambda w: with_tools(tool(fn_schema=create_model("Named", **{w: (int, 1)}))),
    ),
    "an object's attribute that is called like a label": Way(
        "form of the answer", lambda w: structured(with_id(w))
    ),
    "tools given with a chat": Way(
        "tool description",
        lambda w: chat(
            USER, tools=[{"type": "function", "function": {"name": "a", "description": w}}]
        ),
    ),
    "a namespace of tools": Way(
        "tool namespace",
        lambda w: chat(USER, tools=[{"type": "namespace", "name": w, "tools": []}]),
        own=None,
    ),
    "a choice of tools": Way(
        "settings",
        lambda w: chat(USER, tools=[tool()], tool_choice={"type": "function", "name": w}),
        own=None,
    ),
    "a choice of tools by name": Way(
        "settings", lambda w: chat(USER, tools=[tool()], tool_choice=w), own=None
    ),
    "tools among the settings of their choice": Way(
        "tool description",
        lambda w: chat(USER, tool_config={"tools": [{"toolSpec": {"description": w}}]}),
        own=False,
    ),
    "words in the place of a user's id": Way(
        "settings", lambda w: chat(USER, user=f"see {w}"), own=False
    ),
    "where an answer ends": Way("settings", lambda w: chat(USER, stop=[f"see {w}"]), own=None),
    "another keyword of a call": Way(
        "form of the answer",
        lambda w: chat(USER, response_format={"schema": {"title": w}}),
        own=False,
    ),
    "the prompt of an object": Way("user's message", lambda w: structured(Answer, w)),
    "an object's description": Way("form of the answer", lambda w: structured(described(w))),
    "an object's name": Way("form of the answer", lambda w: structured(named(w))),
    "a keyword for an object": Way(
        "settings",
        lambda w: structured(Answer, llm_kwargs={"prefix": w}),
        own=False,
        functions=False,
    ),
    "a structured LLM's messages": Way(
        "user's message", lambda w: lambda llm: llm.as_structured_llm(Answer).chat([ChatMessage(w)])
    ),
    "a structured LLM's object": Way(
        "form of the answer",
        lambda w: lambda llm: llm.as_structured_llm(described(w)).chat([ChatMessage("hi")]),
    ),
    "the object of a structured LLM inside": Way(
        "form of the answer",
        lambda w: chat(USER),
        own=None,
        wrap=lambda llm, w: llm.as_structured_llm(described(w)),
    ),
    "the system prompt inside a structured LLM": Way(
        "system prompt",
        lambda w: chat(USER),
        own=None,
        inner=lambda w: {"system_prompt": w},
        wrap=lambda llm, w: llm.as_structured_llm(Answer),
    ),
    "a chat engine's memory": Way("history", lambda w: memory(ChatMessage(w))),
    "a chat engine's system prompt": Way("system prompt", lambda w: memory(system_prompt=w)),
    "a block of memory": Way(
        "history", lambda w: blocks_of_memory(StaticMemoryBlock(static_content=w))
    ),
    "the name of a block of memory": Way(
        "history", lambda w: blocks_of_memory(StaticMemoryBlock(name=w, static_content="so"))
    ),
    "a retrieved node": Way("retrieved text", lambda w: engine(TextNode(text=w))),
    "a node's metadata": Way(
        "metadata", lambda w: engine(TextNode(text="a cat", metadata={"t": w}))
    ),
    "a key of a node's metadata": Way(
        "metadata", lambda w: engine(TextNode(text="a cat", metadata={w: 1}))
    ),
    "a node's template": Way(
        "retrieved text",
        lambda w: engine(
            TextNode(text="a", metadata={"t": 1}, text_template=w + " {metadata_str} {content}")
        ),
    ),
    "what stands between a node's metadata": Way(
        "metadata",
        lambda w: engine(parted(w)),
    ),
    "a template of a query engine": Way(
        "prompt template",
        lambda w: engine(
            TextNode(text="a cat"),
            text_qa_template=PromptTemplate(w + " {context_str} {query_str}"),
        ),
    ),
    "a node in a chat engine's context": Way("retrieved text", lambda w: context(TextNode(text=w))),
    "a function agent's user": Way("user's message", lambda w: agent(FunctionAgent, user=w)),
    "a function agent's system prompt": Way(
        "system prompt", lambda w: agent(FunctionAgent, system_prompt=w)
    ),
    "a function agent's tool": Way(
        "tool description", lambda w: agent(FunctionAgent, tools=[tool(description=w)])
    ),
    "a ReAct agent's tool": Way(
        "tool description", lambda w: agent(ReActAgent, tools=[tool(description=w)])
    ),
    "a workflow's agent": Way(
        "system prompt", lambda w: agent(FunctionAgent, team=True, system_prompt=w)
    ),
    "another agent of a team": Way(
        "tool description",
        lambda w: agent(
            FunctionAgent,
            {"name": "other", "description": w},
            team=True,
            name="first",
            description="First.",
        ),
    ),
    "a workflow's state": Way(
        "metadata", lambda w: agent(FunctionAgent, team=True, initial_state={"note": w})
    ),
    "a workflow's template of its state": Way(
        "prompt template",
        lambda w: agent(FunctionAgent, initial_state={"n": 1}, state_prompt=w + " {state} {msg}"),
    ),
    "what a tool answers an agent": Way(
        "tool result",
        lambda w: agent(
            FunctionAgent, tools=[FunctionTool.from_defaults(lambda where: w, name="look")]
        ),
        script="calls",
    ),
    "what a tool raises in an agent": Way(
        "tool result",
        lambda w: agent(FunctionAgent, tools=[FunctionTool.from_defaults(raises(w), name="look")]),
        script="calls",
    ),
    "a document": Way(
        "user's message",
        lambda w: block(types.DocumentBlock(data=w.encode(), title="t")),
        own=None,
        outcome="refused",
    ),
    "a document's title": Way(
        "metadata",
        lambda w: block(types.DocumentBlock(data=b"%PDF", title=w)),
        own=None,
        outcome="refused",
    ),
    "a recording": Way(
        "user's message",
        lambda w: block(types.AudioBlock(audio=w.encode())),
        own=None,
        outcome="refused",
    ),
    "a text to cite": Way(
        "retrieved text",
        lambda w: block(types.CitableBlock(title="t", source="s", content=w)),
        own=None,
        outcome="refused",
    ),
    "a citation": Way(
        "history",
        lambda w: answered(
            types.CitationBlock(title="t", source="s", cited_content=w, additional_location_info={})
        ),
        own=None,
        outcome="refused",
    ),
    "an object that nobody knows": Way(
        "metadata", lambda w: keyword(note=Unknown(w)), own=None, outcome="refused"
    ),
    "beside the arguments of a call": Way(
        "tool call",
        lambda w: answered(tool_calls=[call("{}", note=w)]),
        own=None,
        outcome="refused",
    ),
    "beside a call": Way(
        "tool call",
        lambda w: answered(tool_calls=[call("{}") | {"note": w}]),
        own=None,
        outcome="refused",
    ),
}


class Unknown:
    def __init__(self, word: str) -> None:
        self.word = word


def raises(word: str) -> Any:
    def look(where: str) -> str:
        raise ValueError(word)

    return look


if hasattr(react_agent, "CONTEXT_REACT_CHAT_SYSTEM_HEADER"):  # others have no system prompt
    WAYS["a ReAct agent's system prompt"] = Way(
        "system prompt", lambda w: agent(ReActAgent, system_prompt=w)
    )
if hasattr(types, "ThinkingBlock"):
    WAYS["an earlier thought"] = Way(
        "history", lambda w: answered(types.ThinkingBlock(content=w)), own=False
    )
    WAYS["beside an earlier thought"] = Way(
        "history",
        lambda w: answered(
            types.ThinkingBlock(content="hm", additional_information={"summary": [w]})
        ),
        own=False,
    )
    WAYS["words in the place of a thought's signature"] = Way(
        "history",
        lambda w: answered(
            types.ThinkingBlock(content="hm", additional_information={"signature": f"see {w}"})
        ),
        own=False,
    )
if hasattr(types, "ToolCallBlock"):

    def block_of_call(**about: Any) -> Any:
        return types.ToolCallBlock(
            **{"tool_name": "look", "tool_kwargs": {}, "tool_call_id": "c1"} | about
        )

    WAYS["a call in a block of its own"] = Way(
        "tool call", lambda w: answered(block_of_call(tool_kwargs={"where": w}))
    )
    WAYS["the name of a call in a block"] = Way(
        "tool call", lambda w: answered(block_of_call(tool_name=w))
    )
    WAYS["the id of a call in a block"] = Way(
        "tool call", lambda w: answered(block_of_call(tool_call_id=f"see {w}")), own=None
    )
    WAYS["a key that a call has twice"] = Way(
        "tool call",
        lambda w: answered(
            block_of_call(tool_kwargs={"where": 1}),
            tool_calls=[call(f'{{"where": "{w}", "where": 1}}')],
        ),
    )
    WAYS["the type of a call that is also in a block"] = Way(
        "tool call",
        lambda w: answered(block_of_call(), tool_calls=[call("{}") | {"type": w}]),
        own=None,
        outcome="refused",
    )
    WAYS["beside a plain call that is also in a block"] = Way(
        "tool call",
        lambda w: answered(
            block_of_call(), tool_calls=[{"id": "c1", "name": "look", "arguments": "{}", "note": w}]
        ),
        own=None,
        outcome="refused",
    )
    WAYS["beside a call that is also in a block"] = Way(
        "tool call",
        lambda w: answered(block_of_call(), tool_calls=[call("{}") | {"note": w}]),
        own=None,
        outcome="refused",
    )
    WAYS["beside the arguments of a call that is also in a block"] = Way(
        "tool call",
        lambda w: answered(block_of_call(), tool_calls=[call("{}", note=w)]),
        own=None,
        outcome="refused",
    )
if hasattr(types, "VideoBlock"):
    WAYS["the detail of a video"] = Way(
        "metadata", lambda w: block(types.VideoBlock(video=film(), detail=f"see {w}")), own=None
    )
    WAYS["the type of a video"] = Way(
        "metadata",
        lambda w: block(
            types.VideoBlock(
                url=f"data:image/gif;base64,{b64encode(film()).decode()}",
                video_mimetype=f"see {w}",
            )
        ),
        own=None,
    )


def inner_llm(way: Way, word: str, **options: Any) -> tuple[OtherLLM, Any]:
    """Somebody else's LLM for a way, and what is put behind the guard."""
    script = calling if way.script == "calls" else None
    given = {"functions": way.functions, "script": script, **way.inner(word), **options}
    inner = OtherLLM(**given)
    return inner, way.wrap(inner, word)


def run(way: Way) -> Any:
    async def ask(guard: Any, word: str) -> str:
        inner, behind = inner_llm(way, word)
        llm = GuardedLLM(llm=behind, guard=guard, on_flag="raise", **way.more(word))
        try:
            await in_a_thread(way.ask(word), llm)
        except (TypeError, ValueError):  # "fine" is no object, and no choice of a tool
            if not inner.seen:
                raise
        return shown(inner, llm)

    return ask


def shown(inner: OtherLLM, llm: Any) -> str:
    """All that an LLM got, as it would show it to its model."""
    said = [inner.said()]
    for messages, kwargs in inner.seen:
        made = [each for each in kwargs.get("tools") or () if isinstance(each, FunctionTool)]
        said += [
            repr((each.metadata, each.metadata.fn_schema.model_json_schema())) for each in made
        ]
        if not inner.chats and isinstance(messages, str):
            said.append(inner.completion_to_prompt(messages))
        elif not inner.chats:
            said.append(inner.messages_to_prompt(messages))
    if hasattr(llm.llm, "output_cls"):
        said.append(repr(llm.llm.output_cls.model_json_schema()))
    return "\n".join(said)


# ---- before an LLM


async def _retrieved(guard: Any, node: Any) -> str:
    """What a model is shown of a retrieved node."""
    postprocessor = GuardrailNodePostprocessor(guard=guard, action="raise")
    kept = await postprocessor.apostprocess_nodes([NodeWithScore(node=node)])
    said = [each.node.get_content(MetadataMode.LLM) for each in kept]
    # The first releases of 0.14 have no blocks, and an image node without a picture has none.
    if hasattr(node, "get_content_blocks") and getattr(node, "image", "") is not None:
        said += [repr(each.node.get_content_blocks(MetadataMode.LLM)) for each in kept]
    return "\n".join(said)


NODES: dict[str, tuple[Kind, Callable[[str], Any], Outcome]] = {
    "a node's text": ("retrieved text", lambda w: TextNode(text=w), "judged"),
    "a node's metadata": ("metadata", lambda w: TextNode(text="a", metadata={"t": w}), "judged"),
    "a key of a node's metadata": (
        "metadata",
        lambda w: TextNode(text="a", metadata={w: 1}),
        "judged",
    ),
    "a node's template": (
        "retrieved text",
        lambda w: TextNode(text="a", metadata={"t": 1}, text_template=w + "{metadata_str}"),
        "judged",
    ),
    "a template of a node's metadata": (
        "metadata",
        lambda w: TextNode(text="a", metadata={"t": 1}, metadata_template=w + "{key}{value}"),
        "judged",
    ),
    "what stands between a node's metadata": (
        "metadata",
        parted,
        "judged",
    ),
    "an image node's text": ("retrieved text", lambda w: ImageNode(text=w), "judged"),
    "a node of another index": (
        "retrieved text",
        lambda w: IndexNode(text=w, index_id="i"),
        "judged",
    ),
    "a node of several kinds": (
        "retrieved text",
        lambda w: Node(text_resource=MediaResource(text=w)),
        "judged",
    ),
    "the metadata of a node of several kinds": (
        "metadata",
        lambda w: Node(
            metadata={"t": w},
            text_resource=MediaResource(text="a"),
            image_resource=MediaResource(data=png(), mimetype="image/png"),
        ),
        "judged",
    ),
    "a node's recording": (
        "retrieved text",
        lambda w: Node(audio_resource=MediaResource(data=w.encode(), mimetype="audio/wav")),
        "refused",
    ),
    "a node's text somewhere else": (
        "retrieved text",
        lambda w: Node(text_resource=MediaResource(data=w.encode())),
        "refused",
    ),
    "a node's id": ("metadata", lambda w: TextNode(text="a", id_=w), "never"),
    "a node's metadata that no LLM sees": (
        "metadata",
        lambda w: TextNode(text="a", metadata={"t": w}, excluded_llm_metadata_keys=["t"]),
        "never",
    ),
    "a node's relatives": (
        "metadata",
        lambda w: TextNode(
            text="a",
            relationships={NodeRelationship.SOURCE: RelatedNodeInfo(node_id=w, metadata={"t": w})},
        ),
        "never",
    ),
    "what a node of another index leads to": (
        "resource",
        lambda w: IndexNode(text="a", index_id=w, obj=w),
        "never",
    ),
}


class Gives(BaseTool):
    """A tool that gives an output as it is."""

    def __init__(self, output: ToolOutput) -> None:
        self.output = output

    @property
    def metadata(self) -> ToolMetadata:
        return ToolMetadata(name="look", description="Look.")

    def __call__(self, **_: Any) -> ToolOutput:
        return self.output


if hasattr(Node, "get_content_blocks"):
    NODES["the type of a node's video"] = (
        "metadata",
        lambda w: Node(
            text_resource=MediaResource(text="a"),
            video_resource=MediaResource(
                url=f"data:image/gif;base64,{b64encode(film()).decode()}", mimetype=f"see {w}"
            ),
        ),
        "judged",
    )


async def _guarded_tool(guard: Any, made: Any, **arguments: Any) -> str:
    output = await guard_tool(made, guard=guard).acall(**arguments)
    if output.is_error and "guardrail" in output.raw_input:
        raise Withheld
    return repr(output.blocks)


async def _given(guard: Any, make: Any, word: str) -> str:
    got: list[Any] = []

    def look(where: Any) -> str:
        got.append(where)
        return "so"

    made = FunctionTool.from_defaults(look, name="look", description="Look.")
    await _guarded_tool(guard, made, where=make(word))
    return repr(got)


def output(*blocks: Any, **about: Any) -> ToolOutput:
    return ToolOutput(
        **{"tool_name": "look", "blocks": [*blocks], "raw_input": {}, "raw_output": "so"} | about
    )


OUTPUTS: dict[str, tuple[Kind, Callable[[str], ToolOutput], Outcome]] = {
    "text": ("tool result", lambda w: output(TextBlock(text=w)), "judged"),
    "a second block": (
        "tool result",
        lambda w: output(TextBlock(text="so"), TextBlock(text=w)),
        "judged",
    ),
    "an error": ("tool result", lambda w: output(TextBlock(text=w), is_error=True), "judged"),
    "a cache point": (
        "metadata",
        lambda w: output(
            TextBlock(text="so"),
            types.CachePoint(cache_control=types.CacheControl(type="x", ttl=f"see {w}")),
        ),
        "judged",
    ),
    "the detail of a picture": (
        "metadata",
        lambda w: output(TextBlock(text="so"), ImageBlock(image=png(), detail=f"see {w}")),
        "judged",
    ),
    "a document": (
        "tool result",
        lambda w: output(types.DocumentBlock(data=w.encode())),
        "refused",
    ),
    "what is for apps alone": (
        "metadata",
        lambda w: output(TextBlock(text="so"), raw_output=w, raw_input={"q": w}, tool_name=w),
        "never",
    ),
}


def _channel(kind: Kind, name: str, run: Any, outcome: Outcome) -> Channel:
    return Channel(adapter=ADAPTER, kind=kind, name=name, run=run, outcome=outcome)


def _of_node(make: Any) -> Any:
    return lambda guard, word: _retrieved(guard, make(word))


def _of_output(make: Any) -> Any:
    return lambda guard, word: _guarded_tool(guard, Gives(make(word)))


CHANNELS: list[Channel] = [
    *(_channel(way.kind, name, run(way), way.outcome) for name, way in WAYS.items()),
    *(
        _channel(kind, f"retrieved: {name}", _of_node(make), outcome)
        for name, (kind, make, outcome) in NODES.items()
    ),
    *(
        _channel(kind, f"a guarded tool gives: {name}", _of_output(make), outcome)
        for name, (kind, make, outcome) in OUTPUTS.items()
    ),
    *(
        _channel(
            "tool call",
            f"a guarded tool's argument: {name}",
            lambda guard, word, make=make: _given(guard, make, word),
            "judged",
        )
        for name, make in {
            "a text": lambda w: w,
            "something deep": lambda w: {"a": [w]},
            "a key": lambda w: {w: 1},
        }.items()
    ),
]
