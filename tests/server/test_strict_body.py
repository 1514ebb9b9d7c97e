"""A body means the same to all readers, or it is refused."""

from __future__ import annotations

from typing import Any

import httpx
import pytest
from fastapi import APIRouter, FastAPI, Request
from pydantic import BaseModel

from guardrail.server.strict_body import StrictRoute


class Named(BaseModel):
    name: str


router = APIRouter(route_class=StrictRoute)


@router.post("/named")
async def named(body: Named, request: Request) -> dict[str, Any]:
    return {"name": body.name, "same": (await request.json()) is (await request.json())}


@router.get("/plain")
async def plain() -> dict[str, bool]:
    return {"ok": True}


@pytest.fixture
def client() -> httpx.AsyncClient:
    app = FastAPI()
    app.include_router(router)
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://server")


async def post(client: httpx.AsyncClient, data: bytes, kind: str | None = "application/json"):
    headers = {} if kind is None else {"Content-Type": kind}
    async with client:
        return await client.post("/named", content=data, headers=headers)


@pytest.mark.parametrize("kind", ["application/json", "application/json; charset=utf-8"])
async def test_json_is_read_once(client, kind):
    answer = await post(client, b'{"name": "a"}', kind)
    assert answer.json() == {"name": "a", "same": True}


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{",
        b"nothing",
        b'{"name": "a", "name": "b"}',
        b'{"name": NaN}',
        b'{"name": 1e999}',
        b'{"name": ' + b"9" * 5_000 + b"}",
        b"[" * 200_000 + b"]" * 200_000,
        b'{"name": "\xff"}',
        b'\xef\xbb\xbf{"name": "a"}',
        '{"name": "a"}'.encode("utf-16"),
    ],
)
async def test_what_two_readers_may_read_differently_is_malformed(client, data):
    answer = await post(client, data)
    assert answer.status_code == 400


@pytest.mark.parametrize(
    "kind",
    [
        None,
        "text/plain",
        "application/x-www-form-urlencoded",
        "multipart/form-data; boundary=x",
        "application/json; charset=latin-1",
        "nonsense",
    ],
)
async def test_other_types_are_not_read_as_json(client, kind):
    assert (await post(client, b'{"name": "a"}', kind)).status_code == 415


async def test_what_curl_sends_by_itself_is_told_what_to_send_instead(client):
    answer = await post(client, b'{"name": "a"}', "application/x-www-form-urlencoded")
    assert "x-www-form-urlencoded' is not read here; send application/json" in answer.text
    assert "multipart" not in answer.text  # which this route does not read either


async def test_a_body_in_a_coding_is_not_read(client):
    headers = {"Content-Type": "application/json", "Content-Encoding": "gzip"}
    async with client:
        answer = await client.post("/named", content=b"{}", headers=headers)
    assert answer.status_code == 415


@pytest.mark.parametrize("data", [b"[]", b'"a"', b"null", b'{"name": 3}', b"{}"])
async def test_json_of_another_shape_is_told_apart_from_malformed_json(client, data):
    assert (await post(client, data)).status_code == 422


async def test_a_route_without_a_body_needs_no_type(client):
    async with client:
        assert (await client.get("/plain")).json() == {"ok": True}


MANY = b"1," * 200_000 + b"1"


@pytest.mark.parametrize(
    "data",
    [
        b'{"name": [' + MANY + b"]}",
        b'{"name": [' + b'["", ""],' * 70_000 + b"{}]}",
        b"{" + b",".join(b'"%d": 1' % number for number in range(10_001)) + b"}",
        b'{"name": [' + b"1," * 1_000_001 + b"no JSON",  # refused unread
    ],
)
async def test_more_values_than_can_be_looked_at_are_too_large(client, data):
    assert (await post(client, data)).status_code == 413


async def test_a_long_text_is_one_value(client):
    answer = await post(client, b'{"name": "' + MANY + b'"}')
    assert answer.json()["name"] == MANY.decode()
