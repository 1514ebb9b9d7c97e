"""Clips as models are shown them: as videos, or as their frames."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch

from guardrail.errors import UnsupportedContentError
from guardrail.model.encode import Encoder
from guardrail.model.generate import last_residuals
from guardrail.testing import family
from guardrail.types import Clip, ImagePart, Message, Request, TextPart, VideoPart, VideoStream
from tests.families.catalogue import IMAGE_FAMILIES, VIDEO_FAMILIES

SHOWN_PICTURES = [
    name for name in IMAGE_FAMILIES if name not in VIDEO_FAMILIES and not family(name).own_generate
]
FPS = 2.0


@pytest.fixture
def clip(picture):
    """`clip(seed, 4, start=100.0)`: noise at two frames a second."""

    def make(seed=0, count=4, *, start=0.0, **size):
        frames = tuple(picture(100 * seed + i, **size) for i in range(count))
        return Clip(frames, tuple(start + i / FPS for i in range(count)))

    return make


def turn(*parts):
    wrapped = (TextPart(p) if isinstance(p, str) else p for p in parts)
    return Request((Message(role="user", parts=tuple(wrapped)),))


def by_hand(processor, text, clip):
    """What the processor makes of frames that it is told were sampled as they are."""
    content = [{"type": "video"}, {"type": "text", "text": text}]
    prompt = processor.apply_chat_template(
        [{"role": "user", "content": content}],
        chat_template=processor.chat_template,
        add_generation_prompt=True,
        tokenize=False,
    )
    bos = processor.tokenizer.bos_token
    count = len(clip.frames)
    sampled = {"fps": FPS, "frames_indices": list(range(count)), "total_num_frames": count}
    return processor(
        text=[prompt],
        videos=[np.stack([np.array(frame) for frame in clip.frames])],
        do_sample_frames=False,
        video_metadata=[sampled],
        padding=True,
        padding_side="left",
        return_tensors="pt",
        **({"add_special_tokens": False} if bos and prompt.startswith(bos) else {}),
    )


@pytest.mark.parametrize("name", VIDEO_FAMILIES)
@pytest.mark.parametrize("count", [4, 3])
def test_a_video_model_is_shown_the_frames_as_its_own_processor_takes_them(
    tiny_of, loaded_of, clip, name, count
):
    tiny = tiny_of(name)
    encoder = Encoder(loaded_of(tiny))
    shown = clip(1, count)
    encoded = encoder.encode([turn(VideoPart(shown), "what is this?")])
    expected = by_hand(tiny.processor, "what is this?", shown)
    assert encoder.video_as == "video"
    assert encoded.kinds == ("video",)
    assert set(encoded.inputs) == set(expected)
    for key, value in expected.items():
        assert torch.equal(torch.as_tensor(encoded.inputs[key]), torch.as_tensor(value)), key


@pytest.mark.parametrize("name", SHOWN_PICTURES)
def test_other_models_are_shown_the_frames_as_pictures_in_the_same_place(
    tiny_of, loaded_of, clip, picture, name
):
    encoder = Encoder(loaded_of(tiny_of(name)))
    shown = clip(1, 3)
    encoded = encoder.encode([turn("see", VideoPart(shown), "and", ImagePart(picture(9)))])
    frames = map(ImagePart, shown.frames)
    expected = encoder.encode([turn("see", *frames, "and", ImagePart(picture(9)))])
    assert encoder.video_as == "images"
    assert (encoded.kinds, expected.kinds) == (("video",), ("images",))
    for key, value in expected.inputs.items():
        assert torch.equal(torch.as_tensor(encoded.inputs[key]), torch.as_tensor(value)), key


@pytest.mark.parametrize("name", [*VIDEO_FAMILIES, *SHOWN_PICTURES])
def test_a_row_of_a_batch_of_videos_is_read_as_it_is_alone(tiny_of, loaded_of, clip, name):
    loaded = loaded_of(tiny_of(name))
    encoder = Encoder(loaded)
    requests = [
        turn(VideoPart(clip(1)), "hello"),
        turn(VideoPart(clip(2, start=3600.5)), "tell me about the cat and the dog"),
    ]
    # cross-attention layers see nothing at the last position
    layers = [0, 2, 3] if name == "mllama" else None
    together = last_residuals(loaded, encoder.encode(requests), layers)
    assert torch.isfinite(together).all()
    for row, request in enumerate(requests):
        alone = last_residuals(loaded, encoder.encode([request]), layers)
        torch.testing.assert_close(together[row], alone[0], atol=2e-4, rtol=1e-4)


@pytest.mark.parametrize("name", VIDEO_FAMILIES)
def test_a_video_of_one_frame_can_be_read_and_depends_on_it(tiny_of, loaded_of, clip, name):
    loaded = loaded_of(tiny_of(name))
    encoder = Encoder(loaded)
    one, other = (
        last_residuals(loaded, encoder.encode([turn(VideoPart(clip(seed, 1)), "hello")]))
        for seed in (1, 2)
    )
    assert torch.isfinite(one).all()
    assert not torch.allclose(one, other)


def prompt_of(tiny, encoded):
    return tiny.tokenizer.decode(encoded.inputs["input_ids"][0].tolist())


def test_prompts_with_times_have_those_of_the_frames(tiny_of, loaded_of, clip):
    frames = clip(1, 4).frames
    uneven = Clip(frames, (100.0, 100.4, 107.125, 163.975))
    wanted = {
        "qwen3_vl": ["<100.2 seconds>", "<135.6 seconds>"],  # the mean of each two frames
        "glm4v": ["<|end_of_image|>100", "<|end_of_image|>107"],  # the first of each two
        "gemma4": ["01:40 ", "01:47 ", "02:43 "],
        "smolvlm": ["Frame from 01:40:", "Frame from 01:47:", "Frame from 02:43:"],
        "molmo2": ["100.0 ", "100.4 ", "107.1 ", "164.0 "],
    }
    for name, marks in wanted.items():
        tiny = tiny_of(name)
        text = prompt_of(tiny, Encoder(loaded_of(tiny)).encode([turn(VideoPart(uneven), "hi")]))
        assert all(mark in text for mark in marks), (name, text)


@pytest.mark.parametrize("start", [0.0, 500.0])
def test_a_model_that_reckons_with_seconds_gets_the_mean_rate(tiny_of, loaded_of, clip, start):
    encoder = Encoder(loaded_of(tiny_of("qwen2_5_vl")))
    encoded = encoder.encode([turn(VideoPart(clip(1, 8, start=start)), "hi")])
    assert [float(s) for s in encoded.inputs["second_per_grid_ts"]] == pytest.approx([2 / FPS])


def test_several_videos_of_several_rows_keep_their_own_times(tiny_of, loaded_of, clip):
    tiny = tiny_of("gemma4")
    rows = [
        turn(VideoPart(clip(1, 1, start=60)), "a", VideoPart(clip(2, 1, start=120)), "b"),
        turn(VideoPart(clip(3, 1, start=180)), "a", VideoPart(clip(4, 1, start=240)), "b"),
    ]
    ids = Encoder(loaded_of(tiny)).encode(rows).inputs["input_ids"]
    first, second = (tiny.tokenizer.decode(row.tolist()) for row in ids)
    assert first.index("01:00 ") < first.index("02:00 ")
    assert second.index("03:00 ") < second.index("04:00 ")


def test_a_placeholder_for_videos_in_text_stays_text(tiny_of, loaded_of, clip):
    for name in VIDEO_FAMILIES:
        tiny = tiny_of(name)
        token = tiny.processor.video_token
        request = turn(VideoPart(clip(1, 2)), f"see {token} here")
        text = prompt_of(tiny, Encoder(loaded_of(tiny)).encode([request]))
        assert f"see {token[0]}\u200b{token[1:]} here" in text, name


def test_frames_of_several_sizes_are_pictures_but_no_video(tiny_of, loaded_of, picture):
    mixed = Clip((picture(0), picture(1, width=84)), (0.0, 1.0))
    request = turn(VideoPart(mixed), "hi")
    assert Encoder(loaded_of(tiny_of("llava"))).encode([request]).prompt_len > 0
    with pytest.raises(UnsupportedContentError, match="one size"):
        Encoder(loaded_of(tiny_of("qwen2_5_vl"))).encode([request])


def test_a_template_that_knows_no_video_gets_pictures(tiny_of, loaded_of, clip):
    loaded = loaded_of(tiny_of("qwen2_5_vl"))
    for refuses in (True, False):
        processor = copy.deepcopy(loaded.processor)
        known = "part['type'] == 'video'"
        assert known in processor.chat_template
        template = processor.chat_template.replace(known, "false")
        if not refuses:  # it drops what it does not know
            start = template.index("{%- else %}{{- raise_exception('unknown part")
            end = template.index("{%- endif %}", start)
            template = template[:start] + template[end:]
        processor.chat_template = template
        encoder = Encoder(replace(loaded, processor=processor))
        assert encoder.video_as == "images"
        encoded = encoder.encode([turn(VideoPart(clip(1, 3)), "hi")])
        assert len(encoded.inputs["image_grid_thw"]) == 3


def test_a_text_model_refuses_videos(llama, loaded_of, clip):
    encoder = Encoder(loaded_of(llama))
    assert encoder.video_as is None
    with pytest.raises(UnsupportedContentError, match="reads text only"):
        encoder.encode([turn(VideoPart(clip(1)), "hi")])


def test_a_stream_cannot_be_shown_as_a_whole(tiny_of, loaded_of, clip):
    stream = VideoStream([clip(1)])
    for name in ("llava", "qwen2_5_vl"):
        with pytest.raises(TypeError, match="window by window"):
            Encoder(loaded_of(tiny_of(name))).encode([turn(stream, "hi")])
