"""A video file -> its frames, one at a time, through FFmpeg.

transformers' own readers (`transformers.video_utils`) are of no use here: they let FFmpeg open
whatever a name or a playlist leads to, believe the number of frames that a header states, and keep
all sampled frames in one array. Here nothing but the given bytes is opened, headers are believed in
nothing that costs anything, and one frame is held at a time.
"""

from __future__ import annotations

import math
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np
from PIL import Image

from guardrail.errors import (
    InputError,
    LimitExceededError,
    UnsupportedContentError,
    VideoDecodeError,
)
from guardrail.extras import require
from guardrail.requests.formats import check_size
from guardrail.requests.mp4_tables import check_tables
from guardrail.requests.shots import SIDE, Shot
from guardrail.requests.video_formats import DEMUXERS

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator
    from typing import BinaryIO

    from av import VideoFrame, VideoStream
    from av.container import InputContainer
    from numpy.typing import NDArray
    from PIL.Image import Image as PILImage

    from guardrail.policy import Limits

_MAX_RATE = 300.0  # frames a second on average; the fastest that cameras write is 240
_USUAL_RATE = 25.0
# Where a display matrix (a, b, c, d) sends a picture: x' = ax + cy, y' = bx + dy, y downwards.
_TURNS = {
    (-1, 0, 0, 1): Image.Transpose.FLIP_LEFT_RIGHT,
    (1, 0, 0, -1): Image.Transpose.FLIP_TOP_BOTTOM,
    (-1, 0, 0, -1): Image.Transpose.ROTATE_180,
    (0, 1, 1, 0): Image.Transpose.TRANSPOSE,
    (0, -1, -1, 0): Image.Transpose.TRANSVERSE,
    (0, 1, -1, 0): Image.Transpose.ROTATE_270,
    (0, -1, 1, 0): Image.Transpose.ROTATE_90,
}


def decoded(file: BinaryIO, name: str, limits: Limits, what: str) -> Generator[Shot, None, None]:
    """The frames of an encoded video whose format is `name`, as players show them.

    Sound, subtitles and cover art are not looked at.

    Raises:
        VideoDecodeError: damaged, cut short, or nothing in it moves.
        UnsupportedContentError: it holds several videos: players differ in which they show.
        LimitExceededError: frames are larger than the policy allows.
        MissingExtraError: the extra `video` is not installed.
    """
    with _errors(what), _container(file, name, limits, what) as container:
        stream = _only_video(container, limits, what)
        _check_stated(container, limits, what)
        clock = _Clock(stream)
        for count, frame in enumerate(container.decode(stream)):
            check_size((frame.width, frame.height), limits, what=what)
            time = clock.at(frame.time)
            if count > _MAX_RATE * (time + 1):
                raise VideoDecodeError(f"{what} has more than {_MAX_RATE:.0f} frames a second")
            shown = float((frame.duration or 0) * (frame.time_base or 0))
            yield Shot(
                time, partial(_picture, frame, what), partial(_thumbnail, frame, what), shown
            )


@contextmanager
def _errors(what: str) -> Iterator[None]:
    """Turn whatever PyAV raises in the block into errors of this package."""
    require("av")
    from av import FFmpegError

    try:
        yield
    except InputError:
        raise
    except (FFmpegError, ValueError, OSError, RuntimeError, MemoryError, LookupError) as exc:
        reason = getattr(exc, "strerror", None) or str(exc) or type(exc).__name__
        raise VideoDecodeError(f"{what} is damaged or cut short: {reason}") from exc


def _container(file: BinaryIO, name: str, limits: Limits, what: str) -> InputContainer:
    import av

    if name == "MP4":
        check_tables(file, what)
    # Each of these alone keeps a file from having another one opened.
    closed = {"protocol_whitelist": "none", "format_whitelist": ",".join(DEMUXERS.values())}
    return av.open(
        file,
        mode="r",
        format=DEMUXERS[name],
        options=_bounded(limits),  # of the decoders that find out what is inside
        container_options=closed,
        metadata_errors="replace",
        io_open=_refuse_to_open,
    )


def _bounded(limits: Limits) -> dict[str, str]:
    """Checked by decoders before they make room for a picture, also where its size changes."""
    return {"max_pixels": str(limits.image_pixels)}


def _refuse_to_open(url: str, flags: int, options: dict[str, Any]) -> NoReturn:
    raise PermissionError("a video may not name other files")


def _only_video(container: InputContainer, limits: Limits, what: str) -> VideoStream:
    from av.stream import Disposition

    beside = Disposition.attached_pic | Disposition.timed_thumbnails
    shown = [s for s in container.streams.video if not Disposition(s.disposition) & beside]
    if not shown:
        raise VideoDecodeError(f"{what} holds no video, only sound, subtitles or cover art")
    if len(shown) > 1:
        raise UnsupportedContentError(
            f"{what} holds {len(shown)} videos, and players differ in which they show; keep one"
        )
    decoder = shown[0].codec_context
    if decoder is None:
        raise VideoDecodeError(f"{what} is encoded in a way that this FFmpeg does not know")
    size = decoder.width, decoder.height
    if not all(size):  # the decoders that looked may make no larger pictures
        raise VideoDecodeError(
            f"{what} is damaged, or its frames have more than the {limits.image_pixels} pixels "
            "that the policy allows (`limits.image_pixels`)"
        )
    check_size(size, limits, what=what)
    decoder.options = _bounded(limits)
    return shown[0]


def _check_stated(container: InputContainer, limits: Limits, what: str) -> None:
    """Refuse at once what says itself that it is too long; what says otherwise is not believed."""
    import av

    stated = (container.duration or 0) / av.time_base
    if stated > limits.video_seconds + 1:  # sound may end a little later
        raise LimitExceededError(
            limit="video_seconds", allowed=limits.video_seconds, found=round(stated, 1), what=what
        )


class _Clock:
    """Seconds since the first frame, always ascending, whatever the time stamps are.

    A frame without a stamp, or with one that does not advance, follows its predecessor at the
    video's nominal rate, and later stamps count from there.
    """

    def __init__(self, stream: VideoStream) -> None:
        rate = float(stream.average_rate or _USUAL_RATE)
        self._step = 1 / (rate if 1 <= rate <= _MAX_RATE else _USUAL_RATE)
        self._last: float | None = None
        self._origin = 0.0

    def at(self, stamp: float | None) -> float:
        """When the next frame is shown; `stamp` in s."""
        if self._last is None:
            now, self._origin = 0.0, stamp or 0.0
        elif stamp is None or stamp - self._origin <= self._last:
            now = self._last + self._step
            if stamp is not None:
                self._origin = stamp - now
        else:
            now = stamp - self._origin
        self._last = now
        return now


def _picture(frame: VideoFrame, what: str) -> PILImage:
    with _errors(what):
        picture: PILImage = frame.to_image()  # type: ignore[no-untyped-call]
        return _upright(picture, frame)


def _thumbnail(frame: VideoFrame, what: str) -> NDArray[np.uint8]:
    with _errors(what):
        small = frame.reformat(width=SIDE, height=SIDE, format="rgb24", interpolation="AREA")
        return small.to_ndarray().astype(np.uint8, copy=False)


def _upright(picture: PILImage, frame: VideoFrame) -> PILImage:
    """The picture turned and mirrored as its display matrix asks."""
    sides: Any = frame.side_data  # a container that its stubs call a TypedDict
    try:
        found = sides["DISPLAYMATRIX"]
    except KeyError:
        return picture
    entries = np.frombuffer(bytes(found), dtype="=i4", count=9) / 65536  # 16.16 fixed point
    a, b, c, d = (float(entries[i]) for i in (0, 1, 3, 4))
    turn = tuple(round(entry) for entry in (a, b, c, d))
    if max(abs(entry - whole) for entry, whole in zip((a, b, c, d), turn, strict=True)) > 0.01:
        return picture.rotate(-math.degrees(math.atan2(b, a)), expand=True)
    return picture.transpose(_TURNS[turn]) if turn in _TURNS else picture
