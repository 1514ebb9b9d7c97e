from __future__ import annotations

import json

import pytest
from starlette.exceptions import HTTPException

from guardrail.errors import (
    ConfigurationError,
    MissingExtraError,
    QueueFullError,
    RequestTimeoutError,
    UrlNotAllowedError,
)
from guardrail.server.errors import LATE, stream_end, told_as


@pytest.mark.parametrize(("seconds", "told"), [(0.2, "1"), (2.1, "3"), (60, "60")])
def test_a_full_queue_says_when_to_come_back(seconds, told):
    error = QueueFullError("full")
    error.retry_after_s = seconds
    problem = told_as(error, "no")
    assert (problem.status, problem.headers["Retry-After"]) == (429, told)


def test_where_an_address_leads_is_not_told():
    problem = told_as(UrlNotAllowedError("a.example resolves to 10.0.0.5"), "no")
    assert (problem.status, problem.code) == (422, "url_not_allowed")
    assert "10.0.0.5" not in problem.message


def test_a_late_answer_is_told_the_same_whoever_notices():
    assert told_as(RequestTimeoutError("the check took too long"), "no") == LATE


def test_statuses_have_codes():
    assert told_as(HTTPException(404), "no").code == "not_found"
    assert told_as(ConfigurationError("x"), "no").status == 400


def test_a_path_without_v1_is_told_where_chats_are():
    assert "/v1/chat/completions" in told_as(HTTPException(404), "no").message


def test_the_end_of_a_stream_is_one_event_without_done():
    text = stream_end(told_as(HTTPException(404), "no")).decode()
    assert text.startswith("data: ")
    assert text.endswith("\n\n")
    assert "error" in json.loads(text.removeprefix("data: "))


@pytest.mark.parametrize(
    ("module", "extra", "status"), [("llguidance", "structured", 400), ("av", "video", 422)]
)
def test_a_missing_extra_is_told_without_its_command(module, extra, status):
    problem = told_as(MissingExtraError(module, extra=extra), "no")
    assert problem.status == status
    assert "pip" not in problem.message
