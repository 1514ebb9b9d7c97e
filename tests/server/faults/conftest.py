"""Servers on a socket: in this process, and `guardrail serve` in its own."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from guardrail.server import create_app
from guardrail.server.listening import bound_socket
from guardrail.server.process import Server, config_of
from guardrail.server.settings import Listening
from guardrail.testing import tiny_artefact
from tests.waiting import auntil, until

HELLO = {"model": "guarded", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 2}


@pytest.fixture
def hello() -> dict[str, Any]:
    return dict(HELLO)


@pytest.fixture
def served():
    """`async with served(guard) as url`: a real server in this event loop."""

    @asynccontextmanager
    async def start(guard, settings=None, *, app=None, **listening):
        where = Listening(port=0, **listening)
        made = app or create_app(guard, settings)
        server = Server(config_of(made, where), made, None)
        with bound_socket(where) as listener:
            port = listener.getsockname()[1]
            task = asyncio.create_task(server.serve([listener]))
            await auntil(lambda: server.started or task.done())
            try:
                yield f"http://127.0.0.1:{port}"
            finally:
                server.should_exit = True
                await asyncio.wait_for(task, 20)

    return start


@pytest.fixture
def right_again(hello):
    """What a server answers to a known request, to be compared before and after a fault."""

    async def ask(url: str) -> tuple[int, str, str]:
        async with httpx.AsyncClient(timeout=30) as client:
            answer = await client.post(f"{url}/v1/chat/completions", json=hello)
        told = answer.json()
        text = told["choices"][0]["message"]["content"]
        return answer.status_code, answer.headers.get("x-guardrail-score", ""), text

    return ask


class Files:
    """A saved tiny model and two artefacts that fit it and score otherwise."""

    def __init__(self, folder: Path, model: Any, processor: Any) -> None:
        self.folder, self.model = folder, folder / "model"
        model.save_pretrained(self.model)
        processor.save_pretrained(self.model)
        self.first, self.second = folder / "first.safetensors", folder / "second.safetensors"
        for path, seed in ((self.first, 0), (self.second, 7)):
            tiny_artefact(model, processor, seed=seed, tau_steer=1e9, tau_flag=1e9).save(path)


@pytest.fixture(scope="session")
def files(llava, tmp_path_factory) -> Files:
    return Files(tmp_path_factory.mktemp("served"), llava.model, llava.processor)


class Zygote:
    """What forks the servers; see `zygote.py`."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("zygote.py"))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )

    def told(self, **order: Any) -> int:
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        return int(self._process.stdout.readline())

    def close(self) -> None:
        self._process.stdin.close()
        self._process.kill()
        self._process.wait(timeout=60)
        self._process.stdout.close()


class Running:
    """`guardrail serve` in a process of its own; `lines` are its log so far."""

    def __init__(self, zygote: Zygote, log: Path, args: list[str], before: str) -> None:
        self._zygote, self.log = zygote, log
        self.pid = zygote.told(args=args, log=str(log), before=before)
        self.code: int | None = None
        self.url = self.wait_for("serving")["address"]

    @property
    def lines(self) -> list[dict[str, Any]]:
        """The whole lines of its log that are JSON."""
        text = self.log.read_text() if self.log.exists() else ""
        whole = text.rpartition("\n")[0].splitlines()
        return [json.loads(line) for line in whole if line.startswith("{")]

    def wait_for(self, event: str, count: int = 1) -> dict[str, Any]:
        """The line of the log with this event, once there are `count` of them."""

        def found() -> dict[str, Any] | None:
            lines = [line for line in self.lines if line["event"] == event]
            return lines[count - 1] if len(lines) >= count else None

        try:
            return until(found)
        except AssertionError as error:
            raise AssertionError(f"no {event!r} in the log:\n" + self.log.read_text()) from error

    def signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def ended(self) -> int:
        """Its exit code, once it has ended."""
        if self.code is None:
            self.code = self._zygote.told(wait=self.pid)
        return self.code

    def close(self) -> None:
        if self.code is None:
            self.signal(signal.SIGTERM)
            self.signal(signal.SIGTERM)
            self.ended()


@pytest.fixture(scope="session")
def zygote():
    made = Zygote()
    yield made
    made.close()


@pytest.fixture
def start(zygote, files, tmp_path):
    """`start("--drain", "1", before="...")`: a server process, ended with the test."""
    made: list[Running] = []

    def starting(*options: str, before: str = "", artefact: Path | None = None) -> Running:
        fitted = str(artefact or files.first)
        args = [str(files.model), "--port", "0", "-a", fitted, *options]
        made.append(Running(zygote, tmp_path / f"log-{len(made)}", args, before))
        return made[-1]

    yield starting
    for running in made:
        running.close()
