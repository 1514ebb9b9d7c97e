"""Real servers on this machine, for the clients that people use."""

from __future__ import annotations

import socket
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
import uvicorn

from guardrail.guard import Guard
from guardrail.policy import Policy, Thresholds
from guardrail.server import ServerSettings, create_app
from guardrail.server.keys import api_key
from guardrail.testing import tiny_artefact
from guardrail.types import Action, Modality
from tests.waiting import until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from fastapi import FastAPI

KEY = "a-key-for-tests-0123"
POISONED = "!!!" * 20
"""A tool's result that the tiny model's random weights score higher than any other text here."""

BETWEEN = 1.6
FAR = 1e9
FORCED = {
    Action.PASS: Thresholds(steer=FAR, flag=FAR),
    Action.STEER: Thresholds(steer=-FAR, flag=FAR),
    Action.FLAG: Thresholds(steer=-FAR, flag=-FAR),
}


class Server(NamedTuple):
    """A running server: where it is, and the guard whose model answers."""

    url: str
    guard: Guard

    @property
    def api(self) -> str:
        """As clients of the OpenAI API want it."""
        return f"{self.url}/v1"


@contextmanager
def listening(app: FastAPI) -> Iterator[str]:
    """The URL of an app that uvicorn serves in a thread."""
    config = uvicorn.Config(app, log_config=None, lifespan="on", timeout_graceful_shutdown=5)
    server = uvicorn.Server(config)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        until(lambda: server.started)
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join(20)


@pytest.fixture(scope="session")
def _base(llava: Any) -> Iterator[Guard]:
    artefact = tiny_artefact(llava.model, llava.processor)
    with Guard((llava.model, llava.processor), artefact) as guard:
        yield guard


@pytest.fixture(scope="module")
def server_of(_base: Guard) -> Iterator[Callable[..., Server]]:
    """`server_of(Action.FLAG, on_flag="raise")`: a server that takes this action always.

    `only={"image": ...}`: where there is nothing of these modalities, which have their thresholds.
    `server_of(above=1.6)` flags what scores more, and lets the rest pass.
    """
    running: dict[str, Any] = {}
    made: list[Any] = []

    def get(
        action: Action = Action.PASS,
        *,
        above: float | None = None,
        max_concurrent: int = 64,
        only: Mapping[str, Thresholds] | None = None,
        **policy: Any,
    ) -> Server:
        name = repr((action, above, max_concurrent, only, sorted(policy.items())))
        if name not in running:
            at = FORCED[action] if above is None else Thresholds(steer=above, flag=above)
            levels = dict.fromkeys(map(str, Modality), at) | dict(only or {})
            rules = Policy(thresholds=levels, **policy)
            guard = _base.with_policy(rules)
            settings = ServerSettings(
                keys=(api_key("tests", KEY),), max_concurrent=max_concurrent, default_tokens=4
            )
            there = listening(create_app(guard, settings))
            running[name] = Server(there.__enter__(), guard)
            made.append((there, guard))
        found: Server = running[name]
        return found

    yield get
    for at, guard in made:
        at.__exit__(None, None, None)
        guard.close()


@pytest.fixture
def careful(server_of: Callable[..., Server]) -> Server:
    """One that lets everything pass but what the poisoned result is in."""
    return server_of(above=BETWEEN, refusal_message="No.")


@pytest.fixture
def poisoned() -> str:
    return POISONED


@pytest.fixture
def server(server_of: Callable[..., Server]) -> Server:
    """One that lets everything pass."""
    return server_of()
