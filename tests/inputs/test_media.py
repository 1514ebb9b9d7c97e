from __future__ import annotations

import io

import pytest
from PIL import Image

from guardrail.errors import UnsupportedContentError, VideoDecodeError
from guardrail.inputs.media import DEMUXERS, HEAD_BYTES, VIDEO, sniffed_video

av = pytest.importorskip("av")


@pytest.mark.parametrize(
    ("container", "codec", "name"),
    [
        ("mp4", "mpeg4", "MP4"),
        ("mov", "mpeg4", "MP4"),
        ("matroska", "ffv1", "Matroska"),
        ("avi", "mpeg4", "AVI"),
        ("mpegts", "mpeg2video", "MPEG-TS"),
        ("mpeg", "mpeg2video", "MPEG"),
        ("ogg", "libvpx", "Ogg"),
    ],
)
def test_a_container_is_told_by_its_first_bytes(container, codec, name, film):
    data = film(8, container=container, codec=codec)
    assert sniffed_video(data[:HEAD_BYTES]) == name
    assert name in DEMUXERS


@pytest.mark.parametrize(("name", "kind"), [("GIF", "GIF"), ("PNG", "PNG"), ("WEBP", "WEBP")])
def test_animations_are_videos_too(name, kind):
    frames = [Image.new("RGB", (8, 8), (i * 90, 0, 0)) for i in range(3)]
    buffer = io.BytesIO()
    frames[0].save(buffer, name, save_all=True, append_images=frames[1:], duration=100)
    assert sniffed_video(buffer.getvalue()) == kind


@pytest.mark.parametrize(
    "data",
    [b"", b"ffconcat version 1.0\nfile a", b"#EXTM3U\n", b"\xff\xd8\xff\xe0", b"G" * 10, b"v=0\r\n",
     b"<?xml version='1.0'?><MPD>", b"FLV\x01", b"\x00" * 600],
)  # fmt: skip
def test_what_is_not_in_the_list_is_no_video(data):
    assert sniffed_video(data) is None


def test_a_declared_type_must_fit(film):
    data = film(2)
    VIDEO.check_media_type(data, " Video/MP4", what="it")
    with pytest.raises(VideoDecodeError, match="holds MP4"):
        VIDEO.check_media_type(data, "video/webm", what="it")
    with pytest.raises(UnsupportedContentError, match="accepted: video/mp4"):
        VIDEO.check_media_type(data, "application/vnd.apple.mpegurl", what="it")
