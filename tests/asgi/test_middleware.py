from __future__ import annotations

import asyncio
import base64
import gc
import io
import json
import threading

import pytest
from fastapi import FastAPI, Request
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import PlainTextResponse
from starlette.routing import Mount, Route, WebSocketRoute
from starlette.testclient import TestClient

from guardrail.asgi import GuardedRoute, GuardrailASGIMiddleware
from guardrail.asgi.content import Body
from guardrail.errors import (
    ConfigurationError,
    DetectorError,
    GuardrailViolation,
    QueueFullError,
    RequestTimeoutError,
)
from guardrail.inputs import images
from guardrail.policy import CAUTION, REFUSAL, Limits, Policy
from guardrail.types import Action


def user(text):
    return {"messages": [{"role": "user", "content": text}]}


def code_of(response):
    return response.json()["error"]["code"]


# --- what is let through --------------------------------------------------------------------------


def test_a_passed_request_reaches_the_app_byte_for_byte_with_its_verdict(echo, word_guard):
    app = echo(word_guard())
    body = b'{ "messages" : [{"role": "user", "content": "h\\u00e9llo"}],  "top_p": 1.50 }'
    response = app.post(content=body, headers={"content-type": "application/json"})
    assert response.json() == {"reached": True}
    assert app.bodies == [body]
    assert app.verdicts[0].action is Action.PASS


texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
plain = st.none() | st.booleans() | st.integers(-(10**20), 10**20) | st.floats(allow_nan=False)
values = st.recursive(
    plain.filter(lambda x: x not in (float("inf"), float("-inf"))) | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(extra=values, said=texts, ascii_only=st.booleans(), indent=st.none() | st.integers(0, 3))
def test_any_accepted_body_reaches_the_app_byte_for_byte(
    echo, word_guard, extra, said, ascii_only, indent
):
    guard = word_guard(Policy(on_flag="annotate", unsteerable="pass"))
    app = echo(guard, [GuardedRoute("/chat", unchecked=["extra"])])
    body = json.dumps({**user(said), "extra": extra}, ensure_ascii=ascii_only, indent=indent)
    sent = body.encode("utf-8")
    response = app.post(content=sent, headers={"content-type": "application/json"})
    assert response.status_code == 200
    assert app.bodies == [sent]


@pytest.mark.parametrize(
    ("method", "path"), [("POST", "/free"), ("PUT", "/chat"), ("POST", "/nowhere")]
)
def test_other_routes_and_methods_pass_untouched(echo, word_guard, ask, method, path):
    guard = word_guard()
    app = echo(guard, [GuardedRoute("/chat", methods=["POST"])])
    response = ask(app.app, method, path, content=b"bad \xff", headers={"content-encoding": "gzip"})
    assert response.status_code == (404 if path == "/nowhere" else 200)
    assert guard.requests == []
    assert app.verdicts == ([] if path == "/nowhere" else ["none"])


@pytest.mark.parametrize("method", ["GET", "HEAD", "OPTIONS", "DELETE"])
def test_a_request_that_needs_no_body_and_has_none_passes_untouched(echo, word_guard, ask, method):
    guard, lines = word_guard(), []
    app = echo(guard, audit=lambda *line: lines.append(line))
    assert ask(app.app, method, "/chat").status_code == 200
    assert (guard.requests, app.bodies, app.verdicts, lines) == ([], [b""], [None], [])


@pytest.mark.parametrize("method", ["GET", "HEAD", "OPTIONS", "DELETE", "QUERY", "PUT"])
def test_a_body_is_checked_whatever_the_method(word_guard, ask, method):
    reached = []

    async def answering(scope, receive, send):
        reached.append((await receive())["body"])
        await PlainTextResponse("reached")(scope, receive, send)

    app = GuardrailASGIMiddleware(answering, guard=word_guard(), routes=["/chat"])
    assert ask(app, method, "/chat", json=user("bad")).status_code == 400
    assert ask(app, method, "/chat", json=user("hello")).status_code == 200
    assert len(reached) == 1


def test_a_method_that_needs_a_body_is_refused_without_one(echo, word_guard, ask):
    assert ask(echo(word_guard()).app, "POST", "/chat").status_code == 415


def test_the_body_of_a_get_request_is_bounded(echo, word_guard, ask):
    app = echo(word_guard(), max_body_bytes=9)
    assert ask(app.app, "GET", "/chat", json=user("hello")).status_code == 413


def _multipart_in_json(body):
    part = b'--x\r\nContent-Disposition: form-data; name="a"\r\n\r\nhi\r\n--x--\r\n '
    hidden = part[: len(part) // 2 * 2].decode("utf-16-le")
    return ("\n" + json.dumps({**body, "user": hidden}, ensure_ascii=False)).encode("utf-16-le")


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16-be", "utf-16-le", "utf-32-be", "utf-32-le"])
@pytest.mark.parametrize("before", ["", " ", "\n"])
def test_json_that_says_it_is_a_form_does_not_reach_an_app_that_reads_json(
    word_guard, ask, encoding, before
):
    async def endpoint(request):
        return PlainTextResponse((await request.json())["messages"][0]["content"])

    app = Starlette(routes=[Route("/chat", endpoint, methods=["POST"])])
    app.add_middleware(GuardrailASGIMiddleware, guard=word_guard(), routes=["/chat"])
    body = (before + json.dumps({**user("bad"), "user": "=hello"})).encode(encoding)
    for kind in ("application/x-www-form-urlencoded", "multipart/form-data; boundary=x"):
        for content in (body, _multipart_in_json(user("bad"))):
            response = ask(app, "POST", "/chat", content=content, headers={"content-type": kind})
            assert response.status_code == 400


def test_an_app_with_a_root_path_of_its_own_is_guarded_from_outside_too(word_guard, ask):
    app = FastAPI()
    app.root_path = "/api"  # as FastAPI(root_path=...) has it

    @app.post("/chat")
    async def chat(body: dict):
        return body

    outside = GuardrailASGIMiddleware(CORSMiddleware(app), guard=word_guard(), routes=["/chat"])
    for path in ("/chat", "/api/chat"):
        assert ask(outside, "POST", path, json=user("hello")).status_code == 200
        assert ask(outside, "POST", path, json=user("bad")).status_code == 400


def test_a_route_with_parameters_is_guarded(echo, word_guard):
    app = echo(word_guard(), ["/users/{name}/chat"])
    assert app.post("/users/ann/chat", json=user("bad")).status_code == 400
    assert app.post("/chat", json=user("bad")).status_code == 200


def test_a_mounted_app_is_guarded_by_the_paths_below_its_mount(echo, word_guard, ask):
    inner = echo(word_guard())
    outer = Starlette(routes=[Mount("/sub", app=inner.app)])
    assert ask(outer, "POST", "/sub/chat", json=user("bad")).status_code == 400
    assert ask(outer, "POST", "/sub/chat", json=user("hello")).status_code == 200
    assert inner.verdicts[0].action is Action.PASS


def test_an_outer_app_guards_a_mounted_one_by_the_whole_path(echo, word_guard, ask):
    inner = echo(word_guard(), ["/never"])
    outer = Starlette(routes=[Mount("/sub", app=inner.app)])
    outer.add_middleware(GuardrailASGIMiddleware, guard=word_guard(), routes=["/sub/chat"])
    assert ask(outer, "POST", "/sub/chat", json=user("bad")).status_code == 400
    assert ask(outer, "POST", "/sub/free", json=user("bad")).status_code == 200
    assert [json.loads(body) for body in inner.bodies] == [user("bad")]


def test_it_works_between_middlewares_that_read_the_request_themselves(echo, word_guard):
    seen = []

    async def reading(request, call_next):
        body = await request.body()
        response = await call_next(request)
        seen.append((body, request.state.guardrail_verdict.action))
        return response

    app = echo(word_guard())
    app.app.add_middleware(BaseHTTPMiddleware, dispatch=reading)  # outside
    app.app.user_middleware.append(Middleware(BaseHTTPMiddleware, dispatch=reading))  # inside
    assert app.post(json=user("hello")).status_code == 200
    assert seen == [(app.bodies[0], Action.PASS)] * 2
    assert app.post(json=user("bad")).status_code == 400


async def test_the_body_is_not_kept_while_the_app_answers(word_guard):
    def bodies():
        gc.collect()
        return [o for o in gc.get_objects() if type(o) is Body]

    left, earlier = [], bodies()  # other tests' tracebacks may keep theirs

    async def answering(scope, receive, send):
        await receive()
        left.extend(body for body in bodies() if not any(body is each for each in earlier))

    async def receive():
        return {"type": "http.request", "body": json.dumps(user("hello")).encode()}

    app = GuardrailASGIMiddleware(answering, guard=word_guard(), routes=["/chat"])
    kind = [(b"content-type", b"application/json")]
    await app({"type": "http", "method": "POST", "path": "/chat", "headers": kind}, receive, None)
    assert left == []


def test_websockets_pass_untouched(word_guard):
    async def endpoint(socket):
        await socket.accept()
        await socket.send_text(await socket.receive_text())
        await socket.close()

    app = Starlette(routes=[WebSocketRoute("/chat", endpoint)])
    app.add_middleware(GuardrailASGIMiddleware, guard=word_guard(), routes=["/chat"])
    with TestClient(app).websocket_connect("/chat") as socket:
        socket.send_text("bad")
        assert socket.receive_text() == "bad"


# --- what is not ----------------------------------------------------------------------------------


def test_a_flagged_request_never_reaches_the_app(echo, word_guard):
    app = echo(word_guard(), status=403)
    response = app.post(json=user("bad"))
    assert (response.status_code, code_of(response)) == (403, "content_filter")
    assert response.json()["error"]["message"] == REFUSAL
    assert app.bodies == []


def test_a_fastapi_app_refuses_in_its_own_form(word_guard, ask):
    app = FastAPI()
    app.add_middleware(GuardrailASGIMiddleware, guard=word_guard(), routes=["/chat"])

    @app.post("/chat")
    async def chat(request: Request, body: dict):
        return {"verdict": request.state.guardrail_verdict.to_dict()["action"], "body": body}

    assert ask(app, "POST", "/chat", json=user("bad")).json() == {"detail": REFUSAL}
    reached = ask(app, "POST", "/chat", json=user("hello")).json()
    assert reached == {"verdict": "pass", "body": user("hello")}


def test_an_apps_handler_for_the_status_answers_with_the_verdict(echo, word_guard):
    def handler(request, error):
        return PlainTextResponse(f"score {request.state.guardrail_verdict.score}", 418)

    app = echo(word_guard(), exception_handlers={400: handler})
    response = app.post(json=user("bad"))
    assert (response.status_code, response.text) == (418, "score 0.5")


def test_an_app_that_is_wrapped_by_hand_answers_in_its_own_form(word_guard, ask):
    app = GuardrailASGIMiddleware(FastAPI(), guard=word_guard(), routes=["/chat"])
    assert ask(app, "POST", "/chat", json=user("bad")).json() == {"detail": REFUSAL}


def test_raise_hands_the_violation_to_the_middleware_outside(echo, word_guard):
    caught = []

    class Catching:
        def __init__(self, app):
            self.app = app

        async def __call__(self, scope, receive, send):
            try:
                await self.app(scope, receive, send)
            except GuardrailViolation as error:
                caught.append(error.verdict.action)
                await PlainTextResponse("caught")(scope, receive, send)

    app = echo(word_guard(), on_flag="raise")
    app.app.add_middleware(Catching)
    assert app.post(json=user("bad")).text == "caught"
    assert caught == [Action.FLAG]


async def _later(scope, verdict):
    return PlainTextResponse(f"{scope['path']} {verdict.action}", 418)


@pytest.mark.parametrize(
    "on_flag",
    [_later, lambda scope, verdict: PlainTextResponse(f"{scope['path']} {verdict.action}", 418)],
)
def test_a_callable_answers_flagged_requests(echo, word_guard, on_flag):
    response = echo(word_guard(), on_flag=on_flag).post(json=user("bad"))
    assert (response.status_code, response.text) == (418, "/chat flag")


@pytest.mark.parametrize(
    ("policy", "options"),
    [
        (Policy(on_flag="annotate"), {}),
        (Policy(), {"on_flag": "annotate"}),
        (Policy(), {"policy": Policy(on_flag="annotate")}),
    ],
)
def test_annotated_requests_pass_with_their_verdict(echo, word_guard, policy, options):
    app = echo(word_guard(policy), **options)
    assert app.post(json=user("bad")).status_code == 200
    assert app.verdicts[0].action is Action.FLAG


def test_an_explicit_error_outdoes_a_policy_that_annotates(echo, word_guard):
    app = echo(word_guard(Policy(on_flag="annotate")), on_flag="error")
    assert app.post(json=user("bad")).status_code == 400


def test_an_unknown_on_flag_is_refused(word_guard):
    with pytest.raises(ConfigurationError, match="'refuse'"):
        GuardrailASGIMiddleware(None, guard=word_guard(), routes=["/"], on_flag="refuse")


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        ({"content": b"{", "headers": {"content-type": "application/json"}}, 400),
        ({"json": {"question": "bad"}}, 422),
        ({"json": {"messages": [{"role": "user", "content": [{"type": "video"}]}]}}, 422),
        ({"json": {"messages": []}}, 422),
        ({"json": user("x" * 21)}, 413),
        ({"content": b"bad", "headers": {"content-type": "text/plain"}}, 415),
        ({"content": b"bad"}, 415),
        ({"json": user("hello"), "headers": {"content-encoding": "gzip"}}, 415),
        ({"data": {"a": "x" * 1000}}, 413),
        ({"files": {"a": ("x.pdf", b"bad", "application/pdf")}}, 422),
        ({"files": {"a": ("x.png", b"no picture", "image/png")}}, 422),
        ({"files": {"a": ("x.mp4", b"no video", "video/mp4")}}, 422),
    ],
)
def test_what_cannot_be_read_is_an_error_and_never_reaches_the_app(
    echo, word_guard, request_, status
):
    app = echo(word_guard(Policy(limits=Limits(text_chars=20))), max_body_bytes=900)
    assert app.post(**request_).status_code == status
    assert app.bodies == []


@pytest.mark.parametrize(
    "part",
    [
        {"type": "image", "image": "/etc/passwd"},
        {"type": "image", "path": "/etc/passwd"},
        {"type": "image", "url": "file:///etc/passwd"},
        {"type": "image_url", "image_url": {"url": "file:///etc/passwd"}},
        {"type": "image_url", "image_url": {"url": "/etc/passwd"}},
        {"type": "input_image", "image_url": "../secret.png"},
        {"type": "image_url", "image_url": {"url": "http://127.0.0.1:9/x.png"}},
        {"type": "image_url", "image_url": {"url": "https://example.com/x.png"}},
        {"type": "video_url", "video_url": {"url": "file:///etc/passwd"}},
        {"type": "video_url", "video_url": {"url": "https://example.com/x.mp4"}},
        {"type": "video", "video": "/etc/passwd"},
        {"type": "video", "video": ["/etc/passwd"]},
        {"type": "video", "path": "/etc/passwd"},
        {"type": "input_video", "video_url": "http://127.0.0.1:9/x.mp4"},
    ],
)
@pytest.mark.parametrize("mode", ["enforce", "shadow"])
def test_neither_files_nor_addresses_that_a_client_names_are_opened(
    echo, word_guard, monkeypatch, part, mode
):
    opened = []
    monkeypatch.setattr("guardrail.inputs.sources.os.open", lambda *a: opened.append(a))
    monkeypatch.setattr("guardrail.inputs.fetch._answer", lambda *a: opened.append(a))
    generous = Policy(local_files=True, allowed_hosts={"example.com", "127.0.0.1"}, mode=mode)
    app = echo(word_guard(generous))
    body = {"messages": [{"role": "user", "content": [part]}]}
    assert app.post(json=body).status_code == (422 if mode == "enforce" else 200)
    assert app.verdicts == ([] if mode == "enforce" else [None])
    assert opened == []


@pytest.mark.parametrize("kind", ["video/mp4", "application/octet-stream"])
@pytest.mark.parametrize(("words", "status"), [("look", 200), ("bad", 400)])
def test_an_uploaded_video_is_read_with_the_words_beside_it(
    echo, word_guard, mp4, kind, words, status
):
    guard = word_guard()
    app = echo(guard)
    files = {"prompt": (None, words), "clip": ("a.mp4", mp4, kind)}
    assert app.post(files=files).status_code == status
    (request,) = guard.requests
    assert [len(video.clip.frames) for video in request.videos] == [2]


def test_a_video_in_a_chat_is_within_the_bodys_bound(echo, word_guard, mp4):
    url = f"data:video/mp4;base64,{base64.b64encode(mp4).decode()}"
    part = {"type": "video_url", "video_url": {"url": url}}
    body = {"messages": [{"role": "user", "content": [part]}]}
    assert echo(guard := word_guard()).post(json=body).status_code == 200
    assert guard.requests[0].modality == "video"
    assert echo(word_guard(), max_body_bytes=len(mp4)).post(json=body).status_code == 413


def _turned():
    file = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (6, 4), "red").save(file, "JPEG", exif=exif)
    return file.getvalue()


def _transparent():
    file = io.BytesIO()
    Image.new("RGBA", (4, 4)).save(file, "PNG")
    return file.getvalue()


def _upload(data):
    return {"files": {"prompt": (None, "look"), "shot": ("a", data, "image/png")}}


def _in_json(data):
    url = f"data:{'image/png' if data[1:4] == b'PNG' else 'image/jpeg'};base64,"
    part = {"type": "image_url", "image_url": {"url": url + base64.b64encode(data).decode()}}
    return {"json": {"messages": [{"role": "user", "content": [part]}]}}


SELECTED = [
    GuardedRoute(
        "/chat", select=lambda scope, body: {"role": "user", "content": [{"type": "image", **body}]}
    )
]


def _own_form(data):
    return {"json": {"data": base64.b64encode(data).decode()}}


@pytest.mark.parametrize(
    ("request_of", "routes"),
    [(_upload, ["/chat"]), (_in_json, ["/chat"]), (_own_form, SELECTED)],
    ids=["form", "chat", "select"],
)
@pytest.mark.parametrize("data", [_turned(), _transparent()], ids=["turned", "transparent"])
def test_a_picture_with_two_readings_is_refused_since_the_app_gets_the_same_bytes(
    echo, word_guard, request_of, routes, data
):
    app = echo(guard := word_guard(Policy(pictures="canonical")), routes)
    answer = app.post(**request_of(data))
    assert answer.status_code == 422
    assert "two ways: save it as an 8-bit RGB PNG" in answer.text
    assert (app.bodies, guard.requests) == ([], [])
    shadow = echo(word_guard(Policy(mode="shadow")), routes)
    assert shadow.post(**request_of(data)).status_code == 200
    assert shadow.verdicts[0].would_be is Action.PASS  # and not unchecked


async def test_pictures_that_wait_for_a_decoder_leave_the_loops_threads_to_others(
    echo, word_guard, asking, png_of, monkeypatch
):
    leave, waiting, real = threading.Event(), [], images._opened

    def opened(*args):
        waiting.append(1)
        assert leave.wait(60)
        return real(*args)

    app, picture = echo(word_guard()), _in_json(png_of(Image.new("RGB", (4, 4))))["json"]
    monkeypatch.setattr(images, "_opened", opened)
    async with asyncio.timeout(60):
        asks = [asking(app.app, "POST", "/chat", json=picture) for _ in range(40)]
        tasks = [asyncio.create_task(ask) for ask in asks]
        try:
            while len(waiting) < 2:
                await asyncio.sleep(0.005)
            assert await asyncio.wait_for(asyncio.to_thread(sum, [1, 2]), 20) == 3
        finally:
            leave.set()
            await asyncio.gather(*tasks, return_exceptions=True)


@pytest.mark.parametrize(
    ("trouble", "status"),
    [
        (QueueFullError("full"), 503),
        (RequestTimeoutError("late"), 504),
        (DetectorError("broken"), 503),
        (MemoryError("no memory"), 503),
    ],
)
def test_an_outage_of_the_guard_is_no_finding_and_lets_nothing_through(
    echo, word_guard, trouble, status
):
    guard = word_guard()
    guard.trouble = trouble
    app = echo(guard)
    response = app.post(json=user("hello"))
    assert (response.status_code, response.json()["error"]["type"]) == (status, "server_error")
    assert response.headers.get("retry-after") == ("1" if status == 503 else None)
    assert app.bodies == []


@pytest.mark.parametrize("on_flag", ["error", "annotate", _later])
def test_a_failed_detector_under_fail_closed_is_an_outage_however_flags_are_handled(
    echo, word_guard, on_flag
):
    class Failing(word_guard):
        def with_policy(self, policy):
            return Failing(policy)

        async def acheck(self, value, **options):
            closed = self.policy.fail == "closed"
            would_be = Action.FLAG if closed else Action.PASS
            action = would_be if self.policy.mode == "enforce" else Action.PASS
            return self.verdict(action, would_be, score=None, reason="detector_failed")

    app = echo(Failing(), on_flag=on_flag)
    response = app.post(json=user("hello"))
    assert (response.status_code, code_of(response)) == (503, "unavailable")
    assert app.bodies == []
    for policy in (Policy(fail="open"), Policy(mode="shadow")):
        assert echo(Failing(policy), on_flag=on_flag).post(json=user("hello")).status_code == 200


# --- shadow mode ----------------------------------------------------------------------------------


def test_shadow_mode_lets_everything_pass_and_keeps_the_verdict(echo, word_guard):
    app = echo(word_guard(Policy(mode="shadow", unsteerable="flag")))
    for word in ("bad", "odd"):
        assert app.post(json=user(word)).status_code == 200
    assert [verdict.would_be for verdict in app.verdicts] == [Action.FLAG, Action.STEER]


@pytest.mark.parametrize(
    "request_",
    [
        {"content": b"no json", "headers": {"content-type": "application/json"}},
        {"content": b"bad", "headers": {"content-type": "text/plain"}},
        {"content": b"x" * 5000, "headers": {"content-type": "application/json"}},
        {"json": {"question": "bad"}},
    ],
)
def test_shadow_mode_lets_pass_what_it_cannot_read_and_says_so(echo, word_guard, request_, caplog):
    lines = []
    app = echo(
        word_guard(Policy(mode="shadow")),
        max_body_bytes=900,
        audit=lambda *line: lines.append(line),
    )
    assert app.post(**request_).status_code == 200
    assert app.verdicts == [None]
    assert lines == [(None, {"event": "call", "done": "unchecked"})]
    assert "unchecked" in caplog.text
    if "content" in request_:
        assert app.bodies == [request_["content"]]


@pytest.mark.parametrize("policy", [Policy(mode="shadow"), Policy(fail="open")])
@pytest.mark.parametrize("trouble", [RuntimeError("broken"), DetectorError("broken")])
def test_shadow_mode_and_failing_open_survive_an_outage(echo, word_guard, policy, trouble):
    guard = word_guard(policy)
    guard.trouble = trouble
    app = echo(guard)
    assert app.post(json=user("hello")).status_code == 200
    assert app.verdicts == [None]


@pytest.mark.parametrize("body", [{"question": "bad"}, user("x" * 21)])
def test_failing_open_lets_nothing_else_pass(echo, word_guard, body):
    app = echo(word_guard(Policy(fail="open", limits=Limits(text_chars=20))))
    assert app.post(json=body).status_code in (413, 422)
    assert app.bodies == []


# --- what would be steered ------------------------------------------------------------------------


def test_a_caution_goes_with_a_chat_that_would_be_steered(echo, word_guard):
    app = echo(word_guard())
    app.post(json={**user("odd"), "temperature": 0.5})
    assert json.loads(app.bodies[0]) == {
        "messages": [{"role": "system", "content": CAUTION}, {"role": "user", "content": "odd"}],
        "temperature": 0.5,
    }
    assert app.headers[0].getlist("content-length") == [str(len(app.bodies[0]))]
    assert app.verdicts[0].would_be is Action.STEER


def test_a_caution_replaces_a_chunked_bodys_transfer_encoding(echo, word_guard):
    async def chunks():
        yield json.dumps(user("odd")).encode()

    app = echo(word_guard())
    headers = {"content-type": "application/json", "transfer-encoding": "chunked"}
    app.post(content=chunks(), headers=headers)
    assert "transfer-encoding" not in app.headers[0]
    assert app.headers[0]["content-length"] == str(len(app.bodies[0]))


@pytest.mark.parametrize(
    ("route", "request_"),
    [
        (GuardedRoute("/chat"), {"files": {"prompt": (None, "odd")}}),
        (
            GuardedRoute("/chat", select=lambda scope, body: body["q"]),
            {"json": {"q": "odd"}},
        ),
    ],
)
def test_without_a_place_for_a_caution_such_a_request_counts_as_flagged(
    echo, word_guard, route, request_
):
    app = echo(word_guard(), [route])
    assert app.post(**request_).status_code == 400
    assert app.bodies == []
    passing = echo(word_guard(Policy(unsteerable="pass")), [route])
    assert passing.post(**request_).status_code == 200


@pytest.mark.parametrize(("unsteerable", "status"), [("flag", 400), ("pass", 200)])
def test_the_policy_may_flag_or_pass_what_would_be_steered(echo, word_guard, unsteerable, status):
    app = echo(word_guard(Policy(unsteerable=unsteerable)))
    assert app.post(json=user("odd")).status_code == status
    assert [json.loads(body) for body in app.bodies] == [user("odd")] * (status == 200)


# --- what clients and audits are told -------------------------------------------------------------


@pytest.mark.parametrize(("word", "action"), [("hello", "pass"), ("bad", "flag"), ("odd", "steer")])
def test_a_header_tells_the_action_where_one_is_wanted(echo, word_guard, word, action):
    response = echo(word_guard(), header="X-Guardrail-Action").post(json=user(word))
    assert response.headers["x-guardrail-action"] == action
    assert "x-guardrail-action" not in echo(word_guard()).post(json=user(word)).headers


@pytest.mark.parametrize(("word", "done"), [("hello", "pass"), ("bad", "flag"), ("odd", "caution")])
def test_what_was_done_is_audited_once(echo, word_guard, word, done):
    lines = []
    echo(word_guard(), audit=lambda *line: lines.append(line)).post(json=user(word))
    assert [facts for _, facts in lines] == [{"event": "call", "done": done}]


# --- the guard behind it --------------------------------------------------------------------------


def test_the_guard_that_checks_is_closed_when_the_app_shuts_down_and_made_anew(echo, word_guard):
    guard = word_guard()
    app = echo(guard)
    for count in (1, 2):
        with TestClient(app.app) as client:
            assert client.post("/chat", json=user("hello")).status_code == 200
            assert [child.closed for child in guard.children] == [True] * (count - 1) + [False]
        assert [child.closed for child in guard.children] == [True] * count
    assert not guard.closed


def test_it_can_be_closed_where_no_shutdown_is_told(word_guard, ask):
    async def answering(scope, receive, send):
        await PlainTextResponse("reached")(scope, receive, send)

    guard = word_guard()
    app = GuardrailASGIMiddleware(answering, guard=guard, routes=["/chat"])
    app.close()
    app.close()
    assert [child.closed for child in guard.children] == [True]
    assert ask(app, "POST", "/chat", json=user("hello")).text == "reached"
    app.close()
    assert [child.closed for child in guard.children] == [True, True]
    assert not guard.closed


def test_a_guard_whose_policy_opens_nothing_is_used_as_it_is_and_left_open(echo, word_guard):
    guard = word_guard(Policy(local_files=False))
    with TestClient(echo(guard).app) as client:
        assert client.post("/chat", json=user("hello")).status_code == 200
    GuardrailASGIMiddleware(None, guard=guard, routes=["/chat"]).close()
    assert guard.children == []
    assert not guard.closed


def test_a_lifespan_reaches_the_app(word_guard):
    class Failing:
        async def __call__(self, scope, receive, send):
            await send({"type": "lifespan.startup.failed", "message": scope["type"]})

    async def run():
        sent = []

        async def send(message):
            sent.append(message)

        app = GuardrailASGIMiddleware(Failing(), guard=word_guard(), routes=["/"])
        await app({"type": "lifespan"}, None, send)
        return sent

    assert asyncio.run(run()) == [{"type": "lifespan.startup.failed", "message": "lifespan"}]


def test_a_client_that_goes_during_the_check_cancels_it(echo, word_guard):
    guard = word_guard()
    guard.slow = True
    app = echo(guard)

    async def run():
        messages = [{"type": "http.request", "body": json.dumps(user("hello")).encode()}]

        async def receive():
            if messages:
                return messages.pop()
            [child] = guard.children
            await child.waiting.wait()
            return {"type": "http.disconnect"}

        async def send(message):
            sent.append(message.get("status"))

        scope = {
            "type": "http",
            "method": "POST",
            "path": "/chat",
            "headers": [(b"content-type", b"application/json")],
        }
        async with asyncio.timeout(30):
            await app.app(scope, receive, send)

    sent = []
    asyncio.run(run())
    assert guard.children[0].cancelled
    assert app.bodies == []
    assert sent == [499, None]


@pytest.mark.parametrize("lost", [False, True])
def test_a_client_that_goes_leaves_no_error_in_a_middleware_outside(
    echo, word_guard, run_in_time, lost
):
    async def passing(request, call_next):
        return await call_next(request)

    async def receive():
        return {"type": "http.disconnect"}

    async def send(message):
        if lost:
            raise OSError("nobody is there")

    app = echo(word_guard())
    scope = {"type": "http", "method": "POST", "path": "/chat", "query_string": b""}
    scope["headers"] = [(b"content-type", b"application/json")]
    if not lost:
        app.app.add_middleware(BaseHTTPMiddleware, dispatch=passing)
    run_in_time(app.app(scope, receive, send))
    assert app.bodies == []


def test_an_http_exception_of_the_app_itself_is_left_alone(word_guard, ask):
    async def failing(scope, receive, send):
        raise HTTPException(409, "mine")

    app = GuardrailASGIMiddleware(failing, guard=word_guard(), routes=["/chat"])
    with pytest.raises(HTTPException, match="mine"):
        ask(app, "POST", "/chat", json=user("hello"))
