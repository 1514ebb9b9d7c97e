"""Pictures as the model got them."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from guardrail.evaluation.seen import seen_picture
from guardrail.inputs.messages import to_request
from guardrail.model.encode import Encoder
from guardrail.model.load import wrap_model
from guardrail.policy import Policy


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
