"""The ASGI middleware: all of a request that the app behind it may show to a model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import httpx
from starlette.applications import Starlette
from starlette.datastructures import FormData
from starlette.responses import JSONResponse
from starlette.routing import Route

from guardrail.asgi import GuardedRoute, GuardrailASGIMiddleware
from tests.channels._bodies import BASES, CHAT, PATHS, Way, words
from tests.channels._chats import CHATS
from tests.channels._responses import RESPONSE_WAYS
from tests.channels._ruled import Ruled
from tests.channels.contract import Channel, Kind, LibraryClass, Outcome, Refused

if TYPE_CHECKING:
    from collections.abc import Callable

    from starlette.requests import Request

    from guardrail.testing import FakeGuard

ADAPTER = "ASGI"


class Behind:
    """An app whose every route shows its model the whole request, but for its headers."""

    def __init__(self, guard: FakeGuard) -> None:
        self.seen: list[Any] = []
        paths = [*PATHS, "/form", "/one", "/selected", "/uploaded", "/users/{name}"]
        self.app = Starlette(routes=[Route(p, self.answer, methods=["GET", "POST"]) for p in paths])
        routes = [
            *PATHS,
            "/form",
            "/users/{name}",
            GuardedRoute("/one", fields=["question", "file"]),
            GuardedRoute("/selected", select=lambda scope, body: body["question"]),
            GuardedRoute("/uploaded", select=_question),
        ]
        # A violation is raised, so that no other error is taken for one.
        self.app.add_middleware(
            GuardrailASGIMiddleware, guard=Ruled(guard), routes=routes, on_flag="raise"
        )

    async def answer(self, request: Request) -> JSONResponse:
        held: Any = await request.body()
        if request.url.path in ("/form", "/one", "/uploaded"):
            async with request.form() as form:
                held = [
                    (key, item if isinstance(item, str) else (item.filename, item.content_type))
                    for key, item in form.multi_items()
                ]
        shown = held.decode() if isinstance(held, bytes) else held
        self.seen.append((request.url.path, dict(request.query_params), shown))
        return JSONResponse({})


def _question(_scope: Any, form: Any) -> Any:
    assert isinstance(form, FormData)
    return form["question"]


async def sent(guard: FakeGuard, path: str, method: str = "POST", **request: Any) -> str:
    """What the app got of a request."""
    behind = Behind(guard)
    transport = httpx.ASGITransport(behind.app)
    async with httpx.AsyncClient(transport=transport, base_url="http://app") as client:
        answer = await client.request(method, path, **request)
    if answer.status_code >= 400:
        assert 400 <= answer.status_code < 500, answer.text
        raise Refused(answer.text)
    return repr(behind.seen)


def _of_way(way: Way) -> Channel:
    async def run(guard: FakeGuard, word: str) -> str:
        return await sent(guard, way.path, json=way.body(word))

    name = f"{way.path} {way.kind}, {way.name}"
    return Channel(adapter=ADAPTER, kind=way.kind, name=name, run=run, outcome=way.relayed)


def _request(
    kind: Kind,
    name: str,
    path: str,
    request: Callable[[str], dict[str, Any]],
    outcome: Outcome = "judged",
) -> Channel:
    async def run(guard: FakeGuard, word: str) -> str:
        given = request(word)
        return await sent(guard, given.pop("path", path), given.pop("method", "POST"), **given)

    return Channel(adapter=ADAPTER, kind=kind, name=f"{kind}, {name}", run=run, outcome=outcome)


PNG = bytes.fromhex(
    "89504e470d0a1a0a0000000d49484452000000020000000208020000 00fdd49a73".replace(" ", "")
    + "0000001049444154789c63606060f80fc6100a0023c803fdb3b4890800000000"
    + "49454e44ae426082"
)


def _file(word: str, **about: str) -> dict[str, Any]:
    named = {"name": "a.png", "kind": "image/png", "field": "file", **about}
    return {
        "data": {"question": "hello"},
        "files": {named["field"]: (named["name"], PNG, named["kind"])},
    }


REQUESTS = [
    _request("user's message", "form", "/form", lambda w: {"data": {"question": w}}),
    _request("user's message", "multipart form", "/form", lambda w: _file(w) | {"data": {"q": w}}),
    _request("user's message", "chosen field", "/one", lambda w: {"data": {"question": w}}),
    _request("user's message", "selected JSON", "/selected", lambda w: {"json": {"question": w}}),
    _request("user's message", "selected field", "/uploaded", lambda w: {"data": {"question": w}}),
    _request(
        "history",
        "name in a selected chat",
        "/selected",
        lambda w: {"json": {"question": [{"role": "user", "content": "a", "name": w}]}},
    ),
    _request("metadata", "name of a field", "/form", lambda w: {"data": {words(w): "hello"}}),
    _request("metadata", "name of a file", "/form", lambda w: _file(w, name=words(w))),
    _request("metadata", "name of a chosen file", "/one", lambda w: _file(w, name=words(w))),
    _request("metadata", "field of a file", "/form", lambda w: _file(w, field=words(w))),
    _request(
        "metadata",
        "media type of a file",
        "/form",
        lambda w: _file(w, kind=f"image/png; a={words(w)}"),
    ),
    _request("resource", "file of words", "/form", lambda w: {"files": {"a": (w, w)}}, "refused"),
    _request("settings", "query", CHAT, lambda w: {"json": BASES[CHAT], "params": {"system": w}}),
    _request(
        "settings",
        "name in the query",
        CHAT,
        lambda w: {"json": BASES[CHAT], "params": {words(w): "1"}},
    ),
    _request(
        "settings",
        "query without a name",
        "",
        lambda w: {"json": BASES[CHAT], "path": f"{CHAT}?{w}"},
    ),
    _request(
        "settings", "query of a form", "/form", lambda w: {"data": {"q": "a"}, "params": {"b": w}}
    ),
    _request(
        "settings",
        "query beside what is selected",
        "/selected",
        lambda w: {"json": {"question": "a"}, "params": {"b": w}},
    ),
    _request(
        "settings",
        "label in the query that is none",
        CHAT,
        lambda w: {"json": BASES[CHAT], "params": {"api-version": words(w)}},
    ),
    _request(
        "user's message", "query alone", CHAT, lambda w: {"method": "GET", "params": {"q": w}}
    ),
    _request(
        "settings",
        "path",
        "",
        lambda w: {"path": f"/users/{words(w)}", "json": BASES[CHAT]},
    ),
    _request(
        "settings", "path alone", "", lambda w: {"path": f"/users/{words(w)}", "method": "GET"}
    ),
]
CHANNELS: list[Channel] = [*map(_of_way, (*CHATS, *RESPONSE_WAYS)), *REQUESTS]
CLASSES: list[LibraryClass] = []
