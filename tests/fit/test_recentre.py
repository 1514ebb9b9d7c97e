"""What a meaningless picture adds."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch

from guardrail.fit.clips import clip_request, meaningless_clips
from guardrail.fit.collect import Collector, text_request
from guardrail.fit.dataset import neutral_prompts
from guardrail.fit.recentre import (
    PROMPTS,
    Offset,
    meaningless_images,
    measure_offsets,
    no_offsets,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from guardrail.model.load import LoadedModel
    from guardrail.types import Request

LAYERS, WIDTH = 3, 4


class Additive:
    """Stands in for a collector: the text's residual plus each picture's mean colour."""

    def __init__(self) -> None:
        self.stages: list[str] = []

    def __call__(self, requests: Sequence[Request], stage: str) -> torch.Tensor:
        self.stages.append(stage)
        rows = []
        for request in requests:
            text = request.messages[0].parts[-1].text
            row = torch.full((LAYERS, WIDTH), float(len(text)))
            frames = [frame for video in request.videos for frame in video.clip.frames]
            for image in (*request.images, *frames):
                row = row + torch.tensor([*image.getpixel((0, 0)), 1.0])
            rows.append(row)
        return torch.stack(rows)


def test_the_offset_is_what_the_picture_adds_and_not_the_prompt() -> None:
    offsets = measure_offsets(Additive(), colours=4)
    pixels = torch.tensor([[*i.getpixel((0, 0)), 1.0] for i in meaningless_images(4)])
    for kind, times in (("image", 1.0), ("images", 2.0)):
        expected = (times * pixels.double().mean(0)).expand(LAYERS, WIDTH)
        torch.testing.assert_close(offsets[kind].mean, expected)
    torch.testing.assert_close(offsets["image"].colours[:, 0], pixels.double())
    after = pixels.roll(-1, dims=0)
    torch.testing.assert_close(offsets["images"].colours[:, 0], (pixels + after).double())
    assert offsets["image"].prompts.shape == (PROMPTS, LAYERS, WIDTH)
    assert offsets["images"].prompts.shape[1:] == (LAYERS, WIDTH)


def test_prompts_are_read_once_without_a_picture() -> None:
    collect = Additive()
    measure_offsets(collect, colours=2)
    assert collect.stages == ["neutral prompts", "re-centring, image", "re-centring, images"]


def test_clips_are_read_only_when_asked_for_and_with_few_prompts() -> None:
    collect = Additive()
    offsets = measure_offsets(collect, colours=4, video=True)
    assert collect.stages[-1] == "re-centring, video"
    clips = [
        sum(torch.tensor([*frame.getpixel((0, 0)), 1.0]).double() for frame in clip.frames)
        for clip in meaningless_clips(4)
    ]
    torch.testing.assert_close(offsets["video"].colours[:, 0], torch.stack(clips))
    torch.testing.assert_close(offsets["video"].mean[0], torch.stack(clips).mean(0))
    assert len(offsets["video"].prompts) == 2
    assert set(measure_offsets(Additive(), colours=2)) == {"image", "images"}


def test_an_offset_is_projected_layer_by_layer() -> None:
    mean = torch.arange(12.0).reshape(LAYERS, WIDTH)
    weight = torch.tensor([[1.0, 0, 0, 0], [0, 0, 0, 1.0]])
    offset = Offset(mean, mean[None], mean[None])
    assert offset.along(weight, [0, 2]).tolist() == [0.0, 11.0]


def test_spreads_are_standard_deviations_of_the_score() -> None:
    colours = torch.zeros(3, LAYERS, WIDTH)
    colours[:, 1, 0] = torch.tensor([2.0, 4.0, 6.0])
    offset = Offset(colours.mean(0), colours, colours.mean(0)[None].repeat(2, 1, 1))
    weight = torch.tensor([[1.0, 0, 0, 0]])
    found = offset.spread(weight, [1], torch.tensor([2.0]))
    assert found == {
        "size": 2.0,
        "spread_colours": 1.0,
        "spread_prompts": 0.0,
        "n_colours": 3,
        "n_prompts": 2,
    }


def test_a_text_model_has_no_offsets_and_claims_no_measurement() -> None:
    for offset in no_offsets(LAYERS, WIDTH).values():
        assert not offset.mean.any()
        found = offset.spread(torch.ones(1, WIDTH), [1], torch.ones(1))
        assert set(found.values()) == {0.0}


def test_meaningless_pictures_have_one_colour_each_and_repeat_by_seed() -> None:
    first, again, other = (meaningless_images(8, seed=s) for s in (0, 0, 1))
    colours = [image.getcolors() for image in first]
    assert all(len(found) == 1 for found in colours)
    assert [i.tobytes() for i in first] == [i.tobytes() for i in again]
    assert not {i.tobytes() for i in first} & {i.tobytes() for i in other}
    assert {(i.mode, i.size) for i in first} == {("RGB", (336, 336))}


def test_offsets_of_a_model_are_differences_of_its_own_means(llava_loaded: LoadedModel) -> None:
    prompts = neutral_prompts("fit")[:2]
    collect = Collector(llava_loaded)
    found = measure_offsets(collect, prompts=prompts, colours=2)
    pictures = meaningless_images(2)
    slow = []
    for prompt in prompts:
        alone = collect([text_request(prompt)], "")[0]
        for picture in pictures:
            slow.append(collect([text_request(prompt, images=[picture])], "")[0] - alone)
    expected = torch.stack(slow).double().mean(0)
    torch.testing.assert_close(found["image"].mean, expected, atol=1e-5, rtol=1e-4)
    assert found["image"].mean[1:].norm(dim=-1).min() == pytest.approx(
        float(expected[1:].norm(dim=-1).min()), rel=1e-3
    )
    assert found["image"].mean.norm() > 0.1


def test_the_offset_of_videos_is_the_difference_of_the_models_own_means(
    llava_loaded: LoadedModel,
) -> None:
    prompts, collect = neutral_prompts("fit")[:2], Collector(llava_loaded)
    found = measure_offsets(collect, prompts=prompts, colours=2, video=True)["video"]
    slow = []
    for prompt in prompts:
        alone = collect([text_request(prompt)], "")[0]
        for clip in meaningless_clips(2):
            slow.append(collect([clip_request(prompt, clip)], "")[0] - alone)
    expected = torch.stack(slow).double().mean(0)
    torch.testing.assert_close(found.mean, expected, atol=1e-5, rtol=1e-4)
    assert found.mean.norm() > 0.1
