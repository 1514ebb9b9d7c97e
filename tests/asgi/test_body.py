from __future__ import annotations

import asyncio

import pytest
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from guardrail.asgi.body import Body

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
