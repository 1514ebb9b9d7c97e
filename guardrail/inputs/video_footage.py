"""Where a video's frames come from; each kind can be gone through again and has a digest."""

from __future__ import annotations

import hashlib
import io
import os
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from PIL import Image

from guardrail.errors import VideoDecodeError
from guardrail.inputs.images import Shot, decode_image, rgb_of, small
from guardrail.inputs.media import (
    ANIMATIONS,
    HEAD_BYTES,
    VIDEO,
    loaded_picture,
    pillow_errors,
    sniffed_video,
)
from guardrail.inputs.sources import opened
from guardrail.inputs.video_files import decoded

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator
    from io import BufferedReader
    from pathlib import Path
    from typing import BinaryIO

    from numpy.typing import NDArray

    from guardrail.policy import Limits

    Shots = Generator[Shot, None, None]

Frame = bytes | Image.Image | np.ndarray
_USUAL_S = 0.1  # how long browsers show a frame of an animation that states no time
_SHORTEST_S = 0.011


@dataclass(frozen=True, slots=True)
class Encoded:
    """A video file's bytes."""

    data: bytes = field(repr=False)  # a log must not hold the video
    whole: ClassVar[bool] = False

    def shots(self, limits: Limits, what: str) -> Shots:
        """Its frames in order.

        Raises:
            InputError: it cannot be read.
        """
        return _shots(io.BytesIO(self.data), limits, what)

    def digest(self, limits: Limits, what: str) -> str:
        """SHA-256 of its content."""
        return hashlib.sha256(self.data).hexdigest()


@dataclass(frozen=True, slots=True)
class LocalFile:
    """A video file on disk, opened anew each time; `stamp` tells whether it still is the same."""

    path: Path
    stamp: tuple[int, ...]
    whole: ClassVar[bool] = False

    @classmethod
    def at(cls, path: Path, limits: Limits, what: str) -> LocalFile:
        """The file as it is now.

        Raises:
            InputError: it cannot be opened, is no regular file, or is too large.
        """
        with opened(path, VIDEO, limits, what) as file:
            return cls(path, _stamp(file))

    def head(self, limits: Limits, what: str) -> bytes:
        """The bytes that tell its format."""
        with self._opened(limits, what) as file:
            return file.read(HEAD_BYTES)

    def shots(self, limits: Limits, what: str) -> Shots:
        """Its frames in order.

        Raises:
            InputError: it cannot be read, or is not what it was.
        """
        with self._opened(limits, what) as file, closing(_shots(file, limits, what)) as shots:
            yield from shots

    def digest(self, limits: Limits, what: str) -> str:
        """SHA-256 of its content."""
        with self._opened(limits, what) as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    @contextmanager
    def _opened(self, limits: Limits, what: str) -> Iterator[BufferedReader]:
        with opened(self.path, VIDEO, limits, what) as file:
            if _stamp(file) != self.stamp:
                raise VideoDecodeError(f"{what}: the file has changed since it was first read")
            yield file


@dataclass(frozen=True, slots=True, eq=False)
class Frames:
    """Pictures that somebody took from a video, and when each is shown, in s."""

    frames: tuple[Frame, ...] = field(repr=False)
    times: tuple[float, ...] = field(repr=False)
    whole: ClassVar[bool] = True  # somebody chose these frames already

    def shots(self, limits: Limits, what: str) -> Shots:
        """Its frames in order.

        Raises:
            InputError: one of them cannot be read.
        """
        for i, (frame, time) in enumerate(zip(self.frames, self.times, strict=True)):
            picture = decode_image(
                Image.fromarray(frame) if isinstance(frame, np.ndarray) else frame,
                limits=limits,
                allowed_hosts=(),
                local_files=False,
                what=f"{what}[{i}]",
            )
            yield _shot(time, picture)

    def digest(self, limits: Limits, what: str) -> str:
        """SHA-256 of its content."""
        digest = hashlib.sha256(repr(self.times).encode())
        for shot in self.shots(limits, what):
            picture = shot.picture()
            digest.update(f"{picture.size}".encode())
            digest.update(picture.tobytes())
        return digest.hexdigest()


Footage = Encoded | LocalFile | Frames


def _shots(file: BinaryIO, limits: Limits, what: str) -> Shots:
    name = sniffed_video(file.read(HEAD_BYTES))
    if name is None:
        raise VideoDecodeError(f"{what} is no video of a known format")
    file.seek(0)
    if name in ANIMATIONS:
        return _animated(file.read(), limits, what)
    return decoded(file, name, limits, what)


def _animated(data: bytes, limits: Limits, what: str) -> Shots:
    """The frames of an animated picture as browsers show them, alpha on white."""
    animation, time = loaded_picture(data, limits, what=what), 0.0
    for i in range(int(getattr(animation, "n_frames", 1))):
        with pillow_errors(what, limits):
            animation.seek(i)
            animation.load()
            picture = rgb_of(animation, what)
        shown = float(animation.info.get("duration") or 0) / 1000
        shown = shown if shown >= _SHORTEST_S else _USUAL_S
        yield _shot(time, picture, shown)
        time += shown


def _shot(time: float, picture: Image.Image, lasts: float = 0.0) -> Shot:
    def thumbnail() -> NDArray[np.uint8]:
        return small(picture)

    return Shot(time, lambda: picture, thumbnail, lasts)


def _stamp(file: BinaryIO) -> tuple[int, ...]:
    status = os.fstat(file.fileno())
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns
