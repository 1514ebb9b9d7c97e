from __future__ import annotations

import io
import struct
from typing import TYPE_CHECKING, Any

import pytest

from guardrail.errors import VideoDecodeError
from guardrail.policy import Limits
from guardrail.requests import mp4_tables
from guardrail.requests.mp4_tables import MAX_SAMPLES, check_tables
from guardrail.requests.video_footage import Encoded

if TYPE_CHECKING:
    from collections.abc import Callable

MANY = 60_000_000
OPENED = (b"moov", b"trak", b"mdia", b"minf", b"stbl")


def box(kind: bytes, *content: bytes | int) -> bytes:
    """A box; numbers are of 32 bits."""
    body = b"".join(c if isinstance(c, bytes) else struct.pack(">I", c) for c in content)
    return struct.pack(">I4s", 8 + len(body), kind) + body


def rewritten(data: bytes, new: Callable[[bytes, bytes], bytes]) -> bytes:
    """A file with each box as `new` makes it from its kind and content."""
    made, at = b"", 0
    while at < len(data):
        size, kind = struct.unpack_from(">I4s", data, at)
        content = data[at + 8 : at + size]
        made += new(kind, rewritten(content, new) if kind in OPENED else content)
        at += size
    return made


def table(handler: bytes, *tables: bytes) -> bytes:
    """A file of one track with these tables."""
    stbl = box(b"stbl", *tables)
    mdia = box(b"mdia", box(b"hdlr", 0, b"mhlr", handler), box(b"minf", stbl))
    return box(b"ftyp", b"isom", 0) + box(b"moov", box(b"trak", mdia))


def refused(data: bytes, says: str) -> None:
    with pytest.raises(VideoDecodeError, match=says):
        check_tables(io.BytesIO(data), "it")


def constant_size(kind: bytes, content: bytes) -> bytes:
    return box(b"stsz", 0, 1, MANY) if kind == b"stsz" else box(kind, content)


def with_fragment(data: bytes) -> bytes:
    traf = box(b"traf", box(b"tfhd", 0x20000, 1), box(b"trun", 0, MANY))
    return data + box(b"moof", box(b"mfhd", 0, 1), traf)


def test_a_small_file_that_claims_millions_of_frames_is_refused_before_it_is_opened(film: Any):
    data = film(3)
    for bomb in (rewritten(data, constant_size), with_fragment(data)):
        with pytest.raises(VideoDecodeError, match=f"more than {MAX_SAMPLES} samples"):
            next(Encoded(bomb).shots(Limits(), "it"))
    assert len(list(Encoded(data).shots(Limits(), "it"))) == 3


def test_the_samples_of_all_tracks_and_fragments_are_added_up():
    half = box(b"traf", box(b"trun", 0, MAX_SAMPLES // 2))
    file = io.BytesIO(box(b"moof", half) * 2)
    check_tables(file, "it")
    assert file.tell() == 0
    refused(box(b"moof", half, half) + box(b"moof", box(b"traf", box(b"trun", 0, 2))), "samples")


def sound(per_chunk: int, chunks: int, *, handler: bytes = b"soun", lasts: int = 1) -> bytes:
    return table(
        handler,
        box(b"hdlr", 0, b"dhlr", b"url "),  # as QuickTime has it
        box(b"stts", 0, 1, MANY, lasts),
        box(b"stsc", 0, 1, 1, per_chunk, 1),
        box(b"stsz", 0, 4, MANY),
        box(b"stco", 0, chunks, b"\0" * 4 * chunks),
    )


def test_plain_sound_is_counted_by_its_packets():
    check_tables(io.BytesIO(sound(24_000, MANY // 24_000)), "it")
    refused(sound(1 << 31, 8), "samples")  # chunks that claim too much
    refused(sound(24_000, 10, handler=b"vide"), "samples")
    refused(sound(24_000, 10, lasts=2), "samples")


def test_tables_that_are_packed_or_hidden_are_refused():
    refused(box(b"moov", box(b"cmov", box(b"dcom", b"zlib"))), "compressed")
    refused(box(b"moov", box(b"trak", box(b"tref", box(b"stsz", 0, 1, MANY)))), "hides")
    old = box(b"free", box(b"mvhd", 0), box(b"stsz", 0, 1, MANY))
    refused(old, "hides")
    check_tables(io.BytesIO(old + box(b"moov", box(b"mvhd", 0))), "it")  # what an editor leaves


def test_a_table_that_ends_early_is_an_error_of_ours():
    refused(box(b"moov", box(b"trak", box(b"stsz", 0))), "incomplete")


def test_boxes_inside_boxes_without_end_are_an_error_of_ours():
    nested = b""
    for _ in range(3_000):
        nested = box(b"trak", nested)
    refused(nested, "nested too deep")


def test_a_table_is_found_where_two_pieces_meet(monkeypatch):
    hidden = box(b"uuid", b"x" * 21, box(b"stsz", 0, 1, MANY))
    for size in range(1, 40):
        monkeypatch.setattr(mp4_tables, "_PIECE", size)
        refused(hidden, "hides a table in its box 'uuid'")


def test_boxes_are_counted(monkeypatch):
    monkeypatch.setattr(mp4_tables, "_BOXES", 9)
    check_tables(io.BytesIO(box(b"free") * 9), "it")
    refused(box(b"moov", box(b"free") * 9), "more than 9 boxes")
