"""The tables of an MP4 or QuickTime file, added up before FFmpeg makes room for what they claim.

FFmpeg makes an index of every sample of every track when it opens such a file, as long as the
tables say: a file of 2 kB can ask for gigabytes. Here the sizes alone are read, where FFmpeg would
find them; a file that keeps tables anywhere else is refused.
"""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from guardrail.errors import VideoDecodeError
from guardrail.requests.patience import still_wanted

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import BinaryIO

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
