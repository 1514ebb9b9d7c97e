"""The compose file keeps its promises: confined, on loopback, and naming files that exist."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

SERVICES = ("guardrail", "prometheus", "grafana")


@pytest.fixture(scope="module")
def compose(deploy: Path) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((deploy / "compose.yaml").read_text("utf-8"))
    return found


@pytest.fixture(params=SERVICES)
def service(request: pytest.FixtureRequest, compose: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = compose["services"][request.param]
    return found


def test_nothing_else_is_started(compose: dict[str, Any]) -> None:
    assert sorted(compose["services"]) == sorted(SERVICES)


def test_every_service_is_confined(service: dict[str, Any]) -> None:
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert int(service["user"].partition(":")[0]) > 0
    assert "privileged" not in service
    assert service["pids_limit"] > 0
    assert set(service["deploy"]["resources"]["limits"]) == {"cpus", "memory"}


def test_every_service_is_watched_and_reached_from_this_machine_alone(
    service: dict[str, Any],
) -> None:
    assert service["healthcheck"]["test"][0] == "CMD"
    assert service["ports"]
    assert all(port.startswith("127.0.0.1:") for port in service["ports"])


def test_what_is_mounted_is_there_and_cannot_be_written(
    compose: dict[str, Any], service: dict[str, Any], deploy: Path
) -> None:
    assert len(set(service["volumes"])) == len(service["volumes"])  # compose refuses twins
    for volume in service["volumes"]:
        source, _, _target = re.sub(r"\$\{(\w+):\?[^}]*\}", r"$\1", volume).partition(":")
        if source.startswith("./"):
            assert (deploy / source).is_file(), source
        if source.startswith((".", "$", "/")):
            assert volume.endswith(":ro")
        else:
            assert source in compose["volumes"]


def test_images_are_pinned_and_secrets_are_files(
    compose: dict[str, Any], service: dict[str, Any]
) -> None:
    assert "build" in service or re.search(r":v?\d+\.\d+\.\d+$", service["image"])
    assert set(service["secrets"]) <= set(compose["secrets"])
    for name, value in service.get("environment", {}).items():
        hidden = re.search("password|token|key|secret", name, re.I)
        assert not hidden or value.startswith("/run/secrets/"), name


def test_the_build_finds_its_dockerfile(compose: dict[str, Any], deploy: Path) -> None:
    build = compose["services"]["guardrail"]["build"]
    context = (deploy / build["context"]).resolve()
    assert (context / build["dockerfile"]).samefile(deploy / "Dockerfile")
    assert (context / "pyproject.toml").is_file()


def test_the_build_sees_only_what_it_copies(dockerfile: Any, deploy: Path) -> None:
    shown = {
        line[1:]
        for line in (deploy / "Dockerfile.dockerignore").read_text("utf-8").splitlines()
        if line.startswith("!")
    }
    first = dockerfile.read((deploy / "Dockerfile").read_text("utf-8"), {})[0]
    copied = {name for word, rest in first.steps if word == "COPY" for name in rest.split()[:-1]}
    assert copied == shown


def test_the_health_check_is_the_images_own(
    dockerfile: Any, compose: dict[str, Any], deploy: Path
) -> None:
    facts = dockerfile.read((deploy / "Dockerfile").read_text("utf-8"), {})[-1].facts
    checked = compose["services"]["guardrail"]["healthcheck"]["test"]
    assert checked == ["CMD", *dockerfile.exec_form(facts["HEALTHCHECK"])]
    assert facts["USER"] == compose["services"]["guardrail"]["user"]
    (published,) = compose["services"]["guardrail"]["ports"]
    assert published.rpartition(":")[2] == facts["EXPOSE"]


def test_answers_under_way_have_time_to_end(compose: dict[str, Any]) -> None:
    from guardrail.server import ServerSettings

    grace = compose["services"]["guardrail"]["stop_grace_period"]
    assert int(grace.removesuffix("s")) > ServerSettings().drain_s + 5


def test_the_scraper_asks_the_server_with_its_token(compose: dict[str, Any], deploy: Path) -> None:
    scraped = yaml.safe_load((deploy / "prometheus.yml").read_text("utf-8"))
    jobs = {job["job_name"]: job for job in scraped["scrape_configs"]}
    job = next(job for name, job in jobs.items() if "guardrail" in name)
    targets = [target for group in job["static_configs"] for target in group["targets"]]
    assert targets == ["guardrail:8000"]
    (secret,) = compose["services"]["prometheus"]["secrets"]
    assert job["authorization"]["credentials_file"] == f"/run/secrets/{secret}"
    mounted = {v.split(":")[1] for v in compose["services"]["prometheus"]["volumes"]}
    assert set(scraped["rule_files"]) <= mounted


def test_grafana_finds_the_dashboard_and_its_data(compose: dict[str, Any], deploy: Path) -> None:
    mounted = [v.split(":")[1] for v in compose["services"]["grafana"]["volumes"]]
    provider = yaml.safe_load((deploy / "grafana/dashboards.yaml").read_text("utf-8"))
    folder = provider["providers"][0]["options"]["path"]
    assert any(Path(place).parent == Path(folder) for place in mounted)
    source = yaml.safe_load((deploy / "grafana/datasource.yaml").read_text("utf-8"))
    assert source["datasources"][0]["url"] == "http://prometheus:9090"
    assert json.loads((deploy / "grafana-dashboard.json").read_text("utf-8"))["panels"]
