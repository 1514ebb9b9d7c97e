"""No answer is mixed up: many requests with known answers, 32 of them at once, over a socket."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import random
import socket
import threading
from collections import Counter, deque
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import cycle, islice
from typing import TYPE_CHECKING, Any

import httpx
import pytest
import uvicorn

from guardrail.guard import Guard
from guardrail.policy import REFUSAL, Policy, Thresholds
from guardrail.server import ServerSettings, create_app
from guardrail.server.keys import api_key
from guardrail.testing import tiny_artefact
from guardrail.types import Action, Modality
from tests.waiting import auntil, until

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

    from guardrail.types import Result

    Check = Callable[[httpx.AsyncClient, int], Awaitable[None]]

CLIENTS, TOLERANCE = 32, 1e-4
CHAT = "/v1/chat/completions"
KEYS = [f"the-key-of-team-{number}" for number in range(3)]  # whose requests take turns
WORDS = "red green blue old young cat dog tree house river".split()
BAD: list[tuple[str, bytes]] = [
    ("malformed", b'{"messages": ['),
    ("no messages", b'{"model": "guarded"}'),
    ("not a chat", b'{"model": "guarded", "messages": "hello"}'),
    (
        "unknown part",
        b'{"model": "guarded", "messages": [{"role": "user", "content": [{"a": 1}]}]}',
    ),
    (
        "not a picture",
        b'{"model": "guarded", "messages": [{"role": "user", "content": [{"type": "image_url",'
        b' "image_url": {"url": "data:image/png;base64,AAAA"}}]}]}',
    ),
]


@dataclass(frozen=True)
class Known:
    """A chat, and what the guard said to it when it was asked alone."""

    messages: list[dict[str, Any]]
    tokens: int
    alone: Result

    @property
    def body(self) -> dict[str, Any]:
        return {"model": "guarded", "messages": self.messages, "max_tokens": self.tokens}

    def is_told_by(self, verdict: dict[str, Any], headers: httpx.Headers) -> None:
        expected = self.alone.verdict
        assert verdict["score"] == pytest.approx(expected.score, abs=TOLERANCE)
        assert verdict["action"] == expected.action.value == headers["x-guardrail-action"]
        assert verdict["modality"] == expected.modality.value == headers["x-guardrail-modality"]
        assert float(headers["x-guardrail-score"]) == pytest.approx(verdict["score"], abs=1e-4)

    @property
    def finish(self) -> str:
        return "content_filter" if self.alone.refused_by_guard else "length"


def chats(picture: Any) -> Iterator[list[dict[str, Any]]]:
    """100 chats, each with its own words or its own picture."""
    for number in range(70):
        # Words that all of them had in common would give most of them one score.
        said = f"{number} {WORDS[number % 10]} {WORDS[number // 10]}"
        yield [{"role": "user", "content": said}]
    for number in range(30):
        buffer = io.BytesIO()
        picture(number).save(buffer, "PNG")
        url = "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
        seen = {"type": "image_url", "image_url": {"url": url}}
        said = {"type": "text", "text": f"What is on picture {number % 7}?"}
        yield [{"role": "user", "content": [seen, said]}]


def between(scores: list[float], share: float) -> float:
    """The middle of the widest gap near a quantile: no verdict hangs on a rounding error."""
    ordered = sorted(scores)
    near = range(int(share * len(ordered)) - 4, int(share * len(ordered)) + 4)
    low = max(near, key=lambda place: ordered[place + 1] - ordered[place])
    assert ordered[low + 1] - ordered[low] > 4 * TOLERANCE
    return (ordered[low] + ordered[low + 1]) / 2


@pytest.fixture(scope="module")
def known(llava: Any, picture: Any) -> Iterator[tuple[Guard, list[Known]]]:
    """A guard that passes, steers and flags a third each, and its answers one at a time."""
    artefact, asked = tiny_artefact(llava.model, llava.processor), list(chats(picture))
    never = dict.fromkeys(Modality, Thresholds(steer=1e9, flag=1e9))
    with Guard((llava.model, llava.processor), artefact, policy=Policy(thresholds=never)) as guard:
        scores = [guard.check(messages).score or 0.0 for messages in asked]
    thresholds = {
        modality: Thresholds(steer=between(part, 1 / 3), flag=between(part, 2 / 3))
        for modality, part in ((Modality.TEXT, scores[:70]), (Modality.IMAGE, scores[70:]))
    }
    policy = Policy(thresholds=thresholds)
    with Guard((llava.model, llava.processor), artefact, policy=policy) as guard:
        found = [
            Known(messages, tokens, guard.generate(messages, max_new_tokens=tokens))
            for messages, tokens in zip(asked, cycle((4, 4, 4, 6)), strict=False)
        ]
        yield guard, found


def named(number: int) -> dict[str, str]:
    """The header by which a client knows its own answer again."""
    return {"x-request-id": f"ask-{number}"}


@contextmanager
def served(app: Any) -> Iterator[str]:
    """The app behind uvicorn in a thread of its own."""
    server = uvicorn.Server(uvicorn.Config(app, log_level="error", ws="none"))
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        thread = threading.Thread(target=server.run, args=([listening],))
        thread.start()
        until(lambda: server.started or not thread.is_alive())
        try:
            yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join(20)


class Asker:
    """Sends one kind of request after the other and compares what comes with what is known."""

    def __init__(self, known: list[Known], url: str) -> None:
        self.known, self.url = known, url
        self.ids: list[str] = []  # of the answers
        self.done: Counter[str] = Counter()
        self.kinds: tuple[Check, ...] = (
            *(self.check, self.chat, self.chat, self.chat),
            *(self.stream, self.stream, self.hang_up, self.bad),
        )

    async def run(self, requests: int, seed: int = 0) -> None:
        todo = deque(enumerate(islice(cycle(self.kinds), requests)))
        random.Random(seed).shuffle(todo)

        async def client(key: str) -> None:
            bearer = {"authorization": f"Bearer {key}"}
            async with httpx.AsyncClient(base_url=self.url, headers=bearer, timeout=60) as http:
                while todo:
                    number, ask = todo.popleft()
                    await ask(http, number)
                    self.done[ask.__name__] += 1

        async with asyncio.TaskGroup() as group:
            for place in range(CLIENTS):
                group.create_task(client(KEYS[place % len(KEYS)]))

    def pick(self, number: int) -> Known:
        return self.known[number // len(self.kinds) % len(self.known)]

    async def check(self, http: httpx.AsyncClient, number: int) -> None:
        one = self.pick(number)
        response = await http.post(
            "/v1/checks", json={"messages": one.messages}, headers=named(number)
        )
        assert response.status_code == 200, response.text
        assert response.headers["x-request-id"] == f"ask-{number}"
        one.is_told_by(response.json()["verdict"], response.headers)

    async def chat(self, http: httpx.AsyncClient, number: int) -> None:
        one = self.pick(number)
        response = await http.post(CHAT, json=one.body, headers=named(number))
        assert response.status_code == 200, response.text
        assert response.headers["x-request-id"] == f"ask-{number}"
        told = response.json()
        self.ids.append(told["id"])
        one.is_told_by(told["guardrail"], response.headers)
        (choice,) = told["choices"]
        assert (choice["message"]["content"], choice["finish_reason"]) == (
            one.alone.text,
            one.finish,
        )
        assert told["usage"]["prompt_tokens"] == one.alone.prompt_tokens

    async def stream(self, http: httpx.AsyncClient, number: int) -> None:
        one, asked = self.pick(number), {"stream": True, "stream_options": {"include_usage": True}}
        async with http.stream(
            "POST", CHAT, json=one.body | asked, headers=named(number)
        ) as response:
            assert response.status_code == 200
            lines = [line async for line in response.aiter_lines() if line]
        assert response.headers["x-request-id"] == f"ask-{number}"
        assert lines.pop() == "data: [DONE]"
        chunks = [json.loads(line.removeprefix("data: ")) for line in lines]
        (told,) = {chunk["id"] for chunk in chunks}
        self.ids.append(told)
        for chunk in (chunks[0], chunks[-1]):
            one.is_told_by(chunk["guardrail"], response.headers)
        choices = [choice for chunk in chunks for choice in chunk["choices"]]
        text = "".join(choice["delta"].get("content") or "" for choice in choices)
        assert (text, choices[-1]["finish_reason"]) == (one.alone.text, one.finish)
        assert chunks[-1]["usage"]["prompt_tokens"] == one.alone.prompt_tokens

    async def hang_up(self, http: httpx.AsyncClient, number: int) -> None:
        """Read the first event of a long answer, then leave."""
        one, asked = self.pick(number), {"stream": True, "max_tokens": 16}
        async with http.stream("POST", CHAT, json=one.body | asked) as response:
            assert response.status_code == 200
            first = json.loads((await anext(response.aiter_lines())).removeprefix("data: "))
        self.ids.append(first["id"])
        one.is_told_by(first["guardrail"], response.headers)

    async def bad(self, http: httpx.AsyncClient, number: int) -> None:
        name, body = BAD[number // len(self.kinds) % len(BAD)]
        kind = {"content-type": "application/json"}
        response = await http.post(CHAT, content=body, headers=kind | named(number))
        assert 400 <= response.status_code <= 422, name
        assert response.headers["x-request-id"] == f"ask-{number}"
        assert set(response.json()) == {"error"}
        assert "x-guardrail-action" not in response.headers


@pytest.mark.parametrize(
    "requests",
    # 400: each kind of each of 50 chats; 2,000: more than all kinds of all 100
    [400, pytest.param(2_000, marks=pytest.mark.slow)],
)
async def test_requests_by_32_clients_get_each_its_own_answer(
    known: tuple[Guard, list[Known]], requests: int
) -> None:
    guard, answers = known
    taken = Counter(one.alone.verdict.action for one in answers)
    assert all(taken[action] > 20 for action in (Action.PASS, Action.STEER, Action.FLAG))
    assert len({(one.alone.text, one.alone.verdict.score) for one in answers}) == len(answers)
    keys = tuple(api_key(f"team-{number}", key) for number, key in enumerate(KEYS))
    with served(create_app(guard, ServerSettings(keys=keys, expose_scores=True))) as url:
        asker = Asker(answers if requests >= 8 * len(answers) else answers[::2], url)
        await asker.run(requests)
        await again(guard)
    assert asker.done.total() == requests
    assert len(set(asker.ids)) == len(asker.ids) == requests * 6 // 8  # chats, streams, hang-ups
    assert set(asker.done) == {"check", "chat", "stream", "hang_up", "bad"}
    alone = guard.generate(answers[0].messages, max_new_tokens=answers[0].tokens)
    assert alone.text == answers[0].alone.text
    assert {one.alone.text for one in answers if one.finish == "content_filter"} == {REFUSAL}


async def again(guard: Guard) -> None:
    """Until the rows of those who hung up have ended."""
    await auntil(lambda: not (guard.load.waiting or guard.load.running))
