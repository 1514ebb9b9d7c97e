"""Every way by which words reach a model through the adapter for Pydantic-AI."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

from guardrail_pydantic_ai import GuardedModel, Guardrail, guard_toolset
from pydantic import BaseModel, Field, create_model
from pydantic_ai import (
    Agent,
    DeferredToolRequests,
    DeferredToolResults,
    ModelRetry,
    NativeOutput,
    PromptedOutput,
    RunContext,
    Tool,
    ToolDenied,
    ToolOutput,
    ToolReturn,
    capabilities,
    exceptions,
)
from pydantic_ai.messages import BinaryContent, TextContent, TextPart, UserPromptPart
from pydantic_ai.models import ModelRequestContext, ModelRequestParameters
from pydantic_ai.models.batch import BatchRequest
from pydantic_ai.models.fallback import FallbackModel
from pydantic_ai.models.openai import OpenAICompaction
from pydantic_ai.native_tools import FileSearchTool, MCPServerTool, WebSearchTool
from pydantic_ai.realtime import RealtimeModel
from pydantic_ai.toolsets import ExternalToolset, FunctionToolset
from pydantic_ai.usage import RunUsage, UsageLimits

from guardrail.errors import ConfigurationError
from tests.channels._pydantic_ai_classes import CLASSES as CLASSES
from tests.channels._pydantic_ai_histories import HISTORIES, UNSENT, answered, asked, said
from tests.channels._pydantic_ai_models import OtherModel, RawModel, Wire
from tests.channels.contract import Channel, Refused

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from guardrail.testing import FakeGuard
    from tests.channels.contract import Kind, Outcome

ADAPTER = "Pydantic-AI"
NOTHING = ModelRequestParameters()


def described(word: str) -> Any:
    return create_model("Described", text=(str, Field(description=word)))


def form(word: str) -> Any:
    return create_model(word, text=(str, ...))


class Answer(BaseModel):
    """An answer."""

    text: str


def look(where: str) -> str:
    """Look somewhere."""
    return where


@dataclass(frozen=True)
class Run:
    """What an agent is given, and what its model does; `agent` are the agent's own settings."""

    kind: Kind
    prompt: Callable[[str], Any] = lambda word: "hi"
    agent: Callable[[str], dict[str, Any]] = lambda word: {}
    script: Callable[[str], tuple[Any, ...]] = lambda word: ()
    late: bool = False  # the model has been asked before the word comes
    options: dict[str, Any] = field(default_factory=dict)


def finding(value: Any) -> Tool:
    def find() -> Any:
        if isinstance(value, Exception):
            raise value
        return value

    return Tool(find, name="find")


def later(value: Callable[[str], Any], kind: Kind = "tool result") -> Run:
    """What a tool gives."""
    return Run(
        kind,
        agent=lambda word: {"tools": [finding(value(word))]},
        script=lambda word: (("find", "{}"),),
        late=True,
    )


OBJECT = '{"text": "fine"}'
RUNS: dict[str, Run] = {
    "a text": Run("user's message", lambda word: word),
    "a text among others": Run("user's message", lambda word: ["hi", word]),
    "a text with metadata": Run("user's message", lambda word: [TextContent(word)]),
    "a text file": Run(
        "resource", lambda word: ["hi", BinaryContent(word.encode(), media_type="text/plain")]
    ),
    "a system prompt": Run("system prompt", agent=lambda word: {"system_prompt": word}),
    "instructions": Run("instructions", agent=lambda word: {"instructions": word}),
    "instructions that a function makes": Run(
        "instructions", agent=lambda word: {"instructions": lambda ctx: word}
    ),
    "a tool's name": Run("tool name", agent=lambda word: {"tools": [Tool(look, name=word)]}),
    "a tool's description": Run(
        "tool description", agent=lambda word: {"tools": [Tool(look, description=word)]}
    ),
    "a tool's schema": Run(
        "schema strings",
        agent=lambda word: {
            "tools": [Tool.from_schema(look, "see", None, described(word).model_json_schema())]
        },
    ),
    "the schema of a tool's result": Run(
        "schema strings",
        agent=lambda word: {"tools": [Tool(_giving(described(word)), include_return_schema=True)]},
    ),
    "a toolset's tool": Run(
        "tool description",
        agent=lambda word: {"toolsets": [FunctionToolset([Tool(look, description=word)])]},
    ),
    "what a toolset says of itself": Run(
        "instructions",
        agent=lambda word: {"toolsets": [FunctionToolset([look], instructions=word)]},
    ),
    "a tool that is to be found first": Run(
        "tool description",
        agent=lambda word: {"tools": [Tool(look, description=word, defer_loading=True)]},
    ),
    "a server that the provider asks": Run(
        "tool description",
        agent=lambda word: _with_native(MCPServerTool(id="a", url="https://a.b", description=word)),
    ),
    "the name of a server that the provider asks": Run(
        "tool namespace",
        agent=lambda word: _with_native(MCPServerTool(id=f"a {word}", url="https://a.b")),
    ),
    "where the provider may search": Run(
        "tool description",
        agent=lambda word: _with_native(WebSearchTool(allowed_domains=[f"{word}.org"])),
    ),
    "the form of the answer": Run(
        "form of the answer",
        agent=lambda word: {"output_type": described(word)},
        script=lambda word: (("final_result", OBJECT),),
    ),
    "the name of the answer's form": Run(
        "form of the answer",
        agent=lambda word: {"output_type": form(word)},
        script=lambda word: (("final_result", OBJECT),),
    ),
    "the description of an output tool": Run(
        "form of the answer",
        agent=lambda word: {"output_type": ToolOutput(Answer, description=word)},
        script=lambda word: (("final_result", OBJECT),),
    ),
    "the provider's own form": Run(
        "form of the answer",
        agent=lambda word: {"output_type": NativeOutput(described(word))},
        script=lambda word: (OBJECT,),
    ),
    "a prompted form": Run(
        "form of the answer",
        agent=lambda word: {"output_type": PromptedOutput(described(word))},
        script=lambda word: (OBJECT,),
    ),
    "the template of a prompted form": Run(
        "prompt template",
        agent=lambda word: {"output_type": PromptedOutput(Answer, template=word + " {schema}")},
        script=lambda word: (OBJECT,),
    ),
    "a model's own template of a prompted form": Run(
        "prompt template",
        agent=lambda word: {"output_type": PromptedOutput(Answer)},
        script=lambda word: (OBJECT,),
        options={"profile": lambda word: {"prompted_output_template": word + " {schema}"}},
    ),
    "the body of a request": Run(
        "settings", agent=lambda word: _with(extra_body={"documents": [{"text": word}]})
    ),
    "what ends an answer": Run("settings", agent=lambda word: _with(stop_sequences=[f"do {word}"])),
    "the answer that is expected": Run(
        "settings",
        agent=lambda word: _with(openai_prediction={"type": "content", "content": word}),
    ),
    "words in a setting that takes one of a few": Run(
        "settings", agent=lambda word: _with(openai_reasoning_effort=f"do {word}")
    ),
    "what a tool answers": later(lambda word: word),
    "an object that a tool answers": later(lambda word: {"text": word}),
    "what a tool says beside its answer": later(lambda word: ToolReturn("here", content=[word])),
    "what a tool asks the model to do again": later(ModelRetry),
    "the arguments of a call": Run(
        "tool call",
        agent=lambda word: {"tools": [look]},
        script=lambda word: (("look", f'{{"where": "{word}"}}'),),
        late=True,
    ),
}
if hasattr(exceptions, "ToolFailed"):
    RUNS["what a tool says of its failure"] = later(exceptions.ToolFailed)


def _giving(kind: Any) -> Any:
    def see() -> Any:
        """See."""
        return kind(text="x")

    see.__annotations__["return"] = kind
    return see


def _with(**found: Any) -> dict[str, Any]:
    return {"model_settings": found}


def _with_native(tool: Any) -> dict[str, Any]:
    return {"capabilities": [capabilities.NativeTool(tool)]}


def model_of(run: Run, word: str) -> OtherModel:
    """The model of a run, which keeps what it is sent."""
    about = {name: made(word) for name, made in run.options.items()}
    profile = {
        "supports_json_schema_output": True,
        "supports_tool_return_schema": True,
        "supported_native_tools": frozenset({MCPServerTool, WebSearchTool, FileSearchTool}),
    }
    return OtherModel(*run.script(word), profile=profile | about.get("profile", {}))


def agent_of(run: Run, word: str, inner: Any, *more: Any) -> Agent[Any, Any]:
    """An agent with a run's settings."""
    held = run.agent(word)
    return Agent(inner, **held | {"capabilities": [*held.get("capabilities", ()), *more]})


async def _ran(run: Run, guard: FakeGuard, word: str) -> str:
    inner = model_of(run, word)
    agent = agent_of(run, word, inner, Guardrail(guard, on_flag="raise"))
    await agent.run(run.prompt(word))
    return inner.said()


async def _streamed(run: Run, guard: FakeGuard, word: str) -> str:
    inner = model_of(run, word)
    agent = agent_of(run, word, GuardedModel(inner, guard=guard, on_flag="raise"))
    async with agent.run_stream(run.prompt(word)) as result:
        await result.get_output()
    return inner.said()


async def _went_on(build: Callable[[str], list[Any]], guard: FakeGuard, word: str) -> str:
    """A run of an agent with a history."""
    inner = OtherModel()
    agent = Agent(inner, tools=[look], capabilities=[Guardrail(guard, on_flag="raise")])
    await agent.run("go on", message_history=build(word))
    return inner.said()


async def _asked(build: Callable[[str], list[Any]], guard: FakeGuard, word: str) -> str:
    """A request as a `FallbackModel` gets it: nothing in it is prepared for a model yet."""
    inner = RawModel()
    await GuardedModel(inner, guard=guard, on_flag="raise").request(build(word), None, NOTHING)
    return inner.said()


async def _over_the_wire(build: Callable[[str], list[Any]], guard: FakeGuard, word: str) -> str:
    """What OpenAI would be sent of a history, by either of its interfaces."""
    found = []
    for name in ("responses", "chat"):
        wire = Wire()
        agent = Agent(getattr(wire, name)(), capabilities=[Guardrail(guard)])
        await agent.run("go on", message_history=build(word))
        assert "go on" in wire.said()
        found.append(wire.said())
    return repr(found)


async def _fell_back(guard: FakeGuard, word: str) -> str:
    """Settings of a model behind one that chooses among others."""
    inner = RawModel(settings={"extra_body": {"a": word}})
    model = GuardedModel(FallbackModel(inner, RawModel()), guard=guard, on_flag="raise")
    await model.request([said(UserPromptPart("hi"))], None, NOTHING)
    return inner.said()


async def _batched(guard: FakeGuard, word: str) -> str:
    inner = RawModel()
    request = BatchRequest(
        custom_id="1",
        messages=[said(UserPromptPart(word))],
        model_request_parameters=NOTHING,
    )
    await GuardedModel(inner, guard=guard).batch_encode(request)
    return inner.said()


async def _counted(guard: FakeGuard, word: str) -> str:
    """What is counted before it is asked is sent to the provider, too."""
    inner = RawModel()
    agent = Agent(inner, capabilities=[Guardrail(guard, on_flag="raise")])
    limits = UsageLimits(count_tokens_before_request=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # nobody knows what this model costs
        await agent.run(word, usage_limits=limits)
    return inner.said()


async def _summed_up(said_how: bool, guard: FakeGuard, word: str) -> str:
    inner = RawModel()
    context = ModelRequestContext(
        model=inner,
        messages=asked(UserPromptPart("hi" if said_how else word)),
        model_settings=None,
        model_request_parameters=NOTHING,
    )
    model = GuardedModel(inner, guard=guard)
    await model.compact_messages(context, instructions=word if said_how else None)
    return inner.said()


async def _compacted(made: Callable[[], Any], guard: FakeGuard, word: str, **options: Any) -> str:
    """A history that another capability has the agent's model sum up."""
    wire = Wire()
    found = [made(), Guardrail(guard, on_flag="raise")]
    history = [*answered(TextPart(word)), *answered(TextPart("ok"))]
    await Agent(wire.responses(), capabilities=found).run(
        "go on", message_history=history, **options
    )
    return wire.said()


class Silent(RealtimeModel):
    """A model of speech that nobody reaches."""

    model_name = "silent"
    base_url = "wss://example.org"
    system = "nobody"

    def connect(self, *given: Any, **named: Any) -> Any:
        """Nobody is to get here."""
        raise AssertionError("connected")


async def _spoken(guard: FakeGuard, word: str) -> str:
    agent = Agent(instructions=word, capabilities=[Guardrail(guard)])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pydantic-AI warns of it, too
        try:
            async with agent.realtime(Silent()).session():
                return "connected"
        except ConfigurationError as error:
            raise Refused(str(error)) from error


async def _came_later(answer: Callable[[str], Any], guard: FakeGuard, word: str) -> str:
    """What an application, or a person, answers to a call when the run goes on."""
    inner = OtherModel(("look", '{"where": "there"}'))
    [definition] = [tool.tool_def for tool in (await _definitions(look)).values()]
    agent = Agent(
        inner,
        toolsets=[ExternalToolset([definition])],
        output_type=[str, DeferredToolRequests],
        capabilities=[Guardrail(guard, on_flag="raise")],
    )
    first = await agent.run("hi")
    call_id = first.output.calls[0].tool_call_id
    results = DeferredToolResults(calls={call_id: answer(word)})
    await agent.run(message_history=first.all_messages(), deferred_tool_results=results)
    return inner.said()


async def _definitions(function: Any) -> Mapping[str, Any]:
    context = RunContext[Any](deps=None, model=RawModel(), usage=RunUsage())
    return await FunctionToolset([function]).get_tools(context)


async def _denied(guard: FakeGuard, word: str) -> str:
    inner = OtherModel(("look", '{"where": "there"}'))
    agent = Agent(
        inner,
        tools=[Tool(look, requires_approval=True)],
        output_type=[str, DeferredToolRequests],
        capabilities=[Guardrail(guard, on_flag="raise")],
    )
    first = await agent.run("hi")
    call_id = first.output.approvals[0].tool_call_id
    results = DeferredToolResults(approvals={call_id: ToolDenied(word)})
    await agent.run(message_history=first.all_messages(), deferred_tool_results=results)
    return inner.said()


async def _toolset(value: Callable[[str], Any], guard: FakeGuard, word: str) -> str:
    """A guarded toolset of an agent that has no other guard."""
    inner = OtherModel(("find", "{}"))
    toolset = guard_toolset(FunctionToolset([finding(value(word))]), guard=guard)
    await Agent(inner, toolsets=[toolset]).run("hi")
    return inner.said()


def _channel(
    kind: Kind,
    name: str,
    run: Callable[[FakeGuard, str], Awaitable[str]],
    outcome: Outcome = "judged",
) -> Channel:
    return Channel(adapter=ADAPTER, kind=kind, name=name, run=run, outcome=outcome)


CHANNELS: list[Channel] = [
    *[_channel(run.kind, name, partial(_ran, run)) for name, run in RUNS.items()],
    *[
        _channel(run.kind, f"{name}, streamed", partial(_streamed, run))
        for name, run in RUNS.items()
    ],
    *[
        _channel(each.kind, f"{name}, in a history", partial(_went_on, each.build), each.outcome)
        for name, each in HISTORIES.items()
        if each.whole
    ],
    *[
        _channel(each.kind, f"{name}, unprepared", partial(_asked, each.build), each.outcome)
        for name, each in HISTORIES.items()
    ],
    *[
        _channel(each.kind, name, partial(_over_the_wire, each.build), each.outcome)
        for name, each in UNSENT.items()
    ],
    _channel("settings", "settings of a model behind another", _fell_back),
    _channel("user's message", "a request of a batch", _batched),
    _channel("user's message", "a message that is counted first", _counted),
    _channel("history", "a history to sum up", partial(_summed_up, False)),
    _channel("instructions", "how to sum up a history", partial(_summed_up, True)),
    _channel("system prompt", "a session of speech", _spoken, "refused"),
    _channel("tool result", "a result that comes later", partial(_came_later, str)),
    _channel(
        "tool result",
        "words beside a result that comes later",
        partial(_came_later, lambda word: ToolReturn("here", content=word)),
    ),
    _channel("tool result", "a wish that comes later", partial(_came_later, ModelRetry)),
    _channel("tool result", "why a call may not be made", _denied),
    _channel("tool result", "a result of a guarded toolset", partial(_toolset, str)),
    _channel(
        "tool result",
        "words beside a result of a guarded toolset",
        partial(_toolset, lambda word: ToolReturn("here", content=[word])),
    ),
    _channel(
        "history",
        "a history that OpenAI sums up",
        partial(_compacted, partial(OpenAICompaction, message_count_threshold=3)),
    ),
]
if hasattr(capabilities, "NativeCompaction"):
    CHANNELS.append(
        _channel(
            "history",
            "a history that its model sums up",
            partial(_compacted, capabilities.NativeCompaction, compact=True),
        )
    )
