"""What an encoded picture is made of, counted before a parser sees it.

Pillow's parsers take microseconds for each segment, chunk, block or entry, in Python, and keep some
of them: a file of millions, with eight pixels, costs as much as a thousand pictures. Here a file is
stepped through by its lengths alone, and no further than to the bound. The steps are those that
Pillow takes, in damaged files too.
"""

from __future__ import annotations

import re
import struct
from typing import TYPE_CHECKING

from guardrail.errors import ImageDecodeError

if TYPE_CHECKING:
    from guardrail.policy import Limits

_PIECES = 2_000  # cameras and editors write tens
_PIECES_OF_FRAME = 4  # and as many more for each frame of an animation
_JUNK = 65_536  # bytes that belong to no piece: each is a step of its own
# Pixels come in pieces, too: encoders write kilobytes at once, in GIF at most 255 bytes.
_PNG_DATA = 1_024
_GIF_DATA = 64
_COMPRESSED = 100  # texts and profiles of a PNG, which may unfold to a megabyte each
_VALUES = 100_000  # numbers in a directory of a TIFF: two for each strip of its rows
EXIF_BYTES = 262_144  # a segment of a JPEG holds 65,533
# Each scan of a progressive JPEG costs a pass over all pixels and may be 50 bytes short; encoders
# write about ten. A hundred passes over a picture of the largest size take a few seconds.
_SCANS = 100
_TABLES = 2 + 4 * 129  # bytes of four quantization tables, which is all that a JPEG can use
JPEG_MARKER = re.compile(rb"\xff([^\x00\x01\xd0-\xd7\xff])")  # of a segment, also among data
_MARKER_AT_HEAD = re.compile(rb"\xff([^\x00\xff])")
_BARE = frozenset((*range(0xC0), 0xC8, *range(0xD0, 0xDA), *range(0xF0, 0xFE)))  # without a length
_FRAME_HEADERS = frozenset((*range(0xC0, 0xD0), 0xDE)) - {0xC4, 0xC8, 0xCC}
_GIF_BLOCK = re.compile(rb"[!,;]")
_LINKS = frozenset({34665, 34853, 40965})  # tags of TIFF that lead to directories: EXIF, GPS, ...
_READ_WHOLE = frozenset({1, 2, 7})  # types of TIFF: bytes and text


def counted_frames(name: str, data: bytes, limits: Limits, *, what: str) -> int:
    """Check the structure of a picture of the format `name`; the frames that it tells of.

    No more are counted than one above the policy's limit. Only GIF and TIFF tell of more than one;
    what is cut short is otherwise the parser's business.

    Raises:
        ImageDecodeError: it has more pieces than a picture needs.
        IndexError, struct.error: it is cut short where it would have to be read.
    """
    match name:
        case "JPEG":
            _check_jpeg(data, what)
        case "PNG":
            _check_png(data, limits, what)
        case "WEBP":
            _check_webp(data, limits, what)
        case "GIF":
            return _gif_frames(data, limits, what)
        case "TIFF":
            return _tiff_frames(data, limits, what)
    return 1


def check_exif(info: dict[str | tuple[int, int], object], what: str) -> None:
    """Refuse EXIF data that is too large to be read entry by entry.

    Raises:
        ImageDecodeError: it is.
    """
    for key in ("exif", "Raw profile type exif"):
        found = info.get(key)
        if isinstance(found, bytes | str):
            _bound(len(found), EXIF_BYTES, what, "bytes of EXIF data")


def _bound(found: int, most: int, what: str, pieces: str) -> None:
    if found > most:
        raise ImageDecodeError(f"{what} has more than {most} {pieces}; save it again")


def _most(limits: Limits) -> int:
    return _PIECES + _PIECES_OF_FRAME * limits.frames


def _check_jpeg(data: bytes, what: str) -> None:
    """Step through the segments of a JPEG's first picture, those between its scans too."""
    position, segments, scans, headers, exif, junk = 2, 0, 0, 0, 0, 0
    while True:
        if scans:
            found = JPEG_MARKER.search(data, position)
            end = found.start() if found else len(data)
            if data.find(b"\xff" * _JUNK, position, end) >= 0:  # read anew with each block of data
                junk = _JUNK + 1
        else:
            found = _MARKER_AT_HEAD.search(data, position, position + _JUNK + 2)
            junk += (found.start() if found else len(data)) - position
        _bound(junk, _JUNK, what, "bytes between its segments")
        if found is None or (scans and found[1] == b"\xd9"):  # the end of the picture
            return
        marker, position = found[1][0], found.end()
        segments += 1
        if marker not in _BARE:
            length = int.from_bytes(data[position : position + 2])
            scans += marker == 0xDA
            headers += marker in _FRAME_HEADERS
            if marker == 0xDB:
                _bound(length, _TABLES, what, "bytes of quantization tables in a segment")
            elif marker == 0xE1 and data.startswith(b"Exif\0\0", position + 2):
                exif += length
            elif marker == 0xED:
                segments += data.count(b"8BIM", position, position + length)
            position += max(length, 2)
        _bound(segments, _PIECES, what, "segments")
        _bound(scans, _SCANS, what, "scans")
        _bound(headers, 1, what, "frame header")
        _bound(exif, EXIF_BYTES, what, "bytes of EXIF data")


def _check_png(data: bytes, limits: Limits, what: str) -> None:
    position, chunks, pixels, compressed, most = 8, 0, 0, 0, _most(limits)
    while position + 8 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, position)
        if kind == b"IEND":
            return
        if kind in (b"IDAT", b"fdAT"):
            pixels += 1
            _bound(pixels, most + len(data) // _PNG_DATA, what, "chunks of pixels")
        else:
            chunks += 1
            compressed += kind in (b"iCCP", b"iTXt", b"zTXt")
            _bound(chunks, most, what, "chunks")
            _bound(compressed, _COMPRESSED, what, "chunks of compressed text")
        position += 12 + length


def _check_webp(data: bytes, limits: Limits, what: str) -> None:
    position, chunks, most = 12, 0, _most(limits)
    while position + 8 <= len(data):
        chunks += 1
        _bound(chunks, most, what, "chunks")
        length = int.from_bytes(data[position + 4 : position + 8], "little")
        position += 8 + length + (length & 1)


def _gif_frames(data: bytes, limits: Limits, what: str) -> int:
    position, frames, blocks, junk, pieces = 13 + _colour_table(data[10]), 0, 0, 0, 0
    most = _most(limits)
    while frames <= limits.frames:
        found = _GIF_BLOCK.search(data, position, position + _JUNK + 1)
        junk += (found.start() if found else len(data)) - position
        _bound(junk, _JUNK, what, "bytes between its blocks")
        if found is None or found[0] == b";":
            break
        position = found.end()
        if found[0] == b",":
            frames += 1
            position += 10 + _colour_table(data[position + 8])
        else:
            _check_extension(data, position, what)
            position += 1
        blocks += 1
        _bound(blocks, most, what, "blocks")
        while length := data[position]:
            position += 1 + length
            pieces += 1
            _bound(pieces, most + len(data) // _GIF_DATA, what, "pieces of data")
        position += 1
    return frames


def _check_extension(data: bytes, position: int, what: str) -> None:
    """Refuse an empty extension, behind which Pillow goes on as if it had not ended."""
    length = data[position + 1]
    if data[position] == 0xFE:  # a comment
        return
    looped = data.startswith(b"NETSCAPE2.0", position + 2)
    if length == 0 or (looped and data[position + 2 + length] == 0):
        raise ImageDecodeError(f"{what} is a GIF with an empty extension; save it again")


def _colour_table(flags: int) -> int:
    return 3 << ((flags & 7) + 1) if flags & 0x80 else 0


def _tiff_frames(data: bytes, limits: Limits, what: str) -> int:
    """Follow the chain of a TIFF's directories; only the first is read, with those it leads to."""
    layout = _layout(data)
    number, count, entry = layout
    first: int = number.unpack_from(data, number.size)[0]
    _check_directories(data, layout, first, what)
    at, pages = first, set[int]()
    while at and at not in pages and at + count.size <= len(data) and len(pages) <= limits.frames:
        pages.add(at)
        place = at + count.size + count.unpack_from(data, at)[0] * entry.size
        inside = place + number.size <= len(data)
        at = number.unpack_from(data, place)[0] if inside else 0
    return len(pages)


def _check_directories(data: bytes, layout: _Layout, first: int, what: str) -> None:
    _, count, entry = layout
    seen, left, entries, values = set[int](), [first], 0, 0
    while left:
        at = left.pop()
        if at in seen or at + count.size > len(data):
            continue
        seen.add(at)
        (found,) = count.unpack_from(data, at)
        entries += found
        _bound(entries, _PIECES, what, "entries in its directories")
        table = memoryview(data)[at + count.size :][: found * entry.size]
        whole = len(table) - len(table) % entry.size
        for tag, kind, numbers, value in entry.iter_unpack(table[:whole]):
            if kind in _READ_WHOLE or numbers > len(data):  # which is passed over
                continue
            values += numbers
            if tag in _LINKS:
                left.append(_link(entry.format[0], kind, numbers, value, what))
        _bound(values, _VALUES, what, "numbers in its directories")


_Layout = tuple[struct.Struct, struct.Struct, struct.Struct]  # of an offset, a count, an entry


def _layout(data: bytes) -> _Layout:
    order = "<" if data[:2] == b"II" else ">"
    formats = ("Q", "Q", "HHQ8s") if data[2] == 43 else ("L", "H", "HHL4s")  # as Pillow sees it
    number, count, entry = (struct.Struct(order + each) for each in formats)
    return number, count, entry


def _link(order: str, kind: int, numbers: int, value: bytes, what: str) -> int:
    """Where an entry says that another directory is."""
    form = {3: "H", 4: "L", 13: "L", 16: "Q"}.get(kind, "")
    if numbers != 1 or not form or struct.calcsize(order + form) > len(value):
        raise ImageDecodeError(
            f"{what} is a TIFF with a directory that has no place; save it again"
        )
    place: int = struct.unpack_from(order + form, value)[0]
    return place
