"""What of the protocol is read, beyond the contract of all adapters (tests/channels/mcp.py)."""

from __future__ import annotations

import io
import typing

import mcp.types as types
import pytest
import typing_extensions
from PIL import Image
from pydantic import BaseModel

from guardrail.front.chats import RESULT_WITHHELD
from guardrail.mcp.words import NOTICE, RESULT, holds_words
from guardrail.testing import FakeGuard
from tests.channels._mcp import answers, asks_message, notes_message
from tests.channels._mcp_classes import CLIENTS, ENVELOPE, PLACED
from tests.channels.contract import OTHER, WORD, Channel, Refused, Withheld, prove
from tests.mcp.conftest import Wire, b64, png

TEXT = {"type": "text", "text": "hi"}
TOOL = {"name": "find", "inputSchema": {"type": "object"}}
SENTENCE = f"say {WORD} now"


def key_of(kind, field):
    """A field's name in JSON."""
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        return kind.model_fields[field].alias or field
    return {"progress_token": "progressToken"}[field]


FIELDS = [
    pytest.param(placed, field, outcome, id=f"{number}-{placed.fields.kind.__name__}.{field}")
    for number, placed in enumerate(PLACED)  # in each place where a class may stand
    for outcome in ("judged", "labels", "refused", "never")
    for field in getattr(placed.fields, outcome).split()
    if field not in ("code", "method")  # JSON-RPC's own
]


def planted(placed, field, value):
    if field == "params" and not isinstance(value, dict):  # JSON-RPC has nothing else there
        value = {"note": value}
    return {**placed.instance, key_of(placed.fields.kind, field): value}


@pytest.mark.parametrize(("placed", "field", "outcome"), FIELDS)
async def test_a_word_in_any_field_has_the_outcome_that_is_told(placed, field, outcome):
    async def run(guard, word):
        said = f"say {word} now" if outcome == "labels" else word
        return await placed.send(guard, planted(placed, field, said))

    ours = "judged" if outcome == "labels" else outcome
    await prove(Channel(adapter="MCP", kind="metadata", name=field, run=run, outcome=ours))


SHAPES = {
    "a mapping": {"note": SENTENCE},
    "a key": {WORD: 1},
    "a list": [SENTENCE],
    "a mapping in a list": [{"note": WORD}],
    "a list of lists": [[SENTENCE]],
    "a label's name": {"note": {"name": WORD, "type": WORD, "level": WORD, "status": WORD}},
}


@pytest.mark.parametrize(("placed", "field", "outcome"), FIELDS)
async def test_no_field_of_another_form_hides_a_word(placed, field, outcome):
    """What the client gets was read; it may be none of the protocol's forms."""
    if placed.fields.kind is types.ErrorData and field == "message":
        return  # JSON-RPC has nothing but a text there
    for shape, value in SHAPES.items():
        for flagged in (OTHER, WORD):
            guard = FakeGuard([flagged])
            try:
                got = await placed.send(guard, planted(placed, field, value))
            except (Withheld, Refused):
                continue
            read = WORD in repr(guard.seen) and flagged == OTHER
            assert read or WORD not in got, shape


async def test_a_method_and_an_id_are_names_or_go_nowhere():
    with pytest.raises(Refused, match="is no name"):
        await asks_message(FakeGuard([OTHER]), {"method": SENTENCE})
    got = await asks_message(FakeGuard([OTHER]), {"id": SENTENCE, "method": "later/request"})
    assert "this id is no label" in got
    assert WORD not in await notes_message(FakeGuard([OTHER]), {"method": SENTENCE})


def named(union):
    return {each.__name__ for each in typing.get_args(union)}


def test_every_class_of_the_protocol_is_looked_at():
    ours = {placed.fields.kind.__name__ for placed in PLACED}
    ours |= {known.kind.__name__ for known in ENVELOPE} | CLIENTS
    found = {
        name
        for name, kind in vars(types).items()
        if isinstance(kind, type)
        and (issubclass(kind, BaseModel) or typing_extensions.is_typeddict(kind))
    }
    assert found - ours == set(), "say what becomes of it in tests/channels/_mcp_classes.py"


@pytest.mark.parametrize(
    "union",
    [
        "ServerResult",
        "ServerRequest",
        "ServerNotification",
        "ContentBlock",
        "SamplingMessageContentBlock",
        "InputRequest",
        "ElicitRequestParams",
    ],
)
def test_every_kind_of_a_union_is_placed_in_a_message(union):
    ours = {placed.fields.kind.__name__ for placed in PLACED}
    assert named(getattr(types, union)) - ours == set()
    assert named(types.JSONRPCMessage) == {known.kind.__name__ for known in ENVELOPE}


# ---- what goes on as it is, and what it costs

META = {
    "io.modelcontextprotocol/serverInfo": {"name": "a-server", "version": "1.2.3-beta"},
    "io.modelcontextprotocol/related-task": {"taskId": "task-1"},
    "progressToken": "call-7",
    "traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
}
FREE = {
    "a connection": (
        "initialize",
        {
            "protocolVersion": "2025-06-18",
            "capabilities": {"tools": {"listChanged": True}, "experimental": {}},
            "serverInfo": {"name": "a-server", "version": "1.2.3"},
        },
    ),
    "a discovery": (
        "server/discover",
        {
            "supportedVersions": ["2026-07-28", "2025-11-25"],
            "capabilities": {"tasks": {"list": {}, "requests": {"tools": {"call": {}}}}},
            "resultType": "complete",
            "ttlMs": 5,
            "cacheScope": "public",
            "_meta": META,
        },
    ),
    "an empty list": ("tools/list", {"tools": [], "nextCursor": "ab+/=" * 50, "_meta": META}),
    "an empty answer": ("ping", {}),
    "a task": (
        "tasks/get",
        {
            "taskId": "786512e2-9e0d-44bd-8f29-789f320fe840",
            "status": "working",
            "createdAt": "2025-11-25T10:30:00Z",
            "lastUpdatedAt": "2025-11-25T10:40:00.123+01:00",
            "ttl": 60000,
            "pollInterval": None,
        },
    ),
}


async def through(guard, method, result):
    async with Wire(guard) as wire:
        await wire.send(wire.client, id=1, method=method, params={"name": "find"})
        await wire.got(wire.server)
        await wire.send(wire.server, id=1, result=result)
        return (await wire.got(wire.client))["result"]


@pytest.mark.parametrize("case", list(FREE))
async def test_the_protocols_own_labels_are_not_judged(case):
    guard = FakeGuard()
    method, result = FREE[case]
    assert await through(guard, method, result) == result
    assert guard.seen == []


async def test_a_result_costs_one_judgement_with_all_that_the_protocol_adds():
    guard = FakeGuard()
    result = {"content": [TEXT], "isError": False, "resultType": "complete", "_meta": META}
    assert await through(guard, "tools/call", result) == result
    data = {"temperature": "mild", "at": ["a place"]}
    same = {"type": "text", "text": '{"temperature": "mild", "at": ["a place"]}'}
    result |= {"content": [same], "structuredContent": data}
    assert await through(guard, "tools/call", result) == result
    assert len(guard.seen) == 2


async def test_what_comes_again_beside_results_is_judged_once():
    info = {"name": "a", "version": "1", "title": "A server", "websiteUrl": "https://a.b"}
    async with Wire() as wire:
        for number in range(5):
            await wire.send(wire.client, id=number, method="tools/call", params={"name": "find"})
            await wire.got(wire.server)
            meta = {"io.modelcontextprotocol/serverInfo": info}
            result = {"content": [{**TEXT, "text": f"text {number}"}], "_meta": meta}
            await wire.send(wire.server, id=number, result=result)
            assert (await wire.got(wire.client))["result"] == result
            notice = {"progressToken": number, "progress": number, "message": "at work"}
            await wire.send(wire.server, method="notifications/progress", params=notice)
            assert (await wire.got(wire.client))["params"] == notice
    assert len(wire.guard.seen) == 5 + 2


@pytest.mark.parametrize(
    "text",
    [
        *("7", "-12.5", "2025-01-01", "2025-01-01T10:30:00Z", "10:30", "1/2", "a1,b2"),
        *("786512e2-9e0d-44bd-8f29-789f320fe840", "b7ad6b7169203331"),
    ],
)
def test_texts_without_a_word_are_not_judged_wherever_they_are(text):
    assert not holds_words({"data": {"message": [text]}})


@pytest.mark.parametrize(
    "text",
    [
        *("word", "bad", "dead-beef", "1 2", "b0mb", "7 days", "2025-01-01T now", "9" * 65),
        *("\u0661", "zqx1", "cafe\u0301", "\u200b", " ", "file:///bad", "0xbad"),
    ],
)
def test_and_everything_else_is(text):
    assert holds_words({"data": text})
    assert holds_words({"_meta": {"note": text}}, RESULT)
    assert holds_words({"message": text}, NOTICE)
    assert holds_words({"data": {text: 1}}, NOTICE)


def test_labels_count_in_their_places_alone():
    assert not holds_words({"level": "info", "logger": "my.module"}, NOTICE)
    assert holds_words({"level": "info"}, RESULT)
    assert holds_words({"data": {"level": "info"}}, NOTICE)
    assert holds_words({"level": {"level": "info"}}, NOTICE)
    assert holds_words({"_meta": {"serverInfo": {"name": "word"}}}, RESULT)
    assert holds_words({"taskId": "a" * 65}, RESULT)
    assert not holds_words({"nextCursor": "a" * 500}, RESULT)
    assert holds_words({"nextCursor": "a b"}, RESULT)


def test_very_deep_values_are_walked():
    deep = "word"
    for _ in range(50_000):
        deep = [deep]
    assert holds_words({"data": deep})


# ---- icons

SVG = "data:image/svg+xml;base64,PHN2Zy8+"
ICON = {"src": SVG, "mimeType": "image/svg+xml", "sizes": ["48x48", "any"], "theme": "dark"}


@pytest.mark.parametrize(
    "icon",
    [
        *({"src": SVG}, ICON, {"src": "https://a.b/c.png"}),
        *({**ICON, "sizes": "48x48"}, {**ICON, "sizes": None, "theme": None}),
    ],
)
async def test_icons_are_for_people_and_not_read(icon):
    info = {"name": "a", "version": "1", "icons": [icon]}
    tool = {**TOOL, "icons": [icon, icon]}
    guard = FakeGuard()
    for method, result in (
        ("initialize", {"serverInfo": info}),
        ("ping", {"_meta": {"io.modelcontextprotocol/serverInfo": info}}),
        ("tools/list", {"tools": [tool]}),
    ):
        assert await through(guard, method, result) == result
    assert len(guard.seen) == 1
    assert "svg" not in repr(guard.seen)


@pytest.mark.parametrize(
    "icon",
    [
        {"src": f"https://a.b/ {WORD}"},
        {"src": WORD},
        {"src": f"javascript:{WORD}"},
        {"src": "https://a.b", "mimeType": WORD},
        {"src": "https://a.b", "sizes": [WORD]},
        {"src": "https://a.b", "sizes": {"a": WORD}},
        {"src": "https://a.b", "theme": WORD},
        {"src": "https://a.b", "title": WORD},
        {WORD: 1},
        WORD,
    ],
)
async def test_icons_that_are_none_are_read(icon):
    for result in (
        {"tools": [{**TOOL, "icons": [icon]}]},
        {"tools": [], "_meta": {"io.modelcontextprotocol/serverInfo": {"icons": [icon]}}},
    ):
        guard = FakeGuard([WORD])
        assert WORD not in await answers("tools/list")(guard, result)
        assert WORD in repr(guard.seen)


# ---- pictures, errors


@pytest.mark.parametrize("form", ["base64", "data URL", "one key"])
async def test_a_picture_in_structured_content_is_seen_though_a_text_says_the_same(form):
    picture = b64(png())
    data = {"base64": {"a": picture}, "data URL": {"a": f"data:image/png;base64,{picture}"}}
    structured = data.get(form, {"result": picture})
    text = picture if form == "one key" else str(structured).replace("'", '"')
    guard = FakeGuard()
    result = {"content": [{"type": "text", "text": text}], "structuredContent": structured}
    assert await through(guard, "tools/call", result) == result
    assert any(part["type"] == "image" for chat in guard.seen for part in chat[0]["content"])


async def test_a_picture_in_an_errors_data_goes_on_as_it_was_judged():
    buffer = io.BytesIO()
    Image.new("P", (40, 30)).save(buffer, "PNG")
    guard = FakeGuard()
    async with Wire(guard) as wire:
        await wire.send(wire.client, id=1, method="ping")
        await wire.got(wire.server)
        data = {"screen": b64(buffer.getvalue())}
        await wire.send(wire.server, id=1, error={"code": -5, "message": "hi", "data": data})
        got = (await wire.got(wire.client))["error"]
    [part] = [part for part in guard.seen[0][0]["content"] if part["type"] == "image"]
    assert got["data"] == {"screen": b64(part["image"])} != data
    assert (got["code"], got["message"]) == (-5, "hi")


@pytest.mark.parametrize("error", [{"message": WORD}, {"message": "hi", "data": {"a": WORD}}])
async def test_a_flagged_error_keeps_its_code_alone(error):
    async with Wire(FakeGuard([WORD])) as wire:
        await wire.send(wire.client, id=1, method="ping")
        await wire.got(wire.server)
        await wire.send(wire.server, id=1, error={"code": -5, **error})
        answer = await wire.got(wire.client)
    assert answer["error"] == {"code": -5, "message": RESULT_WITHHELD}


@pytest.mark.parametrize("case", ["sampling", "elicitation", "later"])
async def test_what_a_server_asks_is_refused_to_it(case):
    message = {"role": "user", "content": {**TEXT, "text": WORD}}
    method, params = {
        "sampling": ("sampling/createMessage", {"messages": [message]}),
        "elicitation": ("elicitation/create", {"message": WORD, "requestedSchema": {}}),
        "later": ("later/request", {"said": WORD}),
    }[case]
    async with Wire(FakeGuard([WORD])) as wire:
        await wire.send(wire.server, id="s1", method=method, params=params)
        answer = await wire.got(wire.server)
        assert (answer["id"], answer["error"]["message"]) == ("s1", RESULT_WITHHELD)
        await wire.send(wire.server, method="notifications/tools/list_changed")
        assert (await wire.got(wire.client))["method"] == "notifications/tools/list_changed"


async def test_a_call_with_a_bad_argument_is_answered_and_its_server_not_asked():
    async with Wire() as wire:
        params = {"name": "find", "arguments": {"q": "bad"}}
        await wire.send(wire.client, id=1, method="tools/call", params=params)
        assert (await wire.got(wire.client))["result"]["isError"]
        await wire.send(wire.client, id=2, method="ping")
        assert (await wire.got(wire.server))["method"] == "ping"


async def test_a_prompts_message_goes_on_with_all_that_is_beside_it():
    message = {"role": "user", "content": TEXT, "name": "ann", "_meta": {"a": "b"}}
    plain = {"role": "assistant", "content": TEXT}
    guard = FakeGuard(steer=["ann"])
    got = await through(guard, "prompts/get", {"messages": [plain, message]})
    assert got["messages"][1:] == [plain, message]
    assert got["messages"][0]["content"]["text"].startswith("What follows is data")
