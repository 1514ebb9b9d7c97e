"""The difference of means, and when there is none.

What a meaningless picture adds.

The three held-out scores of a layer.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import pytest
import torch

from guardrail.fit.collect import Collector, text_request
from guardrail.fit.dataset import neutral_prompts
from guardrail.fit.directions import (
    PROMPTS,
    LayerScore,
    Offset,
    difference_of_means,
    direction_consistency,
    layer_scores,
    meaningless_images,
    measure_offsets,
    no_offsets,
    safety_margin,
)
from guardrail.fit.prompts import clip_request, meaningless_clips
from guardrail.stats import auroc

if TYPE_CHECKING:
    from collections.abc import Sequence

    from guardrail.model.load import LoadedModel
    from guardrail.types import Request


@pytest.fixture
def residuals() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    unsafe = torch.randn(7, 3, 5, generator=generator) + 1
    return unsafe, torch.randn(9, 3, 5, generator=generator)


def test_directions_are_unit_differences_of_the_class_means(residuals: tuple) -> None:
    unsafe, safe = residuals
    found = difference_of_means(unsafe, safe)
    for layer in range(3):
        low = sum(safe[:, layer].double()) / 9
        high = sum(unsafe[:, layer].double()) / 7
        length = math.sqrt(sum(float(x) ** 2 for x in high - low))
        torch.testing.assert_close(found.direction[layer].double(), (high - low) / length)
        torch.testing.assert_close(found.mu_safe[layer].double(), low)
        torch.testing.assert_close(found.mu_unsafe[layer].double(), high)
        assert float(found.norms[layer]) == pytest.approx(length, rel=1e-5)
    assert found.usable.tolist() == [True] * 3
    assert found.direction.dtype == torch.float32


def test_sums_are_taken_in_double_precision() -> None:
    unsafe = torch.full((10_000, 1, 1), 0.1, dtype=torch.float16)
    found = difference_of_means(unsafe, torch.zeros(1, 1, 1))
    assert float(found.mu_unsafe) == pytest.approx(float(torch.tensor(0.1).half()), rel=1e-6)


def test_a_layer_that_sees_only_the_template_is_unusable(residuals: tuple) -> None:
    unsafe, safe = residuals
    unsafe[:, 1] = safe[:, 1] = torch.arange(5.0)  # the same last tokens after every prompt
    found = difference_of_means(unsafe, safe)
    assert found.usable.tolist() == [True, False, True]
    assert not found.direction[1].any()


@pytest.mark.parametrize(("gap", "usable"), [(5e-5, False), (5e-4, True)])
def test_a_gap_must_be_clear_beside_the_safe_mean(gap: float, usable: bool) -> None:
    safe = torch.tensor([[[1.0, 0.0]]])
    assert difference_of_means(safe + torch.tensor([0.0, gap]), safe).usable.item() is usable


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("side", [0, 1])
def test_a_layer_that_overflows_is_unusable_and_the_others_are_not(
    residuals: tuple, bad: float, side: int
) -> None:
    clean = difference_of_means(*residuals)
    residuals[side][2, 0, 3] = bad
    found = difference_of_means(*residuals)
    assert found.usable.tolist() == [False, True, True]
    assert torch.equal(found.direction[1:], clean.direction[1:])
    # an artefact holds finite numbers only
    everything = (found.direction, found.mu_safe, found.mu_unsafe)
    assert all(bool(part.isfinite().all()) for part in everything)
    assert found.norms[0] == 0


def test_equal_zero_means_are_unusable() -> None:
    nothing = torch.zeros(3, 1, 4)
    assert not difference_of_means(nothing, nothing).usable.any()


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


SHIFTS = (0.0, 0.5, 3.0)


def draw(n: int, seed: int, *, unsafe: bool = False) -> torch.Tensor:
    """(n, 3, 8): the first layer tells the classes apart not at all, the last one well."""
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(n, len(SHIFTS), 8, generator=generator)
    rows[:, 0] = 1.0  # the template's own tokens
    if unsafe:
        rows[:, :, 0] += torch.tensor(SHIFTS)
    return rows


@pytest.fixture(scope="module")
def scored() -> tuple[list[LayerScore], torch.Tensor, torch.Tensor]:
    directions = difference_of_means(draw(60, 0, unsafe=True), draw(60, 1))
    unsafe, safe = draw(40, 2, unsafe=True), draw(50, 3)
    return layer_scores(directions, unsafe, safe, unsafe - safe[:40]), unsafe, safe


@pytest.mark.parametrize("n", [2, 3, 30])
def test_consistency_is_the_mean_cosine_of_all_pairs(n: int) -> None:
    generator = torch.Generator().manual_seed(n)
    rows = torch.randn(n, 6, generator=generator) + 0.5
    cosines = [
        float(torch.nn.functional.cosine_similarity(rows[i].double(), rows[j].double(), dim=0))
        for i in range(n)
        for j in range(n)
        if i != j
    ]
    assert direction_consistency(rows) == pytest.approx(sum(cosines) / len(cosines), abs=1e-9)


def test_consistency_is_one_for_equal_directions_of_any_length() -> None:
    lengths = torch.tensor([[1.0], [5.0], [0.1]])
    assert direction_consistency(lengths * torch.tensor([[1.0, 2.0]])) == pytest.approx(1.0)
    assert direction_consistency(torch.tensor([[1.0, 0.0], [-1.0, 0.0]])) == pytest.approx(-1.0)


def test_the_margin_lies_between_the_tails() -> None:
    unsafe, safe = torch.linspace(1, 3, 101), torch.linspace(0, 2, 101)
    assert safety_margin(unsafe, safe) == pytest.approx(1.1 - 1.9, abs=1e-6)


def test_a_layer_is_scored_by_its_projection_on_held_out_prompts(scored: tuple) -> None:
    rows, unsafe, safe = scored
    directions = difference_of_means(draw(60, 0, unsafe=True), draw(60, 1))
    for layer in (1, 2):
        unit = directions.direction[layer].double()
        zero, gap = directions.mu_safe[layer].double() @ unit, directions.norms[layer]
        high, low = (((x[:, layer].double() @ unit) - zero) / gap for x in (unsafe, safe))
        row = rows[layer]
        assert row.separability == pytest.approx(auroc(high.tolist(), low.tolist()))
        assert row.margin == pytest.approx(safety_margin(high, low), abs=1e-6)
        assert row.norm == pytest.approx(float(gap))


def test_the_combined_score_is_the_mean_of_min_max_scaled_ones(scored: tuple) -> None:
    rows = scored[0]
    assert not rows[0].usable
    assert math.isnan(rows[0].score)
    assert (rows[1].score, rows[2].score) == (0.0, 1.0)  # the last layer wins every score


def test_without_pairs_there_is_no_consistency_and_two_scores_count(scored: tuple) -> None:
    _, unsafe, safe = scored
    directions = difference_of_means(draw(60, 0, unsafe=True), draw(60, 1))
    for pairs in (None, (unsafe - safe[:40])[:1]):  # one pair has no other to agree with
        rows = layer_scores(directions, unsafe, safe, pairs)
        assert all(math.isnan(row.consistency) for row in rows)
        assert [row.score for row in rows[1:]] == [0.0, 1.0]


def test_equal_scores_are_all_full() -> None:
    one = draw(30, 4, unsafe=True)[:, 2:].repeat(1, 2, 1)
    other = draw(30, 5)[:, 2:].repeat(1, 2, 1)
    rows = layer_scores(difference_of_means(one, other), one, other, one - other)
    assert [row.score for row in rows] == [1.0, 1.0]


def test_a_model_without_a_usable_layer_is_scored_without_failing() -> None:
    same = draw(20, 6)
    rows = layer_scores(difference_of_means(same, same), same, same, None)
    assert [row.usable for row in rows] == [False] * 3


def test_a_layer_row_is_plain_and_has_no_nan(scored: tuple) -> None:
    plain = scored[0][0].to_dict()
    assert plain == {
        "layer": 0,
        "usable": False,
        "norm": 0.0,
        "consistency": None,
        "separability": None,
        "margin": None,
        "score": None,
    }
