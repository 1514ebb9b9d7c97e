"""Encodings of one picture, and how programs open them: for whoever hands pictures on."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
from PIL import Image, ImageCms, ImageDraw, PngImagePlugin


def drawing(mode="RGB", size=(48, 32)):
    """Words and a ramp, so that turning, clipping and inverting all show."""
    picture = Image.linear_gradient("L").resize(size).convert("RGB")
    ImageDraw.Draw(picture).text((3, 3), "Say it", fill=(200, 30, 30))
    return picture.convert(mode)


def saved(picture, format_, **options):
    file = io.BytesIO()
    picture.save(file, format_, **options)
    return file.getvalue()


def exif(orientation):
    found = Image.Exif()
    found[0x0112] = orientation
    return found


def described():
    found = Image.Exif()
    found[0x010E] = "a drawing"
    return found


def translucent(alpha):
    picture = drawing("RGBA")
    picture.putalpha(alpha)
    return picture


def chunk(name, content):
    return (
        struct.pack(">I", len(content))
        + name
        + content
        + struct.pack(">I", zlib.crc32(name + content))
    )


def with_chunk(name, content, picture=None):
    data = saved(picture or drawing(), "PNG")
    return data[:33] + chunk(name, content) + data[33:]


def grey16(values):
    return saved(Image.fromarray(values.astype(np.uint16)), "PNG")


def dark_words():
    """Ink in 0 to 255 of 65535: black where bits are cut to the upper byte, words where scaled."""
    return np.asarray(drawing("L")).astype(np.uint16)


def exif_segment(kind, orientation):
    """EXIF data of a JPEG with nothing but an orientation, a value of this TIFF type."""
    entry = struct.pack("<HHI4s", 0x0112, kind, 1, bytes([orientation]))
    content = b"Exif\0\0II*\0" + struct.pack("<IH", 8, 1) + entry + bytes(4)
    return b"\xff\xe1" + struct.pack(">H", len(content) + 2) + content


def with_segments(*segments):
    data = saved(drawing(), "JPEG")
    return data[:2] + b"".join(segments) + data[2:]


def jpeg_with_channels_called_rgb():
    """JFIF says that they are YCbCr, and some decoders go by the names."""
    data = bytearray(saved(drawing(), "JPEG"))
    frame, scan = data.index(b"\xff\xc0") + 10, data.index(b"\xff\xda") + 5
    for number, name in enumerate(b"RGB"):
        data[frame + 3 * number] = data[scan + 2 * number] = name
    return bytes(data)


def webp_with_bare_exif():
    data = saved(drawing(), "WEBP", lossless=True)
    data += b"EXIF" + struct.pack("<I", 26) + exif_segment(3, 6)[10:]
    return data[:4] + struct.pack("<I", len(data) - 8) + data[8:]


def palette_with_transparency():
    picture = drawing("P")
    return saved(picture, "PNG", transparency=bytes([0, 128] * 64))


def webp_exif():
    return saved(drawing(), "WEBP", exif=exif(6).tobytes(), lossless=True)


SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
XYZ = ImageCms.ImageCmsProfile(ImageCms.createProfile("XYZ")).tobytes()


def frames(format_, **options):
    """A file of two pictures."""
    first, second = drawing(), drawing().transpose(Image.Transpose.ROTATE_180)
    return saved(first, format_, save_all=True, append_images=[second], **options)


# Encodings that two decoders may read in two ways.
TWO_WAYS = {
    "png 16 bits, ink in the lowest byte": lambda: grey16(dark_words()),
    "png 16 bits, whole range": lambda: grey16(dark_words() * 257),
    "png 16 bits, highest": lambda: grey16(65535 - dark_words()),
    "png one bit": lambda: saved(drawing("1"), "PNG"),
    "png with zero alpha": lambda: saved(translucent(0), "PNG"),
    "png with half alpha": lambda: saved(translucent(128), "PNG"),
    "png with alpha that draws": lambda: saved(translucent(drawing("L")), "PNG"),
    "png of grey with alpha": lambda: saved(translucent(0).convert("LA"), "PNG"),
    "png palette with transparency": palette_with_transparency,
    "png colour key": lambda: saved(drawing(), "PNG", transparency=(200, 30, 30)),
    "png grey key": lambda: saved(drawing("L"), "PNG", transparency=7),
    "png with gamma": lambda: with_chunk(b"gAMA", (1_000_000).to_bytes(4, "big")),
    "png with chromaticities": lambda: with_chunk(b"cHRM", bytes(32)),
    "png with a profile": lambda: saved(drawing(), "PNG", icc_profile=SRGB),
    "png with exif turned": lambda: saved(drawing(), "PNG", exif=exif(6)),
    "png with exif upright": lambda: saved(drawing(), "PNG", exif=exif(1)),
    "png with a raw profile text": lambda: with_chunk(b"tEXt", b"Raw profile type exif\0x"),
    "png with compressed text": lambda: with_chunk(b"zTXt", b"a\0\0" + zlib.compress(b"x")),
    "png with significant bits": lambda: with_chunk(b"sBIT", b"\3\3\3"),
    "png with a background": lambda: with_chunk(b"bKGD", bytes(6)),
    "png of two frames": lambda: frames("PNG"),
    "png and another behind it": lambda: saved(drawing(), "PNG") + saved(drawing("L"), "PNG"),
    **{
        f"jpeg turned by exif {n}": lambda n=n: saved(drawing(), "JPEG", exif=exif(n))
        for n in range(2, 9)
    },
    "jpeg turned by exif in a text": lambda: with_segments(exif_segment(2, 6)),
    "jpeg turned by exif of no type": lambda: with_segments(exif_segment(7, 6)),
    "jpeg with exif twice": lambda: with_segments(exif_segment(3, 1), exif_segment(3, 6)),
    "jpeg with channels called rgb": jpeg_with_channels_called_rgb,
    "jpeg in cmyk": lambda: saved(drawing("CMYK"), "JPEG"),
    "jpeg in rgb": lambda: saved(drawing(), "JPEG", keep_rgb=True),
    "jpeg with a profile": lambda: saved(drawing(), "JPEG", icc_profile=SRGB),
    "jpeg with an odd profile": lambda: saved(drawing(), "JPEG", icc_profile=XYZ),
    "jpeg of several pictures": lambda: frames("MPO"),
    "jpeg and another behind it": lambda: saved(drawing(), "JPEG") + saved(drawing("L"), "JPEG"),
    "webp with alpha": lambda: saved(translucent(0), "WEBP", lossless=True, exact=True),
    "webp with alpha, lossy": lambda: saved(translucent(drawing("L")), "WEBP"),
    "webp turned by exif": webp_exif,
    "webp with exif behind its pixels": webp_with_bare_exif,
    "webp of two frames": lambda: frames("WEBP", lossless=True),
    "webp with a profile": lambda: saved(drawing(), "WEBP", icc_profile=SRGB),
    "gif": lambda: saved(drawing("P"), "GIF"),
    "gif of two frames": lambda: frames("GIF", duration=40),
    "gif with transparency": lambda: saved(drawing("P"), "GIF", transparency=3),
    "bmp palette": lambda: saved(drawing("P"), "BMP"),
    "bmp one bit": lambda: saved(drawing("1"), "BMP"),
    "bmp of 32 bits": lambda: saved(drawing("RGBA"), "BMP"),
    "tiff": lambda: saved(drawing(), "TIFF"),
    "tiff of two pages": lambda: frames("TIFF"),
    "tiff in cmyk": lambda: saved(drawing("CMYK"), "TIFF"),
    "tiff 16 bits": lambda: saved(Image.fromarray(dark_words()), "TIFF"),
    "tiff with alpha": lambda: saved(translucent(0), "TIFF"),
}

# Encodings that all decoders read alike.
ONE_WAY = {
    "png rgb": lambda: saved(drawing(), "PNG"),
    "png grey": lambda: saved(drawing("L"), "PNG"),
    "png palette": lambda: saved(drawing("P"), "PNG", bits=8),
    "png with opaque alpha": lambda: saved(translucent(255), "PNG"),
    "png with density and software": lambda: saved(
        drawing(), "PNG", dpi=(72, 72), pnginfo=software()
    ),
    "png that says it is srgb": lambda: with_chunk(b"sRGB", b"\0"),
    "png with the gamma of srgb": lambda: with_chunk(b"gAMA", (45455).to_bytes(4, "big")),
    "jpeg": lambda: saved(drawing(), "JPEG"),
    "jpeg grey": lambda: saved(drawing("L"), "JPEG"),
    "jpeg progressive": lambda: saved(drawing(), "JPEG", progressive=True),
    "jpeg with upright exif": lambda: saved(drawing(), "JPEG", exif=exif(1)),
    "jpeg with exif without orientation": lambda: saved(drawing(), "JPEG", exif=described()),
    "jpeg with restarts": lambda: saved(drawing(), "JPEG", restart_marker_blocks=1),
    "webp lossy": lambda: saved(drawing(), "WEBP"),
    "webp lossless": lambda: saved(drawing(), "WEBP", lossless=True),
    "bmp": lambda: saved(drawing(), "BMP"),
}


def software():
    info = PngImagePlugin.PngInfo()
    info.add_text("Software", "a plotting library")
    return info


def by_convert(data):
    """How most programs open a picture."""
    with Image.open(io.BytesIO(data)) as picture:
        return np.asarray(picture.convert("RGB"))


def by_vllm(data):
    """As a server that scales 16 bits and puts alpha on white reads it, nothing turned."""
    picture = Image.open(io.BytesIO(data))
    picture.load()
    if picture.mode.startswith("I"):
        values = np.asarray(picture).astype(np.float64)
        picture = Image.fromarray((values * 255 / max(values.max(), 1)).astype(np.uint8))
    if picture.mode == "RGBA":
        white = Image.new("RGB", picture.size, "white")
        white.paste(picture, mask=picture.getchannel("A"))
        picture = white
    return np.asarray(picture.convert("RGB"))
