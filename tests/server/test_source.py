from __future__ import annotations

import pytest

from guardrail.errors import DetectorError
from guardrail.model.load import wrap_model
from guardrail.policy import Policy
from guardrail.server.source import GuardSource
from guardrail.testing import tiny_artefact


@pytest.fixture
def source(llava, tmp_path):
    path = tmp_path / "a.safetensors"
    tiny_artefact(llava.model, llava.processor).save(path)
    told = []
    made = GuardSource(
        loaded=wrap_model(llava.model, llava.processor),
        artefact=str(path),
        read_policy=Policy,
        audit=lambda verdict, facts: told.append(facts),
    )
    return made, told


def test_a_guard_tells_the_record_and_the_warm_up_does_not(source):
    made, told = source
    made.warm_up()
    assert told == []
    with made.make() as guard:
        guard.check("hello")
    assert [facts["event"] for facts in told] == ["verdict"]


def test_a_detector_that_fails_at_the_warm_up_is_an_error(source, monkeypatch):
    def fail(*_):
        raise RuntimeError("no detector today")

    monkeypatch.setattr("guardrail.decide.detector.Detector.decide", fail)
    with pytest.raises(DetectorError, match="first, harmless"):
        source[0].warm_up()
