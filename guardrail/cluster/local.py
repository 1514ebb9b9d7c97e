"""Ray on this machine alone: nothing of it listens anywhere but on loopback."""

from __future__ import annotations

import math
import os
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import ray
from ray import serve
from ray._private import ray_constants, services

from guardrail.cluster.edge import CALLBACK, LIMIT
from guardrail.errors import ClusterError
from guardrail.server.settings import is_loopback, require_safe_bind

if TYPE_CHECKING:
    from collections.abc import Iterator

    from guardrail.cluster.settings import ClusterSettings, Plan

_SPARE_S = 5.0


@contextmanager
def connected(
    plan: Plan, *, host: str, port: int, address: str | None = None, insecure: bool = False
) -> Iterator[None]:
    """Ray and its HTTP proxy for the block: a new one here, or the cluster at `address`.

    Of a cluster that was there before only the connection ends with the block.

    Raises:
        ConfigurationError: the host is no loopback address and there are no keys.
    """
    require_safe_bind(host, plan.server.keys, insecure=insecure)
    environment(plan)
    begin(address, processors=_processors(plan.settings))
    try:
        serve.start(proxy_location="HeadOnly", http_options=_http(plan, host, port))
        yield
    finally:
        if address is None:
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
        ray.shutdown()


def environment(plan: Plan) -> None:
    """Set what Ray's processes read at their start: the HTTP proxy's limits, and no reports."""
    os.environ["RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH"] = CALLBACK
    os.environ[LIMIT] = str(plan.server.max_body_bytes)
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"


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


def ray_address() -> str:
    """Where the cluster is that this process is connected to, as HOST:PORT."""
    return str(ray.get_runtime_context().gcs_address)


def _processors(settings: ClusterSettings) -> int:
    """How many Ray is to count: a replica more than there are would wait for ever."""
    wanted = settings.cpus * (settings.max_replicas or settings.replicas)
    return max(os.cpu_count() or 1, math.ceil(wanted))


def _http(plan: Plan, host: str, port: int) -> dict[str, Any]:
    settings = plan.settings
    wait_s = settings.pause_s + settings.lease_s + _SPARE_S
    return {"host": host, "port": port, "request_timeout_s": plan.server.timeout_s + wait_s}
