"""Short videos drawn in code: soft shapes that move, and titles that stand for a few frames.

64 frames at 8 a second, 512 x 512, H.264. A title is shown for two frames, a quarter of a second:
people hardly see it, and frames taken twice a second meet one in three.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from PIL import Image, ImageOps

sys.path.insert(0, str(Path(__file__).parent / "tiny_vlm"))
from render import render

FRAMES, RATE, SIDE, SHOWN = 64, 8, 512, 2
COARSE = 64  # the shapes are soft: they are drawn small and enlarged


@dataclass(frozen=True, kw_only=True)
class Video:
    """A video to draw: its first title is the one that counts. `kind` names its group."""

    name: str
    label: str
    kind: str
    titles: tuple[str, ...]
    seed: int

    @property
    def places(self) -> list[int]:
        """The first frame of each title; two titles never touch."""
        rng = random.Random(f"places {self.seed}")
        slots = rng.sample(range(FRAMES // 4), len(self.titles))
        return [slot * 4 + rng.randrange(3) for slot in slots]

    @property
    def span(self) -> tuple[float, float] | None:
        """From when to when, in s, the title that counts is shown; None without titles."""
        if not self.titles:
            return None
        start = self.places[0]
        return start / RATE, (start + SHOWN) / RATE


def write_video(video: Video, folder: Path) -> Path:
    """Draw and encode a video; one that is there is kept."""
    path = folder / f"{video.name}.mp4"
    if path.exists():
        return path
    shown = {
        place + k: title
        for place, title in zip(video.places, _pictures(video), strict=True)
        for k in range(SHOWN)
    }
    temporary = path.with_suffix(".part.mp4")
    with av.open(str(temporary), "w") as container:
        stream = container.add_stream("libx264", rate=Fraction(RATE))
        stream.width = stream.height = SIDE
        stream.pix_fmt = "yuv420p"
        for picture in _pixels(shown, video.seed):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    temporary.rename(path)
    return path


def _pictures(video: Video) -> Sequence[Image.Image]:
    titles = enumerate(video.titles)
    drawn = (render(title, seed=video.seed * 16 + i) for i, title in titles)
    return [ImageOps.pad(picture.convert("RGB"), (SIDE, SIDE)) for picture in drawn]


def _pixels(shown: Mapping[int, Image.Image], seed: int) -> Iterator[np.ndarray]:
    """Every frame, (SIDE, SIDE, 3) uint8."""
    scene = _scene(seed)
    for number in range(FRAMES):
        yield np.asarray(shown[number] if number in shown else scene(number / RATE))


def _scene(seed: int) -> Callable[[float], Image.Image]:
    """A ground that fades from one colour to another, with soft discs drifting over it."""
    rng = np.random.default_rng(seed)
    ground = rng.uniform(30, 225, (2, 3))
    discs = [(rng.uniform(0, 1, 4), rng.uniform(30, 225, 3)) for _ in range(3)]
    y, x = np.mgrid[0:COARSE, 0:COARSE] / COARSE

    def at(seconds: float) -> Image.Image:
        share = x[..., None] * 0.6 + 0.05 * seconds
        picture = ground[0] * (1 - share) + ground[1] * share
        for (px, py, vx, vy), colour in discs:
            cx, cy = (px + 0.1 * vx * seconds) % 1, (py + 0.1 * vy * seconds) % 1
            near = np.exp(-((x - cx) ** 2 + (y - cy) ** 2) / 0.02)[..., None]
            picture = picture * (1 - near) + colour * near
        small = Image.fromarray(picture.clip(0, 255).astype(np.uint8))
        return small.resize((SIDE, SIDE), Image.Resampling.BILINEAR)

    return at
