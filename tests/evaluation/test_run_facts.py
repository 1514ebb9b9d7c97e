from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from guardrail.evaluation.run import evaluate
from guardrail.guard import Guard
from guardrail.policy import Policy
from guardrail.types import Modality

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.evaluation.conftest import Fitted


@pytest.mark.parametrize(
    ("rules", "names"),
    [
        ({}, {"steer", "flag"}),
        ({"actions": ["flag"]}, {"flag"}),
        ({"actions": ["steer"]}, {"steer"}),
        ({"actions": []}, set()),
    ],
)
def test_only_thresholds_that_act_are_reported(guard, texts, rules, names):
    with guard.with_policy(Policy.model_validate(rules)) as other:
        report = evaluate(other, texts[:2], answers=False)
    assert set(report.thresholds["text"]) == names


@pytest.mark.parametrize(
    ("rules", "names", "action"),
    [({}, {"flag"}, "pass"), ({"unsteerable": "flag"}, {"steer", "flag"}, "flag")],
)
def test_an_artefact_that_only_detects_steers_nothing(
    fitted_of: Callable[[str], Fitted], texts, rules, names, action
):
    fitted = fitted_of("llama")
    tensors = {k: v for k, v in fitted.artefact.tensors.items() if not k.startswith("steer_")}
    artefact = fitted.artefact.revised(tensors=tensors, steering=None)
    low = {"text": {"steer": -1e6, "flag": 1e6}}
    policy = Policy.model_validate({"thresholds": low, **rules})
    with Guard(fitted.loaded, artefact, policy=policy) as guard:
        report = evaluate(guard, texts[:2], answers=False)
    assert set(report.thresholds["text"]) == names
    assert {row.action for row in report.items} == {action}


def test_pictures_held_to_the_thresholds_of_texts_are_said(
    fitted_of: Callable[[str], Fitted], pictured
):
    fitted = fitted_of("llava")
    known = {m: c for m, c in fitted.artefact.header.calibration.items() if m is Modality.TEXT}
    own = {"thresholds": {"image": {"steer": 0.5, "flag": 1.0}}}
    for policy, said in ((Policy(), 1), (Policy.model_validate(own), 0)):
        with Guard(fitted.loaded, fitted.artefact.revised(calibration=known), policy=policy) as one:
            report = evaluate(one, pictured[:2], answers=False)
        assert sum("held to the thresholds of text" in w for w in report.warnings) == said


def test_without_content_an_error_is_named_by_its_class_alone(guard, texts):
    from dataclasses import replace

    odd = replace(texts[0], id="odd", messages=[{"role": "my secret", "content": "x"}])
    for content in (True, False):
        report = evaluate(
            guard, [*texts[1:4], odd], answers=False, content=content, skip_errors=True
        )
        assert ("my secret" in report.model_dump_json()) == content
        assert "UnsupportedContentError" in str(report.data["skipped"]) or content


def test_what_was_left_out_is_not_counted_among_the_measured(guard, texts):
    from dataclasses import replace

    long = [{"role": "user", "content": "dog " * 3000}]
    both = [replace(texts[n], id=f"long {n}", messages=long) for n in (0, 1)]
    report = evaluate(guard, [*texts[2:5], *both], answers=False, skip_errors=True)
    assert report.data["distinct"] == report.data["n"] == 3
    assert not any("repeat" in warning for warning in report.warnings)
