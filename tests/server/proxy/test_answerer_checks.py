"""A checked body is what is sent, to the pixel."""

from __future__ import annotations

import asyncio
import base64
import threading
from io import BytesIO

import numpy as np
import pytest

from guardrail.errors import UnsupportedContentError
from guardrail.inputs import images
from guardrail.inputs.images import decode_image
from guardrail.inputs.messages import to_request
from guardrail.policy import Policy
from guardrail.server.proxy.answerer import refuse_unclear_media
from tests.picture_zoo import ONE_WAY, TWO_WAYS, by_convert, by_vllm
from tests.waiting import auntil

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


PATH = "/v1/chat/completions"


@pytest.fixture
def encoded(picture):
    file = BytesIO()
    picture().save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


def chat(part):
    return {"model": "big", "messages": [{"role": "user", "content": [part]}]}


def parts(url):
    return [
        {"type": "image_url", "image_url": {"url": url, "detail": "any detail"}},
        {"type": "image_url", "image_url": url},
        {"type": "image", "url": url},
        {"type": "video", "video": [url, url]},
    ]


@pytest.mark.parametrize("which", range(4))
@pytest.mark.parametrize("head", ["data:image/png;base64,", "DATA:image/png;base64,", ""])
def test_plain_base64_is_clear(encoded, which, head):
    lines = "\r\n".join(encoded[i : i + 76] for i in range(0, len(encoded), 76))
    for text in (encoded, lines, lines + "\n"):
        refuse_unclear_media(chat(parts(head + text)[which])["messages"])


@pytest.mark.parametrize("which", range(4))
@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1:9/x.png",
        "HTTPS://host/x.png",
        "file:///etc/passwd",
        "//host/x.png",
        "data:image/png;a=b;base64,AAAA",
        "data:image/png,AAAA",
        "data:;base64,AAAA",
        "data:image/png;base64,AA%41A",
        "data:image/png;base64,AAA=A",
        "data:image/png;base64,AAAA#AAAA",
        "data:image/png;base64,AA-_",
        "data:image/png;base64,",
    ],
)
def test_what_readers_may_take_differently_is_refused(which, url):
    with pytest.raises(UnsupportedContentError, match="plain base64"):
        refuse_unclear_media(chat(parts(url)[which])["messages"])


def test_words_and_calls_are_no_media():
    refuse_unclear_media("http://host/x.png")
    call = {"function": {"name": "f", "arguments": {"url": "http://host/"}}}
    text = {"role": "user", "content": "see http://host/x.png"}
    refuse_unclear_media([text, {"role": "assistant", "content": None, "tool_calls": [call]}])


def test_a_long_text_that_does_not_fit_is_gone_over_once():
    with pytest.raises(UnsupportedContentError):
        refuse_unclear_media([{"image": " " * 300_000 + "!"}])


@pytest.mark.parametrize("trick", ["percent", "second mark"])
async def test_a_picture_behind_the_checked_one_does_not_get_through(
    proxy_of, upstream, encoded, trick
):
    raw = base64.b64decode(encoded)
    if trick == "percent":  # a lenient reader of base64 skips the percent signs
        url = "data:image/png;base64," + encoded.replace("A", "%41", 4)
    else:  # a reader that looks for ";base64," finds another picture
        url = f"data:image/png,{''.join(f'%{byte:02x}' for byte in raw)};base64,{encoded}"
    policy = Policy()
    decode_image(url, policy)  # the guard can
    answer = await proxy_of().post(PATH, json=chat(parts(url)[0]))
    assert answer.status_code == 422
    assert upstream.seen == []


async def test_text_is_sent_on_while_pictures_wait_for_a_decoder(
    proxy_of, upstream, encoded, monkeypatch
):
    leave, waiting, real = threading.Event(), [], images._opened

    def opened(*args):
        waiting.append(1)
        assert leave.wait(60)
        return real(*args)

    monkeypatch.setattr(images, "_opened", opened)
    pictures = chat({"type": "image_url", "image_url": f"data:image/png;base64,{encoded}"})
    words = chat({"type": "text", "text": "tell me"})
    async with asyncio.timeout(60), proxy_of() as client:
        tasks = [asyncio.create_task(client.post(PATH, json=pictures)) for _ in range(40)]
        try:
            await auntil(lambda: len(waiting) >= 2)
            assert (await client.post(PATH, json=words)).status_code == 200
            assert len(upstream.seen) == 1
        finally:
            leave.set()
            await asyncio.gather(*tasks, return_exceptions=True)
