from __future__ import annotations

import asyncio
import json
from io import BytesIO

import httpx
import pytest
from starlette.exceptions import HTTPException

from guardrail.asgi.forms import MULTIPART, URLENCODED, closing, read_fields, read_form
from guardrail.errors import UnsupportedContentError

PICTURE = b"\x89PNG\r\n\x1a\n..."


def read(fields=None, *, content=None, kind=MULTIPART, **request):
    sent = httpx.Request("POST", "http://test", content=content, **request)
    sent.read()

    async def run():
        form = await read_form(sent.content, sent.headers, kind)
        async with closing(form):
            return await read_fields(form, fields)

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
