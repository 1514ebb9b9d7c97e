"""Where checked requests go, with which key, and how long and how large an answer may be."""

from __future__ import annotations

import os
import re
from pathlib import Path  # pydantic reads the annotation
from urllib.parse import urlsplit

import httpx
from pydantic import BaseModel, ConfigDict, Field, SecretStr, field_validator

from guardrail.errors import ConfigurationError
from guardrail.policy.policy import ip_literal

_KEY = re.compile(r"[!-~]{1,4096}")  # what a header can hold, and no space


class UpstreamSettings(BaseModel):
    """One upstream. Immutable; times are in seconds, sizes in bytes.

    `url` is what clients of the OpenAI API call the base address; one without a path gets `/v1`.
    With `models`, clients name its keys and the upstream hears the values; other names are refused.
    `unchecked` are keys of bodies that the upstream does not show to its model, whatever they hold:
    any other key that is no setting of the OpenAI API or of sampling is refused.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    url: str
    key: SecretStr | None = None
    models: dict[str, str] = Field(default_factory=dict)
    unchecked: frozenset[str] = frozenset()
    connect_timeout_s: float = Field(default=5.0, gt=0)
    pool_timeout_s: float = Field(default=5.0, gt=0, description="for a free connection")
    read_timeout_s: float = Field(default=120.0, gt=0, description="without a byte")
    timeout_s: float = Field(default=600.0, gt=0, description="from forwarding to the last byte")
    max_answer_bytes: int = Field(default=64_000_000, gt=0)
    max_event_bytes: int = Field(default=4_000_000, gt=0, description="one event of a stream")
    connections: int = Field(default=256, gt=0)
    retries: int = Field(default=2, ge=0, le=10, description="beyond the first attempt")
    retry_wait_s: float = Field(default=5.0, ge=0, description="the longest wait for an attempt")
    trust_env: bool = Field(
        default=False, description="heed HTTP_PROXY, SSL_CERT_FILE and the like"
    )
    ca_file: Path | None = None

    @property
    def key_in_clear(self) -> bool:
        """Whether the key goes over a network without TLS."""
        parts = urlsplit(self.url)
        host = parts.hostname or ""
        literal = ip_literal(host)
        here = host == "localhost" or (literal is not None and literal.is_loopback)
        return self.key is not None and parts.scheme == "http" and not here

    @field_validator("url")
    @classmethod
    def _address(cls, value: str) -> str:
        parts = urlsplit(value)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError("the upstream's address must be http://... or https://...")
        if parts.username is not None or parts.query or parts.fragment:
            raise ValueError(
                "the upstream's address must hold no user, query or fragment; give a key by "
                "environment or file"
            )
        address = value.rstrip("/") + ("" if parts.path.strip("/") else "/v1")
        try:
            httpx.URL(address)
        except httpx.InvalidURL as error:
            raise ValueError(f"the upstream's address cannot be used: {error}") from None
        return address

    @field_validator("key")
    @classmethod
    def _printable(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None and not _KEY.fullmatch(value.get_secret_value()):
            raise ValueError("the upstream's key must be printable ASCII without spaces")
        return value


def read_key(*, env: str | None = None, file: Path | None = None) -> SecretStr | None:
    """The upstream's key from a variable or a file; None where neither is named.

    Raises:
        ConfigurationError: both are named, or what is named is missing or empty.
    """
    if env is not None and file is not None:
        raise ConfigurationError("the upstream's key comes from a variable or a file; name one")
    if env is not None:
        found, where = os.environ.get(env, ""), f"the variable {env}"
    elif file is not None:
        where = f"the file {file}"
        try:
            found = file.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigurationError(f"the upstream's key: {where} cannot be read") from error
    else:
        return None
    if not found.strip():
        raise ConfigurationError(f"the upstream's key: {where} is missing or empty")
    return SecretStr(found.strip())
