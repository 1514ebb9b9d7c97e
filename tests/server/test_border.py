from __future__ import annotations

import logging

import httpx
import pytest
from starlette.requests import ClientDisconnect

from guardrail.server.border import Border
from guardrail.server.logs import formatter
from guardrail.server.problems import AnswerCutError

START = {"type": "http.response.start", "status": 200, "headers": []}
SCOPE = {"type": "http", "method": "GET", "path": "/", "headers": []}


def raising(error, *before):
    async def app(scope, receive, send):
        for message in before:
            await send(message)
        raise error

    return Border(app)


async def test_an_unexpected_error_is_told_in_general_terms(caplog):
    app = raising(KeyError("SECRET"))
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://s") as client:
        answer = await client.get("/")
    assert answer.status_code == 500
    assert answer.json()["error"]["code"] == "internal_error"
    assert "SECRET" not in answer.text
    [told] = [r for r in caplog.records if r.levelno == logging.ERROR]
    line = formatter("json").format(told)
    assert "KeyError" in line
    assert "SECRET" not in line


async def test_an_answer_that_has_begun_is_cut_and_the_words_stay_inside():
    with pytest.raises(AnswerCutError) as caught:
        await raising(KeyError("SECRET"), START)(SCOPE, None, lambda message: _nothing())
    assert str(caught.value) == "KeyError"
    assert caught.value.__suppress_context__


async def test_a_client_that_left_is_no_error(caplog):
    await raising(ClientDisconnect())(SCOPE, None, lambda message: _nothing())
    assert [r for r in caplog.records if r.levelno > logging.DEBUG] == []


async def _nothing():
    pass
