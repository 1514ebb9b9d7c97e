from __future__ import annotations

import json
import re

import pytest

from guardrail.guard import Guard
from guardrail.policy import REFUSAL, Policy, VideoSampling


@pytest.mark.parametrize(
    ("action", "flags", "code"),
    [
        ("pass", [], 0),
        ("steer", [], 0),
        ("steer", ["--strict"], 1),
        ("flag", [], 1),
        ("flag", ["--strict"], 1),
    ],
)
def test_the_exit_code_says_whether_there_was_a_finding(run, saved, action, flags, code):
    done = run("check", saved.model, "-a", saved.artefact[action], "--text", "Hello", *flags)
    assert done.exit_code == code, done.stderr
    assert f"action           {action}" in done.stdout


def test_the_document_is_the_guards_own_verdict_and_all_there_is_on_stdout(run, saved):
    words = ("--text", "What is this?", "--image", saved.picture, "--json")
    done = run("check", saved.model, "-a", saved.artefact["flag"], *words)
    with Guard.from_pretrained(saved.model, saved.artefact["flag"]) as guard:
        content = [
            {"type": "image", "image": saved.picture},
            {"type": "text", "text": "What is this?"},
        ]
        wanted = guard.check([{"role": "user", "content": content}])
    found = json.loads(done.stdout)
    assert found.pop("score") == pytest.approx(wanted.score, rel=1e-5)
    assert found == {k: v for k, v in wanted.to_dict().items() if k != "score"}
    assert found["modality"] == "image"


def test_a_chat_from_stdin_and_from_a_file_give_one_verdict(run, saved, tmp_path):
    chat = json.dumps([{"role": "user", "content": "Hello"}])
    (tmp_path / "chat.json").write_text(chat)
    words = ("check", saved.model, "-a", saved.artefact["pass"], "--json", "--messages")
    from_file = run(*words, str(tmp_path / "chat.json"))
    from_stdin = run(*words, "-", stdin=chat)
    assert from_file.exit_code == 0, from_file.stderr
    assert json.loads(from_file.stdout) == json.loads(from_stdin.stdout)


def test_shadow_mode_from_a_policy_file_still_reports_the_finding(run, saved, tmp_path):
    (tmp_path / "policy.toml").write_text('mode = "shadow"')
    done = run(
        "check",
        saved.model,
        "-a",
        saved.artefact["flag"],
        "--text",
        "Hello",
        "--policy",
        str(tmp_path / "policy.toml"),
    )
    assert done.exit_code == 1
    assert "pass (would be flag)" in done.stdout


def test_the_environment_is_the_policy_without_a_file(run, saved, monkeypatch):
    monkeypatch.setenv("GUARDRAIL_POLICY_MODE", "shadow")
    done = run("check", saved.model, "-a", saved.artefact["flag"], "--text", "Hello", "--json")
    assert json.loads(done.stdout)["mode"] == "shadow"


def test_whose_words_are_judged_can_be_given_in_the_policys_place(run, saved, tmp_path):
    """The system prompt's own words count for nothing, unless it is to be judged."""
    (tmp_path / "policy.toml").write_text('judge = ["tools"]')
    chat = '[{"role": "system", "content": "a lock"}, {"role": "user", "content": "Hello"}]'
    words = ("check", saved.model, "-a", saved.artefact["pass"], "--messages", "-", "--json")
    words += ("--policy", str(tmp_path / "policy.toml"))
    found = {}
    for judge in ([], ["--judged", "system"], ["--judged", "turns", "--judged", "answers"]):
        done = run(*words, *judge, stdin=chat)
        where = json.loads(done.stdout)["where"]
        found[" ".join(judge)] = where["reading"], where["role"]
    assert found[""] == ("last", "user")
    assert found["--judged system"] == ("window", "system"), found
    assert "system" not in found["--judged turns --judged answers"]


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        ([], "nothing to check"),
        (["--text", "a", "--messages", "-"], "a whole chat"),
        (["--messages", "/no/such.json"], "No such file"),
        (["--image", "/no/such.png"], "does not exist"),
    ],
)
def test_wrong_usage_is_told_and_ends_with_2(run, saved, words, reason):
    done = run("check", saved.model, "-a", saved.artefact["pass"], *words)
    assert done.exit_code == 2
    assert reason in " ".join(done.stderr.replace("│", " ").split())
    assert done.stdout == ""


@pytest.mark.parametrize(
    ("stdin", "reason"),
    [("{", "stdin is not JSON"), ('[{"role": "nobody", "content": "a"}]', "nobody")],
)
def test_a_chat_that_cannot_be_read_is_an_error_in_one_line(run, saved, stdin, reason):
    words = ("check", saved.model, "-a", saved.artefact["pass"], "--messages", "-")
    done = run(*words, stdin=stdin)
    assert done.exit_code == 2
    assert reason in done.stderr
    assert [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert "Traceback" not in done.stderr


def test_another_models_artefact_is_refused_unless_allowed(run, saved, tmp_path):
    from guardrail.artefact import Artefact
    from guardrail.testing import tiny_artefact, tiny_model

    other = tiny_model("llava", seed=1)
    path = str(tiny_artefact(*other, tau_steer=1e6, tau_flag=2e6).save(tmp_path / "o.safetensors"))
    words = ("check", saved.model, "-a", path, "--text", "Hello")
    refused = run(*words)
    assert refused.exit_code == 2
    assert "another model (weights_digest); `guardrail drift`" in refused.stderr
    digest = Artefact.load(path).header.fingerprint.weights_digest
    assert digest not in refused.stderr
    assert f"weights_digest: fitted on {digest}, running " in run(*words, "--debug").stderr
    log = tmp_path / "audit.jsonl"
    allowed = run(*words, "--allow-mismatch", "--audit", str(log))
    assert allowed.exit_code == 0
    [warning] = [line for line in allowed.stderr.splitlines() if line.startswith("warning: ")]
    assert "weights_digest: fitted on " in warning
    events = [json.loads(line) for line in log.read_text().splitlines()]
    assert [event["event"] for event in events] == ["mismatch_allowed", "verdict"]
    assert "weights_digest" in events[0]["fields"]


@pytest.mark.parametrize("command", ["check", "generate"])
def test_verdicts_are_appended_to_the_audit_file(run, saved, tmp_path, command):
    log = tmp_path / "audit.jsonl"
    words = (command, saved.model, "-a", saved.artefact["flag"], "--text", "a secret")
    for _ in range(2):
        assert run(*words, "--audit", str(log)).exit_code == 1
    assert "secret" not in log.read_text()
    events = [json.loads(line) for line in log.read_text().splitlines()]
    assert [each["action"] for each in events if each["event"] == "verdict"] == ["flag"] * 2
    assert len(events) == (4 if command == "generate" else 2)  # an answer is an event of its own


def test_an_audit_file_that_cannot_be_opened_ends_with_2(run, saved, tmp_path):
    words = ("check", saved.model, "-a", saved.artefact["pass"], "--text", "a")
    done = run(*words, "--audit", str(tmp_path / "none" / "audit.jsonl"))
    assert (done.exit_code, done.stdout) == (2, "")
    assert "cannot open the audit log" in done.stderr


def test_variables_of_other_programs_do_not_disturb(run, saved, monkeypatch):
    monkeypatch.setenv("GUARDRAIL_SERVICE_HOST", "10.0.0.1")
    done = run("check", saved.model, "-a", saved.artefact["pass"], "--text", "Hello")
    assert done.exit_code == 0, done.stderr


def test_a_video_is_judged_as_the_guard_judges_it(run, saved):
    words = ("--text", "What is this?", "--video", saved.video, "--window", "8", "--json")
    done = run("check", saved.model, "-a", saved.artefact["pass"], *words)
    assert done.exit_code == 0, done.stderr
    content = [{"type": "video", "path": saved.video}, {"type": "text", "text": "What is this?"}]
    policy = Policy(video=VideoSampling(window=8))
    with Guard.from_pretrained(saved.model, saved.artefact["pass"], policy=policy) as guard:
        wanted = guard.check([{"role": "user", "content": content}]).to_dict()
    found = json.loads(done.stdout)
    assert found.pop("score") == pytest.approx(wanted.pop("score"), rel=1e-5)
    assert found == wanted
    assert found["modality"] == "video"
    assert found["window"]["frames"] == 6


def test_rate_and_window_of_a_video_can_be_given(run, saved, tmp_path):
    (tmp_path / "policy.toml").write_text("[video]\nfps = 0.5\nmax_fps = 0.5\nwindow = 3\n")
    words = ("check", saved.model, "-a", saved.artefact["pass"], "--video", saved.video)
    few = run(*words, "--policy", str(tmp_path / "policy.toml"), "--json")
    assert json.loads(few.stdout)["window"]["frames"] < 6
    # a rate above the policy's highest one raises that, too
    given = ("--fps", "2", "--window", "2")
    many = run(*words, "--policy", str(tmp_path / "policy.toml"), *given)
    assert many.exit_code == 0, many.stderr
    row = next(line for line in many.stdout.splitlines() if line.startswith("window"))
    assert re.fullmatch(r"window +window \d of [34], \d\.\d to \d\.\d s", row)
    wrong = run(*words, "--window", "0")
    assert wrong.exit_code == 2


def test_the_audit_line_of_a_long_video_is_one_and_tells_its_window(run, saved, tmp_path):
    log = tmp_path / "audit.jsonl"
    words = ("--video", saved.video, "--window", "2", "--audit", str(log))
    done = run("check", saved.model, "-a", saved.artefact["flag"], *words)
    assert done.exit_code == 1, done.stderr
    (line,) = [json.loads(line) for line in log.read_text().splitlines()]
    assert (line["event"], line["modality"]) == ("verdict", "video")
    assert set(line["window"]) == {"number", "of", "start_s", "end_s", "frames", "video"}


def test_a_chat_leaves_no_place_for_a_video(run, saved):
    words = ("--messages", "-", "--video", saved.video)
    done = run("check", saved.model, "-a", saved.artefact["pass"], *words, stdin="[]")
    assert done.exit_code == 2
    assert "leave --text, --image and" in done.stderr


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
