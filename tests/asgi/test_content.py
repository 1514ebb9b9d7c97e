from __future__ import annotations

import asyncio
import json
from io import BytesIO

import httpx
import pytest
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from guardrail.asgi.content import (
    MULTIPART,
    URLENCODED,
    Body,
    address_words,
    media_type,
    parsed_json,
    read_content,
    read_fields,
    read_form,
)
from guardrail.asgi.routes import GuardedRoute
from guardrail.errors import UnsupportedContentError


def headers(*pairs):
    return Headers(raw=[(name.encode(), value.encode()) for name, value in pairs])


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ("application/json", "application/json"),
        ("Application/JSON; charset=UTF-8", "application/json"),
        ("application/vnd.api+json", "application/json"),
        ("multipart/form-data; boundary=x", "multipart/form-data"),
        ("application/x-www-form-urlencoded", "application/x-www-form-urlencoded"),
    ],
)
def test_media_types_that_are_read(given, wanted):
    assert media_type(headers(("content-type", given))) == wanted


@pytest.mark.parametrize(
    "pairs",
    [
        [],
        [("content-type", "text/plain")],
        [("content-type", "application/octet-stream")],
        [("content-type", "application/json, text/plain")],
        [("content-type", "image/png")],
        [("content-type", "")],
        [("content-type", "application/json"), ("content-type", "multipart/form-data")],
        [("content-type", "application/json; charset=utf-16")],
        [("content-type", "multipart/form-data; boundary=x; charset=latin-1")],
        [("content-type", "application/json"), ("content-encoding", "gzip")],
        [("content-type", "application/json"), ("content-encoding", "identity, br")],
    ],
)
def test_what_could_hide_the_body_is_an_unsupported_media_type(pairs):
    with pytest.raises(HTTPException) as caught:
        media_type(headers(*pairs))
    assert caught.value.status_code == 415


def test_the_identity_encoding_hides_nothing():
    pairs = [("content-type", "application/json"), ("content-encoding", "Identity")]
    assert media_type(headers(*pairs)) == "application/json"


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{",
        b'{"a": 1, "a": 2}',
        b'[{"x": {"a": 1, "\\u0061": 2}}]',
        b'{"a": NaN}',
        b'{"a": -Infinity}',
        b'{"a": 1e999}',
        b"9" * 5000,
        b"[" * 100_000,
        b"\xef\xbb\xbf{}",
        b'{"a": "\xff"}',
        b'{"a": "\xed\xa0\x80"}',
        '{"a": 1}'.encode("utf-16"),
        '{"a": 1}'.encode("utf-32"),
        b"{'a': 1}",
        b"{} {}",
    ],
    ids=lambda data: repr(data[:24]),
)
def test_json_that_two_readers_could_read_differently_is_refused(data):
    with pytest.raises(HTTPException) as caught:
        parsed_json(data)
    assert caught.value.status_code == 400


def test_other_json_is_read_as_every_reader_does():
    text = '{"a": [1, 2.5, null, true, "\\ud83d\\ude00 \u00e9"], "b": {}}'
    assert parsed_json(text.encode()) == json.loads(text)


def _read(body, select):
    route = GuardedRoute("/chat", select=select)
    data = json.dumps(body).encode()
    reading = read_content(data, "application/json", headers(), {"path": "/chat"}, route)
    return asyncio.run(reading)


async def _later(scope, body):
    return body["question"]


@pytest.mark.parametrize("select", [lambda scope, body: body["question"], _later])
def test_a_selector_makes_what_is_checked_and_leaves_no_place_for_a_caution(select):
    content = _read({"question": "hello", "trace": "x"}, select)
    assert content.value == "hello"
    assert content.cautioned("Careful.") is None


@pytest.mark.parametrize("body", [{}, [], "text", {"question": 3}])
def test_a_body_of_another_shape_than_the_selector_reads_is_the_senders_fault(body, caplog):
    with pytest.raises(HTTPException) as caught:
        _read(body, lambda scope, body: body["question"].strip())
    assert caught.value.status_code == 422
    assert "could not be read by the route's select" in caplog.text


def test_what_a_sender_wrote_is_not_logged_when_a_selector_fails(caplog):
    with pytest.raises(HTTPException):
        _read({"question": "my secret"}, lambda scope, body: int(body["question"]))
    assert "secret" not in caplog.text
    assert "ValueError" in caplog.text
    assert f"{__file__}:" in caplog.text


@pytest.mark.parametrize(
    ("path", "query", "said"),
    [
        ("/v1/chat/completions", "", []),
        ("/v1/chat", "api-version=2024-10-21&stream=true&n=2&t=0.5&x=", []),
        ("/v1/chat", "token=sk-0123456789&session_id=ab-12", []),
        ("/v1/chat", "q=bad", ["bad"]),
        ("/v1/chat", "session_id=a+bad+one&q=%62ad", ["a bad one", "bad"]),
        ("/v1/chat", "a+bad+one", ["a bad one"]),
        ("/v1/chat", "bad", ["bad"]),
        ("/users/ann-1/chat", "", []),
        ("/users/a bad one/chat", "", ["a bad one"]),
    ],
)
def test_words_of_an_address_are_what_is_no_label_number_or_switch(path, query, said):
    assert address_words({"path": path, "query_string": query.encode()}) == said


PICTURE = b"\x89PNG\r\n\x1a\n..."


def read(fields=None, *, content=None, kind=MULTIPART, **request):
    sent = httpx.Request("POST", "http://test", content=content, **request)
    sent.read()

    async def run():
        form = await read_form(sent.content, sent.headers, kind)
        try:
            return await read_fields(form, fields)
        finally:
            await form.close()

    return asyncio.run(run())


def text(value):
    return {"type": "text", "text": value}


def image(data):
    return {"type": "image", "image": data}


def video(data):
    return {"type": "video", "video": data}


def user(*parts):
    return [{"role": "user", "content": list(parts)}]


def test_all_texts_and_pictures_make_one_message_pictures_first():
    files = [
        ("a", (None, "first")),
        ("b", ("one.png", PICTURE + b"1", "image/png")),
        ("b", ("two.bin", PICTURE + b"2", "application/octet-stream")),
        ("c", (None, "second")),
        ("d", (None, "third")),
    ]
    words = text("first\n\nsecond\n\nthird")
    wanted = user(image(PICTURE + b"1"), image(PICTURE + b"2"), words)
    assert read(files=files) == wanted


def test_videos_are_told_by_their_type_or_else_by_their_content():
    film = b"\0\0\0\x1cftypisom..."
    files = [
        ("prompt", (None, "what happens?")),
        ("a", ("one.mp4", film, "video/mp4")),
        ("b", ("two.bin", film, "application/octet-stream")),
        ("c", ("three.gif", b"GIF89a...", "application/octet-stream")),
    ]
    wanted = user(video(film), video(film), image(b"GIF89a..."), text("what happens?"))
    assert read(files=files) == wanted


def test_chosen_fields_are_read_in_the_routes_order_not_the_senders():
    files = [
        ("image", ("one.png", PICTURE, "image/png")),
        ("padding", (None, "harmless")),
        ("prompt", (None, "hello")),
    ]
    assert read(["prompt", "image"], files=files) == user(text("hello"), image(PICTURE))


def test_a_form_without_files_may_be_url_encoded():
    made = read(kind=URLENCODED, data={"prompt": "h\u00e9 & so", "empty": ""})
    assert made == user(text("h\u00e9 & so"))


def test_the_last_field_of_a_url_encoded_form_is_read_like_any_other():
    made = read(kind=URLENCODED, data={"prompt": "hello", "more": "and so"})
    assert made == user(text("hello\n\nand so"))


def test_a_file_input_that_was_left_empty_says_nothing():
    boundary = "--x\r\nContent-Disposition: form-data; name="
    body = (
        f'{boundary}"prompt"\r\n\r\nhello\r\n'
        f'{boundary}"image"; filename=""\r\nContent-Type: application/octet-stream\r\n\r\n\r\n'
        "--x--\r\n"
    )
    kind = {"content-type": "multipart/form-data; boundary=x"}
    assert read(content=body.encode(), headers=kind) == user(text("hello"))


@pytest.mark.parametrize("kind", ["", "Content-Type: image/png\r\n"])
def test_a_file_without_a_name_is_checked_like_any_other(kind):
    head = f'--x\r\nContent-Disposition: form-data; name="image"; filename=""\r\n{kind}\r\n'
    sent = {"content-type": "multipart/form-data; boundary=x"}
    body = head.encode() + PICTURE + b"\r\n--x--\r\n"
    assert read(content=body, headers=sent) == user(image(PICTURE))


def test_a_file_without_a_name_that_is_no_picture_is_refused():
    head = b'--x\r\nContent-Disposition: form-data; name="a"; filename=""\r\n'
    body = head + b"Content-Type: text/plain\r\n\r\nbad\r\n--x--\r\n"
    with pytest.raises(UnsupportedContentError, match="'text/plain'"):
        read(content=body, headers={"content-type": "multipart/form-data; boundary=x"})


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ([("a", (None, "harmless")), ("a", (None, "bad"))], "stands twice"),
        ([("a", (None, ""))], "no field that is checked"),
        ([("a", ("notes.txt", b"bad", "text/plain"))], "'text/plain'"),
        ([("a", ("x.pdf", b"bad", "application/pdf"))], "'application/pdf'"),
    ],
)
def test_a_form_that_would_go_unchecked_is_refused(files, words):
    with pytest.raises(UnsupportedContentError, match=words):
        read(files=files)


def test_a_form_without_the_chosen_fields_is_refused():
    with pytest.raises(UnsupportedContentError, match="no field"):
        read(["prompt"], files=[("other", (None, "bad"))])


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        (URLENCODED, b'{"messages": [{"role": "user", "content": "bad"}]}'),
        (URLENCODED, b'\r\n ["bad"]'),
        (URLENCODED, "a=\u00e9".encode()),
        (MULTIPART, b'{"messages": []}\r\n--x\r\nContent-Disposition: form-data; name="a"'),
        (MULTIPART, b"--x\r\nContent-Disposition: form-data\r\n\r\nbad\r\n--x--\r\n"),
    ],
)
def test_a_body_that_may_be_read_as_something_else_is_no_form(kind, body):
    with pytest.raises(HTTPException) as caught:
        read(content=body, kind=kind, headers={"content-type": "multipart/form-data; boundary=x"})
    assert caught.value.status_code == 400


CHAT = {"messages": [{"role": "user", "content": "bad"}], "user": "=hello"}

ENCODINGS = ["utf-16-be", "utf-16-le", "utf-32-be", "utf-32-le", "utf-16", "utf-32", "utf-8-sig"]


@pytest.mark.parametrize("before", ["", " ", "\n", "\t", "\r\n  "])
@pytest.mark.parametrize("value", [CHAT, [CHAT], "bad & =so"])
@pytest.mark.parametrize("encoding", ["utf-8", *ENCODINGS])
@pytest.mark.parametrize("kind", [URLENCODED, MULTIPART])
def test_json_in_any_encoding_is_no_form(kind, encoding, value, before):
    body = (before + json.dumps(value)).encode(encoding)
    assert json.loads(body) == value
    with pytest.raises(HTTPException) as caught:
        read(content=body, kind=kind, headers={"content-type": "multipart/form-data; boundary=x"})
    assert caught.value.status_code == 400


@pytest.mark.parametrize("byte", [*range(32), 127, 128, 255])
def test_a_byte_that_no_client_sends_in_a_url_encoded_form_is_refused(byte):
    with pytest.raises(HTTPException, match="something else"):
        read(content=b"prompt=hello" + bytes([byte]), kind=URLENCODED)


def test_json_around_a_form_is_no_form():
    form = b'--x\r\nContent-Disposition: form-data; name="a"\r\n\r\nhello\r\n--x--\r\n'
    hidden = (form + b" " * (len(form) % 2)).decode("utf-16-le")
    body = ("\n" + json.dumps({**CHAT, "user": hidden}, ensure_ascii=False)).encode("utf-16-le")
    assert json.loads(body)["messages"] == CHAT["messages"]
    with pytest.raises(HTTPException, match="something else"):
        read(content=body, headers={"content-type": "multipart/form-data; boundary=x"})


@pytest.mark.parametrize("before", [b"", b"\r\n", b"\n\n"])
def test_empty_lines_may_stand_before_a_form(before):
    form = b'--x\r\nContent-Disposition: form-data; name="a"\r\n\r\nhello\r\n--x--\r\n'
    kind = {"content-type": "multipart/form-data; boundary=x"}
    assert read(content=before + form, headers=kind) == user(text("hello"))


def test_a_form_without_a_boundary_cannot_be_read():
    with pytest.raises(HTTPException, match="boundary"):
        read(content=b"--x", headers={"content-type": "multipart/form-data"})


def test_large_texts_and_files_are_read_whole():
    big = PICTURE + bytes(2_000_000)
    files = [("a", (None, "t" * 1_500_000)), ("b", ("one.png", BytesIO(big), "image/png"))]
    assert read(files=files) == user(image(big), text("t" * 1_500_000))


NONE = Headers(raw=[])

GONE = {"type": "http.disconnect"}


def part(data, *, more):
    return {"type": "http.request", "body": data, "more_body": more}


class Channel:
    """Gives its messages one by one, then waits for ever."""

    def __init__(self, *messages):
        self.left = list(messages)

    async def __call__(self):
        if not self.left:
            await asyncio.Event().wait()
        return self.left.pop(0)


def test_a_body_in_chunks_is_read_once_and_replayed_as_it_came(run_in_time):
    channel = Channel(part(b"ab", more=True), part(b"", more=True), part(b"c", more=False), GONE)

    async def run():
        body = Body(channel, 3)
        assert await body.read(NONE) == b"abc"
        receive = body.replay()
        return await receive(), await receive()

    assert run_in_time(run()) == (part(b"abc", more=False), GONE)


def test_messages_without_the_optional_keys_are_a_whole_empty_body(run_in_time):
    async def run():
        body = Body(Channel({"type": "http.request"}), 3)
        return await body.read(NONE), await body.replay()()

    assert run_in_time(run()) == (b"", part(b"", more=False))


def test_another_body_can_be_given_in_its_place(run_in_time):
    async def run():
        body = Body(Channel(part(b"ab", more=False)), 3)
        await body.read(NONE)
        return await body.replay(b"longer than that")()

    assert run_in_time(run()) == part(b"longer than that", more=False)


@pytest.mark.parametrize("length", ["4", "99999999999999999999999"])
def test_a_body_that_says_it_is_too_large_is_not_read(run_in_time, length):
    channel = Channel(part(b"abcd", more=False))
    with pytest.raises(HTTPException) as caught:
        run_in_time(Body(channel, 3).read(Headers({"content-length": length})))
    assert caught.value.status_code == 413
    assert len(channel.left) == 1


@pytest.mark.parametrize("headers", [NONE, Headers({"content-length": "2"})])
def test_a_body_that_grows_too_large_is_left_at_once(run_in_time, headers):
    channel = Channel(*[part(b"ab", more=True)] * 9)
    with pytest.raises(HTTPException) as caught:
        run_in_time(Body(channel, 3).read(headers))
    assert caught.value.status_code == 413
    assert len(channel.left) == 7


def test_what_was_read_of_a_larger_body_comes_before_its_rest(run_in_time):
    async def run():
        body = Body(Channel(part(b"ab", more=True), part(b"cd", more=True), GONE), 3)
        with pytest.raises(HTTPException):
            await body.read(NONE)
        receive = body.replay()
        return await receive(), await receive()

    assert run_in_time(run()) == (part(b"abcd", more=True), GONE)


def test_a_client_that_goes_while_its_body_is_read_ends_the_reading(run_in_time):
    channel = Channel(part(b"ab", more=True), GONE)
    with pytest.raises(ClientDisconnect):
        run_in_time(Body(channel, 3).read(NONE))


def test_a_client_that_goes_cancels_the_work(run_in_time):
    ended = []

    async def work():
        try:
            await asyncio.sleep(60)
        finally:
            ended.append(True)

    async def gone_later():
        await asyncio.sleep(0.01)
        return GONE

    with pytest.raises(ClientDisconnect):
        run_in_time(Body(gone_later, 3).unless_gone(work()))
    assert ended == [True]


def test_a_cancelled_request_cancels_the_work_and_stops_listening(run_in_time):
    ended = []

    async def forever():
        try:
            await asyncio.sleep(60)
        finally:
            ended.append(True)

    async def run():
        task = asyncio.create_task(Body(forever, 3).unless_gone(forever()))
        await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    run_in_time(run())
    assert ended == [True, True]


async def _fine():
    await asyncio.sleep(0.01)
    return "fine"


def test_the_works_result_and_its_errors_come_through(run_in_time):
    async def fails():
        raise KeyError("x")

    body = Body(Channel(), 3)
    assert run_in_time(body.unless_gone(_fine())) == "fine"
    with pytest.raises(KeyError):
        run_in_time(body.unless_gone(fails()))


def test_a_message_nobody_expects_while_the_work_runs_reaches_the_app(run_in_time):
    odd = {"type": "http.request", "body": b"", "more_body": False}

    async def run():
        body = Body(Channel(part(b"ab", more=False), odd, GONE), 3)
        await body.read(NONE)
        assert await body.unless_gone(_fine()) == "fine"
        receive = body.replay()
        return [await receive() for _ in range(3)]

    assert run_in_time(run()) == [part(b"ab", more=False), odd, GONE]


def test_a_broken_channel_is_an_error_and_no_disconnect(run_in_time):
    async def broken():
        raise OSError("gone wrong")

    with pytest.raises(OSError, match="gone wrong"):
        run_in_time(Body(broken, 3).unless_gone(_fine()))
