from __future__ import annotations

import json

import pytest

from guardrail.cluster.edge import Edge


class Proxy:
    """Ray's proxy: reads all, then answers `status` as `kind`, or nothing at all."""

    def __init__(self, status: int | None, kind: str = "text/plain", *, more: bool = True) -> None:
        self.status, self.kind, self.more = status, kind, more
        self.scope = None
        self.read = 0

    async def __call__(self, scope, receive, send) -> None:
        self.scope = scope
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            self.read += len(message["body"])
            if not message["more_body"]:
                break
        if self.status is None:
            return
        headers = [(b"content-type", self.kind.encode())]
        await send({"type": "http.response.start", "status": self.status, "headers": headers})
        await send({"type": "http.response.body", "body": b"said"})


@pytest.mark.parametrize(
    ("status", "told", "code"),
    [(429, 429, "queue_full"), (503, 503, "unavailable"), (408, 504, "timeout"), (None, 500, "x")],
)
async def test_errors_of_the_proxy_are_told_in_the_usual_form(call, status, told, code):
    answer = await call(Edge(Proxy(status))).send().end()
    assert answer.status == told
    error = json.loads(answer.body)["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["code"] == ("internal_error" if code == "x" else code)
    assert (b"retry-after" in answer.headers) == (told in (429, 503))


@pytest.mark.parametrize("status", [200, 429, 503])
async def test_answers_of_the_app_stay_as_they_are(call, status):
    answer = await call(Edge(Proxy(status, "application/json"))).send().end()
    assert (answer.status, answer.body) == (status, b"said")


async def test_a_time_in_which_nothing_is_deployed_is_no_wrong_address(call):
    answer = await call(Edge(Proxy(404))).send().end()
    assert answer.status == 503
    assert answer.headers[b"retry-after"] == b"1"


async def test_a_requests_name_is_on_its_answer_once(call):
    async def app(scope, receive, send):
        names = [(b"x-request-id", b"my-1"), (b"X-Request-ID", b"my-1"), (b"x-other", b"kept")]
        await send({"type": "http.response.start", "status": 200, "headers": names})
        await send({"type": "http.response.body", "body": b""})

    answer = await call(Edge(app), x_request_id="my-1").send().end()
    headers = answer.messages[0]["headers"]
    assert [value for key, value in headers if key.lower() == b"x-request-id"] == [b"my-1"]
    assert (b"x-other", b"kept") in headers


async def test_a_large_body_is_refused_before_it_comes(call):
    proxy = Proxy(200)
    answer = await call(Edge(proxy, max_bytes=10), content_length="11").end()
    assert answer.status == 413
    assert proxy.scope is None


async def test_a_large_body_of_no_announced_size_is_refused_while_it_comes(call):
    proxy = Proxy(200)
    sending = call(Edge(proxy, max_bytes=10), transfer_encoding="chunked")
    for _ in range(5):
        sending.send(b"1234", more=True)
    assert (await sending.end()).status == 413
    assert proxy.read == 8


async def test_headers_that_steer_the_proxy_are_not_passed_on(call):
    proxy = Proxy(200)
    sent = {
        "x_request_timeout_seconds": "0.001",
        "x_request_disconnect_disabled": "?1",
        "x_session_id": "\xff",
        "serve_multiplexed_model_id": "m",
        "x_request_id": "a\x1b[31m",
        "x_other": "kept",
    }
    await call(Edge(proxy), **sent).send().end()
    headers = dict(proxy.scope["headers"])
    assert set(headers) == {b"x-other", b"x-request-id"}
    assert len(headers[b"x-request-id"]) == 32


async def test_a_harmless_id_is_kept(call):
    proxy = Proxy(200)
    await call(Edge(proxy), x_request_id="my-1").send().end()
    assert dict(proxy.scope["headers"])[b"x-request-id"] == b"my-1"
