"""Guards on the tiny llava whose actions are forced, and apps around them."""

from __future__ import annotations

import base64
import io
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import httpx
import numpy as np
import pytest

from guardrail.guard import Guard
from guardrail.policy import Policy, Thresholds
from guardrail.server import ServerSettings, create_app
from guardrail.server.middleware import ExchangeMiddleware
from guardrail.server.observing import Observation
from guardrail.server.service import Lifecycle
from guardrail.testing import FakeGuard, tiny_artefact
from guardrail.types import Action, Modality

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

FAR = 1e9
FORCED = {
    Action.PASS: Thresholds(steer=FAR, flag=FAR),
    Action.STEER: Thresholds(steer=-FAR, flag=FAR),
    Action.FLAG: Thresholds(steer=-FAR, flag=-FAR),
}


@pytest.fixture
def guard_of(llava) -> Iterator[Callable[..., Guard]]:
    """`guard_of(Action.FLAG, on_flag="raise")`: a real guard that takes this action always."""
    made: list[Guard] = []
    artefact = tiny_artefact(llava.model, llava.processor)

    def make(action: Action = Action.PASS, *, audit: Any = None, **policy: Any) -> Guard:
        rules = Policy(thresholds=dict.fromkeys(Modality, FORCED[action]), **policy)
        guard = Guard((llava.model, llava.processor), artefact, policy=rules, audit=audit)
        made.append(guard)
        return guard

    yield make
    for guard in made:
        guard.close()


@pytest.fixture
def client_of() -> Callable[..., httpx.AsyncClient]:
    """An HTTP client that calls an app directly, without a socket."""

    def make(guard: Guard, settings: ServerSettings | None = None, **options: Any):
        transport = httpx.ASGITransport(create_app(guard, settings, **options))
        return httpx.AsyncClient(transport=transport, base_url="http://server")

    return make


@pytest.fixture
def around() -> Callable[..., ExchangeMiddleware]:
    """`around(app, timeout_s=1)`: the server's middleware around any app, without a guard."""

    def make(app: Any, observation: Observation | None = None, **options: Any):
        settings = ServerSettings(**options)
        service: Any = SimpleNamespace(
            settings=settings,
            keys=settings.keys,
            lifecycle=Lifecycle(drain_s=0),
            observation=observation or Observation(),
        )
        return ExchangeMiddleware(app, service=service)

    return make


@pytest.fixture
def broken_detector(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every detector fails from now on, with words that no client may hear."""

    def fail(*_args: Any, **_options: Any) -> Any:
        raise RuntimeError("broken inside")

    monkeypatch.setattr("guardrail.decide.detector.Detector.decide", fail)


@pytest.fixture
def picture_url(picture: Callable[..., Any]) -> str:
    """A small picture as a data URL."""
    file = io.BytesIO()
    picture(width=30, height=20).save(file, "PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


@pytest.fixture(scope="session")
def mp4() -> bytes:
    """A video of one second, of which two frames are judged."""
    av = pytest.importorskip("av")
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as out:
        stream = out.add_stream("mpeg4", rate=8)
        stream.width, stream.height, stream.pix_fmt = 32, 32, "yuv420p"
        for _ in range(8):
            frame = av.VideoFrame.from_ndarray(np.zeros((32, 32, 3), np.uint8), format="rgb24")
            out.mux(stream.encode(frame))
        out.mux(stream.encode())
    return file.getvalue()


@pytest.fixture
def bare_violation(monkeypatch: pytest.MonkeyPatch) -> BaseException:
    """A violation that no `except Exception` sees, wherever the server asks for one."""

    class Base(BaseException):
        pass

    class Bare(Base):
        verdict = FakeGuard().check("hello")

    for module in ("asgi.problems", "server.errors", "server.routes", "server.generating"):
        monkeypatch.setattr(f"guardrail.{module}.GuardrailViolation", Bare)
    monkeypatch.setattr("guardrail.server.middleware.GuardrailError", Base)
    return Bare("SECRET")
