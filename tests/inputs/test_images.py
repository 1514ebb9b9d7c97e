from __future__ import annotations

import base64
import os
import socket
import struct
import threading
import tracemalloc
import zlib
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from io import BytesIO
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from guardrail.errors import (
    ConfigurationError,
    ImageDecodeError,
    InputError,
    LimitExceededError,
    MissingExtraError,
    UnsupportedContentError,
    UrlNotAllowedError,
)
from guardrail.inputs import fetch, sources
from guardrail.inputs.images import FORMATS, decode_image
from guardrail.inputs.media import PICTURE
from guardrail.policy import Limits, Policy

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

RED = (255, 0, 0)
BLUE = (0, 0, 255)


def decode(source: Any, *, hosts: tuple[str, ...] = (), files: bool = True, **limits: int) -> Any:
    rules = {"allowed_hosts": frozenset(hosts), "local_files": files, "limits": Limits(**limits)}
    return decode_image(source, Policy().model_copy(update=rules))


def encoded(image: Image.Image, name: str = "PNG", **options: Any) -> bytes:
    buffer = BytesIO()
    image.save(buffer, name, **options)
    return buffer.getvalue()


def picture(size: tuple[int, int] = (6, 4)) -> Image.Image:
    """Red, its top left corner blue."""
    image = Image.new("RGB", size, RED)
    image.putpixel((0, 0), BLUE)
    return image


def frames(count: int) -> list[Image.Image]:
    return [Image.new("RGB", (8, 8), (i * 20, 255 - i * 20, 0)) for i in range(count)]


def empty_png(width: int, height: int) -> bytes:
    """A black PNG of any size, compressed row by row."""

    def chunk(name: bytes, body: bytes) -> bytes:
        return (
            struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
        )

    packer = zlib.compressobj(9)
    row = bytes(1 + (width + 7) // 8)
    data = b"".join(packer.compress(row) for _ in range(height)) + packer.flush()
    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")
    )


# ---- formats and modes


@pytest.mark.parametrize("name", ["PNG", "WEBP", "GIF", "BMP", "TIFF"])
def test_every_lossless_format_gives_the_same_pixels(name: str) -> None:
    options = {"lossless": True} if name == "WEBP" else {}
    result = decode(encoded(picture(), name, **options))
    assert (result.mode, result.tobytes()) == ("RGB", picture().tobytes())


def test_jpeg_is_read_nearly_unchanged() -> None:
    result = decode(encoded(Image.new("RGB", (16, 16), RED), "JPEG", quality=95))
    assert np.abs(np.asarray(result).astype(int) - RED).max() < 4


def test_a_format_outside_the_list_is_refused_even_when_pillow_reads_it() -> None:
    with pytest.raises(ImageDecodeError, match="PNG, JPEG"):
        decode(encoded(picture(), "PPM"))


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        (Image.new("L", (1, 1), 77), (77, 77, 77)),
        (Image.new("1", (1, 1), 1), (255, 255, 255)),
        (Image.new("LA", (1, 1), (0, 0)), (255, 255, 255)),
        (Image.new("LA", (1, 1), (9, 255)), (9, 9, 9)),
        (Image.new("La", (1, 1), (0, 0)), (255, 255, 255)),
        (Image.new("RGBA", (1, 1), (0, 0, 0, 0)), (255, 255, 255)),
        (Image.new("RGBA", (1, 1), (255, 0, 0, 128)), (255, 127, 127)),
        (Image.new("CMYK", (1, 1), (0, 255, 255, 0)), RED),
        (Image.new("I;16", (1, 1), 65535), (255, 255, 255)),
        (Image.new("I;16", (1, 1), 32768), (128, 128, 128)),
        (Image.new("I;16B", (1, 1), 32768), (128, 128, 128)),
        (Image.new("I", (1, 1), 257), (1, 1, 1)),
        (Image.new("RGB", (1, 1), RED).quantize(2), RED),
    ],
    ids=lambda value: getattr(value, "mode", ""),
)
def test_modes_become_rgb(image: Image.Image, expected: tuple[int, int, int]) -> None:
    result = decode(image)
    assert result.mode == "RGB"
    assert result.getpixel((0, 0)) == expected


def test_sixteen_bit_png_is_scaled_not_clipped() -> None:
    values = np.array([[0, 257, 32768, 65535]], dtype=np.uint16)
    result = decode(encoded(Image.fromarray(values)))
    assert np.asarray(result)[0, :, 0].tolist() == [0, 1, 128, 255]


def test_a_transparent_colour_of_a_palette_shows_white() -> None:
    image = Image.new("P", (2, 1), 1)
    image.putpalette([0, 0, 0, 255, 0, 0])
    image.putpixel((0, 0), 0)
    result = decode(encoded(image, transparency=0))
    assert [result.getpixel((x, 0)) for x in (0, 1)] == [(255, 255, 255), RED]


def test_a_transparent_grey_of_sixteen_bits_shows_white() -> None:
    values = np.array([[500, 1000]], dtype=np.uint16)
    image = Image.fromarray(values)
    image.info["transparency"] = 500
    assert np.asarray(decode(image))[0, :, 0].tolist() == [255, 4]


@pytest.mark.parametrize("mode", ["F", "LAB"])
def test_modes_without_defined_colours_are_refused(mode: str) -> None:
    with pytest.raises(UnsupportedContentError, match=mode):
        decode(Image.new(mode, (1, 1)))


def test_wide_integers_are_refused_rather_than_clipped() -> None:
    with pytest.raises(UnsupportedContentError, match="65535"):
        decode(Image.new("I", (1, 1), 70_000))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("name", ["PNG", "WEBP", "TIFF", "memory"])
def test_exif_rotation_is_undone_once(name: str, orientation: int) -> None:
    from PIL import ImageOps

    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"lossless": True} if name == "WEBP" else {}
    data = encoded(picture(), "PNG" if name == "memory" else name, exif=exif, **options)
    expected = ImageOps.exif_transpose(Image.open(BytesIO(data))).convert("RGB")
    once = decode(Image.open(BytesIO(data)) if name == "memory" else data)
    twice = decode(once)
    assert (once.size, once.tobytes()) == (expected.size, expected.tobytes())
    assert (twice.size, twice.tobytes()) == (once.size, once.tobytes())


def test_damaged_exif_leaves_the_picture_as_stored() -> None:
    data = encoded(picture(), "PNG", exif=b"Exif\0\0" + b"MM\0*" + b"\xff" * 20)
    assert decode(data).tobytes() == picture().tobytes()


@pytest.mark.parametrize("name", ["GIF", "PNG", "WEBP", "TIFF"])
def test_the_first_frame_of_an_animation_counts(name: str) -> None:
    first, *others = frames(3)
    options = {"lossless": True} if name == "WEBP" else {}
    data = encoded(first, name, save_all=True, append_images=others, **options)
    assert decode(data).tobytes() == first.tobytes()


# ---- limits


@pytest.mark.parametrize("name", ["GIF", "PNG", "WEBP", "TIFF", "MPO"])
def test_frames_are_bounded_and_the_bound_is_inclusive(name: str) -> None:
    first, *others = frames(4)
    data = encoded(first, name, save_all=True, append_images=others)
    assert decode(data, frames=4).size == (8, 8)
    with pytest.raises(LimitExceededError) as caught:
        decode(data, frames=3)
    assert (caught.value.limit, caught.value.allowed, caught.value.found) == ("frames", 3, 4)


@pytest.mark.parametrize("name", [*FORMATS, "WEBP lossless", "WEBP alpha"])
def test_pixels_are_bounded_and_the_bound_is_inclusive(name: str) -> None:
    name, _, kind = name.partition(" ")
    image = picture().convert("RGBA" if kind == "alpha" else "RGB")
    if kind == "alpha":
        image.putalpha(7)
    data = encoded(image, name, **({"lossless": True} if kind == "lossless" else {}))
    assert decode(data, image_pixels=24).size == (6, 4)
    for source in (data, Image.open(BytesIO(data))):
        with pytest.raises(LimitExceededError) as caught:
            decode(source, image_pixels=23)
        assert (caught.value.limit, caught.value.found) == ("image_pixels", 24)


def test_bytes_are_bounded_and_the_bound_is_inclusive(tmp_path: Path) -> None:
    data = encoded(picture())
    (tmp_path / "a.png").write_bytes(data)
    text = base64.b64encode(data).decode()
    for source in (
        data,
        bytearray(data),
        tmp_path / "a.png",
        text,
        f"data:image/png;base64,{text}",
    ):
        assert decode(source, image_bytes=len(data)).size == (6, 4)
        with pytest.raises(LimitExceededError) as caught:
            decode(source, image_bytes=len(data) - 1)
        assert (caught.value.limit, caught.value.found) == ("image_bytes", len(data))


def test_a_bomb_of_few_bytes_is_refused_from_its_header(monkeypatch: pytest.MonkeyPatch) -> None:
    data = empty_png(10_000, 10_000)
    assert len(data) < 20_000
    monkeypatch.setattr(Image.Image, "load", lambda _self: pytest.fail("pixels were decoded"))
    monkeypatch.setattr(
        "PIL.ImageFile.ImageFile.load", lambda _self: pytest.fail("pixels were decoded")
    )
    before = Image.MAX_IMAGE_PIXELS
    with pytest.raises(LimitExceededError) as caught:
        decode(data)
    assert caught.value.found == 100_000_000
    assert before == Image.MAX_IMAGE_PIXELS


def test_the_policy_may_allow_more_pixels_than_pillows_own_limit(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 5)
    assert decode(encoded(picture()), image_pixels=24).size == (6, 4)


@pytest.mark.parametrize("kind", [Image.DecompressionBombError, Image.DecompressionBombWarning])
def test_pillows_own_bomb_alarms_become_limit_errors(
    kind: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    def alarm(_self: object) -> None:
        raise kind("Image size (123 pixels) exceeds limit")

    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", alarm)
    with pytest.raises(LimitExceededError) as caught:
        decode(encoded(picture()))
    assert (caught.value.limit, caught.value.found) == ("image_pixels", 123)


def directory(entries: int, blob: int) -> bytes:
    """A TIFF of 4 x 4 grey pixels and many entries that all point at the one blob at its end."""
    end = 8 + 2 + 12 * (9 + entries) + 4
    known = [(256, 4), (257, 4), (258, 8), (259, 1), (262, 1), (273, end), (277, 1), (278, 4)]
    known.append((279, 16))
    rows = [struct.pack("<HHII", tag, 4, 1, value) for tag, value in known]
    rows += [struct.pack("<HHII", 40_000 + i, 1, blob, end) for i in range(entries)]
    head = b"II*\0" + struct.pack("<IH", 8, len(rows))
    return head + b"".join(rows) + bytes(4) + bytes(blob)


def test_pillow_bounds_what_the_entries_of_a_directory_hold() -> None:
    assert int(Image.__version__.split(".")[0]) >= 13  # before, entries were read without a bound


@pytest.mark.filterwarnings("ignore:Tag data larger than file")
@pytest.mark.parametrize("kind", ["TIFF", "PNG"])
def test_many_entries_that_share_one_blob_cost_little(kind: str) -> None:
    data = directory(1900, 200_000)
    if kind == "PNG":
        data = encoded(Image.new("L", (4, 4)), exif=b"Exif\0\0" + data)
    tracemalloc.start()
    try:
        assert decode(data).size == (4, 4)
        assert tracemalloc.get_traced_memory()[1] < 30_000_000  # read one by one: 380 MB
    finally:
        tracemalloc.stop()


def test_a_jpeg_of_endless_scans_is_refused() -> None:
    data = encoded(Image.new("L", (64, 64), 90), "JPEG", progressive=True)
    scan = data[data.rindex(b"\xff\xda") : -2]
    assert decode(data[:-2] + scan * 20 + b"\xff\xd9").size == (64, 64)
    with pytest.raises(ImageDecodeError, match="scans"):
        decode(data[:-2] + scan * 200 + b"\xff\xd9")


@pytest.mark.parametrize("size", [(0, 3), (3, 0)])
def test_pictures_without_pixels_are_refused(size: tuple[int, int]) -> None:
    with pytest.raises(ImageDecodeError, match="no pixels"):
        decode(Image.new("RGB", size))


# ---- damaged bytes


@pytest.mark.parametrize("name", FORMATS)
def test_a_truncated_file_is_an_error(name: str) -> None:
    noise = Image.effect_noise((40, 40), 90).convert("RGB")
    data = encoded(noise, name)
    for keep in (len(data) // 2, len(data) * 3 // 4, 30, 12):
        with pytest.raises(ImageDecodeError):
            decode(data[:keep])


SEEDS = [encoded(picture(), name) for name in FORMATS] + [
    encoded(frames(2)[0], name, save_all=True, append_images=frames(2))
    for name in ("GIF", "WEBP", "TIFF", "PNG", "MPO")
]
SIGNATURES = [seed[:12] for seed in SEEDS]


def assert_rgb_or_input_error(data: bytes) -> None:
    try:
        result = decode(data, image_pixels=100_000, frames=8)
    except InputError:
        return
    assert result.mode == "RGB"


@given(st.sampled_from([b"", *SIGNATURES]), st.binary(max_size=400))
@settings(max_examples=300, deadline=None)
def test_random_bytes_raise_only_input_errors(head: bytes, tail: bytes) -> None:
    assert_rgb_or_input_error(head + tail)


@given(
    st.sampled_from(SEEDS),
    st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 255)), min_size=1, max_size=6),
)
@settings(max_examples=400, deadline=None)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_flipped_bytes_raise_only_input_errors(seed: bytes, edits: list[tuple[int, int]]) -> None:
    data = bytearray(seed)
    for where, value in edits:
        data[where % len(data)] = value
    assert_rgb_or_input_error(bytes(data))


@given(st.text(max_size=80))
@settings(max_examples=200, deadline=None)
def test_random_strings_raise_only_input_errors(text: str) -> None:
    for scheme in ("", "data:", "data:image/png,", "file://", "http://", "https://"):
        with pytest.raises(InputError):
            decode(scheme + text)


# ---- Pillow pictures


def test_the_callers_picture_is_neither_changed_nor_shared() -> None:
    image = picture()
    image.info["exif"] = b"kept"
    before = image.tobytes()
    result = decode(image)
    result.paste((1, 2, 3), (0, 0, 6, 4))
    assert image.tobytes() == before
    assert image.info == {"exif": b"kept"}


def test_a_lazily_opened_truncated_picture_is_an_error() -> None:
    data = encoded(Image.effect_noise((40, 40), 90))
    with pytest.raises(ImageDecodeError):
        decode(Image.open(BytesIO(data[: len(data) // 2])))


def test_a_closed_picture_is_an_error() -> None:
    image = picture()
    image.close()
    with pytest.raises(ImageDecodeError):
        decode(image)


@pytest.mark.parametrize("source", [None, 3, ["a"], {"a": 1}, np.zeros((2, 2, 3))])
def test_other_python_types_are_refused_by_name(source: object) -> None:
    with pytest.raises(UnsupportedContentError, match=type(source).__name__):
        decode(source)


# ---- strings: base64, data URLs, files


def test_base64_may_be_wrapped_in_lines_but_must_be_strict() -> None:
    data = encoded(Image.effect_noise((20, 20), 50))
    assert decode(base64.encodebytes(data).decode()).size == (20, 20)
    text = base64.b64encode(data).decode()
    for broken in (text[:-1], text[:100] + "*" + text[101:], text[:100] + "-_" + text[102:]):
        with pytest.raises(ImageDecodeError, match="base64"):
            decode(broken)


def test_a_jpegs_base64_is_not_taken_for_an_absolute_path() -> None:
    text = base64.b64encode(encoded(picture(), "JPEG")).decode()
    assert text.startswith("/9j/")
    assert decode(text, files=False).size == (6, 4)


def test_data_urls_are_read_in_base64_and_percent_encoding() -> None:
    from urllib.parse import quote_from_bytes

    data = encoded(picture())
    text = base64.b64encode(data).decode()
    for url in (
        f"data:image/png;base64,{text}",
        f"DATA:IMAGE/PNG;charset=x;BASE64,{text}",
        f"data:image/png;base64,{text.replace('+', '%2B').replace('=', '%3D')}",
        f"data:image/png,{quote_from_bytes(data)}",
    ):
        assert decode(url, files=False).tobytes() == picture().tobytes()


def test_a_data_urls_media_type_must_fit_its_content() -> None:
    text = base64.b64encode(encoded(picture())).decode()
    with pytest.raises(ImageDecodeError, match="holds PNG"):
        decode(f"data:image/jpeg;base64,{text}")
    for declared in ("", "text/plain", "image/svg+xml", "image/*"):
        with pytest.raises(UnsupportedContentError, match="image/png"):
            decode(f"data:{declared};base64,{text}")
    with pytest.raises(ImageDecodeError, match="data URL"):
        decode("data:image/png;base64")


def test_paths_file_urls_and_links_are_read(tmp_path: Path) -> None:
    path = tmp_path / "a b.png"
    path.write_bytes(encoded(picture()))
    (tmp_path / "link").symlink_to(path)
    for source in (path, str(path), path.as_uri(), tmp_path / "link"):
        assert decode(source).tobytes() == picture().tobytes()


def test_without_local_files_the_disk_is_never_touched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(encoded(picture()))
    monkeypatch.setattr(os, "open", lambda *_: pytest.fail("the disk was read"))
    for source in (path, str(path), path.as_uri(), "missing.png"):
        with pytest.raises(UnsupportedContentError, match="local_files"):
            decode(source, files=False)


def test_only_regular_files_are_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for source in (tmp_path, tmp_path / "pipe", "/dev/zero", "/dev/null"):
        with pytest.raises(ImageDecodeError, match="regular"):
            decode(source)


@pytest.mark.parametrize("source", ["missing.png", "a\0b", "x" * 5000, "", "\ud800.png"])
def test_paths_that_cannot_be_opened_are_errors(source: str) -> None:
    with pytest.raises(ImageDecodeError):
        decode(source)


@pytest.mark.parametrize("url", ["ftp://a/b.png", "gs://a/b", "file://host/a.png", "file:///a?b"])
def test_other_schemes_and_foreign_file_hosts_are_refused(url: str) -> None:
    with pytest.raises(UrlNotAllowedError):
        decode(url)


# ---- remote pictures


class _Handler(BaseHTTPRequestHandler):
    body = encoded(picture())

    def do_GET(self) -> None:
        self.server.seen.append((self.path, dict(self.headers)))  # type: ignore[attr-defined]
        name = self.path.partition("?")[0].strip("/")
        if name == "picture":
            self._reply(200, body=self.body)
        elif name == "endless":
            self._reply(200, body=b"\x89PNG\r\n\x1a\n" * 1000, length=False)
        elif name == "gzip":
            self._reply(200, {"Content-Encoding": "gzip"}, self.body)
        elif name.startswith("hop"):
            left = int(name[3:])
            self._reply(302, {"Location": f"/hop{left - 1}" if left else "/picture"})
        elif name == "away":
            self._reply(302, {"Location": "http://example.com/picture"})
        else:
            self._reply(404)

    def _reply(
        self,
        status: int,
        headers: dict[str, str] | None = None,
        body: bytes = b"",
        length: bool = True,
    ) -> None:
        self.send_response(status)
        for item in (headers or {}).items():
            self.send_header(*item)
        if length:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[HTTPServer]:
    pytest.importorskip("httpx", reason="the extra http is not installed")
    with HTTPServer(("127.0.0.1", 0), _Handler) as server:
        server.seen = []  # type: ignore[attr-defined]
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def remote(server: HTTPServer, path: str, **limits: int) -> Any:
    return decode(f"http://127.0.0.1:{server.server_port}/{path}", hosts=("127.0.0.1",), **limits)


def test_a_picture_is_fetched_from_an_allowed_host(
    server: HTTPServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    assert remote(server, "picture?a=1&b=%20").tobytes() == picture().tobytes()
    [(path, headers)] = server.seen  # type: ignore[attr-defined]
    assert path == "/picture?a=1&b=%20"
    assert headers["Host"] == f"127.0.0.1:{server.server_port}"


def test_redirects_stay_on_the_host_and_are_at_most_three(server: HTTPServer) -> None:
    assert remote(server, "hop2").size == (6, 4)
    with pytest.raises(UrlNotAllowedError, match="more than 3"):
        remote(server, "hop3")
    with pytest.raises(UrlNotAllowedError, match=r"example\.com"):
        remote(server, "away")
    port = server.server_port
    with pytest.raises(UrlNotAllowedError, match="stay on the host"):
        decode(f"http://127.0.0.1:{port}/away", hosts=("127.0.0.1", "example.com"))


def test_the_body_is_bounded_with_and_without_a_declared_length(server: HTTPServer) -> None:
    for path in ("picture", "endless"):
        with pytest.raises(LimitExceededError) as caught:
            remote(server, path, image_bytes=50)
        assert caught.value.limit == "image_bytes"


@pytest.mark.parametrize(("path", "says"), [("nothing", "404"), ("gzip", "compress")])
def test_other_answers_are_errors(server: HTTPServer, path: str, says: str) -> None:
    with pytest.raises(ImageDecodeError, match=says):
        remote(server, path)


def test_a_slow_body_is_cut_off(server: HTTPServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "PICTURE", replace(PICTURE, fetch_s=-1.0))
    with pytest.raises(ImageDecodeError, match="not fetched within"):
        remote(server, "picture")


def test_an_unreachable_host_is_an_error() -> None:
    pytest.importorskip("httpx")
    with pytest.raises(ImageDecodeError, match="could not be reached"):
        decode("http://127.0.0.1:1/a.png", hosts=("127.0.0.1",))


def resolve_to(monkeypatch: pytest.MonkeyPatch, *addresses: str) -> list[str]:
    asked: list[str] = []

    def getaddrinfo(host: str, port: int, *_: object, **__: object) -> list[Any]:
        asked.append(host)
        return [(2, 1, 6, "", (address, port)) for address in addresses]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    return asked


@pytest.mark.parametrize(
    "address",
    ["127.0.0.1", "10.0.0.1", "169.254.169.254", "::1", "fe80::1", "fc00::1", "0.0.0.0",
     "::ffff:127.0.0.1", "64:ff9b::7f00:1", "2002:7f00:1::", "224.0.0.1", "100.64.0.1",
     "64:ff9b:1::7f00:1", "::127.0.0.1", "::ffff:0:127.0.0.1", "5f00::1", "fec0::1", "3fff::1",
     "192.88.99.1"],
)  # fmt: skip
def test_a_name_must_not_resolve_to_a_private_address(
    address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("httpx")
    resolve_to(monkeypatch, "93.184.215.14", address)
    with pytest.raises(UrlNotAllowedError, match="no public address"):
        decode("https://example.com/a.png", hosts=("example.com",))


@pytest.mark.parametrize(
    "address", ["93.184.215.14", "2606:2800:21f::1", "64:ff9b::5db8:d70e", "::ffff:93.184.215.14"]
)
def test_a_public_address_is_one_in_all_its_forms(address: str) -> None:
    assert fetch._is_public(address)


def test_the_connection_goes_to_the_checked_address_under_the_hosts_name(
    server: HTTPServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = resolve_to(monkeypatch, "127.0.0.1")
    monkeypatch.setattr(fetch, "_is_public", lambda _address: True)
    url = f"http://Pictures.example.:{server.server_port}/picture"
    # httpx connects through the patched resolver too, but asks it for the address only
    assert decode(url, hosts=("PICTURES.example",)).size == (6, 4)
    assert asked[0] == "pictures.example"
    assert set(asked[1:]) <= {"127.0.0.1"}
    [(_, headers)] = server.seen  # type: ignore[attr-defined]
    assert headers["Host"] == f"pictures.example:{server.server_port}"


@pytest.mark.parametrize(
    "url",
    [
        "https://other.com/a.png",
        "https://sub.example.com/a.png",
        "https://example.com.other.com/a.png",
        "https://example.com@other.com/a.png",
        "https://user:pass@example.com/a.png",
        "https://other.com\\@example.com/a.png",
        "https://example.com /a.png",
        "https://example.com:port/a.png",
        "https://example.com:99999/a.png",
        "https:///a.png",
        "https://[::1/a.png",
        "http://127.0.0.1/a.png",
        "http://2130706433/a.png",
        "https://faß.example/a.png",
    ],
)
def test_a_host_outside_the_list_is_refused_before_any_network(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: pytest.fail("DNS asked"))
    with pytest.raises(UrlNotAllowedError):
        decode(url, hosts=("example.com", "fass.example"))


def test_hosts_are_compared_in_idna_form(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("httpx")
    asked = resolve_to(monkeypatch, "10.0.0.1")
    for entry in ("bücher.example", "xn--bcher-kva.example"):
        with pytest.raises(UrlNotAllowedError, match="no public address"):
            decode("https://BÜCHER.example/a.png", hosts=(entry,))
    assert set(asked) == {"xn--bcher-kva.example"}


@pytest.mark.parametrize("entry", ["https://example.com", "example.com:443", "*.example.com", ""])
def test_an_allowed_host_that_can_never_match_is_a_configuration_error(entry: str) -> None:
    with pytest.raises(ConfigurationError, match="bare host"):
        decode("https://example.com/a.png", hosts=(entry,))


def test_without_httpx_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "httpx", None)
    with pytest.raises(MissingExtraError, match=r"guardrail-vlm\[http\]"):
        decode("https://example.com/a.png", hosts=("example.com",))
