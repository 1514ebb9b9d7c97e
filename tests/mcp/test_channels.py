"""Every way by which a server's words, or a model's for a server, go through the proxy."""

from __future__ import annotations

import pytest

from guardrail.front.chats import RESULT_WITHHELD
from guardrail.testing import FakeGuard
from tests.mcp.conftest import Wire, b64, png

WORDS = "this is bad"
SAMPLE = "sampling/createMessage"
TEXT = {"type": "text", "text": "hi"}
TOOL = {"name": "find", "inputSchema": {"type": "object"}}

RESULTS = {
    "instructions": ("initialize", {"protocolVersion": "2025-06-18", "instructions": WORDS}),
    "a server's title": ("initialize", {"serverInfo": {"name": "a", "title": WORDS}}),
    "a capability": ("initialize", {"capabilities": {"experimental": {"a": {"note": WORDS}}}}),
    "instructions that are found": ("server/discover", {"instructions": WORDS}),
    "a tool's name": ("tools/list", {"tools": [{**TOOL, "name": WORDS}]}),
    "a tool's title": ("tools/list", {"tools": [{**TOOL, "title": WORDS}]}),
    "a tool's description": ("tools/list", {"tools": [{**TOOL, "description": WORDS}]}),
    "a tool's parameter": (
        "tools/list",
        {"tools": [{**TOOL, "inputSchema": {"properties": {WORDS: {"type": "string"}}}}]},
    ),
    "a tool's enum": ("tools/list", {"tools": [{**TOOL, "inputSchema": {"enum": [WORDS]}}]}),
    "a tool's output": ("tools/list", {"tools": [{**TOOL, "outputSchema": {"title": WORDS}}]}),
    "a tool's annotation": ("tools/list", {"tools": [{**TOOL, "annotations": {"title": WORDS}}]}),
    "a tool's metadata": ("tools/list", {"tools": [{**TOOL, "_meta": {"note": WORDS}}]}),
    "beside tools": ("tools/list", {"tools": [], "_meta": {"note": WORDS}}),
    "tools in another form": ("tools/list", {"tools": {"find": WORDS}}),
    "a prompt's description": ("prompts/list", {"prompts": [{"name": "a", "description": WORDS}]}),
    "a prompt's argument": (
        "prompts/list",
        {"prompts": [{"name": "a", "arguments": [{"name": "b", "description": WORDS}]}]},
    ),
    "a resource's name": ("resources/list", {"resources": [{"uri": "a://b", "name": WORDS}]}),
    "a template": (
        "resources/templates/list",
        {"resourceTemplates": [{"uriTemplate": "a://{b}", "name": "a", "description": WORDS}]},
    ),
    "a text": ("tools/call", {"content": [{"type": "text", "text": WORDS}]}),
    "an error's text": ("tools/call", {"content": [{**TEXT, "text": WORDS}], "isError": True}),
    "a text's annotation": ("tools/call", {"content": [{**TEXT, "annotations": {"a": WORDS}}]}),
    "a text's metadata": ("tools/call", {"content": [{**TEXT, "_meta": {"a": WORDS}}]}),
    "structured content": ("tools/call", {"content": [TEXT], "structuredContent": {"a": WORDS}}),
    "a key": ("tools/call", {"content": [TEXT], "structuredContent": {WORDS: "a"}}),
    "icons that are none": (
        "tools/call",
        {"content": [TEXT], "structuredContent": {"icons": "bad"}},
    ),
    "a word of structured content": (
        "tools/call",
        {"content": [TEXT], "structuredContent": {"a": "bad"}},
    ),
    "only structured content": ("tools/call", {"content": [], "structuredContent": {"a": WORDS}}),
    "a result's metadata": ("tools/call", {"content": [TEXT], "_meta": {"note": WORDS}}),
    "a field that is not known": ("tools/call", {"content": [TEXT], "later": WORDS}),
    "an embedded text": (
        "tools/call",
        {"content": [{"type": "resource", "resource": {"uri": "a://b", "text": WORDS}}]},
    ),
    "an embedded text's address": (
        "tools/call",
        {"content": [{"type": "resource", "resource": {"uri": f"a://{WORDS}", "text": "hi"}}]},
    ),
    "beside an embedded picture": (
        "tools/call",
        {
            "content": [
                {"type": "resource", "resource": {"uri": "a://b", "blob": b64(png()), "t": WORDS}}
            ]
        },
    ),
    "a link": (
        "tools/call",
        {"content": [{"type": "resource_link", "uri": "a://b", "name": "a", "description": WORDS}]},
    ),
    "a block that is not known": ("tools/call", {"content": [{"type": "later", "said": WORDS}]}),
    "a question before a result": (
        "tools/call",
        {"resultType": "input_required", "inputRequests": {"a": {"params": {"message": WORDS}}}},
    ),
    "a task": ("tools/call", {"task": {"taskId": "a", "statusMessage": WORDS}}),
    "content in another form": ("tools/call", {"content": WORDS}),
    "a task's state": ("tasks/get", {"taskId": "a", "statusMessage": WORDS}),
    "a task's result": ("tasks/result", {"content": [{**TEXT, "text": WORDS}]}),
    "a prompt": (
        "prompts/get",
        {"messages": [{"role": "user", "content": {"type": "text", "text": WORDS}}]},
    ),
    "a prompt's answer": (
        "prompts/get",
        {"messages": [{"role": "assistant", "content": {"type": "text", "text": WORDS}}]},
    ),
    "a prompt's embedded text": (
        "prompts/get",
        {
            "messages": [
                {
                    "role": "user",
                    "content": {"type": "resource", "resource": {"uri": "a://b", "text": WORDS}},
                }
            ]
        },
    ),
    "what a prompt is for": ("prompts/get", {"messages": [], "description": WORDS}),
    "a resource": ("resources/read", {"contents": [{"uri": "a://b", "text": WORDS}]}),
    "a resource's type": (
        "resources/read",
        {"contents": [{"uri": "a://b", "text": "hi", "mimeType": WORDS}]},
    ),
    "a completion": ("completion/complete", {"completion": {"values": [WORDS]}}),
    "an answer that is not known": ("later/method", {"said": WORDS}),
}


@pytest.mark.parametrize("case", list(RESULTS))
async def test_what_a_server_says_is_read_before_the_client_hears_it(case):
    method, result = RESULTS[case]
    async with Wire() as wire:
        await wire.send(wire.client, id=1, method=method, params={"name": "find"})
        await wire.got(wire.server)
        await wire.send(wire.server, id=1, result=result)
        answer = await wire.got(wire.client)
    assert "bad" not in repr(answer)
    assert any("bad" in repr(chat) for chat in wire.guard.seen)


@pytest.mark.parametrize("case", list(RESULTS))
async def test_the_same_without_the_words_passes_as_it_is(case):
    method, result = RESULTS[case]
    async with Wire(FakeGuard(flag=["other"])) as wire:
        await wire.send(wire.client, id=1, method=method, params={"name": "find"})
        await wire.got(wire.server)
        await wire.send(wire.server, id=1, result=result)
        answer = await wire.got(wire.client)
    if case in ("content in another form", "tools in another form"):
        assert answer["id"] == 1
    if "picture" not in case:
        assert answer["result"] == result


@pytest.mark.parametrize("error", [{"message": WORDS}, {"message": "hi", "data": {"a": WORDS}}])
async def test_errors_are_read(error):
    async with Wire() as wire:
        await wire.send(wire.client, id=1, method="ping")
        await wire.got(wire.server)
        await wire.send(wire.server, id=1, error={"code": -5, **error})
        answer = await wire.got(wire.client)
    assert answer["error"] == {"code": -5, "message": RESULT_WITHHELD}


@pytest.mark.parametrize(
    ("method", "params"),
    [
        ("notifications/message", {"level": "info", "data": WORDS}),
        ("notifications/message", {"level": "info", "data": {"a": [WORDS]}}),
        ("notifications/progress", {"progressToken": 1, "progress": 1, "message": WORDS}),
        ("notifications/tasks/status", {"taskId": "a", "statusMessage": WORDS}),
        ("notifications/resources/updated", {"uri": "a://b", "title": WORDS}),
        ("notifications/later", {"said": WORDS}),
    ],
)
async def test_notices_are_read(method, params):
    async with Wire() as wire:
        await wire.send(wire.server, method=method, params=params)
        await wire.send(wire.server, method="notifications/tools/list_changed")
        assert (await wire.got(wire.client))["method"] == "notifications/tools/list_changed"


@pytest.mark.parametrize(
    ("method", "params"),
    [
        (SAMPLE, {"messages": [{"role": "user", "content": {**TEXT, "text": "bad"}}]}),
        (SAMPLE, {"messages": [{"role": "user", "content": [{**TEXT, "text": WORDS}]}]}),
        (SAMPLE, {"messages": [], "systemPrompt": WORDS}),
        (SAMPLE, {"messages": [], "tools": [{**TOOL, "description": WORDS}]}),
        ("elicitation/create", {"message": WORDS, "requestedSchema": {}}),
        ("elicitation/create", {"message": "hi", "requestedSchema": {"properties": {WORDS: {}}}}),
        ("later/request", {"said": WORDS}),
    ],
)
async def test_what_a_server_asks_is_read(method, params):
    async with Wire() as wire:
        await wire.send(wire.server, id="s1", method=method, params=params)
        answer = await wire.got(wire.server)
        assert (answer["id"], answer["error"]["message"]) == ("s1", RESULT_WITHHELD)
        await wire.send(wire.server, method="notifications/tools/list_changed")
        assert (await wire.got(wire.client))["method"] == "notifications/tools/list_changed"


@pytest.mark.parametrize(
    "arguments",
    [{"q": WORDS}, {WORDS: 1}, {"q": [{"deep": "bad"}]}, {"a": "https://a.b/?q=bad"}],
)
async def test_what_a_model_writes_for_a_tool_is_read_before_the_server_gets_it(arguments):
    async with Wire() as wire:
        params = {"name": "find", "arguments": arguments}
        await wire.send(wire.client, id=1, method="tools/call", params=params)
        assert (await wire.got(wire.client))["result"]["isError"]
        await wire.send(wire.client, id=2, method="ping")
        assert (await wire.got(wire.server))["method"] == "ping"


async def test_a_servers_icons_are_for_people_and_not_read():
    svg = "data:image/svg+xml;base64,PHN2Zy8+"
    info = {"name": "a", "version": "1", "icons": [{"src": svg}]}
    tool = {**TOOL, "icons": [{"src": svg}]}
    async with Wire() as wire:
        for number, (method, result) in enumerate(
            [("initialize", {"serverInfo": info}), ("tools/list", {"tools": [tool]})]
        ):
            await wire.send(wire.client, id=number, method=method)
            await wire.got(wire.server)
            await wire.send(wire.server, id=number, result=result)
            assert (await wire.got(wire.client))["result"] == result
