from __future__ import annotations

import asyncio
import gc
import json
import logging
import sys

import pytest

from guardrail.server.logs import formatter


def record(message="hello", *args, **extra):
    made = logging.getLogger("guardrail.test").makeRecord(
        "guardrail.test", logging.INFO, __file__, 1, message, args, None, extra=extra
    )
    return made


@pytest.fixture(params=["json", "text"])
def line_of(request):
    return formatter(request.param).format


def test_a_json_line_has_the_facts_beside_the_event():
    line = json.loads(formatter("json").format(record("request", status=200, client=None)))
    assert (line["event"], line["status"], line["level"]) == ("request", 200, "info")
    assert line["logger"] == "guardrail.test"
    assert line["timestamp"].endswith("Z")
    assert "client" not in line


def test_a_text_line_has_the_facts_as_pairs():
    line = formatter("text").format(record("request", status=200, route="/v1/chat completions"))
    assert " info request " in line
    assert "status=200" in line
    assert 'route="/v1/chat completions"' in line


@pytest.mark.parametrize(
    "evil", ["a\nb", "a\r\nb", "a\x1b[31mb", "a\x85b", "a\u2028b", "a\x00b", "a\x7fb"]
)
def test_no_control_character_reaches_the_log(line_of, evil):
    line = line_of(record("said %s", evil, facts=evil, nested={evil: [evil]}))
    assert line.isprintable()
    assert line.isascii()


def test_a_text_value_cannot_pretend_to_be_another_pair():
    line = formatter("text").format(record("request", route='x status=200 y="z"'))
    assert line.count(" status=200") == 1
    assert 'route="x status=200' in line


def test_the_words_of_an_exception_stay_out(line_of):
    def fails():
        raise ValueError("SECRET prompt")

    try:
        try:
            fails()
        except ValueError as inner:
            raise RuntimeError("SECRET again") from inner
    except RuntimeError:
        made = record("a request failed")
        made.exc_info = sys.exc_info()
    line = line_of(made)
    assert "SECRET" not in line
    assert "RuntimeError" in line
    assert "because of ValueError" in line
    assert "test_logs.py" in line


async def test_the_words_of_an_error_that_nobody_awaited_stay_out(line_of, caplog):
    async def fails():
        raise ValueError("SECRET prompt")

    task = asyncio.create_task(fails())
    await asyncio.wait({task})
    del task
    gc.collect()
    [made] = [record for record in caplog.records if record.name == "asyncio"]
    assert "SECRET" in made.getMessage()
    line = line_of(made)
    assert "never retrieved" in line
    assert "ValueError" in line
    assert "SECRET" not in line


def test_a_value_that_is_no_json_is_told_by_its_kind():
    line = formatter("json").format(record("x", odd=object()))
    assert json.loads(line)["odd"] == "<object>"
