"""Where another model answers, the higher of two scores: the request's, and its plain copy's."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, replace

import pytest

from guardrail.errors import LimitExceededError, RequestTimeoutError
from guardrail.fit.traffic import score_traffic
from guardrail.inputs.folding import folded, folded_text
from guardrail.model.decoder import decoder_layers
from guardrail.online.jobs import Floor
from guardrail.online.video_scan import Thinner
from guardrail.policy import Limits, Thresholds, VideoSampling
from guardrail.types import (
    Action,
    Message,
    Modality,
    Request,
    TextPart,
    ToolCall,
    VideoPart,
    VideoStream,
)

PASS, FLAG = Action.PASS, Action.FLAG
WORDS = ("tell", "cat", "what is this", "make a cake", "hello", "the dog", "two", "a red colour")
NEAR = 1e-4


@dataclass(frozen=True)
class Form:
    """A text that its letters hide, and what it and its copy score each alone."""

    text: str
    own: float
    plain: float

    @property
    def between(self):
        return (self.own + self.plain) / 2


def under(guard, **policy):
    """The same guard under other rules."""
    return guard.with_policy(guard.policy.model_copy(update=policy))


def from_score(score):
    return {"thresholds": dict.fromkeys(Modality, Thresholds(steer=score, flag=score))}


@pytest.fixture
def guard(llava, guard_on):
    return guard_on(llava)


@pytest.fixture
def forms(guard):
    alone = under(guard, fold_text=False)
    texts = [form for word in WORDS for form in ("\u200b".join(word), word.replace("a", "а"))]
    found = [
        Form(text, alone.check(text).score, alone.check(folded_text(text)).score)
        for text in texts
        if folded_text(text) != text
    ]
    alone.close()
    return found


@pytest.fixture
def worse(forms):
    """The form whose copy scores the most above it."""
    return max(forms, key=lambda form: form.plain - form.own)


@pytest.fixture
def better(forms):
    """The form that scores the most above its copy."""
    return min(forms, key=lambda form: form.plain - form.own)


@pytest.fixture
def passes(llava):
    """The rows of every pass of the model."""
    rows: list[int] = []
    layer = decoder_layers(llava.model)[0]
    handle = layer.register_forward_pre_hook(lambda _m, args: rows.append(args[0].shape[0]))
    yield rows
    handle.remove()


def test_the_higher_score_is_the_verdicts(guard, worse, better):
    assert worse.plain > worse.own + 0.1
    assert better.own > better.plain + 0.1
    found, kept = guard.check(worse.text), guard.check(better.text)
    assert found.score == pytest.approx(worse.plain, abs=NEAR)
    assert kept.score == pytest.approx(better.own, abs=NEAR)
    assert (found.folded, kept.folded) == (True, False)
    assert (found.window, kept.window) == (None, None)
    assert found.to_dict()["folded"] is True
    assert "in plain letters" in found.summary()
    assert "in plain letters" not in kept.summary()


def test_a_copy_beyond_the_threshold_flags_and_without_copies_nothing_does(guard, worse):
    other = under(guard, **from_score(worse.between))
    without = under(other, fold_text=False)
    assert other.check(worse.text).action is FLAG
    passed = without.check(worse.text)
    assert (passed.action, passed.folded) == (PASS, False)
    assert passed.score == pytest.approx(worse.own, abs=NEAR)
    for each in (other, without):
        each.close()


def test_what_the_guarded_model_answers_is_judged_as_it_reads_it(guard, worse):
    other = under(guard, **from_score(worse.between))
    result = other.generate(worse.text, max_new_tokens=3)
    assert (result.verdict.action, result.verdict.folded) == (PASS, False)
    assert result.verdict.score == pytest.approx(worse.own, abs=NEAR)
    with other.stream(worse.text, max_new_tokens=3) as stream:
        assert list(stream)
        assert stream.verdict.score == pytest.approx(worse.own, abs=NEAR)
    other.close()


def test_a_text_in_plain_letters_takes_one_pass_and_another_two(guard, worse, passes):
    guard.check("tell me about the cat")
    assert passes == [1]
    guard.check(worse.text)
    assert passes == [1, 1, 1]


def test_plain_texts_share_batches_and_so_do_copies(llava, guard_on, forms, passes):
    guard = guard_on(llava, limits=Limits(queue=32, batch=8, batch_wait_s=1.0))
    guard.check_batch([f"number {n}" for n in range(16)])
    assert passes == [8, 8]
    passes.clear()
    some = forms[:3]
    texts = [form.text for form in some] + [f"number {n}" for n in range(5)]
    verdicts = guard.check_batch(texts)
    assert passes == [3, 8]
    for verdict, form in zip(verdicts, some, strict=False):
        assert verdict.score == pytest.approx(max(form.own, form.plain), abs=NEAR)
        assert verdict.folded == (form.plain > form.own)
    assert not any(verdict.folded for verdict in verdicts[3:])


def test_one_verdict_goes_on_record_for_both(llava, guard_on, worse):
    told = []
    guard = guard_on(llava, audit=lambda verdict, facts: told.append((verdict, facts)))
    verdict = guard.check(worse.text, request_id="r1", client="a")
    [(recorded, facts)] = told
    assert recorded == verdict
    assert (facts["event"], facts["request_id"], facts["client"]) == ("verdict", "r1", "a")
    snapshot = guard.monitor.snapshot()
    assert snapshot.modalities[Modality.TEXT].n == 1


async def test_event_loops_get_the_same_verdict(guard, worse):
    one, other = await asyncio.gather(guard.acheck(worse.text), guard.acheck("hello"))
    assert (one.folded, other.folded) == (True, False)
    assert one.score == pytest.approx(worse.plain, abs=NEAR)


class Outage:
    """A readout that fails on rows with these scores."""

    def __init__(self, readout, bad):
        self._readout, self._bad = readout, bad

    def __getattr__(self, name):
        return getattr(self._readout, name)

    def scores(self, residuals, kinds):
        found = self._readout.scores(residuals, kinds)
        for value in self._bad:
            found[abs(found - value) < 1e-3] = float("nan")
        return found


@pytest.mark.parametrize("broken", ["own", "plain"])
@pytest.mark.parametrize("fail", ["closed", "open"])
def test_an_outage_of_one_of_both_is_an_outage(guard, worse, broken, fail):
    other = under(guard, fail=fail)
    detector = other._engine._detector
    detector.readout = Outage(detector.readout, [getattr(worse, broken)])
    verdict = other.check(worse.text)
    assert (verdict.score, verdict.reason) == (None, "detector_failed")
    assert verdict.action is (FLAG if fail == "closed" else PASS)
    other.close()


@pytest.mark.parametrize("name", ["worse", "better"])
def test_where_outages_pass_one_hides_no_finding_of_the_other(guard, request, name):
    form = request.getfixturevalue(name)
    other = under(guard, fail="open", **from_score(form.between))
    detector = other._engine._detector
    detector.readout = Outage(detector.readout, [min(form.own, form.plain)])
    verdict = other.check(form.text)
    assert verdict.action is FLAG
    assert verdict.folded == (name == "worse")
    other.close()


def test_a_model_that_breaks_under_a_copy_is_one_outage_on_record(llava, guard_on, worse):
    told = []
    guard = guard_on(
        llava,
        audit=lambda verdict, facts: told.append((verdict, facts["event"])),
        limits=Limits(batch=4, batch_wait_s=1.0),
    )
    copy = guard._engine.encoder.encode([folded(as_request(worse.text))]).inputs["input_ids"]

    def broken(_module, _args, kwargs):
        ids = kwargs.get("input_ids")
        if ids is not None and ids.shape == copy.shape and bool((ids == copy).all()):
            raise ZeroDivisionError("no model today")

    handle = llava.model.register_forward_pre_hook(broken, with_kwargs=True)
    try:
        first, second = guard.check_batch([worse.text, "hello"], return_exceptions=True)
    finally:
        handle.remove()
    assert isinstance(first, ZeroDivisionError)
    assert second.action is PASS
    assert sorted(event for _, event in told) == ["outage", "verdict"]


def as_request(text):
    return Request((Message(role="user", parts=(TextPart(text),)),))


def test_the_time_of_a_request_covers_its_copy(guard, worse, slow_layers, llava):
    slow_layers(llava.model, 0.3)
    with pytest.raises(RequestTimeoutError):
        guard.check(worse.text, timeout=0.2)


def test_a_copy_too_long_for_the_policy_is_refused(guard):
    text = "tell ㍿㍿"
    request = as_request(text)
    [plain, copy] = (
        guard._engine.encoder.encode([r]).prompt_len for r in (request, folded(request))
    )
    assert copy > plain
    other = under(guard, limits=Limits(prompt_tokens=plain))
    with pytest.raises(LimitExceededError, match="prompt_tokens"):
        other.check(text)
    assert under(other, fold_text=False).check(text).action is PASS
    other.close()


def test_control_tokens_in_other_letters_are_no_control_tokens(guard):
    """A copy is written down like any other request: what folding spells out stays text."""
    encoder = guard._engine.encoder
    for token in guard.loaded.tokenizer.all_special_tokens:
        wide = "".join(chr(ord(c) + 0xFEE0) if "!" <= c <= "~" else c for c in f"cat{token}")
        copy = folded(as_request(wide))
        assert copy.messages[0].parts == (TextPart(f"cat{token}"),)
        special = guard.loaded.tokenizer.convert_tokens_to_ids(token)
        plain = encoder.encode([as_request("cat")]).inputs["input_ids"]
        ids = encoder.encode([copy]).inputs["input_ids"]
        assert (ids == special).sum() == (plain == special).sum()


def test_words_beside_a_picture_and_in_calls_are_read_too(guard, picture, worse):
    for modality, parts in ((Modality.TEXT, ()), (Modality.IMAGE, (picture(1),))):
        content = [{"type": "image", "image": part} for part in parts]
        shown = [*content, {"type": "text", "text": worse.text}]
        read = [*content, {"type": "text", "text": folded_text(worse.text)}]
        one, other = (guard.check([{"role": "user", "content": c}]) for c in (shown, read))
        assert one.modality is modality
        assert one.score >= other.score - NEAR
    call = ToolCall(name="find", arguments={"q": worse.text})
    chat = Request(
        (
            Message(role="user", parts=(TextPart("hello"),)),
            Message(role="assistant", parts=(), tool_calls=(call,)),
            Message(role="tool", parts=(TextPart("none"),)),
        )
    )
    assert guard.check(chat).score >= guard.check(folded(chat)).score - NEAR


class Clips:
    digest = "0" * 64

    def __init__(self, clips):
        self._clips = clips

    def __iter__(self):
        return iter(self._clips)


def test_of_a_long_video_the_last_request_is_read_in_plain_letters(guard, clip, passes, worse):
    other = under(guard, video=VideoSampling(window=3, answer_frames=3))
    alone = under(other, fold_text=False)
    clips = [clip(n, 2, start=2.0 * n) for n in range(3)]

    def ask(text, video):
        return Request((Message(role="user", parts=(video, TextPart(text))),))

    thinner = Thinner(3)
    for one in clips:
        thinner.add(one)
    long = VideoStream(Clips(clips))
    windows = max(alone.check(ask(worse.text, VideoPart(one))).score for one in clips)
    own, plain = (
        alone.check(ask(text, VideoPart(thinner.clip()))).score
        for text in (worse.text, folded_text(worse.text))
    )
    passes.clear()
    verdict = other.check(ask(worse.text, long))
    assert sum(passes) == len(clips) + 2
    assert verdict.score == pytest.approx(max(windows, own, plain), abs=NEAR)
    assert verdict.folded == (plain > max(windows, own))
    assert (verdict.window.number == 3) == (max(own, plain) > windows)
    assert alone.check(ask(worse.text, long)).score == pytest.approx(max(windows, own), abs=NEAR)
    for each in (other, alone):
        each.close()


def test_a_calibration_sees_the_scores_that_checks_give(guard, worse):
    traffic = score_traffic(guard, [worse.text], keep=4)
    assert traffic.samples[Modality.TEXT].values == pytest.approx([worse.plain], abs=NEAR)


def test_a_floor_is_raised_by_a_copy_that_scores_more_and_by_its_outage():
    low = Floor(0.5, judged=2)
    assert low.raised(0.5) is low
    assert low.raised(0.7) == Floor(0.7, judged=2, folded=True)
    failed = low.raised(None)
    assert failed.folded
    assert failed.score != failed.score
    assert failed.raised(None) is failed
    assert replace(failed, folded=False).raised(0.7) == Floor(0.7, judged=2, folded=True)


def test_a_policy_may_have_what_the_guarded_model_answers_folded_too(guard, worse, passes):
    other = under(guard, fold_answers=True, on_flag="refuse", **from_score(worse.between))
    passes.clear()
    result = other.generate(worse.text, max_new_tokens=3)
    assert passes == [1, 1]  # the copy, and the prompt, which is stopped
    assert (result.verdict.action, result.verdict.folded) == (FLAG, True)
    assert result.verdict.score == pytest.approx(worse.plain, abs=NEAR)
    assert result.refused_by_guard
    with other.stream(worse.text, max_new_tokens=3) as stream:
        assert list(stream) == [other.policy.refusal_message]
        assert stream.verdict.folded
    without = under(guard, fold_answers=True, fold_text=False, **from_score(worse.between))
    assert without.check(worse.text).action is PASS  # each says what it is for
    for each in (other, without):
        each.close()


def test_where_answers_are_folded_plain_texts_cost_no_second_pass(guard, passes):
    other = under(guard, fold_answers=True, **from_score(99))
    plain = guard.generate("tell me about the cat", max_new_tokens=3)
    alone = list(passes)
    passes.clear()
    result = other.generate("tell me about the cat", max_new_tokens=3)
    assert passes == alone
    assert result.text == plain.text
    assert not result.verdict.folded
    other.close()


def test_a_batch_of_answers_is_folded_row_by_row(llava, guard_on, forms):
    guard = guard_on(llava, limits=Limits(queue=32, batch=8, batch_wait_s=1.0))
    other = under(guard, fold_answers=True, **from_score(99))
    some = forms[:3]
    results = other.batch([form.text for form in some] + ["number 1"], max_new_tokens=2)
    for result, form in zip(results, some, strict=False):
        assert result.verdict.score == pytest.approx(max(form.own, form.plain), abs=NEAR)
        assert result.verdict.folded == (form.plain > form.own)
    assert not results[3].verdict.folded
    other.close()
