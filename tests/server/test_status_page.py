from __future__ import annotations

import re

import pytest

from guardrail.server import ServerSettings
from guardrail.types import Action


async def test_nothing_but_styles_may_be_loaded_and_nothing_is_kept(guard_of, client_of):
    async with client_of(guard_of()) as client:
        told = await client.get("/")
    rules = told.headers["content-security-policy"]
    assert "default-src 'none'" in rules
    assert "script-src" not in rules
    assert "frame-ancestors 'none'" in rules
    assert told.headers["cache-control"] == "no-store"
    assert "<script" not in told.text
    assert not re.search(r"(src|href)=\"(https?:)?//", told.text)


@pytest.mark.parametrize(
    ("asked", "seconds"), [("", "30"), ("?refresh=0", None), ("?refresh=1", "5")]
)
async def test_it_is_renewed_unless_the_reader_stops_that(guard_of, client_of, asked, seconds):
    async with client_of(guard_of()) as client:
        text = (await client.get(f"/{asked}")).text
    found = re.search(r'http-equiv="refresh" content="(\d+)"', text)
    assert (found and found[1]) == seconds
    assert ("?refresh=30" in text) is (seconds is None)


async def test_a_names_markup_is_text(guard_of, client_of):
    settings = ServerSettings(model_name="<script>alert(1)</script>")
    async with client_of(guard_of(), settings) as client:
        text = (await client.get("/")).text
    assert "<script" not in text
    assert "&lt;script&gt;" in text


async def test_what_would_have_been_done_is_told_where_it_differs(guard_of, client_of):
    for mode, told in (("enforce", False), ("shadow", True)):
        async with client_of(guard_of(Action.FLAG, mode=mode)) as client:
            await client.post("/v1/checks", json={"input": "hello"})
            text = (await client.get("/")).text
        assert ("Would flag" in text) is told
        assert ("Shadow mode" in text) is told


async def test_what_was_judged_is_not_called_unjudged(guard_of, client_of):
    async with client_of(guard_of()) as client:
        await client.post("/v1/checks", json={"input": "hello"})
        text = (await client.get("/")).text
    assert "Judged" in text
    assert "udged yet" not in text
    assert "Scores are not held against a calibration yet" in text


async def test_no_word_of_a_request_is_on_it(guard_of, client_of):
    async with client_of(guard_of()) as client:
        await client.post("/v1/checks", json={"input": "zxqv hello"})
        pages = [(await client.get(path)).text for path in ("/", "/status.json")]
    assert not any("zxqv" in page for page in pages)
