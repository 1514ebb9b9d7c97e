"""Which prompt positions belong to which picture, and to which part of it.

A grid is only given where the model's own numbers prove it: the processor's grid, or a tower whose
input size and patch size give the number of positions. Anything else, such as tiles, pooled tokens
or slots filled with something read out of the picture, is a sequence: a square heat map over the
picture would claim what nobody knows.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from math import isqrt
from typing import TYPE_CHECKING, Any, Literal

from guardrail.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from guardrail.model.load import LoadedModel

Layout = Literal["auto", "grid", "strip"]
Grid = tuple[int, int]

UNKNOWN = (
    "which part of the picture a position stands for is not known for this model; the positions "
    "are shown as a sequence"
)
ASKED = "shown as a sequence, as asked for"
ASSUMED = "a square in reading order, as asked for; the model's numbers do not confirm it"
UNTIED = "the slots of several pictures cannot be told apart; shown as a sequence"


@dataclass(frozen=True, slots=True)
class Span:
    """Positions of one picture; `number` counts the request's pictures from 0, None if unknown."""

    number: int | None
    positions: tuple[int, ...]
    grid: Grid | None
    note: str


def image_token(loaded: LoadedModel) -> int | None:
    """The id that stands at a picture's positions."""
    return token_of(loaded, "image")


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
    """The picture positions of one prompt.

    Args:
        loaded: the model and its processor.
        inputs: what the processor made of the request.
        ids: the prompt's token ids.
        pictures: how many pictures the request has.
        layout: `auto` gives a grid where it is proven, `strip` never does, `grid` takes a square
            number of positions for a square grid.

    Raises:
        ConfigurationError: `grid` was asked for and the number of positions is no square.
    """
    token = image_token(loaded)
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
