"""Which prompt positions belong to which frame of a video.

A model that knows no videos is shown the frames as pictures, one after the other. One that does has
slots of its own for them, often for several frames at a time.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from guardrail.evaluation.patches import merge_size, token_of
from guardrail.types import ImagePart, VideoPart

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from guardrail.evaluation.patches import Span
    from guardrail.model.load import LoadedModel
    from guardrail.types import Clip, Request

BESIDE = "beside the frames of a video; shown as a sequence"
UNTIED = "which positions belong to which frame is not known for this model"


@dataclass(frozen=True, slots=True)
class FrameSlots:
    """The positions of one frame, or of several that share them, up to the frame `number`."""

    number: int
    positions: tuple[int, ...]


def clips_of(request: Request) -> list[Clip]:
    """The clips of a request without long videos, in order."""
    return [video.clip for video in request.videos if isinstance(video, VideoPart)]


def shown_as_pictures(request: Request) -> list[tuple[int | None, int]]:
    """For every picture that such a model gets, in order: its video (None: of none), its number."""
    videos, pictures = iter(range(len(request.videos))), iter(range(len(request.images)))
    found: list[tuple[int | None, int]] = []
    for part in (part for message in request.messages for part in message.parts):
        match part:
            case ImagePart():
                found.append((None, next(pictures)))
            case VideoPart(clip):
                video = next(videos)
                found += [(video, number) for number in range(len(clip.frames))]
    return found


def slots_of_pictures(
    request: Request, spans: Sequence[Span]
) -> tuple[list[Span], list[list[FrameSlots]]]:
    """The spans of pictures alone, and the frames of each video; none where spans are not tied.

    Pictures beside frames are sequences: the processor laid all of them out together.
    """
    order = shown_as_pictures(request)
    frames: list[list[FrameSlots]] = [[] for _ in request.videos]
    pictures = []
    for span in spans:
        video, number = (None, 0) if span.number is None else order[span.number]
        if video is not None:
            frames[video].append(FrameSlots(number, span.positions))
        elif span.number is not None:
            pictures.append(replace(span, number=number, grid=None, note=BESIDE))
    return pictures, frames


def slots_of_videos(
    loaded: LoadedModel, inputs: Mapping[str, Any], ids: Sequence[int], clips: Sequence[Clip]
) -> list[list[FrameSlots]]:
    """The frames of each video where the model has slots for videos; none where they are not tied.

    The processor's grid says how many groups of frames there are, else each frame is one; they
    share the slots evenly.
    """
    token = token_of(loaded, "video")
    slots = [index for index, found in enumerate(ids) if found == token]
    grids: Any = inputs.get("video_grid_thw")
    if grids is not None:
        area = merge_size(loaded) ** 2
        shapes = [(int(t), int(t * h * w) // area) for t, h, w in grids.tolist()]
    else:
        share = len(slots) // max(sum(len(clip.frames) for clip in clips), 1)
        shapes = [(len(clip.frames), share * len(clip.frames)) for clip in clips]
    tied = len(shapes) == len(clips) and sum(n for _, n in shapes) == len(slots) > 0
    if not tied or any(groups < 1 or n % groups for groups, n in shapes):
        return [[] for _ in clips]
    return list(_shared_out(slots, shapes, clips))


def _shared_out(
    slots: Sequence[int], shapes: Sequence[tuple[int, int]], clips: Sequence[Clip]
) -> Iterator[list[FrameSlots]]:
    at = 0
    for (groups, count), clip in zip(shapes, clips, strict=True):
        each, together = count // groups, math.ceil(len(clip.frames) / groups)
        yield [
            FrameSlots(
                min((group + 1) * together, len(clip.frames)) - 1,
                tuple(slots[at + group * each : at + (group + 1) * each]),
            )
            for group in range(groups)
        ]
        at += count
