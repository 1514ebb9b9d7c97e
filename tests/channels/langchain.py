"""Every way by which words reach a model through the adapter for LangChain and LangGraph."""

from __future__ import annotations

from functools import partial
from operator import itemgetter
from typing import TYPE_CHECKING, Any

from guardrail_langchain import (
    GuardrailDocumentCompressor,
    GuardrailMiddleware,
    GuardrailRunnable,
    guard_node,
    guard_tool,
)
from langchain.agents import create_agent
from langchain.agents.middleware import (
    AgentMiddleware,
    HumanInTheLoopMiddleware,
    SummarizationMiddleware,
    dynamic_prompt,
)
from langchain.agents.structured_output import AutoStrategy, ProviderStrategy, ToolStrategy
from langchain_core.documents import Document
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import (
    AIMessage,
    BaseMessage,
    HumanMessage,
    RemoveMessage,
    SystemMessage,
    ToolMessage,
    convert_to_openai_messages,
)
from langchain_core.outputs import ChatGeneration, ChatResult
from langchain_core.prompts import ChatPromptTemplate, FewShotPromptTemplate, PromptTemplate
from langchain_core.runnables import (
    ConfigurableField,
    RouterRunnable,
    RunnableBranch,
    RunnableLambda,
    RunnablePassthrough,
)
from langchain_core.tools import BaseTool, StructuredTool, Tool
from langchain_core.utils.function_calling import convert_to_openai_tool
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import END
from langgraph.types import Command, Send
from pydantic import Field, create_model

from tests.channels._langchain_classes import CLASSES as CLASSES
from tests.channels._langchain_messages import (
    ASKED,
    CALL,
    JUDGED,
    NEVER,
    REFUSED,
    Messages,
    Noted,
    answered,
    said,
)
from tests.channels.contract import Channel, Kind, Outcome, Withheld

if TYPE_CHECKING:
    from collections.abc import Callable

ADAPTER = "LangChain"


class Recorder(BaseChatModel):
    """Somebody else's model: what it was sent, tools and settings too, and a list of answers."""

    sent: list[Any] = Field(default_factory=list)
    answers: list[AIMessage] = Field(default_factory=lambda: [AIMessage("an answer")])
    model_kwargs: dict[str, Any] = Field(default_factory=dict)

    @property
    def _llm_type(self) -> str:
        return "recorder"

    def bind_tools(self, tools: Any, *, tool_choice: Any = None, **kwargs: Any) -> Any:
        chosen = {} if tool_choice is None else {"tool_choice": tool_choice}
        return self.bind(tools=list(tools), **chosen, **kwargs)

    def _generate(self, messages: Any, stop: Any = None, *_: Any, **kwargs: Any) -> ChatResult:
        self.sent.append((messages, stop, self.model_kwargs, kwargs))
        answer = self.answers[min(len(self.sent), len(self.answers)) - 1]
        return ChatResult(generations=[ChatGeneration(message=answer)])

    @property
    def said(self) -> str:
        """All that it was sent so far."""
        return "\n".join(_shown(each) for each in self.sent)


def _shown(value: Any) -> str:
    """What a provider shows its model: tools and forms as their schemas."""
    if isinstance(value, dict):
        return repr({key: _shown(item) for key, item in value.items()})
    if isinstance(value, list | tuple):
        return repr([_shown(item) for item in value])
    if isinstance(value, BaseTool):
        return repr((convert_to_openai_tool(value), value.extras))
    if isinstance(value, type):
        return repr(convert_to_openai_tool(value))
    return repr(dict(value) if isinstance(value, BaseMessage) else value)


class Converted(Recorder):
    """A model whose class sends on what LangChain's own conversion makes of messages."""

    def _generate(self, messages: Any, *args: Any, **kwargs: Any) -> ChatResult:
        return super()._generate(convert_to_openai_messages(messages), *args, **kwargs)


async def in_an_agent(
    guard: Any,
    messages: Messages,
    *,
    llm: Recorder | None = None,
    before: Any = (),
    **options: Any,
) -> str:
    """What an agent's model is sent."""
    llm = llm or Recorder()
    options.setdefault("model", llm)
    middleware = [*before, GuardrailMiddleware(guard, on_flag="raise")]
    await create_agent(middleware=middleware, **options).ainvoke({"messages": messages})
    return llm.said


async def behind_a_step(guard: Any, given: Any, bind: Any = lambda llm: llm) -> str:
    llm = Recorder()
    await (GuardrailRunnable(guard=guard, on_flag="refuse") | bind(llm)).ainvoke(given)
    return llm.said


async def behind_a_node(guard: Any, messages: Messages, bind: Any = lambda llm: llm) -> str:
    llm = Recorder()
    model = bind(llm)
    node = guard_node(guard, goto="model", model=model)
    if (await node.ainvoke({"messages": messages})).goto == END:
        raise Withheld
    await model.ainvoke(messages)
    return llm.said


def _of_messages(
    ways: dict[str, tuple[Kind, Callable[[str], Messages]]], outcome: Outcome, model: Any = Recorder
) -> list[Channel]:
    def run(make: Any) -> Any:
        async def ask(guard: Any, word: str) -> str:
            messages = make(word)
            if any(isinstance(each, RemoveMessage) for each in messages):  # graphs follow them
                return await behind_a_step(guard, messages)
            return await in_an_agent(guard, messages, llm=model())

        return ask

    return [
        Channel(adapter=ADAPTER, kind=kind, name=name, run=run(make), outcome=outcome)
        for name, (kind, make) in ways.items()
    ]


# ---- what comes along with an agent's messages


def form(word: str) -> Any:
    made = create_model("Form", name=(str, Field(default="x", description=word)))
    made.__doc__ = "A form."
    return made


def documented(word: str) -> Any:
    made = create_model("Documented", name=(str, "x"))
    made.__doc__ = word
    return made


def titled(word: str) -> Any:
    return create_model(word, name=(str, "x"))


def find(q: str = "") -> str:
    """Find it."""
    return q


def tool(**more: Any) -> StructuredTool:
    options = {"name": "find", "description": "Find it.", "func": find, **more}
    return StructuredTool.from_function(**options)


class Changes(AgentMiddleware):
    """Changes the call of the model."""

    def __init__(self, **changes: Any) -> None:
        super().__init__()
        self.changes = changes

    def wrap_model_call(self, request: Any, handler: Any) -> Any:
        return handler(request.override(**self.changes))

    async def awrap_model_call(self, request: Any, handler: Any) -> Any:
        return await handler(request.override(**self.changes))


def prompted(word: str) -> Any:
    @dynamic_prompt
    def prompt(request: Any) -> str:
        return word

    return prompt


def schema(**about: Any) -> dict[str, Any]:
    """A tool's arguments."""
    found = {"type": "string", **about}
    return {"type": "object", "properties": {"q": found}, "required": []}


def custom(word: str) -> Tool:
    about = {"type": "custom_tool", "format": {"type": "grammar", "definition": word}}
    return Tool(name="find", description="Find it.", func=find, metadata=about)


def provided(**about: Any) -> dict[str, Any]:
    return {"tools": [{"type": "web_search", **about}]}


def choosing(choice: Any) -> dict[str, Any]:
    return {"tools": [tool()], "before": [Changes(tool_choice=choice)]}


def setting(**settings: Any) -> dict[str, Any]:
    return {"before": [Changes(model_settings=settings)]}


BESIDE: dict[str, tuple[Kind, Callable[[str], dict[str, Any]]]] = {
    "the system prompt": ("system prompt", lambda w: {"system_prompt": w}),
    "a system message's blocks": (
        "system prompt",
        lambda w: {"system_prompt": SystemMessage([{"type": "text", "text": w}])},
    ),
    "a system message's name": (
        "system prompt",
        lambda w: {"system_prompt": SystemMessage("be kind", name=w)},
    ),
    "a system message's keyword": (
        "system prompt",
        lambda w: {"system_prompt": SystemMessage("be kind", additional_kwargs={"note": w})},
    ),
    "a dynamic prompt": ("system prompt", lambda w: {"before": [prompted(w)]}),
    "a tool's name": ("tool name", lambda w: {"tools": [tool(name=w)]}),
    "a tool's description": ("tool description", lambda w: {"tools": [tool(description=w)]}),
    "a middleware's tool": (
        "tool description",
        lambda w: {"before": [Changes(tools=[tool(description=w)])]},
    ),
    "a tool that is found later": (
        "tool description",
        lambda w: {"tools": [tool(description=w, extras={"defer_loading": True})]},
    ),
    "a function as a tool": (
        "tool description",
        lambda w: {"model": lambda llm: llm.bind_tools([documented(w)])},
    ),
    "a tool's extras": ("tool description", lambda w: {"tools": [tool(extras={"note": w})]}),
    "a custom tool's grammar": ("schema strings", lambda w: {"tools": [custom(w)]}),
    "a tool's argument": (
        "schema strings",
        lambda w: {"tools": [tool(args_schema=schema(description=w), infer_schema=False)]},
    ),
    "the name of a tool's argument": (
        "schema strings",
        lambda w: {
            "tools": [
                tool(
                    args_schema={"type": "object", "properties": {w: {"type": "string"}}},
                    infer_schema=False,
                )
            ]
        },
    ),
    "a tool's choices": (
        "schema strings",
        lambda w: {"tools": [tool(args_schema=schema(enum=[w]), infer_schema=False)]},
    ),
    "a tool's default": (
        "schema strings",
        lambda w: {"tools": [tool(args_schema=schema(default=w), infer_schema=False)]},
    ),
    "a provider's tool": ("tool description", lambda w: provided(filters={"note": w})),
    "a provider's tool's type": ("tool description", lambda w: provided(mode=w)),
    "a namespace's name": (
        "tool namespace",
        lambda w: {"tools": [{"type": "namespace", "name": w, "tools": []}]},
    ),
    "a namespace's description": (
        "tool namespace",
        lambda w: {"tools": [{"type": "namespace", "name": "n", "description": w, "tools": []}]},
    ),
    "a namespace's tool": (
        "tool namespace",
        lambda w: {"tools": [{"type": "namespace", "name": "n", "tools": [{"description": w}]}]},
    ),
    "a server of tools": (
        "tool namespace",
        lambda w: {"tools": [{"type": "mcp", "server_label": "s", "server_description": w}]},
    ),
    "a form's field": (
        "form of the answer",
        lambda w: {"response_format": ToolStrategy(form(w))},
    ),
    "a form's description": (
        "form of the answer",
        lambda w: {"response_format": ToolStrategy(documented(w))},
    ),
    "a form's name": ("form of the answer", lambda w: {"response_format": ToolStrategy(titled(w))}),
    "a form of any kind": ("form of the answer", lambda w: {"response_format": form(w)}),
    "a form of either": (
        "form of the answer",
        lambda w: {"response_format": AutoStrategy(form(w))},
    ),
    "a form of the provider's": (
        "form of the answer",
        lambda w: {"before": [Changes(response_format=ProviderStrategy(form(w)))]},
    ),
    "a form among settings": (
        "form of the answer",
        lambda w: setting(
            response_format={"type": "json_schema", "json_schema": {"name": w, "schema": {}}}
        ),
    ),
    "a form's choices among settings": (
        "form of the answer",
        lambda w: setting(response_format={"schema": {"type": "string", "enum": [w]}}),
    ),
    "instructions among settings": (
        "instructions",
        lambda w: setting(extra_body={"instructions": w}),
    ),
    "a setting": ("settings", lambda w: setting(note=w)),
    "a setting in the place of a label": ("settings", lambda w: setting(user=f"see {w}")),
    "a setting's model": ("settings", lambda w: setting(note=Noted(note=w))),
    "what is to be said before the answer": ("settings", lambda w: setting(prediction=[w])),
    "a choice of tools": ("settings", lambda w: choosing({"type": "tool", "name": w})),
    "a choice of tools by name": ("settings", choosing),
    "how many tools are chosen": ("settings", lambda w: choosing({"type": "auto", "note": w})),
    "a tool that is bound to the model": (
        "tool description",
        lambda w: {"model": lambda llm: llm.bind(tools=[{"description": w}])},
    ),
    "a setting that is bound to the model": (
        "settings",
        lambda w: {"model": lambda llm: llm.bind(prefix=w)},
    ),
    "a setting of the model itself": (
        "settings",
        lambda w: {"llm": Recorder(model_kwargs={"instructions": w})},
    ),
}


async def _beside(make: Any, guard: Any, word: str) -> str:
    options = make(word)
    llm = options.pop("llm", None) or Recorder(answers=[AIMessage('{"name": "x"}')])
    if callable(options.get("model")):
        options["model"] = options["model"](llm)
    return await in_an_agent(guard, said("hi"), llm=llm, **options)


# ---- what is found while a run goes on


async def _summed_up(guard: Any, word: str) -> str:
    llm, other = Recorder(), Recorder(answers=[AIMessage(word)])
    summing = SummarizationMiddleware(other, trigger=("messages", 3), keep=("messages", 1))
    return await in_an_agent(guard, answered("so"), llm=llm, before=[summing])


async def _reviewed(guard: Any, word: str, *, decision: Any) -> str:
    """What an agent's model is sent once a person has decided on a call."""
    llm = Recorder(answers=[ASKED, AIMessage("done")])
    review = HumanInTheLoopMiddleware(interrupt_on={"find": True})
    guarding = GuardrailMiddleware(guard, on_flag="raise")
    agent = create_agent(llm, [tool()], middleware=[review, guarding], checkpointer=InMemorySaver())
    config: Any = {"configurable": {"thread_id": "1"}}
    await agent.ainvoke({"messages": said("hi")}, config)
    await agent.ainvoke(Command(resume={"decisions": [decision(word)]}), config)
    return llm.said


async def _tools_answer(guard: Any, word: str, *, gives: Any) -> str:
    """What an agent's model is sent after a tool has answered."""
    llm = Recorder(answers=[ASKED, AIMessage("done")])
    made = StructuredTool.from_function(gives(word), name="find", description="Find it.")
    return await in_an_agent(guard, said("hi"), llm=llm, tools=[made])


async def _form_is_answered(guard: Any, word: str) -> str:
    """What an agent's model is sent after a call of its answer's form that is none."""
    call = {"name": "Form", "args": {"n": "x"}, "id": "c1", "type": "tool_call"}
    llm = Recorder(answers=[AIMessage("", tool_calls=[call]), AIMessage("done")])
    form = create_model("Form", n=(int, ...))
    strategy = ToolStrategy(form, handle_errors=f"{word}, please")
    return await in_an_agent(guard, said("hi"), llm=llm, response_format=strategy)


async def _guarded_tool(guard: Any, word: str, *, gives: Any) -> str:
    """What a model reads of a tool behind a guard."""
    made = StructuredTool.from_function(gives(word), name="find", description="Find it.")
    return _shown(await guard_tool(made, guard=guard).ainvoke(CALL))


async def _guarded_arguments(guard: Any, word: str, *, given: Any) -> str:
    got: list[Any] = []

    def find(q: Any = None) -> str:
        """Find it."""
        got.append(q)
        return "so"

    made = StructuredTool.from_function(find, name="find", description="Find it.")
    await guard_tool(made, guard=guard).ainvoke({**CALL, "args": given(word)})
    return repr(got)


def giving(make: Callable[[str], Any]) -> Callable[[str], Any]:
    """A tool that gives what is made of the word."""

    def made(word: str) -> Any:
        def find() -> Any:
            """Find it."""
            return make(word)

        return find

    return made


def _result(*content: Any, **more: Any) -> ToolMessage:
    return ToolMessage(*content, tool_call_id="c1", **more)


def _command(**update: Any) -> Command[Any]:
    return Command(update={"messages": [_result("so")], **update})


GIVEN: dict[str, tuple[Kind, Callable[[str], Any]]] = {
    "text": ("tool result", lambda w: w),
    "JSON": ("tool result", lambda w: {"found": [w]}),
    "a key": ("tool result", lambda w: {w: 1}),
    "blocks": ("tool result", lambda w: [{"type": "text", "text": w}]),
    "a message": ("tool result", _result),
    "a message's name": ("tool result", lambda w: _result("so", name=w)),
    "a message's id": ("tool result", lambda w: _result("so", id=f"see {w}")),
    "a message's keyword": ("tool result", lambda w: _result("so", additional_kwargs={"n": w})),
    "a block's id": (
        "tool result",
        lambda w: _result([{"type": "text", "text": "so", "id": f"see {w}"}]),
    ),
    "a command's message": ("tool result", lambda w: Command(update={"messages": [_result(w)]})),
    "a command's other message": (
        "history",
        lambda w: Command(update={"messages": [_result("so"), HumanMessage(w)]}),
    ),
    "a command's mapping of a message": (
        "history",
        lambda w: Command(update={"messages": [_result("so"), {"role": "user", "content": w}]}),
    ),
    "a command's text": ("tool result", lambda w: _command(notes=[w])),
    "a key in a command": ("tool result", lambda w: _command(notes={w: 1})),
    "a command's document": (
        "retrieved text",
        lambda w: _command(found=[Document(page_content=w)]),
    ),
    "the metadata of a command's document": (
        "metadata",
        lambda w: _command(found=[Document(page_content="hi", metadata={"title": w})]),
    ),
    "a command's model": ("tool result", lambda w: _command(notes=Noted(note=w))),
    "a command's update that is a model": ("tool result", lambda w: Command(update=Noted(note=w))),
    "what is sent to a node": (
        "tool result",
        lambda w: Command(update={"messages": [_result("so")]}, goto=[Send("next", {"q": w})]),
    ),
    "what a graph is resumed with": (
        "tool result",
        lambda w: Command(update={"messages": [_result("so")]}, resume={"q": w}),
    ),
}
ARGUMENTS: dict[str, Callable[[str], Any]] = {
    "a text": lambda w: {"q": w},
    "something deep": lambda w: {"q": {"deep": [w]}},
    "a key": lambda w: {"q": {w: 1}},
}


# ---- prompts, steps and retrieved documents


async def _templated(guard: Any, word: str, *, template: Any, values: Any) -> str:
    prompt = ChatPromptTemplate.from_messages([("human", template(word))])
    llm = Recorder()
    chain = prompt | (GuardrailRunnable(guard=guard, on_flag="refuse") | llm)
    await chain.ainvoke(values(word))
    return llm.said


async def _streamed(guard: Any, word: str) -> str:
    llm = Recorder()
    chain = GuardrailRunnable(guard=guard, on_flag="refuse") | llm
    async for _ in chain.astream(word):
        pass
    return llm.said


async def _retrieved(guard: Any, word: str, *, document: Any) -> str:
    """What a model is shown of a retrieved document, metadata and all."""
    compressor = GuardrailDocumentCompressor(guard=guard, action="raise")
    return repr(await compressor.acompress_documents([document(word)], "q"))


DOCUMENTS: dict[str, tuple[Kind, Callable[[str], Document]]] = {
    "a document": ("retrieved text", lambda w: Document(page_content=w)),
    "a document's metadata": (
        "metadata",
        lambda w: Document(page_content="hi", metadata={"title": w}),
    ),
    "a document's metadata, deep": (
        "metadata",
        lambda w: Document(page_content="hi", metadata={"a": {"deep": [w]}}),
    ),
    "a key of a document's metadata": (
        "metadata",
        lambda w: Document(page_content="hi", metadata={f"see {w}": 1}),
    ),
    "where a document comes from": (
        "resource",
        lambda w: Document(page_content="hi", metadata={"source": f"see {w}"}),
    ),
    "a document's id": ("metadata", lambda w: Document(page_content="hi", id=f"see {w}")),
}
BOUND: dict[str, tuple[Kind, Callable[[str], Any]]] = {
    "tools": (
        "tool description",
        lambda w: (
            lambda m: m.bind(
                tools=[{"type": "function", "function": {"name": "f", "description": w}}]
            )
        ),
    ),
    "a form": (
        "form of the answer",
        lambda w: lambda m: m.bind(response_format={"json_schema": {"description": w}}),
    ),
    "a tool, wrapped": (
        "tool description",
        lambda w: lambda m: m.bind(tools=[tool(description=w)]).with_retry(),
    ),
    "in a chain": (
        "tool description",
        lambda w: lambda m: RunnableLambda(lambda v: v) | m.bind(functions=[{"description": w}]),
    ),
    "of a fallback": (
        "tool description",
        lambda w: (
            lambda m: RunnableLambda(_fails).with_fallbacks([m.bind(tools=[{"description": w}])])
        ),
    ),
    "a class": ("form of the answer", lambda w: lambda m: m.bind(response_format=documented(w))),
    "a form's keys": (
        "schema strings",
        lambda w: lambda m: m.bind(format={"properties": {w: {"type": "string"}}}),
    ),
    "side by side": (
        "tool description",
        lambda w: (
            lambda m: (
                {"a": m.bind(tools=[documented(w)]), "b": m} | RunnableLambda(lambda v: v["a"])
            )
        ),
    ),
    "in a branch": (
        "tool description",
        lambda w: lambda m: RunnableBranch((lambda _: True, m.bind(tools=[documented(w)])), m),
    ),
    "an alternative": (
        "tool description",
        lambda w: (
            lambda m: m.bind(tools=[documented(w)]).configurable_alternatives(
                ConfigurableField("which"), other=m
            )
        ),
    ),
    "a setting": ("settings", lambda w: lambda m: m.bind(note=w)),
    "behind a router": (
        "tool description",
        lambda w: (
            lambda m: (
                (lambda v: {"key": "a", "input": v})
                | RouterRunnable(runnables={"a": m.bind(tools=[documented(w)])})
            )
        ),
    ),
    "of each": (
        "tool description",
        lambda w: (
            lambda m: (
                RunnableLambda(lambda v: [v])
                | m.bind(tools=[documented(w)]).map()
                | RunnableLambda(lambda v: v[0])
            )
        ),
    ),
    "that is assigned": (
        "tool description",
        lambda w: (
            lambda m: (
                RunnableLambda(lambda v: {"q": v})
                | RunnablePassthrough.assign(a=itemgetter("q") | m.bind(tools=[documented(w)]))
                | itemgetter("a")
            )
        ),
    ),
    "a template": ("prompt template", lambda w: lambda m: prompt(("human", w + " {q}")) | m),
    "a template's message": (
        "prompt template",
        lambda w: lambda m: prompt(SystemMessage(w), ("human", "{q}")) | m,
    ),
    "a template's value": (
        "prompt template",
        lambda w: (
            lambda m: (
                named | ChatPromptTemplate.from_messages([("human", "{a} {q}")]).partial(a=w) | m
            )
        ),
    ),
    "a plain template": (
        "prompt template",
        lambda w: lambda m: named | PromptTemplate.from_template(w + " {q}") | m,
    ),
    "a template's example": (
        "prompt template",
        lambda w: (
            lambda m: (
                named
                | FewShotPromptTemplate(
                    examples=[{"a": w}],
                    example_prompt=PromptTemplate.from_template("{a}"),
                    suffix="{q}",
                    input_variables=["q"],
                )
                | m
            )
        ),
    ),
}


@RunnableLambda
def named(value: Any) -> dict[str, Any]:
    return {"q": value if isinstance(value, str) else "hi"}


def prompt(*messages: Any) -> Any:
    return named | ChatPromptTemplate.from_messages([*messages])


def _fails(_: Any) -> Any:
    raise ValueError


def _channel(kind: Kind, name: str, run: Any, outcome: Outcome = "judged") -> Channel:
    return Channel(adapter=ADAPTER, kind=kind, name=name, run=run, outcome=outcome)


async def _bound(make: Any, ask: Any, guard: Any, word: str) -> str:
    given = "hi" if ask is behind_a_step else said("hi")
    found: str = await ask(guard, given, make(word))
    return found


CHANNELS: list[Channel] = [
    *_of_messages(JUDGED, "judged"),
    *_of_messages(REFUSED, "refused"),
    *_of_messages(NEVER, "never", Converted),
    *(_channel(kind, name, partial(_beside, make)) for name, (kind, make) in BESIDE.items()),
    *(
        _channel(kind, f"{name}, bound behind {where}", partial(_bound, make, ask))
        for where, ask in {"a step": behind_a_step, "a node": behind_a_node}.items()
        for name, (kind, make) in BOUND.items()
    ),
    _channel("history", "a summary", _summed_up),
    _channel(
        "tool result",
        "why a person refused a call",
        partial(_reviewed, decision=lambda w: {"type": "reject", "message": w}),
    ),
    _channel(
        "tool call",
        "a call that a person changed",
        partial(
            _reviewed,
            decision=lambda w: {
                "type": "edit",
                "edited_action": {"name": "find", "args": {"q": w}},
            },
        ),
    ),
    _channel(
        "tool result", "what a tool answers an agent", partial(_tools_answer, gives=giving(str))
    ),
    _channel("tool result", "what is said of a form's answer that is none", _form_is_answered),
    *(
        _channel(
            kind, f"what a guarded tool gives: {name}", partial(_guarded_tool, gives=giving(g))
        )
        for name, (kind, g) in GIVEN.items()
    ),
    *(
        _channel("tool call", f"a tool's argument: {name}", partial(_guarded_arguments, given=made))
        for name, made in ARGUMENTS.items()
    ),
    _channel(
        "prompt template",
        "a prompt's template",
        partial(_templated, template=lambda w: w + " {q}", values=lambda w: {"q": "hi"}),
    ),
    _channel(
        "prompt template",
        "what fills a prompt's template",
        partial(_templated, template=lambda w: "hi {q}", values=lambda w: {"q": w}),
    ),
    _channel("user's message", "a streamed input", _streamed),
    *(
        _channel(kind, f"retrieved: {name}", partial(_retrieved, document=document))
        for name, (kind, document) in DOCUMENTS.items()
    ),
]
