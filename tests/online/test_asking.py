"""From a value to a job: reading takes no longer than the caller waits, and places are bounded."""

from __future__ import annotations

import asyncio
import io
import itertools
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image

from guardrail.errors import QueueFullError, RequestCancelledError, RequestTimeoutError
from guardrail.inputs import images, threads
from guardrail.inputs.video_files import Shot
from guardrail.inputs.videos import VideoBytes
from guardrail.online.asking import Places
from guardrail.policy import Limits
from guardrail.types import Action
from tests.waiting import LONG_S, auntil, until

DECODERS = threads._LARGE_AT_ONCE + 1


def endless(self, limits, what):
    """Frame upon frame within the first tick: no window is ever full."""
    for i in itertools.count():
        yield Shot(i * 1e-9, lambda: Image.new("RGB", (8, 8)), lambda: np.zeros((1, 1), np.uint8))


def test_the_time_of_a_request_covers_the_reading_of_its_video(llava, guard_on, monkeypatch):
    monkeypatch.setattr(VideoBytes, "shots", endless)
    data = io.BytesIO()
    Image.new("RGB", (8, 8)).save(data, "GIF")
    chat = [{"role": "user", "content": [{"type": "video", "video": data.getvalue()}]}]
    with pytest.raises(RequestTimeoutError):
        guard_on(llava, Action.PASS).check(chat, timeout=0.05)


def of_picture(count=1):
    data = io.BytesIO()
    Image.new("RGB", (8, 8)).save(data, "PNG")
    parts = [{"type": "image", "image": data.getvalue()} for _ in range(count)]
    return [{"role": "user", "content": [*parts, {"type": "text", "text": "what is this?"}]}]


@pytest.fixture
def opening(monkeypatch):
    """No picture is opened until `leave` is set; `begun` has one item for each that would be."""

    class Opening:
        def __init__(self):
            self.begun, self.leave = [], threading.Event()

        def __call__(self, *args, **options):
            self.begun.append(1)
            assert self.leave.wait(LONG_S)
            return real(*args, **options)

    real = images._opened
    held = Opening()
    monkeypatch.setattr(images, "_opened", held)
    yield held
    held.leave.set()


def test_text_is_answered_while_pictures_wait_for_a_decoder(llava, guard_on, opening):
    guard = guard_on(llava, Action.PASS)

    async def main():
        tasks = [asyncio.create_task(guard.acheck(of_picture())) for _ in range(40)]
        await auntil(lambda: len(opening.begun) == DECODERS)
        async with asyncio.timeout(LONG_S):
            verdict = await guard.acheck("tell me")
        assert not any(task.done() for task in tasks)
        opening.leave.set()
        return verdict, await asyncio.gather(*tasks)

    verdict, of_pictures = asyncio.run(main())
    assert verdict.action is Action.PASS
    assert len(of_pictures) == 40


def test_a_picture_is_not_decoded_once_its_callers_time_is_over(llava, guard_on, opening):
    guard = guard_on(llava, Action.PASS)

    async def main():
        tasks = [asyncio.create_task(guard.acheck(of_picture())) for _ in range(40)]
        await auntil(lambda: len(opening.begun) == DECODERS)
        with pytest.raises(RequestTimeoutError):
            await guard.acheck(of_picture(), timeout=0.1)
        with pytest.raises(RequestTimeoutError):
            await asyncio.to_thread(guard.check, of_picture(), timeout=0.1)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        opening.leave.set()
        await guard.acheck(of_picture())

    asyncio.run(main())
    assert len(opening.begun) == DECODERS + 1


def test_between_the_pictures_of_a_request_it_is_asked_whether_anybody_waits(
    llava, guard_on, opening
):
    guard = guard_on(llava, Action.PASS)
    given_up = threading.Event()
    with ThreadPoolExecutor(1) as caller:
        asked = caller.submit(guard._asking.verdict, of_picture(3), {}, given_up)
        until(lambda: opening.begun)
        given_up.set()
        with pytest.raises(RequestCancelledError):
            asked.result(LONG_S)
        opening.leave.set()
    assert len(opening.begun) == 1


def test_too_many_requests_with_pictures_are_turned_away_and_text_is_not(llava, guard_on, opening):
    guard = guard_on(llava, Action.PASS, limits=Limits(queue=2))

    async def main():
        tasks = [asyncio.create_task(guard.acheck(of_picture())) for _ in range(2)]
        await auntil(lambda: len(opening.begun) == 2)
        with pytest.raises(QueueFullError, match="pictures") as caught:
            await guard.acheck(of_picture())
        assert 1 <= caught.value.retry_after_s <= 60
        async with asyncio.timeout(LONG_S):
            await guard.acheck("tell me")
        opening.leave.set()
        await asyncio.gather(*tasks)
        await guard.acheck(of_picture())

    asyncio.run(main())


def test_one_client_leaves_places_to_the_others():
    places = Places(4)
    assert [places.take("a") for _ in range(4)] == [True, True, True, False]
    assert places.take("b")
    assert not places.take("b")
    places.give_back("a")
    assert places.take("b")


def test_who_names_no_client_may_have_all_of_them():
    places = Places(2)
    assert [places.take(None) for _ in range(3)] == [True, True, False]


def test_waiting_ends_with_a_place_or_with_the_time():
    places = Places(1)
    places.take("a")
    assert not places.take("b", timeout=0.01)
    waiter = threading.Thread(target=places.take, args=("b",), kwargs={"timeout": None})
    waiter.start()
    places.give_back("a")
    waiter.join(LONG_S)
    assert not waiter.is_alive()
    assert not places.take("a")
