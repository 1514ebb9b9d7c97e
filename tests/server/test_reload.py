from __future__ import annotations

import asyncio
from functools import partial

import httpx
import pytest

from guardrail.errors import ArtefactMismatchError, ConfigurationError, DetectorError
from guardrail.guard import Guard
from guardrail.model.load import wrap_model
from guardrail.policy import Policy
from guardrail.server import ServerSettings, create_app
from guardrail.server.keys import keys_from_text
from guardrail.server.reload import GuardSource, Reloader
from guardrail.testing import tiny_artefact
from tests.waiting import auntil

KEYS = keys_from_text("web:0123456789abcdef", source="x")
HELLO = {"model": "guarded", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 2}


@pytest.fixture
def reloading(guard_of):
    """An app with its reloader; `made` are the guards, the first one in force."""

    def make(build=None, read_keys=lambda: ()):
        made = [guard_of()]

        def another():
            if build is not None:
                build()
            made.append(guard_of())
            return made[-1]

        app = create_app(made[0], ServerSettings())
        return app, Reloader(app.state.service, made[0], another, read_keys), made

    return make


def client_of(app):
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://s")


async def test_a_guard_takes_the_place_of_another_which_is_closed(reloading):
    app, reloader, made = reloading(read_keys=lambda: KEYS)
    before = app.state.service.guard
    assert await reloader.reload()
    assert app.state.service.guard is not before
    assert (before.closed, made[0].closed, made[1].closed) == (True, True, False)
    assert app.state.service.keys == KEYS
    reloader.close()
    assert made[1].closed


async def test_a_request_under_way_keeps_its_guard_until_it_ends(reloading):
    app, reloader, made = reloading()
    service = app.state.service
    with service.lifecycle.request():
        before = service.guard
        task = asyncio.create_task(reloader.reload())
        await auntil(lambda: service.guard is not before)
        assert not before.closed
        assert (await before.acheck("hello")).score is not None
        async with client_of(app) as client:
            answer = await client.post("/v1/chat/completions", json=HELLO)
        assert answer.status_code == 200
        assert not task.done()
    assert await task
    assert before.closed
    assert made[0].closed


async def test_a_second_reload_does_not_wait_for_answers_that_the_first_one_waits_for(reloading):
    told = [(), KEYS]
    app, reloader, made = reloading(read_keys=lambda: told.pop(0))
    service = app.state.service
    with service.lifecycle.request():
        first = asyncio.create_task(reloader.reload())
        await auntil(lambda: len(made) >= 2 and not service.guard.closed)
        second = asyncio.create_task(reloader.reload())
        await auntil(lambda: service.keys == KEYS)
        assert [guard.closed for guard in made] == [False] * 3
        assert not first.done()
    assert await asyncio.gather(first, second) == [True, True]
    assert [guard.closed for guard in made] == [True, True, False]
    assert not service.guard.closed


async def test_a_guard_that_cannot_take_the_place_leaves_the_keys_as_they_were(
    reloading, monkeypatch
):
    app, reloader, made = reloading(read_keys=lambda: KEYS)
    before = app.state.service.guard

    def fail(*_args, **_options):
        raise ConfigurationError("no such rules")

    monkeypatch.setattr("guardrail.guard.Guard.with_policy", fail)
    assert not await reloader.reload()
    assert (app.state.service.guard, app.state.service.keys) == (before, ())
    assert not made[0].closed
    assert "ConfigurationError" in app.state.service.note


@pytest.mark.parametrize(
    "error",
    [
        ArtefactMismatchError({"d_model": ("8", "/secret/32")}),
        ConfigurationError("/secret/policy"),
        OSError("/secret/file"),
        KeyError("/secret"),
    ],
)
async def test_what_cannot_be_read_changes_nothing(error, reloading, caplog):
    def build():
        raise error

    app, reloader, made = reloading(build, read_keys=lambda: KEYS)
    before = app.state.service.guard
    assert not await reloader.reload()
    assert app.state.service.guard is before
    assert not made[0].closed
    assert app.state.service.keys == ()
    [told] = [r for r in caplog.records if r.name == "guardrail.server.reload"]
    assert told.error == type(error).__name__
    async with client_of(app) as client:
        ready = await client.get("/readyz")
        assert (ready.status_code, ready.json()["status"]) == (200, "ok")
        assert type(error).__name__ in ready.json()["note"]
        assert "secret" not in ready.text


async def test_a_note_is_gone_with_the_next_reload_that_works(reloading):
    trouble = [OSError("x")]

    def build():
        if trouble:
            raise trouble.pop()

    app, reloader, _ = reloading(build)
    assert not await reloader.reload()
    assert await reloader.reload()
    assert app.state.service.note is None


async def test_keys_that_cannot_be_read_leave_all_as_it_was(reloading):
    def read_keys():
        raise ConfigurationError("no keys")

    app, reloader, made = reloading(read_keys=read_keys)
    assert not await reloader.reload()
    assert len(made) == 1
    assert "ConfigurationError" in app.state.service.note


@pytest.fixture
def source(llava, tmp_path):
    path = tmp_path / "a.safetensors"
    tiny_artefact(llava.model, llava.processor).save(path)
    told = []
    made = GuardSource(
        open_guard=partial(Guard, wrap_model(llava.model, llava.processor)),
        artefact=str(path),
        read_policy=Policy,
        audit=lambda verdict, facts: told.append(facts),
    )
    return made, told


def test_a_guard_tells_the_record_and_the_warm_up_does_not(source):
    made, told = source
    made.warm_up()
    assert told == []
    with made.make() as guard:
        guard.check("hello")
    assert [facts["event"] for facts in told] == ["verdict"]


def test_a_detector_that_fails_at_the_warm_up_is_an_error(source, monkeypatch):
    def fail(*_):
        raise RuntimeError("no detector today")

    monkeypatch.setattr("guardrail.decide.detector.Detector.decide", fail)
    with pytest.raises(DetectorError, match="first, harmless"):
        source[0].warm_up()
