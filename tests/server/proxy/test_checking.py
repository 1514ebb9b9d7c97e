"""A checked body is what is sent, to the pixel."""

from __future__ import annotations

import base64

import numpy as np
import pytest

from guardrail.policy import Policy
from guardrail.requests.messages import to_request
from tests.picture_zoo import ONE_WAY, TWO_WAYS, by_convert, by_vllm

ZOO = TWO_WAYS | ONE_WAY
PARTS = {
    "/v1/chat/completions": (
        "messages",
        lambda url: {"type": "image_url", "image_url": {"url": url, "detail": "low"}},
    ),
    "/v1/responses": ("input", lambda url: {"type": "input_image", "image_url": url}),
}


def url_of(data):
    kinds = {b"\x89P": "png", b"\xff\xd8": "jpeg", b"RI": "webp", b"GI": "gif", b"BM": "bmp"}
    kind = kinds.get(data[:2], "tiff")
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def body_of(path, data):
    source, part = PARTS[path]
    text = {"type": "input_text" if source == "input" else "text", "text": "what is this?"}
    return {"model": "big", source: [{"role": "user", "content": [part(url_of(data)), text]}]}


def picture_in(body, path):
    source, _ = PARTS[path]
    part = body[source][0]["content"][0]
    url = part["image_url"]
    url = url["url"] if isinstance(url, dict) else url
    return base64.b64decode(url.rpartition(",")[2])


@pytest.fixture
def watching(wire):
    class Watching(wire.WordGuard):
        def __init__(self, policy=None):
            super().__init__(policy)
            self.scored = []

        def with_policy(self, policy, **options):
            other = super().with_policy(policy, **options)
            guard = type(self)(policy)
            guard.scored, other = self.scored, guard
            return other

        async def acheck(self, value, **options):
            request = to_request(value, policy=self.policy)
            self.scored += [np.asarray(picture) for picture in request.images]
            return await super().acheck(value, **options)

    return Watching


@pytest.mark.parametrize("path", PARTS)
async def test_the_upstream_reads_the_pixels_that_were_scored(proxy_of, upstream, watching, path):
    guard = watching()
    client = proxy_of(guard=guard)
    for name, make in ZOO.items():
        answer = await client.post(path, json=body_of(path, make()))
        assert answer.status_code == 200, (name, answer.text)
        sent = picture_in(upstream.seen[-1].json, path)
        for read in (by_convert, by_vllm):
            np.testing.assert_array_equal(read(sent), guard.scored[-1], err_msg=name)
    assert len(guard.scored) == len(upstream.seen) == len(ZOO)


async def test_pictures_of_two_readings_can_be_refused(proxy_of, upstream, watching):
    path = "/v1/chat/completions"
    client = proxy_of(guard=watching(Policy(pictures="refuse")))
    for name, make in TWO_WAYS.items():
        answer = await client.post(path, json=body_of(path, make()))
        assert answer.status_code == 422, name
        assert "save it as an 8-bit RGB PNG" in answer.text, name
    assert upstream.seen == []
    for name, make in ONE_WAY.items():
        answer = await client.post(path, json=body_of(path, make()))
        assert answer.status_code == 200, name
        assert picture_in(upstream.seen[-1].json, path) == make(), name
