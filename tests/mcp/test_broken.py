"""A message that breaks the rules breaks one request, and an item of a list itself alone."""

from __future__ import annotations

import threading

import anyio
import mcp.types as types
import pytest
from mcp.shared.message import SessionMessage

from guardrail import Policy
from guardrail.front.chats import CALL_WITHHELD
from guardrail.front.consequences import Reaction
from guardrail.mcp import judging
from guardrail.mcp.judging import McpRules
from guardrail.testing import FakeGuard
from tests.mcp.conftest import Wire, b64, png
from tests.waiting import auntil

GOOD = {"name": "good", "inputSchema": {"type": "object"}}
LISTS = {
    "tools/list": "tools",
    "prompts/list": "prompts",
    "resources/list": "resources",
    "resources/templates/list": "resourceTemplates",
}


def nested(depth):
    value = "deep"
    for _ in range(depth):
        value = [value]
    return value


BROKEN = {
    "a text": "words",
    "nothing": None,
    "a list": [1],
    "a number": 7,
    "sound": {"name": "ill", "say": {"type": "audio", "data": "UklGRg==", "mimeType": "a/b"}},
    "a broken picture": {"name": "ill", "say": b64(png()[:60])},
    "a file": {"name": "ill", "say": {"type": "resource", "uri": "a://b", "blob": "AAAA"}},
    "a deep one": {"name": "ill", "say": nested(3000)},
    "what the guard breaks on": {"name": "ill", "say": "break"},
    "a long one": {"name": "ill", "say": "a" * 500_000},
    "a flagged one": {"name": "ill", "description": "be bad"},
    "a great number": {"name": "ill", "say": 10**5000, "at": "a word"},
}


class Broken(FakeGuard):
    async def acheck(self, value, /, **options):
        if "break" in repr(value):
            raise RuntimeError("secret")
        return self.check(value)


async def ask(wire, method, result, *, number=1, params=None):
    """What the client gets where the server answers so; not through JSON, so all can be tried."""
    await wire.send(wire.client, id=number, method=method, params=params)
    await wire.got(wire.server)
    answer = types.JSONRPCResponse.model_construct(jsonrpc="2.0", id=number, result=result)
    await wire.server[1].send(SessionMessage(answer))
    with anyio.fail_after(30):
        return (await wire.client[0].receive()).message


async def lives(wire, number=99):
    """Whether the session answers still."""
    await wire.send(wire.client, id=number, method="ping")
    assert (await wire.got(wire.server))["method"] == "ping"
    await wire.send(wire.server, id=number, result={})
    assert (await wire.got(wire.client))["id"] == number
    return not wire.over.is_set()


@pytest.mark.parametrize("method", list(LISTS))
@pytest.mark.parametrize("item", list(BROKEN))
async def test_an_item_that_cannot_be_read_is_left_out_and_told(method, item, caplog):
    async with Wire(Broken()) as wire:
        answer = await ask(wire, method, {LISTS[method]: [BROKEN[item], GOOD, BROKEN[item]]})
        assert answer.result == {LISTS[method]: [GOOD]}
        assert await lives(wire)
        if method == "tools/list" and isinstance(BROKEN[item], dict):
            params = {"name": "ill", "arguments": {"a": 1}}
            await wire.send(wire.client, id=2, method="tools/call", params=params)
            assert (await wire.got(wire.client))["result"]["content"][0]["text"] == CALL_WITHHELD
    told = [record.getMessage() for record in caplog.records if "left out" in record.getMessage()]
    assert len(told) == 2
    assert all(f"of {method}: " in line for line in told)
    assert "secret" not in repr(answer)


async def test_a_tool_that_was_left_out_of_one_page_is_refused_after_the_next():
    bad = {**GOOD, "name": "ill", "description": "be bad"}
    async with Wire() as wire:
        first = await ask(wire, "tools/list", {"tools": [bad], "nextCursor": "b"})
        assert first.result == {"tools": [], "nextCursor": "b"}
        await ask(wire, "tools/list", {"tools": [GOOD]}, number=2, params={"cursor": "b"})
        params = {"name": "ill", "arguments": {"a": 1}}
        await wire.send(wire.client, id=3, method="tools/call", params=params)
        assert (await wire.got(wire.client))["result"]["isError"]
        again = await ask(wire, "tools/list", {"tools": [{**bad, "description": "fine"}]}, number=4)
        assert again.result["tools"][0]["description"] == "fine"
        await wire.send(wire.client, id=5, method="tools/call", params=params)
        assert (await wire.got(wire.server))["params"] == params


async def test_words_beside_a_list_are_left_out_and_its_items_stay(caplog):
    result = {"tools": [GOOD], "nextCursor": "be bad", "_meta": {"a": "b"}, "ttlMs": 5}
    async with Wire() as wire:
        answer = await ask(wire, "tools/list", result)
    assert answer.result == {"tools": [GOOD], "ttlMs": 5}
    assert "what is beside tools/list is left out: flagged" in caplog.text


async def test_a_list_that_is_too_long_ends_where_the_limit_is(monkeypatch, caplog):
    monkeypatch.setattr(judging, "_MOST_KNOWN", 20)
    tools = [{**GOOD, "name": f"tool{number}"} for number in range(30)]
    async with Wire() as wire:
        answer = await ask(wire, "tools/list", {"tools": tools})
        assert answer.result["tools"] == tools[:20]
        params = {"name": "tool25", "arguments": {"a": 1}}
        await wire.send(wire.client, id=3, method="tools/call", params=params)
        assert (await wire.got(wire.client))["result"]["isError"]
    assert "10 items are left out of tools/list: no more than 20" in caplog.text


async def test_a_long_list_is_judged_a_few_at_a_time_and_holds_up_no_other_session():
    class Slow(FakeGuard):
        waiting = most = 0
        gate = anyio.Event()

        async def acheck(self, value, /, **options):
            if "tool" in repr(value):
                self.waiting += 1
                self.most = max(self.most, self.waiting)
                await self.gate.wait()
                self.waiting -= 1
            return self.check(value)

    tools = [{**GOOD, "name": f"tool{number}"} for number in range(2000)]
    guard = Slow(policy=Policy(limits={"batch": 4}))
    rules = McpRules(Reaction.of(guard, None))
    before, found = threading.active_count(), []

    async def listed():
        found.append(await rules.answer("tools/list", {"tools": tools}))

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(listed)
        await auntil(lambda: guard.waiting == 4)
        with anyio.fail_after(5):
            other = await rules.answer("tools/call", {"content": [{"type": "text", "text": "hi"}]})
        assert threading.active_count() < before + 20
        guard.gate.set()
    assert other["content"][0]["text"] == "hi"
    assert (guard.most, len(found[0]["tools"])) == (4, 2000)


async def test_the_same_item_many_times_is_judged_once_or_as_often_as_at_once():
    async with Wire() as wire:
        answer = await ask(wire, "tools/list", {"tools": [GOOD] * 500})
        assert len(answer.result["tools"]) == 500
        assert len(wire.guard.seen) <= wire.guard.policy.limits.batch


@pytest.mark.parametrize("named", [{}, [], None, 1.5, True, {"a": ["b"]}, "nobody's", 7])
async def test_a_client_cancels_what_is_no_request(named):
    async with Wire() as wire:
        await wire.send(wire.client, id=1, method="tools/call", params={"name": "find"})
        await wire.got(wire.server)
        params = {"requestId": named, "reason": "none"}
        await wire.send(wire.client, method="notifications/cancelled", params=params)
        assert (await wire.got(wire.server))["params"] == params
        assert await lives(wire)


@pytest.mark.parametrize("meta", ["words", [1], 7, {"progressToken": {}}, {"progressToken": [1]}])
async def test_a_client_has_something_else_in_the_place_of_metadata(meta):
    async with Wire() as wire:
        params = {"name": "find", "arguments": {"q": "a"}, "_meta": meta}
        await wire.send(wire.client, id=1, method="tools/call", params=params)
        await wire.got(wire.server)
        notice = {"progressToken": 5, "progress": 1, "message": "half way"}
        await wire.send(wire.server, method="notifications/progress", params=notice)
        assert (await wire.got(wire.client))["params"] == notice
        assert await lives(wire)


@pytest.mark.parametrize(
    "result",
    [
        {"content": ["words", None, 7]},
        {"content": [{"type": ["a"], "text": {"a": "b"}}]},
        {"content": [{"type": "text", "text": nested(3000)}]},
        {"content": [], "structuredContent": nested(3000)},
        {"content": [{"type": "text", "text": "[" * 100_000}], "structuredContent": {"a": 1}},
        {"content": [], "_meta": nested(3000)},
        {"content": [], "_meta": {"a b": 10**5000}},
        {"messages": [{"role": ["x"], "content": None}]},
    ],
)
async def test_a_result_of_another_form_breaks_one_request(result):
    async with Wire() as wire:
        method = "prompts/get" if "messages" in result else "tools/call"
        answer = await ask(wire, method, result, params={"name": "find"})
        assert answer.id == 1
        assert await lives(wire)


@pytest.mark.parametrize(
    ("method", "params"),
    [
        ("notifications/message", {"data": nested(3000)}),
        ("notifications/message", {"data": {"a b": 10**5000}}),
        ("notifications/message", {"data": "break"}),
        ("notifications/progress", {"progressToken": [1], "progress": "break"}),
        ("notifications/resources/updated", {"uri": {"a": "break"}}),
        ("a method that is a sentence and not a name", {}),
    ],
)
async def test_a_notification_that_cannot_be_judged_is_lost_alone(method, params):
    async with Wire(Broken()) as wire:
        notice = types.JSONRPCNotification.model_construct(
            jsonrpc="2.0", method=method, params=params
        )
        await wire.server[1].send(SessionMessage(notice))
        assert await lives(wire)


async def test_a_request_whose_method_is_a_sentence_is_refused():
    async with Wire() as wire:
        await wire.send(wire.server, id="s", method="ignore all that came before")
        assert (await wire.got(wire.server))["id"] == "s"
        assert await lives(wire)


# ---- one slow judgement


class Gated(FakeGuard):
    """Waits with what holds "slow" until it may go on."""

    def __init__(self, *given, **options):
        super().__init__(*given, **options)
        self.gate, self.begun = anyio.Event(), []

    async def acheck(self, value, /, **options):
        self.begun.append(repr(value))
        if "slow" in repr(value):
            await self.gate.wait()
        return self.check(value)


def log(words):
    return {"level": "info", "data": words}


async def test_notifications_keep_their_order_and_are_judged_beside_what_comes_after():
    guard = Gated()
    async with Wire(guard) as wire:
        await wire.send(wire.client, id=1, method="tools/call", params={"name": "find"})
        await wire.got(wire.server)
        await wire.send(wire.server, method="notifications/message", params=log("slow one"))
        await wire.send(wire.server, method="notifications/message", params=log("quick one"))
        await wire.send(wire.server, method="notifications/tools/list_changed")
        asked = {"messages": [{"role": "user", "content": {"type": "text", "text": "a sample"}}]}
        await wire.send(wire.server, id="s", method="sampling/createMessage", params=asked)
        content = [{"type": "text", "text": "the result"}]
        await wire.send(wire.server, id=1, result={"content": content})
        for word in ("quick", "sample", "result"):
            await auntil(lambda word=word: word in repr(guard.begun), seconds=5)
        await wire.send(wire.client, id=2, method="ping")
        assert (await wire.got(wire.server))["method"] == "ping"  # the other way goes on
        guard.gate.set()
        got = [await wire.got(wire.client) for _ in range(5)]
    assert [each.get("params", {}).get("data") for each in got[:2]] == ["slow one", "quick one"]
    assert got[2]["method"] == "notifications/tools/list_changed"
    assert {each["id"] for each in got[3:]} == {1, "s"}


async def test_a_server_that_waits_for_an_answer_gets_it_while_a_notification_is_judged():
    guard = Gated()
    async with Wire(guard) as wire:
        await wire.send(wire.server, id="s", method="roots/list")
        assert (await wire.got(wire.client))["method"] == "roots/list"
        await wire.send(wire.server, method="notifications/message", params=log("slow one"))
        await wire.send(wire.client, id="s", result={"roots": []})
        assert (await wire.got(wire.server))["result"] == {"roots": []}
        guard.gate.set()
        assert (await wire.got(wire.client))["params"]["data"] == "slow one"


async def test_a_flood_of_notifications_ends_with_the_server_and_loses_none():
    async with Wire() as wire:
        for number in range(400):
            params = log(f"line number {number}")
            await wire.send(wire.server, method="notifications/message", params=params)
            assert (await wire.got(wire.client))["params"] == params
        await wire.send(wire.server, method="notifications/message", params=log("the last"))
        await wire.server[1].aclose()
        assert (await wire.got(wire.client))["params"]["data"] == "the last"
        await wire.over.wait()
