"""Guards and apps for the middleware: a guard that flags words, and real ones on the tiny llava."""

from __future__ import annotations

import asyncio
import base64
from io import BytesIO
from typing import TYPE_CHECKING, Any

import httpx
import numpy as np
import pytest
from starlette.applications import Starlette
from starlette.responses import JSONResponse
from starlette.routing import Route

from guardrail.asgi import GuardrailASGIMiddleware
from guardrail.guard import Guard
from guardrail.inputs.messages import to_request
from guardrail.policy import Policy, Thresholds
from guardrail.testing import tiny_artefact
from guardrail.types import Action, Modality, TextPart, Verdict

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

METHODS = ["GET", "POST", "PUT", "DELETE", "OPTIONS"]
RULES = {"bad": Action.FLAG, "odd": Action.STEER}
FAR = 1e9
LIMIT = 30.0  # seconds that a single request may take in a test
FORCED = {
    Action.PASS: Thresholds(steer=FAR, flag=FAR),
    Action.STEER: Thresholds(steer=-FAR, flag=FAR),
    Action.FLAG: Thresholds(steer=-FAR, flag=-FAR),
}


class WordGuard:
    """Reads requests as a guard does; flags those with the word bad, steers those with odd."""

    def __init__(self, policy: Policy | None = None, *, supports_tools: bool = True) -> None:
        self.policy = policy or Policy()
        self.supports_tools = supports_tools
        self.requests: list[Any] = []
        self.children: list[WordGuard] = []
        self.closed = False
        self.trouble: BaseException | None = None
        self.waiting = asyncio.Event()
        self.cancelled = False
        self.slow = False

    def with_policy(self, policy: Policy) -> WordGuard:
        child = WordGuard(policy, supports_tools=self.supports_tools)
        child.requests, child.trouble, child.slow = self.requests, self.trouble, self.slow
        self.children.append(child)
        return child

    def close(self) -> None:
        self.closed = True

    async def acheck(self, value: Any, *, tools: Any = None) -> Verdict:
        if self.trouble is not None:
            raise self.trouble
        request = to_request(value, policy=self.policy, tools=tools)
        self.requests.append(request)
        if self.slow:
            self.waiting.set()
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                self.cancelled = True
                raise
        texts = [p.text for m in request.messages for p in m.parts if isinstance(p, TextPart)]
        said = " ".join(texts)
        would_be = next((act for word, act in RULES.items() if word in said), Action.PASS)
        enforces = self.policy.mode == "enforce"
        return self.verdict(would_be if enforces else Action.PASS, would_be)

    def verdict(self, action: Action, would_be: Action, **facts: Any) -> Verdict:
        values = {"score": 0.5, "tau_steer": 0.4, "tau_flag": 0.9, "layers": (1,)} | facts
        return Verdict(
            action=action,
            would_be=would_be,
            modality=Modality.TEXT,
            artefact_id="guard-test",
            mode=self.policy.mode,
            **values,
        )


class Echo:
    """A Starlette app whose routes tell what reached them."""

    def __init__(self, guard: Any, routes: Any = ("/chat",), **options: Any) -> None:
        self.bodies: list[bytes] = []
        self.headers: list[Any] = []
        self.verdicts: list[Any] = []
        paths = ["/chat", "/free", "/users/{name}/chat"]
        handlers = options.pop("exception_handlers", None)
        self.app = Starlette(
            routes=[Route(path, self.endpoint, methods=METHODS) for path in paths],
            exception_handlers=handlers,
        )
        self.app.add_middleware(GuardrailASGIMiddleware, guard=guard, routes=routes, **options)

    async def endpoint(self, request: Any) -> JSONResponse:
        self.bodies.append(await request.body())
        self.headers.append(request.headers)
        self.verdicts.append(getattr(request.state, "guardrail_verdict", "none"))
        return JSONResponse({"reached": True})

    def post(self, path: str = "/chat", **request: Any) -> httpx.Response:
        return asyncio.run(asked(self.app, "POST", path, **request))


async def asked(app: Any, method: str, path: str, **request: Any) -> httpx.Response:
    transport = httpx.ASGITransport(app=app)
    async with (
        asyncio.timeout(LIMIT),
        httpx.AsyncClient(transport=transport, base_url="http://test") as client,
    ):
        return await client.request(method, path, **request)


def in_time(work: Any) -> Any:
    """`asyncio.run` with an end: what hangs is a failure and not a test run that never ends."""

    async def limited() -> Any:
        async with asyncio.timeout(LIMIT):
            return await work

    return asyncio.run(limited())


def png(picture: Any) -> bytes:
    file = BytesIO()
    picture.save(file, "PNG")
    return file.getvalue()


def data_url(picture: Any) -> str:
    return "data:image/png;base64," + base64.b64encode(png(picture)).decode()


@pytest.fixture(scope="session")
def ask() -> Callable[..., httpx.Response]:
    """`ask(app, "POST", "/chat", json=...)`, in an event loop of its own."""
    return lambda *args, **request: asyncio.run(asked(*args, **request))


@pytest.fixture(scope="session")
def asking() -> Callable[..., Any]:
    """`await asking(app, "POST", "/chat", json=...)`."""
    return asked


@pytest.fixture(scope="session")
def run_in_time() -> Callable[[Any], Any]:
    """`run_in_time(coroutine)`, in an event loop of its own."""
    return in_time


@pytest.fixture(scope="session")
def png_of() -> Callable[[Any], bytes]:
    return png


@pytest.fixture(scope="session")
def data_url_of() -> Callable[[Any], str]:
    return data_url


@pytest.fixture(scope="session")
def word_guard() -> type[WordGuard]:
    return WordGuard


@pytest.fixture(scope="session")
def echo() -> type[Echo]:
    return Echo


@pytest.fixture
def guard_on(llava: Any) -> Iterator[Callable[..., Guard]]:
    """`guard_on(Action.FLAG, **policy)`: a real guard whose thresholds leave no choice."""
    guards: list[Guard] = []

    def make(action: Action | None = Action.PASS, **policy: Any) -> Guard:
        model = (llava.model, llava.processor)
        both = (Modality.TEXT, Modality.IMAGE)
        forced = {} if action is None else {"thresholds": dict.fromkeys(both, FORCED[action])}
        guards.append(Guard(model, tiny_artefact(*model), policy=Policy(**forced, **policy)))
        return guards[-1]

    yield make
    for guard in guards:
        guard.close()


@pytest.fixture(scope="session")
def mp4() -> bytes:
    """A video of one second, of which two frames are judged."""
    av = pytest.importorskip("av")
    buffer = BytesIO()
    with av.open(buffer, "w", format="mp4") as out:
        stream = out.add_stream("mpeg4", rate=8)
        stream.width, stream.height, stream.pix_fmt = 32, 32, "yuv420p"
        for _ in range(8):
            frame = av.VideoFrame.from_ndarray(np.zeros((32, 32, 3), np.uint8), format="rgb24")
            out.mux(stream.encode(frame))
        out.mux(stream.encode())
    return buffer.getvalue()
