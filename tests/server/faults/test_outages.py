"""What breaks inside: the detector, the model's thread, the disk under the audit log."""

from __future__ import annotations

import asyncio
import ctypes
import threading

import httpx
import pytest

from guardrail.server import ServerSettings, create_app
from tests.waiting import LONG_S, auntil

CHAT = "/v1/chat/completions"


def broken(monkeypatch, guard):
    def fail(*_):
        raise RuntimeError("SECRET: no detector today")

    monkeypatch.setattr(guard._engine._detector, "decide", fail)


@pytest.mark.parametrize(
    ("policy", "status", "action", "finish"),
    [
        ({"fail": "closed"}, 503, None, None),
        ({"fail": "open"}, 200, "pass", "length"),
        ({"fail": "closed", "on_flag": "raise"}, 503, None, None),
    ],
    ids=["closed", "open", "closed and raising"],
)
async def test_a_failing_detector_is_told_as_the_policy_says(
    policy, status, action, finish, served, guard_of, right_again, hello, monkeypatch
):
    app = create_app(guard_of(**policy))
    guard = app.state.service.guard  # the one that requests use
    async with served(guard, app=app) as url, httpx.AsyncClient(base_url=url, timeout=30) as client:
        before = await right_again(url)
        with monkeypatch.context() as patch:
            broken(patch, guard)
            answer = await client.post(CHAT, json=hello)
        assert answer.status_code == status
        assert "SECRET" not in answer.text
        assert answer.headers.get("x-guardrail-action") == action
        if status == 200:
            assert answer.headers["x-guardrail-reason"] == "detector_failed"
            assert "x-guardrail-score" not in answer.headers
            assert answer.json()["choices"][0]["finish_reason"] == finish
        else:
            assert answer.headers["retry-after"] == "1"
        assert await right_again(url) == before


async def test_a_model_that_fails_is_an_outage_and_its_words_stay_inside(
    served, guard_of, right_again, hello, monkeypatch
):
    guard = guard_of(local_files=False)

    def fail(*_args, **_more):
        raise RuntimeError("CUDA error: SECRET")

    async with served(guard) as url, httpx.AsyncClient(base_url=url, timeout=30) as client:
        before = await right_again(url)
        with monkeypatch.context() as patch:
            patch.setattr("guardrail.online.engine.generate_rows", fail)
            for stream in (False, True):
                answer = await client.post(CHAT, json=hello | {"stream": stream})
                assert answer.status_code in (500, 503)
                assert "SECRET" not in answer.text
        assert await right_again(url) == before


async def test_requests_end_in_clear_when_the_thread_of_the_model_is_killed(
    served, guard_of, right_again, hello
):
    app = create_app(guard_of())
    guard = app.state.service.guard
    async with served(guard, app=app) as url, httpx.AsyncClient(base_url=url, timeout=60) as client:
        before = await right_again(url)
        long = hello | {"max_tokens": 300}
        asked = [asyncio.create_task(client.post(CHAT, json=long)) for _ in range(3)]
        await auntil(lambda: guard.load.running)
        thread = guard._engine.worker._thread
        ident = ctypes.c_ulong(thread.ident)
        kill = ctypes.pythonapi.PyThreadState_SetAsyncExc
        assert kill(ident, ctypes.py_object(SystemExit)) == 1
        answers = await asyncio.gather(*asked)
        for answer in answers:
            assert answer.status_code in (200, 500, 503)
            if answer.status_code == 200:
                assert answer.headers["x-guardrail-action"] == "pass"
                assert answer.json()["usage"]["completion_tokens"] == 300
        assert await right_again(url) == before


async def test_a_model_that_hangs_costs_no_more_than_the_time_of_each_request(
    served, guard_of, right_again, hello, monkeypatch
):
    monkeypatch.setattr("guardrail.guard._HUNG_S", 0.2)
    guard, go_on = guard_of(), threading.Event()

    def hang(*_args, **_more):
        assert go_on.wait(LONG_S)

    async with (
        served(guard, ServerSettings(timeout_s=1)) as url,
        httpx.AsyncClient(base_url=url, timeout=30) as client,
    ):
        before = await right_again(url)
        with monkeypatch.context() as patch:
            for name in ("generate_rows", "check_rows"):
                patch.setattr(f"guardrail.online.engine.{name}", hang)
            answers = await asyncio.gather(
                client.post(CHAT, json=hello),
                client.post(CHAT, json=hello | {"stream": True}),
                client.post("/v1/checks", json={"input": "hello"}),
            )
            assert {answer.status_code for answer in answers} == {504}
            await until_ready(client, 503)
            assert (await client.get("/healthz")).status_code == 200
        go_on.set()
        await until_ready(client, 200)
        assert await right_again(url) == before


async def until_ready(client, status):
    async def found():
        return (await client.get("/readyz")).status_code == status

    await auntil(found)


async def test_a_full_disk_under_the_audit_log_costs_no_answer(start, right_again, hello):
    server = start("--audit", "/dev/full")
    first = await right_again(server.url)
    assert first[0] == 200
    assert await right_again(server.url) == first
    long = hello | {"messages": [{"role": "user", "content": "hello " * 3000}]}
    async with httpx.AsyncClient(base_url=server.url, timeout=30) as client:
        assert (await client.post(CHAT, json=long)).status_code == 413
        assert (await client.get("/readyz")).status_code == 200
        metrics = (await client.get("/metrics")).text
    [lost] = [line for line in metrics.splitlines() if line.startswith("guardrail_audit_dropped")]
    assert float(lost.split()[-1]) >= 2
    told = [line for line in server.lines if "audit" in line["event"]]
    assert told
    log = server.log.read_text()
    assert "hello" not in log
    assert all(line.startswith("{") for line in log.splitlines())  # of the tokenizer's library, too
