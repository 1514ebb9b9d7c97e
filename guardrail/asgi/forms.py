"""Form bodies: the fields that hold text, picture and video files, as one user message."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from python_multipart.exceptions import FormParserError
from starlette.exceptions import HTTPException
from starlette.formparsers import FormParser, MultiPartException, MultiPartParser

from guardrail.errors import UnsupportedContentError
from guardrail.joining import joined
from guardrail.requests.formats import sniffed_format
from guardrail.requests.video_formats import sniffed_video

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Sequence

    from starlette.datastructures import FormData, Headers, UploadFile

MULTIPART = "multipart/form-data"
URLENCODED = "application/x-www-form-urlencoded"

# What clients send for a file whose kind they do not know.
_ANY_FILE = ("", "application/octet-stream", "binary/octet-stream")


async def read_form(data: bytes, headers: Headers, kind: str) -> FormData:
    """The form, read by Starlette's own parsers, as a Starlette app reads it.

    Raises:
        HTTPException: 400, it cannot be read, or an app could read it as something else.
    """
    if not (_is_url_encoded(data) if kind == URLENCODED else _is_multipart(data)):
        raise HTTPException(400, "the body says it is a form but reads like something else")
    body = _whole(data)
    try:
        if kind == URLENCODED:
            return await FormParser(headers, body).parse()
        return await MultiPartParser(headers, body, max_part_size=len(data) + 1).parse()
    except (MultiPartException, FormParserError) as error:
        reason = error.message if isinstance(error, MultiPartException) else str(error)
        raise HTTPException(400, f"the form cannot be read: {reason}") from error


@asynccontextmanager
async def closing(form: FormData) -> AsyncIterator[None]:
    """Close the form's temporary files after the block."""
    try:
        yield
    finally:
        await form.close()


async def read_fields(form: FormData, fields: Sequence[str] | None) -> list[object]:
    """One user message of the form's texts, pictures and videos, in the order of `fields`.

    Without `fields` files come first, as people send them and as thresholds are calibrated;
    behind words the same picture scores lower.

    Raises:
        UnsupportedContentError: a text field stands twice (an app reads one of them), there is
            nothing to check, or a file is no picture and no video.
    """
    items = form.multi_items()
    if fields is None:
        items.sort(key=lambda item: isinstance(item[1], str))
    else:
        items = [(name, value) for field in fields for name, value in items if name == field]
    texts = [name for name, value in items if isinstance(value, str)]
    if len(set(texts)) < len(texts):
        raise UnsupportedContentError("a text field stands twice in the form; send it once")
    chat = joined([await _content(name, value) for name, value in items])
    if not chat:
        raise UnsupportedContentError("the form has no field that is checked")
    return chat


async def _content(name: str, value: UploadFile | str) -> tuple[str, str | bytes | None]:
    """What a field holds, and the name under which it is joined with the others."""
    if isinstance(value, str):
        return "", value or None
    if not value.filename and not value.size:  # a file input that was left empty
        return "", None
    media_type = (value.content_type or "").partition(";")[0].strip().lower()
    kind = media_type.partition("/")[0]
    if media_type not in _ANY_FILE and kind not in ("image", "video"):
        raise UnsupportedContentError(
            f"the file in the field {name[:80]!r} has the media type {media_type[:80]!r}; only "
            "pictures and videos are read, send text in text fields"
        )
    data = await value.read()
    if kind not in ("image", "video"):  # told by its content
        kind = "video" if sniffed_format(data) is None and sniffed_video(data) else "image"
    return kind, data


def _is_url_encoded(data: bytes) -> bool:
    # JSON in UTF-16 and UTF-32 may well be ASCII, but never without control bytes (zeros).
    printable = data.isascii() and data.decode("ascii").isprintable()
    return printable and data.lstrip()[:1] not in (b"{", b"[", b'"')


def _is_multipart(data: bytes) -> bool:
    # The parser skips what stands before the first boundary, which could be a whole JSON text in
    # UTF-16: the form inside one of its strings reads as ideographs.
    return data.lstrip(b"\r\n").startswith(b"--")


async def _whole(data: bytes) -> AsyncGenerator[bytes, None]:
    yield data
