"""Where a server may listen: on loopback, or elsewhere with keys."""

from __future__ import annotations

import ipaddress
from typing import TYPE_CHECKING

from guardrail.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Sized

LOOPBACK_NAMES = frozenset({"localhost", "127.0.0.1", "::1"})


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


def shown_scores(asked: bool | None, keys: Sized, *, insecure: bool = False) -> bool | None:
    """`ServerSettings.expose_scores` of a server that may have something before it.

    Behind something that asks for keys in its place everybody seems to come from this machine.
    """
    return False if asked is None and insecure and not keys else asked


def hostnames(host: str, keys: Sized, *, insecure: bool = False) -> frozenset[str]:
    """The names by which requests may call the server; none: any.

    Without keys a web page could have its own name resolve to this machine and ask from a browser
    here; such requests carry the page's name.
    """
    if keys or insecure:
        return frozenset()
    return LOOPBACK_NAMES | {host.lower()}
