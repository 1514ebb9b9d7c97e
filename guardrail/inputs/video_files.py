"""A video file -> its frames, one at a time, through FFmpeg.

transformers' own readers (`transformers.video_utils`) are of no use here: they let FFmpeg open
whatever a name or a playlist leads to, believe the number of frames that a header states, and keep
all sampled frames in one array. Here nothing but the given bytes is opened, headers are believed in
nothing that costs anything, and one frame is held at a time.

FFmpeg makes an index of every sample of every track when it opens an MP4 or QuickTime file, as long
as the tables say: a file of 2 kB can ask for gigabytes. So the tables are added up before FFmpeg
makes room for what they claim (`check_tables`). The sizes alone are read, where FFmpeg would find
them; a file that keeps tables anywhere else is refused.
"""

from __future__ import annotations

import math
import os
import struct
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, Final, NoReturn

import numpy as np
from PIL import Image

from guardrail.errors import InputError, UnsupportedContentError, VideoDecodeError
from guardrail.extras import require
from guardrail.inputs.images import check_size
from guardrail.inputs.media import DEMUXERS
from guardrail.inputs.threads import still_wanted

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator
    from typing import BinaryIO

    from av import VideoFrame, VideoStream
    from av.container import InputContainer
    from numpy.typing import NDArray
    from PIL.Image import Image as PILImage

    from guardrail.policy import Limits

SIDE = 32  # of thumbnails, in pixels
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
MAX_SAMPLES: Final = 4_000_000  # an hour at 300 frames a second, with sound, twice; 100 MB of index
_BOXES = 1_000_000  # an hour with a fragment for each frame has 650,000
_CONTAINERS = frozenset({b"moov", b"trak", b"mdia", b"minf", b"stbl", b"moof", b"traf"})
_TABLES = frozenset({b"hdlr", b"stsz", b"stz2", b"stts", b"stsc", b"stco", b"co64", b"trun"})
_NOWHERE_ELSE = (b"stsz", b"stz2", b"stsc", b"trun", b"cmov")
_OTHER_MEDIA = frozenset({b"vide", b"m1a ", b"subp", b"clcp"})  # beside b"soun", for FFmpeg
_SMALLEST = 16  # bytes of a table with its head
_PIECE = 1 << 20
_PACKET = 512  # sound that is not compressed is indexed by packets of this many samples at least


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
        limits.check("video_seconds", stated, what=what)


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


def check_tables(file: BinaryIO, what: str) -> None:
    """Refuse an MP4 or QuickTime file whose tables claim more samples than a video has.

    The file then stands at its beginning.

    Raises:
        VideoDecodeError: they do, or tables are where no writer puts them.
    """
    size = file.seek(0, os.SEEK_END)
    tables = _Tables(file, what)
    try:
        tables.check(size)
    except struct.error as exc:
        raise VideoDecodeError(f"{what} is damaged or cut short: a table is incomplete") from exc
    except RecursionError as exc:
        raise VideoDecodeError(f"{what} is damaged: its boxes are nested too deep") from exc
    file.seek(0)


@dataclass(frozen=True, slots=True)
class _Box:
    kind: bytes
    start: int  # of its content
    end: int


@dataclass(slots=True)
class _Track:
    """What counts of a track."""

    handlers: set[bytes] = field(default_factory=set)
    samples: int = 0
    each_lasts_one: bool = True  # as in sound that is not compressed
    runs: list[tuple[int, int]] = field(default_factory=list)  # first chunk, samples in a chunk
    chunks: int = 0

    def index_entries(self) -> int:
        """How many entries FFmpeg's index may have."""
        if not self.each_lasts_one:
            return self.samples
        packets, ends = 0, [first for first, _ in self.runs[1:]] + [self.chunks + 1]
        for (first, count), end in zip(self.runs, ends, strict=True):
            packets += max(min(end, self.chunks + 1) - first, 0) * -(-count // _PACKET)
        is_sound = b"soun" in self.handlers and not self.handlers & _OTHER_MEDIA
        return packets if is_sound else max(packets, self.samples)


class _Tables:
    def __init__(self, file: BinaryIO, what: str) -> None:
        self._file, self._what = file, what
        self._boxes, self._samples = 0, 0
        self._free: list[_Box] = []
        self._has_moov = False

    def check(self, size: int) -> None:
        self.walk(0, size, _Track())
        if not self._has_moov:  # then FFmpeg looks for one in what is free
            for box in self._free:
                self._refuse_tables_in(box)

    def walk(self, start: int, end: int, track: _Track) -> None:
        for box in self._inside(start, end):
            if box.kind == b"trak":
                inner = _Track()
                self.walk(box.start, box.end, inner)
                self._count(inner.index_entries())
            elif box.kind in _CONTAINERS:
                self._has_moov |= box.kind == b"moov"
                self.walk(box.start, box.end, track)
            elif box.kind in _TABLES:
                self._read(box, track)
            elif box.kind == b"free":
                if box.end - box.start >= _SMALLEST:
                    self._free.append(box)
            elif box.kind == b"cmov":
                raise VideoDecodeError(f"{self._what} has compressed tables; save it anew")
            elif box.kind != b"mdat":
                self._refuse_tables_in(box)

    def _inside(self, start: int, end: int) -> Iterator[_Box]:
        while start + 8 <= end:
            still_wanted()
            self._boxes += 1
            if self._boxes > _BOXES:
                raise VideoDecodeError(f"{self._what} has more than {_BOXES} boxes")
            size, kind = struct.unpack(">I4s", self._at(start, 8))
            head = 8
            if size == 1 and start + 16 <= end:
                (size,), head = struct.unpack(">Q", self._at(start + 8, 8)), 16
            stop = end if size == 0 else min(start + size, end)
            if stop < start + head:
                return  # as FFmpeg does
            yield _Box(kind, start + head, stop)
            start = stop

    def _read(self, box: _Box, track: _Track) -> None:
        if box.kind == b"hdlr":
            track.handlers.add(self._at(box.start + 8, 4))
            return
        if box.kind == b"trun":
            self._count(self._number(box.start + 4))
            return
        if box.kind in (b"stsz", b"stz2"):
            track.samples = max(track.samples, self._number(box.start + 8))
            return
        entries = self._number(box.start + 4)
        if box.kind == b"stts":
            lasts = self._number(box.start + 12) if entries == 1 else 0
            track.each_lasts_one &= lasts == 1
        elif box.kind == b"stsc":
            entries = min(entries, (box.end - box.start - 8) // 12)
            rows = struct.iter_unpack(">III", self._at(box.start + 8, 12 * entries))
            track.runs += [(first, count) for first, count, _ in rows]
        else:
            track.chunks = max(track.chunks, entries)

    def _count(self, samples: int) -> None:
        self._samples += samples
        if self._samples > MAX_SAMPLES:
            raise VideoDecodeError(
                f"{self._what} is damaged: it claims to have more than {MAX_SAMPLES} samples"
            )

    def _refuse_tables_in(self, box: _Box) -> None:
        for start in range(box.start, box.end, _PIECE):
            piece = self._at(start, min(box.end - start, _PIECE + 16))
            for name in _NOWHERE_ELSE:
                self._refuse_table(name, piece, box, start)

    def _refuse_table(self, name: bytes, piece: bytes, box: _Box, start: int) -> None:
        """Refuse a piece with a name behind a size that fits in the box, as a table has it."""
        at = piece.find(name, 4)
        while at >= 0:
            if int.from_bytes(piece[at - 4 : at]) <= box.end - start - at + 4:
                where = box.kind.decode("latin-1")
                raise VideoDecodeError(f"{self._what} hides a table in its box {where!r}")
            at = piece.find(name, at + 1)

    def _number(self, place: int) -> int:
        (number,) = struct.unpack(">I", self._at(place, 4))
        return int(number)

    def _at(self, place: int, size: int) -> bytes:
        self._file.seek(place)
        return self._file.read(size)
