"""A video part's source -> a clip, or a stream of windows, within the policy's limits.

`VideoSource` is what a part names. Footage is where its frames come from, once nothing more is
needed from outside: bytes, a local file or a list of pictures. Each kind can be gone through again
and has a digest.
"""

from __future__ import annotations

import hashlib
import io
import math
import os
from collections.abc import Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from PIL import Image

from guardrail.errors import UnsupportedContentError, VideoDecodeError
from guardrail.inputs.images import (
    check_size,
    loaded_picture,
    pillow_errors,
    rgb_of,
    upright_picture,
)
from guardrail.inputs.media import ANIMATIONS, HEAD_BYTES, VIDEO, sniffed_video
from guardrail.inputs.sources import decoded_base64, named_content, opened, picture_bytes
from guardrail.inputs.threads import still_wanted
from guardrail.inputs.video_files import Shot, decoded, small
from guardrail.inputs.video_windows import SampledVideo, read_video

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator
    from typing import BinaryIO

    from guardrail.inputs.video_windows import Tally
    from guardrail.policy import Limits, Policy
    from guardrail.types import VideoPart, VideoStream

    Shots = Generator[Shot, None, None]

Frame = bytes | Image.Image | np.ndarray
_MAX_FPS = 1000.0
_USUAL_S = 0.1  # how long browsers show a frame of an animation that states no time
_SHORTEST_S = 0.011


@dataclass(frozen=True, slots=True)
class VideoSource:
    """A video that is not decoded yet: a request's videos are counted before the first is read."""

    source: Any
    what: str
    number: int  # among the request's videos, from 0
    media_type: str | None = None
    is_bare: bool = False  # a str that is base64, whatever it begins with
    fps: object = None

    def read(self, policy: Policy, tally: Tally) -> VideoPart | VideoStream:
        """The video as its policy samples it.

        A file is a path, bytes, a binary file object that can seek, base64, a `data:`, `file:` or
        http(s) URL; by the rules of `decode_image`, and MP4 or QuickTime, Matroska or WebM, AVI,
        MPEG, Ogg, GIF, WebP or APNG by content. Its sound is not heard. Frames are a list of what
        `decode_image` reads or of uint8 arrays (height, width, 3), or one array of (n, height,
        width, 3); all of them are judged, at `fps` a second (one a second without it).

        Raises:
            InputError: one of its kinds, whatever the source is. Of a long video, what is wrong
                behind its first window is found when it is judged.
        """
        footage = self._frames(policy) if _is_frames(self.source) else self._file(policy)
        return read_video(SampledVideo(footage, policy.video, tally, self.number, self.what))

    def _file(self, policy: Policy) -> Footage:
        if self.fps is not None:
            raise UnsupportedContentError(
                f"{self.what}: `fps` is the rate of a list of frames; files are sampled as the "
                "policy's `video.fps` says, so leave it out"
            )
        limits, found = policy.limits, self._content(policy)
        footage: VideoBytes | LocalFile
        if isinstance(found, Path):
            footage = LocalFile.at(found, limits, self.what)
            head = footage.head(limits, self.what)
        else:
            footage, head = VideoBytes(found), found[:HEAD_BYTES]
        if sniffed_video(head) is None:
            raise VideoDecodeError(
                f"{self.what} is no video of a known format; accepted: MP4 or QuickTime, Matroska "
                "or WebM, AVI, MPEG, Ogg, GIF, WebP, APNG, or a list of frames"
            )
        if self.media_type is not None:
            VIDEO.check_media_type(head, self.media_type, what=self.what)
        return footage

    def _content(self, policy: Policy) -> bytes | Path:
        source, limits = self.source, policy.limits
        if isinstance(source, io.IOBase):
            return _file_object_bytes(source, limits, self.what)
        if not isinstance(source, bytes | bytearray | memoryview | str | Path):
            raise UnsupportedContentError(
                f"{self.what} is a {type(source).__name__}; accepted: bytes, a path, a binary file "
                "object, a URL, a data URL, base64, or a list of frames"
            )
        if self.is_bare and isinstance(source, str):
            return decoded_base64(source, VIDEO, limits, what=self.what)
        return named_content(source, VIDEO, policy, self.what)

    def _frames(self, policy: Policy) -> Frames:
        limits, found = policy.limits, len(self.source)
        if self.media_type is not None:
            raise UnsupportedContentError(f"{self.what}: a list of frames has no media type")
        limits.check("video_frames", found, what=self.what)
        fps, size, frames = _rate(self.fps, self.what), 0, list[Frame]()
        for i, frame in enumerate(self.source):
            still_wanted()  # each may be a URL
            read = _frame(frame, policy, f"{self.what}[{i}]")
            if isinstance(read, bytes):
                size += len(read)
                VIDEO.check_bytes(size, limits, what=self.what)
            frames.append(read)
        return Frames(tuple(frames), tuple(i / fps for i in range(found)))


@dataclass(frozen=True, slots=True)
class VideoBytes:
    """A video file that is held in memory."""

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
    def _opened(self, limits: Limits, what: str) -> Iterator[io.BufferedReader]:
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
            picture = Image.fromarray(frame) if isinstance(frame, np.ndarray) else frame
            yield _shot(time, upright_picture(picture, limits, f"{what}[{i}]"))

    def digest(self, limits: Limits, what: str) -> str:
        """SHA-256 of its content."""
        digest = hashlib.sha256(repr(self.times).encode())
        for shot in self.shots(limits, what):
            picture = shot.picture()
            digest.update(f"{picture.size}".encode())
            digest.update(picture.tobytes())
        return digest.hexdigest()


Footage = VideoBytes | LocalFile | Frames


def _is_frames(source: object) -> bool:
    if isinstance(source, np.ndarray):
        return source.ndim > 0
    flat = str | bytes | bytearray | memoryview
    return isinstance(source, Sequence) and not isinstance(source, flat)


def _frame(frame: object, policy: Policy, what: str) -> Frame:
    """A frame that needs nothing from outside any more; not decoded yet."""
    if isinstance(frame, Image.Image):
        return frame
    if isinstance(frame, np.ndarray):
        if frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[2] != 3 or not frame.size:
            raise UnsupportedContentError(
                f"{what} is an array of {frame.dtype}, {frame.shape}; frames are uint8 of (height, "
                "width, 3)"
            )
        check_size((frame.shape[1], frame.shape[0]), policy.limits, what=what)  # a view costs none
        return frame
    return picture_bytes(frame, policy, what)


def _rate(fps: object, what: str) -> float:
    if fps is None:
        return 1.0
    number = isinstance(fps, int | float) and not isinstance(fps, bool)
    if number and math.isfinite(fps) and 0 < fps <= _MAX_FPS:  # type: ignore[arg-type,operator]
        return float(fps)  # type: ignore[arg-type]
    raise UnsupportedContentError(f"{what}: fps must be a number above 0, at most {_MAX_FPS:.0f}")


def _file_object_bytes(file: io.IOBase, limits: Limits, what: str) -> bytes:
    """All that follows in a file object, which then stands where it stood."""
    try:
        position = file.tell()
        try:
            data = file.read(VIDEO.max_bytes(limits) + 1)
        finally:
            file.seek(position)
    except (OSError, ValueError, AttributeError) as exc:
        raise UnsupportedContentError(
            f"{what} is a file object that cannot be read and set back: {exc}; send its bytes"
        ) from exc
    if not isinstance(data, bytes):
        raise UnsupportedContentError(f"{what} is a text file; open it in binary mode")
    VIDEO.check_bytes(len(data), limits, what=what)
    return data


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
    return Shot(time, lambda: picture, partial(small, picture), lasts)


def _stamp(file: BinaryIO) -> tuple[int, ...]:
    status = os.fstat(file.fileno())
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns
