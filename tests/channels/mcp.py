"""Every way by which a server's words, or a model's for a server, go through the MCP proxy."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tests.channels._mcp import answers, asks, calls, fails, notes
from tests.channels._mcp_classes import ENVELOPE, PLACED, SAMPLE, TEXT, TOOL
from tests.channels.contract import Channel, LibraryClass
from tests.mcp.conftest import b64, png

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from guardrail.testing import FakeGuard
    from tests.channels.contract import Kind, Outcome

    Json = dict[str, Any]
    Say = Callable[[str], Json]
    Send = Callable[[FakeGuard, Any], Awaitable[str]]

CHANNELS: list[Channel] = []
CLASSES: list[LibraryClass] = [
    *{repr(placed.fields): placed.fields for placed in PLACED}.values(),
    *ENVELOPE,
]


def _add(
    kind: Kind, name: str, send: Send, say: Say, outcome: Outcome = "judged", sentence: str = "{}"
) -> None:
    async def run(guard: FakeGuard, word: str) -> str:
        return await send(guard, say(sentence.format(word)))

    CHANNELS.append(Channel(adapter="MCP", kind=kind, name=name, run=run, outcome=outcome))


SENTENCE = "say {} now"  # where a word without a blank is a label

# ---- when a client connects

_hello, _found = answers("initialize"), answers("server/discover")
_VERSION = {"protocolVersion": "2025-06-18"}
_add("instructions", "instructions", _hello, lambda w: {**_VERSION, "instructions": w})
_add("instructions", "instructions that are found", _found, lambda w: {"instructions": w})
_add("instructions", "instructions in a list", _hello, lambda w: {"instructions": [w]})
_add(
    "tool namespace",
    "a server's name",
    _hello,
    lambda w: {"serverInfo": {"name": w}},
    sentence=SENTENCE,
)
_add(
    "tool namespace",
    "a server's title",
    _hello,
    lambda w: {"serverInfo": {"name": "a", "title": w}},
)
_add("settings", "a version", _hello, lambda w: {"protocolVersion": w}, sentence=SENTENCE)
_add(
    "settings",
    "a capability",
    _hello,
    lambda w: {"capabilities": {"experimental": {"a": {"note": w}}}},
)
_add("settings", "a capability's name", _hello, lambda w: {"capabilities": {w: {}}})
_add("settings", "an extension", _found, lambda w: {"capabilities": {"extensions": {w: {}}}})

# ---- lists

_tools = answers("tools/list")


def _tool(kind: Kind, name: str, say: Say, sentence: str = "{}") -> None:
    _add(kind, name, _tools, lambda w: {"tools": [{**TOOL, **say(w)}]}, sentence=sentence)


_tool("tool name", "a tool's name", lambda w: {"name": w})
_tool("tool name", "a tool's title", lambda w: {"title": w})
_tool("tool name", "an annotation's title", lambda w: {"annotations": {"title": w}})
_tool("tool description", "a tool's description", lambda w: {"description": w})
_tool("tool description", "a tool's icon", lambda w: {"icons": [{"src": w}]})
_tool("tool description", "icons that are none", lambda w: {"icons": w})
_tool("tool description", "an icon's own key", lambda w: {"icons": [{"src": "https://a", w: 1}]})
_tool(
    "tool description",
    "an icon's size",
    lambda w: {"icons": [{"src": "https://a.b/c.png", "sizes": [w]}]},
)
_tool("tool description", "a hint", lambda w: {"annotations": {"readOnlyHint": w}})
_tool("tool description", "a tool's flag", lambda w: {"isError": w})
_tool("tool description", "a tool's cursor", lambda w: {"nextCursor": w})
_tool("schema strings", "a tool's parameter", lambda w: {"inputSchema": {"properties": {w: {}}}})
for _key in ("title", "description", "default", "const", "format", "pattern", "$comment", "$ref"):
    _tool(
        "schema strings",
        f"a parameter's {_key}",
        lambda w, key=_key: {"inputSchema": {"properties": {"a": {key: w}}}},
    )
_tool("schema strings", "a tool's enum", lambda w: {"inputSchema": {"enum": [w]}})
_tool("schema strings", "a tool's examples", lambda w: {"inputSchema": {"examples": [w]}})
_tool("schema strings", "a tool's required", lambda w: {"inputSchema": {"required": [w]}})
_tool("schema strings", "a tool's type", lambda w: {"inputSchema": {"type": w}})
_tool("schema strings", "a tool's output", lambda w: {"outputSchema": {"title": w}})
_tool("metadata", "a tool's metadata", lambda w: {"_meta": {"note": w}})
_tool("metadata", "a key of a tool's metadata", lambda w: {"_meta": {w: 1}})
_tool("settings", "how a tool is run", lambda w: {"execution": {"taskSupport": w}})
_add("metadata", "beside tools", _tools, lambda w: {"tools": [], "_meta": {"note": w}})
_add("metadata", "a key beside tools", _tools, lambda w: {"tools": [], "_meta": {w: 1}})
_add("metadata", "a cursor", _tools, lambda w: {"tools": [], "nextCursor": w}, sentence=SENTENCE)
_add("tool name", "tools in another form", _tools, lambda w: {"tools": {"find": w}})
_add("tool name", "a tool that is no object", _tools, lambda w: {"tools": [w]}, "never")
_prompts = answers("prompts/list")
_add("prompt template", "a prompt's name", _prompts, lambda w: {"prompts": [{"name": w}]})
_add(
    "prompt template",
    "a prompt's description",
    _prompts,
    lambda w: {"prompts": [{"name": "a", "description": w}]},
)
for _key in ("name", "title", "description"):
    _add(
        "prompt template",
        f"an argument's {_key}",
        _prompts,
        lambda w, key=_key: {"prompts": [{"name": "a", "arguments": [{"name": "b", key: w}]}]},
    )
_RESOURCE = {"uri": "a://b", "name": "a"}
for _key in ("name", "title", "description", "uri", "mimeType"):
    _add(
        "resource",
        f"a listed resource's {_key}",
        answers("resources/list"),
        lambda w, key=_key: {"resources": [{**_RESOURCE, key: w}]},
    )
    _add(
        "resource",
        f"a template's {_key}",
        answers("resources/templates/list"),
        lambda w, key=_key: {"resourceTemplates": [{"uriTemplate": "a://{b}", key: w}]},
    )

# ---- results of tools

_called = answers("tools/call")


def _result(name: str, say: Say, kind: Kind = "tool result", **options: Any) -> None:
    _add(kind, name, _called, lambda w: {"content": [TEXT], **say(w)}, **options)


def _block(name: str, say: Say, kind: Kind = "tool result", **options: Any) -> None:
    _result(name, lambda w: {"content": [say(w)]}, kind, **options)


_block("a text", lambda w: {**TEXT, "text": w})
_result("an error's text", lambda w: {"content": [{**TEXT, "text": w}], "isError": True})
_result("a flag that is none", lambda w: {"isError": w})
_result("a kind of result", lambda w: {"resultType": w}, sentence=SENTENCE)
_result("a state to send back", lambda w: {"requestState": w}, sentence=SENTENCE)
_block("a text's annotation", lambda w: {**TEXT, "annotations": {"audience": [w]}})
_block("a text's metadata", lambda w: {**TEXT, "_meta": {"a": w}}, "metadata")
_block("a text's own kind", lambda w: {"type": w, "text": "hi"})
_result("structured content", lambda w: {"structuredContent": {"a": w}})
_result("a key of structured content", lambda w: {"structuredContent": {w: 1}})
_result("only structured content", lambda w: {"content": [], "structuredContent": {"a": [w]}})
_result("structured content that is a text", lambda w: {"structuredContent": w})
_result("icons in structured content", lambda w: {"structuredContent": {"icons": [{"src": w}]}})
_result("icons beside content", lambda w: {"icons": w})
_result("a result's metadata", lambda w: {"_meta": {"note": w}}, "metadata")
_result("a key of a result's metadata", lambda w: {"_meta": {w: 1}}, "metadata")
_result("metadata that is a text", lambda w: {"_meta": w}, "metadata")
_result(
    "a server's name in metadata",
    lambda w: {"_meta": {"io.modelcontextprotocol/serverInfo": {"name": w}}},
    "metadata",
    sentence=SENTENCE,
)
_result(
    "a label's key in metadata of its own",
    lambda w: {"_meta": {"note": {"name": w, "type": w, "status": w}}},
    "metadata",
)
_result("a field that is not known", lambda w: {"later": w})
_block(
    "an embedded text",
    lambda w: {"type": "resource", "resource": {"uri": "a://b", "text": w}},
    "retrieved text",
)
_block(
    "an embedded text's address",
    lambda w: {"type": "resource", "resource": {"uri": f"a://{w}", "text": "hi"}},
    "retrieved text",
)
_block(
    "beside an embedded picture",
    lambda w: {"type": "resource", "resource": {"uri": "a://b", "blob": b64(png()), "t": w}},
    "retrieved text",
)
_block(
    "a file that is embedded",
    lambda w: {"type": "resource", "resource": {"uri": f"a://{w}", "blob": "AAAA"}},
    "retrieved text",
    outcome="refused",
)
_block(
    "a link",
    lambda w: {"type": "resource_link", "uri": "a://b", "name": "a", "description": w},
    "retrieved text",
)
_block("a block that is not known", lambda w: {"type": "later", "said": w})
_block(
    "beside sound",
    lambda w: {"type": "audio", "data": "UklGRg==", "mimeType": f"audio/{w}"},
    outcome="refused",
)
_result("content in another form", lambda w: {"content": w})
_add("tool result", "no object in content", _called, lambda w: {"content": [w]}, "refused")
_result(
    "a question before a result",
    lambda w: {"inputRequests": {"a": {"params": {"message": w}}}},
)
_result("the name of a question", lambda w: {"inputRequests": {w: {}}})
_result("a task", lambda w: {"task": {"taskId": "a", "statusMessage": w}})
_add("tool result", "a task's state", answers("tasks/get"), lambda w: {"statusMessage": w})
_add("tool result", "a task's id", answers("tasks/get"), lambda w: {"taskId": w}, sentence=SENTENCE)
_add(
    "tool result",
    "a task in a list",
    answers("tasks/list"),
    lambda w: {"tasks": [{"taskId": "a", "statusMessage": w}]},
)
_add(
    "tool result",
    "a task's result",
    answers("tasks/result"),
    lambda w: {"content": [{**TEXT, "text": w}]},
)
_add("tool result", "an error's message", fails, lambda w: {"message": w})
_add("tool result", "an error's data", fails, lambda w: {"message": "hi", "data": {"message": w}})
_add("tool result", "an error's data as a text", fails, lambda w: {"message": "hi", "data": w})
_add("tool result", "a key of an error's data", fails, lambda w: {"message": "", "data": {w: 1}})
_add("tool result", "an answer that is not known", answers("later/method"), lambda w: {"said": w})

# ---- prompts, resources, completions

_prompt = answers("prompts/get")
for _role in ("user", "assistant"):
    _add(
        "user's message" if _role == "user" else "history",
        f"a prompt's message of the {_role}",
        _prompt,
        lambda w, role=_role: {"messages": [{"role": role, "content": {**TEXT, "text": w}}]},
    )
_add(
    "history",
    "who says a prompt's message",
    _prompt,
    lambda w: {"messages": [{"role": w, "content": TEXT}]},
)
_add(
    "history",
    "beside a prompt's message",
    _prompt,
    lambda w: {"messages": [{"role": "user", "content": TEXT, "name": w}]},
)
_add(
    "prompt template",
    "a prompt's embedded text",
    _prompt,
    lambda w: {
        "messages": [
            {
                "role": "user",
                "content": {"type": "resource", "resource": {"uri": "a://b", "text": w}},
            }
        ]
    },
)
_add(
    "prompt template",
    "what a prompt is for",
    _prompt,
    lambda w: {"messages": [], "description": w},
)
for _key in ("text", "uri", "mimeType", "title"):
    _add(
        "resource",
        f"a resource's {_key}",
        answers("resources/read"),
        lambda w, key=_key: {"contents": [{"uri": "a://b", "text": "hi", key: w}]},
    )
_add(
    "retrieved text",
    "a completion",
    answers("completion/complete"),
    lambda w: {"completion": {"values": [w]}},
)

# ---- what a server asks of the client's model or user

_sample, _elicit = asks("sampling/createMessage"), asks("elicitation/create")


def _message(role: str, content: Json) -> Json:
    return {"messages": [{"role": role, "content": content}]}


_add("system prompt", "a sample's system prompt", _sample, lambda w: {**SAMPLE, "systemPrompt": w})
_add(
    "system prompt",
    "a sample's only words",
    _sample,
    lambda w: {"messages": [], "systemPrompt": w},
)
_add(
    "user's message",
    "a sample's message",
    _sample,
    lambda w: _message("user", {**TEXT, "text": w}),
)
_add(
    "history",
    "a sample's answer before",
    _sample,
    lambda w: _message("assistant", {**TEXT, "text": w}),
)
_add(
    "history",
    "a sample's call before",
    _sample,
    lambda w: _message(
        "assistant", {"type": "tool_use", "name": "a", "id": "b", "input": {"a": w}}
    ),
)
_add(
    "history",
    "a sample's result before",
    _sample,
    lambda w: _message(
        "user", {"type": "tool_result", "toolUseId": "b", "content": [{**TEXT, "text": w}]}
    ),
)
_add("history", "a role of a sample", _sample, lambda w: _message(w, {}))
_add(
    "tool description",
    "a sample's tool",
    _sample,
    lambda w: {"messages": [], "tools": [{**TOOL, "description": w}]},
)
_add("tool name", "a sample's tool's name", _sample, lambda w: {"tools": [{**TOOL, "name": w}]})
_add("settings", "where a sample stops", _sample, lambda w: {"stopSequences": [w]})
_add("settings", "a sample's metadata", _sample, lambda w: {"metadata": {"note": w}})
_add("settings", "a sample's context", _sample, lambda w: {"includeContext": w})
_add(
    "settings",
    "a sample's model",
    _sample,
    lambda w: {"modelPreferences": {"hints": [{"name": w}]}},
)
_add("form of the answer", "a question's message", _elicit, lambda w: {"message": w})
_add("form of the answer", "a question's address", _elicit, lambda w: {"message": "", "url": w})
for _key in ("title", "description", "default", "enum"):
    _add(
        "form of the answer",
        f"the {_key} of a field that is asked for",
        _elicit,
        lambda w, key=_key: {
            "message": "hi",
            "requestedSchema": {"properties": {"a": {key: [w] if key == "enum" else w}}},
        },
    )
_add(
    "form of the answer",
    "a field that is asked for",
    _elicit,
    lambda w: {"message": "hi", "requestedSchema": {"properties": {w: {"type": "string"}}}},
)
_add("settings", "metadata of a request", asks("ping"), lambda w: {"_meta": {"note": w}})
_add("settings", "a request that is not known", asks("later/request"), lambda w: {"said": w})

# ---- notifications


def _note(name: str, method: str, say: Say, sentence: str = "{}") -> None:
    send = notes(f"notifications/{method}")
    _add("notification", name, send, say, sentence=sentence)


_note("a log line", "message", lambda w: {"level": "info", "data": w})
_note("data of a log line", "message", lambda w: {"level": "info", "data": {"a": [w]}})
_note("a key of a log line", "message", lambda w: {"level": "info", "data": {w: 1}})
_note(
    "labels' keys in data of a log line",
    "message",
    lambda w: {"level": "info", "data": {"name": w, "status": w, "level": w, "uri": w}},
)
_note("a log's level", "message", lambda w: {"level": w, "data": 1}, SENTENCE)
_note("a log's name", "message", lambda w: {"logger": w, "data": 1}, SENTENCE)
_note("a word of progress", "progress", lambda w: {"progressToken": 1, "message": w})
_note("a token of progress", "progress", lambda w: {"progressToken": w}, SENTENCE)
_note("a task's new state", "tasks/status", lambda w: {"taskId": "a", "statusMessage": w})
_note("a resource that changed", "resources/updated", lambda w: {"uri": "a://b", "title": w})
_note("where a resource changed", "resources/updated", lambda w: {"uri": w}, SENTENCE)
_note("why something is cancelled", "cancelled", lambda w: {"requestId": 1, "reason": w})
_note("metadata of a notification", "tools/list_changed", lambda w: {"_meta": {"note": w}})
_note("a notification that is not known", "later", lambda w: {"said": w})

# ---- calls

_add("tool call", "an argument", calls, lambda w: {"name": "find", "arguments": {"q": w}})
_add("tool call", "an argument's name", calls, lambda w: {"name": "find", "arguments": {w: 1}})
_add(
    "tool call",
    "an argument deep inside",
    calls,
    lambda w: {"name": "find", "arguments": {"q": [{"deep": w}]}},
)
_add(
    "tool call",
    "an address",
    calls,
    lambda w: {"name": "find", "arguments": {"a": f"https://a.b/?q={w}"}},
)
_add("tool call", "a call's name", calls, lambda w: {"name": w, "arguments": {"q": 1}})
_add("tool call", "a call's name alone", calls, lambda w: {"name": w}, sentence=SENTENCE)
_add("tool call", "arguments in a text", calls, lambda w: {"name": "find", "arguments": w})
