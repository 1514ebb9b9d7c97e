"""Names of hosts in one comparable form, for the policy's list and for the addresses sent."""

from __future__ import annotations

import ipaddress
import re

IPAddress = ipaddress.IPv4Address | ipaddress.IPv6Address


def allowed_host(entry: str) -> str:
    """The normal form of an entry of `allowed_hosts`; ValueError when it could never match."""
    try:
        return normal_host(entry.removeprefix("[").removesuffix("]"))
    except ValueError as exc:
        raise ValueError(
            f"`allowed_hosts` holds {entry!r}: {exc}; write the bare host, e.g. 'example.com'"
        ) from exc


def normal_host(host: str) -> str:
    """Lower-case ASCII form of a host name or IP literal; ValueError when there is none."""
    host = host.lower().removesuffix(".")
    if literal := ip_literal(host):
        return str(literal)
    if not host.isascii():
        ascii_host = host.encode("idna").decode("ascii")
        # Python's codec is IDNA 2003, which maps some names to others' ("ß" to "ss")
        if ascii_host.encode("ascii").decode("idna") != host:
            raise ValueError(f"write the host {host!r} in its xn-- form")
        host = ascii_host
    if not re.fullmatch(r"[a-z0-9_-]+(\.[a-z0-9_-]+)*", host):
        raise ValueError(f"{host!r} is no host name")
    return host


def ip_literal(host: str) -> IPAddress | None:
    """The address that `host` is; None for a name."""
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None
