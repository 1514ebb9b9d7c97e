"""Starting, updating and ending a deployment, from a program or Ray Serve's configuration files."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray
from pydantic import ValidationError
from ray import serve

from guardrail.cluster.coordinator import NAMESPACE, actor_name
from guardrail.cluster.orders import Outcome, Pin
from guardrail.cluster.replica import GuardReplica
from guardrail.cluster.settings import ClusterSettings, Plan
from guardrail.cluster.store import forget
from guardrail.errors import ClusterError, ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ray.serve import Application

_LOOK_S = 0.2
_ANSWER_S = 30.0


def build(args: ClusterSettings | Mapping[str, Any]) -> Application:
    """The application that Ray Serve runs; a configuration file names it as its `import_path`.

    A configuration file's proxies may listen anywhere, so it must name keys.

    Raises:
        ConfigurationError: the settings cannot hold.
        ArtefactError: there is no such artefact on the machine that deploys.
    """
    if not isinstance(args, ClusterSettings):
        try:
            args = ClusterSettings.model_validate(args)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"])) or "as a whole"
            raise ConfigurationError(f"the cluster's settings: {where}: {first['msg']}") from error
        if args.keys_file is None and not args.insecure_no_keys:
            raise ConfigurationError(
                "the cluster's settings have no keys_file, so everybody could ask; give one, or "
                "say insecure_no_keys where something in front asks for keys"
            )
    plan = plan_of(args)
    deployment: Any = serve.deployment(**_options(args, plan))(GuardReplica)
    application: Application = deployment.bind(plan)
    return application


def plan_of(settings: ClusterSettings) -> Plan:
    """What the replicas are to run, with the artefact's id and what the named files hold."""
    from guardrail.policy_io import load_policy, policy_from_env
    from guardrail.server.keys import keys_from_file
    from guardrail.server.settings import shown_scores

    name = settings.artefact_id or artefact_id_of(settings.artefact)
    policy = policy_from_env() if settings.policy is None else load_policy(settings.policy)
    server = settings.server
    keys = server.keys
    if settings.keys_file is not None:
        keys += keys_from_file(settings.keys_file)[0]
    shown = shown_scores(server.expose_scores, keys, insecure=settings.insecure_no_keys)
    server = server.model_copy(update={"keys": keys, "expose_scores": shown})
    return Plan(settings, Pin(0, whole_path(settings.artefact), name, name), policy, server)


def start(settings: ClusterSettings) -> None:
    """Deploy to the Ray cluster that this process is connected to; returns when replicas answer.

    Raises:
        ClusterError: the replicas did not become healthy; the reason of the last one is told.
    """
    try:
        serve.run(build(settings), name=settings.name, route_prefix="/")
    except RuntimeError as error:
        raise ClusterError(f"the replicas did not start: {error}") from error


def update(
    artefact: str, *, name: str = "guardrail", prepare_s: float = 60.0, pause_s: float = 10.0
) -> Outcome:
    """Bring all replicas to another artefact, which is at the same place on every machine.

    No answer under the old one begins after the first one under the new one. `prepare_s` is for all
    to load it, `pause_s` for answers that are about to begin; new requests wait meanwhile.

    Raises:
        ClusterError: one could not; all stay with the artefact they had.
    """
    asked = (whole_path(artefact), artefact_id_of(artefact))
    limits = {"prepare_s": prepare_s, "pause_s": pause_s}
    wait_s = prepare_s + pause_s + _ANSWER_S
    outcome: Outcome = _asked(name, "update", *asked, wait_s=wait_s, **limits)
    if outcome.problem is not None:
        raise ClusterError(
            f"the replicas stay with {outcome.agreed.artefact_id}: {outcome.problem}"
        )
    return outcome


def status(name: str = "guardrail") -> dict[str, Any]:
    """What is agreed on, what each replica last said of itself, and all their counts together."""
    from guardrail.monitor import MonitorSnapshot

    told: dict[str, Any] = _asked(name, "status", wait_s=_ANSWER_S)
    counts = [
        MonitorSnapshot.model_validate(facts["monitor"])
        for facts in told["replicas"].values()
        if facts.get("artefact_id") == told["artefact_id"]
    ]
    merged = MonitorSnapshot.merged(counts).to_dict() if counts else None
    replicas = {n: facts.get("artefact_id") for n, facts in told["replicas"].items()}
    return {**told, "replicas": replicas, "monitor": merged}


def stop(name: str = "guardrail") -> None:
    """Take no more requests, let those under way end, and end the replicas."""
    try:
        _asked(name, "stop", wait_s=_ANSWER_S)
    except ClusterError:
        pass  # without a coordinator the replicas take no requests either
    serve.delete(name)  # waits for answers, as long as the settings let a drain take
    try:
        ray.kill(ray.get_actor(actor_name(name), namespace=NAMESPACE), no_restart=True)
    except ValueError:
        pass
    forget(name)


def artefact_id_of(artefact: str) -> str:
    """The id of a file, of the one artefact in a folder, or of one on the hub."""
    from guardrail.artefact import Artefact

    return Artefact.from_pretrained(artefact).artefact_id


def whole_path(artefact: str) -> str:
    """The same place for a process that runs in another folder; a hub id as it is."""
    path = Path(artefact).expanduser()
    return str(path.resolve()) if path.exists() else artefact


def _asked(name: str, method: str, *values: object, wait_s: float, **more: object) -> Any:
    """The coordinator's answer; one that is being started again is waited for.

    Raises:
        ClusterError: there is none, or it did not answer in time.
    """
    end = time.monotonic() + wait_s
    while True:
        try:
            actor: Any = ray.get_actor(actor_name(name), namespace=NAMESPACE)
            asked = getattr(actor, method).remote(*values, **more)
            # Ray ends the process where it is given less than no time.
            return ray.get(asked, timeout=max(0.0, end - time.monotonic()))
        except ray.exceptions.ActorUnavailableError as error:
            if time.monotonic() > end - _LOOK_S or method == "update":
                raise ClusterError("the coordinator is starting again; ask again") from error
            time.sleep(_LOOK_S)
        except (ValueError, ray.exceptions.RayError) as error:
            raise ClusterError(
                f"no deployment {name!r} answers here ({type(error).__name__}); start one with "
                "`guardrail cluster start`"
            ) from error


def _options(settings: ClusterSettings, plan: Plan) -> dict[str, Any]:
    """How Ray runs the replicas. What is beyond a replica's places waits in the proxies."""
    places = plan.server.max_concurrent
    grows = settings.max_replicas is not None
    size: dict[str, Any] = {"num_replicas": settings.replicas}
    if grows:
        follow = {
            "min_replicas": settings.replicas,
            "initial_replicas": settings.replicas,
            "max_replicas": settings.max_replicas,
            "target_ongoing_requests": settings.target_ongoing,
        }
        size = {"autoscaling_config": follow}
    return {
        **size,
        "name": "GuardReplica",
        "max_ongoing_requests": places,
        "max_queued_requests": places,
        "backpressure_config": {"status_code": 429, "retry_after_s": 1},
        "ray_actor_options": {"num_cpus": settings.cpus, "num_gpus": settings.gpus},
        "health_check_period_s": settings.health_s,
        "health_check_timeout_s": max(10.0, settings.health_s),
        "graceful_shutdown_timeout_s": plan.server.drain_s + 5,
        "graceful_shutdown_wait_loop_s": 0.2,
        "max_constructor_retry_count": 3,
    }
