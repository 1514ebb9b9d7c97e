"""Who asks: API keys, kept as digests and compared in constant time, and a request's caller."""

from __future__ import annotations

import hashlib
import hmac
import logging
import os
import re
import stat
import uuid
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict, Field

from guardrail.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

KEYS_VARIABLE = "GUARDRAIL_API_KEYS"
"""The variable that holds keys, beside those of a file."""

_log = logging.getLogger(__name__)
_NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")
_TOKEN = re.compile(r"[\x21-\x7e]{16,512}")
_DIGEST = re.compile(r"sha256:([0-9a-f]{64})")
_SAFE_ID = re.compile(rb"[A-Za-z0-9._-]{1,64}")
_OF_NOTHING = hashlib.sha256().hexdigest()


class ApiKey(BaseModel):
    """One client's key; the token itself is not kept. Several keys may have one name.

    The bearer of a `trusted` one is told scores, and not only what was done.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    name: str = Field(pattern=f"^{_NAME.pattern}$")
    digest: bytes = Field(min_length=32, max_length=32, repr=False)
    trusted: bool = False


def api_key(name: str, token: str) -> ApiKey:
    """A key of a token, or of `sha256:` and its digest in hexadecimal digits.

    A name that ends in `+trusted` is that of a trusted key, without the mark.

    Raises:
        ConfigurationError: the name or the token cannot be used; the token is not told.
    """
    name, plus, mark = name.partition("+")
    if plus and mark != "trusted":
        raise ConfigurationError("an API key is marked by +trusted behind its name, or not at all")
    trusted = bool(plus)
    if _NAME.fullmatch(name) is None:
        raise ConfigurationError(
            "an API key's name is 1 to 64 letters, digits and '._-'; write name:token"
        )
    hashed = _DIGEST.fullmatch(token)
    if hashed is not None and hashed[1] == _OF_NOTHING:  # of a variable that was not set
        raise ConfigurationError(f"the API key {name!r} is the digest of an empty token")
    if hashed is not None:
        return ApiKey(name=name, digest=bytes.fromhex(hashed[1]), trusted=trusted)
    if _TOKEN.fullmatch(token) is None or token.startswith("sha256:"):
        raise ConfigurationError(
            f"the API key {name!r} must be 16 to 512 visible ASCII characters without spaces, or "
            "sha256: and 64 hexadecimal digits"
        )
    return ApiKey(name=name, digest=_digest(token), trusted=trusted)


def key_of(token: str, keys: Iterable[ApiKey]) -> ApiKey | None:
    """The key that a token is; None for no key. Takes as long for any token."""
    given, found = _digest(token), None
    for key in keys:
        if hmac.compare_digest(key.digest, given):
            found = key
    return found


def keys_from_text(text: str, *, source: str) -> tuple[ApiKey, ...]:
    """The keys in `name:token` or `name+trusted:token` entries, one a line or between commas.

    `#` starts a comment line.
    An entry without a name is called `key-1`, `key-2`, ... by its place.

    Raises:
        ConfigurationError: an entry cannot be used, a token is there twice, or there is none.
    """
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    entries = [entry.strip() for line in lines for entry in line.split(",") if entry.strip()]
    keys: list[ApiKey] = []
    for place, entry in enumerate(entries, 1):
        name, colon, token = entry.partition(":")
        bare = not colon or name == "sha256"
        try:
            keys.append(api_key(f"key-{place}", entry) if bare else api_key(name, token))
        except ConfigurationError as error:
            raise ConfigurationError(f"{source}, entry {place}: {error}") from None
    if not keys:
        raise ConfigurationError(f"{source} holds no API key; write name:token, one a line")
    if len({key.digest for key in keys}) < len(keys):
        raise ConfigurationError(f"{source} holds the same token twice; give each client its own")
    return tuple(keys)


def keys_from_file(path: Path) -> tuple[tuple[ApiKey, ...], str | None]:
    """The keys in a file, and a warning if others than its owner may read it.

    Raises:
        ConfigurationError: the file cannot be read or holds no usable keys.
    """
    try:
        text, mode = path.read_text(encoding="ascii"), path.stat().st_mode
    except OSError as error:
        raise ConfigurationError(f"{path}: cannot be read ({error.strerror})") from error
    except UnicodeDecodeError:
        raise ConfigurationError(f"{path} holds other characters than ASCII") from None
    open_to_all = stat.S_ISREG(mode) and mode & (stat.S_IRWXG | stat.S_IRWXO)
    warning = f"{path} can be read by others than its owner; chmod 600 {path}"
    return keys_from_text(text, source=str(path)), warning if open_to_all else None


def read_keys(file: Path | None) -> tuple[ApiKey, ...]:
    """The keys of the file, if one is named, and of the environment.

    Raises:
        ConfigurationError: one cannot be used.
    """
    keys: tuple[ApiKey, ...] = ()
    if file is not None:
        keys, warning = keys_from_file(file)
        if warning is not None:
            _log.warning("%s", warning)
    listed = os.environ.get(KEYS_VARIABLE)
    return keys + keys_from_text(listed, source=KEYS_VARIABLE) if listed else keys


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


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode()).digest()
