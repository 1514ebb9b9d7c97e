"""Another artefact under load: every answer is of one of the two, whole."""

from __future__ import annotations

import asyncio
import shutil
import signal

import httpx
import pytest

from guardrail.artefact import Artefact
from guardrail.guard import Guard
from guardrail.policy import Policy
from guardrail.server import create_app
from guardrail.server.reload import Reloader
from tests.waiting import auntil

PROMPTS = [f"tell me about number {n}" for n in range(6)]


@pytest.fixture
def scores(files, llava):
    """`{artefact id: {prompt: score}}`, each asked alone."""
    found = {}
    for path in (files.first, files.second):
        with Guard((llava.model, llava.processor), path) as guard:
            told = {text: guard.check(text).score for text in PROMPTS}
            found[guard.artefact.artefact_id] = told
    return found


async def asked(client, text, stream):
    body = {
        "model": "guarded",
        "messages": [{"role": "user", "content": text}],
        "max_tokens": 3,
        "stream": stream,
    }
    answer = await client.post("/v1/chat/completions", json=body)
    return text, answer


async def test_an_artefact_is_swapped_under_load(served, files, llava, scores, tmp_path):
    path = tmp_path / "artefact.safetensors"
    shutil.copy(files.first, path)

    def make():
        rules = Policy(local_files=False)
        return Guard((llava.model, llava.processor), str(path), policy=rules)

    guard = make()
    made = [guard]
    app = create_app(guard)
    reloader = Reloader(
        app.state.service, guard, lambda: made.append(make()) or made[-1], lambda: ()
    )
    answers, swapping = [], True

    async def load(client, n):
        while swapping:
            answers.append(await asked(client, PROMPTS[n % len(PROMPTS)], stream=bool(n % 2)))

    async with (
        served(guard, app=app) as url,
        httpx.AsyncClient(base_url=url, timeout=60) as client,
    ):
        clients = [asyncio.create_task(load(client, n)) for n in range(6)]
        for n in range(5):
            replacement = tmp_path / "new"
            shutil.copy((files.second, files.first)[n % 2], replacement)
            replacement.replace(path)
            assert await reloader.reload()
            seen = len(answers)
            await auntil(lambda: len(answers) >= seen + 6)  # noqa: B023
        swapping = False
        await asyncio.gather(*clients)
    assert {answer.status_code for _, answer in answers} == {200}
    for text, answer in answers:
        told = answer.headers
        expected = scores[told["x-guardrail-artefact"]][text]
        assert float(told["x-guardrail-score"]) == pytest.approx(expected, abs=2e-3)
    assert {answer.headers["x-guardrail-artefact"] for _, answer in answers} == set(scores)
    assert [each.closed for each in made] == [True] * 5 + [False]
    reloader.close()


async def test_a_file_is_read_again_only_when_sighup_says_so(start, files, scores, tmp_path):
    path = tmp_path / "artefact.safetensors"
    shutil.copy(files.first, path)
    first, second = scores
    server = start(artefact=path)
    async with httpx.AsyncClient(base_url=server.url, timeout=60) as client:

        async def in_force():
            _, answer = await asked(client, PROMPTS[0], stream=False)
            found = answer.headers["x-guardrail-artefact"]
            told = float(answer.headers["x-guardrail-score"])
            assert told == pytest.approx(scores[found][PROMPTS[0]], abs=2e-3)
            return found

        assert await in_force() == first
        shutil.copy(files.second, tmp_path / "new")
        (tmp_path / "new").replace(path)
        assert await in_force() == first
        server.signal(signal.SIGHUP)
        await asyncio.to_thread(server.wait_for, "reloaded")
        assert await in_force() == second
        (tmp_path / "new").write_bytes(files.first.read_bytes()[:5000])
        (tmp_path / "new").replace(path)
        server.signal(signal.SIGHUP)
        told = await asyncio.to_thread(server.wait_for, "not reloaded; what was in force stays")
        assert told["error"] == "ArtefactFormatError"
        assert await in_force() == second
        ready = await client.get("/readyz")
        assert ready.status_code == 200
        assert "ArtefactFormatError" in ready.json()["note"]
        assert str(tmp_path) not in ready.text


def test_the_two_artefacts_of_these_tests_differ(files):
    ids = {Artefact.load(path).artefact_id for path in (files.first, files.second)}
    assert len(ids) == 2
