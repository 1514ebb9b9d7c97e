"""Find the lines of text in an image and lay them out again at the size the tower reads best.

The tower reads 8 rows of 8 patches, each 28 px high.  A line whose x-height is about 11 px and
whose baseline lies just above the lower edge of a patch row is read best, so every line is cut
out, scaled and put there; long lines are cut at a gap between words, and a ninth line starts
another page.
"""

from itertools import pairwise
from statistics import median, median_high
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

PAGE = 224  # pixels on each side of a page
ROW, ROWS = 28, 8  # height and number of the patch rows
BASELINE = 24  # where the baseline lies in its row
LEFT, WIDTH = 5, 214  # where a line starts and how wide it may be
MAX_LINES = 48  # more than that is not a typographic image
MIN_X_HEIGHT = 3.0  # letters smaller than this cannot be laid out again
SCRAP = 0.35  # a band lower than this share of the others is no line of its own
TRUSTED = 0.62  # an x-height lower than this share of the others is misjudged
EVEN = 0.12  # a row of pixels that differ by less is of one colour
STROKES = 3.0  # font size in distances from stroke to stroke along a line
ALONE = 1.25  # one line is no higher than this many font sizes
LARGEST = 1.2  # and in heights of the usual block of ink, its font is no larger than this


class View(NamedTuple):
    """One way to lay out an image: pages (n, 3, 224, 224) and the line that each row shows."""

    pages: Tensor
    owners: list[int]


class Line(NamedTuple):
    """One line of text: its edges, its baseline and its x-height, in pixels."""

    top: int
    bottom: int
    base: int
    x_height: float


def text_box(image: Tensor) -> tuple[slice, slice] | None:
    """Rows and columns of the image without its plain border, (3, H, W) -> slices.

    This leaves out the processor's padding and the picture's own margins, but for a pixel on each
    side.  A picture of one colour, or of a straight gradient, is all border and gives None.
    """
    box = [slice(0, image.shape[1]), slice(0, image.shape[2])]
    for axis in (0, 1, 0, 1):
        inner = image[:, box[0], box[1]]
        uneven = (inner.amax(2 - axis) - inner.amin(2 - axis)).amax(0) > EVEN
        at = (uneven.nonzero().flatten() + box[axis].start).tolist()
        if not at:
            return None
        box[axis] = slice(max(box[axis].start, at[0] - 1), min(box[axis].stop, at[-1] + 2))
    return box[0], box[1]


def ink(image: Tensor) -> Tensor:
    """How far each pixel is from the ground colour, (3, H, W) in [-1, 1] -> (H, W) in [0, 1]."""
    ground = image.flatten(1).median(dim=1).values[:, None, None]
    far = (image - ground).abs().amax(0)
    return far / far.max().clamp_min(0.2)


def runs(marked: list[bool], join: int = 0) -> list[tuple[int, int]]:
    """Start and end of each run of True; runs at most `join` apart become one."""
    out: list[tuple[int, int]] = []
    for i, on in enumerate(marked):
        if on and out and i - out[-1][1] <= join:
            out[-1] = (out[-1][0], i + 1)
        elif on:
            out.append((i, i + 1))
    return out


def font_size(dark: Tensor) -> float:
    """The size of the letters, guessed from the distance between their strokes, (H, W) -> px."""
    row, column = F.pad(dark.int(), (1, 0)).diff(dim=1).eq(1).nonzero(as_tuple=True)
    steps = column.diff()[row.diff() == 0]
    return STROKES * float(steps.float().median()) if len(steps) else 0.0


def cuts(profile: Tensor, size: float) -> list[int]:
    """Edges of the lines in a block of touching lines, from the ink in each row, (H,) -> list.

    A block much higher than the letters is cut where rows hold little ink; how little is little
    is what makes the lines as far apart as letters of this size are.
    """
    height = len(profile)
    if size <= 0 or height < 1.7 * size:
        return [0, height]
    best, off = [0, height], 1.0
    for share in (0.1, 0.15, 0.2, 0.3, 0.4, 0.5):
        marked = (profile > share * profile.max()).tolist()
        cores = [core for core in runs(marked, join=2) if core[1] - core[0] >= 0.2 * size]
        between = [low + int(profile[low:high].argmin()) for (_, low), (high, _) in pairwise(cores)]
        edges = [0, *between, height]
        pitch = median(high - low for low, high in pairwise(edges))
        if abs(pitch / size - 1.1) < off:
            best, off = edges, abs(pitch / size - 1.1)
    return best


def bands(dark: Tensor) -> list[tuple[int, int]]:
    """Top and bottom of each line, (H, W) -> list.

    Bold letters look larger than they are, so a high block's font size is held against the
    height of the other blocks; otherwise two touching lines would pass for one.
    """
    profile = dark.sum(1)
    blocks = runs((profile > 0).tolist(), join=1)
    heights = [bottom - top for top, bottom in blocks]
    usual = median_high(h for h in heights if h >= SCRAP * max(heights)) if heights else 0
    out = []
    for top, bottom in blocks:
        size = font_size(dark[top:bottom])
        if bottom - top > ALONE * size:
            size = min(size, LARGEST * usual)
        edges = cuts(profile[top:bottom], size)
        out += [(top + low, top + high) for low, high in pairwise(edges)]
    return joined(out)


def joined(found: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """The bands with dots and other scraps put to the nearest line, tops and bottoms -> list."""
    if not found:
        return []
    least = SCRAP * median_high(bottom - top for top, bottom in found)
    starts = [top for top, bottom in found if bottom - top >= least]
    ends = [bottom for top, bottom in found if bottom - top >= least]
    for top, bottom in found:
        if bottom - top < least:
            above = max((end for end in ends if end <= top), default=None)
            below = min((start for start in starts if start >= bottom), default=None)
            if below is not None and (above is None or below - bottom <= top - above):
                starts[starts.index(below)] = top
            elif above is not None:
                ends[ends.index(above)] = bottom
    return list(zip(starts, ends, strict=True))


def usual_x_height(found: list[Line]) -> float:
    """The x-height of most lines; a low one, since figures and capitals stand higher."""
    heights = sorted(line.x_height for line in found)
    heights = [height for height in heights if height > TRUSTED * median_high(heights)]
    return heights[len(heights) // 4] if heights else 0.0


def lines(dark: Tensor) -> list[Line]:
    """The lines of text, (H, W) -> list."""
    profile = dark.sum(1).float()
    found = []
    for top, bottom in bands(dark):
        rise, middle = F.pad(profile[top:bottom], (1, 1)).diff(), (bottom - top) // 2
        x_top = int(rise[: middle + 1].argmax())
        base = middle + int(rise[middle:].argmin())
        found.append(Line(top, bottom, top + base, float(base - x_top)))
    return found


def pieces(dark: Tensor, x_height: float, widest: float) -> list[tuple[int, int]]:
    """Left and right ends of the parts of one line that fit a row each, cut between words."""
    words = runs((dark > 0.3).any(0).tolist(), join=max(1, round(0.35 * x_height)))
    out: list[tuple[int, int]] = []
    for left, right in words:
        if out and right - out[-1][0] <= widest:
            out[-1] = (out[-1][0], right)
        else:
            out.append((left, right))
    return out


def resized(dark: Tensor, height: int, width: int) -> Tensor:
    """The ink at another size, (H, W) -> (height, width)."""
    return F.interpolate(
        dark[None, None], (height, width), mode="bicubic", antialias=True, align_corners=False
    )[0, 0].clamp(0, 1)


def pictures(pages: list[Tensor]) -> Tensor:
    """Pages of ink as pictures of black on white, n of (224, 224) -> (n, 3, 224, 224)."""
    return (1 - 2 * torch.stack(pages))[:, None].expand(-1, 3, -1, -1)


def whole(dark: Tensor) -> View:
    """All of the ink on one page, its proportions kept, as if it were a single line."""
    high, wide = (max(1, round(PAGE * side / max(dark.shape))) for side in dark.shape)
    page = dark.new_zeros(PAGE, PAGE)
    page[:high, :wide] = resized(dark, high, wide)
    return View(pictures([page]), [0] * ROWS)


def laid_out(dark: Tensor, found: list[Line], x_height: float, scale: float) -> View:
    """The lines laid out again, this many times as large."""
    out: list[Tensor] = []
    owners: list[int] = []
    for owner, (top, bottom, base, _) in enumerate(found):
        for left, right in pieces(dark[top:bottom], x_height, WIDTH / scale):
            row = len(owners) % ROWS
            if not row:
                out.append(dark.new_zeros(PAGE, PAGE))
            height = max(1, round((bottom - top) * scale))
            width = min(WIDTH, max(1, round((right - left) * scale)))
            part = resized(dark[top:bottom, left:right], height, width)
            y = ROW * row + BASELINE - round((base - top) * scale)
            y0, y1 = max(0, y), min(PAGE, y + height)
            out[-1][y0:y1, LEFT : LEFT + width] = part[y0 - y : y1 - y]
            owners.append(owner)
    return View(pictures(out), owners)


def views(image: Tensor, x_heights: list[float]) -> list[View]:
    """Ways to lay out an image, (3, H, W) -> list; none if it is blank.

    One for each of `x_heights`, or the whole image when no lines of text are found in it.
    Whatever the colours were, letters are black on white.
    """
    box = text_box(image)
    if box is None:
        return []
    dark = ink(image[:, box[0], box[1]])
    found = lines(dark > 0.5)
    if 0 < len(found) <= MAX_LINES:
        x_height = usual_x_height(found)
        if x_height >= MIN_X_HEIGHT:
            return [laid_out(dark, found, x_height, size / x_height) for size in x_heights]
    canvas = dark.new_zeros(image.shape[1:])
    canvas[box] = dark
    return [whole(canvas)]
