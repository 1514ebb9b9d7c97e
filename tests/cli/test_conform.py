from __future__ import annotations

import json

from guardrail.conformance import Report
from guardrail.decide.detector import Detector
from guardrail.errors import UnsupportedModelError
from guardrail.model.encode import Encoder


def test_each_check_has_a_line_and_a_reason(run, saved, monkeypatch):
    real = Encoder.encode

    def encode(self, requests):
        if any(request.videos for request in requests):
            raise UnsupportedModelError("no videos here")
        return real(self, requests)

    monkeypatch.setattr(Encoder, "encode", encode)
    done = run("conform", saved.model, "--only", "score", "--only", "video")
    assert done.exit_code == 0
    head, *lines, last = done.stdout.splitlines()
    assert head.startswith("LlavaForConditionalGeneration: 4 layers, float32 (guardrail-vlm ")
    assert [line.split()[:2] for line in lines] == [["score", "yes"], ["video", "no"]]
    assert "no videos here" in lines[1]
    assert last == "a guard works inside this model, as far as these checks say"


def test_the_document_is_the_report(run, saved):
    done = run("conform", saved.model, "--only", "flag", "--json")
    report = Report.model_validate(json.loads(done.stdout))
    assert report.source == saved.model
    assert report["flag"].outcome == "yes"


def test_a_wrong_result_is_a_finding(run, saved, monkeypatch):
    real = Detector.edit
    monkeypatch.setattr(Detector, "edit", lambda self, *args: 2 * real(self, *args))
    done = run("conform", saved.model, "--only", "steering")
    assert done.exit_code == 1
    assert "steering     FAILED" in done.stdout
    assert done.stdout.endswith("does not work inside this model; wrong: steering\n")


def test_a_check_nobody_knows_is_an_error(run, saved):
    done = run("conform", saved.model, "--only", "nonsense")
    assert (done.exit_code, done.stdout) == (2, "")
    assert "no checks named nonsense" in done.stderr


def test_a_model_that_is_not_there_is_an_error(run, tmp_path):
    done = run("conform", str(tmp_path / "gone"))
    assert (done.exit_code, done.stdout) == (2, "")
