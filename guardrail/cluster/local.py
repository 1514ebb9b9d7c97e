"""Ray on this machine alone: nothing of it listens anywhere but on loopback."""

from __future__ import annotations

import math
import os
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import ray
from ray import serve
from ray._private import ray_constants, services
from ray.serve.context import _get_global_client

from guardrail.cluster.edge import CALLBACK, LIMIT
from guardrail.cluster.settings import plan_of
from guardrail.errors import ClusterError, ConfigurationError
from guardrail.server.keys import KEYS_VARIABLE
from guardrail.server.settings import is_loopback

if TYPE_CHECKING:
    from collections.abc import Iterator

    from guardrail.cluster.settings import StartSettings

_WAIT_S = 20.0  # for a place in a replica, in addition to the answer


@contextmanager
def connected(settings: StartSettings) -> Iterator[str]:
    """Ray and its HTTP proxy for the block: a new one here, or the cluster at `address`.

    Yields where the cluster is, as HOST:PORT. Of a cluster that was there before only the
    connection ends with the block.

    Raises:
        ConfigurationError: the host is no loopback address and there are no keys.
    """
    server = plan_of(settings).server
    if settings.address is not None and KEYS_VARIABLE in os.environ:
        raise ConfigurationError(
            f"{KEYS_VARIABLE} does not reach the Ray cluster at {settings.address}; put the keys "
            "into a file that is at the same place on all its machines"
        )
    # Ray's processes read this at their start.
    os.environ["RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH"] = CALLBACK
    os.environ[LIMIT] = str(server.max_body_bytes)
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    wanted = settings.cpus * (settings.max_replicas or settings.replicas)
    # A replica more than Ray counts processors for would wait for ever.
    begin(settings.address, processors=max(os.cpu_count() or 1, math.ceil(wanted)))
    http = {
        "host": settings.host,
        "port": settings.port,
        "request_timeout_s": server.timeout_s + _WAIT_S,
    }
    try:
        serve.start(proxy_location="HeadOnly", http_options=http)
        yield str(ray.get_runtime_context().gcs_address)
    finally:
        if settings.address is None:
            serve.shutdown()  # type: ignore[no-untyped-call]
        ray.shutdown()


@contextmanager
def linked(address: str) -> Iterator[None]:
    """A connection to the Ray cluster at an address for the block (`auto`: that of this machine).

    Raises:
        ClusterError: there is no such cluster.
    """
    begin(address)
    try:
        yield
    finally:
        # Threads of handles may keep the process from ending.
        client = _get_global_client(raise_if_no_controller_running=False)
        if client is not None:
            client.shutdown_cached_handles()  # type: ignore[no-untyped-call]
        ray.shutdown()


def begin(address: str | None, *, processors: int | None = None) -> None:
    """Connect to a cluster (`auto`: the one of this machine), or start one on loopback.

    Raises:
        ClusterError: there is no such cluster, or a new one would be open to other machines.
    """
    options: dict[str, Any] = {"namespace": "guardrail", "log_to_driver": False}
    try:
        if address is not None:
            if _is_local(address):
                _keep_to_loopback()
            ray.init(address=address, **options)
            return
        _keep_to_loopback()
        ray.init(address="local", num_cpus=processors, include_dashboard=False, **options)
    except ConnectionError as error:
        raise ClusterError(f"no Ray cluster at {address!r}: {error}") from error
    if os.environ.get("RAY_AUTH_MODE") != "token":
        ray.shutdown()
        raise ClusterError(
            "Ray would run code for whoever reaches its ports; leave RAY_AUTH_MODE unset or `token`"
        )
    if not is_loopback(ray.util.get_node_ip_address()):  # type: ignore[no-untyped-call]
        ray.shutdown()
        raise ClusterError(
            "Ray would listen beyond this machine; start a cluster with `ray start` on a network "
            "of its own and give its --address"
        )


def _is_local(address: str) -> bool:
    """Whether a cluster knows itself by a loopback address, which Ray would replace by another."""
    found: str | None = address
    if address == "auto":
        found = services.get_ray_address_from_environment(address, None)
    return found is not None and is_loopback(found.rpartition(":")[0])


def _keep_to_loopback() -> None:
    """Have a new Ray know this machine by its loopback address alone.

    Ray does so by itself on desktop systems. It reads the variable when it is imported, which it
    has been here; its other processes find the variable.
    """
    os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
    os.environ["RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO"] = "0"  # it warns that it will be the default
    constants: Any = ray_constants
    constants.ENABLE_RAY_CLUSTER = False
