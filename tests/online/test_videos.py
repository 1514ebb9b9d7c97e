"""Videos that fit in one window: a request like any other, with one prefill."""

from __future__ import annotations

import pytest
import torch

from guardrail.errors import LimitExceededError, UnsupportedContentError
from guardrail.model.decoder import decoder_layers
from guardrail.model.encode import Encoder
from guardrail.model.load import wrap_model
from guardrail.policy import REFUSAL, Limits
from guardrail.testing import family
from guardrail.types import (
    Action,
    Clip,
    ImagePart,
    Message,
    Modality,
    Request,
    TextPart,
    VideoPart,
    Window,
)
from tests.families.catalogue import VIDEO_FAMILIES

PASS, STEER, FLAG = Action.PASS, Action.STEER, Action.FLAG


@pytest.fixture(params=["qwen2_5_vl", "llava"])
def shown(request, tiny_of):
    """A model that is shown videos, and one that is shown pictures."""
    return tiny_of(request.param)


def turn(*parts):
    return Request((Message(role="user", parts=parts),))


def ask(text, *clips):
    return turn(*map(VideoPart, clips), TextPart(text))


def slow_score(tiny, artefact, request):
    """The formula of the score over a plain pass with all hidden states."""
    encoded = Encoder(wrap_model(tiny.model, tiny.processor)).encode([request])
    with torch.no_grad():
        states = tiny.model(**encoded.inputs, output_hidden_states=True).hidden_states
    terms = []
    for k, layer in enumerate(artefact.header.readout.layers):
        h = states[layer + 1][0, -1].double()
        weight, zero, gap = (
            artefact.tensors[f"readout_{name}"][k].double() for name in ("weight", "zero", "gap")
        )
        terms.append(float((h @ weight - zero) / gap))
    line = artefact.header.recentring["video"].score
    return (sum(terms) / len(terms) - line.intercept) / line.slope


def test_a_passed_video_gets_the_models_own_answer_and_the_right_score(shown, guard_on, clip):
    request = ask("what is this?", clip(1, 3, start=4))
    guard = guard_on(shown)
    result = guard.generate(request, max_new_tokens=6)
    encoded = Encoder(wrap_model(shown.model, shown.processor)).encode([request])
    ids = shown.model.generate(**encoded.inputs, max_new_tokens=6)
    assert list(result.token_ids) == ids[0, encoded.prompt_len :].tolist()
    expected = slow_score(shown, guard.artefact, request)
    assert result.verdict.score == pytest.approx(expected, abs=1e-4)
    assert result.verdict.modality is Modality.VIDEO
    assert result.verdict.window == Window(number=0, of=1, start_s=4, end_s=6, frames=3)
    assert guard.check(request) == result.verdict


def test_a_video_of_one_window_takes_one_prefill(shown, guard_on, clip):
    guard = guard_on(shown)
    runs: list[int] = []
    layer = decoder_layers(shown.model)[0]
    handle = layer.register_forward_pre_hook(lambda *_: runs.append(1))
    try:
        guard.check(ask("what is this?", clip(1)))
        assert len(runs) == 1
        guard.generate(ask("what is this?", clip(1)), max_new_tokens=4)
        assert len(runs) == 1 + 4
    finally:
        handle.remove()


def test_a_flagged_and_a_steered_video_differ_from_a_passed_one(shown, guard_on, clip):
    request = ask("what is this?", clip(1))
    passed, steered, flagged = (
        guard_on(shown, action, steer_tokens=3).generate(request, max_new_tokens=6)
        for action in (PASS, STEER, FLAG)
    )
    assert steered.verdict.action is STEER
    assert steered.verdict.strength > 0
    assert steered.token_ids != passed.token_ids
    assert (flagged.text, flagged.finish_reason) == (REFUSAL, "flag")
    assert {r.verdict.score for r in (passed, steered, flagged)} == {passed.verdict.score}


def test_videos_answered_together_get_what_they_get_alone(shown, guard_on, clip):
    guard = guard_on(shown, limits=Limits(batch=8, batch_wait_s=0.2))
    requests = [ask(f"tell me about {'the cat ' * n}", clip(n)) for n in range(4)]
    alone = [guard.generate(r, max_new_tokens=5) for r in requests]
    mixed = ["tell me", *requests, "about the dog"]
    together = guard.batch(mixed, max_new_tokens=5)
    assert [r.text for r in together[1:-1]] == [r.text for r in alone]
    for one, other in zip(together[1:-1], alone, strict=True):
        assert one.verdict.score == pytest.approx(other.verdict.score, abs=1e-4)
        assert one.verdict.window == other.verdict.window
    assert {r.verdict.modality for r in (together[0], together[-1])} == {Modality.TEXT}
    assert together[0].verdict.window is None


def test_only_requests_of_one_shape_share_a_batch(qwen2_5_vl, guard_on, clip, picture, monkeypatch):
    guard = guard_on(qwen2_5_vl, limits=Limits(batch=8, batch_wait_s=0.2))
    shapes: list[set[object]] = []
    encode = guard._engine.encoder.encode

    def watched(requests):
        shapes.append({request.shape for request in requests})
        return encode(requests)

    monkeypatch.setattr(guard._engine.encoder, "encode", watched)
    image = ImagePart(picture())
    requests = [
        ask("hello", clip(1, 2)),
        ask("hello", clip(2, 4)),
        ask("hello", clip(3, 2)),
        turn(image, VideoPart(clip(4, 2)), TextPart("hello")),
        turn(image, TextPart("hello")),
        ask("hello", clip(5, 4)),
    ]
    verdicts = guard.check_batch(requests)
    assert all(len(batch) == 1 for batch in shapes)
    assert len(shapes) < len(requests)
    assert [v.modality for v in verdicts] == [Modality.VIDEO] * 4 + [Modality.IMAGE, Modality.VIDEO]


def test_several_short_videos_are_judged_each_alone_and_together(shown, guard_on, clip):
    guard = guard_on(shown)
    first, second = clip(1, 2, start=3), clip(2, 3)
    spans = [
        Window(number=0, of=2, start_s=3, end_s=4, frames=2, video=0),
        Window(number=1, of=2, start_s=0, end_s=2, frames=3, video=1),
        Window(number=2, of=3, start_s=0, end_s=4, frames=5, video=None),
    ]
    requests = [ask("compare", first), ask("compare", second), ask("compare", first, second)]
    scores = [slow_score(shown, guard.artefact, request) for request in requests]
    verdict, answer = guard.check(requests[-1]), guard.generate(requests[-1], max_new_tokens=1)
    assert verdict.score == pytest.approx(max(scores), abs=1e-4)
    assert verdict.window == spans[scores.index(max(scores))]
    assert answer.verdict.window == verdict.window


def test_an_artefact_without_videos_refuses_them_before_the_model_runs(
    shown, guard_on, clip, picture
):
    guard = guard_on(shown, video=False)
    encoder = guard._engine.encoder
    assert guard.check("hello").modality is Modality.TEXT
    assert guard.check(turn(ImagePart(picture()), TextPart("hi"))).modality is Modality.IMAGE
    assert Modality.VIDEO not in guard.thresholds
    del guard._engine.encoder  # nothing may be encoded from now on
    guard._engine.encoder = type("Idle", (), {"video_as": encoder.video_as})()
    for ask_for in (guard.check, guard.generate):
        with pytest.raises(UnsupportedContentError, match=r"fitted without video.*fit again"):
            ask_for(ask("what is this?", clip(1)))


def test_a_text_model_says_that_it_reads_no_videos(llama, guard_on, clip):
    with pytest.raises(UnsupportedContentError, match="reads text only"):
        guard_on(llama).check(ask("what is this?", clip(1)))


def test_a_video_too_long_for_the_prompt_names_the_way_out(qwen2_5_vl, guard_on, clip):
    guard = guard_on(qwen2_5_vl, limits=Limits(prompt_tokens=20))
    with pytest.raises(LimitExceededError, match=r"`video\.window`.*fewer pixels") as caught:
        guard.check(ask("what is this?", clip(1, 8)))
    assert caught.value.limit == "prompt_tokens"
    with pytest.raises(LimitExceededError) as plain:
        guard.check("what is this? " * 20)
    assert "video" not in str(plain.value)


def test_frames_of_a_video_do_not_count_as_pictures(shown, guard_on, clip):
    guard = guard_on(shown, limits=Limits(images=0))
    assert guard.check(ask("what is this?", clip(1, 4))).modality is Modality.VIDEO


def test_frames_that_differ_in_size_are_an_error_of_their_request_alone(
    qwen2_5_vl, guard_on, picture, clip
):
    guard = guard_on(qwen2_5_vl, limits=Limits(batch=4, batch_wait_s=0.2))
    mixed = Clip((picture(0), picture(1, width=84)), (0.0, 1.0))
    good, bad = guard.check_batch(
        [ask("hello", clip(1, 2)), ask("hello", mixed)], return_exceptions=True
    )
    assert good.modality is Modality.VIDEO
    assert isinstance(bad, UnsupportedContentError)


@pytest.mark.parametrize("name", [n for n in VIDEO_FAMILIES if not family(n).mixed_media])
def test_a_picture_beside_a_video_is_a_clear_error_where_a_model_cannot_take_both(
    tiny_of, guard_on, clip, picture, name
):
    guard = guard_on(tiny_of(name))
    request = turn(ImagePart(picture()), VideoPart(clip(1, 4)), TextPart("And these?"))
    for asked in (guard.check, guard.generate):
        with pytest.raises(UnsupportedContentError, match=r"together|one by one|cannot take"):
            asked(request)
    assert guard.check("and alone?").score is not None
