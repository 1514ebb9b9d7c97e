"""What a server accepts, from whom, and how much of it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict, Field

from guardrail.server.binding import is_loopback
from guardrail.server.keys import ApiKey

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable


class ServerSettings(BaseModel):
    """One server's settings. Immutable; times are in seconds, sizes in bytes."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model_name: str = Field(default="guarded", description="what clients name as `model`")
    keys: tuple[ApiKey, ...] = Field(default=(), description="who may ask; none: everybody")
    open_metrics: bool = Field(default=False, description="/metrics needs no key")
    open_status: bool = Field(default=False, description="the status page needs no key")
    hostnames: frozenset[str] = Field(
        default=frozenset(), description="names that requests may call this server; none: any"
    )
    expose_scores: bool | None = Field(
        default=None,
        description="scores are told to all (true) or nobody (false); None: to bearers of trusted "
        "keys, and without keys to this machine alone",
    )
    cors_origins: tuple[str, ...] = Field(default=(), description="sites whose pages may ask")
    fetch_urls: bool = Field(
        default=False, description="fetch pictures from hosts that the policy allows"
    )
    max_body_bytes: int = Field(default=32_000_000, gt=0)
    timeout_s: float = Field(default=120.0, gt=0, description="from request to end of the answer")
    body_timeout_s: float = Field(default=30.0, gt=0, description="for a body to arrive")
    max_concurrent: int = Field(default=64, gt=0, description="requests under way at once")
    max_per_client: int | None = Field(
        default=None, gt=0, description="of them by one key; None: half where there are several"
    )
    default_tokens: int = Field(
        default=1024, gt=0, description="of an answer for which the client names no limit"
    )
    max_checks: int = Field(default=256, gt=0, description="items of one request to /v1/checks")
    drain_s: float = Field(default=30.0, ge=0, description="for answers under way at the end")
    log_prompts: bool = False

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
