from __future__ import annotations

import pytest
from fastapi import FastAPI
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.responses import PlainTextResponse

from guardrail.asgi.problems import answer_to, problem_of
from guardrail.errors import (
    ConfigurationError,
    DetectorError,
    GuardClosedError,
    GuardrailError,
    GuardrailViolation,
    ImageDecodeError,
    LimitExceededError,
    QueueFullError,
    RequestTimeoutError,
    UnsupportedContentError,
    UnsupportedModelError,
    UrlNotAllowedError,
)
from guardrail.types import Action, Modality, Verdict

VIOLATION = GuardrailViolation(
    Verdict(
        action=Action.FLAG,
        would_be=Action.FLAG,
        score=2.0,
        tau_steer=0.4,
        tau_flag=0.9,
        layers=(1,),
        modality=Modality.TEXT,
        artefact_id="guard-test",
    )
)


def problem(error):
    return problem_of(error, refusal="No.", flag_status=451)


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (HTTPException(415, "what"), 415),
        (VIOLATION, 451),
        (LimitExceededError(limit="images", allowed=1, found=2), 413),
        (UnsupportedContentError("what"), 422),
        (ImageDecodeError("what"), 422),
        (UrlNotAllowedError("what"), 422),
        (QueueFullError("what"), 503),
        (RequestTimeoutError("what"), 504),
        (DetectorError("what"), 503),
        (GuardClosedError("what"), 503),
        (UnsupportedModelError("what"), 503),
        (GuardrailError("what"), 503),
    ],
)
def test_every_error_has_its_status(error, status):
    assert problem(error).status == status


def test_what_is_wrong_with_a_request_is_told_and_what_is_wrong_here_is_logged(caplog):
    assert problem(UnsupportedContentError("messages[0]")).message == "messages[0]"
    assert caplog.records == []
    told = problem(DetectorError("CUDA on host gpu-3"))
    assert "gpu-3" not in told.message
    assert "gpu-3" in caplog.text
    assert told.headers == {"Retry-After": "1"}


def test_an_outage_is_not_told_as_a_finding(caplog):
    outage = problem(DetectorError("what")).to_dict()["error"]
    assert (outage["type"], outage["code"]) == ("server_error", "unavailable")
    finding = problem(VIOLATION).to_dict()["error"]
    assert finding == {
        "message": "No.",
        "type": "invalid_request_error",
        "param": None,
        "code": "content_filter",
    }


def test_a_mistaken_setting_is_the_programs_error():
    with pytest.raises(ConfigurationError):
        problem(ConfigurationError("what"))


async def _later(request, error):
    return PlainTextResponse(f"later: {type(error).__name__}", 418)


def _now(request, error):
    return PlainTextResponse(f"{request.app.title} {error.status_code} {error.detail}", 418)


def answered(ask, owner, error=VIOLATION):
    return ask(answer_to(error, problem(error), owner), "POST", "/chat")


def test_an_apps_handler_for_the_error_comes_first(ask):
    owner = Starlette(exception_handlers={GuardrailViolation: _later, HTTPException: _now})
    assert answered(ask, owner).text == "later: GuardrailViolation"


def test_a_handler_for_all_errors_of_the_package_is_one_for_each(ask):
    owner = Starlette(exception_handlers={GuardrailError: _later})
    assert answered(ask, owner, QueueFullError("what")).text == "later: QueueFullError"


@pytest.mark.parametrize("key", [HTTPException, 451])
def test_else_its_handler_for_http_errors_answers(ask, key):
    owner = FastAPI(title="mine", exception_handlers={key: _now})
    assert answered(ask, owner).text == "mine 451 No."


def test_a_fastapi_app_answers_in_its_own_form_without_any_handler_of_yours(ask):
    response = answered(ask, FastAPI(), QueueFullError("what"))
    assert response.json() == {
        "detail": "too many requests are waiting for their check; try again later"
    }
    assert (response.status_code, response.headers["retry-after"]) == (503, "1")


@pytest.mark.parametrize(
    "owner",
    [None, object(), Starlette(), Starlette(exception_handlers={Exception: _later, 500: _later})],
)
def test_other_apps_answer_in_the_form_of_the_openai_api(ask, owner):
    response = answered(ask, owner)
    assert response.status_code == 451
    assert response.json()["error"]["code"] == "content_filter"


def test_a_handler_answers_for_an_error_that_starlette_would_not_catch(ask):
    class Bare(BaseException):
        pass

    owner = Starlette(exception_handlers={Bare: _later})
    response = ask(answer_to(Bare(), problem(VIOLATION), owner), "POST", "/chat")
    assert response.text == "later: Bare"
