"""Words in a picture: PP-OCRv4's detector finds lines, its recogniser reads them.

The step between the two follows Liao et al. 2020 (arXiv 1911.08947, section 3.5): what the detector
marks is cut at a threshold, each connected piece becomes a box, and the box grows by an offset of
its area over its perimeter, since the network marks shrunken text. Boxes may lean, not stand.
"""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from scipy import ndimage
from torch import Tensor, nn

from .step_network import StepNetwork

MARKED, SURE = 0.3, 0.5  # a pixel's and a box's least probability
GROWTH = 1.6
SMALLEST = 3  # pixels; nothing is read in less
HEIGHT, NARROWEST = 48, 320  # of what the recogniser reads
WIDEST = 2400
BATCH = 8  # lines of one picture
LEANING = 0.03  # radians; less is taken as level
LEGIBLE = 0.5  # mean probability of a line's characters
LINES = 60
DETECTED = 544  # pixels of the longer side; in larger ones tight lines run together
STEP = 32  # the detector halves sides five times
PLAIN = 0.02  # a picture whose colours differ less is of one colour


@dataclass(frozen=True)
class Box:
    """Where a line is: its centre, the angle of its base line, its length and its height."""

    x: float
    y: float
    angle: float
    width: float
    height: float

    def larger(self, scale: float) -> "Box":
        """The same box of a picture that is this many times as large."""
        sizes = {"width": self.width * scale, "height": self.height * scale}
        return Box(x=self.x * scale, y=self.y * scale, angle=self.angle, **sizes)


def boxes(marks: np.ndarray) -> list[Box]:
    """The boxes of text in a detector's map, (H, W) probabilities -> list."""
    mask = ndimage.binary_dilation(marks > MARKED, np.ones((2, 2)))
    pieces, _ = ndimage.label(mask, np.ones((3, 3)))
    found = []
    for number, window in enumerate(ndimage.find_objects(pieces), start=1):
        rows, columns = np.nonzero(pieces[window] == number)
        box = _around(columns + window[1].start, rows + window[0].start)
        sure = float(marks[window][rows, columns].mean())
        if min(box.width, box.height) >= SMALLEST and sure >= SURE:
            grown = GROWTH * box.width * box.height / (box.width + box.height)  # twice the offset
            found.append(Box(box.x, box.y, box.angle, box.width + grown, box.height + grown))
    return found


def _around(x: np.ndarray, y: np.ndarray) -> Box:
    """The box around pixels, along their principal axis where they lie slanted."""
    angle = 0.0
    if np.ptp(x) > 2 * np.ptp(y) / 3 and len(x) > 2:
        (xx, xy), (_, yy) = np.cov(x, y)
        angle = 0.5 * float(np.arctan2(2 * xy, xx - yy))
        if not LEANING < abs(angle) < np.pi / 4:
            angle = 0.0
    along, across = np.cos(angle) * x + np.sin(angle) * y, np.cos(angle) * y - np.sin(angle) * x
    a, b = (along.max() + along.min() + 1) / 2, (across.max() + across.min() + 1) / 2
    return Box(
        float(np.cos(angle) * a - np.sin(angle) * b),
        float(np.sin(angle) * a + np.cos(angle) * b),
        angle,
        float(np.ptp(along) + 1),
        float(np.ptp(across) + 1),
    )


def in_order(found: list[Box]) -> list[list[Box]]:
    """The boxes as one reads them: rows from top to bottom, each from left to right."""
    rows: list[list[Box]] = []
    for box in sorted(found, key=lambda one: one.y):
        if rows and box.y - rows[-1][0].y < min(box.height, rows[-1][0].height) / 2:
            rows[-1].append(box)
        else:
            rows.append([box])
    return [sorted(row, key=lambda one: one.x) for row in rows]


def cut_out(image: Tensor, box: Box) -> Tensor:
    """What is in the box, upright, (3, H, W) -> (3, HEIGHT, width)."""
    high, wide = max(1, round(box.height)), max(1, round(box.width))
    if box.angle:
        cos, sin = np.cos(box.angle), np.sin(box.angle)
        u = torch.arange(wide) + 0.5 - wide / 2
        v = (torch.arange(high) + 0.5 - high / 2)[:, None]
        x, y = box.x + cos * u - sin * v, box.y + sin * u + cos * v
        size = torch.tensor([image.shape[2], image.shape[1]])
        grid = torch.stack([x, y], -1) / size * 2 - 1
        part = F.grid_sample(
            image[None], grid[None].to(image), padding_mode="border", align_corners=False
        )
    else:
        left, top = round(box.x - wide / 2), round(box.y - high / 2)
        part = image[None, :, max(0, top) : top + high, max(0, left) : left + wide]
    width = min(WIDEST, max(1, round(HEIGHT * part.shape[3] / part.shape[2])))
    return F.interpolate(part, (HEIGHT, width), mode="bilinear", antialias=True)[0]


def _smaller(image: Tensor, scale: float) -> Tensor:
    """The picture scaled, with grey at its right and lower edge: sides divisible by `STEP`."""
    size = [max(1, round(scale * side)) for side in image.shape[1:]]
    image = F.interpolate(image[None], size, mode="bilinear", antialias=True)[0]
    return F.pad(image, (0, -size[1] % STEP, 0, -size[0] % STEP))


class TextReader(nn.Module):
    """Reads pictures with the two networks of `config` (see `networks.py`)."""

    def __init__(self, config: dict) -> None:
        super().__init__()
        self.detector = StepNetwork(**config["detector"])
        self.recogniser = StepNetwork(**config["recogniser"])
        self.characters: list[str] = ["", *config["characters"], " "]  # class 0 is CTC's blank

    @torch.no_grad()
    def forward(self, image: Tensor) -> str:
        """The words in a picture, (3, H, W) in [-1, 1], "" if there are none."""
        colours = image.flatten(1)
        if float((colours.amax(1) - colours.amin(1)).amax()) < PLAIN:
            return ""
        flipped = image.flip(0).float()  # both networks were trained on blue, green, red
        scale = min(1.0, DETECTED / max(image.shape[1:]))
        marks = self.detector(_smaller(flipped, scale)[None])[0, 0].cpu().numpy()
        rows = in_order(boxes(marks))[:LINES]
        parts = [cut_out(flipped, box.larger(1 / scale)) for row in rows for box in row]
        return " ".join(text for text in self.lines(parts) if text)

    def lines(self, parts: list[Tensor]) -> list[str]:
        """What is written in each part, n of (3, HEIGHT, width) -> n texts, "" if illegible."""
        order = sorted(range(len(parts)), key=lambda i: parts[i].shape[2])
        found = [""] * len(parts)
        for start in range(0, len(order), BATCH):
            places = order[start : start + BATCH]
            width = max(NARROWEST, *(parts[i].shape[2] for i in places))
            batch = torch.stack([F.pad(parts[i], (0, width - parts[i].shape[2])) for i in places])
            for i, probabilities in zip(places, self.recogniser(batch), strict=True):
                found[i] = self.text(probabilities)
        return found

    def text(self, probabilities: Tensor) -> str:
        """The likeliest path's characters, (frames, classes) -> text, "" if it is unsure."""
        best, classes = probabilities.max(-1)
        new = classes != F.pad(classes, (1, 0))[:-1]
        kept = new & (classes > 0)
        if not kept.any() or float(best[kept].mean()) < LEGIBLE:
            return ""
        text = "".join(self.characters[c] for c in classes[kept].tolist()).strip()
        return text if any(map(str.isalnum, text)) else ""
