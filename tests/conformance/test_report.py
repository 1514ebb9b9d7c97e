from __future__ import annotations

import pytest
from pydantic import ValidationError

from guardrail.conformance import Check, Outcome, Report


def check(outcome: Outcome, reason: str | None = None, name: str = "a") -> Check:
    return Check(name=name, title="A", outcome=outcome, reason=reason, figures={"n": 1, "x": 0.5})


def report(*checks: Check) -> Report:
    return Report(
        architecture="X",
        source="in memory",
        layers=4,
        d_model=32,
        dtype="float32",
        device="cpu",
        pictures=True,
        packages={"torch": "2"},
        checks=checks,
    )


def test_a_report_is_the_same_after_a_trip_through_json() -> None:
    made = report(check(Outcome.YES), check(Outcome.NO, "because", "b"))
    again = Report.model_validate_json(made.model_dump_json())
    assert again == made
    assert again["b"].reason == "because"
    assert '"format_version":1' in made.model_dump_json()


def test_a_report_of_a_later_format_is_refused() -> None:
    later = report().model_dump() | {"format_version": 2}
    with pytest.raises(ValidationError, match="format_version"):
        Report.model_validate(later)


@pytest.mark.parametrize("outcome", [Outcome.NO, Outcome.NOT_APPLICABLE, Outcome.FAILED])
def test_all_but_a_yes_needs_a_reason(outcome: Outcome) -> None:
    with pytest.raises(ValidationError, match="needs a reason"):
        check(outcome)


def test_a_refusal_is_fine_and_a_wrong_result_is_not() -> None:
    assert report(
        check(Outcome.YES), check(Outcome.NO, "no"), check(Outcome.NOT_APPLICABLE, "x")
    ).ok
    wrong = report(check(Outcome.YES), check(Outcome.FAILED, "wrong", "b"))
    assert not wrong.ok
    assert [one.name for one in wrong.failed] == ["b"]


def test_a_check_that_was_not_run_is_a_key_error() -> None:
    with pytest.raises(KeyError, match="zzz"):
        report()["zzz"]


def test_a_guard_works_where_only_what_it_can_do_without_is_refused() -> None:
    beams = check(Outcome.NO, "no", "beams").model_copy(update={"mode": True})
    assert report(check(Outcome.YES), beams).works
    assert not report(check(Outcome.NO, "no"), beams).works
    assert not report(check(Outcome.NOT_APPLICABLE, "x")).works
    assert not report(check(Outcome.FAILED, "wrong")).works
