"""A client that hangs up ends what the model does for it."""

from __future__ import annotations

import json
import socket
from typing import Any

import pytest

from tests.waiting import until

KEY = "a-key-for-tests-0123"


def post(url: str, path: str, body: dict[str, Any]) -> socket.socket:
    """A connection over which this body was posted."""
    host, port = url.removeprefix("http://").split(":")
    data = json.dumps(body).encode()
    head = (
        f"POST /v1/{path} HTTP/1.1\r\n"
        f"Host: {host}\r\nAuthorization: Bearer {KEY}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(data)}\r\n\r\n"
    )
    connection = socket.create_connection((host, int(port)), timeout=20)
    connection.sendall(head.encode() + data)
    return connection


CHAT: dict[str, Any] = {"messages": [{"role": "user", "content": "hello"}], "max_tokens": 8_000}


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize(
    ("path", "fields", "rows"),
    [
        ("chat/completions", CHAT, 1),
        ("chat/completions", CHAT | {"n": 2}, 2),
        ("responses", {"input": "hello", "max_output_tokens": 8_000}, 1),
    ],
)
def test_rows_end_when_their_client_hangs_up(server, stream, path, fields, rows):
    connection = post(server.url, path, {"model": "guarded", "stream": stream, **fields})
    until(lambda: server.guard.load.running == rows)
    if stream:
        assert connection.recv(4_096).startswith(b"HTTP/1.1 200")
    connection.close()
    until(lambda: server.guard.load.running == 0)
    assert server.guard.load.waiting == 0
    assert server.guard.generate("hello", max_new_tokens=2).completion_tokens == 2
