"""Positions of pictures and frames: grids only where the model's own numbers prove them."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from guardrail.errors import ConfigurationError
from guardrail.explain.patches import (
    ASSUMED,
    UNKNOWN,
    UNTIED,
    Span,
    picture_spans,
    seen_picture,
    slots_of,
    spans_of,
    video_spans,
)
from guardrail.inputs.messages import to_request
from guardrail.model.encode import Encoder
from guardrail.model.load import wrap_model
from guardrail.policy import Policy
from guardrail.types import (
    Clip,
    ImagePart,
    Message,
    Modality,
    Request,
    RowParts,
    Stretch,
    TextPart,
    TurnSpan,
    VideoPart,
)

TOKEN = 9


def model_with(**config: Any) -> Any:
    vision = SimpleNamespace(**config.pop("vision", {}))
    config = {"image_token_id": TOKEN, "vision_config": vision} | config
    model = SimpleNamespace(config=SimpleNamespace(**config))
    return SimpleNamespace(model=model, processor=SimpleNamespace())


def spans(loaded: Any, inputs: dict[str, Any], *counts: int, **options: Any) -> Any:
    """Spans of pictures with so many slots each, from position 1 on."""
    starts = [1, *(1 + sum(counts[:n]) for n in range(1, len(counts)))]
    slots = [range(start, start + count) for start, count in zip(starts, counts, strict=True)]
    return picture_spans(loaded, inputs, slots, **options)


def pixels(count: int, height: int, width: int) -> torch.Tensor:
    return torch.zeros(count, 3, height, width)


@pytest.mark.parametrize(
    ("family", "grids"),
    [("llava", [(2, 2), (2, 2)]), ("gemma3", [(2, 2), (2, 2)]), ("qwen2_5_vl", [(1, 2), (2, 1)])],
)
def test_each_family_says_where_its_positions_are(tiny_of, picture, family, grids):
    tiny = tiny_of(family)
    loaded = wrap_model(tiny.model, tiny.processor)
    images = [
        {"type": "image", "image": picture(width=60, height=40)},
        {"type": "image", "image": picture(1, width=40, height=60)},
    ]
    request = to_request([{"role": "user", "content": images}], policy=Policy())
    encoded = Encoder(loaded).encode([request])
    ids = encoded.inputs["input_ids"][0].tolist()
    found, videos = spans_of(loaded, encoded, request)
    assert not videos
    assert [span.grid for span in found] == grids
    assert [span.number for span in found] == [0, 1]
    told = [at for span in found for at in span.positions]
    assert told == slots_of(loaded, ids, "image")
    assert tiny.tokenizer.decode([ids[told[0]]]) in (
        "<image>",
        "<|image_pad|>",
        "<image_soft_token>",
    )


CLIP = {"vision": {"image_size": 336, "patch_size": 14}}
CASES = {
    "all patches": (CLIP, pixels(1, 336, 336), 576, (24, 24)),
    "averaged, as declared": (
        {"vision": {"image_size": 896, "patch_size": 14}, "mm_tokens_per_image": 256},
        pixels(1, 896, 896),
        256,
        (16, 16),
    ),
    "shuffled, as declared": (
        {"vision": {"image_size": [448, 448], "patch_size": [14, 14]}, "downsample_ratio": 0.5},
        pixels(1, 448, 448),
        256,
        (16, 16),
    ),
    "queries that happen to be a square": (CLIP, pixels(1, 336, 336), 64, None),
    "a class token among them": (CLIP, pixels(1, 336, 336), 577, None),
    "a tower that gets something else": (
        {"vision": {"image_size": 224, "patch_size": 28}},
        pixels(1, 896, 896),
        64,
        None,
    ),
    "tiles of one picture": (CLIP, pixels(4, 336, 336), 4 * 576, None),
    "no numbers": ({}, pixels(1, 336, 336), 64, None),
    "no pictures handed over": (CLIP, None, 576, None),
}


@pytest.mark.parametrize("case", CASES)
def test_a_square_is_no_proof(case):
    config, given, slots, grid = CASES[case]
    (span,) = spans(model_with(**dict(config)), {"pixel_values": given}, slots)
    assert span.grid == grid
    assert span.note == ("" if grid else UNKNOWN)
    assert span.positions == tuple(range(1, slots + 1))


def test_pictures_of_free_size_have_their_own_grids_row_by_row():
    loaded = model_with(vision={"image_size": 1540, "patch_size": 14}, spatial_merge_size=2)
    inputs = {
        "pixel_values": pixels(2, 84, 112),
        "image_sizes": torch.tensor([[84, 56], [56, 112]]),
    }
    found = spans(loaded, inputs, 6, 8)
    assert [span.grid for span in found] == [(3, 2), (2, 4)]
    assert [len(span.positions) for span in found] == [6, 8]


def test_a_listed_grid_that_does_not_add_up_is_not_believed():
    loaded = model_with(vision={"spatial_merge_size": 2})
    grid = torch.tensor([[1, 4, 6]])
    assert spans(loaded, {"image_grid_thw": grid}, 6)[0].grid == (2, 3)
    assert spans(loaded, {"image_grid_thw": grid}, 8)[0].grid is None
    assert spans(loaded, {"image_grid_thw": torch.tensor([[2, 4, 6]])}, 12)[0].grid is None


def encoded_as(ids: list[int], *stretches: Stretch, **inputs: Any) -> Any:
    """A batch of one in which the user's message has these stretches."""
    turns = (TurnSpan(0, "user", 0, len(ids), stretches),) if stretches else ()
    tokens = {"input_ids": torch.tensor([ids])}
    return SimpleNamespace(inputs=tokens | inputs, parts=(RowParts(len(ids), turns),))


def asked(*parts: Any) -> Request:
    return Request((Message(role="user", parts=parts),))


def test_slots_are_the_pictures_whose_stretch_they_stand_in():
    ids = [1, TOKEN, 2, TOKEN, 3, TOKEN, TOKEN, 1]  # tiles of the first, and another beside them
    pictures = asked(ImagePart(PICTURE), ImagePart(PICTURE))
    shares = Stretch(0, Modality.IMAGE, 1, 6), Stretch(1, Modality.IMAGE, 6, 7)
    (first, second), _ = spans_of(model_with(), encoded_as(ids, *shares), pictures)
    assert (first.number, first.positions) == (0, (1, 3, 5))
    assert (second.number, second.positions) == (1, (6,))
    assert first.note == UNKNOWN


def test_slots_in_no_stretch_are_tied_to_a_picture_that_is_alone():
    ids = [1, TOKEN, 2, TOKEN, 1]
    (one,), _ = spans_of(model_with(), encoded_as(ids), asked(ImagePart(PICTURE)))
    assert (one.number, one.positions) == (0, (1, 3))
    two = asked(ImagePart(PICTURE), ImagePart(PICTURE))
    (together,), _ = spans_of(model_with(), encoded_as(ids), two)
    assert (together.number, together.positions, together.note) == (None, (1, 3), UNTIED)


def test_a_grid_asked_for_is_marked_as_assumed():
    (span,) = spans(model_with(), {}, 64, layout="grid")
    assert span.grid == (8, 8)
    assert span.note == ASSUMED
    with pytest.raises(ConfigurationError, match="63 positions, which is no square"):
        spans(model_with(), {}, 63, layout="grid")


def test_a_prompt_without_pictures_has_no_spans():
    assert spans_of(model_with(), encoded_as([1, TOKEN]), asked(TextPart("a"))) == ([], [])
    unnamed = model_with(image_token_id=None)
    assert spans_of(unnamed, encoded_as([1, 2]), asked(ImagePart(PICTURE))) == ([], [])


def noise(seed: int, width: int, height: int) -> Image.Image:
    rng = np.random.default_rng(seed)
    return Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))


def seen(tiny, *images):
    loaded = wrap_model(tiny.model, tiny.processor)
    parts = [{"type": "image", "image": image} for image in images]
    request = to_request([{"role": "user", "content": parts}], policy=Policy())
    inputs = Encoder(loaded).encode([request]).inputs
    return [seen_picture(loaded, inputs, request, number) for number in range(len(images))]


@pytest.mark.parametrize("family", ["llava", "gemma3"])
def test_a_picture_of_the_towers_size_comes_back_as_it_was(tiny_of, family):
    given = [noise(seed, 28, 28) for seed in (1, 2)]
    for before, after in zip(given, seen(tiny_of(family), *given), strict=True):
        assert np.abs(np.asarray(before, int) - np.asarray(after, int)).max() <= 1


def test_what_was_cropped_off_is_not_there(llava):
    wide = Image.new("RGB", (84, 28), "red")
    wide.paste(Image.new("RGB", (28, 28), "blue"), (28, 0))
    (middle,) = seen(llava, wide)
    assert middle.size == (28, 28)
    assert middle.getpixel((14, 14)) == (0, 0, 255)


def test_patches_alone_stand_for_the_whole_picture(qwen2_5_vl):
    given = noise(3, 60, 40)
    assert seen(qwen2_5_vl, given)[0].tobytes() == given.tobytes()


def test_padding_of_pictures_of_free_size_is_cut_off():
    pixels = torch.zeros(2, 3, 6, 8)
    pixels[1, 0, :4, :] = 1.0  # a red picture of 8 by 4, padded below
    inputs = {"pixel_values": pixels, "image_sizes": torch.tensor([[6, 5], [4, 8]])}
    loaded = SimpleNamespace(processor=SimpleNamespace())
    request = SimpleNamespace(images=(None, None))
    tall, wide = (seen_picture(loaded, inputs, request, number) for number in (0, 1))
    assert (tall.size, wide.size) == ((5, 6), (8, 4))
    assert wide.getcolors() == [(32, (255, 0, 0))]


PICTURE = Image.new("RGB", (8, 8))
SLOT = 7


def clip(frames: int) -> Clip:
    return Clip((PICTURE,) * frames, tuple(map(float, range(frames))))


def video_model(merge: int = 1) -> Any:
    vision = SimpleNamespace(spatial_merge_size=merge)
    config = SimpleNamespace(video_token_id=SLOT, vision_config=vision)
    return SimpleNamespace(model=SimpleNamespace(config=config), processor=SimpleNamespace())


def test_frames_in_slots_for_pictures_share_those_of_their_video():
    request = asked(ImagePart(PICTURE), VideoPart(clip(2)), TextPart("a"), VideoPart(clip(1)))
    ids = [1, TOKEN, 1, *[TOKEN] * 4, 1, 1, TOKEN, TOKEN, 1]
    kinds = (Modality.IMAGE, 1, 2), (Modality.VIDEO, 3, 7), (Modality.TEXT, 7, 8)
    stretches = [Stretch(n, *kind) for n, kind in enumerate((*kinds, (Modality.VIDEO, 9, 11)))]
    pictures, videos = spans_of(model_with(), encoded_as(ids, *stretches), request)
    assert [(span.number, span.positions, span.grid) for span in pictures] == [(0, (1,), None)]
    assert videos == [[Span(0, (3, 4)), Span(1, (5, 6))], [Span(0, (9, 10))]]


def test_slots_that_are_tied_to_no_video_are_tied_to_no_frame():
    request = asked(VideoPart(clip(2)), VideoPart(clip(2)))
    assert spans_of(model_with(), encoded_as([1, *[TOKEN] * 4]), request) == ([], [[], []])


def test_slots_for_videos_are_shared_out_by_the_processors_grid():
    slots = [range(1, 9), range(10, 14)]
    grids = torch.tensor([[2, 4, 4], [1, 4, 4]])  # patches before four of them are merged
    inputs = {"video_grid_thw": grids}
    frames = video_spans(video_model(merge=2), inputs, slots, [clip(3), clip(2)])
    assert frames == [
        [Span(1, (1, 2, 3, 4)), Span(2, (5, 6, 7, 8))],
        [Span(1, (10, 11, 12, 13))],
    ]


def test_without_a_grid_each_frame_has_as_many_slots():
    ids = [1, SLOT, SLOT, 5, SLOT, SLOT, 2]  # with a time between them
    film = encoded_as(ids, Stretch(0, Modality.VIDEO, 1, 6))
    found = spans_of(video_model(), film, asked(VideoPart(clip(2))))
    assert found == ([], [[Span(0, (1, 2)), Span(1, (4, 5))]])


@pytest.mark.parametrize(
    ("counts", "grids", "clips"),
    [
        ([0], None, [2]),  # no slots
        ([5], None, [2]),  # no equal shares
        ([4], [[2, 2, 2]], [2]),  # more than there are
        ([4, 4], [[2, 2, 2]], [1, 1]),  # another number
        ([4], [[3, 1, 1]], [3]),  # fewer
    ],
)
def test_what_does_not_add_up_is_not_claimed(counts: Any, grids: Any, clips: Any):
    inputs = {} if grids is None else {"video_grid_thw": torch.tensor(grids)}
    slots = [range(count) for count in counts]
    found = video_spans(video_model(), inputs, slots, [clip(n) for n in clips])
    assert found == [[] for _ in clips]
