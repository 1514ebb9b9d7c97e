"""A deployment on Ray Serve: built, started, brought to another artefact, looked at, and ended."""

from __future__ import annotations

import asyncio
import logging
import math
import re
import time
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import ray
from pydantic import ValidationError
from ray import serve
from ray.serve.context import _get_global_client
from ray.serve.exceptions import DeploymentUnavailableError, RayServeException
from ray.serve.schema import ApplicationStatus, ServeDeploySchema

from guardrail.cluster.replica import Replica
from guardrail.cluster.settings import ClusterSettings, Plan, UserConfig, plan_of, whole_path
from guardrail.errors import ClusterError, ConfigurationError
from guardrail.server.reload import opened

if TYPE_CHECKING:
    from collections.abc import Mapping

    from prometheus_client.metrics_core import Metric
    from ray.serve import Application
    from starlette.types import ASGIApp, Receive, Scope, Send

_NAME = "GuardReplica"
_LOOK_S = 0.2
_ANSWER_S = 10.0
_METRICS_S = 5.0
_FRAMES = re.compile(r"^[ \t]+File .*\n(?:[ \t]+.*\n)*", re.MULTILINE)
_log = logging.getLogger(__name__)


@serve.ingress()
class GuardReplica(Replica):
    """A `Replica` that loads its model, and knows the others, by Ray's means."""

    async def __init__(self, plan: Plan) -> None:  # type: ignore[misc]  # Ray awaits it
        settings, self._model = plan.settings, ExitStack()
        # vLLM would take Ray for its own processes, too, where it has several GPUs
        own = {"distributed_executor_backend": "mp"} if settings.engine == "vllm" else {}
        opening = opened(
            settings.model,
            engine=settings.engine,
            options=own | settings.loading,
            allow_mismatch=settings.allow_mismatch,
        )
        open_guard = await asyncio.to_thread(self._model.enter_context, opening)
        super().__init__(plan, open_guard, name=serve.get_replica_context().replica_id.unique_id)

    def __serve_build_asgi_app__(self) -> ASGIApp:
        """What Ray sends requests to."""

        async def app(scope: Scope, receive: Receive, send: Send) -> None:  # Ray wants a function
            await self.respond(scope, receive, send)

        return app

    async def all_metrics(self) -> dict[str, list[Metric]]:
        """See `Replica`."""
        own = await super().all_metrics()
        try:
            handle = serve.get_app_handle(serve.get_replica_context().app_name)
            told = await handle.broadcast("metrics").results_async(
                timeout_s=_METRICS_S, return_exceptions=True
            )
        except Exception as error:  # a border: one replica's figures are better than none
            _log.warning("other replicas' metrics are missing (%s)", type(error).__name__)
            return own
        return dict(one for one in told if not isinstance(one, BaseException)) | own

    async def __del__(self) -> None:
        """Called by Ray once, when requests have ended."""
        if hasattr(self, "name"):  # it was made
            await self.aclose()
            await asyncio.to_thread(self._model.close)


def build(args: ClusterSettings | Mapping[str, Any]) -> Application:
    """The application that Ray Serve runs; a configuration file names it as its `import_path`.

    Raises:
        ConfigurationError: the settings cannot hold, or everybody could ask.
        ArtefactError: there is no such artefact on the machine that builds.
    """
    if not isinstance(args, ClusterSettings):
        try:
            args = ClusterSettings.model_validate(args)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"])) or "as a whole"
            raise ConfigurationError(f"the cluster's settings: {where}: {first['msg']}") from error
    plan = plan_of(args)
    deployment: Any = serve.deployment(**_options(plan, _first(args)))(GuardReplica)
    application: Application = deployment.bind(plan)
    return application


def start(settings: ClusterSettings) -> None:
    """Deploy to the Ray cluster that this process is connected to; returns when replicas answer.

    Policy and artefact are those that this machine has now.

    Raises:
        ClusterError: the replicas did not become healthy; the reason of the last one is told.
    """
    pinned = {
        **_first(settings).model_dump(),
        "model": whole_path(settings.model),
        "policy": plan_of(settings).policy,
        "keys_file": settings.keys_file and settings.keys_file.absolute(),
        "audit": settings.audit and settings.audit.absolute(),
    }
    args = settings.model_copy(update=pinned)
    serve.start()
    _apply(
        {
            "name": settings.name,
            "route_prefix": "/",
            "import_path": "guardrail.cluster:build",
            "args": args.model_dump(mode="json", include={*ClusterSettings.model_fields}),
        }
    )
    _running(settings.name, "the replicas did not start")
    _client().wait_for_proxies_serving()


def update(artefact: str, *, name: str = "guardrail", within_s: float = 300.0) -> UserConfig:
    """Have all replicas answer under another artefact, one after the other, without a restart.

    It is at the same place on every machine, this one included. Every replica that answers is asked
    first whether it could; if one cannot, nothing changes. Then Ray changes them: returns when all
    have the new artefact. Meanwhile some answer under the old one and some under the new one.

    Raises:
        ClusterError: one could not. Where that came to light late, Ray takes the replica out of the
            rotation, stops, and leaves the others as they are.
    """
    wanted, end = UserConfig.of(artefact), time.monotonic() + within_s
    found = _application(name)
    config = found.get("deployed_app_config")
    if config is None:
        raise ClusterError(f"{name!r} is not deployed, or not by a configuration; start it anew")
    present = _user_config(found)
    asked = _ask_all(name, "trouble_with", wanted.model_dump(), within_s=within_s)
    trouble = [str(one) for one in asked if one is not None]
    if trouble:
        raise ClusterError(f"the replicas stay with {present.get('artefact_id')}: {trouble[0]}")
    options = {one["name"]: one for one in config.get("deployments", ())}
    options[_NAME] = {"name": _NAME, **options.get(_NAME, {}), "user_config": wanted.model_dump()}
    _apply({**config, "deployments": list(options.values())})
    found = _running(name, f"not all replicas answer under {wanted.artefact_id}", end=end)
    if _user_config(found) != wanted.model_dump():
        raise ClusterError("another update came in between; see `guardrail cluster status`")
    return wanted


def status(name: str = "guardrail") -> dict[str, Any]:
    """What Ray says of the deployment, and which artefact each replica answers under.

    `artefact_id` and `source` are what was last asked for; `monitor` has the counts of the replicas
    that answer under it, together.

    Raises:
        ClusterError: there is no such deployment.
    """
    from guardrail.monitor import MonitorSnapshot

    found = _application(name)
    wanted = _user_config(found)
    facts = [one for one in _ask_all(name, "facts") if isinstance(one, dict)]
    counts = [
        MonitorSnapshot.model_validate(one["monitor"])
        for one in facts
        if one["artefact_id"] == wanted.get("artefact_id")
    ]
    return {
        "status": found["status"],
        "message": _message(found),
        "artefact_id": wanted.get("artefact_id"),
        "source": wanted.get("artefact"),
        "replicas": {one["replica"]: one["artefact_id"] for one in facts},
        "monitor": MonitorSnapshot.merged(counts).to_dict() if counts else None,
    }


def stop(name: str = "guardrail") -> None:
    """Take no more requests, let those under way end, and end the replicas.

    Raises:
        ClusterError: Ray Serve does not run.
    """
    client = _client()
    client.delete_apps([name], blocking=False)
    while name in client.get_serve_details()["applications"]:
        time.sleep(_LOOK_S)


def _first(settings: ClusterSettings) -> UserConfig:
    """The artefact to begin with: as the settings name it, or as it is here now."""
    if settings.artefact_id is None:
        return UserConfig.of(settings.artefact)
    return UserConfig(artefact=settings.artefact, artefact_id=settings.artefact_id)


def _client() -> Any:
    """The way to Serve's controller, whose details no public function has.

    Raises:
        ClusterError: Serve does not run on this cluster.
    """
    try:
        return _get_global_client()
    except RayServeException as error:
        raise ClusterError(
            "Ray Serve does not run here; start a deployment with `guardrail cluster start`"
        ) from error


def _application(name: str) -> dict[str, Any]:
    found: dict[str, Any] | None = _client().get_serve_details()["applications"].get(name)
    if found is None:
        raise ClusterError(
            f"there is no deployment {name!r} here; start one with `guardrail cluster start`"
        )
    return {**found, "status": ApplicationStatus(found["status"]).value}


def _user_config(application: Mapping[str, Any]) -> dict[str, Any]:
    """What the replicas are to answer under; empty while the application is being built."""
    deployment = application["deployments"].get(_NAME)
    config: dict[str, Any] = deployment["deployment_config"]["user_config"] if deployment else {}
    return config


def _message(application: Mapping[str, Any]) -> str:
    """What Ray says is wrong; of a traceback the error alone."""
    deployment = application["deployments"].get(_NAME) or {}
    said: str = deployment.get("message") or application["message"]
    return _FRAMES.split(said)[-1].strip()


def _apply(application: dict[str, Any]) -> None:
    """Deploy an application beside the others that were deployed by a configuration."""
    client = _client()
    details = client.get_serve_details()
    configs = {
        name: one["deployed_app_config"]
        for name, one in details["applications"].items()
        if one.get("deployed_app_config")  # one that is left out would be ended
    }
    configs[application["name"]] = application
    client.deploy_apps(
        ServeDeploySchema.model_validate(
            {
                "applications": list(configs.values()),
                "target_capacity": details.get("target_capacity"),
            }
        )
    )


def _running(name: str, problem: str, *, end: float = math.inf) -> dict[str, Any]:
    """The application once all replicas are healthy under what was last applied."""
    while True:
        found = _application(name)
        if found["status"] == "RUNNING":
            return found
        if found["status"] == "DEPLOY_FAILED" or time.monotonic() > end:
            raise ClusterError(f"{problem} ({found['status']}): {_message(found)}")
        time.sleep(_LOOK_S)


def _ask_all(name: str, method: str, *values: object, within_s: float = _ANSWER_S) -> list[Any]:
    """What each replica that answers says; an error in the place of an answer."""
    handle: Any = serve.get_app_handle(name)
    try:
        asked: list[Any] = handle.broadcast(method, *values).results(
            timeout_s=within_s, return_exceptions=True
        )
    except (DeploymentUnavailableError, TimeoutError):
        return []  # there is none
    return [one for one in asked if not isinstance(one, ray.exceptions.RayActorError)]


def _options(plan: Plan, first: UserConfig) -> dict[str, Any]:
    """How Ray runs the replicas. What is beyond a replica's places waits in the proxies."""
    settings, places = plan.settings, plan.server.max_concurrent
    size: dict[str, Any] = {"num_replicas": settings.replicas}
    if settings.max_replicas is not None:
        follow = {
            "min_replicas": settings.replicas,
            "initial_replicas": settings.replicas,
            "max_replicas": settings.max_replicas,
            "target_ongoing_requests": settings.target_ongoing,
        }
        size = {"autoscaling_config": follow}
    return {
        **size,
        "name": _NAME,
        "user_config": first.model_dump(),
        "max_ongoing_requests": places,
        "max_queued_requests": places,
        "ray_actor_options": {"num_cpus": settings.cpus, "num_gpus": settings.gpus},
        "backpressure_config": {"status_code": 429, "retry_after_s": 1},
        "health_check_period_s": settings.health_s,
        "health_check_timeout_s": max(10.0, settings.health_s),
        "graceful_shutdown_timeout_s": plan.server.drain_s + 5,
        "graceful_shutdown_wait_loop_s": 0.2,
        "max_constructor_retry_count": 3,
    }
