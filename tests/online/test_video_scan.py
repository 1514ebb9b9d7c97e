"""Long videos: judged window by window, answered once."""

from __future__ import annotations

import asyncio
import copy
import math
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from guardrail.errors import (
    GuardrailViolation,
    InputError,
    LimitExceededError,
    QueueFullError,
    RequestCancelledError,
    RequestTimeoutError,
    UnsupportedContentError,
    VideoDecodeError,
)
from guardrail.guard import Guard
from guardrail.model.decoder import decoder_layers
from guardrail.online.video_scan import Scan, Thinner
from guardrail.policy import REFUSAL, Limits, Policy, Thresholds, VideoSampling
from guardrail.types import (
    Action,
    Clip,
    Message,
    Modality,
    Request,
    TextPart,
    VideoPart,
    VideoStream,
    Window,
)
from guardrail.worker.jobs import Caller
from tests.waiting import LONG_S, at_rest, auntil, passes_of, until

PASS, STEER, FLAG = Action.PASS, Action.STEER, Action.FLAG
SAMPLING = VideoSampling(window=3, answer_frames=3)  # what is answered could be a window, too


class Clips:
    """Windows that count how often, and how far, they are gone through."""

    digest = "0" * 64

    def __init__(self, clips):
        self.clips, self.passes, self.given = clips, 0, 0

    def __iter__(self):
        self.passes += 1
        for one in self.clips:
            self.given += 1
            yield one() if callable(one) else one


@pytest.fixture(params=["qwen2_5_vl", "llava"])
def shown(request, tiny_of):
    """A model that is shown videos, and one that is shown pictures."""
    return tiny_of(request.param)


@pytest.fixture
def clips(clip):
    """`clips(5, seed=1)`: windows of two frames, one after another."""

    def make(count, seed=1):
        return [clip(10 * seed + n, 2, start=2.0 * n) for n in range(count)]

    return make


def ask(text, *videos):
    parts = (v if isinstance(v, VideoPart) else VideoStream(v) for v in videos)
    return Request((Message(role="user", parts=(*parts, TextPart(text))),))


def answered(clips):
    """The frames from which a long video is answered."""
    thinner = Thinner(SAMPLING.answer_frames)
    for one in clips:
        thinner.add(one)
    return VideoPart(thinner.clip())


def under(guard, **policy):
    """The same guard under other rules."""
    return guard.with_policy(guard.policy.model_copy(update=policy))


def at(steer, flag):
    return {"thresholds": dict.fromkeys(Modality, Thresholds(steer=steer, flag=flag))}


class Judged:
    """A long video whose highest window scores more than the frames it is answered from."""

    def __init__(self, guard, clips_of, text="what is this?"):
        for seed in range(20):
            self.clips = clips_of(5, seed)
            self.scores = [guard.check(ask(text, VideoPart(one))).score for one in self.clips]
            self.final = ask(text, answered(self.clips))
            self.own = guard.check(self.final).score
            self.best = max(range(5), key=lambda n: self.scores[n])
            self.most = self.scores[self.best]
            if self.most > self.own + 0.1 and self.best not in (0, 4):
                break
        else:
            raise AssertionError("no such video; draw others")
        self.request = ask(text, Clips(self.clips))
        self.between = (self.own + self.most) / 2


@pytest.fixture
def judged(shown, guard_on, clips):
    guard = under(guard_on(shown), video=SAMPLING)
    yield guard, Judged(guard, clips)
    guard.close()


def test_the_score_is_the_most_of_the_windows_checked_one_by_one(judged):
    guard, video = judged
    verdict = guard.check(video.request)
    assert verdict.score == pytest.approx(video.most, abs=1e-4)
    assert verdict.modality is Modality.VIDEO
    assert verdict.window == Window(
        number=video.best, of=5, start_s=2.0 * video.best, end_s=2.0 * video.best + 1, frames=2
    )
    result = guard.generate(video.request, max_new_tokens=5)
    assert result.verdict.score == pytest.approx(video.most, abs=1e-4)
    assert result.verdict.window == verdict.window
    plain = guard.generate(video.final, max_new_tokens=5)
    assert result.token_ids == plain.token_ids


def test_the_frames_that_are_answered_count_as_one_more_window(shown, guard_on, clips):
    guard = under(guard_on(shown), video=SAMPLING)
    for seed in range(20):
        some = clips(4, seed)
        most = max(guard.check(ask("hello", VideoPart(one))).score for one in some)
        own = guard.check(ask("hello", answered(some))).score
        if own > most + 0.01:
            break
    else:
        raise AssertionError("no such video; draw others")
    verdict = guard.check(ask("hello", Clips(some)))
    assert verdict.score == pytest.approx(own, abs=1e-4)
    assert verdict.window == Window(number=4, of=5, start_s=0, end_s=7, frames=3)
    guard.close()


def test_a_window_beyond_the_flag_threshold_refuses_the_whole(judged):
    guard, video = judged
    flags = under(guard, **at(video.own, video.between))
    result = flags.generate(video.request, max_new_tokens=5)
    assert (result.text, result.finish_reason) == (REFUSAL, "flag")
    assert result.refused_by_guard
    assert result.verdict.action is FLAG
    assert result.verdict.score > video.between
    assert flags.check(video.request) == result.verdict
    raises = under(flags, on_flag="raise")
    with pytest.raises(GuardrailViolation) as caught:
        raises.generate(video.request, max_new_tokens=5)
    assert caught.value.verdict == result.verdict
    flags.close()
    raises.close()


def test_annotate_and_shadow_answer_as_if_nothing_was_found(judged):
    guard, video = judged
    plain = guard.generate(video.final, max_new_tokens=5)
    for change, action in (({"on_flag": "annotate"}, FLAG), ({"mode": "shadow"}, PASS)):
        other = under(guard, **at(video.own, video.between), **change)
        result = other.generate(video.request, max_new_tokens=5)
        assert (result.verdict.action, result.verdict.would_be) == (action, FLAG)
        assert result.verdict.window.of == 5  # the whole video was judged
        assert result.verdict.score == pytest.approx(video.most, abs=1e-4)
        assert result.token_ids == plain.token_ids
        other.close()


def test_a_window_steers_the_answer_at_its_own_strength(shown, guard_on, clips):
    plain = under(guard_on(shown), video=SAMPLING)
    video = Judged(plain, clips)
    artefact = plain.artefact.revised(
        steering=plain.artefact.header.steering.model_copy(update={"gain": 1.0, "a_max": 1e9})
    )
    policy = Policy(video=SAMPLING, **at(video.own, math.inf))
    with Guard((shown.model, shown.processor), artefact, policy=policy) as guard:
        result = guard.generate(video.request, max_new_tokens=5)
        assert guard.generate(video.final, max_new_tokens=5).verdict.action is PASS
    assert result.verdict.action is STEER
    gap = 2.0  # of the artefact's centroids
    assert result.verdict.strength == pytest.approx((video.most - video.own) * gap, abs=1e-3)
    plain.close()


def test_nothing_is_looked_at_behind_a_window_that_is_refused_anyway(shown, guard_on, clips):
    guard = under(guard_on(shown), video=SAMPLING, limits=Limits(batch=1))
    some = clips(40)
    scores = [guard.check(ask("hello", VideoPart(one))).score for one in some[:6]]
    tau = (min(scores) + max(scores)) / 2
    first = next(n for n, score in enumerate(scores) if score > tau)
    flags = under(guard, **at(-1e9, tau))
    windows = Clips(some)
    verdict = flags.check(ask("hello", windows))
    assert verdict.action is FLAG
    # the frames that are refused are judged, too, and may score even more
    assert (verdict.window.number, verdict.window.of) in [(n, n + 1) for n in (first, first + 1)]
    assert windows.given <= first + 2
    guard.close()
    flags.close()


def test_windows_share_batches_and_stay_off_the_record(qwen2_5_vl, guard_on, clips, monkeypatch):
    told: list[object] = []
    guard = guard_on(
        qwen2_5_vl,
        audit=lambda verdict, facts: told.append((verdict, facts["event"])),
        limits=Limits(batch=4, batch_wait_s=0.2),
    )
    guard = under(guard, video=SAMPLING)
    sizes: list[int] = []
    encode = guard._engine.encoder.encode

    def watched(requests):
        sizes.append(len(requests))
        return encode(requests)

    monkeypatch.setattr(guard._engine.encoder, "encode", watched)
    verdict = guard.check(ask("hello", Clips(clips(9))))
    assert sum(sizes) == 10
    assert max(sizes) > 1
    assert told == [(verdict, "verdict")]
    guard.generate(ask("hello", Clips(clips(9))), max_new_tokens=2)
    assert [event for _, event in told] == ["verdict", "verdict", "answer"]
    snapshot = guard.monitor.snapshot()
    assert snapshot.modalities[Modality.VIDEO].n == 2
    guard.close()


@pytest.mark.parametrize("limits", [{"batch": 2}, {"batch": 16, "total_pixels": 2 * 28 * 28}])
def test_a_long_video_needs_no_more_memory_than_two_windows_under_way(llava, guard_on, limits):
    limits = Limits(**limits)
    guard = under(guard_on(llava), video=SAMPLING, limits=limits)
    alive: set[int] = set()
    most = 0

    def window(number):
        def made():
            nonlocal most
            frame = Image.new("RGB", (28, 28), (number, 0, 7))
            alive.add(number)
            weakref.finalize(frame, alive.discard, number)
            most = max(most, len(alive))
            return Clip((frame,), (float(number),))

        return made

    verdict = guard.check(ask("hi", Clips([window(n) for n in range(150)])))
    kept = 2 * SAMPLING.answer_frames + 2
    # under way, in the batch that has just ended, and the one that is being decoded
    assert most <= 2 * 2 + 1 + kept
    assert verdict.window.of in (150, 151)
    guard.close()


def test_an_error_while_windows_are_read_ends_the_request(shown, guard_on, clips):
    def damaged():
        raise VideoDecodeError("the video is damaged behind 6 s")

    guard = under(guard_on(shown), video=SAMPLING)
    with pytest.raises(VideoDecodeError, match="damaged behind 6 s"):
        guard.check(ask("hi", Clips([*clips(3), damaged])))
    assert guard.check("hello").score is not None
    guard.close()


def test_an_error_of_a_window_names_it(qwen2_5_vl, guard_on, clips, picture):
    guard = under(guard_on(qwen2_5_vl), video=SAMPLING)
    mixed = Clip((picture(0), picture(1, width=84)), (4.0, 5.0))
    windows = Clips([*clips(2), mixed, *clips(2)])
    named = r"^window 3 \(video 1, 4.0 to 5.0 s\): .*one size"
    with pytest.raises(UnsupportedContentError, match=named):
        guard.check(ask("hi", windows))
    short = under(guard, limits=Limits(prompt_tokens=10))
    named = r"^window 1 \(video 1, .*`video.window`"
    with pytest.raises(LimitExceededError, match=named) as caught:
        short.generate(ask("hi", Clips(clips(3))))
    assert caught.value.limit == "prompt_tokens"
    assert guard.check("hello").score is not None
    guard.close()
    short.close()


class Outage:
    """A readout without a number for a score near one of these."""

    def __init__(self, readout, bad):
        self._readout, self._bad = readout, bad
        self.layers, self.recentring = readout.layers, readout.recentring

    def scores(self, residuals, kinds):
        found = self._readout.scores(residuals, kinds)
        for bad in self._bad:
            found[(found - bad).abs() < 1e-3] = math.nan
        return found


@pytest.mark.parametrize("fail", ["closed", "open"])
def test_an_outage_in_a_window_is_an_outage_of_the_request(judged, fail):
    guard, video = judged
    other = under(guard, fail=fail)
    bad = video.scores[2]
    other._engine._detector.readout = Outage(other._engine._detector.readout, [bad])
    result = other.generate(video.request, max_new_tokens=4)
    assert (result.verdict.score, result.verdict.reason) == (None, "detector_failed")
    assert result.verdict.action is (FLAG if fail == "closed" else PASS)
    assert result.refused_by_guard == (fail == "closed")
    assert result.verdict.window.number == 2
    assert other.check(video.request) == result.verdict
    other.close()


def test_where_outages_pass_one_hides_no_finding(judged):
    guard, video = judged
    other = under(guard, fail="open", **at(video.between, video.between))
    detector = other._engine._detector
    worst = min(range(5), key=lambda n: video.scores[n])
    detector.readout = Outage(detector.readout, [video.scores[worst], video.own])
    verdict = other.check(video.request)
    assert verdict.action is FLAG
    assert verdict.score > video.between
    other.close()


def test_a_model_that_breaks_is_one_outage_on_record(llava, guard_on, clips):
    told: list[object] = []
    guard = guard_on(llava, audit=lambda verdict, facts: told.append((verdict, facts["event"])))
    guard = under(guard, video=SAMPLING)

    def broken(*_):
        raise ZeroDivisionError("no model today")

    handle = decoder_layers(llava.model)[0].register_forward_pre_hook(broken)
    try:
        with pytest.raises(ZeroDivisionError) as caught:
            guard.generate(ask("hi", Clips(clips(6))))
    finally:
        handle.remove()
    assert "window 1 (video 1, " in caught.value.__notes__[0]
    until(lambda: at_rest(guard))  # windows beside it have ended, too
    assert told == [(None, "outage")]
    guard.close()


def test_the_time_of_a_request_covers_its_windows(llava, guard_on, clips):
    guard = under(guard_on(llava), video=SAMPLING, limits=Limits(batch=2))
    windows = Clips(clips(60))
    with passes_of(llava.model) as passes:
        passes.hold()
        with pytest.raises(RequestTimeoutError, match="sample fewer frames"):
            guard.generate(ask("hi", windows), timeout=1.0)
        with pytest.raises(RequestTimeoutError) as caught:
            guard.generate("hi", timeout=0.01)
    assert "video" not in str(caught.value)
    assert windows.given == 3  # two under way, and the one that waits
    assert guard.check("hello").score is not None
    assert len(guard._engine.worker._waiting) == 0
    guard.close()


def test_windows_wait_for_places_in_a_full_queue(llava, guard_on, clips, slow_layers):
    limits = Limits(batch=1, queue=1)
    guard = under(guard_on(llava), video=SAMPLING, limits=limits)
    expected = guard.check(ask("hi", Clips(clips(5))))
    slow_layers(llava.model, 0.02)
    with ThreadPoolExecutor(1) as pool:
        others = pool.submit(guard.check_batch, [f"tell me {n}" for n in range(15)])
        assert guard.check(ask("hi", Clips(clips(5)))) == expected
        assert len(others.result(LONG_S)) == 15
    guard.close()


def test_windows_leave_room_in_the_queue_for_who_cannot_wait(llava, guard_on, clips, slow_layers):
    guard = under(guard_on(llava), video=SAMPLING, limits=Limits(batch=4, queue=4))
    slow_layers(llava.model, 0.01)
    asked = threading.Event()
    *first, last = clips(40)

    def at_the_end():
        assert asked.wait(LONG_S)
        return last

    windows = Clips([*first, at_the_end])
    with ThreadPoolExecutor(2) as pool:
        videos = [pool.submit(guard.check, ask(f"hi {n}", windows)) for n in range(2)]
        until(lambda: windows.given >= 12)
        for number in range(8):
            assert guard.check(f"tell me {number}").modality is Modality.TEXT
        assert not any(video.done() for video in videos)
        asked.set()
        for video in videos:
            assert video.result(LONG_S).window.of in (40, 41)
    guard.close()


def test_videos_asked_at_once_do_not_mix(shown, guard_on, clips):
    guard = under(guard_on(shown), video=SAMPLING, limits=Limits(batch=4))
    requests = [ask(f"tell me {n}", Clips(clips(4, seed))) for n, seed in enumerate(range(6))]
    expected = [guard.generate(request, max_new_tokens=4) for request in requests]
    with ThreadPoolExecutor(6) as pool:
        found = list(pool.map(lambda r: guard.generate(r, max_new_tokens=4), requests, timeout=60))
    for one, other in zip(found, expected, strict=True):
        assert one.token_ids == other.token_ids
        assert one.verdict.score == pytest.approx(other.verdict.score, abs=1e-4)
        assert one.verdict.window == other.verdict.window
    guard.close()


def test_a_batch_holds_videos_beside_texts(shown, guard_on, clips):
    guard = under(guard_on(shown), video=SAMPLING, limits=Limits(batch=4, queue=3))
    values = ["hello", ask("hi", Clips(clips(4, 1))), "tell me", ask("hi", Clips(clips(3, 2)))]
    alone = [guard.generate(value, max_new_tokens=4) for value in values]
    together = guard.batch(values, max_new_tokens=4)
    assert [r.token_ids for r in together] == [r.token_ids for r in alone]
    for one, other in zip(guard.check_batch(values), alone, strict=True):
        assert one.score == pytest.approx(other.verdict.score, abs=1e-4)
        assert one.window == other.verdict.window
    guard.close()


def test_a_bad_video_takes_only_its_own_place_in_a_batch(llava, guard_on, clips):
    def damaged():
        raise VideoDecodeError("damaged")

    guard = under(guard_on(llava), video=SAMPLING)
    values = ["hello", ask("hi", Clips([*clips(2), damaged])), "tell me"]
    first, bad, last = guard.batch(values, return_exceptions=True, max_new_tokens=2)
    assert isinstance(bad, VideoDecodeError)
    assert first.text
    assert last.text
    guard.close()


def test_of_several_videos_each_is_judged_with_the_others_left_out(
    shown, guard_on, clip, clips, monkeypatch
):
    guard = under(guard_on(shown), video=SAMPLING)
    one, other, short = clips(3, 1), clips(4, 2), VideoPart(clip(99, 1))
    pieces = [*map(VideoPart, one), short, *map(VideoPart, other)]
    flat = [guard.check(ask("compare", piece)).score for piece in pieces]
    shapes: list[object] = []
    encode = guard._engine.encoder.encode

    def watched(requests):
        shapes.extend(request.shape for request in requests)
        return encode(requests)

    monkeypatch.setattr(guard._engine.encoder, "encode", watched)
    verdict = guard.check(ask("compare", Clips(one), short, Clips(other)))
    assert sorted(shapes, key=str) == sorted([(0, (2,))] * 7 + [(0, (1,)), (0, (3, 1, 3))], key=str)
    assert verdict.score >= max(flat) - 1e-4
    if verdict.window.number < len(flat):
        best = flat.index(max(flat))
        assert verdict.score == pytest.approx(max(flat), abs=1e-4)
        assert verdict.window.number == best
        assert verdict.window.video == (0 if best < 3 else 1 if best == 3 else 2)
        assert verdict.window.start_s == pieces[best].clip.times[0]
    guard.close()


def test_a_turn_that_is_left_out_keeps_its_place_in_a_chat(tiny_of, guard_on, clips):
    tiny = tiny_of("smolvlm")
    strict = copy.deepcopy(tiny.processor)
    # as the published template does
    looks = "{%- for m in messages %}{% set kind = m['content'][0]['type'] %}{% endfor %}"
    strict.chat_template = looks + strict.chat_template
    guard = under(guard_on(tiny._replace(processor=strict)), video=SAMPLING)
    said = Message(role="assistant", parts=(TextPart("fine"),))
    first = Message(role="user", parts=(VideoStream(Clips(clips(2, 1))),))
    last = ask("and this?", Clips(clips(2, 2))).messages
    assert guard.check(Request((first, said, *last))).window.of in (4, 5)
    guard.close()


def test_a_stream_gives_nothing_before_the_verdict_of_the_whole(judged):
    guard, video = judged
    with guard.stream(video.request, max_new_tokens=5) as stream:
        chunks = list(stream)
    assert stream.verdict.score == pytest.approx(video.most, abs=1e-4)
    assert "".join(chunks) == guard.generate(video.request, max_new_tokens=5).text
    flags = under(guard, **at(video.own, video.between))
    with flags.stream(video.request, max_new_tokens=5) as stream:
        assert list(stream) == [REFUSAL]
    flags.close()


async def test_the_loop_runs_on_while_a_video_is_judged(llava, guard_on, clips):
    guard = under(guard_on(llava), video=SAMPLING, limits=Limits(batch=1))
    request = ask("hi", Clips(clips(6)))
    expected = guard.generate(request, max_new_tokens=3)

    async def held_up(awaitable):
        """What it gives, after the loop has seen the model wait and let it go on."""
        passes.hold()
        task = asyncio.ensure_future(awaitable)
        await auntil(passes.held)
        assert not task.done()
        passes.go_on()
        return await task

    async def read():
        return [chunk async for chunk in guard.astream(request, max_new_tokens=3)]

    with passes_of(llava.model) as passes:
        assert await held_up(guard.agenerate(request, max_new_tokens=3)) == expected
        assert await held_up(guard.acheck(request)) == expected.verdict
        assert "".join(await held_up(read())) == expected.text
    guard.close()


async def test_cancelling_the_task_ends_the_windows(llava, guard_on, clips):
    guard = under(guard_on(llava), video=SAMPLING, limits=Limits(batch=2))
    windows = Clips(clips(200))
    with passes_of(llava.model) as passes:
        passes.hold()
        task = asyncio.create_task(guard.agenerate(ask("hi", windows)))
        await auntil(lambda: passes.held() and windows.given == 3)  # two under way, one that waits
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        passes.go_on()
        await auntil(lambda: not any(t.name == "guardrail-video" for t in threading.enumerate()))
    assert windows.given <= 4  # the next one was there before anybody looked
    assert (await guard.acheck("hello")).score is not None
    guard.close()


async def test_closing_a_stream_ends_the_windows_before_its_first_chunk(llava, guard_on, clips):
    guard = under(guard_on(llava), video=SAMPLING, limits=Limits(batch=2))
    windows = Clips(clips(100))
    with passes_of(llava.model) as passes:
        passes.hold()
        stream = guard.astream(ask("hi", windows))
        reader = asyncio.ensure_future(anext(stream))
        await auntil(lambda: passes.held() and windows.given == 3)
        await stream.aclose()
        passes.go_on()
        with pytest.raises(RequestCancelledError):
            await asyncio.wait_for(reader, LONG_S)
    assert windows.given <= 4
    guard.close()


def test_closing_the_guard_ends_a_video_that_is_being_judged(llava, guard_on, clips):
    guard = under(guard_on(llava), video=SAMPLING, limits=Limits(batch=2))
    windows = Clips(clips(4) * 100_000)  # nobody waits for its end
    outcome: list[object] = []

    def work():
        try:
            outcome.append(guard.check(ask("hi", windows)))
        except Exception as error:
            outcome.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    until(lambda: windows.given >= 4)
    guard.close()
    thread.join(LONG_S)
    assert not thread.is_alive()
    assert isinstance(outcome[0], Exception)


def test_a_request_goes_through_each_video_once(llava, guard_on, clips):
    guard = under(guard_on(llava), video=SAMPLING)
    windows = Clips(clips(5))
    guard.generate(ask("hi", windows), max_new_tokens=2)
    assert windows.passes == 1
    guard.close()


def test_a_video_that_is_refused_keeps_the_next_from_being_opened(judged, clips):
    guard, video = judged
    flags = under(guard, **at(-1e9, video.between), limits=Limits(batch=1))
    opened, unopened = Clips(video.clips), Clips(clips(3, 7))
    result = flags.generate(ask("what is this?", opened, unopened), max_new_tokens=2)
    assert result.refused_by_guard
    assert result.verdict.window.video == 0
    assert (opened.passes, unopened.passes) == (1, 0)
    flags.close()


async def test_videos_in_tasks_leave_the_threads_of_the_loop_to_others(llava, guard_on, clips):
    guard = under(guard_on(llava), video=SAMPLING, limits=Limits(batch=1))
    asked = [Clips(clips(12, n)) for n in range(3)]
    with ThreadPoolExecutor(1) as only, passes_of(llava.model) as passes:
        asyncio.get_running_loop().set_default_executor(only)
        passes.hold()
        videos = [
            asyncio.create_task(guard.acheck(ask(f"hi {n}", one))) for n, one in enumerate(asked)
        ]
        await auntil(lambda: passes.held() and all(one.given for one in asked))
        assert await asyncio.wait_for(asyncio.to_thread(sum, [1, 2]), LONG_S) == 3
        passes.go_on()
        assert (await guard.acheck("hello")).modality is Modality.TEXT
        for verdict in await asyncio.gather(*videos):
            assert verdict.window.of >= 12
    guard.close()


def test_more_long_videos_at_once_than_may_wait_are_refused(llava, guard_on, clips):
    guard = under(guard_on(llava), video=SAMPLING, limits=Limits(batch=1, queue=1))
    with ThreadPoolExecutor(1) as pool, passes_of(llava.model) as passes:
        passes.hold()
        first = pool.submit(guard.check, ask("hi", Clips(clips(12))))
        until(passes.held)
        with pytest.raises(QueueFullError, match=r"long videos.* allows 1 at"):
            guard.check(ask("hi", Clips(clips(3))))
        passes.go_on()
        (waited,) = guard.check_batch([ask("hi", Clips(clips(3)))])
        assert waited.window.of in (3, 4)
        assert first.result(LONG_S).window.of in (12, 13)
    assert guard.check(ask("hi", Clips(clips(3)))) == waited
    guard.close()


def test_every_beam_of_a_request_has_its_floor(judged):
    guard, video = judged
    beams = guard.generate(video.request, max_new_tokens=3, num_beams=2)
    assert beams.verdict.score == pytest.approx(video.most, abs=1e-4)
    plain = guard.generate(video.final, max_new_tokens=3, num_beams=2)
    assert beams.token_ids == plain.token_ids
    flags = under(guard, **at(video.own, video.between))
    assert flags.generate(video.request, max_new_tokens=3, num_beams=2).refused_by_guard
    flags.close()


def test_a_list_of_frames_is_judged_in_windows_of_the_policy(shown, guard_on, clips):
    guard = under(guard_on(shown), video=SAMPLING)
    frames = [frame for one in clips(4) for frame in one.frames]
    chat = [
        {
            "role": "user",
            "content": [{"type": "video", "video": frames}, {"type": "text", "text": "what?"}],
        }
    ]
    windows = [frames[0:3], frames[3:6], frames[5:8]]
    starts = [0, 3, 5]
    scores = [
        guard.check(ask("what?", VideoPart(Clip(tuple(some), (at, at + 1.0, at + 2.0))))).score
        for some, at in zip(windows, starts, strict=True)
    ]
    spread = Clip((frames[0], frames[4], frames[7]), (0.0, 4.0, 7.0))
    own = guard.check(ask("what?", VideoPart(spread))).score
    verdict = guard.check(chat)
    assert verdict.score == pytest.approx(max(*scores, own), abs=1e-4)
    assert guard.generate(chat, max_new_tokens=3).verdict.window == verdict.window
    assert verdict.window.frames == 3
    guard.close()


class Asked:
    """A scan of five windows, three of them under way at once, whose jobs the test settles."""

    def __init__(self, guard, clips, then, monkeypatch):
        self.guard, self.windows = under(guard, video=SAMPLING, limits=Limits(batch=3)), clips
        self.jobs, self.given_up, self._then = [], [], then
        engine, self.cancelled = self.guard._engine, threading.Event()
        self._cancel = engine.worker.cancel
        monkeypatch.setattr(engine.worker, "submit", self._submit)
        monkeypatch.setattr(engine.worker, "cancel", self._give_up)
        self.scan = Scan(engine, Caller(cancelled=self.cancelled))

    def _submit(self, job, *, wait):
        assert wait
        self.jobs.append(job)
        self._then(self.jobs)

    def _give_up(self, job):
        self.given_up.append(job)
        self._cancel(job)

    def run(self):
        return self.scan.run(ask("hi", self.windows))


@pytest.mark.parametrize("end", ["flag", "error"])
def test_what_ends_a_video_ends_its_windows_under_way_too(llava, guard_on, clips, end, monkeypatch):
    guard = guard_on(llava, FLAG)
    flag = guard.check(ask("hi", VideoPart(clips(1)[0])))

    def settle(jobs):
        if len(jobs) == 3:
            jobs[0].settle(flag) if end == "flag" else jobs[0].fail(VideoDecodeError("damaged"))

    asked = Asked(guard, Clips(clips(5)), settle, monkeypatch)
    if end == "flag":
        _, floor = asked.run()
        assert floor.score == flag.score
    else:
        with pytest.raises(VideoDecodeError):
            asked.run()
    assert asked.windows.given == 4
    assert len(asked.jobs) == 3
    assert not any(job.start() for job in asked.jobs)  # none of them runs any more
    assert asked.given_up[-2:] == asked.jobs[1:]  # nor waits for its turn
    assert not asked.cancelled.is_set()  # the request itself goes on, to its refusal
    asked.guard.close()


def test_a_window_that_was_queued_when_its_caller_was_interrupted_does_not_run(
    llava, guard_on, clips, monkeypatch
):
    def interrupt(_jobs):
        raise KeyboardInterrupt  # before anybody has noted that it is under way

    asked = Asked(guard_on(llava), Clips(clips(5)), interrupt, monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        asked.run()
    assert not asked.jobs[0].start()
    asked.guard.close()


@pytest.mark.parametrize("given_up", [False, True])
def test_windows_that_break_one_after_another_are_one_outage(llava, guard_on, given_up):
    cancelled = threading.Event()
    scan = Scan(guard_on(llava)._engine, Caller(cancelled=cancelled))
    if given_up:
        cancelled.set()  # what breaks now is no outage of a request that somebody waits for
    assert [scan.first_outage() for _ in range(3)] == [not given_up, False, False]


@dataclass(frozen=True)
class Frame:
    number: int


def clips_of_frames(total, window):
    """Frames 0 to total - 1 in windows; the last is filled up backwards."""
    frames = [Frame(n) for n in range(total)]
    for end in [*range(window, total, window), total]:
        shown = frames[max(end - window, 0) : end]
        yield Clip(tuple(shown), tuple(frame.number / 2 for frame in shown))


@given(total=st.integers(1, 700), window=st.integers(1, 9), count=st.integers(1, 9))
def test_the_frames_are_spread_evenly_from_the_first_to_the_last(total, window, count):
    thinner = Thinner(count)
    for clip in clips_of_frames(total, window):
        thinner.add(clip)
    found = thinner.clip()
    numbers = [frame.number for frame in found.frames]
    assert found.times == tuple(n / 2 for n in numbers)
    assert len(numbers) == min(count, total)
    assert numbers == sorted(set(numbers))
    assert numbers[0] == 0
    if count > 1:
        assert numbers[-1] == total - 1
        step = (total - 1) / max(len(numbers) - 1, 1)
        assert all(abs(n - i * step) <= step / 2 + 0.5 for i, n in enumerate(numbers))


def test_what_is_kept_does_not_grow_with_the_video():
    thinner, kept = Thinner(4), 0
    for clip in clips_of_frames(5000, 8):
        thinner.add(clip)
        kept = max(kept, len(thinner._kept))
    assert kept <= 9


def test_frames_shown_at_one_time_are_several_frames():
    thinner, frames = Thinner(4), [Frame(n) for n in range(4)]
    for pair in (frames[:2], frames[1:3], frames[2:]):
        thinner.add(Clip(tuple(pair), (1.0, 1.0)))
    assert thinner.clip() == Clip(tuple(frames), (1.0,) * 4)


def test_a_video_without_frames_is_refused():
    with pytest.raises(InputError, match="no frame"):
        Thinner(4).clip()
