"""The address a server listens at."""

from __future__ import annotations

import os
import socket
import ssl
import stat
from contextlib import contextmanager
from typing import TYPE_CHECKING

from guardrail.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from guardrail.server.settings import Listening

_OWNER_AND_GROUP = 0o117  # as a mask: others may not connect


@contextmanager
def bound_socket(listening: Listening) -> Iterator[socket.socket]:
    """The bound socket; a file of a Unix socket is removed after the block.

    Raises:
        ConfigurationError: the address is in use, or not one of this machine's.
    """
    path = listening.unix_socket
    try:
        found = _tcp(listening.host, listening.port) if path is None else _unix(path)
    except OSError as error:
        where = f"port {listening.port} of {listening.host}" if path is None else str(path)
        why = str(error.strerror or error).partition(" (while")[0]  # that names the address again
        raise ConfigurationError(
            f"cannot listen at {where}: {why}; choose another address, or end what listens there"
        ) from error
    try:
        with found:
            yield found
    finally:
        if path is not None:
            path.unlink(missing_ok=True)


def require_usable(listening: Listening) -> None:
    """Tell at once what would fail only after a model was loaded, which takes long.

    The address is not kept: until there is an answer, clients shall hear that nobody listens.

    Raises:
        ConfigurationError: the address or the certificate cannot be used.
    """
    if listening.tls_cert is not None:
        try:
            _tls(listening.tls_cert, listening.tls_key)
        except OSError as error:
            raise ConfigurationError(
                f"{listening.tls_cert} and {listening.tls_key} cannot be used for TLS: "
                f"{error.strerror or error}; give a certificate chain and its own key, both in PEM"
            ) from error
    with bound_socket(listening):
        pass


def address_of(bound: socket.socket, listening: Listening) -> str:
    """The address as people write it."""
    if listening.unix_socket is not None:
        return f"unix:{listening.unix_socket}"
    host, port = bound.getsockname()[:2]
    scheme = "http" if listening.tls_cert is None else "https"
    return f"{scheme}://{f'[{host}]' if ':' in host else host}:{port}"


def _tcp(host: str, port: int) -> socket.socket:
    plain = host.removeprefix("[").removesuffix("]")
    family = socket.AF_INET6 if ":" in plain else socket.AF_INET
    return socket.create_server((plain, port), family=family, backlog=2048)


def _tls(cert: Path, key: Path | None) -> None:
    ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(cert, key)


def _unix(path: Path) -> socket.socket:
    if path.exists() and stat.S_ISSOCK(path.stat().st_mode):
        _refuse_if_answered(path)
        path.unlink()  # of a server that was killed
    made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    before = os.umask(_OWNER_AND_GROUP)
    try:
        made.bind(str(path))
    except OSError:
        made.close()
        raise
    finally:
        os.umask(before)
    return made


def _refuse_if_answered(path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1.0)
        if probe.connect_ex(str(path)) == 0:
            raise OSError("another server answers there")
