"""Pictures and videos behind http(s) URLs, from allowed hosts only.

A host must be in the policy's list: exact, lower-case, in IDNA form; any port. Its name is resolved
once, every address must be public, and the connection goes to a checked address: the URL sent to
the HTTP client holds the address, the name travels in the Host header and in TLS (SNI and the
certificate's check). So a second DNS answer cannot redirect the request (no DNS re-binding).
An allowed IP literal is used as it is, private or not; a name, `localhost` too, never reaches a
private address. Proxies of the environment, cookies and content encodings are not used. Redirects
stay on the host, never step down to http, are checked like the first URL, and are at most three.

Not bounded: the time of a DNS query is the system resolver's. An allowed host that sends its
*headers* a byte at a time is cut off by the 5 s of one read only, its body by its medium's time.
"""

from __future__ import annotations

import ipaddress
import re
import socket
import time
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import urljoin, urlsplit

from guardrail.errors import ConfigurationError, UrlNotAllowedError
from guardrail.extras import require
from guardrail.policy.policy import allowed_host, ip_literal, normal_host

if TYPE_CHECKING:
    import httpx

    from guardrail.inputs.media import Medium
    from guardrail.policy import Policy

_REDIRECTS = 3
_OPERATION_S = 5.0
_ADDRESSES = 4  # of a host, tried in the resolver's order
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
# All that was ever given out for the public network; the rest are forms of other networks' own,
# such as addresses that a router turns into private IPv4 ones. `is_global` knows some of them.
_GLOBAL_V6 = ipaddress.IPv6Network("2000::/3")
_NOT_PUBLIC = (ipaddress.IPv6Network("3fff::/20"), ipaddress.IPv4Network("192.88.99.0/24"))
_NOT_IN_URLS = re.compile(r"[\x00-\x20\x7f\\\ud800-\udfff]")


def fetched_bytes(url: str, medium: Medium, policy: Policy, what: str) -> bytes:
    """The body behind an http(s) URL of an allowed host, at most as long as its medium may be.

    Raises:
        UrlNotAllowedError: the host is not allowed, or resolves to an address that is not public.
        LimitExceededError: the body is too long.
        InputError: nothing could be fetched (the medium's own kind).
        MissingExtraError: the extra `http` is not installed.
    """
    order = _Order(medium, policy, time.monotonic() + medium.fetch_s, what)
    target = _allowed_target(url, order)
    require("httpx")
    import httpx

    try:
        for _ in range(_REDIRECTS + 1):
            reply = _answer(target, order)
            if isinstance(reply, bytes):
                return reply
            target = _redirected(target, reply, order)
    except (httpx.HTTPError, httpx.InvalidURL, httpx.StreamError, OSError) as exc:
        reason = str(exc) or type(exc).__name__
        raise order.failed(f"{target.host} could not be reached: {reason}") from exc
    raise UrlNotAllowedError(f"{what}: {target.host} redirects more than {_REDIRECTS} times")


def _allowed_target(url: str, order: _Order) -> _Target:
    what = order.what
    try:
        if _NOT_IN_URLS.search(url):
            raise ValueError("it holds spaces, backslashes or control characters")
        parts = urlsplit(url)
        host = normal_host(parts.hostname or "")
        port = parts.port or {"http": 80, "https": 443}[parts.scheme]
    except (ValueError, KeyError) as exc:
        raise UrlNotAllowedError(f"{what} is no http(s) URL that can be used: {exc}") from exc
    if "@" in parts.netloc:
        raise UrlNotAllowedError(f"{what}: a URL with a user name or password is not fetched")
    if host not in {_allowed_host(entry) for entry in order.policy.allowed_hosts}:
        raise UrlNotAllowedError(
            f"{what}: the host {host!r} is not allowed; add it to `allowed_hosts` in the policy, "
            "or send the bytes"
        )
    path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    return _Target(parts.scheme, host, port, path)


def _allowed_host(entry: str) -> str:
    try:
        return allowed_host(entry)
    except ValueError as exc:
        raise ConfigurationError(str(exc)) from exc


def _answer(target: _Target, order: _Order) -> bytes | str:
    """The body, or the location the host redirects to, from the first address that connects."""
    import httpx

    refused: Exception = OSError("the name has no address")
    with httpx.Client(trust_env=False, timeout=_OPERATION_S, follow_redirects=False) as client:
        for address in _addresses(target, order.what):
            request = client.build_request(
                "GET",
                target.at(address),
                headers={"Host": target.authority, "Accept-Encoding": "identity"},
                extensions={"sni_hostname": target.host},
            )
            try:
                response = client.send(request, stream=True)
            except (httpx.ConnectError, httpx.ConnectTimeout) as exc:
                refused = exc
                continue
            with closing(response):
                return _body_or_location(response, order)
    raise refused


def _addresses(target: _Target, what: str) -> list[str]:
    """Where to connect: the literal itself, or the name's addresses when all are public."""
    if ip_literal(target.host):
        return [target.host]
    answers = socket.getaddrinfo(target.host, target.port, type=socket.SOCK_STREAM)
    found = list(dict.fromkeys(str(answer[4][0]) for answer in answers))
    if private := [address for address in found if not _is_public(address)]:
        raise UrlNotAllowedError(
            f"{what}: {target.host} resolves to {private[0]}, which is no public address"
        )
    return found[:_ADDRESSES]


def _is_public(address: str) -> bool:
    ip = ip_literal(address)
    if isinstance(ip, ipaddress.IPv6Address):
        inner = ip.ipv4_mapped or ip.sixtofour or (ip.teredo or (None, None))[1]
        if ip in _NAT64:
            inner = ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)
        if inner is not None:  # a tunnel leads to the IPv4 address inside
            return _is_public(str(inner))
        if ip not in _GLOBAL_V6:
            return False
    if ip is None or any(ip in network for network in _NOT_PUBLIC):
        return False
    return ip.is_global and not ip.is_multicast


def _body_or_location(response: httpx.Response, order: _Order) -> bytes | str:
    location = response.headers.get("location")
    if response.status_code in (301, 302, 303, 307, 308) and location:
        return str(location)
    if response.status_code != 200:
        raise order.failed(f"the host answers HTTP {response.status_code}")
    if response.headers.get("content-encoding", "identity").lower() != "identity":
        raise order.failed(f"the host compresses {order.medium.name}s although asked not to")
    declared = response.headers.get("content-length", "")
    order.check_bytes(int(declared) if declared.isdecimal() else 0)
    body, chunks = bytearray(), response.iter_raw()
    while True:
        if time.monotonic() > order.deadline:
            raise order.failed(f"not fetched within {order.medium.fetch_s:.0f} s")
        chunk = next(chunks, None)
        if chunk is None:
            return bytes(body)
        body += chunk
        order.check_bytes(len(body))


def _redirected(target: _Target, location: str, order: _Order) -> _Target:
    what = order.what
    try:
        joined = urljoin(target.url, location)
    except ValueError as exc:
        raise UrlNotAllowedError(f"{what}: {target.host} redirects to no URL: {exc}") from exc
    following = _allowed_target(joined, order)
    if following.host != target.host or (target.scheme, following.scheme) == ("https", "http"):
        raise UrlNotAllowedError(
            f"{what}: {target.host} redirects to {following.scheme}://{following.host}; "
            "redirects must stay on the host and must not leave https"
        )
    return following


@dataclass(frozen=True, slots=True)
class _Target:
    scheme: str
    host: str  # normalised; an IPv6 literal without brackets
    port: int
    path: str

    @property
    def url(self) -> str:
        return self.at(self.host)

    def at(self, host: str) -> str:
        return f"{self.scheme}://{_bracketed(host)}:{self.port}{self.path}"

    @property
    def authority(self) -> str:
        default = {"http": 80, "https": 443}[self.scheme]
        port = "" if self.port == default else f":{self.port}"
        return _bracketed(self.host) + port


@dataclass(frozen=True, slots=True)
class _Order:
    """What one fetch is held to, and what messages call it."""

    medium: Medium
    policy: Policy
    deadline: float
    what: str

    def failed(self, reason: str) -> Exception:
        return self.medium.error(f"{self.what}: {reason}")

    def check_bytes(self, size: int) -> None:
        self.medium.check_bytes(size, self.policy.limits, what=self.what)


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host
