"""Streams go through as they come, with the verdict in them; a cut shows as a cut."""

from __future__ import annotations

import asyncio
import json

import httpx
import pytest

PATH = "/v1/chat/completions"


def stream_of(wire, **more):
    return {**wire.CHAT, "stream": True, **more}


async def streamed(proxy, wire, **more):
    answer = await proxy.post(PATH, json=stream_of(wire, **more))
    assert answer.headers["x-guardrail-action"] == "pass"
    return answer


def usage(wire):
    data = {**wire.piece({}), "choices": [], "usage": {"total_tokens": 3}}
    return wire.told(data)


async def test_a_stream_goes_through_with_the_verdict_first_and_last(proxy_of, upstream, wire):
    upstream.streams(*wire.WORDS, b": ping\n\n", *wire.LAST)
    answer = await streamed(proxy_of(), wire)
    assert answer.headers["content-type"].startswith("text/event-stream")
    told = wire.events(answer.content)
    assert [bool(e.get("guardrail")) for e in told[:-1]] == [True, False, True]
    assert told[-1] == "[DONE]"
    assert wire.WORDS[1] + b": ping\n\n" in answer.content  # as it came
    assert upstream.seen[0].headers["accept"] == "text/event-stream"


async def test_the_usage_event_has_the_verdict_where_it_is_asked_for(proxy_of, upstream, wire):
    upstream.streams(*wire.WORDS, wire.LAST[0], usage(wire), wire.LAST[1])
    answer = await streamed(proxy_of(), wire, stream_options={"include_usage": True})
    told = wire.events(answer.content)[:-1]
    assert [bool(e.get("guardrail")) for e in told] == [True, False, False, True]
    assert told[-1]["usage"] == {"total_tokens": 3}


async def test_a_responses_stream_ends_with_its_own_last_event(proxy_of, upstream, wire):
    kinds = ["response.created", "response.output_text.delta", "response.completed"]
    upstream.streams(
        *(f"event: {k}\n".encode() + wire.told({"type": k, "sequence_number": 1}) for k in kinds)
    )
    body = {"model": "big", "input": "hello", "stream": True}
    answer = await proxy_of().post("/v1/responses", json=body)
    told = wire.events(answer.content)
    assert [(e["type"], bool(e.get("guardrail"))) for e in told] == [
        (kinds[0], True),
        (kinds[1], False),
        (kinds[2], True),
    ]
    assert answer.text.count("event: ") == 3


async def test_chunks_may_end_anywhere(proxy_of, upstream, wire):
    whole = b"".join([*wire.WORDS, *wire.LAST]).replace(b"\\u00e9", "é".encode())
    upstream.streams(whole)
    expected = wire.events((await streamed(proxy_of(), wire)).content)
    assert expected[1]["choices"][0]["delta"]["content"] == "é"
    upstream.streams(*(whole[i : i + 1] for i in range(len(whole))))
    assert wire.events((await streamed(proxy_of(), wire)).content) == expected


async def test_an_end_without_the_last_blank_line_is_an_end(proxy_of, upstream, wire):
    upstream.streams(*wire.WORDS, wire.LAST[0], b"data: [DONE]")
    assert wire.events((await streamed(proxy_of(), wire)).content)[-1] == "[DONE]"


async def test_nothing_after_the_end_is_passed_on(proxy_of, upstream, wire):
    upstream.streams(*wire.WORDS, *wire.LAST, *wire.WORDS)
    assert (await streamed(proxy_of(), wire)).text.endswith("data: [DONE]\n\n")


def failed(wire, answer, code="upstream_broken"):
    told = wire.events(answer.content)
    assert answer.status_code == 200
    assert told[-1]["error"]["code"] == code
    assert "[DONE]" not in told
    return told[:-1]


@pytest.mark.parametrize("cut", [True, False])
@pytest.mark.parametrize("last", [b"", b'data: {"id"', b'data: {"id": 1}\n'])
async def test_a_cut_shows_as_a_cut(proxy_of, upstream, wire, cut, last):
    upstream.streams(*wire.WORDS, *([last] if last else []), cut=cut)
    proxy = proxy_of()
    assert len(failed(wire, await streamed(proxy, wire))) == 2
    upstream.streams(*wire.WORDS, *wire.LAST)
    assert wire.events((await streamed(proxy, wire)).content)[-1] == "[DONE]"


@pytest.mark.parametrize(
    "junk", [b"data: junk\n\n", b"data: \xff\n\n", b"data: [1]\n\n", b"data: " + b"x" * 9_000]
)
async def test_junk_in_a_stream_ends_it(proxy_of, upstream, wire, junk):
    upstream.streams(*wire.WORDS, junk, *wire.LAST)
    answer = await streamed(proxy_of(max_event_bytes=5_000), wire)
    assert len(failed(wire, answer)) == 2
    assert b"junk" not in answer.content


async def test_a_stream_larger_than_allowed_ends(proxy_of, upstream, wire):
    async def script(seen):
        await wire.begin(seen)
        while True:  # ends when the proxy hangs up
            await wire.chunk(seen, wire.WORDS[0])

    upstream.script = script
    answer = await streamed(proxy_of(max_answer_bytes=5_000), wire)
    assert failed(wire, answer)
    assert len(answer.content) < 50_000


@pytest.mark.parametrize("limit", ["read_timeout_s", "timeout_s"])
async def test_a_stream_that_is_slow_ends_as_a_timeout(proxy_of, upstream, wire, limit):
    async def script(seen):
        await wire.begin(seen)
        await wire.chunk(seen, wire.WORDS[0])
        while not seen.reader.at_eof():
            if limit == "timeout_s":
                await wire.chunk(seen, b": ping\n\n")
            await asyncio.sleep(0.01)

    upstream.script = script
    answer = await streamed(proxy_of(**{limit: 0.5}), wire)
    failed(wire, answer, "upstream_timeout")


@pytest.mark.parametrize("sent", [[], [b'data: {"a"'], [b"data: junk\n\n"]])
async def test_what_fails_before_the_first_event_has_a_status(proxy_of, upstream, wire, sent):
    upstream.streams(*sent)
    answer = await streamed(proxy_of(), wire)
    assert answer.status_code == 502
    assert answer.json()["error"]["code"] == "upstream_broken"


async def test_a_stream_that_is_none_is_a_bad_gateway(proxy_of, upstream, wire):
    answer = await streamed(proxy_of(), wire)
    assert answer.status_code == 502


async def test_an_error_of_the_upstream_in_its_stream_is_told_once(proxy_of, upstream, wire):
    upstream.streams(*wire.WORDS, wire.told({"error": {"message": "no room", "code": 500}}))
    answer = await streamed(proxy_of(), wire)
    told = wire.events(answer.content)
    assert [bool(e.get("error")) for e in told] == [False, False, True]


async def test_the_key_does_not_come_back_in_a_stream(proxy_of, upstream, wire):
    upstream.streams(wire.told(wire.piece({"content": "sk-secret"})), *wire.WORDS, *wire.LAST)
    answer = await streamed(proxy_of(key="sk-secret"), wire)
    assert "sk-secret" not in answer.text
    assert answer.text.endswith("[DONE]\n\n")


async def test_the_verdict_of_another_guard_behind_this_one_is_not_told_as_its_own(
    proxy_of, upstream, wire
):
    said = wire.told({**wire.piece({"content": "x"}), "guardrail": {"action": "flag"}})
    upstream.streams(wire.WORDS[0], said, *wire.LAST)
    answer = await streamed(proxy_of(), wire)
    told = wire.events(answer.content)[:-1]
    assert {e["guardrail"]["action"] for e in told if "guardrail" in e} == {"pass"}


async def test_words_arrive_before_the_upstream_has_ended(app_of, served, upstream, wire):
    go_on = asyncio.Event()

    async def script(seen):
        await wire.begin(seen)
        await wire.chunk(seen, wire.WORDS[0])
        await go_on.wait()
        for each in [wire.WORDS[1], *wire.LAST]:
            await wire.chunk(seen, each)
        await seen.send(b"0\r\n\r\n")

    upstream.script = script
    async with (
        served(app_of()) as url,
        httpx.AsyncClient() as client,
        client.stream("POST", url + PATH, json=stream_of(wire)) as answer,
    ):
        chunks = answer.aiter_raw()
        first = await asyncio.wait_for(anext(chunks), 10)
        assert json.loads(first[6:])["choices"][0]["delta"]["content"] == "h"
        go_on.set()
        rest = b"".join([chunk async for chunk in chunks])
        assert rest.endswith(b"data: [DONE]\n\n")


@pytest.mark.parametrize("when", ["waiting", "reading", "streaming"])
async def test_a_client_that_leaves_ends_the_upstreams_work(app_of, served, upstream, wire, when):
    begun, ended = asyncio.Event(), asyncio.Event()

    async def script(seen):
        if when == "reading":
            await seen.head(content_type="application/json", content_length="99")
        elif when == "streaming":
            await wire.begin(seen)
            await wire.chunk(seen, wire.WORDS[0])
        begun.set()
        await seen.reader.read()  # ends when the proxy hangs up
        ended.set()

    upstream.script = script
    async with served(app_of()) as url:
        async with httpx.AsyncClient() as client:
            body = stream_of(wire, stream=when == "streaming")

            async def ask():
                async with client.stream("POST", url + PATH, json=body) as answer:
                    async for _ in answer.aiter_raw():
                        pass

            asking = asyncio.create_task(ask())
            await asyncio.wait_for(begun.wait(), 10)
            asking.cancel()
            await asyncio.gather(asking, return_exceptions=True)
            await asyncio.wait_for(ended.wait(), 10)
            upstream.says(wire.ANSWER)
            assert (await client.post(url + PATH, json=wire.CHAT)).status_code == 200


async def test_a_client_that_leaves_during_the_check_is_never_forwarded(
    app_of, served, upstream, wire
):
    begun, ended = asyncio.Event(), asyncio.Event()

    class Slow(wire.WordGuard):
        async def acheck(self, value, **options):
            begun.set()
            try:
                await asyncio.sleep(60)
            finally:
                ended.set()

        def with_policy(self, policy, **_):
            return Slow(policy)

    async with served(app_of(Slow())) as url, httpx.AsyncClient() as client:
        asking = asyncio.create_task(client.post(url + PATH, json=wire.CHAT))
        await asyncio.wait_for(begun.wait(), 10)
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)
        await asyncio.wait_for(ended.wait(), 10)
    assert upstream.seen == []
