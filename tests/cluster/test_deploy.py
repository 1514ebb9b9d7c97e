from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import yaml

from guardrail.errors import ArtefactError, ClusterError, ConfigurationError
from guardrail.guard import Guard
from guardrail.monitor import MonitorSnapshot
from guardrail.policy import Policy
from guardrail.testing import tiny_artefact

pytestmark = pytest.mark.filterwarnings("ignore")  # Ray's own; it is not started here
EXAMPLES = Path(__file__).parents[2] / "examples" / "deploy" / "ray"

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import guardrail.cluster.deploy as deploy
    from guardrail.cluster.local import connected
    from guardrail.cluster.settings import ClusterSettings, StartSettings, UserConfig, plan_of


@pytest.fixture
def args(tmp_path, llava) -> dict[str, Any]:
    """Settings as a configuration file has them."""
    tiny_artefact(llava.model, llava.processor).save(tmp_path / "a.safetensors")
    (tmp_path / "keys").write_text("team:0123456789abcdef0123\n")
    (tmp_path / "keys").chmod(0o600)
    return {
        "model": "model",
        "artefact": str(tmp_path / "a.safetensors"),
        "keys_file": str(tmp_path / "keys"),
    }


def options_of(application: Any) -> Any:
    return application._bound_deployment._deployment_config


def test_the_deployment_begins_with_what_the_artefact_is_now(args):
    config = options_of(deploy.build(args)).user_config
    assert config == UserConfig.of(args["artefact"]).model_dump()
    named = options_of(deploy.build({**args, "artefact_id": "guard-named"})).user_config
    assert named == {"artefact": args["artefact"], "artefact_id": "guard-named"}


def test_keys_come_from_the_file_and_the_environment_and_are_told_nowhere(args, monkeypatch):
    monkeypatch.setenv("GUARDRAIL_API_KEYS", "more:fedcba9876543210fedc")
    plan = plan_of(ClusterSettings.model_validate(args))
    assert [key.name for key in plan.server.keys] == ["team", "more"]
    assert "0123456789abcdef0123" not in repr(plan)


def test_keys_of_this_machines_environment_are_not_lost_on_a_cluster_elsewhere(args, monkeypatch):
    monkeypatch.setenv("GUARDRAIL_API_KEYS", "more:fedcba9876543210fedc")
    settings = StartSettings.model_validate({**args, "keys_file": None, "address": "10.0.0.1:6379"})
    with pytest.raises(ConfigurationError, match="does not reach"), connected(settings):
        pass


def test_keys_among_the_settings_are_refused(args):
    server = {"keys": [{"name": "team", "digest": "x" * 32}]}
    with pytest.raises(ConfigurationError, match="keys_file"):
        deploy.build({**args, "server": server})


def test_scores_are_for_nobody_behind_something_that_asks_for_keys(args):
    settings = {**args, "keys_file": None, "insecure_no_keys": True}
    assert plan_of(ClusterSettings.model_validate(settings)).server.expose_scores is False
    assert plan_of(ClusterSettings.model_validate(args)).server.expose_scores is None


def test_without_keys_a_server_on_loopback_knows_its_own_names_alone(args):
    alone = StartSettings.model_validate({**args, "keys_file": None})
    assert "localhost" in plan_of(alone).server.hostnames
    assert plan_of(StartSettings.model_validate(args)).server.hostnames == frozenset()


def test_a_policy_may_be_a_file_or_the_rules_themselves(args, tmp_path):
    (tmp_path / "policy.toml").write_text('mode = "shadow"\n')
    for policy in (str(tmp_path / "policy.toml"), {"mode": "shadow"}):
        settings = ClusterSettings.model_validate({**args, "policy": policy})
        assert plan_of(settings).policy.mode == "shadow"
    assert plan_of(ClusterSettings.model_validate(args)).policy == Policy()


def test_replicas_are_as_many_as_asked_for(args):
    fixed = options_of(deploy.build({**args, "replicas": 3}))
    assert (fixed.num_replicas, fixed.autoscaling_config) == (3, None)
    grows = options_of(deploy.build({**args, "replicas": 2, "max_replicas": 5})).autoscaling_config
    assert (grows.min_replicas, grows.max_replicas) == (2, 5)


def test_a_full_queue_is_told_as_429(args):
    options = options_of(deploy.build({**args, "server": {"max_concurrent": 7}}))
    assert (options.max_ongoing_requests, options.max_queued_requests) == (7, 7)
    assert options.backpressure_config.status_code == 429


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"replicas": 0}, "replicas: "),
        ({"replicas": 4, "max_replicas": 2}, "less than replicas"),
        ({"unknown": 1}, "unknown: "),
        ({"keys_file": None}, "insecure_no_keys"),
    ],
)
def test_settings_that_cannot_hold_are_refused(args, changed, told):
    with pytest.raises(ConfigurationError, match=told):
        deploy.build({**args, **changed})


def test_a_missing_artefact_is_told_before_anything_starts(args):
    with pytest.raises(ArtefactError, match="there is no artefact"):
        deploy.build({**args, "artefact": "/nothing.safetensors"})


def test_the_example_is_what_ray_and_we_understand(args):
    from ray.serve.schema import ServeDeploySchema

    text = yaml.safe_load((EXAMPLES / "serve.yaml").read_text())
    [application] = ServeDeploySchema.model_validate(text).applications
    assert application.import_path == "guardrail.cluster:build"
    options = options_of(deploy.build({**application.args, **args, "policy": None}))
    assert options.autoscaling_config.max_replicas == 8
    settings = ClusterSettings.model_validate(application.args)
    assert text["http_options"]["request_timeout_s"] > settings.server.timeout_s


def test_the_launcher_file_starts_ray_as_the_program_does():
    from guardrail.cluster.edge import CALLBACK, LIMIT

    text = yaml.safe_load((EXAMPLES / "cluster.yaml").read_text())
    for commands in ("head_start_ray_commands", "worker_start_ray_commands"):
        started = text[commands][-1]
        assert f"RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH={CALLBACK}" in started
        assert LIMIT in started
        assert "RAY_AUTH_MODE=token" in started
        assert "RAY_USAGE_STATS_ENABLED=0" in started


FAILED = """It failed to start 3 times. Error:
ray::x() (pid=1)
  File "a.py", line 1, in f
RuntimeError: Traceback (most recent call last):
  File "b.py", line 2, in g
    raise Why("it failed")
    ^^^^^
Why: it failed
in detail
"""


class Serve:
    """Serve's controller, and the replicas of one application; `says` is what each answers."""

    def __init__(self, *, status: str = "RUNNING", says: list[Any]) -> None:
        self.status, self.says, self.then = status, says, "RUNNING"
        self.applied: list[Any] = []
        self.overtaken = False
        self.config = {"name": "guardrail", "import_path": "guardrail.cluster:build", "args": {}}

    def get_serve_details(self) -> dict[str, Any]:
        config = {"artefact": "old", "artefact_id": "guard-old"}
        if self.applied and not self.overtaken:
            [config] = [o.user_config for one in self.applied for o in one.deployments]
        deployment = {"deployment_config": {"user_config": config}, "message": FAILED}
        app = {
            "status": self.status,
            "message": "",
            "deployments": {"GuardReplica": deployment},
            "deployed_app_config": self.config,
        }
        other = {"name": "other", "route_prefix": "/other", "import_path": "other:app"}
        return {
            "applications": {"guardrail": app, "other": {"deployed_app_config": other}},
            "target_capacity": None,
        }

    def deploy_apps(self, schema: Any) -> None:
        self.applied, self.status = schema.applications, self.then

    def broadcast(self, method: str, *values: Any) -> Serve:
        self.asked = (method, *values)
        return self

    def results(self, **_options: Any) -> list[Any]:
        return self.says


@pytest.fixture
def cluster(monkeypatch) -> Any:
    def make(**options: Any) -> Serve:
        made = Serve(**options)
        monkeypatch.setattr(deploy, "_get_global_client", lambda: made)
        monkeypatch.setattr(deploy.serve, "get_app_handle", lambda _name: made)
        return made

    return make


def test_an_update_changes_the_user_config_and_nothing_else(args, cluster):
    ray = cluster(says=[None, None])
    wanted = deploy.update(args["artefact"])
    assert wanted == UserConfig.of(args["artefact"])
    assert ray.asked == ("trouble_with", wanted.model_dump())
    other, ours = sorted(ray.applied, key=lambda one: one.name != "other")
    assert (other.name, other.import_path) == ("other", "other:app")
    assert ours.import_path == "guardrail.cluster:build"
    [options] = ours.deployments
    assert options.model_dump(exclude_unset=True) == {
        "name": "GuardReplica",
        "user_config": wanted.model_dump(),
    }


def test_where_one_replica_could_not_nothing_changes(args, cluster):
    ray = cluster(says=[None, "b: ArtefactMismatchError: of another model"])
    with pytest.raises(ClusterError, match=r"stay with guard-old: b: .*of another model"):
        deploy.update(args["artefact"])
    assert ray.applied == []


def test_an_update_that_fails_late_is_told_with_its_reason(args, cluster):
    ray = cluster(says=[None])
    ray.then = "DEPLOY_FAILED"
    with pytest.raises(
        ClusterError, match=r"not all .*DEPLOY_FAILED\): Why: it failed\nin detail$"
    ):
        deploy.update(args["artefact"])


def test_an_update_that_another_one_overtook_is_told(args, cluster):
    cluster(says=[None]).overtaken = True
    with pytest.raises(ClusterError, match="another update"):
        deploy.update(args["artefact"])


def test_an_update_that_takes_too_long_is_told(args, cluster):
    ray = cluster(says=[None])
    ray.then = "DEPLOYING"
    with pytest.raises(ClusterError, match="not all replicas answer under"):
        deploy.update(args["artefact"], within_s=0.0)


def test_a_deployment_that_is_not_there_is_told(args, cluster):
    cluster(says=[])
    for ask in (deploy.status, lambda name: deploy.update(args["artefact"], name=name)):
        with pytest.raises(ClusterError, match="cluster start"):
            ask("nobody")


def test_the_status_has_the_counts_of_those_that_answer_under_what_was_asked_for(cluster, llava):
    model = (llava.model, llava.processor)
    with Guard(model, tiny_artefact(*model)) as guard:
        guard.check("Hello")
        counts = guard.monitor.snapshot().to_dict() | {"artefact_id": "guard-old"}
    said = [
        {"replica": "a", "artefact_id": "guard-old", "monitor": counts},
        {"replica": "b", "artefact_id": "guard-older", "monitor": None},
        {"replica": "d", "artefact_id": "guard-old", "monitor": counts},
        TimeoutError("c did not answer"),
    ]
    cluster(says=said)
    told = deploy.status()
    assert told["replicas"] == {"a": "guard-old", "b": "guard-older", "d": "guard-old"}
    assert (told["status"], told["artefact_id"], told["source"]) == ("RUNNING", "guard-old", "old")
    assert MonitorSnapshot.model_validate(told["monitor"]).n == 2
