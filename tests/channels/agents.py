"""Every way by which words reach a model through the adapter for the OpenAI Agents SDK."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import mcp.types as mcp
from agents import (
    Agent,
    CodeInterpreterTool,
    CustomTool,
    FileSearchTool,
    HostedMCPTool,
    ImageGenerationTool,
    InputGuardrailTripwireTriggered,
    ModelRefusalError,
    ModelSettings,
    RunConfig,
    Runner,
    ShellTool,
    SQLiteSession,
    ToolInputGuardrailTripwireTriggered,
    ToolOutputGuardrailTripwireTriggered,
    ToolSearchTool,
    WebSearchTool,
    function_tool,
    handoff,
    tool_namespace,
)
from agents.mcp import MCPServer
from agents.model_settings import MCPToolChoice
from guardrail_agents import GuardedModel, guard_tool, guarded_agent, input_guardrail
from openai.types.shared import Reasoning
from pydantic import Field, create_model

from guardrail.errors import GuardrailViolation
from tests.channels._agents_classes import CLASSES as CLASSES
from tests.channels._agents_items import CALL, RESULT, SAMPLES, leaves, planted
from tests.channels._agents_model import Wire, untraced
from tests.channels.contract import Channel, Withheld

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from guardrail.testing import FakeGuard
    from tests.channels.contract import Kind, Outcome

ADAPTER = "Agents SDK"
STOPS = (
    GuardrailViolation,
    InputGuardrailTripwireTriggered,
    ModelRefusalError,
    ToolInputGuardrailTripwireTriggered,
    ToolOutputGuardrailTripwireTriggered,
)


@dataclass(frozen=True, kw_only=True)
class Case:
    """What a run is given, and what its model does; `agent` are the agent's own settings."""

    items: Any = "hi"
    agent: dict[str, Any] = field(default_factory=dict)
    script: tuple[Any, ...] = ()
    run: dict[str, Any] = field(default_factory=dict)
    late: bool = False  # the model has been asked before the word comes


async def sent(
    make: Callable[[str], Case],
    guard: FakeGuard,
    word: str,
    *,
    stream: bool = False,
) -> str:
    """All that a guarded agent's model is sent; one that is asked too early is an error."""
    case = make(word)
    objects = ('{"text": "fine"}',) if "output_type" in case.agent else ()
    model = Wire(*case.script, *objects)
    agent = guarded_agent(Agent("a", model=model, **case.agent), guard=guard, on_flag="raise")
    with untraced():
        try:
            if stream:
                run = Runner.run_streamed(agent, case.items, **case.run)
                async for _ in run.stream_events():
                    pass
            else:
                await Runner.run(agent, case.items, **case.run)
        except STOPS as stopped:
            if model.asked != int(case.late):
                raise AssertionError(f"the model was asked {model.asked} times") from stopped
            raise Withheld from stopped
    return repr(model.sent)


def user(words: Any = "hi") -> dict[str, Any]:
    return {"role": "user", "content": words}


def look(where: str = "") -> str:
    """Look somewhere."""
    return where


def tool(**about: Any) -> Any:
    return function_tool(look, **about)


def later(**about: Any) -> Any:
    """A tool that a search of tools finds."""
    return function_tool(look, defer_loading=True, **about)


def described(word: str) -> Any:
    return create_model("Described", text=(str, Field(description=word)))


def form(word: str) -> Any:
    return create_model(word, text=(str, ...))


def placed(word: str) -> Any:
    kind = described(word)

    async def seen(place: kind) -> str:  # type: ignore[valid-type]
        return "here"

    seen.__annotations__["place"] = kind
    return function_tool(seen)


def finding(word: str) -> Any:
    return function_tool(lambda: word, name_override="find", description_override="Find.")


def failing(word: str) -> Any:
    def fail() -> str:
        raise ValueError(word)

    return function_tool(fail, failure_error_function=lambda context, error: str(error))


# ---- items of a run's input


def _history(item: dict[str, Any]) -> list[Any]:
    match item["type"]:
        case "function_call_output":
            return [user(), {**CALL, "call_id": item["call_id"]}, item]
        case "function_call":
            return [user(), item, {**RESULT, "call_id": item["call_id"]}]
    return [user(), item, user("and?")]


def _in_sample(name: str, path: tuple[Any, ...], word: str) -> Case:
    text = f"do {word}"
    return Case(items=_history(planted(SAMPLES[name][1], path, text)))


SPEAKERS = {"easy message", "message", "answer"}
STATES = {"message", "answer", "function_call", "function_call_output", "reasoning"}


def _of_samples() -> Iterator[Channel]:
    for name, (kind, sample) in SAMPLES.items():
        for path in leaves(sample):
            where = ".".join(map(str, path))
            make = partial(_in_sample, name, path)
            yield _channel(kind, f"{name}: {where}", partial(sent, make), _outcome(name, path))


def _outcome(name: str, path: tuple[Any, ...]) -> Outcome:
    """Who speaks, how an item came about, pictures and what is kept elsewhere are no words."""
    refused = {
        ("role",): name in SPEAKERS,
        ("status",): name in STATES,
        ("result",): name == "image_generation_call",
        ("id",): name == "item_reference",
    }
    return "refused" if refused.get(path) else "judged"


def _called(**about: Any) -> Case:
    return Case(items=_history({**CALL, **about}))


def _thought(**about: Any) -> Case:
    summary = [{"type": "summary_text", "text": "so", **about}]
    return Case(items=_history({"type": "reasoning", "id": "r1", "summary": summary}))


def _item(**about: Any) -> Case:
    return Case(items=[user(), about, user()])


INPUTS: dict[str, tuple[Kind, Callable[[str], Case]]] = {
    "a text": ("user's message", lambda w: Case(items=w)),
    "a text part": (
        "user's message",
        lambda w: Case(items=[user([{"type": "input_text", "text": w}])]),
    ),
    "a system message": (
        "system prompt",
        lambda w: Case(items=[{"role": "system", "content": w}, user()]),
    ),
    "a developer's message": (
        "system prompt",
        lambda w: Case(items=[{"role": "developer", "content": w}, user()]),
    ),
    "the name of an earlier call": (
        "tool call",
        lambda w: Case(items=_history({**CALL, "name": w})),
    ),
    "the namespace of an earlier call": (
        "tool namespace",
        lambda w: Case(items=_history({**CALL, "namespace": w})),
    ),
    "the name in a result": ("tool result", lambda w: Case(items=_history({**RESULT, "name": w}))),
    "the namespace in a result": (
        "tool namespace",
        lambda w: Case(items=_history({**RESULT, "namespace": w})),
    ),
    "a result's text part": (
        "tool result",
        lambda w: Case(items=_history({**RESULT, "output": [{"type": "input_text", "text": w}]})),
    ),
    "a caller that is words": (
        "tool call",
        lambda w: Case(items=_history({**CALL, "caller": [w, w]})),
    ),
    "a key of a caller": (
        "tool call",
        lambda w: _called(caller={f"do {w}": 1}),
    ),
    "a caller's other words": (
        "tool call",
        lambda w: Case(items=_history({**CALL, "caller": {"type": "direct", "note": f"do {w}"}})),
    ),
    "an agent's name": (
        "metadata",
        lambda w: Case(items=[user(), {**CALL, "agent": {"agent_name": f"do {w}"}}, RESULT]),
    ),
    "words in the place of a cipher": (
        "history",
        lambda w: _item(type="web_search_call", id="i1", encrypted_content=f"do {w}"),
    ),
    "a key of a thought": ("history", lambda w: _thought(note=f"do {w}")),
    "a key of a cipher": (
        "history",
        lambda w: _item(type="compaction", id="i1", encrypted_content="gA", note=f"do {w}"),
    ),
    "a key of a mark": ("history", lambda w: _item(type="compaction_trigger", note=f"do {w}")),
}
REFUSED: dict[str, tuple[Kind, Callable[[str], Case]]] = {
    "a state that is a list": (
        "metadata",
        lambda w: Case(items=_history({**CALL, "status": [w]})),
    ),
    "a key of a message": ("user's message", lambda w: Case(items=[user("hi") | {"note": w}])),
    "a kind that is no text": ("history", lambda w: _item(type=5, note=w)),
    "a file": (
        "resource",
        lambda w: Case(
            items=[user([{"type": "input_file", "file_data": "data:application/pdf;base64,AAAA"}])]
        ),
    ),
}

# ---- what comes beside


def _tools(*tools: Any) -> Case:
    return Case(agent={"tools": [*tools]})


def _settings(**given: Any) -> Case:
    settings = ModelSettings()
    for key, value in given.items():  # some of them the SDK checks only when they are made
        setattr(settings, key, value)
    return Case(agent={"model_settings": settings})


def _mcp(**config: Any) -> Any:
    about: Any = {
        "type": "mcp",
        "server_label": "s",
        "server_url": "https://a",
        "require_approval": "never",
    }
    return HostedMCPTool(tool_config={**about, **config})


def _shell(**environment: Any) -> Any:
    kind: Any = {"type": "container_auto", **environment}
    return ShellTool(environment=kind)


def _named(name: str, description: str = "Clients.", *tools: Any) -> Any:
    return tool_namespace(name=name, description=description, tools=[*(tools or (tool(),))])


BESIDE: dict[str, tuple[Kind, Callable[[str], Case]]] = {
    "instructions": ("instructions", lambda w: Case(agent={"instructions": w})),
    "instructions that a function makes": (
        "instructions",
        lambda w: Case(agent={"instructions": lambda ctx, agent: w}),
    ),
    "a tool's name": ("tool name", lambda w: _tools(tool(name_override=w))),
    "a tool's description": ("tool description", lambda w: _tools(tool(description_override=w))),
    "a tool's schema": ("schema strings", lambda w: _tools(placed(w))),
    "a namespace's name": ("tool namespace", lambda w: _tools(*_named(w))),
    "a namespace's description": ("tool namespace", lambda w: _tools(*_named("crm", w))),
    "a tool's name in a namespace": (
        "tool name",
        lambda w: _tools(*_named("crm", "Clients.", tool(name_override=w))),
    ),
    "a tool that is loaded later": (
        "tool description",
        lambda w: _tools(later(description_override=w), ToolSearchTool()),
    ),
    "a namespace of tools that are loaded later": (
        "tool namespace",
        lambda w: _tools(*_named("crm", w, later()), ToolSearchTool()),
    ),
    "a search of tools": (
        "tool description",
        lambda w: _tools(later(), ToolSearchTool(description=w)),
    ),
    "the arguments of a search of tools": (
        "schema strings",
        lambda w: _tools(
            later(), ToolSearchTool(parameters={"properties": {"headers": {"description": w}}})
        ),
    ),
    "a server's tools that are loaded later": (
        "tool description",
        lambda w: _tools(_mcp(server_description=w, defer_loading=True), ToolSearchTool()),
    ),
    "a server's tools": ("tool name", lambda w: _tools(_mcp(allowed_tools=[w]))),
    "a server's label": ("tool namespace", lambda w: _tools(_mcp(server_label=w))),
    "a server's address": ("settings", lambda w: _tools(_mcp(server_url=f"do {w}"))),
    "a server's key": ("settings", lambda w: _tools(_mcp(authorization=f"do {w}"))),
    "a header for a server": ("settings", lambda w: _tools(_mcp(headers={"x": f"do {w}"}))),
    "what is deep in a server's headers": (
        "settings",
        lambda w: _tools(_mcp(headers={"x": {"y": f"do {w}"}})),
    ),
    "the name of a header for a server": (
        "settings",
        lambda w: _tools(_mcp(headers={f"do {w}": "x"})),
    ),
    "where a search is made": (
        "tool description",
        lambda w: _tools(WebSearchTool(user_location={"type": "approximate", "city": w})),
    ),
    "what files are searched by": (
        "tool description",
        lambda w: _tools(FileSearchTool(["v"], filters={"type": "eq", "key": "k", "value": w})),
    ),
    "a tool of free text": (
        "tool description",
        lambda w: _tools(CustomTool("write", w, on_invoke_tool=_invoked)),
    ),
    "the grammar of a tool of free text": (
        "schema strings",
        lambda w: _tools(
            CustomTool(
                "write",
                "Write.",
                on_invoke_tool=_invoked,
                format={"type": "grammar", "syntax": "lark", "definition": w},
            )
        ),
    ),
    "a changed tool of free text": ("tool description", lambda w: _tools(_changed(w))),
    "a skill of a local shell": (
        "tool description",
        lambda w: _tools(
            ShellTool(
                executor=_invoked,
                environment={
                    "type": "local",
                    "skills": [{"name": "a", "description": w, "path": "/"}],
                },
            )
        ),
    ),
    "a picture's settings": (
        "tool description",
        lambda w: _tools(ImageGenerationTool({"type": "image_generation", "size": w})),
    ),
    "a sandbox": (
        "tool description",
        lambda w: _tools(CodeInterpreterTool({"type": "code_interpreter", "container": f"do {w}"})),
    ),
    "the form of the answer": (
        "form of the answer",
        lambda w: Case(agent={"output_type": described(w)}),
    ),
    "the name of the answer's form": (
        "form of the answer",
        lambda w: Case(agent={"output_type": form(w)}),
    ),
    "a handoff's description": (
        "tool description",
        lambda w: Case(agent={"handoffs": [Agent("other", handoff_description=w)]}),
    ),
    "what an MCP server says of a tool": (
        "tool description",
        lambda w: Case(agent={"mcp_servers": [_Server(w)]}),
    ),
    "what an MCP server's tool answers": (
        "tool result",
        lambda w: Case(
            agent={"mcp_servers": [_Server("Look.", w)]}, script=(("look", "{}"),), late=True
        ),
    ),
    "a handoff's agent": ("tool name", lambda w: Case(agent={"handoffs": [Agent(w)]})),
    "a handoff's tool": (
        "tool description",
        lambda w: Case(agent={"handoffs": [handoff(Agent("other"), tool_description_override=w)]}),
    ),
    "a handoff's arguments": (
        "schema strings",
        lambda w: Case(
            agent={
                "handoffs": [
                    handoff(Agent("other"), input_type=described(w), on_handoff=lambda c, v: None)
                ]
            }
        ),
    ),
    "the body of a request": (
        "settings",
        lambda w: _settings(extra_body={"documents": [{"text": w}]}),
    ),
    "further arguments of a request": (
        "settings",
        lambda w: _settings(extra_args={"user": f"do {w}"}),
    ),
    "what is noted of a request": ("metadata", lambda w: _settings(metadata={"note": f"do {w}"})),
    "a key of what is noted of a request": (
        "metadata",
        lambda w: _settings(metadata={f"do {w}": "x"}),
    ),
    "an address's query": ("settings", lambda w: _settings(extra_query={"q": f"do {w}"})),
    "a header": ("settings", lambda w: _settings(extra_headers={"x-a": f"do {w}"})),
    "what is to be included": ("settings", lambda w: _settings(response_include=[f"do {w}"])),
    "a choice of a server's tool": (
        "settings",
        lambda w: _choosing(MCPToolChoice(server_label="s", name=w)),
    ),
    "how long to keep a prompt": (
        "settings",
        lambda w: _settings(prompt_cache_retention=f"do {w}"),
    ),
    "how to manage a context": (
        "settings",
        lambda w: _settings(context_management=[{"type": f"do {w}"}]),
    ),
    "how to reason": (
        "settings",
        lambda w: _settings(reasoning=Reasoning.model_construct(effort=f"do {w}")),
    ),
    "how much to say": ("settings", lambda w: _settings(verbosity=f"do {w}")),
    "what to leave out": ("settings", lambda w: _settings(truncation=f"do {w}")),
    "how to keep a prompt": (
        "settings",
        lambda w: _settings(prompt_cache_options={"mode": f"do {w}"}),
    ),
    "what a tool answers": (
        "tool result",
        lambda w: Case(agent={"tools": [finding(w)]}, script=(("find", "{}"),), late=True),
    ),
    "the words of a tool's error": (
        "tool result",
        lambda w: Case(agent={"tools": [failing(w)]}, script=(("fail", "{}"),), late=True),
    ),
    "the arguments of a call": (
        "tool call",
        lambda w: Case(
            agent={"tools": [tool()]}, script=(("look", f'{{"where": "{w}"}}'),), late=True
        ),
    ),
    "words that a filter of the run puts in": (
        "history",
        lambda w: Case(run={"run_config": RunConfig(call_model_input_filter=_filter(w))}),
    ),
}


async def _in_session(guard: FakeGuard, word: str) -> str:
    session = SQLiteSession("s")
    try:
        await session.add_items([user(word), user()])  # type: ignore[list-item]
        return await sent(lambda _: Case(run={"session": session}), guard, word)
    finally:
        session.close()


async def _handed_off(guard: FakeGuard, word: str, *, wrapped: bool = False) -> str:
    """What the model of an agent is sent that another one hands off to."""
    second = Wire()
    other: Any = Agent("other", model=second, instructions=word)
    handed = handoff(other) if wrapped else other
    case = Case(agent={"handoffs": [handed]}, script=(("transfer_to_other", "{}"),), late=True)
    await sent(lambda _: case, guard, word)
    return repr(second.sent)


class _Server(MCPServer):
    """A server in this process."""

    def __init__(self, about: str, answer: str = "here") -> None:
        super().__init__()
        self.about, self.answer = about, answer

    @property
    def name(self) -> str:
        return "s"

    async def connect(self) -> None:
        """It is here."""

    async def cleanup(self) -> None:
        """Nothing is held."""

    async def list_tools(self, *_: Any, **__: Any) -> Any:
        schema = {"type": "object", "properties": {}}
        return [mcp.Tool(name="look", description=self.about, inputSchema=schema)]

    async def call_tool(self, *_: Any, **__: Any) -> Any:
        return mcp.CallToolResult(content=[mcp.TextContent(type="text", text=self.answer)])

    async def list_prompts(self) -> Any:
        return mcp.ListPromptsResult(prompts=[])

    async def get_prompt(self, *_: Any, **__: Any) -> Any:
        raise NotImplementedError


async def _by_itself(guard: FakeGuard, word: str) -> str:
    """What a model behind a guard is sent when nothing else guards the agent."""
    model = Wire()
    with untraced():
        try:
            await Runner.run(Agent("a", model=GuardedModel(model, guard=guard)), word)
        except STOPS as stopped:
            raise Withheld from stopped
    return repr(model.sent)


async def _guardrail(guard: FakeGuard, word: str) -> str:
    """What the model of an agent with a guardrail alone is sent."""
    model = Wire()
    with untraced():
        try:
            guardrails = [input_guardrail(guard)]
            await Runner.run(Agent("a", model=model, input_guardrails=guardrails), word)
        except STOPS as stopped:
            raise Withheld from stopped
    return repr(model.sent)


async def _guarded_tool(guard: FakeGuard, word: str, *, asks: bool) -> str:
    """What a guarded tool and the model that calls it are given."""
    got: list[str] = []

    def find(where: str = "") -> str:
        got.append(where)
        return "so" if asks else word

    made = guard_tool(function_tool(find), guard=guard)
    model = Wire(("find", json.dumps({"where": word if asks else "here"})))
    with untraced():
        await Runner.run(Agent("a", model=model, tools=[made]), "hi")
    return repr(got if asks else model.sent)


OTHERS: dict[str, tuple[Kind, Any]] = {
    "a session's history": ("history", _in_session),
    "instructions of an agent that is handed off to": ("instructions", _handed_off),
    "instructions behind a handoff": ("instructions", partial(_handed_off, wrapped=True)),
    "a guarded model by itself": ("user's message", _by_itself),
    "a guardrail by itself": ("user's message", _guardrail),
    "a guarded tool's arguments": ("tool call", partial(_guarded_tool, asks=True)),
    "a guarded tool's result": ("tool result", partial(_guarded_tool, asks=False)),
}
BESIDE_REFUSED: dict[str, tuple[Kind, Callable[[str], Case]]] = {
    "a skill in a file": (
        "tool description",
        lambda w: _tools(
            _shell(
                skills=[
                    {
                        "type": "inline",
                        "name": "a",
                        "description": "b",
                        "source": {"type": "base64", "media_type": "application/zip", "data": w},
                    }
                ]
            )
        ),
    ),
    "a skill that is kept at the provider": (
        "tool description",
        lambda w: _tools(_shell(skills=[{"type": "skill_reference", "skill_id": w}])),
    ),
    "a mask that is kept at the provider": (
        "picture",
        lambda w: _tools(
            ImageGenerationTool({"type": "image_generation", "input_image_mask": {"file_id": w}})
        ),
    ),
    "a mask behind an address": (
        "picture",
        lambda w: _tools(
            ImageGenerationTool(
                {"type": "image_generation", "input_image_mask": {"image_url": f"https://a/{w}"}}
            )
        ),
    ),
    "a prompt that is kept at the provider": (
        "prompt template",
        lambda w: Case(agent={"prompt": {"id": w}}),
    ),
    "an object among a tool's settings": (
        "tool description",
        lambda w: _tools(WebSearchTool(user_location=_Opaque(w))),  # type: ignore[arg-type]
    ),
}
NEVER: dict[str, tuple[Kind, Callable[[str], Case]]] = {
    "an MCP tool's title": ("tool name", lambda w: _tools(_titled(w))),
}


class _Opaque:
    """Nothing that JSON knows."""

    def __init__(self, word: str) -> None:
        self.word = word


async def _invoked(*_: Any) -> str:
    return "done"


def _changed(word: str) -> Any:
    made = CustomTool("write", "Write.", on_invoke_tool=_invoked)
    made.tool_config["description"] = word
    return made


def _titled(word: str) -> Any:
    made = tool()
    made._mcp_title = word
    return made


def _choosing(choice: Any) -> Case:
    return Case(agent={"tools": [_mcp()], "model_settings": ModelSettings(tool_choice=choice)})


def _filter(word: str) -> Any:
    def more(data: Any) -> Any:
        data.model_data.input.append(user(word))
        return data.model_data

    return more


def _channel(kind: Kind, name: str, run: Any, outcome: Outcome = "judged") -> Channel:
    return Channel(adapter=ADAPTER, kind=kind, name=name, run=run, outcome=outcome)


CASES: dict[str, Callable[[str], Case]] = {
    name: make for ways in (INPUTS, BESIDE) for name, (_, make) in ways.items()
}
CHANNELS: list[Channel] = [
    *_of_samples(),
    *(
        _channel(kind, name, partial(sent, make), outcome)
        for outcome, ways in (
            ("judged", INPUTS | BESIDE),
            ("refused", REFUSED | BESIDE_REFUSED),
            ("never", NEVER),
        )
        for name, (kind, make) in ways.items()
    ),
    *(_channel(kind, name, run) for name, (kind, run) in OTHERS.items()),
]
