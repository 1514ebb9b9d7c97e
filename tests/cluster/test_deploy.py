from __future__ import annotations

import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from guardrail.errors import ArtefactError, ClusterError, ConfigurationError
from guardrail.testing import tiny_artefact

pytestmark = [pytest.mark.ray, pytest.mark.filterwarnings("ignore")]  # Ray's own
EXAMPLES = Path(__file__).parents[2] / "examples" / "deploy" / "ray"

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import ray

    import guardrail.cluster.deploy as deploy
    from guardrail.cluster.settings import ClusterSettings


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


def test_the_plan_pins_what_the_artefact_is_now(args):
    plan = deploy.plan_of(ClusterSettings.model_validate(args))
    assert plan.pin.artefact_id == deploy.artefact_id_of(args["artefact"])
    assert plan.pin.source == args["artefact"]
    assert [key.name for key in plan.server.keys] == ["team"]
    assert "0123456789abcdef0123" not in repr(plan)


def test_scores_are_for_nobody_behind_something_that_asks_for_keys(args):
    settings = {**args, "keys_file": None, "insecure_no_keys": True}
    assert deploy.plan_of(ClusterSettings.model_validate(settings)).server.expose_scores is False
    assert deploy.plan_of(ClusterSettings.model_validate(args)).server.expose_scores is None


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
    longest = settings.server.timeout_s + settings.pause_s + settings.lease_s
    assert text["http_options"]["request_timeout_s"] > longest


def test_the_launcher_file_starts_ray_as_the_program_does():
    from guardrail.cluster.edge import CALLBACK, LIMIT

    text = yaml.safe_load((EXAMPLES / "cluster.yaml").read_text())
    for commands in ("head_start_ray_commands", "worker_start_ray_commands"):
        started = text[commands][-1]
        assert f"RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH={CALLBACK}" in started
        assert LIMIT in started
        assert "RAY_AUTH_MODE=token" in started
        assert "RAY_USAGE_STATS_ENABLED=0" in started


def test_one_that_stays_away_is_asked_for_as_long_as_was_said_and_no_less_than_none(monkeypatch):
    now, given = 0.0, []

    def look(_name, **_where):
        nonlocal now
        now += 0.17  # the last look takes longer than what is left
        return SimpleNamespace(status=SimpleNamespace(remote=lambda: None))

    def get(_asked, *, timeout):
        given.append(timeout)
        raise ray.exceptions.ActorUnavailableError("starting again", None)

    def sleep(seconds):
        nonlocal now
        now += seconds

    monkeypatch.setattr(deploy, "time", SimpleNamespace(monotonic=lambda: now, sleep=sleep))
    monkeypatch.setattr(ray, "get_actor", look)
    monkeypatch.setattr(ray, "get", get)
    with pytest.raises(ClusterError, match="starting again"):
        deploy._asked("guardrail", "status", wait_s=0.4)
    assert given == [pytest.approx(0.23), 0.0]
