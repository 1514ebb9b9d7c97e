from __future__ import annotations

import io
import itertools
import struct
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from guardrail.errors import (
    InputError,
    LimitExceededError,
    MissingExtraError,
    UnsupportedContentError,
    VideoDecodeError,
)
from guardrail.inputs import video_files
from guardrail.inputs.media import sniffed_video
from guardrail.inputs.video_files import MAX_SAMPLES, check_tables, decoded
from guardrail.inputs.videos import VideoBytes
from guardrail.policy import Limits

if TYPE_CHECKING:
    from collections.abc import Callable

av = pytest.importorskip("av")


def shots(data: bytes, name: str | None = None, **limits: Any) -> list[Any]:
    return list(decoded(io.BytesIO(data), name or sniffed_video(data), Limits(**limits), "it"))


@pytest.mark.parametrize(
    ("container", "codec"),
    [
        ("mp4", "mpeg4"),
        ("mp4", "libx264"),
        ("mov", "mpeg4"),
        ("matroska", "ffv1"),
        ("webm", "libvpx-vp9"),
        ("avi", "mpeg4"),
        ("mpegts", "mpeg2video"),
        ("mpeg", "mpeg2video"),
        ("ogg", "libvpx"),
    ],
)
def test_every_frame_comes_in_order_at_its_time(container, codec, film, number_of):
    if codec not in av.codecs_available:
        pytest.skip(f"this FFmpeg cannot write {codec}")
    found = shots(film(30, fps=25, container=container, codec=codec))
    assert [number_of(shot.picture()) for shot in found] == list(range(30))
    assert [shot.time for shot in found] == pytest.approx([i / 25 for i in range(30)], abs=2e-3)


def test_frames_of_uneven_lengths_keep_their_times(film):
    times = [0, 40, 1000, 1040, 5000]
    found = shots(film(5, times=times, container="matroska", codec="ffv1"))
    assert [shot.time for shot in found] == pytest.approx([t / 1000 for t in times])


def test_time_begins_with_the_first_frame(film):
    times = [3_600_000, 3_600_500]
    found = shots(film(2, times=times, container="matroska", codec="ffv1"))
    assert [shot.time for shot in found] == pytest.approx([0, 0.5])


def corner(picture: Any) -> tuple[bool, bool]:
    """Whether the white quarter is in the lower half, and in the right half."""
    grey = np.asarray(picture.convert("L")).astype(int)
    row, column = np.unravel_index(np.argmax(grey[4::8, 4::8]), grey[4::8, 4::8].shape)
    return bool(row * 8 + 4 > grey.shape[0] // 2), bool(column * 8 + 4 > grey.shape[1] // 2)


@pytest.mark.parametrize(
    ("turned", "mirrored", "size", "white"),
    [
        (None, False, (64, 48), (False, False)),
        (90, False, (48, 64), (True, False)),  # against the clock
        (180, False, (64, 48), (True, True)),
        (270, False, (48, 64), (False, True)),
        (0, True, (64, 48), (False, True)),
        (90, True, (48, 64), (True, True)),
        (270, True, (48, 64), (False, False)),
    ],
)
def test_a_video_is_turned_as_players_turn_it(turned, mirrored, size, white, film):
    array = np.zeros((48, 64, 3), np.uint8)
    array[:24, :32] = 255  # above, on the left
    (shot,) = shots(film([array], turned=turned, mirrored=mirrored))
    picture = shot.picture()
    assert picture.size == size
    assert corner(picture) == white


def test_a_thumbnail_is_the_small_picture(film):
    array = np.zeros((48, 64, 3), np.uint8)
    array[:, 32:] = 200
    (shot,) = shots(film([array]))
    small = shot.thumbnail()
    assert small.shape == (32, 32, 3)
    assert small[:, :15].mean() < 20
    assert 180 < small[:, 17:].mean() < 220


def test_colours_of_one_brightness_make_different_thumbnails(film):
    red, green = np.full((2, 48, 64, 3), (255, 0, 0), np.uint8)
    green[:] = (0, 130, 0)  # the grey of the red
    one, two = (shot.thumbnail().astype(int) for shot in shots(film([red, green])))
    assert np.abs(one - two).mean() > 64


def test_a_last_frame_tells_how_long_it_stays(film):
    data = film(3, times=[0, 100, 1100])
    assert [shot.lasts for shot in shots(data)][:2] == pytest.approx([0.1, 1.0])


def test_a_stamp_that_goes_back_follows_at_the_usual_rate(film, number_of):
    one, two = (film(8, container="mpegts", codec="mpeg2video") for _ in range(2))
    times = [shot.time for shot in shots(one + two)]  # the second begins at 0 again
    assert len(times) == 16
    assert times == pytest.approx([i / 8 for i in range(16)], abs=0.15)
    assert all(b > a for a, b in itertools.pairwise(times))


def test_sound_is_not_heard(film, number_of):
    found = shots(film(8, more="audio"))
    assert [number_of(shot.picture()) for shot in found] == list(range(8))


def test_two_videos_in_one_file_are_refused(film):
    with pytest.raises(UnsupportedContentError, match="it holds 2 videos"):
        shots(film(8, more="video"))


def sound_with_cover() -> bytes:
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as out:
        sound = out.add_stream("aac", rate=8000, layout="mono")
        cover = out.add_stream("mjpeg", rate=1)
        cover.width, cover.height, cover.pix_fmt = 64, 48, "yuvj420p"
        cover.disposition = av.stream.Disposition.attached_pic
        frame = av.VideoFrame.from_ndarray(np.zeros((48, 64, 3), np.uint8), format="rgb24")
        out.mux(cover.encode(frame.reformat(format="yuvj420p")))
        out.mux(cover.encode())
        silence = av.AudioFrame.from_ndarray(
            np.zeros((1, 8000), np.float32), format="fltp", layout="mono"
        )
        silence.sample_rate = 8000
        out.mux(sound.encode(silence))
        out.mux(sound.encode())
    return buffer.getvalue()


def test_sound_with_a_cover_is_no_video():
    with pytest.raises(VideoDecodeError, match="no video, only sound"):
        shots(sound_with_cover())


def test_pixels_are_checked_before_a_frame_is_decoded(film, monkeypatch):
    monkeypatch.setattr("guardrail.inputs.video_files._Clock", None)  # nothing gets so far
    with pytest.raises(LimitExceededError) as caught:
        shots(film(2, codec="libx264"), image_pixels=3000)
    assert (caught.value.limit, caught.value.found) == ("image_pixels", 64 * 48)
    for container, codec in (("mp4", "mpeg4"), ("matroska", "ffv1"), ("webm", "libvpx-vp9")):
        with pytest.raises(InputError, match="image_pixels"):
            shots(film(2, container=container, codec=codec), image_pixels=3000)


def test_a_size_that_grows_on_the_way_is_refused():
    """A transport stream whose second half is larger; the header knows only the first."""
    parts = []
    for side in (48, 96):
        buffer = io.BytesIO()
        with av.open(buffer, "w", format="mpegts") as out:
            stream = out.add_stream("mpeg2video", rate=8)
            stream.width = stream.height = side
            stream.pix_fmt = "yuv420p"
            array = np.zeros((side, side, 3), np.uint8)
            for _ in range(6):
                out.mux(stream.encode(av.VideoFrame.from_ndarray(array, format="rgb24")))
            out.mux(stream.encode())
        parts.append(buffer.getvalue())
    assert {shot.picture().size for shot in shots(b"".join(parts))} == {(48, 48), (96, 96)}
    with pytest.raises(InputError):
        shots(b"".join(parts), image_pixels=48 * 48)


def test_too_many_frames_a_second_are_refused(film):
    frames = [np.zeros((16, 16, 3), np.uint8)] * 600
    flood = film(frames, times=list(range(600)), container="matroska", codec="ffv1")
    with pytest.raises(VideoDecodeError, match="more than 300 frames a second"):
        shots(flood)


@pytest.mark.parametrize("container", ["mp4", "matroska", "avi", "mpegts"])
def test_damage_is_an_error_of_ours_or_ends_the_video(container, film):
    codec = {"matroska": "ffv1", "mpegts": "mpeg2video"}.get(container, "mpeg4")
    whole = film(24, container=container, codec=codec)
    name = sniffed_video(whole)
    random = np.random.default_rng(0)
    for cut in range(0, len(whole), max(1, len(whole) // 40)):
        broken = bytearray(whole)
        broken[cut : cut + 16] = random.bytes(16)
        for data in (whole[:cut], bytes(broken)):
            try:
                found = shots(data, name)
            except InputError:
                continue
            assert len(found) <= 300


LISTS = {
    "concat": "ffconcat version 1.0\nfile {path}\n",
    "hls": "#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\nfile://{path}\n#EXT-X-ENDLIST\n",
}


@pytest.mark.parametrize("kind", list(LISTS))
def test_a_list_of_files_is_no_video(kind, tmp_path, film):
    (path := tmp_path / "secret.ts").write_bytes(film(4, container="mpegts", codec="mpeg2video"))
    words = LISTS[kind].format(path=path).encode()
    assert sniffed_video(words) is None
    for name in ("MP4", "Matroska", "AVI", "MPEG-TS", "MPEG", "Ogg"):
        with pytest.raises(InputError):
            shots(words, name)


@pytest.mark.parametrize("kind", list(LISTS))
def test_no_other_file_would_be_opened_even_for_a_list(kind, tmp_path, film, monkeypatch):
    (path := tmp_path / "secret.ts").write_bytes(film(4, container="mpegts", codec="mpeg2video"))
    words = LISTS[kind].format(path=path).encode()
    loose = {"safe": "0", "protocol_whitelist": "file"} if kind == "concat" else {}
    with av.open(io.BytesIO(words), format=kind, container_options=loose) as other:
        assert len(list(other.decode(video=0))) == 4  # FFmpeg as it is follows the list

    monkeypatch.setattr(video_files, "DEMUXERS", {"list": kind, "MPEG-TS": "mpegts"})
    asked: list[str] = []

    def refuse(url: str, *_: Any) -> None:
        asked.append(url)
        raise PermissionError

    for opening in (video_files._refuse_to_open, refuse):
        monkeypatch.setattr(video_files, "_refuse_to_open", opening)
        with pytest.raises(InputError):
            shots(words, "list")
    assert all(str(path) in url for url in asked)


def test_without_the_extra_the_error_names_it(film, monkeypatch):
    data = film(2)
    monkeypatch.setitem(__import__("sys").modules, "av", None)
    with pytest.raises(MissingExtraError, match=r"guardrail-vlm\[video\]"):
        shots(data)


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
            next(VideoBytes(bomb).shots(Limits(), "it"))
    assert len(list(VideoBytes(data).shots(Limits(), "it"))) == 3


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
        monkeypatch.setattr(video_files, "_PIECE", size)
        refused(hidden, "hides a table in its box 'uuid'")


def test_boxes_are_counted(monkeypatch):
    monkeypatch.setattr(video_files, "_BOXES", 9)
    check_tables(io.BytesIO(box(b"free") * 9), "it")
    refused(box(b"moov", box(b"free") * 9), "more than 9 boxes")
