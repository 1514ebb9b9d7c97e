"""A path, a URL or base64 -> the bytes of a picture or video, bounded before they are read.

Of local files only regular ones are read. What may be named at all is the policy's to say.
"""

from __future__ import annotations

import base64
import os
import re
import stat
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote_to_bytes, urlsplit
from urllib.request import url2pathname

from guardrail.errors import UnsupportedContentError, UrlNotAllowedError
from guardrail.inputs.fetch import fetched_bytes
from guardrail.inputs.media import PICTURE

if TYPE_CHECKING:
    from collections.abc import Iterator
    from io import BufferedReader

    from guardrail.inputs.media import Medium
    from guardrail.policy import Limits, Policy


_SCHEME = re.compile(r"(data|file):|([a-z][a-z0-9+.-]*)://", re.IGNORECASE)
_WHITESPACE = dict.fromkeys(map(ord, " \t\r\n\f\v"))


def decoded_base64(text: str, medium: Medium, limits: Limits, *, what: str) -> bytes:
    """Bytes of strict base64, ASCII whitespace ignored, bounded before decoding."""
    compact = text.translate(_WHITESPACE)
    medium.check_bytes(len(compact.rstrip("=")) * 3 // 4, limits, what=what)
    try:
        return base64.b64decode(compact, validate=True)
    except ValueError as exc:
        raise medium.error(f"{what} is no valid base64: {exc}") from exc


def picture_bytes(source: object, policy: Policy, what: str) -> bytes:
    """The encoded picture that `source` is or names; the order is that of `decode_image`."""
    found, limits = named_content(source, PICTURE, policy, what), policy.limits
    if not isinstance(found, Path):
        return found
    with opened(found, PICTURE, limits, what) as file:
        data = file.read(PICTURE.max_bytes(limits) + 1)  # it may have grown since
    PICTURE.check_bytes(len(data), limits, what=what)
    return data


def named_content(source: object, medium: Medium, policy: Policy, what: str) -> bytes | Path:
    """The content that `source` is or names; a local file that may be read stays a path.

    Raises:
        InputError: one of its kinds.
    """
    match source:
        case bytes() | bytearray() | memoryview():
            medium.check_bytes(memoryview(source).nbytes, policy.limits, what=what)
            return bytes(source)
        case Path():
            return _allowed_path(source, medium, policy, what)
        case str():
            return _named_by(source, medium, policy, what)
        case _:
            raise UnsupportedContentError(
                f"{what} is a {type(source).__name__}; accepted: a Pillow image, bytes, a path, "
                "a URL, a data URL or base64"
            )


def names_a_file(text: str, medium: Medium = PICTURE) -> bool:
    """Whether a string is read as a path: no URL, and no base64 of a known format."""
    return _SCHEME.match(text) is None and not _is_base64(text, medium)


@contextmanager
def opened(path: Path, medium: Medium, limits: Limits, what: str) -> Iterator[BufferedReader]:
    """The file for reading, once it is known to be a regular one and no larger than allowed.

    Raises:
        InputError: it cannot be opened or read, is no regular file, or is too large.
    """
    shown = repr(str(path)[:80])
    # O_NONBLOCK: opening a pipe must not wait for its writer
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    try:
        descriptor = os.open(path, flags)
    except (OSError, ValueError) as exc:  # ValueError: NUL or a lone surrogate
        reason = exc.strerror if isinstance(exc, OSError) else exc
        raise medium.error(f"{what}: cannot open the file {shown}: {reason}") from exc
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise medium.error(f"{what}: {shown} is no regular file")
        medium.check_bytes(status.st_size, limits, what=what)
        with open(descriptor, "rb", closefd=False) as file:
            yield file
    except OSError as exc:
        raise medium.error(f"{what}: cannot read {shown}: {exc.strerror}") from exc
    finally:
        os.close(descriptor)


def _named_by(text: str, medium: Medium, policy: Policy, what: str) -> bytes | Path:
    scheme = _SCHEME.match(text)
    match (scheme[1] or scheme[2]).lower() if scheme else None:
        case "data":
            return _data_url_bytes(text, medium, policy.limits, what)
        case "http" | "https":
            return fetched_bytes(text, medium, policy, what)
        case "file":
            return _allowed_path(_file_url_path(text, medium, what), medium, policy, what)
        case None if _is_base64(text, medium):
            return decoded_base64(text, medium, policy.limits, what=what)
        case None:
            return _allowed_path(Path(text), medium, policy, what)
        case other:
            raise UrlNotAllowedError(
                f"{what} has the URL scheme {other!r}; use https, data or file"
            )


def _is_base64(text: str, medium: Medium) -> bool:
    head = text[: 2 * medium.head + 208].translate(_WHITESPACE)[: medium.head]
    try:
        return medium.sniffed(base64.b64decode(head, validate=True)) is not None
    except ValueError:
        return False


def _data_url_bytes(text: str, medium: Medium, limits: Limits, what: str) -> bytes:
    head, comma, payload = text[5:].partition(",")
    if not comma or not text.isascii():
        kind = next(iter(medium.media_types))
        raise medium.error(f"{what} is no valid data URL; write data:{kind};base64,...")
    media_type, *options = head.split(";")
    if options and options[-1].strip().lower() == "base64":
        unquoted = unquote_to_bytes(payload).decode("latin-1") if "%" in payload else payload
        data = decoded_base64(unquoted, medium, limits, what=what)
    else:
        medium.check_bytes(len(payload) - 2 * payload.count("%"), limits, what=what)
        data = unquote_to_bytes(payload)
    medium.check_media_type(data, media_type, what=what)
    return data


def _file_url_path(url: str, medium: Medium, what: str) -> Path:
    try:
        parts = urlsplit(url)
    except ValueError as exc:
        raise medium.error(f"{what} is no valid file URL: {exc}") from exc
    if parts.netloc not in ("", "localhost") or parts.query or parts.fragment:
        raise UrlNotAllowedError(f"{what} must be a plain local file URL such as file:///tmp/a.png")
    return Path(url2pathname(parts.path))


def _allowed_path(path: Path, medium: Medium, policy: Policy, what: str) -> Path:
    if policy.local_files:
        return path
    raise UnsupportedContentError(
        f"{what} is {str(path)[:80]!r}, neither base64 of a known format nor a URL, and the policy "
        "reads no local files; send the bytes or set `local_files` in the policy"
    )
