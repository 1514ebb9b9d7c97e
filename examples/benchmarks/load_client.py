"""Clients in a closed loop: each asks, reads the whole stream, and asks again."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import httpx
import psutil
from load_server import KEYS

CHAT = "/v1/chat/completions"
Body = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Answer:
    """One answer: seconds to its first words and to its end, and its tokens."""

    first_s: float
    total_s: float
    tokens: int


@dataclass(slots=True)
class Run:
    """What some clients got in `wall_s` seconds, from the first request to the last answer."""

    clients: int
    wall_s: float = 0.0
    answers: list[Answer] = field(default_factory=list)

    @property
    def requests_per_s(self) -> float:
        """Answers a second."""
        return len(self.answers) / self.wall_s

    @property
    def tokens_per_s(self) -> float:
        """Tokens a second, all answers together."""
        return sum(answer.tokens for answer in self.answers) / self.wall_s


def connected(url: str, key: str = "many") -> httpx.AsyncClient:
    """A client under one of the keys that opens as many connections as it needs."""
    headers = {"Authorization": f"Bearer {KEYS[key]}"}
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
    return httpx.AsyncClient(base_url=url, headers=headers, limits=limits, timeout=600)


async def streamed(http: httpx.AsyncClient, body: Body) -> Answer:
    """Ask one chat and read its stream to the end.

    Raises:
        RuntimeError: the answer is an error, or is cut off.
    """
    asked = {**body, "stream": True, "stream_options": {"include_usage": True}}
    started, first, last, tokens = time.perf_counter(), 0.0, "", 0
    async with http.stream("POST", CHAT, json=asked) as response:
        if response.status_code != 200:
            said = (await response.aread())[:300].decode("utf-8", "replace")
            raise RuntimeError(f"status {response.status_code}: {said}")
        async for line in response.aiter_lines():
            if not line:
                continue
            last = line
            if not line.startswith("data: {"):
                continue
            event = json.loads(line[6:])
            said_now = any(choice["delta"].get("content") for choice in event["choices"])
            if not first and said_now:
                first = time.perf_counter() - started
            tokens = (event.get("usage") or {}).get("completion_tokens", tokens)
    if last != "data: [DONE]":
        raise RuntimeError(f"a stream was cut off after {last[:80]!r}")
    total = time.perf_counter() - started
    return Answer(first or total, total, tokens)


async def closed_loop(
    http: httpx.AsyncClient, bodies: Sequence[Body], *, clients: int, each: int
) -> Run:
    """Let `clients` clients ask `each` chats one after the other, taken from `bodies` in turn."""
    run = Run(clients)

    async def client(number: int) -> None:
        for turn in range(each):
            body = bodies[(number + turn * clients) % len(bodies)]
            run.answers.append(await streamed(http, body))

    started = time.perf_counter()
    async with asyncio.TaskGroup() as group:
        for number in range(clients):
            group.create_task(client(number))
    run.wall_s = time.perf_counter() - started
    return run


async def until_ended(
    http: httpx.AsyncClient, bodies: Sequence[Body], *, clients: int, ended: asyncio.Event
) -> None:
    """Keep `clients` clients asking until the event is set."""

    async def client(number: int) -> None:
        turn = number
        while not ended.is_set():
            await streamed(http, bodies[turn % len(bodies)])
            turn += clients

    async with asyncio.TaskGroup() as group:
        for number in range(clients):
            group.create_task(client(number))


async def resident(
    http: httpx.AsyncClient, bodies: Sequence[Body], *, clients: int, rounds: int, pid: int
) -> list[int]:
    """Bytes that a server's process holds after each of `rounds` rounds, two answers a client."""
    process, found = psutil.Process(pid), []
    for _ in range(rounds):
        await closed_loop(http, bodies, clients=clients, each=2)
        found.append(process.memory_info().rss)
    return found
