"""A response's events add up to the response that is told whole."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import TypeAdapter

from guardrail.asgi.problems import Problem
from guardrail.server.keys import Caller
from guardrail.server.response_form import ResponseAnswer
from guardrail.testing import FakeGuard
from guardrail.types import Result, ToolCall

VERDICT = FakeGuard().check("hello")
RESULT = Result(
    text="Well.", verdict=VERDICT, finish_reason="stop", prompt_tokens=3, completion_tokens=2
)
CALLS = (
    ToolCall(name="look", arguments={"at": "é"}, id="call_1"),
    ToolCall(name="go", arguments="not json", id=""),
)
REFUSED = replace(RESULT, finish_reason="flag", refused_by_guard=True)
EVENTS: TypeAdapter[Any] = TypeAdapter(ResponseStreamEvent)


def answer(*, refused: bool = False, **options: Any) -> ResponseAnswer:
    caller = Caller("r", sees_scores=True)
    return ResponseAnswer(model="m", verdict=VERDICT, caller=caller, refused=refused, **options)


def streamed(form: ResponseAnswer, result: Result) -> list[dict[str, Any]]:
    events = form.opening()
    for text in result.text:
        events += form.words(0, text)
    return events + form.ending(0, result, [result])


@pytest.mark.parametrize(
    ("result", "status"),
    [
        (RESULT, "completed"),
        (REFUSED, "completed"),
        (replace(RESULT, finish_reason="length"), "incomplete"),
        (replace(RESULT, tool_calls=CALLS), "completed"),
        (replace(RESULT, text="", tool_calls=CALLS), "completed"),
        (replace(RESULT, text=""), "completed"),
    ],
)
def test_events_are_those_of_the_official_types_and_end_in_the_whole(result, status):
    form = answer(refused=result.refused_by_guard)
    events = streamed(form, result)
    for number, event in enumerate(events):
        assert EVENTS.validate_python(event, strict=False).type == event["type"]
        assert event["sequence_number"] == number
    last = events[-1]
    assert last["type"] == f"response.{status}"
    whole = answer(refused=result.refused_by_guard).whole([result])
    Response.model_validate(whole)
    assert names_removed(last["response"]) == names_removed(whole)
    done = [event["item"] for event in events if event["type"] == "response.output_item.done"]
    assert done == last["response"]["output"]


def names_removed(response: dict[str, Any]) -> dict[str, Any]:
    items = [
        {key: held for key, held in item.items() if key not in ("id", "call_id")}
        for item in response["output"]
    ]
    times = ("id", "created_at", "completed_at")
    return {key: held for key, held in response.items() if key not in times} | {"output": items}


def test_a_call_has_an_id_of_its_own_and_its_arguments_as_text():
    first, second = answer().whole([replace(RESULT, text="", tool_calls=CALLS)])["output"]
    assert first["call_id"] == "call_1"
    assert json.loads(first["arguments"]) == {"at": "é"}
    assert second["call_id"].startswith("call_")
    assert second["arguments"] == "not json"
    assert first["id"] != second["id"]


def test_without_parallel_calls_the_first_one_is_told():
    told = answer(parallel_calls=False).whole([replace(RESULT, text="", tool_calls=CALLS)])
    assert [item["name"] for item in told["output"]] == ["look"]


def test_a_refusal_is_nowhere_told_as_text():
    told = json.dumps(
        [streamed(answer(refused=True), REFUSED), answer(refused=True).whole([REFUSED])]
    )
    assert "output_text" not in told


@pytest.mark.parametrize(
    ("status", "code"), [(504, "server_error"), (429, "rate_limit_exceeded"), (503, "server_error")]
)
def test_a_failure_is_a_failed_response_without_words(status, code):
    form = answer()
    before = [*form.opening(), *form.words(0, "secret")]
    failed = form.failed(Problem(status, "no more", "x"))
    assert failed["type"] == "response.failed"
    assert failed["sequence_number"] == len(before)
    assert failed["response"]["error"] == {"code": code, "message": "no more"}
    assert "secret" not in json.dumps(failed)
    EVENTS.validate_python(failed)


def test_scores_are_told_to_those_who_may_hear_them():
    form = ResponseAnswer(model="m", verdict=VERDICT, caller=Caller("r"), refused=False)
    assert "score" not in form.whole([RESULT])["guardrail"]
    assert "score" not in form.opening()[0]["guardrail"]
