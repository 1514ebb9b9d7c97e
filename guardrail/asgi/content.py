"""What of a request's body is checked: its media type says how it is read, and nothing guesses.

What is checked must be what the app reads. So a body is refused where two readers may differ: a key
or a field that stands twice, another charset than UTF-8, a byte order mark, numbers that are none,
a form that could be read as JSON (many apps read JSON whatever the media type says).

What stands around a body is judged, too: words in the path, in the query, and in the names of
a form's fields and files.
"""

from __future__ import annotations

import asyncio
import logging
import re
import traceback
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import parse_qsl

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import parse_options_header
from starlette.exceptions import HTTPException
from starlette.formparsers import FormParser, MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect

from guardrail.asgi.chats import Content, read_chat
from guardrail.errors import UnsupportedContentError
from guardrail.front.chats import joined
from guardrail.front.consequences import resolved
from guardrail.inputs.labels import is_label, is_unspoken, worded
from guardrail.inputs.media import sniffed_format, sniffed_video
from guardrail.inputs.strict_json import strict_json

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Sequence

    from starlette.datastructures import FormData, Headers, UploadFile
    from starlette.types import Message, Receive, Scope

    from guardrail.asgi.routes import GuardedRoute, Select

JSON = "application/json"
MULTIPART = "multipart/form-data"
URLENCODED = "application/x-www-form-urlencoded"

# What clients send for a file whose kind they do not know.
_ANY_FILE = ("", "application/octet-stream", "binary/octet-stream")

# Where labels, and keys to an API, stand in a query; elsewhere a single word counts, too.
_QUERY_LABELS = frozenset(
    {"api-version", "api_version", "version", "id", "session", "session_id", "thread_id", "user_id"}
)
_QUERY_KEYS = frozenset({"api_key", "key", "token", "access_token"})
_SWITCH = re.compile(r"true|false|on|off|yes|no|null|[+-]?[0-9.]{1,32}", re.ASCII | re.IGNORECASE)

_log = logging.getLogger(__name__)

T = TypeVar("T")


async def read_content(
    data: bytes, kind: str, headers: Headers, scope: Scope, route: GuardedRoute
) -> Content:
    """What of the body is checked, and how a caution is put before it.

    Raises:
        HTTPException: the body cannot be read, or two readers could differ on it.
        UnsupportedContentError: it holds something that the guard does not understand.
    """
    around = address_words(scope)
    if kind == JSON:
        body = await asyncio.to_thread(parsed_json, data)
        if route.select is not None:
            return Content(await _selected(route.select, scope, body), apart=around)
        content = read_chat(body, route.unchecked)
        return replace(content, apart=[*content.apart, *around])
    form = await read_form(data, headers, kind)
    try:
        if route.select is not None:
            return Content(await _selected(route.select, scope, form), apart=around)
        names = field_words(form, route.fields)
        return Content(await read_fields(form, route.fields), apart=[*names, *around])
    finally:
        await form.close()  # its temporary files


def address_words(scope: Scope) -> list[str]:
    """The words in a request's path and query, which an app may show its model.

    Parts of a path are words unless they are labels. What stands in a query are words, unless it is
    a number or a switch, or a label where one is known to stand.
    """
    found = worded(scope["path"].split("/"))
    query = scope.get("query_string", b"").decode("latin-1")
    for key, value in parse_qsl(query, keep_blank_values=True):
        if not is_label(key) or (not value and "=" not in query):
            found.append(key)
        unspoken = is_unspoken(key.lower(), value, _QUERY_LABELS, _QUERY_KEYS)
        if value.strip() and not unspoken and _SWITCH.fullmatch(value) is None:
            found.append(value)
    return [*dict.fromkeys(found)]


def field_words(form: FormData, fields: Sequence[str] | None) -> list[str]:
    """The names of fields and files and the media types, where they are more than labels."""
    found: list[str] = []
    for name, value in form.multi_items():
        if fields is None or name in fields:
            about = () if isinstance(value, str) else (value.filename, value.content_type)
            found += [name, *filter(None, about)]
    return worded(found)


def media_type(headers: Headers, among: Sequence[str] = (JSON, MULTIPART, URLENCODED)) -> str:
    """The one media type that the body is read as.

    Raises:
        HTTPException: 415, none that is read here, or an encoding that hides the body.
    """
    given = headers.getlist("content-type")
    if len(given) != 1:
        raise HTTPException(415, "the request needs one Content-Type")
    encodings = {value.strip().lower() for value in headers.getlist("content-encoding")}
    if encodings - {"identity", ""}:
        raise HTTPException(415, "a body with a Content-Encoding is not read; send it as it is")
    kind, options = parse_options_header(given[0])
    name, charset = kind.decode("latin-1").lower(), options.get(b"charset", b"utf-8")
    if charset.lower() not in (b"utf-8", b"utf8", b"us-ascii"):
        raise HTTPException(415, "only the charset UTF-8 is read")
    if name.startswith("application/") and name.endswith("+json"):
        return JSON
    if name not in among:
        known = " or ".join(among)
        raise HTTPException(415, f"the media type {name[:80]!r} is not read here; send {known}")
    return name


def parsed_json(data: bytes) -> Any:
    """Strict JSON in UTF-8.

    Raises:
        HTTPException: 400, it is none.
    """
    try:
        return strict_json(data.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise HTTPException(400, f"the body is no JSON that can be checked: {error}") from error


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


class Body:
    """One request's body, read once and within a bound, then given to the app again as it came."""

    def __init__(self, receive: Receive, max_bytes: int) -> None:
        self._receive, self._max_bytes = receive, max_bytes
        self._data = bytearray()
        self._begun = self._complete = False
        self._later: list[Message] = []

    async def read(self, headers: Headers) -> bytes:
        """The whole body.

        Raises:
            HTTPException: 413, it is larger than allowed, or says that it is.
            ClientDisconnect: nobody waits for an answer any more.
        """
        declared = headers.get("content-length", "")
        size = int(declared[:20]) if declared.isdecimal() else 0
        while size <= self._max_bytes:
            if self._complete:
                return bytes(self._data)
            message = await self._receive()
            if message["type"] == "http.disconnect":
                raise ClientDisconnect
            self._data += message.get("body", b"")
            self._begun, self._complete = True, not message.get("more_body", False)
            size = len(self._data)
        raise HTTPException(413, f"the body is larger than the {self._max_bytes} bytes allowed")

    async def unless_gone(self, work: Awaitable[T]) -> T:
        """What `work` gives; it is cancelled when the client goes before that.

        Raises:
            ClientDisconnect: nobody waits for an answer any more.
        """
        async with raced(work, self._gone()) as (job, gone):
            if job.done():
                found: T = job.result()
                return found
            gone.result()  # a receive channel that fails is an error of its own
            raise ClientDisconnect

    def replay(self, data: bytes | None = None) -> Receive:
        """A receive channel with the same body (or `data`), and then what else comes."""
        body = bytes(self._data) if data is None else data
        first: Message = {"type": "http.request", "body": body, "more_body": not self._complete}
        waiting = [*reversed(self._later), first] if self._begun else []
        following = self._receive  # without `self`, which holds the bytes while the app answers

        async def receive() -> Message:
            return waiting.pop() if waiting else await following()

        return receive

    async def _gone(self) -> None:
        message = await self._receive()
        if message["type"] != "http.disconnect":
            self._later.append(message)  # nothing is expected here; it is the app's to see
            await asyncio.Event().wait()


@asynccontextmanager
async def raced(
    *works: Awaitable[Any], timeout: float | None = None
) -> AsyncIterator[Sequence[asyncio.Future[Any]]]:
    """Tasks of all, once the first has ended or the time is over; the rest ends with the block."""
    tasks = [asyncio.ensure_future(work) for work in works]
    try:
        await asyncio.wait(tasks, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
        yield tasks
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        for task in tasks:  # what a cancelled one says of it interests nobody any more
            if not task.cancelled():
                task.exception()


async def _selected(select: Select, scope: Scope, body: Any) -> Any:
    try:
        return await resolved(select(scope, body))
    except (LookupError, TypeError, AttributeError, ValueError) as error:
        # Senders shape the body; the selector's own mistakes look the same, hence the log.
        frames = reversed(traceback.extract_tb(error.__traceback__))
        where = " < ".join(f"{frame.filename}:{frame.lineno}" for frame in frames)
        kind = type(error).__name__  # without the message, which may hold what a sender wrote
        _log.warning("a body could not be read by the route's select: %s at %s", kind, where)
        raise HTTPException(422, "the body has another shape than this route reads") from error


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
    yield b""  # the end, as a request tells it: older parsers keep the last field back until then
