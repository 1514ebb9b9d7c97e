"""The image itself, where there is a docker to build and run it."""

from __future__ import annotations

import json
import shutil
import subprocess
import time
from pathlib import Path

import pytest

from guardrail.testing import tiny_artefact, tiny_model

ROOT = Path(__file__).resolve().parents[2]
CONFINED = ["--read-only", "--cap-drop", "ALL", "--security-opt", "no-new-privileges"]
pytestmark = [
    pytest.mark.network,  # the base image, and the packages
    pytest.mark.skipif(shutil.which("docker") is None, reason="docker is not installed"),
]


def docker(*words: str) -> str:
    done = subprocess.run(["docker", *words], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout.strip()


def test_the_image_becomes_healthy_and_ends_when_told(tmp_path: Path) -> None:
    docker("build", "-f", "examples/deploy/Dockerfile", "-t", "guardrail-vlm:test", ".")
    model, processor = tiny_model()
    model.save_pretrained(tmp_path / "models/model")
    processor.save_pretrained(tmp_path / "models/model")
    tiny_artefact(model, processor).save(tmp_path / "models/model.guard.safetensors")
    (tmp_path / "api_keys").write_text("app:a-key-for-this-test\n")
    for path in (tmp_path, *tmp_path.rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)
    mounts = [f"{tmp_path}/models:/models:ro", f"{tmp_path}/api_keys:/run/secrets/api_keys:ro"]
    mounted = [word for mount in mounts for word in ("-v", mount)]
    name = docker(
        *("run", "--detach", *CONFINED, "--tmpfs", "/tmp", "--tmpfs", "/data:mode=1777"),
        *(*mounted, "guardrail-vlm:test"),
    )
    try:
        for _ in range(120):
            state = json.loads(docker("inspect", "--format", "{{json .State}}", name))
            if state["Health"]["Status"] == "healthy" or not state["Running"]:
                break
            time.sleep(1)
        assert state["Health"]["Status"] == "healthy", docker("logs", name)
        docker("stop", "--time", "40", name)
        assert json.loads(docker("inspect", "--format", "{{json .State}}", name))["ExitCode"] == 0
    finally:
        docker("rm", "--force", name)
