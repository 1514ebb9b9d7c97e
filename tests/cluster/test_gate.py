from __future__ import annotations

import asyncio
import json

import pytest

from guardrail.cluster.gate import ReplicaGate
from tests.waiting import auntil

BODY = {"content_length": "2"}


class App:
    """Reads a body, waits for `go`, answers in two pieces with `finish` between; tells its name."""

    def __init__(self, name: str) -> None:
        self.name, self.go, self.finish = name, asyncio.Event(), asyncio.Event()
        self.go.set()
        self.finish.set()
        self.came = self.cancelled = 0

    async def __call__(self, scope, receive, send) -> None:
        self.came += 1
        try:
            if scope["method"] == "POST":
                while (await receive()).get("more_body"):
                    pass
            await self.go.wait()
            headers = [(b"x-request-id", b"of-the-app"), (b"x-name", self.name.encode())]
            await send({"type": "http.response.start", "status": 200, "headers": headers})
            await send({"type": "http.response.body", "body": b"a", "more_body": True})
            await self.finish.wait()
            await send({"type": "http.response.body", "body": b"b"})
        except asyncio.CancelledError:
            self.cancelled += 1
            raise


class Lease:
    held = True

    def __call__(self, _epoch: int) -> bool:
        return self.held


@pytest.fixture
def lease() -> Lease:
    return Lease()


@pytest.fixture
def gate(lease) -> ReplicaGate:
    return ReplicaGate(lease, wait_s=0.3, body_s=0.05)


def refused(call) -> str:
    assert call.status == 503
    assert call.headers[b"retry-after"] == b"1"
    error = json.loads(call.body)["error"]
    assert error["code"] == "unavailable"
    return error["message"]


async def test_requests_reach_the_app(gate, call):
    gate.open(App("one"), 0)
    answer = await call(gate, **BODY).send(b"{}").end()
    assert (answer.status, answer.body) == (200, b"ab")
    assert answer.headers[b"x-request-id"] == b"of-the-app"


async def test_an_id_that_the_proxy_puts_on_the_answer_is_there_once(gate, call):
    gate.open(App("one"), 0)
    answer = await call(gate, x_request_id="of-the-proxy", **BODY).send().end()
    assert b"x-request-id" not in answer.headers


async def test_without_a_lease_nothing_is_answered(gate, lease, call):
    app = App("one")
    gate.open(app, 0)
    lease.held = False
    assert "not in agreement" in refused(await call(gate, **BODY).send().end())
    assert app.came == 0


async def test_an_answer_that_is_ready_after_the_lease_is_not_sent(gate, lease, call):
    app = App("one")
    app.go.clear()
    app.finish.clear()
    gate.open(app, 0)
    late = call(gate, **BODY).send()
    await auntil(lambda: app.came == 1)
    lease.held = False
    app.go.set()
    refused(await late.end())
    assert app.cancelled == 1


async def test_an_answer_of_an_earlier_epoch_is_not_sent(gate, call):
    app = App("one")
    app.go.clear()
    gate.open(app, 0)
    late = call(gate, **BODY).send()
    await auntil(lambda: app.came == 1)
    gate.open(app, 1)
    app.go.set()
    refused(await late.end())


async def test_a_pause_waits_for_answers_to_begin_and_not_for_their_end(gate, call):
    app = App("one")
    app.go.clear()
    app.finish.clear()
    gate.open(app, 0)
    streamed = call(gate, **BODY).send()
    await auntil(lambda: app.came == 1)
    pausing = asyncio.create_task(gate.pause())
    await asyncio.sleep(0.01)
    assert not pausing.done()

    app.go.set()
    await pausing

    assert streamed.status == 200
    assert not streamed.task.done()
    app.finish.set()
    assert (await streamed.end()).body == b"ab"


async def test_requests_in_a_pause_are_answered_after_it(gate, call):
    gate.open(App("one"), 0)
    await gate.pause()
    waiting = call(gate, **BODY).send()
    await asyncio.sleep(0.01)
    assert not waiting.task.done()

    gate.open(App("two"), 1)

    assert (await waiting.end()).headers[b"x-name"] == b"two"


async def test_a_pause_without_end_is_told(gate, call):
    gate.open(App("one"), 0)
    await gate.pause()
    assert "exchanged" in refused(await call(gate, **BODY).send().end())


async def test_a_body_that_does_not_come_holds_no_pause_up(gate, call):
    app = App("one")
    gate.open(app, 0)
    slow = call(gate, **BODY).send(b"{", more=True)
    await auntil(lambda: app.came == 1)
    await gate.pause()
    assert "exchanged" in refused(await slow.end())
    assert app.cancelled == 1


async def test_a_client_that_leaves_ends_its_request(gate, call):
    app = App("one")
    app.go.clear()
    gate.open(app, 0)
    left = call(gate, **BODY).send()
    await auntil(lambda: app.came == 1)
    left.task.cancel()
    await auntil(lambda: app.cancelled == 1)
    await gate.pause()  # nothing is under way


async def test_reads_pass_in_a_pause_but_readiness_says_why_not(gate, call):
    gate.open(App("one"), 0)
    await gate.pause()
    assert (await call(gate, method="GET", path="/metrics").end()).status == 200
    ready = await call(gate, method="GET", path="/readyz").end()
    assert ready.status == 503
    assert json.loads(ready.body) == {"status": "the artefact is being exchanged"}


async def test_a_stop_refuses_who_waits_and_lets_answers_end(gate, call):
    app = App("one")
    app.finish.clear()
    gate.open(app, 0)
    streamed = call(gate, **BODY).send()
    await auntil(lambda: streamed.status == 200)
    gate.stop()
    assert "shutting down" in refused(await call(gate, **BODY).send().end())
    app.finish.set()
    assert (await streamed.end()).body == b"ab"


async def test_an_error_of_the_app_is_not_swallowed(gate, call):
    async def broken(scope, receive, send):
        raise ValueError("broken")

    gate.open(broken, 0)
    with pytest.raises(ValueError, match="broken"):
        await call(gate, **BODY).send().end()
