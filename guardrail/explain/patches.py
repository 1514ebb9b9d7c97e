"""Which prompt positions belong to which picture or frame, and to which part of a picture.

A grid is only given where the model's own numbers prove it: the processor's grid, or a tower whose
input size and patch size give the number of positions. Anything else, such as tiles, pooled tokens
or slots filled with something read out of the picture, is a sequence: a square heat map over the
picture would claim what nobody knows.

A model that knows no videos is shown their frames as pictures, one after the other. One that does
has slots of its own for them, often for several frames at a time.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import islice, pairwise
from math import ceil, isqrt
from typing import TYPE_CHECKING, Any, Literal

import torch

from guardrail.errors import ConfigurationError
from guardrail.types import ImagePart, VideoPart

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from PIL.Image import Image

    from guardrail.model.encode import Encoder
    from guardrail.model.load import LoadedModel
    from guardrail.types import Clip, Request

Layout = Literal["auto", "grid", "strip"]
Grid = tuple[int, int]

UNKNOWN = (
    "which part of the picture a position stands for is not known for this model; the positions "
    "are shown as a sequence"
)
ASKED = "shown as a sequence, as asked for"
ASSUMED = "a square in reading order, as asked for; the model's numbers do not confirm it"
UNTIED = "the slots of several pictures cannot be told apart; shown as a sequence"
BESIDE = "beside the frames of a video; shown as a sequence"


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
    loaded: LoadedModel,
    encoder: Encoder,
    inputs: Mapping[str, Any],
    request: Request,
    layout: Layout = "auto",
) -> tuple[list[Span], list[list[Span]]]:
    """The positions of each picture, and of the frames of each video; none where not tied.

    Raises:
        ConfigurationError: as in `picture_spans`.
    """
    ids = inputs["input_ids"][0].tolist()
    if encoder.video_as != "images" or not request.videos:
        pictures = picture_spans(loaded, inputs, ids, len(request.images), layout)
        return pictures, video_spans(loaded, inputs, ids, clips_of(request))
    shown = len(shown_as_pictures(request))
    return told_apart(request, picture_spans(loaded, inputs, ids, shown, layout))


def clips_of(request: Request) -> list[Clip]:
    """The clips of a request without long videos, in order."""
    return [video.clip for video in request.videos if isinstance(video, VideoPart)]


def token_of(loaded: LoadedModel, what: Literal["image", "video"]) -> int | None:
    """The id that stands at the positions of pictures or videos; the config's first."""
    for owner in (loaded.model.config, loaded.processor):
        for name in (f"{what}_token_id", f"{what}_token_index"):
            value = getattr(owner, name, None)
            if isinstance(value, int):
                return value
    return None


def picture_spans(
    loaded: LoadedModel,
    inputs: Mapping[str, Any],
    ids: Sequence[int],
    pictures: int,
    layout: Layout = "auto",
) -> list[Span]:
    """The positions of so many pictures in one prompt.

    Layout `auto` gives a grid where it is proven, `strip` never does, `grid` takes a square number
    of positions for a square grid.

    Raises:
        ConfigurationError: `grid` was asked for and the number of positions is no square.
    """
    token = token_of(loaded, "image")
    slots = [index for index, found in enumerate(ids) if found == token]
    if not slots or not pictures:
        return []
    grids = known_grids(loaded, inputs, len(slots), pictures)
    counts = [rows * columns for rows, columns in grids] if grids else _counts(slots, pictures)
    if counts is None:
        return [_laid_out(None, slots, None, layout, UNTIED)]
    spans, at = [], 0
    for number, count in enumerate(counts):
        grid = grids[number] if grids else None
        spans.append(_laid_out(number, slots[at : at + count], grid, layout, UNKNOWN))
        at += count
    return spans


def known_grids(
    loaded: LoadedModel, inputs: Mapping[str, Any], slots: int, pictures: int
) -> list[Grid] | None:
    """(rows, columns) of every picture, where they add up to the number of slots; else None."""
    for found in (_listed(loaded, inputs), _sized(loaded, inputs), _tower(loaded, inputs, slots)):
        if found and len(found) == pictures and sum(r * c for r, c in found) == slots:
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


def _counts(slots: Sequence[int], pictures: int) -> list[int] | None:
    """Slots per picture: all for one picture, one run each, or equal shares of one run."""
    if pictures == 1:
        return [len(slots)]
    ends = [i + 1 for i, (a, b) in enumerate(pairwise(slots)) if b != a + 1] + [len(slots)]
    if len(ends) == pictures:
        return [b - a for a, b in pairwise([0, *ends])]
    if len(ends) == 1 and len(slots) % pictures == 0:
        return [len(slots) // pictures] * pictures
    return None


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


def shown_as_pictures(request: Request) -> list[tuple[int | None, int]]:
    """For each picture that a model without videos gets: its video (None: of none), its number."""
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


def told_apart(request: Request, spans: Sequence[Span]) -> tuple[list[Span], list[list[Span]]]:
    """The spans of pictures alone, and those of each video's frames; none where not tied.

    Pictures beside frames are sequences: the processor laid all of them out together.
    """
    order = shown_as_pictures(request)
    pictures: list[Span] = []
    frames: list[list[Span]] = [[] for _ in request.videos]
    for span in spans:
        if span.number is not None:
            video, number = order[span.number]
            if video is None:
                pictures.append(Span(number, span.positions, None, BESIDE))
            else:
                frames[video].append(Span(number, span.positions))
    return pictures, frames


def video_spans(
    loaded: LoadedModel, inputs: Mapping[str, Any], ids: Sequence[int], clips: Sequence[Clip]
) -> list[list[Span]]:
    """The frames of each video where the model has slots for videos; none where they are not tied.

    The processor's grid says how many groups of frames there are, else each frame is one; they
    share the slots evenly.
    """
    token = token_of(loaded, "video")
    slots = [index for index, found in enumerate(ids) if found == token]
    lengths = [len(clip.frames) for clip in clips]
    grids: Any = inputs.get("video_grid_thw")
    if grids is not None:
        area = merge_size(loaded) ** 2
        shapes = [(int(t), int(t * h * w) // area) for t, h, w in grids.tolist()]
    else:
        share = len(slots) // max(sum(lengths), 1)
        shapes = [(length, share * length) for length in lengths]
    tied = len(shapes) == len(clips) and sum(count for _, count in shapes) == len(slots) > 0
    if not tied or any(groups < 1 or count % groups for groups, count in shapes):
        return [[] for _ in clips]
    videos, left = [], iter(slots)
    for (groups, count), length in zip(shapes, lengths, strict=True):
        lasts = [min((group + 1) * ceil(length / groups), length) - 1 for group in range(groups)]
        videos.append([Span(n, tuple(islice(left, count // groups))) for n in lasts])
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
