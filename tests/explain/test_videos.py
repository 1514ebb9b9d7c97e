"""Which positions belong to which frame of a video."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image

from guardrail.explain.patches import BESIDE, Span, shown_as_pictures, told_apart, video_spans
from guardrail.types import Clip, ImagePart, Message, Request, TextPart, VideoPart

PICTURE = Image.new("RGB", (8, 8))
SLOT = 7


def clip(frames: int) -> Clip:
    return Clip((PICTURE,) * frames, tuple(map(float, range(frames))))


def loaded(merge: int = 1) -> Any:
    vision = SimpleNamespace(spatial_merge_size=merge)
    config = SimpleNamespace(video_token_id=SLOT, vision_config=vision)
    return SimpleNamespace(model=SimpleNamespace(config=config), processor=SimpleNamespace())


def test_frames_and_pictures_are_told_apart_in_the_order_of_the_prompt() -> None:
    parts = (ImagePart(PICTURE), VideoPart(clip(2)), TextPart("a"), VideoPart(clip(1)))
    request = Request((Message(role="user", parts=(*parts, ImagePart(PICTURE))),))
    assert shown_as_pictures(request) == [(None, 0), (0, 0), (0, 1), (1, 0), (None, 1)]
    spans = [Span(n, (10 * n, 10 * n + 1), (1, 2), "") for n in range(5)]
    pictures, frames = told_apart(request, spans)
    assert [(p.number, p.positions, p.grid, p.note) for p in pictures] == [
        (0, (0, 1), None, BESIDE),
        (1, (40, 41), None, BESIDE),
    ]
    assert frames == [
        [Span(0, (10, 11)), Span(1, (20, 21))],
        [Span(0, (30, 31))],
    ]


def test_slots_that_are_tied_to_no_picture_are_tied_to_no_frame() -> None:
    request = Request((Message(role="user", parts=(VideoPart(clip(2)),)),))
    assert told_apart(request, [Span(None, (1, 2, 3), None, "unknown")]) == ([], [[]])


def test_slots_for_videos_are_shared_out_by_the_processors_grid() -> None:
    ids = [1, *[SLOT] * 8, 2, *[SLOT] * 4, 3]
    grids = torch.tensor([[2, 4, 4], [1, 4, 4]])  # patches before four of them are merged
    frames = video_spans(loaded(merge=2), {"video_grid_thw": grids}, ids, [clip(3), clip(2)])
    assert frames == [
        [Span(1, (1, 2, 3, 4)), Span(2, (5, 6, 7, 8))],
        [Span(1, (10, 11, 12, 13))],
    ]


def test_without_a_grid_each_frame_has_as_many_slots() -> None:
    ids = [1, SLOT, SLOT, 5, SLOT, SLOT, 2]  # with a time between them
    assert video_spans(loaded(), {}, ids, [clip(2)]) == [[Span(0, (1, 2)), Span(1, (4, 5))]]


@pytest.mark.parametrize(
    ("ids", "inputs", "clips"),
    [
        ([1, 2], {}, [2]),  # no slots
        ([SLOT] * 5, {}, [2]),  # no equal shares
        ([SLOT] * 4, {"video_grid_thw": torch.tensor([[2, 2, 2]])}, [2]),  # more than there are
        ([SLOT] * 8, {"video_grid_thw": torch.tensor([[2, 2, 2]])}, [1, 1]),  # another number
    ],
)
def test_what_does_not_add_up_is_not_claimed(ids: Any, inputs: Any, clips: Any) -> None:
    found = video_spans(loaded(), inputs, ids, [clip(n) for n in clips])
    assert found == [[] for _ in clips]
