"""Replicas on a Ray of their own, started, updated, broken and ended as operators do."""

from __future__ import annotations

import base64
import io
import json
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc
import httpx
import openai
import psutil
import pytest

from guardrail.guard import Guard
from guardrail.testing import tiny_artefact, tiny_model
from tests.waiting import until

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.ray

PROMPTS = [f"What is the number {number} good for?" for number in range(12)]
FAR = {"tau_steer": 1e8, "tau_flag": 1e9}
START_S = 120.0
PAUSE_S = 0.03  # between a client's requests: processors are left for the programs beside it
APPLY = """
import os
import sys
os.environ["RAY_AUTH_MODE"] = "token"
from guardrail.cluster import deploy, local
from guardrail.cluster.settings import UserConfig

with local.linked(sys.argv[-1]):
    config = deploy._application("guardrail")["deployed_app_config"]
    told = {"name": "GuardReplica", "user_config": UserConfig.of(sys.argv[1]).model_dump()}
    deploy._apply({**config, "deployments": [told]})
"""
UNARY = "/ray.serve.ASGIService/HandleRequest"


@dataclass
class Cluster:
    """The program, its folder, and the score of each prompt by artefact id."""

    folder: Path
    port: int
    env: dict[str, str]
    scores: dict[str, list[float]] = field(default_factory=dict)
    ids: dict[str, str] = field(default_factory=dict)
    program: Any = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def command(self, *words: str) -> subprocess.CompletedProcess[str]:
        return self.run("-m", "guardrail", "cluster", *words, "--address")

    def run(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Python with these words and the cluster's address."""
        log = (self.folder / "log").read_text()
        found = re.search(r"the Ray cluster is at ([^;]+);", log)
        assert found is not None, log
        line = [
            "timeout",
            "-s",
            "ABRT",
            "60",
            sys.executable,
            "-X",
            "faulthandler",
            *words,
            found[1],
        ]
        return subprocess.run(line, env=self.env, capture_output=True, text=True, timeout=90)

    def status(self) -> dict[str, Any]:
        told = self.command("status", "--json")
        assert told.returncode == 0, told.stderr
        return json.loads(told.stdout)

    def update(self, name: str) -> subprocess.CompletedProcess[str]:
        return self.command("update", "-a", str(self.folder / f"{name}.safetensors"), "--json")

    def processes(self, name: str) -> list[psutil.Process]:
        """Ray's processes whose title holds a name, oldest first."""
        found = psutil.Process(self.program.pid).children(recursive=True)
        titled = [(process.create_time(), process) for process in found if _is(process, name)]
        return [process for _, process in sorted(titled, key=lambda pair: pair[0])]

    def wait(self, *, within_s: float = START_S) -> None:
        """Until both replicas answer."""
        end = time.monotonic() + within_s
        while time.monotonic() < end:
            if self.program.poll() is not None:
                break
            if self._ready():
                return
            time.sleep(0.2)
        pytest.fail(f"not ready: {(self.folder / 'log').read_text()}")

    def _ready(self) -> bool:
        try:
            told = httpx.get(f"{self.url}/metrics", timeout=5)
        except httpx.TransportError:
            return False
        lines = re.findall(r"^guardrail_queue_places\{.*replica=", told.text, re.MULTILINE)
        return told.status_code == 200 and len(lines) == 2


def _is(process: psutil.Process, name: str) -> bool:
    try:
        return any(name in part for part in process.cmdline())
    except psutil.Error:
        return False


def free_port() -> int:
    with socket.socket() as opened:
        opened.bind(("127.0.0.1", 0))
        return int(opened.getsockname()[1])


def prepare(folder: Path) -> tuple[dict[str, list[float]], dict[str, str]]:
    """A tiny model, three artefacts of it, one of another model; scores and ids by name."""
    model, processor = tiny_model()
    model.save_pretrained(folder / "model")
    processor.save_pretrained(folder / "model")
    scores, ids = {}, {}
    for name, seed in (("a", 0), ("b", 1)):
        artefact = tiny_artefact(model, processor, seed=seed, **FAR)
        artefact.save(folder / f"{name}.safetensors")
        with Guard((model, processor), artefact) as guard:
            scores[artefact.artefact_id] = [v.score or 0 for v in guard.check_batch(PROMPTS)]
        ids[name] = artefact.artefact_id
    tiny_artefact(*tiny_model(seed=7), **FAR).save(folder / "foreign.safetensors")
    return scores, ids


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    folder = Path(tempfile.mkdtemp(prefix="gr", dir="/tmp"))  # sockets have short names
    env = os.environ | {
        "RAY_TMPDIR": str(folder),
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "OMP_NUM_THREADS": "1",
    }
    made = Cluster(folder, free_port(), env)
    made.scores, made.ids = prepare(folder)
    words = ["start", str(folder / "model"), "-a", str(folder / "a.safetensors")]
    words += ["--replicas", "2", "--cpus", "0.5", "--port", str(made.port)]
    with (folder / "log").open("w") as log:
        made.program = subprocess.Popen(
            [sys.executable, "-m", "guardrail", "cluster", *words],
            env=env,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
        try:
            made.wait()
            yield made
        finally:
            made.program.send_signal(signal.SIGTERM)
            try:
                made.program.wait(60)
            except subprocess.TimeoutExpired:
                os.killpg(made.program.pid, signal.SIGKILL)
                made.program.wait(10)
            shutil.rmtree(folder, ignore_errors=True)


@dataclass
class Asked:
    """One request and what came of it; times are those of the client."""

    prompt: int
    sent: float
    streams: bool
    told: float | None = None  # when the answer's head was here
    status: int | None = None
    artefact: str | None = None
    score: float | None = None
    complete: bool = False
    cut: bool = False
    text: str = ""


def ask(client: httpx.Client, url: str, prompt: int, *, streams: bool) -> Asked:
    asked = Asked(prompt, time.monotonic(), streams)
    message = {"role": "user", "content": PROMPTS[prompt]}
    body = {"model": "guarded", "messages": [message], "max_tokens": 6, "stream": streams}
    try:
        with client.stream("POST", f"{url}/v1/chat/completions", json=body) as answer:
            asked.told, asked.status = time.monotonic(), answer.status_code
            asked.artefact = answer.headers.get("x-guardrail-artefact")
            asked.score = float(answer.headers.get("x-guardrail-score", "nan"))
            for piece in answer.iter_text():
                asked.text += piece
            asked.complete = "data: [DONE]" in asked.text or not streams
    except httpx.TransportError:
        asked.cut = True
    return asked


@contextmanager
def load(cluster: Cluster, clients: int = 4) -> Iterator[list[Asked]]:
    """Clients that ask one request after the other for the block; half of them stream."""
    asked: list[Asked] = []
    over = threading.Event()

    def go(number: int) -> None:
        with httpx.Client(timeout=30) as client:
            turn = number
            while not over.wait(PAUSE_S):
                prompt, turn = turn % len(PROMPTS), turn + 1
                asked.append(ask(client, cluster.url, prompt, streams=number % 2 == 0))

    threads = [threading.Thread(target=go, args=(number,)) for number in range(clients)]
    for thread in threads:
        thread.start()
    try:
        yield asked
    finally:
        over.set()
        for thread in threads:
            thread.join(60)


def is_right(cluster: Cluster, asked: Asked) -> bool:
    """Whether it was answered in full, with the score that this prompt has."""
    if asked.status != 200 or not asked.complete or asked.artefact is None:
        return False
    expected = cluster.scores[asked.artefact][asked.prompt]
    return asked.score is not None and abs(asked.score - expected) < 1e-3


def is_told_error(asked: Asked) -> bool:
    """Whether the client knows that there is no whole answer, and saw no text without verdict."""
    if asked.cut and asked.status != 200:
        return True
    if asked.status == 200:
        return asked.artefact is not None and (not asked.complete or not asked.streams)
    return set(json.loads(asked.text)["error"]) == {"message", "type", "param", "code"}


def test_the_official_client_gets_answers_streams_and_pictures(cluster, picture):
    stored = io.BytesIO()
    picture().save(stored, "PNG")
    shown = "data:image/png;base64," + base64.b64encode(stored.getvalue()).decode()
    parts = [
        {"type": "text", "text": "What is this?"},
        {"type": "image_url", "image_url": {"url": shown}},
    ]
    with openai.OpenAI(base_url=f"{cluster.url}/v1", api_key="none") as client:
        asked: dict[str, Any] = {"model": "guarded", "max_tokens": 4}
        asked["messages"] = [{"role": "user", "content": parts}]
        answer = client.chat.completions.with_raw_response.create(**asked)
        assert answer.headers["x-guardrail-modality"] == "image"
        assert answer.headers["x-guardrail-artefact"] == cluster.ids["a"]
        assert answer.parse().choices[0].message.content
        chunks = list(client.chat.completions.create(**asked, stream=True))
    assert chunks[0].model_extra["guardrail"]["artefact_id"] == cluster.ids["a"]


def test_nothing_listens_beyond_this_machine_without_asking_for_a_token(cluster):
    open_to_all = []
    found = psutil.Process(cluster.program.pid).children(recursive=True)
    for process in [psutil.Process(cluster.program.pid), *found]:
        for connection in process.net_connections("inet"):
            local = connection.laddr.ip.removeprefix("::ffff:") in ("127.0.0.1", "::1")
            if connection.status == psutil.CONN_LISTEN and not local:
                open_to_all.append((process, connection.laddr.port))
    # Ray lets no setting bind the port by which replicas could call each other.
    assert all(_is(process, "ServeReplica") for process, _ in open_to_all)
    for _, port in open_to_all:
        with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
            with pytest.raises(grpc.RpcError) as refused:
                channel.unary_unary(UNARY)(b"", timeout=10)
            assert refused.value.code() == grpc.StatusCode.UNAUTHENTICATED


def test_a_large_body_and_a_wrong_path_are_told_in_the_usual_form(cluster):
    with httpx.Client() as client:
        large = client.post(f"{cluster.url}/v1/checks", content=b" " * 33_000_000)
        wrong = client.get(f"{cluster.url}/nothing")
    assert (large.status_code, wrong.status_code) == (413, 404)
    assert large.json()["error"]["code"] == "too_large"
    assert wrong.json()["error"]["code"] == "not_found"


@pytest.mark.slow
def test_a_public_address_without_keys_is_refused(cluster):
    model, artefact = str(cluster.folder / "model"), str(cluster.folder / "a.safetensors")
    told = cluster.command("start", model, "-a", artefact, "--host", "0.0.0.0")
    assert told.returncode == 2
    assert "no API keys" in told.stderr


def test_an_update_under_load_loses_and_mixes_nothing(cluster):
    before = {process.pid for process in cluster.processes("ServeReplica")}
    with load(cluster) as asked:
        until(lambda: len(asked) > 8)
        told = cluster.update("b")
        so_far, ended = len(asked), time.monotonic()
        until(lambda: len(asked) > so_far + 8)

    assert told.returncode == 0, told.stderr
    assert json.loads(told.stdout)["artefact_id"] == cluster.ids["b"]
    assert [one for one in asked if not is_right(cluster, one)] == []
    assert {one.artefact for one in asked} == set(cluster.ids.values())
    for one in asked[so_far:]:
        assert one.sent < ended or one.artefact == cluster.ids["b"]
    assert {process.pid for process in cluster.processes("ServeReplica")} == before


@pytest.mark.slow
def test_an_artefact_that_does_not_fit_is_refused_everywhere(cluster):
    told = cluster.update("foreign")
    assert told.returncode == 2
    assert "stay with" in told.stderr
    assert "fitted on another model" in told.stderr
    with httpx.Client(timeout=30) as client:
        for prompt in range(4):
            answer = ask(client, cluster.url, prompt, streams=False)
            assert is_right(cluster, answer)
            assert answer.artefact == cluster.ids["b"]


@pytest.mark.slow
def test_a_replica_killed_under_load_leaves_no_answer_unguarded(cluster):
    before = {process.pid for process in cluster.processes("ServeReplica")}
    with load(cluster) as asked:
        until(lambda: len(asked) > 8)
        victim = cluster.processes("ServeReplica")[0]
        victim.kill()
        until(lambda: len({p.pid for p in cluster.processes("ServeReplica")} - before) > 0)
        so_far = len(asked)
        until(lambda: len(asked) > so_far + 8)

    wrong = [one for one in asked if not (is_right(cluster, one) or is_told_error(one))]
    assert wrong == []
    assert len([one for one in asked if is_right(cluster, one)]) > 8
    cluster.wait()
    with httpx.Client(timeout=30) as client:
        answers = [ask(client, cluster.url, i, streams=False) for i in range(len(PROMPTS))]
    assert all(is_right(cluster, answer) for answer in answers)
    assert {answer.artefact for answer in answers} == {cluster.ids["b"]}  # not the configured one


@pytest.mark.slow
def test_a_replica_that_cannot_use_what_it_is_told_late_keeps_out_and_is_reported(cluster):
    """As if a file had gone bad on one machine after all replicas had said that they could."""
    before = cluster.status()["artefact_id"]
    told = cluster.run("-c", APPLY, str(cluster.folder / "foreign.safetensors"))
    assert told.returncode == 0, told.stderr
    until(lambda: cluster.status()["status"] == "DEPLOY_FAILED", seconds=START_S)

    told = cluster.status()
    assert "fitted on another model" in told["message"]
    assert list(told["replicas"].values()) == [before]
    with httpx.Client(timeout=30) as client:
        answers = [ask(client, cluster.url, i, streams=False) for i in range(len(PROMPTS))]
    assert all(is_right(cluster, answer) for answer in answers)
    assert {answer.artefact for answer in answers} == {before}

    other = "a" if before == cluster.ids["b"] else "b"
    assert cluster.update(other).returncode == 0  # brings the lost one back, too
    assert list(cluster.status()["replicas"].values()) == [cluster.ids[other]] * 2


def test_sigterm_under_load_ends_answers_and_then_the_program(cluster):
    with load(cluster) as asked:
        until(lambda: len(asked) > 8)
        cluster.program.send_signal(signal.SIGTERM)
        assert cluster.program.wait(60) == 0, (cluster.folder / "log").read_text()

    assert [one for one in asked if not (is_right(cluster, one) or is_told_error(one))] == []
    cut = [one for one in asked if one.status == 200 and not one.complete]
    assert cut == []
