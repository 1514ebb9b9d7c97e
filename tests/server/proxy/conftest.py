"""An upstream that does as it is told, byte by byte, and proxies before it."""

from __future__ import annotations

import asyncio
import json
import socket
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import httpx
import pytest
import uvicorn

from guardrail.errors import DetectorError
from guardrail.inputs.messages import to_request
from guardrail.policy import Policy
from guardrail.server import ServerSettings, create_app
from guardrail.server.proxy import UpstreamSettings, through
from guardrail.types import Action, TextPart, Verdict
from tests.waiting import auntil

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Mapping

    Script = Callable[["Seen"], Awaitable[None]]

RULES = {"bad": Action.FLAG, "odd": Action.STEER}
CHAT = {"model": "big", "messages": [{"role": "user", "content": "hello"}]}


class WordGuard:
    """Flags what has the word bad, would steer what has the word odd; "outage" fails."""

    supports_tools = True
    closed = False
    artefact = SimpleNamespace(artefact_id="guard-words")
    trouble = None
    load = SimpleNamespace(waiting=0, running=0, places=1, overdue_s=0.0)

    def __init__(self, policy: Policy | None = None) -> None:
        self.policy = policy or Policy()
        self.options: list[dict[str, Any]] = []
        self.made: list[WordGuard] = []
        self.judged: list[str] = []

    def with_policy(self, policy: Policy, **_: Any) -> WordGuard:
        other = WordGuard(policy)
        other.options, other.judged = self.options, self.judged
        self.made.append(other)
        return other

    def close(self) -> None:
        self.closed = True

    async def acheck(self, value: Any, *, tools: Any = None, **options: Any) -> Verdict:
        request = to_request(value, policy=self.policy, tools=tools)
        self.options.append(options)
        said = " ".join(
            [p.text for m in request.messages for p in m.parts if isinstance(p, TextPart)]
            + [str(call.arguments) for m in request.messages for call in m.tool_calls]
            + [str(tool) for tool in request.tools]
        )
        if "crash" in said:
            raise RuntimeError("boom")
        would_be = next((act for word, act in RULES.items() if word in said), Action.PASS)
        failed = "outage" in said
        if failed:
            would_be = Action.FLAG if self.policy.fail == "closed" else Action.PASS
        # a check cannot steer: what would be steered passes
        acts = self.policy.mode == "enforce" and would_be in self.policy.actions
        return Verdict(
            action=would_be if acts else Action.PASS,
            would_be=would_be,
            score=None if failed else 0.25,
            tau_steer=0.4,
            tau_flag=0.9,
            layers=(1,),
            modality=request.modality,
            artefact_id="guard-words",
            mode=self.policy.mode,
            reason="detector_failed" if failed else "score",
        )

    async def acheck_answer(self, value: Any, answer: str, **options: Any) -> Verdict:
        """Flags what has the word evil; what was judged is in `judged`."""
        self.judged.append(answer)
        if "collapse" in answer:
            raise DetectorError("no answer can be read")
        asked = await self.acheck(value, **options)
        flag = Action.FLAG if "evil" in answer else Action.PASS
        done = flag if self.policy.mode == "enforce" else Action.PASS
        return replace(asked, action=done, would_be=flag, reason="answer")


@dataclass
class Seen:
    """A request that reached the upstream, and the way back."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    async def send(self, *pieces: bytes) -> None:
        for piece in pieces:
            self.writer.write(piece)
            await self.writer.drain()

    async def head(self, status: int = 200, **headers: str) -> None:
        lines = [f"HTTP/1.1 {status} X"]
        lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
        await self.send("\r\n".join([*lines, "connection: close", "", ""]).encode())


@dataclass
class FakeUpstream:
    """Answers by `script`; what reached it is in `seen`."""

    url: str = ""
    seen: list[Seen] = field(default_factory=list)
    script: Script | None = None

    def says(self, data: object, status: int = 200, **headers: str) -> None:
        """Answer each request with JSON."""
        self.bytes(json.dumps(data).encode(), status=status, **headers)

    def bytes(self, *pieces: bytes, status: int = 200, **headers: str) -> None:
        """Answer each request with these pieces of a body, and its whole length."""
        told = {"content_type": "application/json", **headers}

        async def script(seen: Seen) -> None:
            await seen.head(status, content_length=str(sum(map(len, pieces))), **told)
            for piece in pieces:
                await seen.send(piece)
                await asyncio.sleep(0)

        self.script = script

    def streams(self, *pieces: bytes, cut: bool = False) -> None:
        """Answer each request with a stream, each piece in a chunk of its own."""

        async def script(seen: Seen) -> None:
            await begin(seen)
            for piece in pieces:
                await chunk(seen, piece)
                await asyncio.sleep(0)
            if not cut:
                await seen.send(b"0\r\n\r\n")

        self.script = script

    def in_turn(self, *scripts: Script) -> None:
        """Answer the requests one after the other."""
        waiting = [*scripts]

        async def script(seen: Seen) -> None:
            await waiting.pop(0)(seen)

        self.script = script

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            with suppress(OSError, asyncio.IncompleteReadError):
                await self._handle(reader, writer)
        finally:
            writer.close()
            with suppress(OSError):
                await writer.wait_closed()

    async def _handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        first, *lines = head.strip().split("\r\n")
        method, path, _ = first.split(" ")
        headers = {k.lower(): v.strip() for k, _, v in (line.partition(":") for line in lines)}
        body = await reader.readexactly(int(headers.get("content-length", 0)))
        seen = Seen(method, path, headers, body, reader, writer)
        self.seen.append(seen)
        await self.script(seen)


async def begin(seen: Seen) -> None:
    await seen.head(content_type="text/event-stream", transfer_encoding="chunked")


async def chunk(seen: Seen, data: bytes) -> None:
    await seen.send(f"{len(data):x}\r\n".encode() + data + b"\r\n")


def told(data: object) -> bytes:
    return f"data: {json.dumps(data)}\n\n".encode()


def piece(delta: Mapping[str, object], finish: str | None = None) -> dict[str, Any]:
    choice = {"index": 0, "delta": delta, "finish_reason": finish}
    head = {"id": "c1", "object": "chat.completion.chunk", "created": 1, "model": "big"}
    return {**head, "choices": [choice]}


ANSWER = {
    "id": "c1",
    "object": "chat.completion",
    "created": 1,
    "model": "big",
    "choices": [
        {
            "index": 0,
            "message": {"role": "assistant", "content": "hé"},
            "finish_reason": "stop",
        }
    ],
    "usage": {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3},
}
WORDS = [told(piece({"role": "assistant", "content": "h"})), told(piece({"content": "é"}))]
LAST = [told(piece({}, "stop")), b"data: [DONE]\n\n"]


class Wire:
    """What test modules share, by one fixture: they cannot import from here."""

    CHAT, ANSWER, WORDS, LAST = CHAT, ANSWER, WORDS, LAST
    begin, chunk = staticmethod(begin), staticmethod(chunk)
    told, piece = staticmethod(told), staticmethod(piece)
    WordGuard = WordGuard

    @staticmethod
    def saying(text: str, **more: object) -> dict[str, object]:
        return {"model": "big", "messages": [{"role": "user", "content": text}], **more}

    @staticmethod
    def events(body: bytes) -> list[Any]:
        """The data of a stream's events; the closing mark as it is."""
        found = []
        for event in body.decode().split("\n\n"):
            for line in event.split("\n"):
                if line.startswith("data: "):
                    text = line.removeprefix("data: ")
                    found.append(text if text == "[DONE]" else json.loads(text))
        return found


@pytest.fixture
def wire() -> type[Wire]:
    return Wire


@pytest.fixture
async def upstream() -> AsyncIterator[FakeUpstream]:
    fake, tasks = FakeUpstream(), set()

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        tasks.add(asyncio.current_task())
        await fake.handle(reader, writer)

    server = await asyncio.start_server(handle, "127.0.0.1", 0)
    fake.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
    fake.says(ANSWER)
    yield fake
    server.close()
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    await server.wait_closed()


@pytest.fixture
async def app_of(upstream) -> AsyncIterator[Callable[..., Any]]:
    """`app_of(guard, settings, **upstream settings)`: a proxy before the fake upstream."""
    made = []

    def make(guard: Any = None, settings: ServerSettings | None = None, **options: Any):
        own = {"url": upstream.url, "retries": 0, **options}
        answerer = through(UpstreamSettings(**own))
        app = create_app(guard or WordGuard(), settings, answerer=answerer)
        made.append(app)
        return app

    yield make
    for app in made:
        await app.state.service.aclose()


@pytest.fixture
async def proxy_of(app_of) -> AsyncIterator[Callable[..., httpx.AsyncClient]]:
    """`proxy_of(...)`: a client of such a proxy, without a socket between them."""
    made = []

    def make(*args: Any, **options: Any) -> httpx.AsyncClient:
        transport = httpx.ASGITransport(app_of(*args, **options))
        client = httpx.AsyncClient(transport=transport, base_url="http://proxy")
        made.append(client)
        return client

    yield make
    for client in made:
        await client.aclose()


@pytest.fixture
def served() -> Callable[[Any], Any]:
    """`async with served(app) as address`: the app behind a real server."""

    @asynccontextmanager
    async def serve(app: Any) -> AsyncIterator[str]:
        config = uvicorn.Config(app, log_config=None, lifespan="on", ws="none")
        server = uvicorn.Server(config)
        with socket.socket() as listening:
            listening.bind(("127.0.0.1", 0))
            task = asyncio.create_task(server.serve([listening]))
            await auntil(lambda: server.started or task.done())
            yield f"http://127.0.0.1:{listening.getsockname()[1]}"
            server.should_exit = True
            await asyncio.wait_for(task, 20)

    return serve
