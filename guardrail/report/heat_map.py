"""A picture under the heat map of its positions."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL.Image import Image

    from guardrail.evaluation.explanation import Picture
    from guardrail.report.heat import Scale

_WASH = 0.35  # how far the picture is bleached, so that the colours are seen
_OPACITY = 0.72  # of a cell at an end of the scale


def heat_map(picture: Picture, scale: Scale, side: int = 448) -> Image | None:
    """The picture as the model got it, in grey, under one cell per position; None without a grid.

    Cells are not smoothed: nothing is known between two positions. A cell without a score stays
    clear.

    Args:
        picture: with a grid of (rows, columns).
        scale: the colours.
        side: pixels of the longer side of the result, at least one per cell.
    """
    if picture.grid is None or picture.seen is None:
        return None
    from PIL import Image as Images

    rows, columns = picture.grid
    size = _size(picture.seen, side, rows, columns)
    white = Images.new("RGB", size, "white")
    grey = picture.seen.convert("L").convert("RGB").resize(size, Images.Resampling.LANCZOS)
    ground = Images.blend(grey, white, _WASH)
    cells = Images.new("RGBA", (columns, rows))
    cells.putdata([_cell(score, scale) for score in picture.scores])
    over = cells.resize(size, Images.Resampling.NEAREST)
    ground.paste(over.convert("RGB"), mask=over.getchannel("A"))
    return ground


def _cell(score: float | None, scale: Scale) -> tuple[int, int, int, int]:
    if score is None:
        return (0, 0, 0, 0)
    end = 1.0 if score >= 0.5 else -1.0
    # the pure colour, more or less of it: the middle of the scale leaves the picture alone
    colour = scale.rgb(0.5 + end * scale.half)
    return (*colour, round(255 * _OPACITY * abs(scale.share(score))))


def _size(image: Image, side: int, rows: int, columns: int) -> tuple[int, int]:
    """The picture's shape with its longer side `side`, never smaller than the cells."""
    factor = side / max(image.size)
    width, height = (max(round(n * factor), 1) for n in image.size)
    return max(width, columns), max(height, rows)
