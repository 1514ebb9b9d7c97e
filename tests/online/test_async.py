"""The same from event loops: nothing blocks, cancelling ends the request."""

from __future__ import annotations

import asyncio
import time

import pytest

from guardrail.errors import (
    GuardrailViolation,
    InputError,
    QueueFullError,
    RequestTimeoutError,
    UnsupportedContentError,
)
from guardrail.model.batches import run_batch
from guardrail.model.decoder import decoder_layers
from guardrail.policy import REFUSAL, Limits
from guardrail.types import Action

PASS, FLAG = Action.PASS, Action.FLAG


async def collected(stream):
    return [chunk async for chunk in stream]


def passes_of(model):
    runs = []
    layer = decoder_layers(model)[0]
    return runs, layer.register_forward_pre_hook(lambda *_: runs.append(1))


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
    sizes = []

    def counted(batch):
        sizes.append(len(batch))
        run_batch(batch)

    monkeypatch.setattr("guardrail.model.worker.run_batch", counted)
    guard = guard_on(llava, limits=Limits(batch=4, batch_wait_s=5.0))

    async def main():
        return await asyncio.gather(*(guard.acheck(f"number {n}") for n in range(4)))

    assert len(asyncio.run(main())) == 4
    assert sizes == [4]


def test_what_could_not_be_read_is_not_waited_for(llava, guard_on):
    guard = guard_on(llava)
    with pytest.raises(InputError):
        asyncio.run(guard.acheck([{"role": "nobody", "content": "hello"}]))
    assert not guard._engine.worker._company.is_expected(0)


def test_the_loop_runs_on_while_the_model_works(llava, guard_on, slow_layers):
    guard = guard_on(llava)
    slow_layers(llava.model, 0.02)

    async def main():
        task = asyncio.create_task(guard.agenerate("tell me", max_new_tokens=10))
        ticks = 0
        while not task.done():
            await asyncio.sleep(0.01)
            ticks += 1
        return ticks

    assert asyncio.run(main()) > 5


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


def test_a_cancelled_task_ends_its_request_within_a_step(llava, guard_on, slow_layers):
    guard = guard_on(llava)
    slow_layers(llava.model, 0.02)
    runs, handle = passes_of(llava.model)

    async def main():
        task = asyncio.create_task(guard.agenerate("tell me", max_new_tokens=200))
        while len(runs) < 3 and not task.done():
            await asyncio.sleep(0.005)
        task.cancel()
        before = len(runs)
        with pytest.raises(asyncio.CancelledError):
            await task
        await asyncio.sleep(0.2)
        return before, len(runs)

    before, after = asyncio.run(main())
    handle.remove()
    assert after - before <= 2
    assert guard.generate("tell me", max_new_tokens=3).completion_tokens == 3


def test_a_closed_asynchronous_stream_ends_its_request(llava, guard_on, slow_layers):
    guard = guard_on(llava)
    slow_layers(llava.model, 0.02)
    runs, handle = passes_of(llava.model)

    async def main():
        async with guard.astream("tell me", max_new_tokens=200) as stream:
            await anext(stream)
        before = len(runs)
        assert await collected(stream) == []
        await asyncio.sleep(0.2)
        return before, len(runs)

    before, after = asyncio.run(main())
    handle.remove()
    assert after - before <= 2


def test_a_loop_that_ended_does_not_disturb_the_model(llava, guard_on, slow_layers):
    guard = guard_on(llava)
    slow_layers(llava.model, 0.02)

    async def main():
        stream = guard.astream("tell me", max_new_tokens=50)
        await anext(stream)
        return stream  # neither closed nor read to its end

    stream = asyncio.run(main())
    time.sleep(0.1)
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
