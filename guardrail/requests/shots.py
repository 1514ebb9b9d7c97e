"""What every kind of video comes down to: pictures with the times at which they are shown."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray
    from PIL.Image import Image as PILImage

SIDE = 32  # of thumbnails, in pixels


@dataclass(frozen=True, slots=True)
class Shot:
    """One frame as it was decoded; colours are made only of those that are taken."""

    time: float  # s since the first frame, ascending
    picture: Callable[[], PILImage]  # upright, RGB
    thumbnail: Callable[[], NDArray[np.uint8]]  # RGB, (SIDE, SIDE, 3)
    lasts: float = 0.0  # s; as far as a video states it


def small(picture: PILImage) -> NDArray[np.uint8]:
    """An RGB picture's thumbnail, (SIDE, SIDE, 3)."""
    return np.asarray(picture.resize((SIDE, SIDE), Image.Resampling.BOX))
