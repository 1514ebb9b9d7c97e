"""The same from event loops: nothing blocks, cancelling ends the request."""

from __future__ import annotations

import asyncio

import pytest

from guardrail.errors import (
    GuardrailViolation,
    InputError,
    QueueFullError,
    RequestTimeoutError,
    UnsupportedContentError,
)
from guardrail.policy import REFUSAL, Limits
from guardrail.types import Action
from tests.waiting import LONG_S, at_rest, auntil, passes_of, until

PASS, FLAG = Action.PASS, Action.FLAG


async def collected(stream):
    return [chunk async for chunk in stream]


def test_awaited_answers_and_verdicts_equal_the_blocking_ones(llava, guard_on):
    guard = guard_on(llava)

    async def main():
        return await guard.agenerate("tell me", max_new_tokens=6), await guard.acheck("tell me")

    result, verdict = asyncio.run(main())
    assert result == guard.generate("tell me", max_new_tokens=6)
    assert verdict == guard.check("tell me")


def test_concurrent_tasks_get_their_own_answers(llava, guard_on):
    guard = guard_on(llava, limits=Limits(batch=4, batch_wait_s=0.05))
    prompts = [f"tell me about the cat number {n}" for n in range(6)]

    async def main():
        return await asyncio.gather(*(guard.agenerate(p, max_new_tokens=5) for p in prompts))

    expected = [guard.generate(prompt, max_new_tokens=5).text for prompt in prompts]
    assert [result.text for result in asyncio.run(main())] == expected


def test_a_burst_on_an_idle_guard_shares_its_first_batch(llava, guard_on, monkeypatch):
    guard = guard_on(llava, limits=Limits(batch=4, batch_wait_s=LONG_S))
    sizes, encode = [], guard._engine.encoder.encode

    def counted(requests):
        sizes.append(len(requests))
        return encode(requests)

    monkeypatch.setattr(guard._engine.encoder, "encode", counted)

    async def main():
        return await asyncio.gather(*(guard.acheck(f"number {n}") for n in range(4)))

    assert len(asyncio.run(main())) == 4
    assert sizes == [4]


def test_what_could_not_be_read_is_not_waited_for(llava, guard_on):
    guard = guard_on(llava)
    with pytest.raises(InputError):
        asyncio.run(guard.acheck([{"role": "nobody", "content": "hello"}]))
    assert not guard._engine.worker._arrivals.is_expected(0)


def test_the_loop_runs_on_while_the_model_works(llava, guard_on):
    guard = guard_on(llava)

    async def main(passes):
        passes.hold()
        task = asyncio.create_task(guard.agenerate("tell me", max_new_tokens=10))
        await auntil(passes.held)
        assert not task.done()
        passes.go_on()
        return await task

    with passes_of(llava.model) as passes:
        assert asyncio.run(main(passes)).completion_tokens == 10


def test_an_asynchronous_stream_joins_to_the_answer(llava, guard_on):
    guard = guard_on(llava)
    whole = guard.generate("tell me", max_new_tokens=8)

    async def main():
        stream = guard.astream("tell me", max_new_tokens=8)
        assert stream.verdict is None
        return await collected(stream), stream

    chunks, stream = asyncio.run(main())
    assert "".join(chunks) == whole.text == stream.result.text
    assert len(chunks) > 1
    assert stream.verdict == whole.verdict


def test_an_asynchronous_stream_refuses_and_raises_like_the_other(llava, guard_on):
    refusing = guard_on(llava, FLAG)
    raising = guard_on(llava, FLAG, on_flag="raise")

    async def main():
        assert await collected(refusing.astream("tell me")) == [REFUSAL]
        with pytest.raises(GuardrailViolation):
            await collected(raising.astream("tell me"))
        with pytest.raises(UnsupportedContentError):
            await collected(refusing.astream(42))

    asyncio.run(main())


def test_a_cancelled_task_ends_its_request_within_a_step(llava, guard_on):
    guard = guard_on(llava)

    async def main(passes):
        task = asyncio.create_task(guard.agenerate("tell me", max_new_tokens=200))
        await auntil(lambda: passes.begun >= 3)
        passes.hold()
        await auntil(passes.held)
        before = passes.begun
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        passes.go_on()
        await auntil(lambda: at_rest(guard))
        assert passes.begun == before

    with passes_of(llava.model) as passes:
        asyncio.run(main(passes))
    assert guard.generate("tell me", max_new_tokens=3).completion_tokens == 3


def test_a_closed_asynchronous_stream_ends_its_request(llava, guard_on):
    guard = guard_on(llava)

    async def main(passes):
        async with guard.astream("tell me", max_new_tokens=200) as stream:
            await anext(stream)
            passes.hold()
            await auntil(passes.held)
        before = passes.begun
        assert await collected(stream) == []
        passes.go_on()
        await auntil(lambda: at_rest(guard))
        assert passes.begun == before

    with passes_of(llava.model) as passes:
        asyncio.run(main(passes))


def test_a_loop_that_ended_does_not_disturb_the_model(llava, guard_on):
    guard = guard_on(llava)

    async def main():
        stream = guard.astream("tell me", max_new_tokens=200)
        await anext(stream)
        passes.hold()
        await auntil(passes.held)
        return stream  # neither closed nor read to its end

    with passes_of(llava.model) as passes:
        stream = asyncio.run(main())
        before = passes.begun
        passes.go_on()
        until(lambda: passes.begun > before + 2 or at_rest(guard))  # with tokens for nobody
        assert guard.check("tell me").action is PASS
    del stream


def test_timeouts_and_full_queues_are_raised_in_the_task(llava, guard_on, slow_layers):
    guard = guard_on(llava, limits=Limits(queue=1, batch=1))
    slow_layers(llava.model, 0.03)

    async def main():
        with pytest.raises(RequestTimeoutError):
            await guard.agenerate("tell me", max_new_tokens=200, timeout=0.2)
        with pytest.raises(RequestTimeoutError):
            await collected(guard.astream("tell me", max_new_tokens=200, timeout=0.2))
        tasks = [guard.agenerate("tell me", max_new_tokens=8) for _ in range(5)]
        return await asyncio.gather(*tasks, return_exceptions=True)

    outcomes = asyncio.run(main())
    assert any(isinstance(outcome, QueueFullError) for outcome in outcomes)
    assert any(not isinstance(outcome, Exception) for outcome in outcomes)
