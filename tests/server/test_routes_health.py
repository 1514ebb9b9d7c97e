from __future__ import annotations

import httpx

from guardrail.guard import Guard
from guardrail.server import create_app
from guardrail.types import Load


def client_of(app):
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://s")


async def test_a_server_says_that_it_lives_and_is_ready(guard_of):
    app = create_app(guard_of())
    async with client_of(app) as client:
        assert (await client.get("/healthz")).json() == {"status": "ok"}
        ready = await client.get("/readyz")
    assert ready.status_code == 200
    artefact_id = app.state.service.guard.artefact.artefact_id
    assert ready.json() == {"status": "ok", "artefact": artefact_id}


async def test_a_server_whose_model_does_not_come_back_is_not_ready(guard_of, monkeypatch):
    app = create_app(guard_of())
    monkeypatch.setattr(Guard, "load", Load(0, 1, 8, overdue_s=31.0))
    async with client_of(app) as client:
        assert (await client.get("/healthz")).status_code == 200
        ready = await client.get("/readyz")
        assert ready.status_code == 503
        assert "does not come back" in ready.json()["status"]
        monkeypatch.setattr(Guard, "load", Load(0, 1, 8, overdue_s=29.0))
        assert (await client.get("/readyz")).status_code == 200


async def test_a_server_whose_guard_is_closed_is_alive_and_not_ready(guard_of):
    app = create_app(guard_of())
    app.state.service.guard.close()
    async with client_of(app) as client:
        assert (await client.get("/healthz")).status_code == 200
        ready = await client.get("/readyz")
    assert ready.status_code == 503
    assert ready.json()["status"] == "the guard is closed"
