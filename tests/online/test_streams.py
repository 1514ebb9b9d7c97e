"""Answers in chunks: never before the verdict, never after nobody reads."""

from __future__ import annotations

import gc
import logging
import threading

import pytest
import torch

from guardrail.errors import (
    GuardrailViolation,
    RequestTimeoutError,
    UnsupportedContentError,
)
from guardrail.guard import Guard
from guardrail.model.decoder import decoder_layers
from guardrail.policy import REFUSAL, Limits
from guardrail.types import Action
from tests.waiting import LONG_S, at_rest, passes_of, until

PASS, STEER, FLAG = Action.PASS, Action.STEER, Action.FLAG


@pytest.mark.parametrize("action", [PASS, STEER])
def test_chunks_join_to_the_waiting_answer(tiny, guard_on, action):
    guard = guard_on(tiny, action)
    whole = guard.generate("tell me about the cat", max_new_tokens=8)
    stream = guard.stream("tell me about the cat", max_new_tokens=8)
    chunks = list(stream)
    assert len(chunks) > 1
    assert "" not in chunks
    assert "".join(chunks) == whole.text == stream.result.text
    assert stream.result.token_ids == whole.token_ids
    assert stream.verdict == stream.result.verdict


def test_the_verdict_is_known_before_the_first_chunk(llava, guard_on, monkeypatch):
    guard = guard_on(llava)
    asked, hold, decide = threading.Event(), threading.Event(), guard._engine._detector.decide

    def slow(*args):
        asked.set()
        assert hold.wait(LONG_S)
        return decide(*args)

    monkeypatch.setattr(guard._engine._detector, "decide", slow)
    stream = guard.stream("tell me", max_new_tokens=4)
    chunks = []
    reader = threading.Thread(target=lambda: chunks.append((next(stream), stream.verdict)))
    reader.start()
    assert asked.wait(LONG_S)
    assert chunks == []
    assert stream.verdict is None
    hold.set()
    reader.join(LONG_S)
    assert chunks[0][1].action is PASS
    stream.close()


def test_a_flagged_stream_is_the_refusal_message(llava, guard_on):
    stream = guard_on(llava, FLAG).stream("tell me")
    assert list(stream) == [REFUSAL]
    assert stream.verdict.action is FLAG
    assert stream.result.refused_by_guard


def test_a_flagged_stream_raises_before_any_text_if_the_policy_says_so(llava, guard_on):
    stream = guard_on(llava, FLAG, on_flag="raise").stream("tell me")
    with pytest.raises(GuardrailViolation):
        next(stream)
    assert stream.verdict.action is FLAG
    assert list(stream) == []


def test_a_request_that_cannot_be_read_fails_at_once(llava, guard_on):
    with pytest.raises(UnsupportedContentError):
        guard_on(llava).stream(42)


def test_nothing_of_a_stop_string_is_streamed(llava, guard_on):
    guard = guard_on(llava)
    whole = guard.generate("tell me", max_new_tokens=12).text
    stop = whole[4:7]
    stream = guard.stream("tell me", max_new_tokens=12, stop=[stop])
    assert "".join(stream) == whole[: whole.index(stop)]
    assert stream.result.finish_reason == "stop"


@pytest.mark.parametrize("way", ["close", "with", "forget"])
def test_an_abandoned_stream_stops_its_row_within_a_step(llava, guard_on, way):
    guard = guard_on(llava)
    with passes_of(llava.model) as passes:
        stream = guard.stream("tell me", max_new_tokens=200)
        next(stream)
        passes.hold()
        until(passes.held)
        before = passes.begun
        if way == "close":
            stream.close()
            stream.close()
            assert list(stream) == []
        elif way == "with":
            with stream:
                pass
        else:
            del stream
            gc.collect()
        passes.go_on()
        until(lambda: at_rest(guard))
        assert passes.begun == before
    assert guard.generate("tell me", max_new_tokens=3).completion_tokens == 3


def test_a_stream_keeps_its_guard_alive(llava, guard_on, artefact_of, forcing):
    guard = Guard((llava.model, llava.processor), artefact_of(llava), policy=forcing(PASS))
    stream = guard.stream("tell me", max_new_tokens=20)
    del guard
    gc.collect()
    assert len("".join(stream)) > 0
    assert stream.result.completion_tokens == 20


def test_a_stream_that_takes_too_long_says_so(llava, guard_on, slow_layers):
    guard = guard_on(llava)
    slow_layers(llava.model, 0.05)
    stream = guard.stream("tell me", max_new_tokens=200, timeout=0.3)
    with pytest.raises(RequestTimeoutError):
        list(stream)
    assert stream.verdict.action is PASS


def test_an_error_in_the_middle_reaches_the_reader(llava, guard_on, caplog):
    caplog.set_level(logging.CRITICAL)
    guard = guard_on(llava)
    passes = []

    def fail(*_):
        passes.append(1)
        if len(passes) > 3:
            raise RuntimeError("out of memory")

    handle = decoder_layers(llava.model)[3].register_forward_pre_hook(fail)
    stream = guard.stream("tell me", max_new_tokens=20)
    chunks = []
    with pytest.raises(RuntimeError, match="out of memory"):
        chunks.extend(iter(lambda: next(stream), None))
    handle.remove()
    assert guard.generate("tell me", max_new_tokens=3).completion_tokens == 3


def test_streams_of_one_batch_get_only_their_own_chunks(llava, guard_on):
    guard = guard_on(llava, limits=Limits(batch=4, batch_wait_s=0.3))
    prompts = [f"tell me about the cat number {n}" for n in range(4)]
    plug = guard.stream("hello", max_new_tokens=200)  # while it runs, the others gather
    next(plug)
    streams = [guard.stream(prompt, max_new_tokens=6) for prompt in prompts]
    plug.close()
    texts = ["".join(stream) for stream in streams]
    assert texts == [guard.generate(prompt, max_new_tokens=6).text for prompt in prompts]
    assert len(set(texts)) == 4


def test_a_row_that_is_done_is_delivered_while_others_go_on(llava, guard_on, slow_layers):
    guard = guard_on(llava, limits=Limits(batch=2, batch_wait_s=0.3))
    slow_layers(llava.model, 0.03)
    first = guard.generate("tell me", max_new_tokens=6)
    stop = first.text
    other = guard.generate("what is the dog", max_new_tokens=30, stop=[stop])
    assert other.finish_reason == "length"
    plug = guard.stream("hello", max_new_tokens=200)  # while it runs, the others gather
    next(plug)
    long = guard.stream("what is the dog", max_new_tokens=30, stop=[stop])
    short = guard.stream("tell me", max_new_tokens=30, stop=[stop])
    plug.close()
    assert list(short) == []
    assert short.result.finish_reason == "stop"
    assert not long._job.future.done()
    assert "".join(long) == other.text


def test_the_random_state_of_the_caller_is_left_alone(llava, guard_on):
    guard = guard_on(llava)
    torch.manual_seed(4)
    expected = torch.rand(1)
    torch.manual_seed(4)
    list(guard.stream("tell me", max_new_tokens=4, do_sample=True, seed=1))
    assert torch.equal(torch.rand(1), expected)
