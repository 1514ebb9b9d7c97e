"""A video part's source -> a clip, or a stream of windows, within the policy's limits."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from io import IOBase
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from guardrail.errors import (
    LimitExceededError,
    UnsupportedContentError,
    VideoDecodeError,
)
from guardrail.inputs.limits import still_wanted
from guardrail.inputs.media import HEAD_BYTES, VIDEO, check_size, sniffed_video
from guardrail.inputs.sources import Access, decoded_base64, named_content, picture_bytes
from guardrail.inputs.video_footage import Encoded, Frames, LocalFile
from guardrail.inputs.video_windows import SampledVideo, read_video

if TYPE_CHECKING:
    from guardrail.inputs.video_footage import Footage, Frame
    from guardrail.inputs.video_windows import Tally
    from guardrail.policy import Limits, Policy
    from guardrail.types import VideoPart, VideoStream

_MAX_FPS = 1000.0


@dataclass(frozen=True, slots=True)
class VideoSource:
    """A video that is not decoded yet: a request's videos are counted before the first is read."""

    source: Any
    what: str
    number: int  # among the request's videos, from 0
    media_type: str | None = None
    base64_only: bool = False
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
        what = self.what
        video = SampledVideo(footage, policy.video, policy.limits, tally, self.number, what)
        return read_video(video)

    def _file(self, policy: Policy) -> Footage:
        if self.fps is not None:
            raise UnsupportedContentError(
                f"{self.what}: `fps` is the rate of a list of frames; files are sampled as the "
                "policy's `video.fps` says, so leave it out"
            )
        limits, found = policy.limits, self._content(policy)
        footage: Encoded | LocalFile
        if isinstance(found, Path):
            footage = LocalFile.at(found, limits, self.what)
            head = footage.head(limits, self.what)
        else:
            footage, head = Encoded(found), found[:HEAD_BYTES]
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
        if isinstance(source, IOBase):
            return _file_object_bytes(source, limits, self.what)
        if not isinstance(source, bytes | bytearray | memoryview | str | Path):
            raise UnsupportedContentError(
                f"{self.what} is a {type(source).__name__}; accepted: bytes, a path, a binary file "
                "object, a URL, a data URL, base64, or a list of frames"
            )
        if self.base64_only and isinstance(source, str) and source[:5].lower() != "data:":
            return decoded_base64(source, VIDEO, limits, what=self.what)
        return named_content(source, VIDEO, _access(policy), self.what)

    def _frames(self, policy: Policy) -> Frames:
        limits, found = policy.limits, len(self.source)
        if self.media_type is not None:
            raise UnsupportedContentError(f"{self.what}: a list of frames has no media type")
        if found > limits.video_frames:
            raise LimitExceededError(
                limit="video_frames", allowed=limits.video_frames, found=found, what=self.what
            )
        fps, size = _rate(self.fps, self.what), 0
        frames: list[Frame] = []
        for i, frame in enumerate(self.source):
            still_wanted()  # each may be a URL
            read = _frame(frame, policy, f"{self.what}[{i}]")
            if isinstance(read, bytes):
                size += len(read)
                VIDEO.check_bytes(size, limits, what=self.what)
            frames.append(read)
        return Frames(tuple(frames), tuple(i / fps for i in range(found)))


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
    return picture_bytes(frame, _access(policy), what)


def _rate(fps: object, what: str) -> float:
    if fps is None:
        return 1.0
    number = isinstance(fps, int | float) and not isinstance(fps, bool)
    if number and math.isfinite(fps) and 0 < fps <= _MAX_FPS:  # type: ignore[arg-type,operator]
        return float(fps)  # type: ignore[arg-type]
    raise UnsupportedContentError(f"{what}: fps must be a number above 0, at most {_MAX_FPS:.0f}")


def _file_object_bytes(file: IOBase, limits: Limits, what: str) -> bytes:
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


def _access(policy: Policy) -> Access:
    return Access(policy.limits, policy.allowed_hosts, policy.local_files)
