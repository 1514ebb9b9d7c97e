"""Which prompt positions belong to which picture or frame, and to which part of a picture.

A grid is only given where the model's own numbers prove it: the processor's grid, or a tower whose
input size and patch size give the number of positions. Anything else, such as tiles, pooled tokens
or slots filled with something read out of the picture, is a sequence: a square heat map over the
picture would claim what nobody knows.

Whose a slot is, the parts of the prompt say. A model that knows no videos is shown their frames as
pictures, one after the other. One that does has slots of its own for them, often for several frames
at a time.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil, isqrt
from typing import TYPE_CHECKING, Any, Literal

import torch

from guardrail.errors import ConfigurationError
from guardrail.types import Modality, VideoPart

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from PIL.Image import Image

    from guardrail.model.encode import Encoded
    from guardrail.model.load import LoadedModel
    from guardrail.types import Clip, Request

Layout = Literal["auto", "grid", "strip"]
Grid = tuple[int, int]

UNKNOWN = (
    "which part of the picture a position stands for is not known; the positions are shown as a "
    "sequence"
)
ASKED = "shown as a sequence, as asked for"
ASSUMED = "a square in reading order, as asked for; the model's numbers do not confirm it"
UNTIED = "the slots of several pictures cannot be told apart; shown as a sequence"


@dataclass(frozen=True, slots=True)
class Span:
    """Positions of one picture, or of one frame or of several that share them.

    `number` counts the request's pictures, or the video's frames up to the last of these, from 0;
    None if it is not known.
    """

    number: int | None
    positions: tuple[int, ...]
    grid: Grid | None = None
    note: str = ""


def spans_of(
    loaded: LoadedModel, encoded: Encoded, request: Request, layout: Layout = "auto"
) -> tuple[list[Span], list[list[Span]]]:
    """The positions of each picture, and of the frames of each video, in a batch of one.

    Slots that are not tied to a picture are one span; those not tied to a video are none.

    Raises:
        ConfigurationError: as in `picture_spans`.
    """
    ids = encoded.inputs["input_ids"][0].tolist()
    image, video = (slots_of(loaded, ids, what) for what in ("image", "video"))
    images, clips = len(request.images), clips_of(request)
    alone = images + len(clips) == 1

    def owned(slots: Sequence[int], kind: Modality, count: int) -> list[tuple[int, ...]] | None:
        spans = [s for turn in encoded.parts[0].turns for s in turn.stretches if s.kind is kind]
        if len(spans) == count:
            return [tuple(at for at in slots if s.start <= at < s.stop) for s in spans]
        return [tuple(slots)] if alone and count else None

    mine = owned(image, Modality.IMAGE, images)
    if mine is None:
        pictures = [_laid_out(None, image, None, layout, UNTIED)] if image else []
    else:
        pictures = picture_spans(loaded, encoded.inputs, mine, layout)
    # A model that knows no videos has their frames in slots for pictures.
    films = owned(video or image, Modality.VIDEO, len(clips)) or [()] * len(clips)
    return pictures, video_spans(loaded, encoded.inputs, films, clips)


def clips_of(request: Request) -> list[Clip]:
    """The clips of a request without long videos, in order."""
    return [video.clip for video in request.videos if isinstance(video, VideoPart)]


def slots_of(loaded: LoadedModel, ids: Sequence[int], what: Literal["image", "video"]) -> list[int]:
    """Where the token of pictures or videos stands, which the config names, or the processor."""
    for owner in (loaded.model.config, loaded.processor):
        for name in (f"{what}_token_id", f"{what}_token_index"):
            token = getattr(owner, name, None)
            if isinstance(token, int):
                return [at for at, found in enumerate(ids) if found == token]
    return []


def picture_spans(
    loaded: LoadedModel,
    inputs: Mapping[str, Any],
    slots: Sequence[Sequence[int]],
    layout: Layout = "auto",
) -> list[Span]:
    """The positions of pictures whose slots are these, laid out.

    Layout `auto` gives a grid where it is proven, `strip` never does, `grid` takes a square number
    of positions for a square grid.

    Raises:
        ConfigurationError: `grid` was asked for and the number of positions is no square.
    """
    grids = known_grids(loaded, inputs, [len(mine) for mine in slots])
    return [
        _laid_out(number, mine, grids[number] if grids else None, layout, UNKNOWN)
        for number, mine in enumerate(slots)
        if mine
    ]


def known_grids(
    loaded: LoadedModel, inputs: Mapping[str, Any], counts: Sequence[int]
) -> list[Grid] | None:
    """(rows, columns) of every picture, where they are as many as it has slots; else None."""
    listed, sized = _listed(loaded, inputs), _sized(loaded, inputs)
    for found in (listed, sized, _tower(loaded, inputs, sum(counts))):
        if found and [rows * columns for rows, columns in found] == list(counts):
            return found
    return None


def _listed(loaded: LoadedModel, inputs: Mapping[str, Any]) -> list[Grid] | None:
    """From `image_grid_thw` (Qwen-VL and others): patches (time, rows, columns) before merging."""
    grids = inputs.get("image_grid_thw")
    if grids is None:
        return None
    merge = merge_size(loaded)
    rows = grids.tolist()
    if any(t != 1 or h % merge or w % merge for t, h, w in rows):
        return None
    return [(h // merge, w // merge) for _, h, w in rows]


def _sized(loaded: LoadedModel, inputs: Mapping[str, Any]) -> list[Grid] | None:
    """From `image_sizes` (Pixtral, Mistral 3): pictures of free size, padded to the largest."""
    sizes: Any = inputs.get("image_sizes")
    pixels: Any = inputs.get("pixel_values")
    patch = _number(getattr(loaded.model.config, "vision_config", None), "patch_size")
    if sizes is None or patch is None or getattr(pixels, "ndim", 0) != 4:
        return None
    found = [tuple(map(int, size)) for size in sizes]
    step = patch * merge_size(loaded)
    if (max(h for h, _ in found), max(w for _, w in found)) != tuple(pixels.shape[2:]):
        return None
    return [(h // step, w // step) for h, w in found]


def _tower(loaded: LoadedModel, inputs: Mapping[str, Any], slots: int) -> list[Grid] | None:
    """From a tower of one input size (CLIP, SigLIP): its patches, or squares of them.

    The processor must deliver that very size; if the model lays the picture out anew, its tower's
    numbers say nothing about the picture.
    """
    vision: Any = getattr(loaded.model.config, "vision_config", None)
    pixels: Any = inputs.get("pixel_values")
    size, patch = _number(vision, "image_size"), _number(vision, "patch_size")
    if size is None or patch is None or getattr(pixels, "ndim", 0) != 4:
        return None
    pictures = pixels.shape[0]
    if tuple(pixels.shape[2:]) != (size, size) or slots % pictures:
        return None
    side = isqrt(slots // pictures)
    if side * side * pictures != slots or side not in _sides(loaded.model.config, size // patch):
        return None
    return [(side, side)] * pictures


def _sides(config: Any, side: int) -> set[int]:
    """How many positions a side a tower of `side` patches may give: all, or pooled as declared.

    A square number alone proves nothing: learned queries (a resampler, a Q-Former) have no place.
    """
    sides = {side}
    tokens = _number(config, "mm_tokens_per_image")  # Gemma 3: averaged over squares
    ratio = getattr(config, "downsample_ratio", None)  # InternVL: squares put into one position
    if tokens is not None and side % isqrt(tokens) == 0:
        sides.add(isqrt(tokens))
    if isinstance(ratio, float) and (side * ratio).is_integer():
        sides.add(int(side * ratio))
    return sides


def merge_size(loaded: LoadedModel) -> int:
    """How many patches a side are merged into one position."""
    config = loaded.model.config
    for owner in (getattr(config, "vision_config", None), config):
        merge = _number(owner, "spatial_merge_size")
        if merge is not None:
            return merge
    images: Any = getattr(loaded.processor, "image_processor", None)
    return _number(images, "merge_size") or 1


def _number(owner: Any, name: str) -> int | None:
    """A positive whole number of a config, of which a square pair is one; else None."""
    value = getattr(owner, name, None)
    if isinstance(value, list | tuple) and len(set(value)) == 1:
        value = value[0]
    return value if isinstance(value, int) and value > 0 else None


def _laid_out(
    number: int | None, slots: Sequence[int], grid: Grid | None, layout: Layout, why: str
) -> Span:
    """A span under the layout asked for; `why` there is no grid otherwise."""
    positions = tuple(slots)
    if layout == "strip":
        return Span(number, positions, None, ASKED)
    if grid is None and layout == "grid" and number is not None:
        side = isqrt(len(slots))
        if side * side != len(slots):
            raise ConfigurationError(
                f"a picture has {len(slots)} positions, which is no square number; its grid is not "
                "known, use the layout `strip`"
            )
        return Span(number, positions, (side, side), ASSUMED)
    return Span(number, positions, grid, "" if grid else why)


def video_spans(
    loaded: LoadedModel,
    inputs: Mapping[str, Any],
    slots: Sequence[Sequence[int]],
    clips: Sequence[Clip],
) -> list[list[Span]]:
    """The frames of videos whose slots are these; none where they are not tied.

    The processor's grid says how many groups of frames there are, else each frame is one; they
    share the slots evenly.
    """
    grids: Any = inputs.get("video_grid_thw")
    if grids is not None:
        area = merge_size(loaded) ** 2
        shapes = [(int(t), int(t * h * w) // area) for t, h, w in grids.tolist()]
    else:
        shapes = [(len(clip.frames), len(mine)) for clip, mine in zip(clips, slots, strict=True)]
    if len(shapes) != len(clips):
        return [[] for _ in clips]
    videos: list[list[Span]] = []
    for (groups, count), mine, clip in zip(shapes, slots, clips, strict=True):
        length, share = len(clip.frames), count // max(groups, 1)
        tied = share > 0 and groups * share == count == len(mine)
        lasts = (min((group + 1) * ceil(length / groups), length) - 1 for group in range(groups))
        parts = (tuple(mine[share * group :][:share]) for group in range(groups))
        videos.append([Span(*pair) for pair in zip(lasts, parts, strict=True)] if tied else [])
    return videos


def seen_picture(
    loaded: LoadedModel, inputs: Mapping[str, Any], request: Request, number: int
) -> Image:
    """Picture `number` as the model got it: resized, cropped, its normalisation undone.

    The original where the processor hands over patches instead of a picture: processors that do
    (Qwen-VL's) neither crop nor pad.
    """
    pixels = inputs.get("pixel_values")
    whole = isinstance(pixels, torch.Tensor) and pixels.ndim == 4 and pixels.shape[1] == 3
    if not whole or pixels is None or pixels.shape[0] != len(request.images):
        return request.images[number]
    picture = pixels[number].float()
    sizes = inputs.get("image_sizes")
    if sizes is not None:  # pictures of free size, padded to the largest at the right and below
        height, width = (int(n) for n in sizes[number])
        if height <= picture.shape[1] and width <= picture.shape[2]:
            picture = picture[:, :height, :width]
    processor = getattr(loaded.processor, "image_processor", None)
    if getattr(processor, "do_normalize", False):
        mean, std = (
            torch.tensor(getattr(processor, name)).reshape(-1, 1, 1)
            for name in ("image_mean", "image_std")
        )
        picture = picture * std + mean
    if getattr(processor, "do_rescale", True):
        picture = picture / (getattr(processor, "rescale_factor", None) or 1 / 255)
    from PIL import Image as Images

    bytes_ = picture.round().clamp(0, 255).to(torch.uint8)
    return Images.fromarray(bytes_.permute(1, 2, 0).contiguous().numpy())
