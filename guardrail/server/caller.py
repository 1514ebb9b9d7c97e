"""Who asks: known to the routes, the log and the model's queue by the same names."""

from __future__ import annotations

import re
import uuid
from dataclasses import dataclass

_SAFE_ID = re.compile(rb"[A-Za-z0-9._-]{1,64}")


@dataclass(slots=True)
class Caller:
    """One request's sender: `client` is the name of its key (None without keys).

    `sees_scores` is set where the sender is known. `score` is that of its request, for the log.
    """

    request_id: str
    client: str | None = None
    sees_scores: bool = False
    score: float | None = None


def request_id_of(headers: list[tuple[bytes, bytes]]) -> str:
    """The id a client gave its request, if it is safe to repeat everywhere; else a new one."""
    given = [value for name, value in headers if name == b"x-request-id"]
    if len(given) == 1 and _SAFE_ID.fullmatch(given[0]):
        return given[0].decode("ascii")
    return uuid.uuid4().hex
