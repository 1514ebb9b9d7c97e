"""What a server accepts, from whom, how much of it, where it listens, and what answers behind it.

The command line derives its options from these models (see `guardrail.cli.derived`).
"""

from __future__ import annotations

import ipaddress
import os
import re
from functools import partial
from pathlib import Path  # pydantic reads the annotations
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, SecretStr, field_validator

from guardrail.errors import ConfigurationError
from guardrail.policy.policy import MAX_BODY_BYTES, ip_literal
from guardrail.server.keys import ApiKey

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sized

LogFormat = Literal["json", "text"]
Engine = Literal["transformers", "vllm"]
LogLevel = Literal["debug", "info", "warning", "error"]

LOOPBACK_NAMES = frozenset({"localhost", "127.0.0.1", "::1"})

_KEY = re.compile(r"[!-~]{1,4096}")  # what a header can hold, and no space
_FILE: dict[str, Any] = {"metavar": "FILE", "exists": True, "dir_okay": False}
_NO_OPTION: dict[str, Any] = {"option": False}


def _option(
    panel: str, default: Any, help: str, *, cli: Mapping[str, Any] | None = None, **bounds: Any
) -> Any:
    """A field that has an option in this panel of the command line's help."""
    extra = {"panel": panel, **(cli or {})}
    return Field(default=default, description=help, json_schema_extra=extra, **bounds)


_access = partial(_option, "Who may ask")
_address = partial(_option, "Address")
_bounds = partial(_option, "Bounds")


class _Settings(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)


class ServerSettings(_Settings):
    """What one server answers, and whom. Immutable; times are in seconds, sizes in bytes."""

    model_name: str = _address("guarded", "What clients name as `model`.", cli={"metavar": "NAME"})
    keys: tuple[ApiKey, ...] = Field(
        default=(), description="Who may ask; none: everybody.", json_schema_extra=_NO_OPTION
    )
    hostnames: frozenset[str] = Field(
        default=frozenset(),
        description="Names that requests may call this server; none: any.",
        json_schema_extra=_NO_OPTION,
    )
    expose_scores: bool | None = _access(
        None,
        "Tell scores and thresholds to everybody, or to nobody. Default: to trusted "
        "keys, and without keys to this machine: they help a search for a request that passes.",
        cli={"off": "--hide-scores"},
    )
    open_metrics: bool = _access(False, "/metrics needs no key.")
    open_status: bool = _access(False, "The status page needs no key.")
    cors_origins: tuple[str, ...] = _access(
        (),
        "A site whose pages may ask from a browser; repeatable. Default: none.",
        cli={"metavar": "ORIGIN"},
    )
    fetch_urls: bool = _access(
        False, "Fetch pictures from the policy's `allowed_hosts`; otherwise only data: URLs."
    )
    max_concurrent: int = _bounds(64, "Requests under way at once; more are answered 429.", gt=0)
    max_per_client: int | None = _bounds(
        None, "Of them by one key. Default: half where there are several keys.", gt=0
    )
    max_body_bytes: int = _bounds(MAX_BODY_BYTES, "Of one request.", gt=0)
    max_checks: int = _bounds(256, "Inputs of one request to /v1/checks.", gt=0)
    default_tokens: int = _bounds(
        1024, "The most tokens of an answer for which the client names no limit.", gt=0
    )
    timeout_s: float = _bounds(120.0, "Seconds from a request to the end of its answer.", gt=0)
    body_timeout_s: float = _bounds(30.0, "Seconds for a body to arrive.", gt=0)
    drain_s: float = _bounds(30.0, "Seconds that answers under way have after SIGTERM.", ge=0)
    log_prompts: bool = _option(
        "Log and audit",
        False,
        "Write what was asked to the log, too. Off, no text of a request is ever there.",
    )

    def kept_to(
        self, keys: tuple[ApiKey, ...], host: str, *, insecure: bool = False
    ) -> ServerSettings:
        """The settings of a server at this host for the bearers of these keys.

        `insecure`: something before it decides who may ask.

        Raises:
            ConfigurationError: it would answer everybody who can reach this machine.
        """
        require_safe_bind(host, keys, insecure=insecure)
        names = self.hostnames or hostnames(host, keys, insecure=insecure)
        follows: dict[str, Any] = {"keys": keys, "hostnames": names}
        if self.expose_scores is None and insecure and not keys:
            follows["expose_scores"] = False  # everybody seems to come from this machine then
        return self.model_copy(update=follows)

    def shows_scores(self, keys: Collection[ApiKey], key: ApiKey | None, peer: str) -> bool:
        """Whether a caller with this key (or none), from this address, is told scores."""
        if self.expose_scores is not None:
            return self.expose_scores
        if keys:
            return key is not None and key.trusted
        return is_loopback(peer)

    def per_client(self, keys: Iterable[ApiKey]) -> int:
        """How many requests of one client may be under way where these keys are in force."""
        if self.max_per_client is not None:
            return self.max_per_client
        several = len({key.name for key in keys}) > 1
        return (self.max_concurrent + 1) // 2 if several else self.max_concurrent


class Listening(_Settings):
    """Where a server listens, and how much of connections it stands; times in seconds."""

    host: str = _address(
        "127.0.0.1",
        "The address to listen at; others than this machine's loopback need --api-keys.",
    )
    port: int = _address(8000, "0: a free one.", ge=0, le=65_535)
    unix_socket: Path | None = _address(
        None, "Listen there instead; open to this user and group.", cli={"metavar": "PATH"}
    )
    tls_cert: Path | None = _address(
        None, "Answer in TLS with this certificate chain (PEM).", cli=_FILE
    )
    tls_key: Path | None = _address(None, "The certificate's key (PEM).", cli=_FILE)
    max_connections: int = _bounds(512, "Open at once.", gt=0)
    header_timeout_s: float = _bounds(10.0, "Seconds for the headers of a request to arrive.", gt=0)
    stall_timeout_s: float = Field(
        default=60.0,
        gt=0,
        description="Seconds for a client that takes nothing of its answer.",
        json_schema_extra=_NO_OPTION,
    )

    def __init__(self, **given: Any) -> None:
        """Refuse half a pair.

        Raises:
            ConfigurationError: a certificate without its key, or the other way round.
        """
        super().__init__(**given)
        if (self.tls_cert is None) != (self.tls_key is None):
            raise ConfigurationError("give both --tls-cert and --tls-key, or none of them")


class UpstreamOptions(_Settings):
    """What operators say of an upstream, if there is one."""

    url: str | None = Field(
        default=None,
        description="An OpenAI-compatible server that answers what passes the check: vLLM, Ollama, "
        "a hosted model. One without a path gets /v1. MODEL only checks then.",
        json_schema_extra={"name": "upstream", "metavar": "URL"},
    )
    models: dict[str, str] = Field(
        default_factory=dict,
        description="A model that clients may name, and its name there; repeatable. Default: all.",
        json_schema_extra={"metavar": "NAME[=UPSTREAM]"},
    )
    timeout_s: float = Field(
        default=600.0,
        gt=0,
        description="Seconds for the upstream's whole answer; --timeout holds as well.",
    )
    retries: int = Field(
        default=2,
        ge=0,
        le=10,
        description="More attempts where the upstream certainly did not begin: no connection, or a "
        "429 or 503 with Retry-After.",
    )
    unchecked: frozenset[str] = Field(
        default=frozenset(),
        description="A key of bodies that the upstream never shows to its model; repeatable. Other "
        "keys that nobody here reads are refused.",
        json_schema_extra={"metavar": "KEY"},
    )
    ca_file: Path | None = Field(
        default=None,
        description="Trust these authorities (PEM) for the upstream, in place of the usual ones.",
        json_schema_extra=_FILE | {"name": "upstream_ca"},
    )
    trust_env: bool = Field(default=False, description="Heed HTTP_PROXY and the like.")

    @field_validator("models", mode="before")
    @classmethod
    def _named(cls, value: object) -> object:
        if isinstance(value, dict):
            return value
        named = [str(one).partition("=") for one in value] if isinstance(value, list) else []
        if not all(name and (to or not sign) for name, sign, to in named):
            raise ValueError("a model is NAME or NAME=UPSTREAM")
        return {name: to or name for name, _, to in named}


class UpstreamSettings(UpstreamOptions):
    """One upstream. Immutable; times are in seconds, sizes in bytes.

    `url` is what clients of the OpenAI API call the base address; one without a path gets `/v1`.
    With `models`, clients name its keys and the upstream hears the values; other names are refused.
    `unchecked` are keys of bodies that the upstream does not show to its model, whatever they hold:
    any other key that is no setting of the OpenAI API or of sampling is refused.
    """

    url: str
    key: SecretStr | None = None
    connect_timeout_s: float = Field(default=5.0, gt=0)
    pool_timeout_s: float = Field(default=5.0, gt=0, description="for a free connection")
    read_timeout_s: float = Field(default=120.0, gt=0, description="without a byte")
    max_answer_bytes: int = Field(default=64_000_000, gt=0)
    max_event_bytes: int = Field(default=4_000_000, gt=0, description="one event of a stream")
    connections: int = Field(default=256, gt=0)
    retry_wait_s: float = Field(default=5.0, ge=0, description="the longest wait for an attempt")

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
        import httpx

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


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach a host; names other than localhost count as public."""
    try:
        return ipaddress.ip_address(host.removeprefix("[").removesuffix("]")).is_loopback
    except ValueError:
        return host.lower().removesuffix(".") == "localhost"


def require_safe_bind(host: str, keys: Sized, *, insecure: bool = False) -> None:
    """Refuse to answer everybody who can reach this machine.

    Raises:
        ConfigurationError: the host is no loopback address and there are no keys.
    """
    if keys or insecure or is_loopback(host):
        return
    raise ConfigurationError(
        f"{host} can be reached from other machines, and there are no API keys; give --api-keys "
        "FILE or GUARDRAIL_API_KEYS, or listen on 127.0.0.1; only where something in front asks "
        "for keys, say --insecure-no-keys"
    )


def hostnames(host: str, keys: Sized, *, insecure: bool = False) -> frozenset[str]:
    """The names by which requests may call the server; none: any.

    Without keys a web page could have its own name resolve to this machine and ask from a browser
    here; such requests carry the page's name.
    """
    if keys or insecure:
        return frozenset()
    return LOOPBACK_NAMES | {host.lower()}
