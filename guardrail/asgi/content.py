"""What of a request's body is checked: its media type says how it is read, and nothing guesses.

What is checked must be what the app reads. So a body is refused where two readers may differ: a key
or a field that stands twice, another charset than UTF-8, a byte order mark, numbers that are none,
a form that could be read as JSON (many apps read JSON whatever the media type says).
"""

from __future__ import annotations

import asyncio
import logging
import traceback
from typing import TYPE_CHECKING, Any

from python_multipart.multipart import parse_options_header
from starlette.exceptions import HTTPException

from guardrail.asgi.chats import Content, read_chat
from guardrail.asgi.forms import MULTIPART, URLENCODED, closing, read_fields, read_form
from guardrail.requests.strict_json import strict_json
from guardrail.settling import resolved

if TYPE_CHECKING:
    from collections.abc import Sequence

    from starlette.datastructures import Headers
    from starlette.types import Scope

    from guardrail.asgi.routes import GuardedRoute, Select

JSON = "application/json"

_log = logging.getLogger(__name__)


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


async def read_content(
    data: bytes, kind: str, headers: Headers, scope: Scope, route: GuardedRoute
) -> Content:
    """What of the body is checked, and how a caution is put before it.

    Raises:
        HTTPException: the body cannot be read, or two readers could differ on it.
        UnsupportedContentError: it holds something that the guard does not understand.
    """
    if kind == JSON:
        body = await asyncio.to_thread(parsed_json, data)
        if route.select is not None:
            return Content(await _selected(route.select, scope, body))
        return read_chat(body, route.unchecked)
    form = await read_form(data, headers, kind)
    async with closing(form):
        if route.select is not None:
            return Content(await _selected(route.select, scope, form))
        return Content(await read_fields(form, route.fields))


def parsed_json(data: bytes) -> Any:
    """Strict JSON in UTF-8.

    Raises:
        HTTPException: 400, it is none.
    """
    try:
        return strict_json(data.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise HTTPException(400, f"the body is no JSON that can be checked: {error}") from error


def _frames(error: Exception) -> list[traceback.FrameSummary]:
    return list(traceback.extract_tb(error.__traceback__))


async def _selected(select: Select, scope: Scope, body: Any) -> Any:
    try:
        return await resolved(select(scope, body))
    except (LookupError, TypeError, AttributeError, ValueError) as error:
        # Senders shape the body; the selector's own mistakes look the same, hence the log.
        where = " < ".join(f"{f.filename}:{f.lineno}" for f in reversed(_frames(error)))
        kind = type(error).__name__  # without the message, which may hold what a sender wrote
        _log.warning("a body could not be read by the route's select: %s at %s", kind, where)
        raise HTTPException(422, "the body has another shape than this route reads") from error
