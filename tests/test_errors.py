"""The family of errors: what catches what."""

from __future__ import annotations

import inspect

import pytest

from guardrail import errors
from guardrail.errors import GuardrailError, GuardrailViolation
from guardrail.testing import FakeGuard

FAMILY = [
    kind
    for _, kind in inspect.getmembers(errors, inspect.isclass)
    if issubclass(kind, GuardrailError) and kind not in (GuardrailError, GuardrailViolation)
]


@pytest.mark.parametrize("kind", FAMILY, ids=lambda kind: kind.__name__)
def test_every_failure_is_an_exception(kind):
    assert issubclass(kind, Exception)


def test_a_violation_is_of_the_family_and_no_exception():
    assert issubclass(GuardrailViolation, GuardrailError)
    assert not issubclass(GuardrailViolation, Exception)


def test_what_tries_something_else_on_any_exception_does_not_see_a_violation():
    violation = GuardrailViolation(FakeGuard(flag=["bad"]).check("bad"))

    def with_fallback():
        try:
            raise violation
        except Exception:
            return "answered by another model"

    with pytest.raises(GuardrailViolation):
        with_fallback()
