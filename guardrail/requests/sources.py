"""A path, a URL or base64 -> the bytes of one encoded picture, bounded before they are read."""

from __future__ import annotations

import base64
import os
import re
import stat
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote_to_bytes, urlsplit
from urllib.request import url2pathname

from guardrail.errors import (
    ImageDecodeError,
    LimitExceededError,
    UnsupportedContentError,
    UrlNotAllowedError,
)
from guardrail.requests.fetch import fetched_bytes
from guardrail.requests.formats import check_media_type, sniffed_format

if TYPE_CHECKING:
    from collections.abc import Collection

    from guardrail.policy import Limits

_SCHEME = re.compile(r"(data|file):|([a-z][a-z0-9+.-]*)://", re.IGNORECASE)
_WHITESPACE = dict.fromkeys(map(ord, " \t\r\n\f\v"))


def decoded_base64(text: str, limits: Limits, *, what: str) -> bytes:
    """Bytes of strict base64, ASCII whitespace ignored, bounded before decoding."""
    compact = text.translate(_WHITESPACE)
    check_bytes(len(compact.rstrip("=")) * 3 // 4, limits, what=what)
    try:
        return base64.b64decode(compact, validate=True)
    except ValueError as exc:
        raise ImageDecodeError(f"{what} is no valid base64: {exc}") from exc


def check_bytes(size: int, limits: Limits, *, what: str) -> None:
    """Refuse an encoded picture larger than the policy allows."""
    if size > limits.image_bytes:
        raise LimitExceededError(
            limit="image_bytes", allowed=limits.image_bytes, found=size, what=what
        )


def picture_bytes(
    source: object, limits: Limits, allowed_hosts: Collection[str], local_files: bool, what: str
) -> bytes:
    """The encoded picture that `source` is or names; the order is that of `decode_image`."""
    match source:
        case bytes() | bytearray() | memoryview():
            check_bytes(memoryview(source).nbytes, limits, what=what)
            return bytes(source)
        case Path():
            return _file_bytes(source, limits, local_files, what)
        case str():
            return _string_bytes(source, limits, allowed_hosts, local_files, what)
        case _:
            raise UnsupportedContentError(
                f"{what} is a {type(source).__name__}; accepted: a Pillow image, bytes, a path, "
                "a URL, a data URL or base64"
            )


def names_a_file(text: str) -> bool:
    """Whether `decode_image` reads this string as a path: no URL, and no picture's base64."""
    return _SCHEME.match(text) is None and not _is_base64_picture(text)


def _string_bytes(
    text: str, limits: Limits, allowed_hosts: Collection[str], local_files: bool, what: str
) -> bytes:
    scheme = _SCHEME.match(text)
    match (scheme[1] or scheme[2]).lower() if scheme else None:
        case "data":
            return _data_url_bytes(text, limits, what)
        case "http" | "https":
            return fetched_bytes(
                text, allowed_hosts=allowed_hosts, max_bytes=limits.image_bytes, what=what
            )
        case "file":
            return _file_bytes(_file_url_path(text, what), limits, local_files, what)
        case None if _is_base64_picture(text):
            return decoded_base64(text, limits, what=what)
        case None:
            return _file_bytes(Path(text), limits, local_files, what)
        case other:
            raise UrlNotAllowedError(
                f"{what} has the URL scheme {other!r}; use https, data or file"
            )


def _is_base64_picture(text: str) -> bool:
    head = text[:256].translate(_WHITESPACE)[:24]
    try:
        return sniffed_format(base64.b64decode(head, validate=True)) is not None
    except ValueError:
        return False


def _data_url_bytes(text: str, limits: Limits, what: str) -> bytes:
    head, comma, payload = text[5:].partition(",")
    if not comma or not text.isascii():
        raise ImageDecodeError(f"{what} is no valid data URL; write data:image/png;base64,...")
    media_type, *options = head.split(";")
    if options and options[-1].strip().lower() == "base64":
        unquoted = unquote_to_bytes(payload).decode("latin-1") if "%" in payload else payload
        data = decoded_base64(unquoted, limits, what=what)
    else:
        check_bytes(len(payload) - 2 * payload.count("%"), limits, what=what)
        data = unquote_to_bytes(payload)
    check_media_type(data, media_type, what=what)
    return data


def _file_url_path(url: str, what: str) -> Path:
    try:
        parts = urlsplit(url)
    except ValueError as exc:
        raise ImageDecodeError(f"{what} is no valid file URL: {exc}") from exc
    if parts.netloc not in ("", "localhost") or parts.query or parts.fragment:
        raise UrlNotAllowedError(f"{what} must be a plain local file URL such as file:///tmp/a.png")
    return Path(url2pathname(parts.path))


def _file_bytes(path: Path, limits: Limits, local_files: bool, what: str) -> bytes:
    shown = repr(str(path)[:80])
    if not local_files:
        raise UnsupportedContentError(
            f"{what} is {shown}, neither base64 of a known format nor a URL, and the policy "
            "reads no local files; send the bytes or set `local_files` in the policy"
        )
    # O_NONBLOCK: opening a pipe must not wait for its writer
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    try:
        descriptor = os.open(path, flags)
    except (OSError, ValueError) as exc:  # ValueError: NUL or a lone surrogate
        reason = exc.strerror if isinstance(exc, OSError) else exc
        raise ImageDecodeError(f"{what}: cannot open the file {shown}: {reason}") from exc
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise ImageDecodeError(f"{what}: {shown} is no regular file")
        check_bytes(status.st_size, limits, what=what)
        with open(descriptor, "rb", closefd=False) as file:
            data = file.read(limits.image_bytes + 1)  # the file may have grown since
    except OSError as exc:
        raise ImageDecodeError(f"{what}: cannot read {shown}: {exc.strerror}") from exc
    finally:
        os.close(descriptor)
    check_bytes(len(data), limits, what=what)
    return data
