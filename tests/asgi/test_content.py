from __future__ import annotations

import asyncio
import json

import pytest
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException

from guardrail.asgi.content import media_type, parsed_json, read_content
from guardrail.asgi.routes import GuardedRoute


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
