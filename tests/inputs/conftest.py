from __future__ import annotations

import io
from fractions import Fraction
from typing import Any

import numpy as np
import pytest

SIZE = (64, 48)
COLUMNS = 8


def numbered(number: int) -> np.ndarray:
    """A frame that bears its number in black and white columns, which survive any codec."""
    bits = [(number >> bit) & 1 for bit in range(COLUMNS)]
    row = np.repeat(np.array(bits, np.uint8) * 255, SIZE[0] // COLUMNS)
    return np.broadcast_to(row[None, :, None], (SIZE[1], SIZE[0], 3)).copy()


def number_of(picture: Any) -> int:
    grey = np.asarray(picture.convert("L")).mean(axis=0).reshape(COLUMNS, -1).mean(axis=1)
    return sum(1 << bit for bit, level in enumerate(grey) if level > 127)


def film(
    frames: Any = 24,
    *,
    fps: float = 8,
    container: str = "mp4",
    codec: str = "mpeg4",
    times: list[int] | None = None,  # in ms
    turned: int | None = None,
    mirrored: bool = False,
    more: str = "",  # "audio": sound beside it; "video": a second video
) -> bytes:
    """An encoded video of arrays, or of so many numbered ones."""
    av = pytest.importorskip("av")
    arrays = [numbered(i) for i in range(frames)] if isinstance(frames, int) else frames
    buffer = io.BytesIO()
    with av.open(buffer, "w", format=container) as out:
        streams = [out.add_stream(codec, rate=Fraction(fps).limit_denominator(1000))]
        if more == "video":
            streams.append(out.add_stream(codec, rate=8))
        sound = out.add_stream("aac", rate=8000, layout="mono") if more == "audio" else None
        for stream in streams:
            stream.height, stream.width = arrays[0].shape[:2]
            stream.pix_fmt = "yuv420p"
        if turned is not None:
            streams[0].set_display_rotation(turned, hflip=mirrored)
        if times is not None:
            streams[0].codec_context.time_base = Fraction(1, 1000)
        for i, array in enumerate(arrays):
            frame = av.VideoFrame.from_ndarray(array, format="rgb24")
            if times is not None:
                frame.pts, frame.time_base = times[i], Fraction(1, 1000)
            for stream in streams:
                out.mux(stream.encode(frame))
        if sound is not None:
            silence = av.AudioFrame.from_ndarray(
                np.zeros((1, 8000), np.float32), format="fltp", layout="mono"
            )
            silence.sample_rate = 8000
            out.mux(sound.encode(silence))
            out.mux(sound.encode())
        for stream in streams:
            out.mux(stream.encode())
    return buffer.getvalue()


@pytest.fixture(name="film", scope="session")
def _film() -> Any:
    return film


@pytest.fixture(name="number_of", scope="session")
def _number_of() -> Any:
    return number_of


@pytest.fixture(name="numbered", scope="session")
def _numbered() -> Any:
    return numbered
