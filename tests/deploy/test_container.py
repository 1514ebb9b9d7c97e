"""The steps of the Dockerfile, run without docker; then the container's promises, one by one.

What is honest to say: the wheel is built and installed into a fresh environment as written, but
its dependencies are those of the environment that runs the tests, and the system is this one, not
`python:slim`. `make test-container` does the whole with docker.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import tempfile
import time
import urllib.error
import urllib.request
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from guardrail.testing import tiny_artefact, tiny_model

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).resolve().parents[2]
KEY = "a-key-for-this-test"
NOBODY = 10001
pytestmark = pytest.mark.slow


class Container:
    """What `docker run` has: the image's folder, its environment, user and command."""

    def __init__(self, dockerfile: Any, folder: Path) -> None:
        text = (ROOT / "examples/deploy/Dockerfile").read_text("utf-8")
        self.stages = dockerfile.needed(dockerfile.read(text, {}))
        self.build = dockerfile.Build(folder / "image", ROOT, environment(folder))
        self.build.run(self.stages)
        self.root, self.facts = self.build.root, self.stages[-1].facts
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.command = self.words(dockerfile, "ENTRYPOINT") + self.words(dockerfile, "CMD")
        self.health = self.words(dockerfile, "HEALTHCHECK")

    def words(self, dockerfile: Any, fact: str) -> list[str]:
        moved = [self.build.moved(word) for word in dockerfile.exec_form(self.facts[fact])]
        return [word.replace("8000", str(self.port)) for word in moved]

    def start(self, command: list[str], **options: Any) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [*as_nobody(), *command],
            cwd=self.root / "data",
            env=self.build.environment | {"TMPDIR": str(self.root / "tmp")},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            **options,
        )

    def run(self, command: list[str]) -> tuple[int, str]:
        with self.start(command) as process:
            said, _ = process.communicate(timeout=60)
        return process.returncode, said

    def files(self) -> dict[str, tuple[int, int]]:
        """Everything outside /data and /tmp, with its size and time."""
        found = {}
        for folder, folders, names in os.walk(self.root):
            if Path(folder) == self.root:
                folders[:] = [name for name in folders if name not in ("data", "tmp")]
            for name in (*names, *folders):
                state = (Path(folder) / name).lstat()
                found[f"{folder}/{name}"] = (state.st_size, state.st_mtime_ns)
        return found


def environment(folder: Path) -> dict[str, str]:
    """Of each stage: a Python with pip, and this environment's packages but for the guard's."""
    installed, linked = Path(sysconfig.get_path("purelib")), folder / "installed"
    linked.mkdir()
    for path in installed.iterdir():
        if not path.name.startswith(("guardrail", "_editable", "__pycache__")):
            (linked / path.name).symlink_to(path)
    subprocess.run([sys.executable, "-m", "venv", folder / "python"], check=True)
    return {
        "PATH": f"{folder}/python/bin:/usr/bin:/bin",
        "PYTHONPATH": str(linked),
        "PIP_NO_INDEX": "1",  # what the wheel asks for must be there already, in its versions
        "PIP_NO_BUILD_ISOLATION": "0",  # pip's way to say yes
        "PIP_DISABLE_PIP_VERSION_CHECK": "1",
        "OMP_NUM_THREADS": "1",
    }


def as_nobody() -> list[str]:
    """Words before a command by which it runs as the image's user."""
    if os.geteuid():
        return []  # an ordinary user already
    read = "+dac_read_search"  # this Python may lie where only root can look
    return [
        *("setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"),
        *("--bounding-set", f"-all,{read}", f"--inh-caps=-all,{read}", f"--ambient-caps={read}"),
        "--no-new-privs",
    ]


@pytest.fixture(scope="module")
def container(dockerfile: Any) -> Iterator[Container]:
    if not os.geteuid() and shutil.which("setpriv") is None:
        pytest.skip("as root, setpriv (of util-linux) is needed to become another user")
    with tempfile.TemporaryDirectory(prefix="container") as name:
        Path(name).chmod(0o755)  # pytest's own folders let no other user in
        made = Container(dockerfile, Path(name))
        mount(made)
        subprocess.run(["chmod", "-R", "a-w", made.root], check=True)
        for place in ("data", "tmp"):
            (made.root / place).chmod(0o1777)
        yield made
        subprocess.run(["chmod", "-R", "u+w", made.root], check=True)


def mount(made: Container) -> None:
    """A model, its artefact and the keys, where the compose file puts them."""
    model, processor = tiny_model()
    model.save_pretrained(made.root / "models/model")
    processor.save_pretrained(made.root / "models/model")
    tiny_artefact(model, processor).save(made.root / "models/model.guard.safetensors")
    secrets = made.root / "run/secrets"
    secrets.mkdir(parents=True)
    (secrets / "api_keys").write_text(f"app:{KEY}\n")
    for path in (made.root / "models").rglob("*"):
        path.chmod(0o755 if path.is_dir() else 0o444)
    os.chown(secrets / "api_keys", -1 if os.geteuid() else NOBODY, -1)
    (secrets / "api_keys").chmod(0o400)


@contextmanager
def running(container: Container) -> Iterator[subprocess.Popen[str]]:
    with container.start(container.command) as process:
        try:
            for _ in range(200):
                if process.poll() is not None or not container.run(container.health)[0]:
                    break
                time.sleep(0.5)
            yield process
        finally:
            process.kill()


def ask(container: Container, key: str | None) -> tuple[int, Any]:
    body = {"model": "guarded", "max_tokens": 4, "messages": [{"role": "user", "content": "hi"}]}
    request = urllib.request.Request(
        f"http://127.0.0.1:{container.port}/v1/chat/completions",
        json.dumps(body).encode(),
        {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {key}"} if key else {}),
    )
    try:
        with urllib.request.urlopen(request, timeout=60) as response:
            return response.status, json.load(response)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.load(error)


def test_the_image_serves_as_nobody_writes_nowhere_and_ends_when_told(
    container: Container,
) -> None:
    before = container.files()
    with running(container) as process:
        assert process.poll() is None, process.communicate()[0]
        assert container.run(container.health)[0] == 0
        assert ask(container, None)[0] == 401
        status, answer = ask(container, KEY)
        assert (status, answer["choices"][0]["finish_reason"] != "") == (200, True)
        assert answer["guardrail"]["action"] in ("pass", "steer", "flag")
        if not os.geteuid():
            owner = Path(f"/proc/{process.pid}").stat()
            assert (owner.st_uid, owner.st_gid) == (NOBODY, NOBODY)
        process.send_signal(getattr(signal, container.facts["STOPSIGNAL"]))
        said, _ = process.communicate(timeout=40)
        assert process.returncode == 0, said
    assert KEY not in said
    (audit,) = (container.root / "data").glob("*.jsonl")
    assert json.loads(audit.read_text("utf-8").splitlines()[-1])["request_id"]
    assert container.run(container.health)[0] != 0  # nobody is there any more
    assert container.files() == before


def test_the_wheel_brings_the_pages_and_metrics(container: Container) -> None:
    with running(container) as process:
        for path in ("/", "/metrics", "/v1/models"):
            request = urllib.request.Request(
                f"http://127.0.0.1:{container.port}{path}",
                headers={"Authorization": f"Bearer {KEY}"},
            )
            with urllib.request.urlopen(request, timeout=60) as response:
                assert response.status == 200
                assert response.read()
        assert process.poll() is None


def test_the_package_is_the_wheels_own_and_not_this_folders(container: Container) -> None:
    python = str(container.root / "opt/guardrail/bin/python")
    status, said = container.run([python, "-c", "import guardrail; print(guardrail.__file__)"])
    assert status == 0, said
    assert said.startswith(str(container.root / "opt/guardrail/lib"))


def test_without_keys_the_image_refuses_to_serve_everybody(container: Container) -> None:
    at = container.command.index("--api-keys")
    status, said = container.run(container.command[:at] + container.command[at + 2 :])
    assert status == 2
    assert "key" in said
