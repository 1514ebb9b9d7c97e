from __future__ import annotations

import json

import pytest

from guardrail.guard import Guard
from guardrail.policy import REFUSAL


@pytest.fixture(scope="module")
def answer(saved):
    with Guard.from_pretrained(saved.model, saved.artefact["pass"]) as guard:
        return guard.generate("Hello", max_new_tokens=4)


def _words(saved, action, *more):
    artefact = saved.artefact[action]
    return ("generate", saved.model, "-a", artefact, "-t", "Hello", "--max-new-tokens", "4", *more)


@pytest.mark.parametrize("more", [[], ["--stream"]])
def test_stdout_is_the_answer_alone(run, saved, answer, more):
    done = run(*_words(saved, "pass", *more))
    assert done.exit_code == 0, done.stderr
    assert done.stdout == answer.text + "\n"
    assert "verdict: pass" in done.stderr


@pytest.mark.parametrize("more", [[], ["--stream"]])
def test_a_flagged_request_prints_the_refusal_and_ends_with_1(run, saved, more):
    done = run(*_words(saved, "flag", *more))
    assert done.exit_code == 1
    assert done.stdout == REFUSAL + "\n"


def test_json_holds_answer_verdict_and_counts(run, saved, answer):
    done = run(*_words(saved, "pass", "--json"))
    found = json.loads(done.stdout)
    assert found["text"] == answer.text
    assert found["verdict"]["action"] == "pass"
    assert (found["completion_tokens"], found["finish_reason"]) == (4, "length")
    assert found["refused_by_guard"] is False


@pytest.mark.parametrize("more", [[], ["--json"], ["--stream"]])
def test_a_violation_is_a_finding_and_no_error(run, saved, tmp_path, more):
    (tmp_path / "policy.json").write_text('{"on_flag": "raise"}')
    done = run(*_words(saved, "flag", "--policy", str(tmp_path / "policy.json"), *more))
    assert done.exit_code == 1
    assert "error" not in done.stderr
    if "--json" in more:
        found = json.loads(done.stdout)
        assert (found["text"], found["verdict"]["action"]) == (None, "flag")


def test_stream_and_json_exclude_each_other(run, saved):
    done = run(*_words(saved, "pass", "--json", "--stream"))
    assert (done.exit_code, done.stdout) == (2, "")


def test_an_answer_to_a_video_tells_the_window_it_rests_on(run, saved):
    words = ("--video", saved.video, "--window", "2", "--max-new-tokens", "2")
    done = run("generate", saved.model, "-a", saved.artefact["pass"], *words, "--json")
    assert done.exit_code == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["completion_tokens"] == 2
    assert found["verdict"]["modality"] == "video"
    assert found["verdict"]["window"]["of"] in (3, 4)
    shown = run("generate", saved.model, "-a", saved.artefact["pass"], *words)
    assert "video (window " in shown.stderr
